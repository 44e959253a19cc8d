import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headwater.scheduling.bands import Band
from headwater.scheduling.fair_queue import (
    IDLE_COUNT_MAX,
    INPUT_WEIGHT,
    OUTPUT_WEIGHT,
    PASSED_MAX,
    SWEEP_COUNT_MIN,
    Ask,
    FairQueue,
    Ticket,
)


class Spot(NamedTuple):
    """A place; so many input tokens are warm there."""

    warm_tokens: int = 0


Queue = FairQueue[Spot]


def anywhere(_ticket: Ticket) -> Spot:
    return Spot()


def ask(organization_id: str = "a", key_id: str = "k", **fields: Any) -> Ask:
    return Ask(organization_id, key_id, **fields)


def names(queue: Queue, count: int, place: Callable[[Ticket], Spot | None] = anywhere) -> list[str]:
    """Whose asks come next, each charged as 10 tokens of output and given back."""
    order = []
    for _ in range(count):
        taken = queue.take(place)
        assert taken is not None
        order.append(taken[0].ask.organization_id)
        queue.finish(taken[0], input_tokens=None, output_tokens=10)
    return order


def test_whoever_was_served_least_is_next() -> None:
    queue = Queue()
    for _ in range(3):
        queue.put(ask("a", input_tokens=100))
        queue.put(ask("b", input_tokens=10))
    assert names(queue, 6) == ["b", "a", "b", "b", "a", "a"]
    assert queue.take(anywhere) is None


def test_a_weight_counts_tokens_so_much_lighter() -> None:
    queue = Queue()
    for _ in range(20):
        queue.put(ask("a", input_tokens=10, organization_weight=3))
        queue.put(ask("b", input_tokens=10))
    assert sorted(names(queue, 12)) == ["a"] * 9 + ["b"] * 3


def test_more_keys_get_no_more_than_one() -> None:
    queue = Queue()
    for number in range(20):
        queue.put(ask("many", f"key_{number}", input_tokens=10))
        queue.put(ask("one", input_tokens=10))
    assert names(queue, 20).count("one") == 10


def test_within_an_organization_keys_share_by_weight() -> None:
    queue = Queue()
    for _ in range(20):
        queue.put(ask(key_id="x", input_tokens=10, key_weight=3))
        queue.put(ask(key_id="y", input_tokens=10))
    keys = [ticket.ask.key_id for ticket, _ in (queue.take(anywhere) or pytest.fail("none") for _ in range(12))]
    assert keys.count("x") == 9


def test_a_key_is_served_by_deadline_then_by_arrival() -> None:
    queue = Queue()
    tickets = [queue.put(ask(deadline_s=deadline_s)) for deadline_s in (9.0, 5.0, 9.0, 1.0)]
    taken = [queue.take(anywhere) for _ in tickets]
    assert [one[0] for one in taken if one] == [tickets[3], tickets[1], tickets[0], tickets[2]]


def test_idleness_is_no_savings_account() -> None:
    queue = Queue()
    for _ in range(50):
        queue.put(ask("busy", input_tokens=100))
    names(queue, 30)
    for _ in range(10):
        queue.put(ask("late", input_tokens=100))
    assert names(queue, 10).count("late") == 5


def test_who_used_much_while_nobody_waited_owes_nothing_for_it() -> None:
    queue = Queue()
    for _ in range(10):
        queue.finish(queue.admit(ask("early", input_tokens=1000)), input_tokens=1000, output_tokens=500)
    for _ in range(10):
        queue.put(ask("late", input_tokens=100))
        queue.put(ask("early", input_tokens=100))
    assert names(queue, 10).count("early") == 5


def test_a_cancelled_ask_costs_nothing_and_what_was_overcharged_is_credited() -> None:
    queue = Queue()
    assert queue.remove(queue.put(ask("a", input_tokens=1000)))
    guessed = queue.admit(ask("a", input_tokens=1000))
    queue.finish(guessed, input_tokens=100, output_tokens=0)
    again = queue.admit(ask("a", input_tokens=500))
    assert again.organization.counter == 1000  # 900 of credit took the 500
    assert again.organization.credit == 400
    assert not queue.remove(again)
    assert queue.shares.tokens(0.0) == {"a": 600}


def test_what_is_warm_is_not_charged() -> None:
    queue = Queue()
    queue.put(ask(input_tokens=1000))
    taken = queue.take(lambda _: Spot(warm_tokens=900))
    assert taken is not None
    assert (taken[0].input_charged, taken[0].organization.counter) == (100, 100 * INPUT_WEIGHT)
    queue.charge(taken[0], 16)
    queue.charge(taken[0], 16)
    assert taken[0].organization.counter == 100 * INPUT_WEIGHT + 16 * OUTPUT_WEIGHT


def test_a_warm_prefix_goes_first_within_the_window_only() -> None:
    def warmth(ticket: Ticket) -> int:
        return int(ticket.ask.organization_id == "warm")

    for ahead, wanted in ((400, "warm"), (600, "cold")):
        queue = Queue(window_tokens=500)
        queue.put(ask("cold", input_tokens=1))
        queue.put(ask("warm", input_tokens=ahead))
        queue.put(ask("warm", input_tokens=ahead))
        queue.put(ask("cold", input_tokens=1))
        names_taken = []
        for use in (None, None, warmth):  # one each, then `warm` is `ahead` ahead
            taken = queue.take(anywhere, use)
            assert taken is not None
            names_taken.append(taken[0].ask.organization_id)
        assert names_taken == ["warm", "cold", wanted]


def test_within_a_key_a_cold_ask_is_not_passed_over_for_ever() -> None:
    queue = Queue()
    cold = queue.put(ask(key_id="k"))
    for _ in range(2 * PASSED_MAX):
        queue.put(ask(prefix=(1,)))
    taken = [queue.take(anywhere, lambda ticket: len(ticket.ask.prefix)) for _ in range(PASSED_MAX + 1)]
    assert [one[0] for one in taken if one].index(cold) == PASSED_MAX


def test_an_ask_that_can_not_be_placed_now_does_not_hold_up_the_others() -> None:
    queue = Queue()
    held = queue.put(ask("a"))
    other = queue.put(ask("a", "other"))
    third = queue.put(ask("b"))
    taken = [queue.take(lambda ticket: None if ticket is held else Spot()) for _ in range(3)]
    assert {one[0] for one in taken if one} == {other, third}
    assert queue.waiting_count == 1
    assert queue.take(anywhere) == (held, Spot())


def test_bands_go_first_but_the_lower_ones_keep_their_floor() -> None:
    queue = Queue()
    served = dict.fromkeys(Band, 0)

    def top_up(band: Band) -> None:
        while queue.waiting[band] < 3:
            queue.put(ask(f"of {band}", band=band, input_tokens=50))

    for number in range(4000):
        bands = (Band.INTERACTIVE, Band.BATCH) if number < 2000 else tuple(Band)
        for band in bands:
            top_up(band)
        taken = queue.take(anywhere)
        assert taken is not None
        ticket = taken[0]
        queue.finish(ticket, input_tokens=None, output_tokens=25)
        if number == 2000:
            part = served[Band.BATCH] / sum(served.values())
            assert 0.098 <= part <= 0.105
            assert served[Band.STANDARD] == 0
            served = dict.fromkeys(Band, 0)
        served[ticket.ask.band] += 1
    parts = [served[band] / sum(served.values()) for band in Band]
    assert parts[1:] == [pytest.approx(0.1, abs=0.01)] * 2


def test_what_a_band_is_served_alone_is_not_held_against_it() -> None:
    queue = Queue()
    for _ in range(100):
        queue.put(ask("batch", band=Band.BATCH, input_tokens=100))
    names(queue, 60)
    for _ in range(50):
        queue.put(ask("now", band=Band.INTERACTIVE, input_tokens=100))
    assert names(queue, 50).count("batch") == pytest.approx(5, abs=1)


def test_how_many_are_ahead_follows_shares_not_arrival() -> None:
    queue = Queue()
    for _ in range(100):
        queue.put(ask("flood"))
    assert queue.asks_ahead(ask("flood")) == 100
    assert queue.asks_ahead(ask("quiet")) == 1
    assert queue.asks_ahead(ask("quiet", organization_weight=4)) == pytest.approx(0.25)
    assert queue.asks_ahead(ask("quiet", band=Band.INTERACTIVE)) == 0
    assert queue.asks_ahead(ask("quiet", band=Band.BATCH)) == 10  # its floor brings it that far
    queue.put(ask("quiet"))
    assert queue.asks_ahead(ask("quiet")) == 1 + 2


def test_a_full_queue_is_shared_by_weight() -> None:
    queue = Queue()
    tickets = [queue.put(ask("flood")) for _ in range(10)]
    assert queue.evictable(ask("flood")) is None
    assert queue.evictable(ask("quiet")) is tickets[-1]
    assert queue.evictable(ask("quiet", band=Band.BATCH)) is None, "a lower band makes no room for itself"
    batch = queue.put(ask("other", band=Band.BATCH))
    assert queue.evictable(ask("flood")) is batch, "the lowest band goes first"
    queue.remove(batch)
    for _ in range(9):
        queue.put(ask("heavy", organization_weight=9))
    assert queue.evictable(ask("heavy", organization_weight=9)) is tickets[-1]
    keys = Queue()
    of_one = [keys.put(ask("a", "greedy")) for _ in range(4)]
    assert keys.evictable(ask("a", "greedy")) is None
    assert keys.evictable(ask("a", "modest")) is of_one[-1]
    keep = Queue()
    keep.put(ask("flood", is_evictable=False))
    keep.put(ask("flood", is_evictable=False))
    assert keep.evictable(ask("quiet")) is None


def test_a_changed_weight_counts_from_then_on() -> None:
    queue = Queue()
    queue.put(ask("a", key_weight=1))
    queue.put(ask("a", organization_weight=5, key_weight=2))
    queue.put(ask("b"))
    assert queue.asks_ahead(ask("b")) == pytest.approx(1 + 2)  # two turns, and `a` asks for no more than two
    assert [order.weight for order in queue._orders] == [0, 6, 0]
    names(queue, 3)
    assert [order.weight for order in queue._orders] == [0, 0, 0]


def test_idle_tenants_are_forgotten() -> None:
    queue = Queue()
    for number in range(4 * SWEEP_COUNT_MIN):
        queue.finish(queue.admit(ask(f"org_{number}", input_tokens=number % 7)), input_tokens=None, output_tokens=1)
        queue.finish(queue.admit(ask("one", f"key_{number}")), input_tokens=None, output_tokens=1)
    assert queue.accounts_count <= SWEEP_COUNT_MIN + 1
    assert len(queue._organizations["one"].keys) <= SWEEP_COUNT_MIN + 1


def test_idle_tenants_that_are_ahead_are_forgotten_too_when_they_are_too_many() -> None:
    queue = Queue()
    queue.put(ask("held", input_tokens=10**9))
    for number in range(IDLE_COUNT_MAX + 4 * SWEEP_COUNT_MIN):
        ticket = queue.put(ask(f"org_{number}", input_tokens=1))
        taken = queue.take(lambda one, wanted=ticket: Spot() if one is wanted else None)  # type: ignore[misc]
        assert taken is not None
        queue.finish(ticket, input_tokens=None, output_tokens=1)
    assert queue.accounts_count <= 2 * IDLE_COUNT_MAX + 2
    assert queue.waiting_count == 1


# -- what always holds -------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 60)), min_size=2, max_size=4),
    slots_count=st.integers(1, 8),
)
def test_tenants_that_always_wait_are_served_alike(
    seed: int, sizes: Sequence[tuple[int, int]], slots_count: int
) -> None:
    """VTC's bound, with C slots: no two of them are ever further apart than 2 max(w_p Lin, w_q C Lout)."""
    draw = random.Random(seed)
    queue = Queue(window_tokens=0)
    running: dict[Ticket, int] = {}
    served = [0] * len(sizes)
    bound = 2 * max(
        INPUT_WEIGHT * max(one for one, _ in sizes), OUTPUT_WEIGHT * slots_count * max(one for _, one in sizes)
    )

    def put(tenant: int) -> None:
        most_input, _ = sizes[tenant]
        queue.put(ask(str(tenant), input_tokens=draw.randint(1, most_input)))

    for tenant in range(len(sizes)):
        put(tenant)
        put(tenant)
    for _ in range(1500):
        while len(running) < slots_count:
            taken = queue.take(anywhere)
            assert taken is not None
            ticket = taken[0]
            tenant = int(ticket.ask.organization_id)
            served[tenant] += INPUT_WEIGHT * ticket.input_charged
            running[ticket] = draw.randint(1, sizes[tenant][1])
            put(tenant)
        for ticket, wanted in list(running.items()):
            made = ticket.output_charged + 1
            queue.charge(ticket, made)
            served[int(ticket.ask.organization_id)] += OUTPUT_WEIGHT
            if made == wanted:
                queue.finish(ticket, input_tokens=None, output_tokens=made)
                del running[ticket]
        assert max(served) - min(served) <= bound


class QueueMachine(RuleBasedStateMachine):
    """Any order of puts, takes, charges, ends and cancellations."""

    @initialize(window=st.sampled_from([0, 50, 2048]))
    def begin(self, window: int) -> None:
        self.queue = Queue(window_tokens=window)
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.granted: set[int] = set()
        self.held: set[str] = set()
        self.counters: dict[str, float] = {}

    @rule(
        organization=st.sampled_from("abc"),
        key=st.sampled_from("xy"),
        band=st.sampled_from(Band),
        tokens=st.integers(0, 300),
        weight=st.sampled_from([1, 3]),
        deadline_s=st.sampled_from([1.0, 2.0, float("inf")]),
    )
    def put(self, organization: str, key: str, band: Band, tokens: int, weight: int, deadline_s: float) -> None:
        made = Ask(organization, key, band, weight, 1, deadline_s, tokens)
        others = [one.organization for one in self.waiting if one.ask.band is band]
        was_waiting = any(one.id == organization for one in others)
        ticket = self.queue.put(made)
        if others and not was_waiting:
            assert ticket.organization.counter >= min(one.counter for one in others), "no banked credit"
        self.waiting.append(ticket)

    @precondition(lambda self: not self.waiting)
    @rule(organization=st.sampled_from("abc"), tokens=st.integers(0, 300))
    def admit(self, organization: str, tokens: int) -> None:
        self.running.append(self.queue.admit(Ask(organization, "x", input_tokens=tokens)))

    @rule(held=st.sets(st.sampled_from("abc")), is_warm=st.booleans(), warm_tokens=st.integers(0, 400))
    def take(self, held: set[str], is_warm: bool, warm_tokens: int) -> None:
        asked: list[Ticket] = []

        def place(ticket: Ticket) -> Spot | None:
            asked.append(ticket)
            return None if ticket.ask.organization_id in held else Spot(warm_tokens)

        taken = self.queue.take(place, (lambda ticket: ticket.arrival % 3) if is_warm else None)
        assert all(ticket in self.waiting for ticket in asked)
        possible = [one for one in self.waiting if one.ask.organization_id not in held]
        if taken is None:
            assert not possible, "somebody could have had a place"
            return
        ticket = taken[0]
        assert ticket in possible
        assert ticket.arrival not in self.granted, "granted twice"
        self.granted.add(ticket.arrival)
        self.waiting.remove(ticket)
        self.running.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=st.integers(0, 50))
    def charge(self, data: st.DataObject, more: int) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        self.queue.charge(ticket, ticket.output_charged + more)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), input_tokens=st.none() | st.integers(0, 300), more=st.integers(-5, 50))
    def finish(self, data: st.DataObject, input_tokens: int | None, more: int) -> None:
        ticket = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.queue.finish(ticket, input_tokens=input_tokens, output_tokens=ticket.output_charged + more)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        assert self.queue.remove(ticket)
        assert not self.queue.remove(ticket)

    @rule()
    def drain(self) -> None:
        drained = list(self.queue.drain())
        assert sorted(one.arrival for one in drained) == sorted(one.arrival for one in self.waiting)
        self.waiting.clear()

    @invariant()
    def nothing_is_lost_and_no_counter_falls(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.waiting_count == len(self.waiting) == sum(self.queue.waiting)
        for band in Band:
            waiting = {one.organization.id: one.organization for one in self.waiting if one.ask.band is band}
            order = self.queue._orders[band]
            assert order.weight == sum(one.weight for one in waiting.values())
            walked = [one.id for one in order.walk()]
            assert sorted(walked) == sorted(waiting)
            counters = [waiting[name].counter for name in walked]
            assert counters == sorted(counters), "not the least served first"
        for name, account in self.queue._organizations.items():
            assert account.counter >= self.counters.get(name, 0.0)
            self.counters[name] = account.counter
            assert account.in_flight_count == sum(one.organization is account for one in self.running)
        assert self.queue.gap() >= 0


QueueMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestQueueMachine = QueueMachine.TestCase
