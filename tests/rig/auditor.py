"""The auditor: reads only the database and the fake engine's truth log, and recomputes everything.

    python -m tests.rig.auditor DATABASE TRUTH.jsonl [--acks ACKS.jsonl] [--killed-at NS]

It shares no code with Headwater: SQL of its own, arithmetic of its own. It prints its figures and what it finds, and
exits with 1 if it finds anything. Every rule is a function below, and each has twins in `tests/integration/test_auditor.py`.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tests.rig.knobs import split_model
from tests.rig.truth import Attempt, Truth

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

Row = Mapping[str, Any]
KINDS = ("uncached_input", "cache_read", "cache_write", "output", "reasoning")
LIES = frozenset({"usage_negative", "usage_absurd"})
"""Reports that nobody may believe; `usage_shift` looks true and is believed."""
CUT_SPAN_S = 1.0
"""A cut stream may have been sent at most what the engine makes in this time beyond what is billed."""
SETTLED_WITHIN_NS = 1_000_000_000
"""An attempt that ended so long before a kill has been settled by then."""
FAILED = ("upstream_error", "timeout", "rejected")


class Ack(msgspec.Struct, kw_only=True):
    """What a client was told. request_id: from `x-request-id`; output_tokens: of the usage object it got, if any."""

    request_id: str
    status: int
    is_complete: bool
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that doesn't hold. rule: a short name; about: the id it is about."""

    rule: str
    about: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.about}: {self.message}"


@dataclass(slots=True)
class Ledger:
    """The database as the auditor reads it."""

    records: list[Row]
    attempts: list[Row]
    prices: list[Row]
    keys: list[Row]

    @classmethod
    def read(cls, database: Path) -> "Ledger":
        """Read all tables in one read transaction on a read-only connection."""
        connection = sqlite.connect(f"file:{database}?mode=ro", uri=True, isolation_level=None)
        connection.row_factory = sqlite.Row
        try:
            connection.execute("BEGIN")

            def rows(table: str) -> list[Row]:
                return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]

            return cls(rows("usage_records"), rows("attempts"), rows("prices"), rows("api_keys"))
        finally:
            connection.close()


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

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.figures.items()]
        lines += [f"FOUND {finding}" for finding in self.findings]
        return "\n".join([*lines, f"{len(self.findings)} findings"])


def audit(database: Path, truth: Truth, *, acks: Iterable[Ack] = (), killed_at_ns: int | None = None) -> Audit:
    """Recompute everything.

    killed_at_ns: when the platform was killed (monotonic); attempts it had under way, or not yet settled, have no row.
    """
    books, acks = Ledger.read(database), list(acks)
    by_request: dict[str, list[Row]] = defaultdict(list)
    for row in books.attempts:
        by_request[row["request_id"]].append(row)
    prices = {row["id"]: row for row in books.prices}
    findings = [
        *_unique("usage_records", [row["request_id"] for row in books.records], "req_"),
        *_unique("attempts", [row["id"] for row in books.attempts], "att_"),
        *_references(books),
        *_acknowledged(books.records, acks),
        *_truth(books, truth, killed_at_ns),
    ]
    for record in books.records:
        findings += _shape(record["request_id"], record)
        findings += _sums(record, by_request[record["request_id"]])
        findings += _outcome(record, by_request[record["request_id"]])
        findings += _times(record)
        findings += _cost(record, prices, books.prices)
    return Audit(findings, _figures(books, truth, acks))


# -- the rules -------------------------------------------------------------------------------------------------------


def _unique(table: str, ids: Sequence[str], prefix: str) -> Iterator[Finding]:
    """Every id occurs once and is of its kind, whatever constraints the table has or lost."""
    for one, count in Counter(ids).items():
        if count > 1:
            yield Finding("unique", one, f"{count} rows in {table}")
        if not one.startswith(prefix):
            yield Finding("unique", one, f"is no id of {table}")


def _references(books: Ledger) -> Iterator[Finding]:
    """Attempts belong to records, records to keys and their owners."""
    known = {row["request_id"] for row in books.records}
    keys = {row["id"]: row for row in books.keys}
    for attempt in books.attempts:
        if attempt["request_id"] not in known:
            yield Finding("reference", attempt["id"], f"its request {attempt['request_id']} has no record")
    for record in books.records:
        key = keys.get(record["key_id"])
        if key is None:
            yield Finding("reference", record["request_id"], f"its key {record['key_id']} doesn't exist")
        elif any(key[name] != record[name] for name in ("organization_id", "project_id")):
            yield Finding("reference", record["request_id"], "isn't of its key's organization and project")


def _acknowledged(records: Sequence[Row], acks: Sequence[Ack]) -> Iterator[Finding]:
    """Whoever was told that the answer is complete has a record that says ok, with the usage they were told."""
    by_id = {row["request_id"]: row for row in records}
    for ack in acks:
        record = by_id.get(ack.request_id)
        if record is None:
            if ack.status == 200 or ack.status >= 500:
                yield Finding("acknowledged", ack.request_id, f"a client was answered {ack.status}; there is no record")
        elif ack.is_complete and record["outcome"] != "ok":
            yield Finding(
                "acknowledged", ack.request_id, f"a complete answer went out; the record says {record['outcome']}"
            )
        elif ack.output_tokens is not None and ack.output_tokens != record["output"]:
            yield Finding(
                "acknowledged", ack.request_id, f"told {ack.output_tokens} tokens, recorded {record['output']}"
            )


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
        if row["outcome"] not in ("ok", outcome):
            yield Finding("outcome", row["id"], f"is {row['outcome']} in a request that is {outcome}")
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


def _cost(record: Row, prices: Mapping[str, Row], versions: Sequence[Row]) -> Iterator[Finding]:
    """Cost = Σ tokens × price, divided once by a million, half up; nothing for a failed answer that wasn't streamed.

    The price is the newest version of the model's at the time of admission; without a price there is no cost.
    """
    about, price = record["request_id"], prices.get(record["price_id"])
    if record["price_id"] is None:
        if record["cost_nanos"] is not None:
            yield Finding("cost", about, f"costs {record['cost_nanos']} without a price")
        return
    if price is None or price["model"] != record["model"]:
        yield Finding("cost", about, f"its price {record['price_id']} is not one of {record['model']}")
        return
    older = [row for row in versions if row["model"] == record["model"]]
    newest = max((row for row in older if row["created_at_ms"] <= record["received_at_ms"]), key=_version, default=None)
    if newest is None or newest["id"] != price["id"]:
        yield Finding("cost", about, f"priced by {price['id']}, not by the version in force")
    plain = {**{name: record[name] for name in KINDS}, "output": record["output"] - record["reasoning"]}
    whole, rest = divmod(sum(plain[name] * price[f"{name}_nanos"] for name in KINDS), 1_000_000)
    cost = whole + (rest * 2 >= 1_000_000)
    if not record["is_stream"] and record["outcome"] in FAILED:
        cost = 0
    if record["cost_nanos"] != cost:
        yield Finding("cost", about, f"costs {record['cost_nanos']} nanos, recomputed {cost}")


def _version(row: Row) -> tuple[int, str]:
    return row["created_at_ms"], row["id"]


def _truth(books: Ledger, truth: Truth, killed_at_ns: int | None) -> Iterator[Finding]:
    """Attempts of the ledger and of the engine are the same ones, and they say the same."""
    rows = {row["id"]: row for row in books.attempts}
    seen = truth.by_request
    for attempt_id, twins in seen.items():
        if len(twins) > 1:
            yield Finding("truth", attempt_id, f"the engine received it {len(twins)} times")
        if attempt_id not in rows and not _died_with(twins[0], killed_at_ns):
            yield Finding("truth", attempt_id, "the engine worked on it; the ledger doesn't know it")
    for row in books.attempts:
        twins = seen.get(row["id"], [])
        if not twins:
            if row["outcome"] == "ok" or any(row[name] for name in KINDS):
                yield Finding(
                    "truth", row["id"], f"{row['outcome']} with {row['output']} tokens; no engine received it"
                )
            continue
        yield from _one_attempt(row, twins[0])


def _died_with(engine: Attempt, killed_at_ns: int | None) -> bool:
    """Whether the platform was killed while it had that attempt, or in the moment before its settlement."""
    if killed_at_ns is None or engine.received_at_ns > killed_at_ns + SETTLED_WITHIN_NS:
        return False
    return engine.closed_at_ns is None or engine.closed_at_ns > killed_at_ns - SETTLED_WITHIN_NS


def _one_attempt(row: Row, engine: Attempt) -> Iterator[Finding]:
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
        yield from _tokens(row, engine)


def _tokens(row: Row, engine: Attempt) -> Iterator[Finding]:
    """Reported tokens equal the engine's; counted ones its chunks; a cut stream is billed for what came, never more."""
    about, report = row["id"], engine.reported_usage
    sent, billed = engine.tokens_sent, row["output"]
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
    if shift is None and not 0 <= sent - billed <= engine.tokens_made_in(CUT_SPAN_S):
        bound = engine.tokens_made_in(CUT_SPAN_S)
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


def _figures(books: Ledger, truth: Truth, acks: Sequence[Ack]) -> dict[str, object]:
    cut = {one.request_id: one for one in truth.attempts}
    lost = [
        cut[row["id"]].tokens_sent - row["output"]
        for row in books.attempts
        if row["outcome"] != "ok" and row["id"] in cut and cut[row["id"]].closed_at_ns is not None
    ]
    return {
        "records": len(books.records),
        "attempts": len(books.attempts),
        "attempts the engine saw": len(truth.attempts),
        "acknowledged": len(acks),
        "outcomes": dict(sorted(Counter(row["outcome"] for row in books.records).items())),
        "sources": dict(sorted(Counter(row["usage_source"] for row in books.records).items())),
        "tokens": {name: sum(row[name] for row in books.records) for name in KINDS},
        "cost in nanos": sum(row["cost_nanos"] or 0 for row in books.records),
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
    parser.add_argument("--killed-at", type=int, metavar="NS", help="when the platform was killed (monotonic clock)")
    options = parser.parse_args(argv)
    acks = [] if options.acks is None else read_acks(options.acks)
    found = audit(options.database, Truth.read(options.truth), acks=acks, killed_at_ns=options.killed_at)
    print(found)
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
