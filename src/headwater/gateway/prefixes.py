"""Shared beginnings of prompts on one replica: who reads one, who waits for it, what was saved of it. Pure.

The first request with a prompt is the *leader*: its prompt is a *reading* that requests with the same beginning may wait
for. When the part they want is read, the slot's state is saved once, and each follower has it restored into its own slot.
Nothing of this crosses organizations. `docs/explanation/prefixes.md` has the figures behind the constants.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from headwater.engines.llamacpp import PrefillProgress
from headwater.gateway.slots import BLOCK_TOKENS, Slot, best_slot, shared_count

SHARED_BLOCKS_MIN = 4
"""A shorter common beginning is read again: 128 tokens."""
GAIN_S_MIN = 0.2
"""What a follower must save by a copy: cutting the leader's call and saving costs it and its neighbours a quarter of that."""
MEASURED_TOKENS_MIN = 8
"""A step of so few tokens says more about the engine's overhead than about its reading."""
REST_TOKENS_MIN = 64
"""A leader with fewer tokens left to read isn't interrupted before its end."""
SLACK_TOKENS = 16
"""How far the estimate of where the shared part ends may be short: the chat template's own tokens."""
COPY_KEPT_S = 60.0
"""How long others may come for a copy; its memory is the engine's, which drops it later (`engines/child.py`)."""
COPY_BYTES_MAX = 256 * 2**20
COPY_TOKENS_MAX_AT_FIRST = 4096
"""Bound of the first copy, before one was seen and its bytes a token are known."""


class Reading:
    """A prompt of one organization being read in a slot. wanted_count: the most blocks another request waits for.

    cached_tokens_max: set when its call was cut and continued: what the engine calls cached beyond this, the very same
    request has read before.
    """

    __slots__ = (
        "cached_tokens_max",
        "followers",
        "is_over",
        "organization_id",
        "prefix",
        "slot_number",
        "wanted_count",
    )

    def __init__(self, organization_id: str, prefix: tuple[int, ...], slot_number: int) -> None:
        self.organization_id = organization_id
        self.prefix = prefix
        self.slot_number = slot_number
        self.wanted_count = 0
        self.followers: dict[int, tuple[object, int]] = {}
        """By identity: each request that waits, and the state of things when it was last looked at."""
        self.is_over = False
        self.cached_tokens_max: int | None = None


class Copy:
    """A saved state. users_count: requests that are to have it restored; until then its file isn't written to again."""

    __slots__ = ("name", "organization_id", "prefix", "slot_number", "users_count")

    def __init__(self, name: str, reading: Reading) -> None:
        self.name = name
        self.organization_id = reading.organization_id
        self.prefix = reading.prefix
        self.slot_number = reading.slot_number
        self.users_count = 0


class Way(NamedTuple):
    """A free slot for a request: so many blocks of its prompt are there already, or come with the copy."""

    slot: Slot
    warm_count: int
    copy: Copy | None


class SharingCounts:
    """What became of shared beginnings, for metrics: requests held back, states saved, states restored, failures of either."""

    __slots__ = ("failed", "held", "restored", "saved")

    def __init__(self) -> None:
        self.held = self.saved = self.restored = self.failed = 0


class Prefixes:
    """The readings and copies of one replica. Owned by the event loop's thread.

    copy_names: the files its engine can save to; none and nothing is shared. token_s: what reading one token took lately.
    """

    def __init__(self, copy_names: Sequence[str]) -> None:
        self.readings: list[Reading] = []
        self.copies: list[Copy] = []
        self.token_s: float | None = None
        self.copy_token_bytes: float | None = None
        self.counts = SharingCounts()
        """Its pool puts its own here: a count outlives a replica."""
        self.on_change: Callable[[], None] | None = None
        """Called when requests that were held back are to be looked at again."""
        self._names_free = list(copy_names)
        self._is_useful = bool(copy_names)

    # -- placing --------------------------------------------------------------------------------------------------

    def way(self, slots: Iterable[Slot], organization_id: str, prefix: Sequence[int]) -> Way | None:
        """The best free slot with what is warm for this request, None without a free one."""
        slot = best_slot(slots, organization_id, prefix)
        if slot is None:
            return None
        is_own = slot.owner == organization_id and not slot.is_unknown
        way = Way(slot, shared_count(slot.prefix, prefix) if is_own else 0, None)
        for copy in self.copies:
            if copy.organization_id == organization_id:
                count = shared_count(copy.prefix, prefix)
                if count >= way.warm_count + SHARED_BLOCKS_MIN and self._is_worth(count - way.warm_count):
                    way = Way(slot, count, copy)
        if way.copy is None:
            return way
        # Whatever the slot holds is lost: rather what nobody has used for the longest time.
        return way._replace(slot=best_slot(slots, "", ()) or slot)

    def is_awaited(
        self, way: Way, organization_id: str, prefix: Sequence[int], *, ask: object = None, version: int = 0
    ) -> bool:
        """Whether the request had better wait for a reading that is under way; the reading is then told what is wanted.

        ask: the request, for `is_still_awaited`; version: of what placing looks at.
        """
        if not self._is_useful or len(prefix) < way.warm_count + SHARED_BLOCKS_MIN:
            return False
        for reading in self.readings:
            if reading.organization_id != organization_id:
                continue
            count = shared_count(reading.prefix, prefix)
            gained = count - way.warm_count
            if gained >= SHARED_BLOCKS_MIN and self._is_worth(gained):
                reading.wanted_count = max(reading.wanted_count, count)
                if id(ask) not in reading.followers:
                    self.counts.held += 1
                reading.followers[id(ask)] = (ask, version)
                return True
        return False

    def is_still_awaited(self, ask: object, version: int) -> bool:
        """Whether this very request was told to wait and nothing has changed since: many may wait, and all are looked at."""
        for reading in self.readings:
            seen = reading.followers.get(id(ask))
            if seen is not None and seen[0] is ask and seen[1] == version:
                return True
        return False

    def taken(self, way: Way, organization_id: str, prefix: tuple[int, ...]) -> None:
        """The slot of a way is occupied."""
        slot = way.slot
        slot.copy = way.copy
        if way.copy is not None:
            way.copy.users_count += 1
        slot.reading = None
        if self._is_useful and len(prefix) >= SHARED_BLOCKS_MIN:
            slot.reading = Reading(organization_id, prefix, slot.number)
            self.readings.append(slot.reading)

    def released(self, slot: Slot) -> None:
        """The request in a slot is over, however it ended. Whoever waited for its reading is to be looked at again."""
        self.restored(slot)
        if slot.reading is not None:
            self.over(slot.reading)
            slot.reading = None

    # -- reading and copying -----------------------------------------------------------------------------------------

    def over(self, reading: Reading) -> None:
        """Nobody needs to wait for this reading any more. Idempotent."""
        if not reading.is_over:
            reading.is_over = True
            self.readings.remove(reading)

    def should_copy(self, reading: Reading, progress: PrefillProgress) -> bool:
        """Whether now is the moment to save the leader's slot: somebody waits, and what they wait for is read."""
        fresh_count = progress.processed - progress.cached
        if fresh_count >= MEASURED_TOKENS_MIN and progress.elapsed_s > 0:
            self.token_s = progress.elapsed_s / fresh_count
        if not reading.wanted_count or self.token_s is None:
            return False
        shared_tokens = progress.total * reading.wanted_count / len(reading.prefix)
        rest = progress.total - progress.processed
        if rest and (rest < REST_TOKENS_MIN or progress.processed < shared_tokens + SLACK_TOKENS):
            return False
        return shared_tokens * self.token_s >= GAIN_S_MIN and self._fits(progress.processed)

    def borrow_name(self) -> str | None:
        """A file to save to: a free one, else that of the oldest copy nobody is about to use; None if there is none."""
        if self._names_free:
            return self._names_free.pop()
        for copy in self.copies:
            if not copy.users_count:
                self.copies.remove(copy)
                return copy.name
        return None

    def saved(self, name: str, reading: Reading, *, tokens: int, size_bytes: int) -> Copy:
        """The reading's slot is in this file; its leader held the slot all the while. To be forgotten after COPY_KEPT_S."""
        self.counts.saved += 1
        if tokens:
            self.copy_token_bytes = size_bytes / tokens
        copy = Copy(name, reading)
        self.copies.append(copy)
        return copy

    def give_back(self, name: str) -> None:
        """A borrowed file holds nothing of worth, and nothing will be written to it."""
        self._names_free.append(name)

    def restored(self, slot: Slot) -> None:
        """The copy meant for a slot is in it, or isn't to be any more."""
        copy, slot.copy = slot.copy, None
        if copy is not None:
            copy.users_count -= 1
            self._free_if_unused(copy)

    def forget(self, copy: Copy) -> None:
        """A copy that can't be restored. Others may be about to try: its file stays taken until they have."""
        if copy in self.copies:
            self.copies.remove(copy)
            self._free_if_unused(copy)

    def give_up(self) -> None:
        """This engine can't save, or doesn't reuse what it restored: from here on each request reads for itself."""
        self.counts.failed += 1
        self._is_useful = False
        self.copies.clear()

    def _free_if_unused(self, copy: Copy) -> None:
        if not copy.users_count and copy not in self.copies:
            self._names_free.append(copy.name)

    def _is_worth(self, blocks_count: int) -> bool:
        """Whether not reading so many blocks saves enough; before anything was measured, assume it."""
        return self.token_s is None or blocks_count * BLOCK_TOKENS * self.token_s >= GAIN_S_MIN

    def _fits(self, tokens: int) -> bool:
        if self.copy_token_bytes is None:
            return tokens <= COPY_TOKENS_MAX_AT_FIRST
        return tokens * self.copy_token_bytes <= COPY_BYTES_MAX
