"""Who reads, who waits, what is saved: decided without any engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.engines.llamacpp import PrefillProgress
from headwater.gateway.prefixes import COPY_BYTES_MAX, SHARED_BLOCKS_MIN, Prefixes, Reading, Way
from headwater.gateway.slots import Slot

SHARED = tuple(range(100, 130))
MINE = (*SHARED, 1, 2)
YOURS = (*SHARED, 8, 9)
NAMES = ("a", "b")


class Replica:
    """The slots of one replica and what they share, taken and released as placing does."""

    def __init__(self, slots_count: int = 4, names: tuple[str, ...] = NAMES) -> None:
        self.prefixes = Prefixes(names)
        self.slots = [Slot(number, self.prefixes) for number in range(slots_count)]

    def way(self, prefix: tuple[int, ...] = MINE, organization_id: str = "org_1") -> Way:
        way = self.prefixes.way(self.slots, organization_id, prefix)
        assert way is not None
        return way

    def is_awaited(self, prefix: tuple[int, ...] = YOURS, organization_id: str = "org_1", ask: object = None) -> bool:
        return self.prefixes.is_awaited(self.way(prefix, organization_id), organization_id, prefix, ask=ask)

    def take(self, prefix: tuple[int, ...] = MINE, organization_id: str = "org_1") -> Slot:
        way = self.way(prefix, organization_id)
        self.prefixes.taken(way, organization_id, prefix)
        way.slot.is_busy, way.slot.owner = True, organization_id
        return way.slot

    def release(self, slot: Slot, prefix: tuple[int, ...] = ()) -> None:
        self.prefixes.released(slot)
        slot.is_busy, slot.prefix = False, prefix

    def copy(self, prefix: tuple[int, ...] = MINE, organization_id: str = "org_1") -> Slot:
        """A leader reads, and its slot is saved."""
        slot = self.take(prefix, organization_id)
        name = self.prefixes.borrow_name()
        assert name is not None
        reading = reading_of(slot)
        self.prefixes.saved(name, reading, tokens=900, size_bytes=9_000_000)
        self.prefixes.over(reading)
        return slot


def reading_of(slot: Slot) -> Reading:
    assert slot.reading is not None
    return slot.reading


def progress(processed: int, total: int = 1024, cached: int = 0, *, token_s: float = 0.01) -> PrefillProgress:
    return PrefillProgress(processed, total, cached, (processed - cached) * token_s, 0)


class TestWaiting:
    """Which requests stay in the queue for a reading."""

    def test_the_same_beginning_waits_for_its_leader(self) -> None:
        replica = Replica()
        leader = replica.take()
        assert replica.is_awaited()
        assert reading_of(leader).wanted_count == len(SHARED)

    def test_another_organization_never_waits_and_is_never_waited_for(self) -> None:
        replica = Replica()
        leader = replica.take()
        assert not replica.is_awaited(organization_id="org_2")
        assert reading_of(leader).wanted_count == 0

    def test_a_short_beginning_is_not_worth_waiting(self) -> None:
        replica = Replica()
        replica.take()
        assert not replica.is_awaited((*SHARED[: SHARED_BLOCKS_MIN - 1], 7, 7, 7, 7, 7))
        assert replica.is_awaited((*SHARED[:SHARED_BLOCKS_MIN], 7, 7, 7, 7, 7))

    def test_what_is_warm_in_a_free_slot_need_not_be_waited_for(self) -> None:
        replica = Replica()
        warm, leader = replica.take(), replica.take()
        assert warm is not leader
        replica.release(warm, MINE)
        assert replica.way(YOURS).warm_count == len(SHARED)
        assert not replica.is_awaited()

    def test_nobody_waits_for_what_is_read_in_no_time(self) -> None:
        replica = Replica()
        leader = replica.take()
        replica.prefixes.should_copy(reading_of(leader), progress(512, token_s=0.0001))
        assert not replica.is_awaited()

    def test_a_leader_that_is_gone_is_waited_for_no_more(self) -> None:
        replica = Replica()
        leader = replica.take()
        assert replica.is_awaited()
        replica.release(leader)
        assert not replica.is_awaited()
        assert reading_of(replica.take(YOURS)).prefix == YOURS, "the next one leads"

    def test_a_replica_of_one_slot_shares_nothing(self) -> None:
        replica = Replica(2, ())
        assert replica.take().reading is None
        assert not replica.is_awaited()

    def test_each_request_is_counted_once_however_often_it_is_looked_at(self) -> None:
        replica = Replica()
        replica.take()
        one, other = object(), object()
        for ask in (one, other, one, other, one):
            assert replica.is_awaited(ask=ask)
        assert replica.prefixes.counts.held == 2

    def test_who_waits_is_looked_at_again_only_when_something_has_changed(self) -> None:
        replica = Replica()
        leader = replica.take()
        ask = object()
        assert not replica.prefixes.is_still_awaited(ask, 0)
        assert replica.is_awaited(ask=ask)
        assert replica.prefixes.is_still_awaited(ask, 0)
        assert not replica.prefixes.is_still_awaited(ask, 1), "a slot was released"
        assert not replica.prefixes.is_still_awaited(object(), 0)
        replica.prefixes.over(reading_of(leader))
        assert not replica.prefixes.is_still_awaited(ask, 0)


class TestSaving:
    """When a leader's call is cut."""

    def test_not_without_anybody_waiting(self) -> None:
        replica = Replica()
        leader = replica.take()
        assert not replica.prefixes.should_copy(reading_of(leader), progress(1024))

    def test_as_soon_as_the_shared_part_is_read(self) -> None:
        replica = Replica()
        leader = replica.take((*SHARED, *range(30)))  # half of its 1,024 tokens are shared
        assert replica.is_awaited()
        assert not replica.prefixes.should_copy(reading_of(leader), progress(500))
        assert replica.prefixes.should_copy(reading_of(leader), progress(540))

    def test_a_small_rest_is_read_first(self) -> None:
        replica = Replica()
        leader = replica.take()
        assert replica.is_awaited()
        assert not replica.prefixes.should_copy(reading_of(leader), progress(1000))
        assert replica.prefixes.should_copy(reading_of(leader), progress(1024))

    def test_a_warm_leader_is_cut_at_once_when_the_pace_is_known(self) -> None:
        replica = Replica()
        leader = replica.take()
        assert replica.is_awaited()
        assert not replica.prefixes.should_copy(reading_of(leader), progress(1024, cached=1023)), "no pace known yet"
        replica.prefixes.token_s = 0.008
        assert replica.prefixes.should_copy(reading_of(leader), progress(1024, cached=1023))

    def test_a_quick_engine_is_left_alone(self) -> None:
        replica = Replica()
        leader = replica.take()
        assert replica.is_awaited()
        assert not replica.prefixes.should_copy(reading_of(leader), progress(1024, token_s=0.0001))

    def test_a_state_too_large_is_not_saved(self) -> None:
        replica = Replica()
        leader = replica.take()
        assert replica.is_awaited()
        assert not replica.prefixes.should_copy(reading_of(leader), progress(9000, 9000)), (
            "the first is bounded by tokens"
        )
        replica.prefixes.copy_token_bytes = COPY_BYTES_MAX / 1000
        assert not replica.prefixes.should_copy(reading_of(leader), progress(1024))
        replica.prefixes.copy_token_bytes = COPY_BYTES_MAX / 2000
        assert replica.prefixes.should_copy(reading_of(leader), progress(1024))


class TestCopies:
    """Saved states, and who gets them."""

    def test_a_copy_goes_into_the_slot_unused_for_longest(self) -> None:
        replica = Replica()
        leader = replica.copy()
        way = replica.way(YOURS)
        assert way.copy is not None
        assert (way.warm_count, way.copy.slot_number) == (len(SHARED), leader.number)
        assert way.slot.owner is None
        assert not replica.is_awaited()

    def test_never_for_another_organization(self) -> None:
        replica = Replica()
        replica.copy()
        way = replica.way(YOURS, "org_2")
        assert (way.copy, way.warm_count) == (None, 0)

    def test_a_slot_as_warm_is_preferred(self) -> None:
        replica = Replica()
        leader = replica.copy()
        replica.release(leader, MINE)
        way = replica.way(YOURS)
        assert (way.copy, way.slot) == (None, leader)

    def test_a_file_is_not_written_to_while_somebody_is_to_have_it(self) -> None:
        replica = Replica(8)
        replica.copy()
        replica.copy((*range(500, 540),))
        followers = [replica.take(YOURS), replica.take((*range(500, 540), 1))]
        assert all(slot.copy is not None for slot in followers)
        assert replica.prefixes.borrow_name() is None
        replica.prefixes.restored(followers[0])
        name = replica.prefixes.borrow_name()
        assert name is not None
        assert [copy.name for copy in replica.prefixes.copies] != [name]

    def test_a_copy_that_failed_keeps_its_file_until_nobody_is_about_to_restore_it(self) -> None:
        replica = Replica(8, ("a",))
        replica.copy()
        one, other = replica.take(YOURS), replica.take(YOURS)
        assert one.copy is not None
        assert one.copy is other.copy
        replica.prefixes.forget(one.copy)
        replica.prefixes.restored(one)
        assert replica.prefixes.borrow_name() is None
        replica.release(other)
        assert replica.prefixes.borrow_name() == "a"

    def test_after_giving_up_each_reads_for_itself(self) -> None:
        replica = Replica()
        replica.copy()
        replica.prefixes.give_up()
        assert replica.way(YOURS).copy is None
        slot = replica.take(YOURS)
        assert slot.reading is None
        assert not replica.is_awaited()


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int]]:
    step = st.tuples(st.sampled_from(["take", "copy", "release", "restore", "forget", "fail"]), st.integers(0, 7))
    return draw(st.lists(step, max_size=60))


@given(histories())
def test_whatever_happens_no_file_is_in_two_hands_and_no_copy_meets_another_organization(
    history: list[tuple[str, int]],
) -> None:
    replica = Replica(6)
    prefixes = replica.prefixes
    for what, number in history:
        slot = replica.slots[number % 6]
        organization_id, prefix = f"org_{number % 2}", (*SHARED, number)
        if what == "take" and any(not one.is_busy for one in replica.slots):
            taken = replica.take(prefix, organization_id)
            assert taken.copy is None or taken.copy.organization_id == organization_id
        elif what == "copy" and slot.is_busy and slot.reading is not None and not slot.reading.is_over:
            name = prefixes.borrow_name()
            if name is not None:
                assert all(one.copy is None or one.copy.name != name for one in replica.slots)
                prefixes.saved(name, slot.reading, tokens=900, size_bytes=9_000_000)
                prefixes.over(slot.reading)
        elif what == "fail" and slot.is_busy:
            name = prefixes.borrow_name()
            if name is not None:
                prefixes.give_back(name)
        elif what == "release" and slot.is_busy:
            replica.release(slot, prefix)
        elif what == "restore" and slot.is_busy:
            prefixes.restored(slot)
        elif what == "forget" and prefixes.copies:
            prefixes.forget(prefixes.copies[number % len(prefixes.copies)])
    for slot in replica.slots:
        if slot.is_busy:
            replica.release(slot)
    assert not prefixes.readings
    assert all(copy.users_count == 0 for copy in prefixes.copies)
    borrowed = [prefixes.borrow_name() for _ in NAMES]
    assert sorted(name for name in borrowed if name is not None) == sorted(NAMES), "every file is there again, once"


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_reading_is_over_once(is_cut: bool) -> None:
    replica = Replica()
    leader = replica.take()
    if is_cut:
        replica.prefixes.over(reading_of(leader))
    replica.release(leader)
    assert not replica.prefixes.readings
