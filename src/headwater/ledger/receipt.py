"""One request's whole story from the books: who, what, how it was counted, what it cost and why, where the money went.

`read_receipt` is given a plain reading connection, so that the gateway can serve it too. Everything on a receipt can be
worked out again by hand: each line of its arithmetic is a number of units times a price per million.
"""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal, localcontext
from typing import Any

import msgspec

from headwater.ledger.charge import COST_NANOS_MAX
from headwater.ledger.store import Connection
from headwater.money import (
    NANOS_PER_UNIT,
    PARTS_PER_MILLION,
    TOKENS_PER_PRICE,
    Price,
    Tier,
    format_nanos,
    with_terms,
)
from headwater.usage import NO_USAGE, Usage

FLAGS = {
    "absorbed": "It cost more than was reserved for it; the rest is borne by the platform, not by the caller.",
    "late": "It ended after its reservation had expired.",
    "recovered": "The gateway was stopped while it ran; it was settled at the next start, up to what was known of it.",
    "lying_report": "The upstream reported usage that can't be; it is kept as reported, and the count is ours.",
    "unpriced": "No price was known for this model then, so nothing was charged.",
}
SOURCES = {
    "reported": "the engine's own count",
    "counted": "the prompt as the engine reported it, the output as we counted it",
    "estimated": "the prompt estimated from its bytes, the output as we counted it",
}


class ArithmeticLine(msgspec.Struct, frozen=True):
    """One line of a cost: units × price_nanos per million. amount: exact decimal string, not rounded yet."""

    what: str
    units: int
    price_per_million: str
    amount: str


class AttemptPart(msgspec.Struct, frozen=True, kw_only=True):
    """One call to a replica or an upstream. reason: why it was made, and why there; None: nothing was noted."""

    id: str
    choice: int
    target: str
    replica_id: str | None
    outcome: str
    error_code: str | None
    usage_source: str
    usage: Usage
    duration_ms: int
    upstream_cost: str | None
    reported: str | None
    reason: str | None


class ReservationPart(msgspec.Struct, frozen=True, kw_only=True):
    """What was held before the request ran. budgets: (id, scope, scope id, period); credit: (grant id, amount held)."""

    id: int
    amount: str
    expires_at_ms: int
    budgets: list[tuple[str, str, str, str]]
    credit: list[tuple[str, str]]


class ResolutionPart(msgspec.Struct, frozen=True, kw_only=True):
    """How the reservation ended: post, void or expire. charge: at most the reservation's amount."""

    kind: str
    charge: str
    resolved_at_ms: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One leg of double entry; those of one kind sum to 0."""

    kind: str
    account: str
    amount: str
    at_ms: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The receipt of one request. Amounts are exact decimal strings in the currency; None: not known, or there is none.

    record parts are None while the request runs. cost: by the price; charged: what the caller pays of it; absorbed: what
    the platform bears. arithmetic: how the cost comes about, empty where nothing is owed. exact_sum: of its lines; the cost
    is that, rounded half up to a billionth. entries_sum: "0".
    """

    request_id: str
    client_request_id: str | None
    state: str
    organization_id: str
    organization: str
    project_id: str
    project: str
    key_id: str
    key: str
    dialect: str
    model: str
    is_stream: bool
    choices_count: int
    service_tier: str
    tags: list[str]
    outcome: str | None
    error_code: str | None
    usage: Usage | None
    usage_source: str | None
    received_at_ms: int
    queue_ms: int | None
    ttft_ms: int | None
    duration_ms: int | None
    currency: str | None
    price_id: str | None
    price_effective_at_ms: int | None
    arithmetic: list[ArithmeticLine]
    exact_sum: str | None
    explanation: list[str]
    cost: str | None
    charged: str | None
    absorbed: str | None
    attempts: list[AttemptPart]
    reservation: ReservationPart | None
    resolution: ResolutionPart | None
    entries: list[Entry]
    entries_sum: str


_WHO = "SELECT o.name, p.name, k.name FROM organizations o, projects p, api_keys k WHERE o.id = ? AND p.id = ? AND k.id = ?"
_RESERVATION = "SELECT * FROM reservations WHERE request_id = ?"
_RESOLUTION = "SELECT kind, charge_nanos, resolved_at_ms FROM resolutions WHERE reservation_id = ?"
_RECORD = "SELECT * FROM usage_records WHERE request_id = ?"
_ATTEMPTS = "SELECT * FROM attempts WHERE request_id = ? ORDER BY id"
_ENTRIES = "SELECT kind, account, amount_nanos, at_ms FROM entries WHERE subject = ?"
_LAPSED = (
    "SELECT kind, organization_id, amount_nanos, created_at_ms FROM transfers"
    " WHERE kind IN ('grant_expire', 'grant_revoke') AND part = ? AND subject = ?"
)
_BUDGET = "SELECT scope, scope_id FROM budgets WHERE id = ?"
_ABSORBED = "SELECT coalesce(sum(amount_nanos), 0) FROM transfers WHERE subject = ? AND kind = 'absorb'"
_PRICE = "SELECT * FROM prices WHERE id = ?"
PRICED_TOKENS = ("uncached_input", "cache_read", "cache_write", "output", "reasoning")
_USAGE_FIELDS = Usage.__struct_fields__


def read_receipt(connection: Connection, request_id: str) -> Receipt | None:
    """The receipt of this request, of one moment; None when the books have no such request (any more).

    connection: from `store.open_reader`, outside a transaction.
    """
    connection.execute("BEGIN")
    try:
        record = _row(connection, _RECORD, request_id)
        held = _row(connection, _RESERVATION, request_id)
        if record is None and held is None:
            return None
        return _receipt(connection, request_id, record, held)
    finally:
        connection.execute("COMMIT")


def for_caller(receipt: Receipt) -> Receipt:
    """The receipt without what only the operator may see: replicas, what upstreams take, and what they reported."""
    attempts = [
        msgspec.structs.replace(attempt, replica_id=None, upstream_cost=None, reported=None)
        for attempt in receipt.attempts
    ]
    entries = [entry for entry in receipt.entries if entry.kind != "cost"]
    return msgspec.structs.replace(receipt, attempts=attempts, entries=entries)


def _receipt(
    connection: Connection, request_id: str, record: dict[str, Any] | None, held: dict[str, Any] | None
) -> Receipt:
    about = record or held
    assert about is not None
    owners = (about["organization_id"], about["project_id"], about["key_id"])
    organization, project, key = connection.execute(_WHO, owners).fetchone()
    resolution = None if held is None else _row(connection, _RESOLUTION, held["id"])
    attempts = [_attempt(row) for row in _rows(connection, _ATTEMPTS, request_id)]
    absorbed_nanos = connection.execute(_ABSORBED, (request_id,)).fetchone()[0]
    charged_nanos = None if record is None else record["cost_nanos"]
    price, effective_at_ms = _price(connection, about["price_id"])
    is_owed = bool(charged_nanos or absorbed_nanos)
    calls = [attempt.usage for attempt in attempts]
    lines = list(arithmetic(calls, price, about["service_tier"])) if price is not None and is_owed else []
    entries = _entries(connection, request_id, held, attempts)
    return Receipt(
        request_id=request_id,
        client_request_id=about["client_request_id"],
        state=_state(record, resolution),
        organization_id=owners[0],
        organization=organization,
        project_id=owners[1],
        project=project,
        key_id=owners[2],
        key=key,
        dialect=about["dialect"],
        model=about["model"],
        is_stream=bool(about["is_stream"]),
        choices_count=about["choices_count"],
        service_tier=about["service_tier"],
        tags=(about["tags"] or "").split(),
        outcome=None if record is None else record["outcome"],
        error_code=None if record is None else record["error_code"],
        usage=None if record is None else _usage(record),
        usage_source=None if record is None else record["usage_source"],
        received_at_ms=about["received_at_ms"],
        queue_ms=None if record is None else record["queue_ms"],
        ttft_ms=None if record is None else record["ttft_ms"],
        duration_ms=None if record is None else record["duration_ms"],
        currency=None if price is None else price.currency,
        price_id=about["price_id"],
        price_effective_at_ms=effective_at_ms,
        arithmetic=lines,
        exact_sum=_exact_sum(lines) if lines else None,
        explanation=list(_explanation(record, held, resolution, absorbed_nanos)),
        cost=None if charged_nanos is None else format_nanos(charged_nanos + absorbed_nanos),
        charged=None if charged_nanos is None else format_nanos(charged_nanos),
        absorbed=None if charged_nanos is None else format_nanos(absorbed_nanos),
        attempts=attempts,
        reservation=None if held is None else _reservation(connection, held),
        resolution=None
        if resolution is None
        else ResolutionPart(
            kind=resolution["kind"],
            charge=format_nanos(resolution["charge_nanos"]),
            resolved_at_ms=resolution["resolved_at_ms"],
        ),
        entries=[
            Entry(kind=kind, account=account, amount=format_nanos(nanos), at_ms=at_ms)
            for kind, account, nanos, at_ms in entries
        ],
        entries_sum=format_nanos(sum(nanos for _, _, nanos, _ in entries)),
    )


def _state(record: dict[str, Any] | None, resolution: dict[str, Any] | None) -> str:
    if record is not None:
        return "settled"
    return "open" if resolution is None else "expired"


def _attempt(row: dict[str, Any]) -> AttemptPart:
    return AttemptPart(
        id=row["id"],
        choice=row["choice"],
        target=row["target"],
        replica_id=row["replica_id"],
        outcome=row["outcome"],
        error_code=row["error_code"],
        usage_source=row["usage_source"],
        usage=_usage(row),
        duration_ms=row["duration_ms"],
        upstream_cost=None if row["cost_nanos"] is None else format_nanos(row["cost_nanos"]),
        reported=row["report"],
        reason=row["reason"],
    )


def _reservation(connection: Connection, held: dict[str, Any]) -> ReservationPart:
    budgets = []
    for budget_id, period in json.loads(held["budgets"] or "[]"):
        scope, scope_id = connection.execute(_BUDGET, (budget_id,)).fetchone()
        budgets.append((budget_id, scope, scope_id, period))
    return ReservationPart(
        id=held["id"],
        amount=format_nanos(held["amount_nanos"]),
        expires_at_ms=held["expires_at_ms"],
        budgets=budgets,
        credit=[(grant_id, format_nanos(nanos)) for grant_id, nanos in json.loads(held["lots"] or "[]")],
    )


def _entries(
    connection: Connection, request_id: str, held: dict[str, Any] | None, attempts: Sequence[AttemptPart]
) -> list[tuple[str, str, int, int]]:
    """(kind, account, nanos, moment) of every leg: the request's own, those of its calls, and credit that lapsed with it."""
    rows: list[tuple[str, str, int, int]] = connection.execute(_ENTRIES, (request_id,)).fetchall()
    for attempt in attempts:
        rows += connection.execute(_ENTRIES, (attempt.id,)).fetchall()
    if held is not None:
        for grant_id, _ in json.loads(held["lots"] or "[]"):
            for kind, owner, nanos, at_ms in connection.execute(_LAPSED, (held["id"], grant_id)):
                rows += [(kind, f"wallet/{owner}", -nanos, at_ms), (kind, f"grants/{owner}", nanos, at_ms)]
    return rows


# -- arithmetic --------------------------------------------------------------------------------------------------------


def arithmetic(calls: Sequence[Usage], price: Price, service_tier: str) -> Iterator[ArithmeticLine]:
    """The lines whose amounts, added up and rounded half up to a billionth, are the cost of these calls. Pure."""
    for number, usage in enumerate(calls, 1):
        call = f" of call {number}" if len(calls) > 1 else ""
        rates, above = _rates(usage, price)
        hour_rate = rates.cache_write if rates.cache_write_1h is None else rates.cache_write_1h
        for what, units, nanos in (
            ("input", usage.uncached_input, rates.uncached_input),
            ("cached input", usage.cache_read, rates.cache_read),
            ("cache writes", usage.cache_write - usage.cache_write_1h, rates.cache_write),
            ("cache writes for an hour", usage.cache_write_1h, hour_rate),
            ("output", usage.output - usage.reasoning, rates.output),
            ("reasoning", usage.reasoning, rates.reasoning),
        ):
            if units:
                yield _line(f"{what}{call}{above}", units, nanos, price, service_tier)
    if price.request and any(usage != NO_USAGE for usage in calls):
        yield _line("request", 1, price.request, price, service_tier)


def _rates(usage: Usage, price: Price) -> tuple[Price | Tier, str]:
    """The prices of the tier a call is in, and what to call it."""
    rates: Price | Tier = price
    above = ""
    for tier in price.tiers:  # ascending
        if usage.input > tier.above_input_tokens:
            rates, above = tier, f" (input above {tier.above_input_tokens:,} tokens)"
    return rates, above


def _line(what: str, units: int, nanos: int, price: Price, service_tier: str) -> ArithmeticLine:
    multiplier = dict(price.multipliers).get(service_tier, PARTS_PER_MILLION)
    if multiplier != PARTS_PER_MILLION:
        what = f"{what}, × {_decimal(multiplier, PARTS_PER_MILLION)} ({service_tier})"
    return ArithmeticLine(
        what,
        units,
        format_nanos(nanos),
        _decimal(units * nanos * multiplier, NANOS_PER_UNIT * TOKENS_PER_PRICE * PARTS_PER_MILLION),
    )


def _exact_sum(lines: Sequence[ArithmeticLine]) -> str:
    """No digit is lost: an amount has at most 21 digits behind its point."""
    with localcontext(prec=80):
        return f"{sum((Decimal(line.amount) for line in lines), Decimal(0)):f}"


def _decimal(number: int, divisor: int) -> str:
    """number ÷ divisor, a power of ten, as an exact decimal string."""
    whole, rest = divmod(number, divisor)
    digits = f"{rest:0{len(str(divisor)) - 1}d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def _explanation(
    record: dict[str, Any] | None,
    held: dict[str, Any] | None,
    resolution: dict[str, Any] | None,
    absorbed_nanos: int,
) -> Iterator[str]:
    """In words, what is particular about this request."""
    if record is None:
        if resolution is None:
            yield "It is still running, or its gateway was killed; the next start settles it then."
        else:
            yield "Its reservation expired and it hasn't ended yet."
        return
    yield f"Tokens are {SOURCES[record['usage_source']]}."
    if held is None:
        yield "Nothing was held for it: it was refused before it ran, or it is older than the ledger."
    elif not any(record[name] for name in _USAGE_FIELDS):
        yield "It used nothing, so nothing is charged."
    elif record["outcome"] == "client_gone":
        yield "Its caller left; what was produced until then is charged."
    elif record["outcome"] != "ok" and record["is_stream"]:
        yield "Its stream was cut; what was received of it is charged."
    elif record["outcome"] != "ok":
        yield "It was not streamed and its caller received nothing, so nothing is charged."
    if (record["cost_nanos"] or 0) + absorbed_nanos == COST_NANOS_MAX:
        yield "By what the upstream reported it would cost more than a request can; its cost is cut to that."
    for flag in record["flags"].split():
        yield FLAGS.get(flag, flag)


def _price(connection: Connection, price_id: str | None) -> tuple[Price | None, int | None]:
    """(the version with its terms, from when on it was in force); both None when no price was known."""
    row = None if price_id is None else _row(connection, _PRICE, price_id)
    if row is None:
        return None, None
    tokens = {name: row[f"{name}_nanos"] for name in PRICED_TOKENS}
    plain = Price(id=row["id"], model=row["model"], currency=row["currency"], **tokens)
    return with_terms(plain, row["terms"]), row["effective_at_ms"]


def _usage(row: dict[str, Any]) -> Usage:
    return Usage(**{name: row[name] for name in _USAGE_FIELDS})


def _row(connection: Connection, sql: str, value: object) -> dict[str, Any] | None:
    return next(iter(_rows(connection, sql, value)), None)


def _rows(connection: Connection, sql: str, value: object) -> list[dict[str, Any]]:
    cursor = connection.execute(sql, (value,))
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
