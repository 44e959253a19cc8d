"""Dead is found in time, slow is never taken for dead: `liveness.judge` over simulated replicas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.controller.liveness import (
    ASK_INTERVAL_MAX_S,
    LATE_TICKS,
    MISSES_MAX,
    TICK_MAX_S,
    Answer,
    Bounds,
    Look,
    Pulse,
    Verdict,
    bounds_of,
    describe,
    is_question_due,
    judge,
)
from headwater.replica import Progress

TIMEOUT_S = 60.0
BOUNDS = bounds_of(TIMEOUT_S, 0.0)
GAPS_S = st.lists(st.floats(0.01, TIMEOUT_S - 2 * BOUNDS.tick_s), min_size=1, max_size=40)


class World:
    """A replica in simulated time: looked at every tick, asked when a question is due, answering as it is told."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.bounds = bounds
        self.now_s = 1000.0
        self.progress = Progress()
        self.pulse = Pulse(self.now_s, self.now_s)
        self.verdict = Verdict.ALIVE
        self.answers: Answer = Answer.MOVING
        self._asked_s = self.now_s
        self._is_asked = False

    def tick(self, *, late_s: float = 0.0) -> Verdict:
        """Look once more."""
        self.now_s += self.bounds.tick_s + late_s
        answer = None
        if self._is_asked and (
            self.answers is not Answer.MISSED or self.now_s - self._asked_s >= self.bounds.ask_interval_s
        ):
            answer, self._is_asked = self.answers, False
        look = Look(self.now_s, self.progress.in_flight_count, self.progress.advanced_at_s, answer)
        self.pulse, self.verdict = judge(self.pulse, look, self.bounds)
        if not self._is_asked and is_question_due(self.pulse, self._asked_s, self.bounds):
            self._is_asked, self._asked_s = True, self.now_s
        return self.verdict

    def run(self, seconds: float) -> set[Verdict]:
        """Look for so long; returns every verdict."""
        until_s = self.now_s + seconds
        found = set()
        while self.now_s < until_s:
            found.add(self.tick())
        return found

    def found_after_s(self) -> float:
        """Seconds until it is found to hang."""
        began_s = self.now_s
        while self.tick() is not Verdict.HUNG:
            assert self.now_s - began_s < 10 * self.bounds.hang_timeout_s, "never found"
        return self.now_s - began_s


@given(GAPS_S, st.sampled_from([Answer.MISSED, Answer.STILL]))
def test_a_call_that_advances_is_never_ended_however_slowly_it_does(gaps_s: list[float], answers: Answer) -> None:
    world = World()
    world.answers = answers
    world.progress.begin(world.now_s)
    for gap_s in gaps_s:
        assert Verdict.HUNG not in world.run(gap_s)
        world.progress.advanced_at_s = world.now_s


@given(st.floats(0.0, 600.0), st.sampled_from([Answer.MISSED, Answer.STILL]), st.integers(1, 9))
def test_a_busy_replica_that_stands_still_is_found_in_the_time_out_and_a_tick(
    idle_s: float, answers: Answer, calls_count: int
) -> None:
    world = World()
    world.run(idle_s)
    world.answers = answers
    for _ in range(calls_count):
        world.progress.begin(world.now_s)
    assert world.found_after_s() <= TIMEOUT_S + BOUNDS.tick_s + 1e-6
    assert "nothing advanced" in describe(world.pulse, calls_count)


@given(st.floats(0.0, 600.0))
def test_an_idle_one_that_answers_nothing_is_doubted_soon_and_found_in_the_time_out(idle_s: float) -> None:
    world = World()
    world.run(idle_s)
    last_sign_s = world.pulse.sign_s
    world.answers = Answer.MISSED
    verdicts = world.run((MISSES_MAX + 2) * (BOUNDS.ask_interval_s + BOUNDS.tick_s))
    assert Verdict.SUSPECT in verdicts
    assert Verdict.HUNG not in verdicts
    world.found_after_s()
    assert world.now_s - last_sign_s <= TIMEOUT_S + BOUNDS.tick_s + 1e-6
    assert "has not answered" in describe(world.pulse, 0)


@given(st.sampled_from([Answer.MOVING, Answer.STILL]), st.floats(1.0, 3600.0))
def test_an_idle_one_that_answers_is_left_alone(answers: Answer, seconds: float) -> None:
    world = World()
    world.answers = answers
    assert world.run(seconds) == {Verdict.ALIVE}


def test_one_whose_clients_take_nothing_is_not_hung_while_its_own_work_moves() -> None:
    world = World()
    world.progress.begin(world.now_s)
    world.answers = Answer.MOVING
    assert world.run(10 * TIMEOUT_S) == {Verdict.ALIVE}


def test_calls_that_keep_coming_are_no_sign_of_life() -> None:
    world = World()
    world.answers = Answer.MISSED
    world.progress.begin(world.now_s)
    began_s = world.now_s
    while world.tick() is not Verdict.HUNG:
        world.progress.begin(world.now_s)
        assert world.now_s - began_s < 2 * TIMEOUT_S
    assert world.now_s - began_s <= TIMEOUT_S + BOUNDS.tick_s + 1e-6


def test_a_doubted_one_that_answers_again_is_trusted() -> None:
    world = World()
    world.answers = Answer.MISSED
    while world.tick() is not Verdict.SUSPECT:
        pass
    world.answers = Answer.MOVING
    assert Verdict.HUNG not in world.run(3 * BOUNDS.ask_interval_s)
    assert world.verdict is Verdict.ALIVE


def test_a_doubted_one_whose_calls_advance_is_trusted_whatever_it_leaves_unanswered() -> None:
    world = World()
    world.answers = Answer.MISSED
    world.progress.begin(world.now_s)
    while world.tick() is not Verdict.SUSPECT:
        pass
    for _ in range(100):
        world.progress.advanced_at_s = world.now_s
        assert world.tick() is Verdict.ALIVE


def test_what_the_platform_itself_slept_through_is_not_held_against_a_replica() -> None:
    world = World()
    world.answers = Answer.STILL
    world.progress.begin(world.now_s)
    assert world.tick(late_s=10 * TIMEOUT_S) is not Verdict.HUNG
    assert world.found_after_s() <= TIMEOUT_S + BOUNDS.tick_s + 1e-6, "but what it did not do since is"


def test_a_call_that_begins_after_a_long_silence_has_all_its_time() -> None:
    world = World()
    world.answers = Answer.MISSED
    world.run(TIMEOUT_S / 2)
    world.progress.in_flight_count = 1  # by a gateway that doesn't note the beginning
    began_s = world.now_s
    world.found_after_s()
    assert world.now_s - began_s >= TIMEOUT_S


@pytest.mark.parametrize(("batch_s", "timeout_s"), [(0.0, 2.0), (0.4, 3.2), (0.1, 2.0)])
def test_a_slow_machine_has_the_time_of_several_batches(batch_s: float, timeout_s: float) -> None:
    assert bounds_of(2.0, batch_s).hang_timeout_s == pytest.approx(timeout_s)


@given(st.floats(0.1, 3600.0))
def test_looks_and_questions_fit_into_the_time_out(timeout_s: float) -> None:
    bounds = bounds_of(timeout_s, 0.0)
    assert bounds.tick_s <= TICK_MAX_S
    assert bounds.ask_interval_s <= ASK_INTERVAL_MAX_S
    assert (MISSES_MAX + 1) * bounds.ask_interval_s + LATE_TICKS * bounds.tick_s < timeout_s
