"""What one ended request must look like in the books, recomputed from its own rows. Pure.

Every number is worked out again: tokens from the attempts, the cost from the tokens and the price version, the charge
from the cost and the reservation. Nothing of what wrote the rows is used but `money` and `charge.request_cost_nanos`,
which are the definition of a cost.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headwater.ledger.charge import request_cost_nanos
from headwater.ledger.verify_result import Findings
from headwater.money import Price, Units, cost_nanos
from headwater.usage import NO_USAGE, Outcome, Usage

TOKENS = ("uncached_input", "cache_read", "cache_write", "output", "reasoning", "cache_write_1h")


class Record(NamedTuple):
    """The columns of `usage_records` that are recomputed or take part in it."""

    request_id: str
    organization_id: str
    project_id: str
    key_id: str
    model: str
    is_stream: int
    outcome: Outcome
    price_id: str | None
    cost_nanos: int | None
    service_tier: str
    usage: Usage


class Call(NamedTuple):
    """The columns of `attempts` that are recomputed or take part in it."""

    id: str
    target: str
    cost_id: str | None
    cost_nanos: int | None
    usage: Usage


class Ended(NamedTuple):
    """A resolution with its reservation, and the amounts of the transfers that name its request."""

    resolution_id: int
    kind: str
    charge_nanos: int
    request_id: str
    organization_id: str
    project_id: str
    key_id: str
    model: str
    price_id: str | None
    amount_nanos: int
    absorbed_nanos: int
    late_nanos: int


def check_ended(
    ended: Ended, record: Record, calls: Sequence[Call], prices: Mapping[str, Price], findings: Findings
) -> None:
    """Compare one ended request with what its own rows say it must be."""
    for name in ("organization_id", "project_id", "key_id", "model", "price_id"):
        stored, held = getattr(record, name), getattr(ended, name)
        if stored != held:
            findings.add("usage_records", record.request_id, name, stored, held)
    cost = check_record(record, calls, prices, findings)
    due = min(cost or 0, ended.amount_nanos)
    if ended.kind == "expire":
        if ended.late_nanos not in (0, due):
            findings.add("transfers", f"late_post {ended.request_id}", "amount_nanos", ended.late_nanos, due)
    else:
        if ended.charge_nanos != due:
            findings.add("resolutions", ended.resolution_id, "charge_nanos", ended.charge_nanos, due)
        if ended.late_nanos:
            findings.add("transfers", f"late_post {ended.request_id}", "amount_nanos", ended.late_nanos, None)
    paid = ended.charge_nanos + ended.late_nanos
    if (record.cost_nanos or 0) != paid:
        findings.add("usage_records", record.request_id, "cost_nanos", record.cost_nanos, paid)
    elif ended.absorbed_nanos != (cost or 0) - paid:
        absorbed = (cost or 0) - paid
        findings.add("transfers", f"absorb {ended.request_id}", "amount_nanos", ended.absorbed_nanos or None, absorbed)


def check_record(record: Record, calls: Sequence[Call], prices: Mapping[str, Price], findings: Findings) -> int | None:
    """Compare a record with its attempts and its price; returns what the request cost by that price, None: unpriced."""
    total = sum((call.usage for call in calls), NO_USAGE)
    if record.usage != total:
        for name in TOKENS:
            stored, recomputed = getattr(record.usage, name), getattr(total, name)
            if stored != recomputed:
                findings.add("usage_records", record.request_id, name, stored, recomputed)
                break
    for call in calls:
        _check_call(call, prices, findings)
    if record.price_id is None:
        if record.cost_nanos is not None:
            findings.add("usage_records", record.request_id, "cost_nanos", record.cost_nanos, None)
        return None
    price = prices.get(record.price_id)
    if price is None:
        findings.add("usage_records", record.request_id, "price_id", record.price_id, None)
        return record.cost_nanos
    return request_cost_nanos(
        [call.usage for call in calls],
        price,
        outcome=record.outcome,
        is_stream=bool(record.is_stream),
        service_tier=record.service_tier,
    )


def _check_call(call: Call, prices: Mapping[str, Price], findings: Findings) -> None:
    """What the upstream takes, likewise; costs have no service tiers."""
    if call.cost_id is None:
        if call.cost_nanos is not None:
            findings.add("attempts", call.id, "cost_nanos", call.cost_nanos, None)
        return
    price = prices.get(call.cost_id)
    if price is None:
        findings.add("attempts", call.id, "cost_id", call.cost_id, None)
        return
    try:
        # Nothing used costs nothing, not even for having been a request.
        cost: int | str = 0 if call.usage == NO_USAGE else cost_nanos(call.usage, price, units=Units(requests=1))
    except OverflowError as error:
        cost = str(error)
    if call.cost_nanos != cost:
        findings.add("attempts", call.id, "cost_nanos", call.cost_nanos, cost)


def lots_spent(lots: Sequence[tuple[str, int]], charge_nanos: int) -> list[tuple[str, int]]:
    """(grant id, nanos) that a charge takes from the credit it was held from, in its order."""
    spent = []
    for grant_id, held_nanos in lots:
        part = min(held_nanos, charge_nanos)
        charge_nanos -= part
        if part:
            spent.append((grant_id, part))
    return spent
