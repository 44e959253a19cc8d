"""The auditor: reads only the database and the fake engine's truth log, and recomputes everything.

    python -m tests.rig.auditor DATABASE TRUTH.jsonl [--acks ACKS.jsonl] [--killed-at NS …] [--live]

It shares no code with Headwater: SQL of its own, arithmetic of its own. It prints its figures and what it finds, and
exits with 1 if it finds anything. The rules about money are in `ledger_audit.py`, the others are functions below; each
has twins in `tests/integration/test_auditor.py`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.rig.knobs import split_model
from tests.rig.ledger_audit import check_ledger
from tests.rig.ledger_rows import KINDS, RESTARTED, Finding, Ledger, Row, flags_of
from tests.rig.truth import Attempt, Truth

__all__ = ["METRICS", "Ack", "Audit", "Finding", "audit"]
LIES = frozenset({"usage_negative", "usage_absurd"})
"""Reports that nobody may believe; `usage_shift` looks true and is believed."""
CUT_SPAN_S = 1.0
"""A cut stream may have been sent at most what the engine makes in this time beyond what is billed: what nobody read any more."""
SETTLED_WITHIN_NS = 1_000_000_000
"""An attempt that ended so long before a kill has been settled by then."""
MARK_TOKENS, MARK_S, COMMIT_S, READ_TOKENS = 256, 1.0, 0.5, 64
"""Of a stream that a crash cut, what was delivered since its last mark isn't billed: a mark comes every so many tokens
or seconds, and the next one waits for it; what came with one read is passed on together."""
METRICS = {
    **dict.fromkeys(("acknowledged", "delivered", "unknown"), "lost"),
    **dict.fromkeys(("unique", "repeated"), "doubled"),
    **dict.fromkeys(("budget", "scope", "credit"), "overdrawn"),
    **dict.fromkeys(("open", "together", "reference", "sum"), "leaked"),
}
"""What a broken rule counts as; the rules that aren't here are `misstated`."""


class Ack(msgspec.Struct, kw_only=True):
    """What a client was told.

    request_id: from `x-request-id`; output_tokens: of the usage object it got, if any; delivered_ns: when each piece of
    content came (monotonic), of a stream; idempotency_key: what it was sent under; original_request_id: of an answer
    that was given again; body_sha256: of a whole answer under a key, in hex.
    """

    request_id: str
    status: int
    is_complete: bool
    output_tokens: int | None = None
    delivered_ns: list[int] = []
    idempotency_key: str | None = None
    original_request_id: str | None = None
    body_sha256: str | None = None


@dataclass(slots=True)
class Audit:
    """What an audit saw and found."""

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether everything holds."""
        return not self.findings

    @property
    def rules_broken(self) -> set[str]:
        """The names of the rules that don't hold."""
        return {finding.rule for finding in self.findings}

    @property
    def metrics(self) -> dict[str, int]:
        """How many findings there are of each kind: lost, doubled, overdrawn, leaked, misstated."""
        counts = dict.fromkeys(("lost", "doubled", "overdrawn", "leaked", "misstated"), 0)
        for finding in self.findings:
            counts[METRICS.get(finding.rule, "misstated")] += 1
        return counts

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.figures.items()]
        lines += [f"FOUND {finding}" for finding in self.findings]
        return "\n".join([*lines, f"{len(self.findings)} findings"])


def audit(
    database: Path,
    truth: Truth,
    *,
    acks: Iterable[Ack] = (),
    killed_at_ns: int | Sequence[int] | None = None,
    is_at_rest: bool = True,
    stall_s: float = 0.0,
) -> Audit:
    """Recompute everything.

    killed_at_ns: when the platform was killed (monotonic), each time; attempts it had under way, or not yet settled,
    have no row unless a mark told of them. is_at_rest: no request is being served, and after a kill it was started again.
    stall_s: how long a client may read nothing before it is cut off; for as long an engine goes on into the buffers between.
    """
    ledger, acks = Ledger.read(database), list(acks)
    kills = [killed_at_ns] if isinstance(killed_at_ns, int) else list(killed_at_ns or ())
    findings = [
        *_unique("usage_records", [row["request_id"] for row in ledger.records], "req_"),
        *_unique("attempts", [row["id"] for row in ledger.attempts], "att_"),
        *_references(ledger),
        *_acknowledged(ledger, acks, is_killed=bool(kills)),
        *_repeated(ledger, acks),
        *_truth(ledger, truth, kills, CUT_SPAN_S + stall_s),
        *check_ledger(ledger, is_at_rest=is_at_rest),
    ]
    for record in ledger.records:
        findings += _shape(record["request_id"], record)
        findings += _sums(record, ledger.attempts_of[record["request_id"]])
        findings += _outcome(record, ledger.attempts_of[record["request_id"]])
        findings += _times(record)
    return Audit(findings, _figures(ledger, truth, acks))


# -- the rules -------------------------------------------------------------------------------------------------------


def _unique(table: str, ids: Sequence[str], prefix: str) -> Iterator[Finding]:
    """Every id occurs once and is of its kind, whatever constraints the table has or lost."""
    for one, count in Counter(ids).items():
        if count > 1:
            yield Finding("unique", one, f"{count} rows in {table}")
        if not one.startswith(prefix):
            yield Finding("unique", one, f"is no id of {table}")


def _references(ledger: Ledger) -> Iterator[Finding]:
    """Attempts belong to records, records and reservations to keys and their owners."""
    keys = {row["id"]: row for row in ledger.tables["api_keys"]}
    for attempt in ledger.attempts:
        if attempt["request_id"] not in ledger.record_of:
            yield Finding("reference", attempt["id"], f"its request {attempt['request_id']} has no record")
    for row in (*ledger.records, *ledger.reservations):
        key = keys.get(row["key_id"])
        if key is None:
            yield Finding("reference", row["request_id"], f"its key {row['key_id']} doesn't exist")
        elif any(key[name] != row[name] for name in ("organization_id", "project_id")):
            yield Finding("reference", row["request_id"], "isn't of its key's organization and project")


def _acknowledged(ledger: Ledger, acks: Sequence[Ack], *, is_killed: bool) -> Iterator[Finding]:
    """Whoever was told that the answer is complete has a record that says ok, with the usage they were told.

    Whoever was sent content has a record, and is billed for no less, but for what a crash loses.
    """
    for ack in acks:
        about = ack.original_request_id or ack.request_id
        record = ledger.record_of.get(about)
        if record is None:
            # The record of a refusal (503) is not waited for, so a kill may lose it.
            was_waited_for = ack.status == 200 or (ack.status >= 500 and not (is_killed and ack.status == 503))
            if was_waited_for:
                yield Finding("acknowledged", about, f"a client was answered {ack.status}; there is no record")
        elif ack.is_complete and record["outcome"] != "ok":
            yield Finding("acknowledged", about, f"a complete answer went out; the record says {record['outcome']}")
        elif ack.output_tokens is not None and ack.output_tokens != record["output"]:
            yield Finding("acknowledged", about, f"told {ack.output_tokens} tokens, recorded {record['output']}")
        elif ack.delivered_ns:
            yield from _delivered(record, ack.delivered_ns)


def _delivered(record: Row, arrived_ns: Sequence[int]) -> Iterator[Finding]:
    missing = len(arrived_ns) - record["output"]
    if record["error_code"] != RESTARTED:
        may_miss = 0
    else:
        # A stream waits at a mark until the one before is on the disk, however long that takes: two marks' worth at most.
        since_mark = sum(at >= arrived_ns[-1] - (2 * MARK_S + COMMIT_S) * 1e9 for at in arrived_ns)
        may_miss = min(2 * MARK_TOKENS + READ_TOKENS, since_mark)
    if missing > may_miss:
        told = f"{len(arrived_ns)} pieces were delivered, {record['output']} billed; {may_miss} may be missing"
        yield Finding("delivered", record["request_id"], told)


def _repeated(ledger: Ledger, acks: Sequence[Ack]) -> Iterator[Finding]:
    """All answers under one idempotency key are one answer, byte for byte, of one request that was served once."""
    under: dict[str, list[Ack]] = {}
    for ack in acks:
        if ack.idempotency_key is not None and ack.status == 200 and ack.is_complete:
            under.setdefault(ack.idempotency_key, []).append(ack)
    served = Counter(row["client_request_id"] for row in ledger.records if row["outcome"] == "ok")
    for key, told in under.items():
        requests = {ack.original_request_id or ack.request_id for ack in told}
        bodies = {ack.body_sha256 for ack in told}
        if len(requests) > 1 or len(bodies) > 1:
            yield Finding("repeated", key, f"was answered {len(bodies)} ways, from {sorted(requests)}")
        if served[key] > 1:
            yield Finding("repeated", key, f"was served and charged {served[key]} times")


def _shape(about: str, row: Row) -> Iterator[Finding]:
    """Nothing is negative; reasoning is a part of output."""
    for name in KINDS:
        if row[name] < 0:
            yield Finding("shape", about, f"{name} is {row[name]}")
    if row["reasoning"] > row["output"]:
        yield Finding("shape", about, f"{row['reasoning']} reasoning tokens in {row['output']} of output")


def _sums(record: Row, attempts: Sequence[Row]) -> Iterator[Finding]:
    """A record is the sum of its attempts, and as sure as the least sure of them."""
    for name in KINDS:
        total = sum(row[name] for row in attempts)
        if record[name] != total:
            yield Finding("sum", record["request_id"], f"{name} is {record[name]}; its attempts make {total}")
    sources = {row["usage_source"] for row in attempts} or {"counted"}
    weakest = next(word for word in ("estimated", "counted", "reported") if word in sources)
    if record["usage_source"] != weakest:
        yield Finding("sum", record["request_id"], f"says {record['usage_source']}; its attempts say {weakest}")


def _outcome(record: Row, attempts: Sequence[Row]) -> Iterator[Finding]:
    """An ok request has one ok attempt for each choice; a rejected one has none."""
    about, outcome = record["request_id"], record["outcome"]
    choices = sorted(row["choice"] for row in attempts if row["outcome"] == "ok")
    if outcome == "ok" and choices != list(range(record["choices_count"])):
        yield Finding("outcome", about, f"ok with choices {choices} of {record['choices_count']}")
    if outcome == "rejected" and attempts:
        yield Finding("outcome", about, f"rejected, with {len(attempts)} attempts")
    if (outcome == "ok") != (record["error_code"] is None) and outcome != "client_gone":
        yield Finding("outcome", about, f"{outcome} with the error code {record['error_code']}")
    for row in attempts:
        # A call that failed before any content and was made again, or elsewhere, has an outcome of its own and used nothing;
        # so it is when its client left, or the time ran out, before the next.
        same = [other for other in attempts if other["choice"] == row["choice"]]
        is_followed = len(same) > 1 or (row["error_code"] is not None and outcome in ("client_gone", "timeout"))
        if row["outcome"] not in ("ok", outcome) and not (is_followed and not any(row[name] for name in KINDS)):
            yield Finding("outcome", row["id"], f"is {row['outcome']} in a request that is {outcome}")
        if sum(other["outcome"] == "ok" or any(other[name] for name in KINDS) for other in same) > 1:
            yield Finding(
                "outcome",
                row["id"],
                f"is one of {len(same)} calls for choice {row['choice']}, and not the only one at work",
            )
        if row["started_at_ms"] < record["received_at_ms"]:
            yield Finding("outcome", row["id"], "started before its request was received")


def _times(record: Row) -> Iterator[Finding]:
    """Queue and time to first token are parts of the whole; whoever was sent nothing has no first token."""
    for name in ("queue_ms", "ttft_ms"):
        if (record[name] or 0) > record["duration_ms"]:
            took = f"{name} is {record[name]} of {record['duration_ms']} ms"
            yield Finding("times", record["request_id"], took)
    if record["ttft_ms"] is not None and not record["output"]:
        yield Finding("times", record["request_id"], "a first token was sent; no output is recorded")


def _truth(ledger: Ledger, truth: Truth, kills_ns: Sequence[int], cut_span_s: float) -> Iterator[Finding]:
    """Attempts of the ledger and of the engine are the same ones, and they say the same."""
    rows = {row["id"]: row for row in ledger.attempts}
    seen = truth.by_request
    for attempt_id, twins in seen.items():
        if len(twins) > 1:
            yield Finding("truth", attempt_id, f"the engine received it {len(twins)} times")
        if attempt_id not in rows and not any(_died_with(twins[0], at) for at in kills_ns):
            yield Finding("unknown", attempt_id, "the engine worked on it; the ledger doesn't know it")
    for row in ledger.attempts:
        twins = seen.get(row["id"], [])
        if not twins:
            if row["outcome"] == "ok" or any(row[name] for name in KINDS):
                yield Finding(
                    "truth", row["id"], f"{row['outcome']} with {row['output']} tokens; no engine received it"
                )
            continue
        yield from _one_attempt(row, twins[0], cut_span_s)
        if kills_ns and row["error_code"] == RESTARTED and not any(_died_with(twins[0], at) for at in kills_ns):
            yield Finding("recovered", row["id"], "is said to have died with the platform; it did not")


def _died_with(engine: Attempt, killed_at_ns: int) -> bool:
    """Whether the platform was killed while it had that attempt, or in the moment before its settlement."""
    if engine.received_at_ns > killed_at_ns + SETTLED_WITHIN_NS:
        return False
    return engine.closed_at_ns is None or engine.closed_at_ns > killed_at_ns - SETTLED_WITHIN_NS


def _one_attempt(row: Row, engine: Attempt, cut_span_s: float) -> Iterator[Finding]:
    about = row["id"]
    yield from _shape(about, row)
    if engine.facts.get("n") not in (None, 1):
        yield Finding("truth", about, f"the engine was asked for n={engine.facts['n']}")
    # With a pause before the tail the finish reason goes out before the log says so.
    said_finish = engine.finish_reason is not None or "tail_gap_ms" in split_model(str(engine.facts.get("model")))[1]
    if row["outcome"] == "ok":
        if not said_finish:
            yield Finding("outcome", about, f"ok; the engine never said it was complete ({_story(engine)})")
    elif row["error_code"] == "engine_failed" and engine.finish_reason is not None and not engine.faults:
        yield Finding("outcome", about, "engine_failed; the engine finished without a fault")
    if engine.closed_at_ns is not None:
        yield from _tokens(row, engine, cut_span_s)


def _tokens(row: Row, engine: Attempt, cut_span_s: float) -> Iterator[Finding]:
    """Reported tokens equal the engine's; counted ones its chunks; a cut stream is billed for what came, never more."""
    about, report = row["id"], engine.reported_usage
    sent, billed = engine.tokens_sent, row["output"]
    if row["error_code"] == RESTARTED:
        if billed > max(sent, len(engine.token_times_ns)):
            yield Finding("tokens", about, f"recovered: {billed} billed, {sent} sent")
        return
    if row["outcome"] == "ok" and row["usage_source"] == "reported" and report is not None:
        if LIES & set(engine.faults):
            yield Finding("tokens", about, f"a report nobody may believe was believed: {report}")
        if _reported(report) != (_input(row), row["cache_read"], billed, row["reasoning"]):
            yield Finding("tokens", about, f"recorded {dict(_kinds(row))}, the engine reported {report}")
        return
    if row["outcome"] == "ok" and row["usage_source"] != "reported":
        chunks = len(set(engine.token_times_ns))
        if billed != chunks:
            yield Finding("tokens", about, f"counted {billed} tokens of {chunks} chunks")
        return
    shift = split_model(str(engine.facts.get("model")))[1].get("usage_shift")
    bound = engine.tokens_made_in(cut_span_s)
    if shift is None and not 0 <= sent - billed <= bound:
        yield Finding("tokens", about, f"cut: {sent} sent, {billed} billed; the difference may be 0 to {bound}")


def _reported(report: Row) -> tuple[int, int, int, int]:
    cached = (report.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (report.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return report["prompt_tokens"], cached, report["completion_tokens"], reasoning


def _input(row: Row) -> int:
    total: int = row["uncached_input"] + row["cache_read"] + row["cache_write"]
    return total


def _kinds(row: Row) -> Iterator[tuple[str, int]]:
    return ((name, row[name]) for name in KINDS)


def _story(engine: Attempt) -> str:
    how = engine.abort_how if engine.is_aborted else "not aborted"
    return f"faults {engine.faults}, {how}, {engine.tokens_sent} tokens sent"


def _figures(ledger: Ledger, truth: Truth, acks: Sequence[Ack]) -> dict[str, object]:
    cut = {one.request_id: one for one in truth.attempts}
    lost = [
        cut[row["id"]].tokens_sent - row["output"]
        for row in ledger.attempts
        if row["outcome"] != "ok" and row["id"] in cut and cut[row["id"]].closed_at_ns is not None
    ]
    return {
        "records": len(ledger.records),
        "attempts": len(ledger.attempts),
        "attempts the engine saw": len(truth.attempts),
        "acknowledged": len(acks),
        "reservations": len(ledger.reservations),
        "resolutions": dict(sorted(Counter(row["kind"] for row in ledger.resolutions).items())),
        "recovered": sum("recovered" in flags_of(row) for row in ledger.records),
        "outcomes": dict(sorted(Counter(row["outcome"] for row in ledger.records).items())),
        "sources": dict(sorted(Counter(row["usage_source"] for row in ledger.records).items())),
        "tokens": {name: sum(row[name] for row in ledger.records) for name in KINDS},
        "cost in nanos": sum(row["cost_nanos"] or 0 for row in ledger.records),
        "sent − billed of cut attempts, most and sum": (max(lost, default=0), sum(lost)),
    }


def read_acks(path: Path) -> list[Ack]:
    """The acknowledgements of a file of JSON lines."""
    return [msgspec.json.decode(line, type=Ack) for line in path.read_bytes().splitlines() if line]


def main(argv: list[str] | None = None) -> int:
    """Run the program: 0 when everything holds, 1 when not."""
    parser = argparse.ArgumentParser(prog="tests.rig.auditor", description="Recompute the ledger from the truth.")
    parser.add_argument("database", type=Path)
    parser.add_argument("truth", type=Path, help="the fake engine's log")
    parser.add_argument("--acks", type=Path, help="JSON lines of what clients were told (class Ack)")
    parser.add_argument(
        "--killed-at", type=int, metavar="NS", action="append", default=[], help="when it was killed (monotonic)"
    )
    parser.add_argument("--live", action="store_true", help="requests are being served")
    options = parser.parse_args(argv)
    acks = [] if options.acks is None else read_acks(options.acks)
    truth, kills = Truth.read(options.truth), options.killed_at
    found = audit(options.database, truth, acks=acks, killed_at_ns=kills, is_at_rest=not options.live)
    print(found)
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
