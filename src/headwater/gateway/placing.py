"""Step 8: where an ask whose turn it is may go: a replica with a free place, and the slot that suits it best. Pure.

The one place that knows why an ask goes where it goes. Between replicas: the warmest, then the least loaded; on a replica
the slot with the longest warm prefix of the same organization. An ask whose prompt begins like one that is just being read
stays where it is until that is read (`prefixes.py`).
"""

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from headwater.gateway.prefixes import Prefixes, Way
from headwater.gateway.slots import Slot
from headwater.replica import STATE_FILES, Progress
from headwater.scheduling.fair_queue import Ask

EndpointT = TypeVar("EndpointT")

FAILURES_MAX = 3
"""After so many failed calls in a row a replica is used only when no other has a place."""


class Member(Generic[EndpointT]):
    """One replica (or the upstream) of a pool, with its places. An upstream's places are not slots we know: is_slotted false.

    progress: what its calls show of its being alive. prefixes: what its slots share; nothing between so few as one.
    failures_count: calls that failed on it since the last that didn't.
    """

    __slots__ = ("endpoint", "failures_count", "free_count", "id", "places_count", "prefixes", "progress", "slots")

    def __init__(self, member_id: str, endpoint: EndpointT, places_count: int, *, is_slotted: bool) -> None:
        self.id = member_id
        self.endpoint = endpoint
        self.places_count = places_count
        self.free_count = places_count
        self.prefixes = Prefixes([str(file) for file in STATE_FILES] if is_slotted and places_count > 1 else ())
        self.slots = [Slot(number, self.prefixes) for number in range(places_count)] if is_slotted else []
        self.progress = Progress()
        self.failures_count = 0

    def warmth(self, organization_id: str, prefix: tuple[int, ...]) -> int:
        """How many first blocks of a prompt are read already in some free slot, or saved, for this organization."""
        way = self.prefixes.way(self.slots, organization_id, prefix)
        return 0 if way is None else way.warm_count


class Place(NamedTuple, Generic[EndpointT]):
    """A place that was taken for an ask.

    warm_tokens: about how many of its input tokens need not be read. copied_from: the slot whose saved state is to be
    restored into this one first, if any. former_owner: whose tokens the slot's cache holds until the engine is called.
    """

    member: Member[EndpointT]
    slot: Slot
    is_prefix_reusable: bool
    warm_tokens: int
    former_owner: str | None
    copied_from: int | None = None

    @property
    def reason(self) -> str:
        """Why the place suits the ask, for the receipt; empty when nothing spoke for it."""
        if self.copied_from is not None:
            return f"copied prefix of slot {self.copied_from}, about {self.warm_tokens} tokens"
        return f"warm prefix, about {self.warm_tokens} tokens" if self.warm_tokens else ""


class Placing(Generic[EndpointT]):
    """Takes places for asks, and gives them back."""

    def __init__(self) -> None:
        self._tick = 0
        self._version = 0

    def place(self, ask: Ask, members: Mapping[str, Member[EndpointT]]) -> Place[EndpointT] | None:
        """Take a place for this ask; None when it can't have one now, though another ask perhaps could."""
        organization_id, prefix = ask.organization_id, ask.prefix
        for member in members.values():
            if member.prefixes.readings and member.prefixes.is_still_awaited(ask, self._version):
                return None
        chosen: Member[EndpointT] | None = None
        way: Way | None = None
        best = (False, -1, 0)
        for member in members.values():
            if not member.free_count:
                continue
            one = member.prefixes.way(member.slots, organization_id, prefix) if member.slots else None
            # A replica that fails at once always looks idle: it comes last until a call succeeds on it.
            is_sound = member.failures_count < FAILURES_MAX
            worth = (is_sound, 0 if one is None else one.warm_count, member.free_count)
            if worth > best:
                chosen, way, best = member, one, worth
        if chosen is None:
            return None
        if way is None:
            chosen.free_count -= 1
            return Place(chosen, Slot(0), True, 0, None)
        for member in members.values():
            if (
                member.prefixes.readings
                and member.free_count
                and member.prefixes.is_awaited(way, organization_id, prefix, ask=ask, version=self._version)
            ):
                return None
        chosen.free_count -= 1
        slot, warm_count, copy = way
        owner = slot.owner
        is_reusable = slot.is_reusable_by(organization_id)
        chosen.prefixes.taken(way, organization_id, prefix)
        slot.is_busy, slot.owner = True, organization_id
        warm_tokens = warm_count * ask.input_tokens // len(prefix) if warm_count else 0
        return Place(chosen, slot, is_reusable, warm_tokens, owner, None if copy is None else copy.slot_number)

    def release(self, place: Place[EndpointT], prefix: tuple[int, ...]) -> None:
        """Give a place back; prefix: what the slot's cache holds now, empty when that is unknown."""
        slot = place.slot
        if slot.prefixes is not None:
            slot.prefixes.released(slot)
        self._version += 1
        slot.is_busy = False
        slot.prefix = prefix
        place.member.free_count += 1
        self._tick += 1
        slot.last_used = self._tick

    def give_back(self, place: Place[EndpointT]) -> None:
        """A place that nobody used: the slot's cache is still what and whose it was."""
        if place.slot.prefixes is not None:
            place.slot.prefixes.released(place.slot)
        self._version += 1
        place.slot.is_busy = False
        place.slot.owner = place.former_owner
        place.member.free_count += 1

    def warmth(self, ask: Ask, members: Mapping[str, Member[EndpointT]]) -> int:
        """How many of an ask's first blocks are warm in some free slot. Asked for many asks in one decision: most end early."""
        organization_id, prefix = ask.organization_id, ask.prefix
        if not prefix:
            return 0
        warmest = 0
        for member in members.values():
            if member.free_count and _may_be_warm(member, organization_id, prefix[0]):
                warmest = max(warmest, member.warmth(organization_id, prefix))
        return warmest


def _may_be_warm(member: Member[EndpointT], organization_id: str, first: int) -> bool:
    """Whether any free slot or copy of this organization begins as the ask does."""
    for slot in member.slots:
        if not slot.is_busy and slot.owner == organization_id and slot.prefix and slot.prefix[0] == first:
            return True
    return any(copy.organization_id == organization_id for copy in member.prefixes.copies)
