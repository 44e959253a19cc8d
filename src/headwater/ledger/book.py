"""What may still be spent, in memory: the one place where it is decided whether a request can be paid for. Pure.

The book has one owner (the event loop's thread) and does no I/O, so that looking and taking are one step: no number of
concurrent callers can overdraw a budget. What it decides is written to the log afterwards, in the order decided; at a
start it is rebuilt from there (`recovery.py`). A reservation is held under every cap of its organization, project, key
and tags at once, and from the organization's credit, the soonest expiring first; it is settled exactly once.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import Literal, NamedTuple

from headwater.ledger.caps import Cap, Counter, Spent, Stack, counters_json
from headwater.ledger.periods import BudgetTerms, ScopeKind
from headwater.ledger.rows import Delta, TransferRow
from headwater.ledger.wallet import Lot, Wallet, lapse
from headwater.money import NANOS_MAX

IDLE_MS = 600_000
"""A key's caps may leave memory after so long without use: what they spent is on the disk by then."""


class Shortfall(Exception):
    """Something can't be paid for: the first scope that has too little left.

    scope "wallet": the organization's credit; its terms and reset are None. available_nanos: what it has left.
    """

    def __init__(
        self,
        *,
        scope: ScopeKind | Literal["wallet"],
        scope_id: str,
        needed_nanos: int,
        available_nanos: int,
        terms: BudgetTerms | None = None,
        resets_at_ms: int | None = None,
    ) -> None:
        super().__init__(f"{scope} {scope_id}: {needed_nanos} needed, {available_nanos} available")
        self.scope = scope
        self.scope_id = scope_id
        self.needed_nanos = needed_nanos
        self.available_nanos = available_nanos
        self.terms = terms
        self.resets_at_ms = resets_at_ms


class KeyNotLoaded(Exception):
    """The caps of this key aren't in memory; `Book.load_key` puts them there."""


class AlreadySettled(Exception):
    """This hold was settled before: our own mistake, refused before it can be charged twice."""


class Hold:
    """Money held for one request until it is settled. Made by `Book.reserve` only.

    is_open: neither settled nor expired. is_settled: nothing more may come; one that expired may still be settled, late.
    """

    __slots__ = ("amount_nanos", "budgets_json", "counters", "id", "is_open", "is_settled", "key_id", "lots", "wallet")

    def __init__(
        self,
        hold_id: int,
        key_id: str,
        amount_nanos: int,
        counters: Sequence[Counter],
        budgets_json: str | None,
        wallet: Wallet,
        lots: list[tuple[Lot, int]],
    ) -> None:
        """budgets_json: the caps it is held under, as the reservation's row has them."""
        self.id = hold_id
        self.key_id = key_id
        self.amount_nanos = amount_nanos
        self.counters = counters
        self.budgets_json = budgets_json
        self.wallet = wallet
        self.lots = lots
        self.is_open = True
        self.is_settled = False

    @property
    def lots_json(self) -> str | None:
        """The credit it is held from, as the reservation's row has it."""
        return _lots_json(self.lots)


class Settled(NamedTuple):
    """How a hold ended. charge + absorbed = cost; transfers: credit that expired with its release; late: after expiry."""

    charge_nanos: int
    absorbed_nanos: int
    lots: tuple[Delta, ...]
    budgets: tuple[Delta, ...]
    transfers: tuple[TransferRow, ...]
    thresholds: tuple[Spent, ...]
    is_late: bool = False
    late_lots_json: str | None = None


class Book:
    """Every cap and wallet, and the holds under them."""

    def __init__(self, *, next_id: int = 1, keys_count_max: int = 50_000) -> None:
        """next_id: above every reservation's so far. keys_count_max: keys whose caps are in memory at once, about."""
        self._next_id = next_id
        self._keys_count_max = keys_count_max
        self._wallets: dict[str, Wallet] = {}
        self._caps: dict[str, tuple[Cap, ...]] = {}
        self._keys: OrderedDict[str, tuple[Cap, ...]] = OrderedDict()
        self._key_used_ms: dict[str, int] = {}
        self._stacks: dict[tuple[str, str, str], Stack] = {}  # of organization, project and key together
        self._expiring: list[tuple[int, str, Lot]] = []
        self.open_holds: dict[int, Hold] = {}
        self._expired: dict[int, Hold] = {}  # whose settlement may still come

    # -- what there is -----------------------------------------------------------------------------------------------

    def set_organization(self, organization_id: str, *, is_prepaid: bool, currency: str | None = None) -> None:
        """An organization exists, or its way of paying changed. currency: None means the platform's; it never changes."""
        wallet = self._wallets.get(organization_id)
        if wallet is None:
            self._wallets[organization_id] = Wallet(organization_id, is_prepaid=is_prepaid, currency=currency)
        else:
            wallet.is_prepaid = is_prepaid

    def add_lot(self, lot: Lot) -> None:
        """A grant of an organization that exists."""
        self._wallets[lot.organization_id].add(lot)
        if lot.expires_at_ms is not None:
            heappush(self._expiring, (lot.expires_at_ms, lot.grant_id, lot))

    def revoke_lot(self, organization_id: str, grant_id: str) -> int:
        """Take back what nobody holds of a grant; returns how much that is. What is held stays spendable by its holds."""
        wallet = self._wallets[organization_id]
        for lot in wallet.lots:
            if lot.grant_id == grant_id:
                free = lot.end(is_revoked=True)
                wallet.forget_if_empty(lot)
                return free
        return 0

    def set_budget(self, terms: BudgetTerms, *, restored: Mapping[str, int] | None = None) -> None:
        """A budget exists or changed. restored: what its periods had spent. Budgets of keys that aren't loaded wait."""
        caps, scope = self._place(terms)
        if caps is None:
            return
        found = next((cap for cap in caps.get(scope, ()) if cap.terms.id == terms.id), None)
        if found is not None:
            found.change(terms)
            return
        cap = Cap(terms)
        cap.restore(restored or {})
        caps[scope] = (*caps.get(scope, ()), cap)
        self._stacks.clear()

    def drop_budget(self, terms: BudgetTerms) -> None:
        """A budget is archived: nothing more is held under it; what is, settles there."""
        caps, scope = self._place(terms)
        if caps is not None:
            caps[scope] = tuple(cap for cap in caps.get(scope, ()) if cap.terms.id != terms.id)
            self._stacks.clear()

    def load_key(self, key_id: str, caps: Sequence[Cap], now_ms: int) -> None:
        """The caps of a key as the disk has them, unless the key is here already: memory is ahead of the disk."""
        if key_id not in self._keys:
            self._keys[key_id] = tuple(caps)
            self._key_used_ms[key_id] = now_ms
            self._forget_keys(now_ms)

    def is_loaded(self, key_id: str) -> bool:
        """Whether the caps of this key are in memory."""
        return key_id in self._keys

    def declares(self, organization_id: str, tag: str) -> bool:
        """Whether the organization has a budget for this tag."""
        return bool(self._caps.get(f"{organization_id}/{tag}"))

    def is_prepaid(self, organization_id: str) -> bool:
        """Whether the organization's requests have to be covered by credit."""
        return self._wallets[organization_id].is_prepaid

    def currency(self, organization_id: str) -> str | None:
        """The organization's own currency; None: the platform's."""
        return self._wallets[organization_id].currency

    def credit_nanos(self, organization_id: str, now_ms: int) -> int:
        """The credit an organization may still spend."""
        return self._wallets[organization_id].available_nanos(now_ms)

    def _place(self, terms: BudgetTerms) -> tuple[dict[str, tuple[Cap, ...]] | None, str]:
        if terms.scope == "key":
            return (self._keys if terms.scope_id in self._keys else None), terms.scope_id
        if terms.scope == "tag":
            return self._caps, f"{terms.organization_id}/{terms.scope_id}"
        return self._caps, terms.scope_id

    def _forget_keys(self, now_ms: int) -> None:
        while len(self._keys) > self._keys_count_max:
            key_id = next(iter(self._keys))
            caps = self._keys[key_id]
            if caps and (self._key_used_ms[key_id] > now_ms - IDLE_MS or not all(cap.is_idle for cap in caps)):
                self._keys.move_to_end(key_id)
                return  # one try each time: the bound is soft, since what is in use can't leave
            del self._keys[key_id], self._key_used_ms[key_id]
            self._stacks.clear()

    # -- reserve and settle ------------------------------------------------------------------------------------------

    def reserve(
        self,
        *,
        organization_id: str,
        project_id: str,
        key_id: str,
        tags: Sequence[str] = (),
        amount_nanos: int,
        now_ms: int,
    ) -> Hold:
        """Hold an amount under every scope at once, or under none. Raises Shortfall, KeyNotLoaded."""
        counters, json, wallet = self._counters(organization_id, project_id, key_id, tags, now_ms)
        for counter in counters:
            if amount_nanos > counter.left_nanos and amount_nanos:
                raise self._shortfall(counter, amount_nanos)
        lots: list[tuple[Lot, int]] = []
        if wallet.lots or wallet.is_prepaid:
            if wallet.is_prepaid and not wallet.covers(max(1, amount_nanos), now_ms):
                raise Shortfall(
                    scope="wallet",
                    scope_id=organization_id,
                    needed_nanos=amount_nanos,
                    available_nanos=wallet.available_nanos(now_ms),
                )
            lots = wallet.take(amount_nanos, now_ms)
        for counter in counters:
            counter.hold(amount_nanos)
        hold = Hold(self._next_id, key_id, amount_nanos, counters, json, wallet, lots)
        self._next_id += 1
        self.open_holds[hold.id] = hold
        return hold

    def affordable_nanos(
        self, *, organization_id: str, project_id: str, key_id: str, tags: Sequence[str] = (), now_ms: int
    ) -> int | None:
        """The most that could be reserved now; None without any bound. Raises KeyNotLoaded."""
        found = self.tightest(
            organization_id=organization_id, project_id=project_id, key_id=key_id, tags=tags, now_ms=now_ms
        )
        return None if found is None else found[1]

    def tightest(
        self, *, organization_id: str, project_id: str, key_id: str, tags: Sequence[str] = (), now_ms: int
    ) -> tuple[str, int] | None:
        """The scope with the least left and how much that is, in nanos; None without any bound. Raises KeyNotLoaded."""
        counters, _, wallet = self._counters(organization_id, project_id, key_id, tags, now_ms)
        scope, least_nanos = "", NANOS_MAX + 1
        for counter in counters:
            if counter.left_nanos < least_nanos:
                scope, least_nanos = counter.terms.scope, counter.left_nanos
        if wallet.is_prepaid and (available := wallet.available_nanos(now_ms)) < least_nanos:
            scope, least_nanos = "wallet", available
        return (scope, max(0, least_nanos)) if scope else None

    def counters(
        self, *, organization_id: str, project_id: str, key_id: str, tags: Sequence[str] = (), now_ms: int
    ) -> list[Counter]:
        """The counters of every cap over a caller, for display. Raises KeyNotLoaded."""
        return self._counters(organization_id, project_id, key_id, tags, now_ms)[0]

    def settle(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        """End a hold with what the request cost; after an expiry the cost is posted if the caps still allow it.

        Raises AlreadySettled the second time.
        """
        if hold.is_settled:
            raise AlreadySettled(f"reservation {hold.id} was settled before")
        hold.is_settled = True
        self._expired.pop(hold.id, None)
        for counter in hold.counters:
            counter.unsettled_count -= 1
        if hold.key_id in self._key_used_ms:
            self._key_used_ms[hold.key_id] = now_ms  # what it spends now is not on the disk yet
        return self._end(hold, cost_nanos, now_ms) if hold.is_open else self._settle_late(hold, cost_nanos, now_ms)

    def expire(self, hold: Hold, now_ms: int) -> Settled:
        """End an open hold whose time is over, with nothing charged. Its settlement may still come: `settle`, late."""
        settled = self._end(hold, 0, now_ms)
        self._expired[hold.id] = hold
        return settled

    def expire_lots(self, now_ms: int) -> list[TransferRow]:
        """Let credit lapse whose time is over: one transfer for each grant that had any left. What is held stays."""
        lapsed: list[TransferRow] = []
        while self._expiring and self._expiring[0][0] <= now_ms:
            _, _, lot = heappop(self._expiring)
            free_nanos = lot.end(is_revoked=False)
            if free_nanos:
                lapsed.append(lapse(lot, free_nanos, 0, now_ms))
            self._wallets[lot.organization_id].forget_if_empty(lot)
        return lapsed

    def oldest_open(self) -> int:
        """The id below which every request has ended, those whose hold has expired too."""
        oldest = next(iter(self.open_holds), self._next_id)  # they were added in ascending order
        return min(oldest, min(self._expired, default=oldest))

    def _counters(
        self, organization_id: str, project_id: str, key_id: str, tags: Sequence[str], now_ms: int
    ) -> tuple[list[Counter], str | None, Wallet]:
        """The counters of this moment, the same as the reservation's row has them, and who pays."""
        payer = (organization_id, project_id, key_id)
        stack = self._stacks.get(payer)
        if stack is None:
            stack = self._stacks[payer] = self._stack(organization_id, project_id, key_id)
        stack.move(now_ms)
        counters, json = stack.counters, stack.json
        if counters:
            self._key_used_ms[key_id] = now_ms
        if tags:
            counters = [*counters]
            for tag in dict.fromkeys(tags):  # one named twice is still one
                counters += [cap.counter(now_ms) for cap in self._caps.get(f"{organization_id}/{tag}", ())]
            json = counters_json(counters)
        return counters, json, self._wallets[organization_id]

    def _stack(self, organization_id: str, project_id: str, key_id: str) -> Stack:
        key_caps = self._keys.get(key_id)
        if key_caps is None:
            raise KeyNotLoaded(key_id)
        caps = (*self._caps.get(organization_id, ()), *self._caps.get(project_id, ()), *key_caps)
        for cap in caps:
            cap.on_forget = self._stacks.clear
        return Stack(caps)

    def _shortfall(self, counter: Counter, needed_nanos: int) -> Shortfall:
        terms = counter.terms
        return Shortfall(
            scope=terms.scope,
            scope_id=terms.scope_id,
            needed_nanos=needed_nanos,
            available_nanos=counter.available_nanos,
            terms=terms,
            resets_at_ms=counter.period.ends_ms,
        )

    def _end(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        """Close an open hold: at most its amount is charged, the rest of the cost is ours to bear."""
        hold.is_open = False
        del self.open_holds[hold.id]
        charge_nanos = min(cost_nanos, hold.amount_nanos)
        thresholds: list[Spent] = []
        for counter in hold.counters:
            thresholds += counter.spend(hold.amount_nanos, charge_nanos)
        lots, transfers = self._spend_lots(hold, charge_nanos, now_ms)
        return Settled(
            charge_nanos=charge_nanos,
            absorbed_nanos=cost_nanos - charge_nanos,
            lots=lots,
            budgets=_budget_deltas(hold, charge_nanos),
            transfers=transfers,
            thresholds=tuple(thresholds),
        )

    def _spend_lots(
        self, hold: Hold, charge_nanos: int, now_ms: int
    ) -> tuple[tuple[Delta, ...], tuple[TransferRow, ...]]:
        """Spend what is held in its order, give back the rest; what goes back to a lot that is over lapses at once."""
        deltas: list[Delta] = []
        transfers: list[TransferRow] = []
        for lot, held_nanos in hold.lots:
            spent = min(held_nanos, charge_nanos)
            charge_nanos -= spent
            back = held_nanos - spent
            lot.held_nanos -= held_nanos
            gone = spent
            if back and lot.is_over(now_ms):
                transfers.append(lapse(lot, back, hold.id, now_ms))
                gone += back
            else:
                lot.free_nanos += back
            hold.wallet.forget_if_empty(lot)
            if gone:
                deltas.append(Delta(lot.key, -gone))
        return tuple(deltas), tuple(transfers)

    def _settle_late(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        """The hold has expired: post what it would have posted if every cap and the credit still allow it, else we bear it."""
        wallet, charge_nanos = hold.wallet, min(cost_nanos, hold.amount_nanos)
        can_pay = all(counter.available_nanos >= charge_nanos for counter in hold.counters) and (
            not wallet.is_prepaid or wallet.covers(charge_nanos, now_ms)
        )
        if not can_pay:
            return Settled(0, cost_nanos, (), (), (), (), is_late=True)
        thresholds: list[Spent] = []
        for counter in hold.counters:
            thresholds += counter.spend(0, charge_nanos)
        taken = wallet.take(charge_nanos, now_ms)
        for lot, nanos in taken:
            lot.held_nanos -= nanos
            wallet.forget_if_empty(lot)
        return Settled(
            charge_nanos=charge_nanos,
            absorbed_nanos=cost_nanos - charge_nanos,
            lots=tuple([Delta(lot.key, -nanos) for lot, nanos in taken]),
            budgets=_budget_deltas(hold, charge_nanos),
            transfers=(),
            thresholds=tuple(thresholds),
            is_late=True,
            late_lots_json=_lots_json(taken),
        )


def _lots_json(taken: Sequence[tuple[Lot, int]]) -> str | None:
    return f"[{','.join([f'{lot.json_head}{nanos}]' for lot, nanos in taken])}]" if taken else None


def _budget_deltas(hold: Hold, charge_nanos: int) -> tuple[Delta, ...]:
    if not charge_nanos:
        return ()
    return tuple([Delta(counter.key, charge_nanos) for counter in hold.counters])
