"""Step 7: the queue in front of a model, with late binding: a request waits here, not in an engine, and gets its place
the moment one is free.

Whose turn it is decides `scheduling.fair_queue`, where it goes `placing`; this module keeps the waiting tasks, their
deadlines and the replicas that come and go. A place that is free while nobody waits is given at once, without a queue.
The queue is bounded; who could not be served in time is refused at once and told when it is worth coming back.
"""

import asyncio
import heapq
import math
from typing import Generic

from headwater.errors import NoReplica, Overloaded, TimedOut
from headwater.gateway.placing import EndpointT, Member, Place, Placing
from headwater.gateway.prefixes import SharingCounts
from headwater.gateway.slots import Slot
from headwater.replica import ReplicaStatus
from headwater.scheduling.estimate import running_mean, wait_s
from headwater.scheduling.fair_queue import Ask, FairQueue, Ticket

__all__ = ["CHARGE_TOKENS", "Ask", "Lease", "Member", "Place", "Pool"]

CHARGE_TOKENS = 16
"""Output is charged whenever so many more tokens have been made, and at the end."""
RETRY_AFTER_S_MAX = 3600.0


class Lease(Generic[EndpointT]):
    """A place held by one attempt until `Pool.release`."""

    __slots__ = ("_queue", "granted_s", "place", "ticket")

    def __init__(
        self, place: Place[EndpointT], ticket: Ticket, granted_s: float, queue: FairQueue[Place[EndpointT]]
    ) -> None:
        self.place = place
        self.ticket = ticket
        self.granted_s = granted_s
        self._queue = queue

    @property
    def member(self) -> Member[EndpointT]:
        """The replica or upstream."""
        return self.place.member

    @property
    def slot(self) -> Slot:
        """The slot on it; of an upstream one that means nothing."""
        return self.place.slot

    @property
    def is_prefix_reusable(self) -> bool:
        """Whether the tokens cached in the slot may be used: nobody's, or the same organization's."""
        return self.place.is_prefix_reusable

    @property
    def warm_tokens(self) -> int:
        """About how many input tokens need not be read again."""
        return self.place.warm_tokens

    @property
    def charged_tokens(self) -> int:
        """Output charged so far."""
        return self.ticket.output_charged

    def charge(self, output_tokens: int) -> None:
        """Output made so far, in all; to be called every CHARGE_TOKENS. The end is charged by `Pool.release`."""
        self._queue.charge(self.ticket, output_tokens)


class Pool(Generic[EndpointT]):
    """All places of one deployment or upstream. Owned by the event loop's thread."""

    def __init__(
        self,
        name: str,
        *,
        queued_max: int,
        queue: FairQueue[Place[EndpointT]] | None = None,
        placing: Placing[EndpointT] | None = None,
        is_slot_kept: bool = False,
    ) -> None:
        """is_slot_kept: the first slot of each replica is kept for organizations of the last minute that have nothing waiting, or
        no place yet.

        Slots of one engine share one processor, so an empty one costs little; and engines read prompts in the order of slots,
        so whoever gets the first one is read next, whatever stands in the others.
        """
        self.name = name
        self.queued_max = queued_max
        self.is_slot_kept = is_slot_kept
        self.members: dict[str, Member[EndpointT]] = {}
        self.statuses: list[ReplicaStatus] = []
        self.service_mean_s: float | None = None
        self.placing = placing or Placing[EndpointT]()
        self.sharing = SharingCounts()
        self._queue = queue or FairQueue[Place[EndpointT]]()
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._member_came = asyncio.Event()
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._timer: asyncio.TimerHandle | None = None

    # -- what can be known of it -------------------------------------------------------------------------------------

    @property
    def queued_count(self) -> int:
        """Attempts waiting for a place."""
        return self._queue.waiting_count

    @property
    def places_count(self) -> int:
        """Places of all members, free or not."""
        return sum([member.places_count for member in self.members.values()])

    @property
    def free_count(self) -> int:
        """Places that are free."""
        count = 0
        for member in self.members.values():
            count += member.free_count
        return count

    @property
    def busy_count(self) -> int:
        """Places taken."""
        return self.places_count - self.free_count

    @property
    def fairness_gap(self) -> float:
        """How far apart those are who wait: virtual tokens between the least and the most served for its weight."""
        return self._queue.gap()

    def shares(self) -> dict[str, int]:
        """Tokens served by organization in the last minute: input that was read, and output."""
        return self._queue.shares.tokens(self._clock())

    def expected_wait_s(self, ask: Ask) -> float:
        """Seconds until this ask would have a place, if it came now and nobody after it; 0 when nothing is known yet."""
        if not self._queue.waiting_count and self.free_count:
            return 0.0
        return wait_s(self._queue.asks_ahead(ask), places_count=self.places_count, service_mean_s=self.service_mean_s)

    def place_expected_s(self) -> float:
        """Seconds until a place in the queue is likely to come free: one service time over the places there are."""
        return max(1.0, math.ceil(wait_s(0, places_count=self.places_count, service_mean_s=self.service_mean_s or 1.0)))

    # -- asking ------------------------------------------------------------------------------------------------------

    def has_room(self, places_count: int) -> bool:
        """Whether so many attempts would all have a place at once: then there is nothing to check."""
        return not self._queue.waiting_count and self.free_count >= places_count

    def check(self, places_count: int, ask: Ask | None = None) -> None:
        """Refuse now what could not be served, before anything else is done for it.

        places_count: how many attempts would come. ask: the first of them; None: only bounds in all are looked at.
        Raises NoReplica when no replica is coming; Overloaded when the queue is full and the organization has its part of it,
        or when the place would come after the deadline. Of a full queue the last of whoever waits most for its weight is sent
        away for an organization that waits for less.
        """
        if not self.members:
            self._require_replica()
        queue = self._queue
        if self.has_room(places_count):
            return
        free = self.free_count
        more = places_count if queue.waiting_count else places_count - free
        excess = queue.waiting_count + max(0, places_count - free) - self.queued_max
        if excess > 0 and not (ask is not None and self._evict(ask, excess)):
            raise Overloaded(
                f"The queue of {self.name!r} is full: {queue.waiting_count} wait, at most {self.queued_max} may.",
                retry_after_s=self.place_expected_s(),
            )
        if ask is not None and more > 0 and ask.deadline_s != math.inf:
            self._refuse_if_hopeless(ask)

    def _refuse_if_hopeless(self, ask: Ask) -> None:
        left_s = ask.deadline_s - self._clock()
        expected_s = self.expected_wait_s(ask)
        if expected_s <= left_s:
            return
        # With half of its time to wait it would be served, when what is ahead of it now has gone down so far.
        after_s = min(RETRY_AFTER_S_MAX, max(1.0, math.ceil(expected_s - max(0.0, left_s) / 2)))
        raise Overloaded(
            f"A place at {self.name!r} would come free in about {expected_s:.0f} s; this request may only wait "
            f"{max(0.0, left_s):.0f} s.",
            retry_after_s=after_s,
        )

    def _evict(self, ask: Ask, count: int) -> bool:
        """Make room for `count` asks; False when nobody has to make room."""
        for _ in range(count):
            ticket = self._queue.evictable(ask)
            if ticket is None:
                return False
            self._queue.remove(ticket)
            self._refuse(
                ticket,
                Overloaded(
                    f"The queue of {self.name!r} is full, and others who wait have less of it.",
                    retry_after_s=self.place_expected_s(),
                ),
            )
        return True

    async def any_member(self) -> Member[EndpointT]:
        """A ready replica, for questions that need no place; waits while one is starting. Raises NoReplica."""
        while not self.members:
            self.check(1)
            self._member_came.clear()
            await self._member_came.wait()
        return max(self.members.values(), key=lambda member: member.free_count)

    async def lease(self, ask: Ask) -> Lease[EndpointT]:
        """A place, at once or when it is this ask's turn.

        Raises NoReplica if the last replica failed or fails meanwhile, TimedOut when the deadline passes, Overloaded when a
        full queue is shared anew.
        """
        queue = self._queue
        if not queue.waiting_count:
            place = self._find_place(ask)
            if place is not None:
                return Lease(place, queue.admit(ask, place.warm_tokens), self._clock(), queue)
        self._require_replica()
        waiter: asyncio.Future[Lease[EndpointT]] = self._loop.create_future()
        ticket = queue.put(ask, waiter)
        if ask.deadline_s != math.inf:
            self._watch(ticket)
        if self.free_count:  # who waits may be waiting for something else than a place
            self.serve_waiting()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back(waiter.result())  # granted in the very moment it was given up
            else:
                queue.remove(ticket)
            raise

    # -- giving back and serving -------------------------------------------------------------------------------------

    def release(
        self,
        lease: Lease[EndpointT],
        *,
        prefix: tuple[int, ...] = (),
        input_tokens: int | None = None,
        output_tokens: int = 0,
    ) -> None:
        """Give a place back and say what it was used for.

        prefix: what the slot's cache holds now, empty when that is unknown. input_tokens: read in truth, without what was
        cached; None when nobody knows. output_tokens: made in all.
        """
        now_s = self._clock()
        self.service_mean_s = running_mean(self.service_mean_s, now_s - lease.granted_s)
        self._queue.shares.advance(now_s)
        self._queue.finish(lease.ticket, input_tokens=input_tokens, output_tokens=output_tokens)
        self.placing.release(lease.place, prefix)
        if self._queue.waiting_count:
            self.serve_waiting()

    def give_back(self, lease: Lease[EndpointT]) -> None:
        """Give a place back whose engine was never called: it cost nothing, and the slot's cache is as it was."""
        self._queue.finish(lease.ticket, input_tokens=0, output_tokens=0)
        self.placing.give_back(lease.place)
        self.serve_waiting()

    def serve_waiting(self) -> None:
        """Give free places to whoever may have one now. To be called when something changed that placing looks at."""
        queue = self._queue
        while queue.waiting_count and self.free_count:
            taken = queue.take(self._place, self._warmth)
            if taken is None:
                return
            ticket, place = taken
            ticket.waiter.set_result(Lease(place, ticket, self._clock(), queue))

    def _place(self, ticket: Ticket) -> Place[EndpointT] | None:
        if ticket.waiter.done():  # given up; its task takes it out when it runs
            return None
        return self._find_place(ticket.ask)

    def _find_place(self, ask: Ask) -> Place[EndpointT] | None:
        if not self.is_slot_kept or not self._queue.should_keep(ask, is_idle=not self.busy_count):
            return self.placing.place(ask, self.members)
        kept = [one for one in self.members.values() if len(one.slots) > 1 and not one.slots[0].is_busy]
        for member in kept:
            member.slots[0].is_busy = True
            member.free_count -= 1
        try:
            return self.placing.place(ask, self.members)
        finally:
            for member in kept:
                member.slots[0].is_busy = False
                member.free_count += 1

    def _warmth(self, ticket: Ticket) -> int:
        return 0 if ticket.waiter.done() else self.placing.warmth(ticket.ask, self.members)

    # -- replicas come and go ----------------------------------------------------------------------------------------

    def add_member(self, member: Member[EndpointT]) -> None:
        """A replica is ready: it takes from the queue at once."""
        self.members[member.id] = member
        member.prefixes.on_change, member.prefixes.counts = self.serve_waiting, self.sharing
        self._member_came.set()
        self.serve_waiting()

    def remove_member(self, member_id: str) -> Member[EndpointT] | None:
        """A replica is gone; its leases come back to nobody."""
        return self.members.pop(member_id, None)

    def report(self, statuses: list[ReplicaStatus]) -> None:
        """The states of all replicas changed; when none is left and none is coming, whoever waits is told."""
        self.statuses = statuses
        if self.members or self._is_replica_coming():
            return
        for ticket in self._queue.drain():
            self._refuse(
                ticket,
                NoReplica(
                    f"The last replica of {self.name!r} failed; its operator has been told why.", retry_after_s=30
                ),
            )
        self._member_came.set()

    def _require_replica(self) -> None:
        if not self.members and not self._is_replica_coming():
            # Why is the operator's to know (`/ready`, the log): the reasons name files of this machine.
            raise NoReplica(
                f"No replica of {self.name!r} can answer; its operator has been told why.", retry_after_s=30
            )

    def _is_replica_coming(self) -> bool:
        return any(status.state.is_coming for status in self.statuses)

    # -- deadlines -----------------------------------------------------------------------------------------------------

    def _watch(self, ticket: Ticket) -> None:
        """See to it that the ask leaves at its deadline; one timer for all who wait."""
        deadlines = self._deadlines
        if len(deadlines) > 2 * self._queue.waiting_count + 64:  # most of these have their place by now
            deadlines[:] = [entry for entry in deadlines if not entry[2].waiter.done()]
            heapq.heapify(deadlines)
        heapq.heappush(deadlines, (ticket.ask.deadline_s, ticket.arrival, ticket))
        if self._timer is None or deadlines[0][2] is ticket:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadlines[0][0], self._expire) if self._deadlines else None

    def _expire(self) -> None:
        now_s, deadlines = self._clock(), self._deadlines
        while deadlines and (deadlines[0][0] <= now_s or deadlines[0][2].waiter.done()):
            _, _, ticket = heapq.heappop(deadlines)
            if self._queue.remove(ticket):
                self._refuse(ticket, TimedOut("The request's time ran out while it waited for a place."))
        self._arm()

    def _refuse(self, ticket: Ticket, error: Exception) -> None:
        if not ticket.waiter.done():
            ticket.waiter.set_exception(error)
