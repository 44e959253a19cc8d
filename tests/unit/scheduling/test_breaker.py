from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.scheduling.breaker import (
    COOL_DOWN_S_MAX,
    OPEN_S_MAX,
    OPEN_S_MIN,
    ORDINARY,
    PROBE_S_MAX,
    RATE_CALLS_MIN,
    SLOW_START_S,
    Breaker,
    Permit,
    State,
)


def broken(failures: int = 3, *, now_s: float = 0.0, draw: float = 0.5) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(failures)
    for _ in range(failures):
        permit = breaker.begin(now_s)
        assert permit is not None
        breaker.failed(permit, now_s, draw)
    assert breaker.state is State.OPEN
    return breaker


def probe(breaker: Breaker, now_s: float) -> Permit:
    permit = breaker.begin(now_s)
    assert permit is not None
    assert permit.number
    return permit


def test_it_opens_after_so_many_failures_in_a_row_and_says_when_to_come_back() -> None:
    breaker = broken(3)
    assert breaker.begin(0.5) is None
    assert breaker.refusal_s(0.5) == pytest.approx(OPEN_S_MIN - 0.5)
    assert breaker.refusal_s(OPEN_S_MIN) is None


def test_a_success_in_between_starts_the_count_again() -> None:
    breaker = Breaker(2)
    for _ in range(RATE_CALLS_MIN // 2 - 1):
        breaker.failed(ORDINARY, 0.0, 0.5)
        breaker.succeeded(ORDINARY, 0.0)
    assert breaker.state is State.CLOSED


def test_a_high_share_of_failures_opens_it_too() -> None:
    breaker = Breaker(1000)
    for _ in range(RATE_CALLS_MIN // 2):
        breaker.succeeded(ORDINARY, 0.0)
        breaker.failed(ORDINARY, 1.0, 0.5)
    assert breaker.state is State.OPEN


def test_failures_of_long_ago_are_no_share() -> None:
    breaker = Breaker(1000)
    for _ in range(RATE_CALLS_MIN - 1):
        breaker.failed(ORDINARY, 0.0, 0.5)
    for at in range(100, 100 + RATE_CALLS_MIN):
        breaker.succeeded(ORDINARY, float(at))
    breaker.failed(ORDINARY, 120.0, 0.5)
    assert breaker.state is State.CLOSED


def test_one_probe_at_a_time() -> None:
    breaker = broken()
    first = probe(breaker, OPEN_S_MIN)
    assert breaker.begin(OPEN_S_MIN) is None
    assert breaker.refusal_s(OPEN_S_MIN) == OPEN_S_MIN
    breaker.released(first)  # its caller left
    assert probe(breaker, OPEN_S_MIN).number != first.number


def test_a_probe_nobody_reports_on_is_forgotten() -> None:
    breaker = broken()
    lost = probe(breaker, OPEN_S_MIN)
    probe(breaker, OPEN_S_MIN + PROBE_S_MAX)
    breaker.failed(lost, OPEN_S_MIN + PROBE_S_MAX, 0.5)
    assert breaker.state is State.HALF_OPEN, "the lost one says nothing any more"


def test_each_failed_probe_keeps_it_open_longer() -> None:
    breaker, now_s, waits = broken(), 0.0, []
    for _ in range(8):
        wait_s = breaker.refusal_s(now_s)
        assert wait_s is not None
        waits.append(wait_s)
        now_s += wait_s
        breaker.failed(probe(breaker, now_s), now_s, 0.5)
    assert waits == sorted(waits)
    assert waits[-1] == OPEN_S_MAX


def test_it_starts_slowly_and_closes() -> None:
    breaker = broken()
    breaker.succeeded(probe(breaker, 2.0), 2.0)
    assert breaker.state is State.SLOW_START
    parts = []
    for part in range(5):
        at = 2.0 + part * SLOW_START_S / 5
        parts.append(sum(breaker.begin(at) is not None for _ in range(100)))
    assert parts == sorted(parts)
    assert 15 <= parts[0] <= 25
    assert parts[-1] < 100
    assert all(breaker.begin(2.0 + SLOW_START_S) is not None for _ in range(100))
    assert breaker.state.name == "CLOSED"


def test_a_failure_while_it_starts_slowly_opens_it_for_longer() -> None:
    breaker = broken()
    breaker.succeeded(probe(breaker, 2.0), 2.0)
    breaker.failed(ORDINARY, 2.5, 0.5)
    assert breaker.state is State.OPEN
    assert breaker.refusal_s(2.5) == pytest.approx(2 * OPEN_S_MIN)


def test_a_wish_to_be_left_alone_is_heeded_up_to_a_bound() -> None:
    breaker = Breaker(3)
    breaker.cool_down(ORDINARY, 0.0, 7.0)
    assert breaker.refusal_s(1.0) == 6.0
    breaker.cool_down(ORDINARY, 1.0, 2.0)  # of a call that was under way; it makes nothing shorter
    assert breaker.refusal_s(1.0) == 6.0
    other = Breaker(3)
    other.cool_down(ORDINARY, 0.0, 3600.0)
    assert other.refusal_s(0.0) == COOL_DOWN_S_MAX


def test_one_that_never_opens() -> None:
    breaker = Breaker(0)
    for at in range(1000):
        breaker.failed(ORDINARY, at / 10, 0.5)
        breaker.cool_down(ORDINARY, at / 10, 10.0)
        assert breaker.begin(at / 10) is ORDINARY


class Step(NamedTuple):
    """Time passes, then something happens to one of the calls under way, or a call begins."""

    after_s: float
    what: str
    which: int
    draw: float


STEPS = st.lists(
    st.builds(
        Step,
        after_s=st.sampled_from([0.0, 0.1, 0.9, 1.0, 5.0, 31.0, 100.0]),
        what=st.sampled_from(["begin", "begin", "succeeded", "failed", "released", "cool_down"]),
        which=st.integers(0, 5),
        draw=st.floats(0, 0.999),
    ),
    max_size=200,
)


@given(STEPS)
def test_whatever_happens_its_promises_hold(steps: list[Step]) -> None:
    breaker, now_s = Breaker(3), 0.0
    under_way: list[Permit] = []
    for step in steps:
        now_s += step.after_s
        if step.what == "begin":
            refusal_s = breaker.refusal_s(now_s)
            permit = breaker.begin(now_s)
            if refusal_s is not None:
                assert permit is None, "what says when to come back doesn't let in"
                assert 0 < refusal_s <= max(OPEN_S_MAX, COOL_DOWN_S_MAX)
                assert breaker.refusal_s(now_s + refusal_s + PROBE_S_MAX) is None, "it is never closed for ever"
            if permit is not None:
                under_way.append(permit)
                if permit.number:
                    assert breaker.begin(now_s) is None, "one probe at a time"
        elif under_way:
            permit = under_way.pop(step.which % len(under_way))
            if step.what == "succeeded":
                breaker.succeeded(permit, now_s)
            elif step.what == "failed":
                breaker.failed(permit, now_s, step.draw)
            elif step.what == "released":
                breaker.released(permit)
            else:
                breaker.cool_down(permit, now_s, 10 * step.draw + 0.1)


@given(outcomes=st.lists(st.booleans(), max_size=50), draw=st.floats(0, 0.999))
def test_an_outage_is_asked_a_few_times_and_an_end_of_it_is_found(outcomes: list[bool], draw: float) -> None:
    """A call every 50 ms for a minute, all failing; then all succeed."""
    breaker, made = Breaker(5), 0
    for tick in range(1200):
        permit = breaker.begin(tick * 0.05)
        if permit is not None:
            made += 1
            breaker.failed(permit, tick * 0.05, draw)
    assert made <= 5 + 10
    served = 0
    for tick in range(1200, 2400):
        permit = breaker.begin(tick * 0.05)
        if permit is not None:
            served += 1
            breaker.succeeded(permit, tick * 0.05)
    assert breaker.state is State.CLOSED
    assert served > 1200 - (OPEN_S_MAX * 1.25 + SLOW_START_S) / 0.05
