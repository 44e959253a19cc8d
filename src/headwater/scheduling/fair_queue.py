"""The fair queue: who is given the next free place. Pure and replayable: the same calls give the same order.

A weighted Virtual Token Counter on two levels, organizations and in them keys. Whoever has been served least for its weight
is next; input is charged when the place is given, output as it is made. A tenant that comes back from idleness starts where
the others are, so idleness is no savings account. Bands go strictly one above the other, but for the floors of the lower.
Among tenants within a small window of the least one, the ask goes first whose prefix is warm on a free place.

Sources: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024, arXiv 2401.00588); the window is the idea of
Cao et al., "Locality-aware Fair Scheduling in LLM Serving" (2025, arXiv 2501.14312).
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from math import inf
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from headwater.scheduling.bands import BANDS_COUNT, Band
from headwater.scheduling.estimate import MEAN_WEIGHT, asks_ahead
from headwater.scheduling.floors import Floors
from headwater.scheduling.shares import ShareWindow
from headwater.scheduling.tenants import Account, AccountT, FairOrder

INPUT_WEIGHT: Final = 1
OUTPUT_WEIGHT: Final = 2
"""What a token counts: one that is made costs an engine more than one that is read (VTC's w_p and w_q)."""
WINDOW_TOKENS: Final = 2048
"""How far behind the least-served tenant another may be and still go first because its prefix is warm, in virtual tokens."""
TENANTS_LOOKED_AT_MAX: Final = 8
ASKS_LOOKED_AT_MAX: Final = 32
"""For a warm prefix: so many organizations (and keys of each), and about so many asks in all, are looked at in a decision."""
PASSED_MAX: Final = 16
"""So often the first ask of a key is passed over for a warmer one of the same key, then it must be next."""
SWEEP_COUNT_MIN: Final = 1024
"""From so many accounts on, idle ones that the others have caught up with are forgotten …"""
IDLE_COUNT_MAX: Final = 16_384
"""… and all idle ones when more than so many are left."""


class Ask(NamedTuple):
    """One attempt that wants a place.

    deadline_s: on the event loop's clock, infinite when it would wait for ever. input_tokens: as far as it is known.
    prefix: the chain of `slots.prefix_chain`. is_evictable: whether it may be sent away for a tenant that has less than its
    part of a full queue; not when a sibling of it is running.
    """

    organization_id: str
    key_id: str
    band: Band = Band.STANDARD
    organization_weight: int = 1
    key_weight: int = 1
    deadline_s: float = inf
    input_tokens: int = 0
    prefix: tuple[int, ...] = ()
    is_evictable: bool = True


class Placed(Protocol):
    """What the queue needs to know of a place: how many of the ask's input tokens are read there already."""

    @property
    def warm_tokens(self) -> int:
        """Input tokens that need not be read again."""


PlacedT = TypeVar("PlacedT", bound=Placed)


class Ticket:
    """An ask from the moment it waits (or is given a place at once) until its place is given back.

    waiter: whatever the owner of the queue keeps with it. input_charged, output_charged: tokens.
    """

    __slots__ = ("arrival", "ask", "floor_taken", "input_charged", "key", "organization", "output_charged", "waiter")

    def __init__(self, ask: Ask, organization: "Organization", key: "Key", arrival: int, waiter: Any) -> None:
        self.ask = ask
        self.organization = organization
        self.key = key
        self.arrival = arrival
        self.waiter = waiter
        self.input_charged = 0
        self.output_charged = 0
        self.floor_taken: float | None = None


_Entry = tuple[float, int, Ticket]


class Key(Account):
    """A key: its asks, by band, each band by deadline, then arrival."""

    __slots__ = ("passed_count", "queues")

    def __init__(self, account_id: str, weight: int) -> None:
        super().__init__(account_id, weight)
        self.queues: tuple[list[_Entry], ...] = tuple([] for _ in range(BANDS_COUNT))
        self.passed_count = 0


class Organization(Account):
    """An organization: its keys, and their order in each band. virtual: see FairQueue."""

    __slots__ = ("calm", "keys", "mean_cost", "orders", "virtual")

    def __init__(self, account_id: str, weight: int) -> None:
        super().__init__(account_id, weight)
        self.keys: dict[str, Key] = {}
        self.orders = tuple(FairOrder[Key](band) for band in range(BANDS_COUNT))
        self.virtual = [0.0] * BANDS_COUNT
        self.calm = 0.0
        self.mean_cost: float | None = None


class FairQueue(Generic[PlacedT]):
    """Asks that wait for a place of one pool, and what everybody has been served there. One owner, no threads."""

    def __init__(self, *, window_tokens: float = WINDOW_TOKENS) -> None:
        """window_tokens: 0 turns the preference for warm prefixes off."""
        self.window_tokens = window_tokens
        self.waiting = [0] * BANDS_COUNT
        self.waiting_count = 0
        self.shares = ShareWindow()
        self.mean_cost: float | None = None
        self._organizations: dict[str, Organization] = {}
        self._orders = tuple(FairOrder[Organization](band) for band in range(BANDS_COUNT))
        self._floors = Floors()
        self._arrivals = 0
        self._sweep_count = SWEEP_COUNT_MIN
        # Where somebody starts who comes back: by band the counter of whoever was next at the last decision, and the highest
        # counter there was while nobody waited, when there was nobody to be fair to.
        self._virtual = [0.0] * BANDS_COUNT
        self._calm = 0.0

    # -- asks come and go --------------------------------------------------------------------------------------------

    def admit(self, ask: Ask, warm_tokens: int = 0) -> Ticket:
        """Account for an ask that is given a free place at once, because nobody waits."""
        organization = self._organizations.get(ask.organization_id) or self._new_organization(ask)
        key = organization.keys.get(ask.key_id) or self._new_key(organization, ask)
        if organization.weight != ask.organization_weight or key.weight != ask.key_weight:
            self._weigh(organization, key, ask)
        self._calm = _lifted(organization, max(self._calm, self._virtual[ask.band]))
        organization.calm = _lifted(key, max(organization.calm, organization.virtual[ask.band]))
        ticket = Ticket(ask, organization, key, 0, None)
        self._begin(ticket, warm_tokens)
        return ticket

    def put(self, ask: Ask, waiter: Any = None) -> Ticket:
        """Let an ask wait."""
        organization = self._organizations.get(ask.organization_id) or self._new_organization(ask)
        key = organization.keys.get(ask.key_id) or self._new_key(organization, ask)
        if organization.weight != ask.organization_weight or key.weight != ask.key_weight:
            self._weigh(organization, key, ask)
        band = ask.band
        if not organization.waiting[band]:
            least = self._orders[band].least()
            organization.lift(least.counter if least is not None else max(self._calm, self._virtual[band]))
        if not key.waiting[band]:
            first = organization.orders[band].least()
            key.lift(first.counter if first is not None else max(organization.calm, organization.virtual[band]))
        self._arrivals += 1
        ticket = Ticket(ask, organization, key, self._arrivals, waiter)
        insort(key.queues[band], (ask.deadline_s, ticket.arrival, ticket))
        key.waiting[band] += 1
        organization.waiting[band] += 1
        self.waiting[band] += 1
        self.waiting_count += 1
        if key.waiting[band] == 1:
            organization.orders[band].enter(key)
        if organization.waiting[band] == 1:
            self._orders[band].enter(organization)
        if self.waiting[band] == 1:
            self._floors.begin(band)
        return ticket

    def remove(self, ticket: Ticket) -> bool:
        """Take a waiting ask out; False when it doesn't wait (any more). It has been charged nothing."""
        band = ticket.ask.band
        queue = ticket.key.queues[band]
        entry = (ticket.ask.deadline_s, ticket.arrival, ticket)
        at = bisect_left(queue, entry[:2], key=lambda one: one[:2])
        if at == len(queue) or queue[at][2] is not ticket:
            return False
        self._pull(ticket, at)
        return True

    def drain(self) -> Iterator[Ticket]:
        """Take out everything that waits, fairest first."""
        for band in Band:
            while (organization := self._orders[band].least()) is not None:
                key = organization.orders[band].least()
                assert key is not None, "an organization that waits has a key that waits"
                ticket = key.queues[band][0][2]
                self._pull(ticket, 0)
                yield ticket

    # -- decisions -----------------------------------------------------------------------------------------------------

    def take(
        self, place: Callable[[Ticket], PlacedT | None], warmth: Callable[[Ticket], int] | None = None
    ) -> tuple[Ticket, PlacedT] | None:
        """The next ask that can be placed, with its place; None when none can be now.

        place: takes a place for an ask, or returns None; asked in fair order. warmth: how much of an ask's prefix is warm on
        a free place, 0 for nothing; None when nothing ever is.
        """
        for band in self._bands_in_turn():
            found = self._take_warm(band, place, warmth) if warmth is not None and self.window_tokens else None
            found = found or self._take_in_order(band, place)
            if found is not None:
                self._grant(*found, is_contended=any(self.waiting[:band]))
                return found
        return None

    def _bands_in_turn(self) -> list[Band]:
        bands = [band for band in Band if self.waiting[band]]
        if len(bands) > 1:
            bands.sort(key=lambda band: (not self._floors.is_owed(band), band))
        return bands

    def _take_in_order(self, band: Band, place: Callable[[Ticket], PlacedT | None]) -> tuple[Ticket, PlacedT] | None:
        with closing(self._orders[band].walk()) as organizations:
            for organization in organizations:
                with closing(organization.orders[band].walk()) as keys:
                    for key in keys:
                        for _, _, ticket in key.queues[band]:
                            placed = place(ticket)
                            if placed is not None:
                                return ticket, placed
        return None

    def _take_warm(
        self, band: Band, place: Callable[[Ticket], PlacedT | None], warmth: Callable[[Ticket], int]
    ) -> tuple[Ticket, PlacedT] | None:
        """The warmest ask within the window, if any is warm and can be placed."""
        best: Ticket | None = None
        warmest = 0
        for ticket in self._within_window(band):
            warm = warmth(ticket)
            if warm > warmest:
                best, warmest = ticket, warm
        if best is None:
            return None
        placed = place(best)
        return None if placed is None else (best, placed)

    def _within_window(self, band: Band) -> list[Ticket]:
        """The asks that a warm prefix may bring to the front, in fair order."""
        near: list[Ticket] = []
        organizations = _near(self._orders[band], self.window_tokens)
        for organization in organizations:
            keys = _near(organization.orders[band], self.window_tokens)
            depth = max(1, ASKS_LOOKED_AT_MAX // (len(organizations) * len(keys)))
            for key in keys:
                near += [entry[2] for entry in key.queues[band][: 1 if key.passed_count >= PASSED_MAX else depth]]
        return near

    def _grant(self, ticket: Ticket, placed: PlacedT, *, is_contended: bool) -> None:
        band, organization, key = ticket.ask.band, ticket.organization, ticket.key
        least, first = self._orders[band].least(), organization.orders[band].least()
        if least is not None and least.counter > self._virtual[band]:
            self._virtual[band] = least.counter
        if first is not None and first.counter > organization.virtual[band]:
            organization.virtual[band] = first.counter
        queue = key.queues[band]
        if queue[0][2] is ticket:
            key.passed_count = 0
            self._pull(ticket, 0)
        else:
            key.passed_count += 1
            self.remove(ticket)
        if is_contended:
            ticket.floor_taken = self.mean_cost or 0.0
            self._floors.took(band, ticket.floor_taken)
        self._begin(ticket, placed.warm_tokens)

    # -- what is served --------------------------------------------------------------------------------------------------

    def charge(self, ticket: Ticket, output_tokens: int) -> None:
        """Output made so far, in all; call it every so often while it is made."""
        more = output_tokens - ticket.output_charged
        if more > 0:
            ticket.output_charged = output_tokens
            self._charge(ticket, OUTPUT_WEIGHT * more)
            self.shares.add(ticket.ask.organization_id, more)

    def finish(self, ticket: Ticket, *, input_tokens: int | None, output_tokens: int) -> None:
        """The place is given back. input_tokens: read in truth, without what was cached; None when nobody knows."""
        organization, key = ticket.organization, ticket.key
        made = max(0, output_tokens - ticket.output_charged)
        read = 0 if input_tokens is None else input_tokens - ticket.input_charged
        ticket.output_charged += made
        ticket.input_charged += read
        more = INPUT_WEIGHT * read + OUTPUT_WEIGHT * made
        if more > 0:
            self._charge(ticket, more)
        elif more < 0:
            organization.credit -= more / organization.weight
            key.credit -= more / key.weight
        if made or read:
            self.shares.add(organization.id, made + read)
        if not self.waiting_count:
            self._calm = max(self._calm, organization.counter)
            organization.calm = max(organization.calm, key.counter)
        organization.in_flight_count -= 1
        key.in_flight_count -= 1
        cost = float(INPUT_WEIGHT * ticket.input_charged + OUTPUT_WEIGHT * ticket.output_charged)
        mean = self.mean_cost
        self.mean_cost = cost if mean is None else mean + MEAN_WEIGHT * (cost - mean)
        mean = organization.mean_cost
        organization.mean_cost = cost if mean is None else mean + MEAN_WEIGHT * (cost - mean)
        if ticket.floor_taken is not None:
            self._floors.took(ticket.ask.band, cost - ticket.floor_taken)

    def _begin(self, ticket: Ticket, warm_tokens: int) -> None:
        ticket.organization.in_flight_count += 1
        ticket.key.in_flight_count += 1
        tokens = ticket.ask.input_tokens - warm_tokens
        if tokens > 0:
            ticket.input_charged = tokens
            self._charge(ticket, INPUT_WEIGHT * tokens)
            self.shares.add(ticket.ask.organization_id, tokens)

    def _charge(self, ticket: Ticket, tokens: float) -> None:
        ticket.organization.charge(tokens)
        ticket.key.charge(tokens)
        if self.waiting_count:
            self._floors.served(tokens, self.waiting)

    # -- what can be known of it -------------------------------------------------------------------------------------

    def asks_ahead(self, ask: Ask) -> float:
        """How many asks would be given a place before this one if it came now and nobody after it."""
        band = ask.band
        organization = self._organizations.get(ask.organization_id)
        own = 0 if organization is None else organization.waiting[band]
        weights = self._orders[band].weight + (0 if own else ask.organization_weight)
        return asks_ahead(
            band,
            own_count=own,
            band_count=self.waiting[band],
            higher_count=sum(self.waiting[:band]),
            weight=ask.organization_weight,
            weights_sum=weights,
            cost_ratio=_ratio(None if organization is None else organization.mean_cost, self.mean_cost),
        )

    def queued_count(self, organization_id: str) -> int:
        """Asks of one organization that wait."""
        organization = self._organizations.get(organization_id)
        return 0 if organization is None else organization.queued_count

    def evictable(self, ask: Ask) -> Ticket | None:
        """Who has to leave a full queue for this ask, None when the ask has to go.

        The last ask of whoever waits most for its weight in the lowest band; in the ask's own band only of an organization
        that waits for more than the ask's then would, or else of such a key of its own. So a full queue is shared by weight.
        """
        own = self._organizations.get(ask.organization_id)
        for band in range(BANDS_COUNT - 1, ask.band - 1, -1):
            most = _most(self._orders[band].accounts(), band)
            if most is None:
                continue
            keys = list(most.keys.values())
            if band == ask.band and _load(most, band) <= _load(own, band, ask.organization_weight):
                if own is None:
                    return None
                most_key = _most(own.orders[band].accounts(), band)
                of_ask = _load(own.keys.get(ask.key_id), band, ask.key_weight)
                if most_key is None or _load(most_key, band) <= of_ask:
                    return None
                keys = [most_key]
            tickets = [entry[2] for key in keys for entry in key.queues[band] if entry[2].ask.is_evictable]
            if tickets:
                return max(tickets, key=lambda one: one.arrival)
        return None

    def should_keep(self, ask: Ask, *, is_idle: bool) -> bool:
        """Whether a place should be kept from this ask for another organization. is_idle: nothing runs at all.

        True when another that was served of late has nothing waiting, so that it may come any moment, or has just come and has
        no place yet; and the ask's own has a place already, or can have any other because nothing runs. Who has come is let
        in before the ask's own within the window only: for more than that, places go by weight.
        """
        own = self._organizations.get(ask.organization_id)
        if not is_idle and (own is None or not own.in_flight_count):
            return False
        counter_max = inf if own is None else own.counter + self.window_tokens
        for other_id in self.shares.recent():
            if other_id == ask.organization_id:
                continue
            other = self._organizations.get(other_id)
            if other is None or not other.queued_count:
                return True
            if not other.in_flight_count and any(other.waiting[: ask.band + 1]) and other.counter <= counter_max:
                return True
        return False

    def gap(self) -> float:
        """The largest difference of counters among organizations that wait in one band, in virtual tokens; 0 if none do."""
        gaps = [0.0]
        for band in Band:
            counters = [one.counter for one in self._organizations.values() if one.waiting[band]]
            gaps += [max(counters) - min(counters)] if counters else []
        return max(gaps)

    @property
    def accounts_count(self) -> int:
        """Organizations remembered."""
        return len(self._organizations)

    # -- accounts --------------------------------------------------------------------------------------------------------

    def _new_organization(self, ask: Ask) -> Organization:
        if len(self._organizations) >= self._sweep_count:
            _sweep(self._organizations, max(self._calm, *self._virtual), self._orders)
            self._sweep_count = max(SWEEP_COUNT_MIN, 2 * len(self._organizations))
        made = self._organizations[ask.organization_id] = Organization(ask.organization_id, ask.organization_weight)
        return made

    def _new_key(self, organization: Organization, ask: Ask) -> Key:
        keys = organization.keys
        if len(keys) >= SWEEP_COUNT_MIN and len(keys) & (len(keys) - 1) == 0:
            _sweep(keys, max(organization.calm, *organization.virtual), organization.orders)
        made = keys[ask.key_id] = Key(ask.key_id, ask.key_weight)
        return made

    def _weigh(self, organization: Organization, key: Key, ask: Ask) -> None:
        """A weight was changed: from now on charges count by the new one."""
        for band in Band:
            if organization.waiting[band]:
                self._orders[band].weight += ask.organization_weight - organization.weight
            if key.waiting[band]:
                organization.orders[band].weight += ask.key_weight - key.weight
        organization.weight, key.weight = ask.organization_weight, ask.key_weight

    def _pull(self, ticket: Ticket, at: int) -> None:
        """Take an ask out of its key's queue, where it stands at `at`."""
        band, organization, key = ticket.ask.band, ticket.organization, ticket.key
        del key.queues[band][at]
        key.waiting[band] -= 1
        organization.waiting[band] -= 1
        self.waiting[band] -= 1
        self.waiting_count -= 1
        if not key.waiting[band]:
            organization.orders[band].leave(key)
        if not organization.waiting[band]:
            self._orders[band].leave(organization)


def _lifted(account: Account, counter: float) -> float:
    account.lift(counter)
    return account.counter


def _ratio(own: float | None, mean: float | None) -> float:
    """How much one of a tenant's asks costs beside the mean ask; 1 when that isn't known."""
    return own / mean if own and mean else 1.0


def _load(account: Account | None, band: int, weight: int | None = None) -> float:
    """How much an account waits for its weight; with a weight given: as it would with one ask more."""
    waiting = 0 if account is None else account.waiting[band]
    if weight is not None:
        return (waiting + 1) / weight
    assert account is not None
    return waiting / account.weight


def _most(accounts: Iterable[AccountT], band: int) -> AccountT | None:
    return max(accounts, key=lambda one: one.waiting[band] / one.weight, default=None)


def _near(order: FairOrder[AccountT], window: float) -> list[AccountT]:
    """The accounts within the window of the least one, a few at most, in order."""
    near: list[AccountT] = []
    with closing(order.walk()) as accounts:
        for account in accounts:
            if near and account.counter > near[0].counter + window:
                break
            near.append(account)
            if len(near) >= TENANTS_LOOKED_AT_MAX:
                break
    return near


def _sweep(accounts: dict[str, AccountT], level: float, orders: Iterable[FairOrder[AccountT]]) -> None:
    """Forget idle accounts that would be lifted to `level` anyway, and all idle ones when they are too many."""
    idle = [account for account in accounts.values() if account.is_idle]
    ahead_count = sum(account.counter > level for account in idle)
    for account in idle:
        if account.counter <= level or ahead_count > IDLE_COUNT_MAX:
            del accounts[account.id]
    for order in orders:
        order.clean()
