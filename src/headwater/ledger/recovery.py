"""What a crash left behind: reservations without an end. Each gets one at the next start, before anything new is served.

A stream is charged for what it had delivered by its last mark; everything else is voided, since its caller was told
nothing. Either way the request gets its usage record, so that there is one for each request that was admitted. Whoever
calls holds the data directory's lock: no other process has a request under way.
"""

import json
from typing import NamedTuple

import msgspec

from headwater.ledger import store
from headwater.ledger.batch import settlement_writes
from headwater.ledger.charge import call_cost_nanos, request_cost_nanos
from headwater.ledger.price_list import PriceList
from headwater.ledger.rows import (
    AttemptRow,
    Delta,
    Mark,
    ReservationRow,
    ResolutionRow,
    Settlement,
    TransferRow,
    UsageRow,
)
from headwater.ledger.store import Connection, OpenReservation, Write
from headwater.ledger.wallet import LotState, lapsed_kind
from headwater.ledger.writer import LedgerWriter
from headwater.usage import NO_USAGE, weakest

ERROR_CODE = "gateway_restarted"
RECOVERED = "recovered"
CHUNK_COUNT = 200
"""Reservations resolved in one transaction."""


class Recovered(NamedTuple):
    """What a recovery did. charged_nanos: of the streams that were posted."""

    posted_count: int
    voided_count: int
    charged_nanos: int


def recover(reader: Connection, writer: LedgerWriter, *, now_ms: int) -> Recovered:
    """Resolve every reservation that is still open; returns when that is on the disk."""
    open_from = store.read_state(reader, store.OPEN_FROM) or 0
    open_ones = store.read_open_reservations(reader, open_from)
    prices = PriceList(store.read_prices(reader))
    lots = store.read_lots(reader)
    settlements = [last_settlement(one, prices, lots, now_ms) for one in open_ones]
    waiting = []
    for start in range(0, len(settlements), CHUNK_COUNT):
        writes: list[Write] = []
        chunk = settlements[start : start + CHUNK_COUNT]
        for settlement in chunk:
            writes += settlement_writes(settlement)
        waiting.append(writer.submit(writes, settlements_count=len(chunk)))
    for done in waiting:
        done.result()
    next_id = store.read_next_reservation_id(reader)
    if next_id != open_from:
        writer.submit([Write(store.PUT_STATE, (store.OPEN_FROM, next_id))]).result()
    kinds = [settlement.resolution.kind for settlement in settlements if settlement.resolution is not None]
    return Recovered(
        posted_count=kinds.count("post"),
        voided_count=kinds.count("void"),
        charged_nanos=sum(settlement.record.cost_nanos or 0 for settlement in settlements),
    )


def last_settlement(one: OpenReservation, prices: PriceList, lots: dict[str, LotState], now_ms: int) -> Settlement:
    """The settlement of a reservation nobody will settle any more. Pure."""
    held = one.reservation
    marks = _marks(one) if held.is_stream else []
    attempts = tuple(_attempt(held, mark, prices, now_ms) for mark in marks)
    price = None if held.price_id is None else prices.version(held.price_id)
    cost_nanos = 0
    if price is not None and attempts:
        usages = [attempt.usage for attempt in attempts]
        cost = request_cost_nanos(
            usages, price, outcome="upstream_error", is_stream=True, service_tier=held.service_tier
        )
        cost_nanos = cost or 0
    # Nothing is held any more of one that had expired, and nobody is left to say what the caps still allow: we bear it.
    charge_nanos = 0 if one.is_expired else min(cost_nanos, held.amount_nanos)
    deltas, transfers = ([], []) if one.is_expired else _lots_spent(held, charge_nanos, lots, now_ms)
    resolution = ResolutionRow(held.id, "post" if attempts else "void", charge_nanos, now_ms)
    if cost_nanos > charge_nanos:
        absorbed = cost_nanos - charge_nanos
        transfers.append(
            TransferRow("absorb", held.request_id, 0, held.organization_id, held.model, absorbed, None, now_ms)
        )
    budgets = json.loads(held.budgets) if held.budgets is not None and charge_nanos else []
    flags = {
        "late": one.is_expired,
        "absorbed": cost_nanos > charge_nanos,
        RECOVERED: True,
        "unpriced": price is None,
    }
    record = UsageRow(
        request_id=held.request_id,
        client_request_id=held.client_request_id,
        organization_id=held.organization_id,
        project_id=held.project_id,
        key_id=held.key_id,
        dialect=held.dialect,
        model=held.model,
        is_stream=bool(held.is_stream),
        choices_count=held.choices_count,
        outcome="upstream_error",
        error_code=ERROR_CODE,
        usage_source=weakest([attempt.usage_source for attempt in attempts]),
        usage=sum((attempt.usage for attempt in attempts), NO_USAGE),
        price_id=held.price_id,
        cost_nanos=None if price is None else charge_nanos,
        received_at_ms=held.received_at_ms,
        queue_ms=0,
        ttft_ms=None,
        duration_ms=max(0, now_ms - held.received_at_ms),
        service_tier=held.service_tier,
        tags=held.tags,
        flags=" ".join(flag for flag, holds in flags.items() if holds),
    )
    return Settlement(
        record,
        attempts,
        reservation=held,
        resolution=None if one.is_expired else resolution,
        transfers=tuple(transfers),
        lots=tuple(deltas),
        budgets=tuple(Delta(tuple(key), charge_nanos) for key in budgets),
        has_marks=one.marks is not None,
    )


def _marks(one: OpenReservation) -> list[Mark]:
    return [] if one.marks is None else msgspec.json.decode(one.marks, type=list[Mark])


def _attempt(held: ReservationRow, mark: Mark, prices: PriceList, now_ms: int) -> AttemptRow:
    # Our own engines have a replica and take nothing.
    cost = prices.current(mark.target, held.received_at_ms, kind="cost") if mark.replica_id is None else None
    return AttemptRow(
        id=mark.id,
        request_id=held.request_id,
        choice=mark.choice,
        target=mark.target,
        replica_id=mark.replica_id,
        outcome="upstream_error",
        error_code=ERROR_CODE,
        usage_source=mark.usage_source,
        usage=mark.usage,
        started_at_ms=mark.started_at_ms,
        duration_ms=max(0, now_ms - mark.started_at_ms),
        cost_id=None if cost is None else cost.id,
        cost_nanos=None if cost is None else call_cost_nanos(mark.usage, cost),
    )


def _lots_spent(
    held: ReservationRow, charge_nanos: int, lots: dict[str, LotState], now_ms: int
) -> tuple[list[Delta], list[TransferRow]]:
    """What the charge takes from each lot it was held from, and what lapses because its lot is over by now."""
    deltas: list[Delta] = []
    transfers: list[TransferRow] = []
    for grant_id, nanos in json.loads(held.lots) if held.lots is not None else ():
        spent = min(nanos, charge_nanos)
        charge_nanos -= spent
        gone = spent
        lot = lots[grant_id]
        if nanos > spent and lot.is_over(now_ms):
            back = nanos - spent
            gone += back
            kind = lapsed_kind(is_revoked=lot.is_revoked)
            transfers.append(TransferRow(kind, grant_id, held.id, held.organization_id, None, back, None, now_ms))
        if gone:
            deltas.append(Delta((grant_id,), -gone))
    return deltas, transfers
