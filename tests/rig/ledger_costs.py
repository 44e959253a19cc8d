"""What requests cost, worked out by the auditor's own arithmetic: fractions, rounded half up once at the end."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import msgspec

from tests.rig.ledger_rows import KINDS, RESTARTED, Finding, Ledger, Row, flags_of, is_void

PER_PRICE = 1_000_000
"""Prices are of a million; so are multipliers."""
COST_MAX = 10**16
"""No request costs more: what goes beyond is an upstream's false report, and is cut."""


def cost_of(calls: Sequence[Row], price: Row, service_tier: str = "standard") -> int:
    """Nano-units of calls by a price: Σ units × price, times the tier's multiplier, divided once, half up."""
    terms: dict[str, Any] = msgspec.json.decode(price["terms"]) if price["terms"] else {}
    plain = {name: price[f"{name}_nanos"] for name in KINDS if name != "cache_write_1h"}
    total = 0
    for call in calls:
        rates = plain | {"cache_write_1h": terms.get("cache_write_1h")}
        whole_input = call["uncached_input"] + call["cache_read"] + call["cache_write"]
        for tier in sorted(terms.get("tiers", ()), key=lambda tier: int(tier["above_input_tokens"])):
            if whole_input > tier["above_input_tokens"]:
                rates = {"cache_write_1h": None, **tier}
        hour = rates["cache_write"] if rates["cache_write_1h"] is None else rates["cache_write_1h"]
        total += call["uncached_input"] * rates["uncached_input"] + call["cache_read"] * rates["cache_read"]
        total += (call["cache_write"] - call["cache_write_1h"]) * rates["cache_write"] + call["cache_write_1h"] * hour
        total += (call["output"] - call["reasoning"]) * rates["output"] + call["reasoning"] * rates["reasoning"]
    if any(call[name] for call in calls for name in KINDS):
        total += terms.get("request", 0)
    multiplier = terms.get("multipliers", {}).get(service_tier, PER_PRICE)
    return min(COST_MAX, math.floor(Fraction(total * multiplier, PER_PRICE * PER_PRICE) + Fraction(1, 2)))


def check_costs(ledger: Ledger) -> Iterator[Finding]:
    """Charge = min(cost, reservation); the rest of the cost is absorbed; nothing for a failed answer that wasn't streamed."""
    for record in ledger.records:
        held = ledger.reservation_of.get(record["request_id"])
        yield from _price(ledger, record)
        if held is None:
            yield from _refused(record)
        else:
            yield from _charge(ledger, record, held)
    for call in ledger.attempts:
        yield from _upstream_cost(ledger, call)


def _refused(record: Row) -> Iterator[Finding]:
    """Whoever was refused before anything was held owes nothing; the price is the one it would have been."""
    owes, flags = (None, {"unpriced"}) if record["price_id"] is None else (0, set())
    if record["cost_nanos"] != owes:
        yield Finding("cost", record["request_id"], f"costs {record['cost_nanos']} without a reservation")
    if flags_of(record) != flags:
        yield Finding(
            "flags", record["request_id"], f"is flagged {sorted(flags_of(record))}, should be {sorted(flags)}"
        )


def _charge(ledger: Ledger, record: Row, held: Row) -> Iterator[Finding]:
    about, calls = record["request_id"], ledger.attempts_of[record["request_id"]]
    price = ledger.price_of.get(record["price_id"])
    if price is None:
        if record["cost_nanos"] is not None or held["amount_nanos"]:
            yield Finding("cost", about, f"costs {record['cost_nanos']}, holds {held['amount_nanos']} without a price")
        cost = 0
    else:
        cost = 0 if is_void(record) else cost_of(calls, price, record["service_tier"])
    due = min(cost, held["amount_nanos"])
    ended = ledger.resolution_of.get(held["id"])
    if ended is None:
        return  # another rule's
    charge, late = ended["charge_nanos"], ledger.transferred("late_post", about)
    if ended["kind"] == "expire":
        if charge or late not in (0, due):
            yield Finding("cost", about, f"its hold expired; {charge} and late {late} are charged of {due}")
        charge = late
    else:
        if charge != due:
            yield Finding(
                "cost", about, f"charged {charge} nanos, recomputed {due} of a hold of {held['amount_nanos']}"
            )
        if late:
            yield Finding("cost", about, f"posted late, {late} nanos, though its hold never expired")
        is_nothing = not calls or is_void(record)
        if (ended["kind"] == "void") != is_nothing:
            yield Finding("cost", about, f"{record['outcome']} with {len(calls)} calls is resolved as {ended['kind']}")
    if (record["cost_nanos"] or 0) != charge:
        yield Finding("cost", about, f"says {record['cost_nanos']} nanos; {charge} were charged")
    absorbed = ledger.transferred("absorb", about)
    if absorbed != cost - charge:
        yield Finding("absorbed", about, f"cost {cost}, charged {charge}, absorbed {absorbed}")
    flags = {
        "absorbed": absorbed > 0,
        "late": ended["kind"] == "expire",
        "recovered": record["error_code"] == RESTARTED,
        "unpriced": price is None,
        "lying_report": any(call["report"] is not None for call in calls),
    }
    expected = {name for name, is_set in flags.items() if is_set}
    if flags_of(record) != expected:
        yield Finding("flags", about, f"is flagged {sorted(flags_of(record))}, should be {sorted(expected)}")


def _price(ledger: Ledger, record: Row) -> Iterator[Finding]:
    """The price is the version in force at admission, which is between the arrival of the request and its end."""
    about, price = record["request_id"], ledger.price_of.get(record["price_id"])
    prices = [row for row in ledger.tables["prices"] if row["kind"] == "price"]
    name = record["model"]
    if price is not None and all(row["model"] != name for row in prices):
        name = price["model"]  # a route without a price of its own has its first target's, which no table names
    if record["price_id"] is not None and (price is None or price["model"] != name):
        yield Finding("cost", about, f"its price {record['price_id']} is not one of {record['model']}")
        return
    versions = [row for row in prices if row["model"] == name]
    begin, end = record["received_at_ms"], record["received_at_ms"] + record["duration_ms"]
    moments = {begin, end, *(row[name] for row in versions for name in ("created_at_ms", "effective_at_ms"))}
    right = {in_force(versions, moment) for moment in moments if begin <= moment <= end}
    currency = _currency(ledger, record["organization_id"])
    if currency is not None:
        right = {one if one is not None and ledger.price_of[one]["currency"] == currency else None for one in right}
    if record["price_id"] not in right:
        yield Finding("cost", about, f"priced by {record['price_id']}, not by the version in force ({right})")


def in_force(versions: Sequence[Row], moment_ms: int) -> str | None:
    """The id of the version with the latest effective date, of two with one date the later made; None if withdrawn."""
    known = [row for row in versions if max(row["created_at_ms"], row["effective_at_ms"]) <= moment_ms]
    newest = max(known, key=lambda row: (row["effective_at_ms"], row["id"]), default=None)
    return None if newest is None or newest["is_withdrawn"] else str(newest["id"])


def _currency(ledger: Ledger, organization_id: str) -> str | None:
    found = [row["currency"] for row in ledger.tables["organizations"] if row["id"] == organization_id]
    return found[0] if found else None


def _upstream_cost(ledger: Ledger, call: Row) -> Iterator[Finding]:
    """What an upstream takes for a call, by its version; it takes nothing for a call that used nothing."""
    if call["cost_id"] is None:
        if call["cost_nanos"] is not None:
            yield Finding("cost", call["id"], f"the upstream takes {call['cost_nanos']}, by no version")
        return
    version = ledger.price_of.get(call["cost_id"])
    if version is None or version["kind"] != "cost" or version["model"] != call["target"]:
        yield Finding("cost", call["id"], f"{call['cost_id']} is no cost of {call['target']}")
    elif call["cost_nanos"] != cost_of([call], version):
        yield Finding("cost", call["id"], f"the upstream takes {cost_of([call], version)}, not {call['cost_nanos']}")
