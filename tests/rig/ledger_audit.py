"""The auditor's rules about money: every reservation ends once, every cached sum is the sum of the log, no cap is broken.

SQL and arithmetic of its own; `auditor.py` puts these rules beside those about records, attempts and the engine's truth.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from tests.rig.ledger_costs import check_costs
from tests.rig.ledger_rows import KINDS, RESTARTED, Finding, Ledger, Row

SLACK_MS = 1000
"""A budget counts from the moment memory knows it, which is a little after its row says; so does a change of it."""
COPIED = (
    *("organization_id", "project_id", "key_id", "model", "price_id", "client_request_id", "dialect", "service_tier"),
    *("is_stream", "choices_count", "tags", "received_at_ms"),
)
"""Columns that a record has from its reservation."""


def check_ledger(ledger: Ledger, *, is_at_rest: bool) -> Iterator[Finding]:
    """Every rule about money. is_at_rest: nothing is being served, and what a crash left behind has been swept."""
    yield from _once(ledger)
    yield from _whole(ledger, is_at_rest=is_at_rest)
    yield from check_costs(ledger)
    yield from _recovered(ledger)
    yield from _balances(ledger)
    yield from _budgets(ledger)
    yield from _held_under(ledger)
    yield from _credit(ledger)
    yield from _hours(ledger)
    yield from _answers(ledger)


# -- one of each -----------------------------------------------------------------------------------------------------


def _once(ledger: Ledger) -> Iterator[Finding]:
    """Every row of the log once, whatever constraints the tables have or lost."""
    tables = ledger.tables
    keys: dict[str, list[Any]] = {
        "reservations": [row["id"] for row in ledger.reservations],
        "reservations of a request": [row["request_id"] for row in ledger.reservations],
        "resolutions": [row["id"] for row in ledger.resolutions],
        "resolutions of a reservation": [row["reservation_id"] for row in ledger.resolutions],
        "transfers": [row["id"] for row in tables["transfers"]],
        "transfers of a kind": [(row["subject"], row["kind"], row["part"]) for row in tables["transfers"]],
        "budgets": [row["id"] for row in tables["budgets"]],
        "grants": [row["id"] for row in tables["grants"]],
    }
    for what, found in keys.items():
        for one, count in Counter(found).items():
            if count > 1:
                yield Finding("unique", str(one), f"{count} {what}")


def _whole(ledger: Ledger, *, is_at_rest: bool) -> Iterator[Finding]:
    """A reservation, its resolution and its record are there together, and belong together."""
    known = {row["id"] for row in ledger.reservations}
    for row in ledger.resolutions:
        if row["reservation_id"] not in known:
            yield Finding(
                "together", str(row["id"]), f"resolves reservation {row['reservation_id']}, which isn't there"
            )
    for held in ledger.reservations:
        about, record = held["request_id"], ledger.record_of.get(held["request_id"])
        ended = ledger.resolution_of.get(held["id"])
        if ended is None:
            if is_at_rest:
                yield Finding("open", about, f"{held['amount_nanos']} nanos are held by nobody")
            if record is not None:
                yield Finding("together", about, "has a record; its reservation is open")
        elif record is not None:
            yield from _alike(held, ended, record)
        elif is_at_rest or ended["kind"] != "expire":  # an expired one may still be being served
            yield Finding("together", about, f"is resolved ({ended['kind']}); it has no record")
    for record in ledger.records:
        is_admitted = record["outcome"] == "ok" or ledger.attempts_of[record["request_id"]]
        if is_admitted and record["request_id"] not in ledger.reservation_of:
            yield Finding("held", record["request_id"], f"{record['outcome']}; nothing was ever held for it")
    if is_at_rest:
        for mark in ledger.tables["marks"]:
            ended = ledger.resolution_of.get(mark["reservation_id"])
            if ended is not None and ended["kind"] != "expire":
                yield Finding("open", str(mark["reservation_id"]), "is over; its mark is still there")


def _alike(held: Row, ended: Row, record: Row) -> Iterator[Finding]:
    for name in COPIED:
        if held[name] != record[name]:
            yield Finding("reference", record["request_id"], f"{name} is {record[name]}, held for {held[name]}")
    if ended["resolved_at_ms"] < held["received_at_ms"]:
        yield Finding("times", record["request_id"], "was resolved before it was received")


def _recovered(ledger: Ledger) -> Iterator[Finding]:
    """What a crash cut off: a stream has a call for each that was marked, everything else none."""
    for record in ledger.records:
        if record["error_code"] != RESTARTED:
            continue
        about, calls = record["request_id"], ledger.attempts_of[record["request_id"]]
        if record["outcome"] != "upstream_error":
            yield Finding("recovered", about, f"is {record['outcome']}")
        if calls and not record["is_stream"]:
            yield Finding("recovered", about, f"wasn't streamed and has {len(calls)} calls")
        calls_at_work = [call for call in calls if call["output"]]  # those that failed before it were made again
        if len({call["choice"] for call in calls_at_work}) != len(calls_at_work):
            yield Finding("recovered", about, "two of its calls are of one choice")
        if any(call["error_code"] != RESTARTED for call in calls):
            yield Finding("recovered", about, "has a call that ended otherwise")


# -- sums ------------------------------------------------------------------------------------------------------------


def _carried(ledger: Ledger, kind: str) -> defaultdict[str, int]:
    """Where the sums begin: what was moved out of the log."""
    rows = (row for row in ledger.tables["carried_sums"] if row["kind"] == kind)
    return defaultdict(int, {row["name"]: row["amount_nanos"] for row in rows})


def _balances(ledger: Ledger) -> Iterator[Finding]:
    """Each account is the sum of its legs, worked out from the rows; the legs of everything sum to zero."""
    sums: defaultdict[tuple[str, str, str], int] = defaultdict(int)

    def move(subject: str, kind: str, gives: str, takes: str, nanos: int) -> None:
        sums[subject, kind, gives] -= nanos
        sums[subject, kind, takes] += nanos

    holds = {row["id"]: row for row in ledger.reservations}
    for held in ledger.reservations:
        owner = held["organization_id"]
        move(held["request_id"], "reserve", f"wallet/{owner}", f"held/{owner}", held["amount_nanos"])
    for row in ledger.resolutions:
        if row["reservation_id"] in holds:
            held = holds[row["reservation_id"]]
            owner, kept, subject = held["organization_id"], row["charge_nanos"], held["request_id"]
            move(subject, row["kind"], f"held/{owner}", f"revenue/{held['model']}", kept)
            move(subject, row["kind"], f"held/{owner}", f"wallet/{owner}", held["amount_nanos"] - kept)
    for row in ledger.tables["transfers"]:
        owner, model = row["organization_id"], row["model"]
        gives, takes = {
            "grant": (f"grants/{owner}", f"wallet/{owner}"),
            "grant_expire": (f"wallet/{owner}", f"grants/{owner}"),
            "grant_revoke": (f"wallet/{owner}", f"grants/{owner}"),
            "adjust": (f"adjustments/{owner}", f"wallet/{owner}"),
            "absorb": (f"absorbed/{owner}", f"revenue/{model}"),
            "late_post": (f"wallet/{owner}", f"revenue/{model}"),
        }[row["kind"]]
        move(row["subject"], row["kind"], gives, takes, row["amount_nanos"])
    for call in ledger.attempts:
        move(call["id"], "cost", f"payable/{call['target']}", f"expense/{call['target']}", call["cost_nanos"] or 0)
    yield from _legs(ledger, sums)
    accounts = _carried(ledger, "balance")
    for (_, _, account), nanos in sums.items():
        accounts[account] += nanos
    yield from _same("balance", {r["account"]: r["balance_nanos"] for r in ledger.tables["balances"]}, accounts)


def _legs(ledger: Ledger, mine: dict[tuple[str, str, str], int]) -> Iterator[Finding]:
    """The view `entries` says the same as the rows, and sums to zero for each subject."""
    shown = {(row["subject"], row["kind"], row["account"]): row["nanos"] for row in ledger.entries}
    totals: Counter[tuple[str, str]] = Counter()
    for (subject, kind, _), nanos in shown.items():
        totals[subject, kind] += nanos
    for (subject, kind), total in totals.items():
        if total:
            yield Finding("legs", subject, f"the legs of its {kind} sum to {total}")
    for name in {*shown, *mine}:
        if shown.get(name, 0) != mine.get(name, 0):
            yield Finding("legs", name[0], f"{name[1:]} is {shown.get(name, 0)}, recomputed {mine.get(name, 0)}")


def _same(rule: str, stored: dict[str, int], recomputed: dict[str, int]) -> Iterator[Finding]:
    for name in {*stored, *recomputed}:
        if stored.get(name, 0) != recomputed.get(name, 0):
            yield Finding(rule, name, f"is {stored.get(name, 0)}, recomputed {recomputed.get(name, 0)}")


# -- caps ------------------------------------------------------------------------------------------------------------


def _charged(ledger: Ledger) -> Iterator[tuple[Row, int, bool]]:
    """Each reservation with what its request was charged, and whether it is still open."""
    for held in ledger.reservations:
        ended = ledger.resolution_of.get(held["id"])
        late = ledger.transferred("late_post", held["request_id"])
        yield held, (0 if ended is None else ended["charge_nanos"]) + late, ended is None


def _budgets(ledger: Ledger) -> Iterator[Finding]:
    """What a period has spent is the sum of the charges held under it; with what is held it is within the limit."""
    spent, held_now = _carried(ledger, "budget"), defaultdict[str, int](int)
    for held, charge, is_open in _charged(ledger):
        for budget_id, period in json.loads(held["budgets"] or "[]"):
            spent[f"{budget_id} {period}"] += charge
            held_now[f"{budget_id} {period}"] += held["amount_nanos"] if is_open else 0
    stored = {f"{row['budget_id']} {row['period']}": row["spent_nanos"] for row in ledger.tables["budget_periods"]}
    yield from _same("budget_sum", stored, spent)
    limits = {row["id"]: row["limit_nanos"] for row in ledger.tables["budgets"]}
    changes = [row for row in ledger.tables["changes"] if row["noun"] == "budget" and row["object_id"] in limits]
    for budget_id in {
        row["object_id"] for row in changes if row["verb"] == "update"
    }:  # what it was at its highest counts
        ever = [json.loads(row["detail"]).get("limit_nanos", 0) for row in changes if row["object_id"] == budget_id]
        limits[budget_id] = max(limits[budget_id], *ever)
    for name in spent:
        budget_id = name.partition(" ")[0]
        taken = spent[name] + held_now[name]
        if budget_id not in limits:
            yield Finding("reference", budget_id, "a budget that isn't there is spent from")
        elif taken > limits[budget_id]:
            yield Finding("budget", name, f"spent and held {taken}, of {limits[budget_id]}")


def _held_under(ledger: Ledger) -> Iterator[Finding]:
    """A request is held under every budget over its organization, project, key and tags, in the period it came in."""
    over: defaultdict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for budget in ledger.tables["budgets"]:
        over[budget["organization_id"], budget["scope"], budget["scope_id"]].append(budget)
    for held in ledger.reservations:
        scopes = [("organization", held["organization_id"]), ("project", held["project_id"]), ("key", held["key_id"])]
        scopes += [("tag", tag) for tag in (held["tags"] or "").split()]
        named = dict(json.loads(held["budgets"] or "[]"))
        for scope in scopes:
            for budget in over.get((held["organization_id"], *scope), ()):
                yield from _under(ledger, held, budget, named.pop(budget["id"], None))
        for budget_id in named:
            yield Finding("scope", held["request_id"], f"is held under {budget_id}, which isn't over it")


def _under(ledger: Ledger, held: Row, budget: Row, period: str | None) -> Iterator[Finding]:
    record = ledger.record_of.get(held["request_id"])
    begin = held["received_at_ms"]
    end = begin + (0 if record is None else record["duration_ms"]) + SLACK_MS
    if period is None:
        was_made = budget["created_at_ms"] + SLACK_MS < begin
        was_lifted = budget["archived_at_ms"] is not None and budget["archived_at_ms"] < end
        if was_made and not was_lifted:
            yield Finding("scope", held["request_id"], f"isn't held under {budget['id']} of its {budget['scope']}")
    elif period not in {period_key(budget, begin), period_key(budget, end)}:
        yield Finding("scope", held["request_id"], f"counts in the period {period!r} of {budget['id']}")


def period_key(budget: Row, moment_ms: int) -> str:
    """The name of the period of a budget that a moment falls into."""
    if budget["period"] == "total":
        return "total"

    def local_day(ms: int) -> date:
        return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(budget["time_zone"])).date()

    day = local_day(moment_ms)
    match budget["period"]:
        case "day":
            return day.isoformat()
        case "week":
            return f"week {(day - timedelta(days=day.weekday())).isoformat()}"
        case "month":
            return day.isoformat()[:7]
    days = budget["period_days"]
    anchor = local_day(budget["anchor_ms"])
    first = anchor + timedelta(days=max(0, (day - anchor).days // days * days))
    return f"{days} days {first.isoformat()}"


# -- credit ----------------------------------------------------------------------------------------------------------


def _credit(ledger: Ledger) -> Iterator[Finding]:
    """What is left of a grant is its amount less what was charged to it and what lapsed; a prepaid caller never owes."""
    tables = ledger.tables
    left = _carried(ledger, "lot")
    prepaid = {row["id"] for row in tables["organizations"] if row["is_prepaid"]}
    prepaid -= {
        row["object_id"]
        for row in tables["changes"]
        if row["noun"] == "organization" and row["verb"] == "update" and "is_prepaid" in json.loads(row["detail"])
    }
    for held, charge, _ in _charged(ledger):
        late = ledger.transfers_of["late_post", held["request_id"]]
        lots = json.loads((late[0]["note"] if late else held["lots"]) or "[]")
        rest = charge
        for grant_id, nanos in lots:
            taken = min(nanos, rest)
            rest -= taken
            left[grant_id] -= taken
        if held["organization_id"] in prepaid:
            covered = sum(nanos for _, nanos in json.loads(held["lots"] or "[]"))
            if rest or covered != held["amount_nanos"]:
                short = f"{held['amount_nanos'] - covered} of the hold, {rest} of the charge"
                yield Finding("credit", held["request_id"], f"prepaid, and not covered by credit: {short}")
    amounts = {row["id"]: row["amount_nanos"] for row in tables["grants"]}
    for row in tables["transfers"]:
        if row["kind"] == "grant":
            left[row["subject"]] += row["amount_nanos"]
            if amounts.get(row["subject"]) != row["amount_nanos"]:
                yield Finding("credit", row["subject"], f"{row['amount_nanos']} given, of a grant of {amounts}")
        elif row["kind"] in ("grant_expire", "grant_revoke"):
            left[row["subject"]] -= row["amount_nanos"]
            yield from _lapse(ledger, row)
    for grant_id in amounts:
        if not ledger.transfers_of["grant", grant_id]:
            yield Finding("credit", grant_id, "was never given")
    for grant_id, nanos in left.items():
        if nanos < 0:
            yield Finding("credit", grant_id, f"is overspent by {-nanos}")
    yield from _same("lot", {row["grant_id"]: row["remaining_nanos"] for row in tables["grant_lots"]}, left)


def _lapse(ledger: Ledger, row: Row) -> Iterator[Finding]:
    """Credit lapses when its grant is over: the free rest once, and what each reservation gives back later."""
    grant = next((one for one in ledger.tables["grants"] if one["id"] == row["subject"]), None)
    if grant is None:
        yield Finding("reference", row["subject"], "a grant that isn't there lapses")
        return
    over_ms = grant["expires_at_ms"] if row["kind"] == "grant_expire" else grant["revoked_at_ms"]
    if over_ms is None or row["created_at_ms"] + SLACK_MS < over_ms:
        yield Finding("credit", row["subject"], f"lapsed by {row['kind']}, though it isn't over")
    if row["part"]:
        held = next((one for one in ledger.reservations if one["id"] == row["part"]), None)
        ended = ledger.resolution_of.get(row["part"])
        lots = [] if held is None else json.loads(held["lots"] or "[]")
        rest = 0 if ended is None else ended["charge_nanos"]
        back = 0
        for grant_id, nanos in lots:
            taken = min(nanos, rest)
            rest -= taken
            back += nanos - taken if grant_id == row["subject"] else 0
        if back != row["amount_nanos"]:
            yield Finding(
                "credit", row["subject"], f"{row['amount_nanos']} of reservation {row['part']} lapsed, of {back}"
            )


# -- what else is stored -----------------------------------------------------------------------------------------------


def _hours(ledger: Ledger) -> Iterator[Finding]:
    """The sums by hour are those of the records that ended in it."""
    names = (*KINDS, "requests_count", "ok_count", "unpriced_count", "cost_nanos", "upstream_cost_nanos")
    sums: defaultdict[str, int] = defaultdict(int)
    for record in ledger.records:
        hour = (record["received_at_ms"] + record["duration_ms"]) // 3_600_000
        owner = f"{record['organization_id']} {record['project_id']}"
        at = f"hour {hour} {record['key_id']} of {owner} {record['model']}"
        values = {name: record[name] for name in KINDS} | {
            "requests_count": 1,
            "ok_count": record["outcome"] == "ok",
            "unpriced_count": record["cost_nanos"] is None,
            "cost_nanos": record["cost_nanos"] or 0,
            "upstream_cost_nanos": sum(c["cost_nanos"] or 0 for c in ledger.attempts_of[record["request_id"]]),
        }
        for name in names:
            sums[f"{at}: {name}"] += values[name]
    stored = {
        f"hour {row['hour']} {row['key_id']} of {row['organization_id']} {row['project_id']} {row['model']}: {name}": row[
            name
        ]
        for row in ledger.tables["usage_hours"]
        for name in names
    }
    yield from _same("hours", stored, sums)


def _answers(ledger: Ledger) -> Iterator[Finding]:
    """A kept answer is of an `ok` request of its project that wasn't streamed, and says what its record says."""
    projects = {row["id"]: row for row in ledger.tables["projects"]}
    changes = [row for row in ledger.tables["changes"] if row["noun"] == "project" and row["verb"] == "update"]
    changed = {row["object_id"] for row in changes if "is_storage_allowed" in json.loads(row["detail"])}
    keys = [(row["project_id"], row["route"], row["idempotency_key"]) for row in ledger.tables["idempotency_keys"]]
    for one, count in Counter(keys).items():
        if count > 1:
            yield Finding("unique", str(one), f"{count} answers are kept for a key")
    for row in ledger.tables["idempotency_keys"]:
        about, record = row["idempotency_key"], ledger.record_of.get(row["request_id"])
        if record is None or record["outcome"] != "ok" or record["is_stream"]:
            yield Finding("answer", about, f"an answer is kept of {row['request_id']}, which isn't ok and whole")
            continue
        if record["project_id"] != row["project_id"]:
            yield Finding("answer", about, "the kept answer is another project's")
        if not projects[row["project_id"]]["is_storage_allowed"] and row["project_id"] not in changed:
            yield Finding("answer", about, "its project allows no storage")
        if row["expires_at_ms"] <= row["stored_at_ms"]:
            yield Finding("answer", about, "has expired before it was stored")
        told = msgspec.json.decode(row["answer"])["usage"]["completion_tokens"]
        if told != record["output"]:
            yield Finding("answer", about, f"the kept answer tells of {told} tokens, recorded {record['output']}")
