"""Steps 7 and 8: the queue in front of a model, and the choice of replica and slot.

First come, first served, with late binding: a request waits here, not in an engine, and gets its place the moment one
is free. The queue is bounded; a full one refuses at once and says when it is worth coming back.
"""

import asyncio
import math
from collections import deque
from typing import Generic, NamedTuple, TypeVar

from headwater.errors import NoReplica, Overloaded
from headwater.gateway.slots import Slot, best_slot, shared_count
from headwater.replica import ReplicaState, ReplicaStatus

MEAN_WEIGHT = 0.2
"""Weight of the newest service time in the running mean."""

EndpointT = TypeVar("EndpointT")


class Member(Generic[EndpointT]):
    """One replica (or the upstream) of a pool, with its places. An upstream's places are not slots we know: is_slotted false."""

    __slots__ = ("endpoint", "free_count", "id", "places_count", "slots")

    def __init__(self, member_id: str, endpoint: EndpointT, places_count: int, *, is_slotted: bool) -> None:
        self.id = member_id
        self.endpoint = endpoint
        self.places_count = places_count
        self.free_count = places_count
        self.slots = [Slot(number) for number in range(places_count)] if is_slotted else []

    def take(self, organization_id: str, prefix: tuple[int, ...]) -> tuple[Slot, bool]:
        """Occupy a free place; returns its slot and whether the tokens cached there may be used."""
        self.free_count -= 1
        slot = best_slot(self.slots, organization_id, prefix) or Slot(0)
        is_prefix_reusable = slot.owner in (None, organization_id)
        slot.is_busy, slot.owner = True, organization_id
        return slot, is_prefix_reusable

    def warmth(self, organization_id: str, prefix: tuple[int, ...]) -> int:
        """How many first messages some free slot has already read for this organization."""
        slot = best_slot(self.slots, organization_id, prefix)
        return shared_count(slot.prefix, prefix) if slot is not None and slot.owner == organization_id else 0


class Lease(NamedTuple, Generic[EndpointT]):
    """A place held by one attempt until `Pool.release`."""

    member: Member[EndpointT]
    slot: Slot
    is_prefix_reusable: bool
    granted_s: float


class _Waiter(NamedTuple, Generic[EndpointT]):
    organization_id: str
    prefix: tuple[int, ...]
    granted: "asyncio.Future[Lease[EndpointT]]"


class Pool(Generic[EndpointT]):
    """All places of one deployment or upstream. Owned by the event loop's thread."""

    def __init__(self, name: str, *, queued_max: int) -> None:
        self.name = name
        self.queued_max = queued_max
        self.members: dict[str, Member[EndpointT]] = {}
        self.statuses: list[ReplicaStatus] = []
        self.service_mean_s: float | None = None
        self._waiters: deque[_Waiter[EndpointT]] = deque()
        self._clock = asyncio.get_running_loop().time
        self._tick = 0
        self._member_came = asyncio.Event()

    @property
    def queued_count(self) -> int:
        """Attempts waiting for a place."""
        return len(self._waiters)

    @property
    def busy_count(self) -> int:
        """Places taken."""
        return sum(member.places_count - member.free_count for member in self.members.values())

    def check(self, places_count: int) -> None:
        """Refuse now what could not be served: raises NoReplica when no replica is coming, Overloaded when the queue is full."""
        self._require_replica()
        free = sum(member.free_count for member in self.members.values())
        if len(self._waiters) + max(0, places_count - free) > self.queued_max:
            raise Overloaded(
                f"The queue of {self.name!r} is full: {len(self._waiters)} wait, at most {self.queued_max} may.",
                retry_after_s=self.place_expected_s(),
            )

    def place_expected_s(self) -> float:
        """Seconds until a place in the queue is likely to come free: one service time over the places there are."""
        places = sum(member.places_count for member in self.members.values()) or 1
        return max(1.0, math.ceil((self.service_mean_s or 1.0) / places))

    async def any_member(self) -> Member[EndpointT]:
        """A ready replica, for questions that need no place; waits while one is starting. Raises NoReplica."""
        while not self.members:
            self.check(1)
            self._member_came.clear()
            await self._member_came.wait()
        return max(self.members.values(), key=lambda member: member.free_count)

    async def lease(self, organization_id: str, prefix: tuple[int, ...]) -> Lease[EndpointT]:
        """A place, at once or when it is this attempt's turn. Raises NoReplica if the last replica failed or fails meanwhile."""
        if not self._waiters:
            lease = self._take(organization_id, prefix)
            if lease is not None:
                return lease
        self._require_replica()
        waiter = _Waiter(organization_id, prefix, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                self.release(waiter.granted.result())  # granted in the very moment it was given up
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def release(self, lease: Lease[EndpointT], *, prefix: tuple[int, ...] = ()) -> None:
        """Give a place back; prefix: what the slot's cache holds now, empty when that is unknown."""
        slot = lease.slot
        slot.is_busy = False
        slot.prefix = prefix
        lease.member.free_count += 1
        self._tick += 1
        slot.last_used = self._tick
        took_s = self._clock() - lease.granted_s
        mean_s = self.service_mean_s
        self.service_mean_s = took_s if mean_s is None else mean_s + MEAN_WEIGHT * (took_s - mean_s)
        self._serve_waiters()

    def add_member(self, member: Member[EndpointT]) -> None:
        """A replica is ready: it takes from the queue at once."""
        self.members[member.id] = member
        self._member_came.set()
        self._serve_waiters()

    def remove_member(self, member_id: str) -> Member[EndpointT] | None:
        """A replica is gone; its leases come back to nobody."""
        return self.members.pop(member_id, None)

    def report(self, statuses: list[ReplicaStatus]) -> None:
        """The states of all replicas changed; when none is left and none is coming, whoever waits is told."""
        self.statuses = statuses
        if self.members or self._is_replica_coming():
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.granted.done():
                waiter.granted.set_exception(
                    NoReplica(
                        f"The last replica of {self.name!r} failed; its operator has been told why.", retry_after_s=30
                    )
                )
        self._member_came.set()

    def _require_replica(self) -> None:
        if not self.members and not self._is_replica_coming():
            # Why is the operator's to know (`/ready`, the log): the reasons name files of this machine.
            raise NoReplica(
                f"No replica of {self.name!r} can answer; its operator has been told why.", retry_after_s=30
            )

    def _is_replica_coming(self) -> bool:
        return any(status.state in (ReplicaState.STARTING, ReplicaState.BACKING_OFF) for status in self.statuses)

    def _serve_waiters(self) -> None:
        while self._waiters:
            if self._waiters[0].granted.done():
                self._waiters.popleft()
                continue
            waiter = self._waiters[0]
            lease = self._take(waiter.organization_id, waiter.prefix)
            if lease is None:
                return
            self._waiters.popleft()
            waiter.granted.set_result(lease)

    def _take(self, organization_id: str, prefix: tuple[int, ...]) -> Lease[EndpointT] | None:
        free = [member for member in self.members.values() if member.free_count]
        if not free:
            return None
        member = free[0]
        if len(free) > 1:  # a warm prefix first, then the least loaded
            member = max(free, key=lambda one: (one.warmth(organization_id, prefix), one.free_count))
        slot, is_prefix_reusable = member.take(organization_id, prefix)
        return Lease(member, slot, is_prefix_reusable, self._clock())
