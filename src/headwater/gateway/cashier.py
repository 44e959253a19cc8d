"""Step 6 and its end: money is held for a request before it runs, and what it cost is taken from that when it has ended.

The book decides in memory (`ledger/book.py`); this module asks it, turns its refusals into errors a caller understands,
and hands what was decided to the settler. Owned by the event loop's thread.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypedDict

import msgspec
import structlog

from headwater.clock import Clock
from headwater.errors import InsufficientQuota, InvalidRequest, PermissionDenied
from headwater.gateway.admission import Sized, count_input, with_output_cap
from headwater.gateway.attempt import Attempt
from headwater.gateway.notices import notice
from headwater.gateway.routing import Target
from headwater.gateway.settle import Settler
from headwater.gateway.telemetry import Telemetry
from headwater.ledger import store
from headwater.ledger.book import Book, Hold, Shortfall
from headwater.ledger.caps import Counter, Spent
from headwater.ledger.charge import COST_NANOS_MAX
from headwater.ledger.load_book import key_caps
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.price_list import PriceList
from headwater.ledger.rows import Delta, MarkRow, NoticeRow, ReservationRow, ResolutionRow, TransferKind, TransferRow
from headwater.money import NANOS_MAX, Price, format_nanos, worst_case_nanos
from headwater.request import Principal, Request

log = structlog.get_logger()

OUTPUT_FLOOR_TOKENS = 256
"""An output cap the caller didn't state shrinks to what its budget affords, but not below this: less is hardly an answer."""
EXPIRY_GRACE_S = 60.0
"""A request ends within its total time-out; a reservation that is still open so long after is nobody's."""
SWEEP_S = 5.0
REFUSAL_RECORD_S = 60.0
"""Of a key's requests that its budget can't pay for, one in this time leaves a record; the others are counted."""
REFUSALS_KEPT = 10_000


class Reservation:
    """What is held for one request.

    durable: of a stream's, resolves when its row is on the disk; is_durable: that has been waited for.
    """

    __slots__ = ("durable", "has_marks", "hold", "is_durable", "price", "row")

    def __init__(
        self, hold: Hold, row: ReservationRow, price: Price | None, durable: "asyncio.Future[None] | None"
    ) -> None:
        self.hold = hold
        self.row = row
        self.price = price
        self.durable = durable
        self.is_durable = False
        self.has_marks = False


class Closed(NamedTuple):
    """How a request's money ended: what goes into its settlement."""

    charge_nanos: int
    resolution: ResolutionRow | None = None
    transfers: tuple[TransferRow, ...] = ()
    lots: tuple[Delta, ...] = ()
    budgets: tuple[Delta, ...] = ()
    flags: tuple[str, ...] = ()
    notices: tuple[NoticeRow, ...] = ()


NOTHING_HELD = Closed(0)


class Cashier:
    """Holds and settles the money of all requests."""

    def __init__(
        self,
        book: Book,
        settler: Settler,
        prices: PriceList,
        *,
        database: Path,
        epoch: int,
        currency: str,
        is_unpriced_refused: bool,
        receivers: Sequence[str],
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        """database: where the budgets of keys are read when a key is first used. receivers: ids of those who are sent notices.

        epoch: the number of this start. currency: of organizations that name none of their own.
        """
        self.book = book
        self.prices = prices
        self._settler = settler
        self._database = database
        self._epoch = epoch
        self._currency = currency
        self._is_unpriced_refused = is_unpriced_refused
        self._receivers = tuple(receivers)
        self.on_notice: Callable[[], None] = _nobody
        """Called when new notices are on the disk."""
        self._telemetry = telemetry
        self._clock = clock
        self._open: dict[int, Reservation] = {}
        self._unsettled: dict[int, None] = {}
        self._refused_s: OrderedDict[str, float] = OrderedDict()
        self._open_from = 0
        self._budget_changes_count = 0

    # -- before --------------------------------------------------------------------------------------------------------

    async def reserve(self, request: Request, target: Target, sized: Sized) -> tuple[Sized, Reservation]:
        """Hold the worst case; a cap the caller didn't state shrinks to what can be paid. Raises InsufficientQuota."""
        now_ms = self._now_ms()
        price = self.price(request, target)
        if price is None and self._is_unpriced_refused:
            raise PermissionDenied(
                f"The model {target.name!r} has no price here, and this platform serves only what has one.",
                param="model",
                code="model_unpriced",
            )
        try:
            return sized, await self._hold(request, target, sized, price, now_ms)
        except Shortfall as shortfall:
            if price is None:
                raise _refusal(shortfall) from None
            short = shortfall
        counted = None
        if not sized.is_counted and _worst_case(request, _least(sized), price) <= short.available_nanos:
            counted = await count_input(sized.chat, target)
        if counted is not None:  # by an engine of ours: bytes overshoot tokens about six times
            sized = sized._replace(input_tokens=min(counted, sized.input_tokens), is_counted=True)
            try:
                return sized, await self._hold(request, target, sized, price, self._now_ms())
            except Shortfall as shortfall:
                short = shortfall
        if not sized.is_stated:
            cap = await self._affordable_cap(request, sized, price)
            if cap >= OUTPUT_FLOOR_TOKENS:
                sized = sized._replace(chat=with_output_cap(sized.chat, cap))
                return sized, await self._hold_or_refuse(request, target, sized, price)
        raise _refusal(short)

    def price(self, request: Request, target: Target) -> Price | None:
        """The price in force, if it is in the organization's currency: amounts in two currencies don't add up."""
        price = self.prices.current(target.name, self._now_ms())
        currency = self.book.currency(request.principal.organization_id) or self._currency
        return price if price is not None and price.currency == currency else None

    async def _affordable_cap(self, request: Request, sized: Sized, price: Price) -> int:
        """The largest output cap up to the one wanted whose worst case could be held now; 0 when even one token can't."""
        await self._load_key(request.principal.key_id)
        available = self.book.affordable_nanos(**_scopes(request), now_ms=self._now_ms())
        low, high = 0, sized.chat.output_tokens_max or 0
        if available is None:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            wish = sized._replace(chat=with_output_cap(sized.chat, middle))
            if _worst_case(request, wish, price) <= available:
                low = middle
            else:
                high = middle - 1
        return low

    async def _hold_or_refuse(self, request: Request, target: Target, sized: Sized, price: Price) -> Reservation:
        try:
            return await self._hold(request, target, sized, price, self._now_ms())
        except Shortfall as shortfall:
            raise _refusal(shortfall) from None

    async def _hold(
        self, request: Request, target: Target, sized: Sized, price: Price | None, now_ms: int
    ) -> Reservation:
        amount_nanos = 0 if price is None else _worst_case(request, sized, price)
        principal = request.principal
        if not self.book.is_loaded(principal.key_id):
            await self._load_key(principal.key_id)
        hold = self.book.reserve(
            organization_id=principal.organization_id,
            project_id=principal.project_id,
            key_id=principal.key_id,
            tags=request.tags,
            amount_nanos=amount_nanos,
            now_ms=now_ms,
        )
        row = ReservationRow(
            hold.id,
            request.id,
            self._epoch,
            principal.organization_id,
            principal.project_id,
            principal.key_id,
            request.model,
            None if price is None else price.id,
            amount_nanos,
            hold.budgets_json,
            hold.lots_json,
            request.client_request_id,
            request.dialect,
            request.service_tier,
            request.is_stream,
            request.payload.choices_count,
            " ".join(request.tags) or None,
            int(request.received_at_s * 1000),
            now_ms + int((target.timeouts.total_s + EXPIRY_GRACE_S) * 1000),
        )
        durable = None
        if request.is_stream:
            durable = self._settler.reserve(row)
        else:
            self._settler.reserve_with_next(row)
        reservation = self._open[hold.id] = Reservation(hold, row, price, durable)
        return reservation

    async def _load_key(self, key_id: str) -> None:
        """Bring the budgets of a key into memory, if they aren't there."""
        while not self.book.is_loaded(key_id):
            changes_count = self._budget_changes_count
            budgets = await asyncio.to_thread(self._read_key_budgets, key_id)
            if changes_count == self._budget_changes_count:  # else what was read may lack a budget made meanwhile
                self.book.load_key(key_id, key_caps(budgets), self._now_ms())

    def _read_key_budgets(self, key_id: str) -> list[store.BudgetState]:
        with contextlib.closing(store.open_reader(self._database)) as reader:
            return store.read_budgets(reader, key_id)

    # -- while it runs ---------------------------------------------------------------------------------------------------

    def mark(self, reservation: Reservation, attempts: Sequence[Attempt]) -> "asyncio.Future[None]":
        """Write how far a stream has come, for the case that nobody is left to settle it; resolves when that is on the disk."""
        reservation.has_marks = True
        text = msgspec.json.encode([attempt.mark() for attempt in attempts]).decode()
        return self._settler.mark(reservation.row.request_id, MarkRow(reservation.row.id, text, self._now_ms()))

    async def marked(self, mark: "asyncio.Future[None]") -> None:
        """Wait until a mark is on the disk. Raises LedgerUnavailable."""
        if not mark.done():
            self._settler.hurry()
            await asyncio.shield(mark)

    # -- afterwards ------------------------------------------------------------------------------------------------------

    def close(self, reservation: Reservation | None, cost_nanos: int | None, *, is_void: bool) -> Closed:
        """End what is held, once. cost_nanos: by the price, None when there is none. is_void: nothing was delivered."""
        if reservation is None:
            return NOTHING_HELD
        hold, row, now_ms = reservation.hold, reservation.row, self._now_ms()
        if self._open.pop(hold.id, None) is None:
            self._unsettled.pop(hold.id, None)
        settled = self.book.settle(hold, cost_nanos or 0, now_ms)
        notices = self._announce(settled.thresholds, now_ms) if settled.thresholds else ()
        if not settled.is_late and not settled.absorbed_nanos:
            return Closed(
                settled.charge_nanos,
                ResolutionRow(row.id, "void" if is_void else "post", settled.charge_nanos, now_ms),
                settled.transfers,
                settled.lots,
                settled.budgets,
                (),
                notices,
            )
        transfers, flags = list(settled.transfers), []
        if settled.is_late:
            flags.append("late")
            if settled.charge_nanos:
                transfers.append(_transfer("late_post", row, settled.charge_nanos, settled.late_lots_json, now_ms))
        if settled.absorbed_nanos:
            flags.append("absorbed")
            transfers.append(_transfer("absorb", row, settled.absorbed_nanos, None, now_ms))
            self._telemetry.absorbed.inc(settled.absorbed_nanos / 1e9)
            log.warning("charge_absorbed", request_id=row.request_id, absorbed_nanos=settled.absorbed_nanos)
        resolution = None
        if not settled.is_late:
            resolution = ResolutionRow(row.id, "post", settled.charge_nanos, now_ms)
        return Closed(
            settled.charge_nanos,
            resolution,
            tuple(transfers),
            settled.lots,
            settled.budgets,
            tuple(flags),
            notices,
        )

    def leave_open(self, reservation: Reservation | None) -> None:
        """Its settlement could not be written: the next start resolves what is on the disk of it."""
        if reservation is not None:
            self._unsettled[reservation.row.id] = None

    def should_record_refusal(self, principal: Principal) -> bool:
        """Whether a request that can't be paid for leaves a record: the first of a key does, repeated ones are counted."""
        now_s = self._clock.monotonic_s()
        last_s = self._refused_s.get(principal.key_id)
        if last_s is not None and now_s < last_s + REFUSAL_RECORD_S:
            return False
        self._refused_s[principal.key_id] = now_s
        self._refused_s.move_to_end(principal.key_id)
        if len(self._refused_s) > REFUSALS_KEPT:
            self._refused_s.popitem(last=False)
        return True

    # -- what an administrator changes -----------------------------------------------------------------------------------

    def set_budget(self, terms: BudgetTerms) -> None:
        """A budget exists, or its limit or thresholds changed."""
        self._budget_changes_count += 1
        self.book.set_budget(terms)

    def drop_budget(self, terms: BudgetTerms) -> None:
        """A budget is archived: nothing more is held under it."""
        self._budget_changes_count += 1
        self.book.drop_budget(terms)

    # -- what a caller can see -------------------------------------------------------------------------------------------

    def remaining_headers(self, request: Request) -> list[tuple[bytes, bytes]]:
        """What is left under the tightest cap, as response headers; none where nothing caps the caller."""
        if not self.book.is_loaded(request.principal.key_id):
            return []
        found = self.book.tightest(**_scopes(request), now_ms=self._now_ms())
        if found is None:
            return []
        scope, nanos = found
        return [
            (b"x-headwater-budget-remaining", format_nanos(nanos).encode()),
            (b"x-headwater-budget-scope", scope.encode()),
        ]

    async def caps_of(self, principal: Principal) -> list[Counter]:
        """The counters of every cap over a key, tags apart."""
        await self._load_key(principal.key_id)
        return self.book.counters(
            organization_id=principal.organization_id,
            project_id=principal.project_id,
            key_id=principal.key_id,
            now_ms=self._now_ms(),
        )

    def credit_nanos(self, organization_id: str) -> int | None:
        """The credit an organization may still spend; None where it doesn't pay beforehand."""
        if not self.book.is_prepaid(organization_id):
            return None
        return self.book.credit_nanos(organization_id, self._now_ms())

    # -- housekeeping ----------------------------------------------------------------------------------------------------

    async def keep_house(self) -> None:
        """Expire what nobody settles and credit whose time is over, for ever; run as a task."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """One round of `keep_house`."""
        now_ms = self._now_ms()
        for reservation in [one for one in self._open.values() if one.row.expires_at_ms <= now_ms]:
            row = reservation.row
            del self._open[row.id]
            self._unsettled[row.id] = None
            settled = self.book.expire(reservation.hold, now_ms)
            self._settler.expire(row, ResolutionRow(row.id, "expire", 0, now_ms), settled)
            log.warning("reservation_expired", request_id=row.request_id, amount_nanos=row.amount_nanos)
        lapsed = self.book.expire_lots(now_ms)
        if lapsed:
            self._settler.lapse(lapsed)
        # What has expired, or could not be written, is still to be settled, or recovered.
        open_from = min([self.book.oldest_open(), *self._unsettled])
        if open_from != self._open_from:
            self._open_from = open_from
            self._settler.remember(store.OPEN_FROM, open_from)

    def _announce(self, thresholds: Sequence[Spent], now_ms: int) -> tuple[NoticeRow, ...]:
        for spent in thresholds:
            terms = spent.terms
            self._telemetry.budget_thresholds.labels(terms.scope).inc()
            log.warning(
                "budget_threshold",
                budget=terms.id,
                scope=terms.scope,
                scope_id=terms.scope_id,
                percent=spent.percent,
                period=spent.period.key,
                spent_nanos=spent.spent_nanos,
                limit_nanos=terms.limit_nanos,
            )
        return tuple(notice(spent, receiver, now_ms) for spent in thresholds for receiver in self._receivers)

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)


def _nobody() -> None:
    """Nobody is to be told of notices."""


class _Scopes(TypedDict):
    organization_id: str
    project_id: str
    key_id: str
    tags: tuple[str, ...]


def _scopes(request: Request) -> _Scopes:
    """Whose money a request is held from, as the book is asked."""
    principal = request.principal
    return {
        "organization_id": principal.organization_id,
        "project_id": principal.project_id,
        "key_id": principal.key_id,
        "tags": request.tags,
    }


def _refusal(shortfall: Shortfall) -> InsufficientQuota:
    needs, has = format_nanos(shortfall.needed_nanos), format_nanos(shortfall.available_nanos)
    if shortfall.terms is None:
        return InsufficientQuota(
            f"The organization's credit is {has}; this request may cost up to {needs}. "
            "Its administrator can add credit with `headwater grants create`."
        )
    terms = shortfall.terms
    name = f"tag {terms.scope_id!r}" if terms.scope == "tag" else f"{terms.scope} {shortfall.scope_id}"
    until = "It is never reset."
    if shortfall.resets_at_ms is not None:
        moment = datetime.fromtimestamp(shortfall.resets_at_ms / 1000, UTC)
        until = f"It is reset at {moment.isoformat(timespec='seconds')}."
    per = {"total": "in all", "custom": f"per {terms.period_days} days"}.get(terms.period, f"per {terms.period}")
    return InsufficientQuota(
        f"The budget of the {name} ({format_nanos(terms.limit_nanos)} {per}) has {has} left; this request may cost "
        f"up to {needs}. {until}"
    )


def _least(sized: Sized) -> Sized:
    """The least that could be held for it: if even that can't be paid, no engine need be asked to count."""
    cap_tokens = sized.chat.output_tokens_max or 0
    if not sized.is_stated:
        cap_tokens = min(cap_tokens, OUTPUT_FLOOR_TOKENS)
    return sized._replace(chat=with_output_cap(sized.chat, cap_tokens), input_tokens=0)


def _worst_case(request: Request, sized: Sized, price: Price) -> int:
    """The most the request can cost, in nanos. Raises InvalidRequest when that is beyond what can be accounted for."""
    output_tokens = sized.chat.output_tokens_max or 0
    try:
        nanos = worst_case_nanos(
            price,
            input_tokens=sized.input_tokens,
            output_tokens=output_tokens,
            choices_count=sized.chat.choices_count,
            service_tier=request.service_tier,
        )
    except OverflowError:
        nanos = NANOS_MAX
    if nanos > COST_NANOS_MAX:  # sums of many such holds would not fit 63 bits
        raise InvalidRequest(
            f"{output_tokens} output tokens could cost {format_nanos(nanos)}; one request may cost at most "
            f"{format_nanos(COST_NANOS_MAX)}.",
            param="max_tokens",
        )
    return nanos


def _transfer(kind: TransferKind, row: ReservationRow, nanos: int, note: str | None, now_ms: int) -> TransferRow:
    return TransferRow(kind, row.request_id, 0, row.organization_id, row.model, nanos, note, now_ms)
