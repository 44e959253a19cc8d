"""The decision how much load to refuse: bands in order, shares, hysteresis, never when healthy."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from headwater.scheduling.shedding import LEVEL_MAX, Guard, back_in_s, next_level, refused_share

INTERACTIVE, STANDARD, BATCH = 0, 1, 2
CALM, BETWEEN, OVER, FAR_OVER = Guard(1, 10, 5), Guard(7, 10, 5), Guard(11, 10, 5), Guard(30, 10, 5)
GUARDS = st.builds(Guard, st.floats(0, 100), st.just(10.0), st.just(5.0), st.sampled_from([None, 50.0]))


def after(level: float, guard: Guard, *, seconds: float) -> float:
    """The level when the guard has read so for so long, decided four times a second."""
    for _ in range(round(seconds * 4)):
        level = next_level(level, [guard], passed_s=0.25)
    return level


def test_nothing_is_refused_while_every_guard_is_under_its_first_threshold() -> None:
    assert after(0.0, BETWEEN, seconds=60) == 0.0
    assert [refused_share(0.0, band) for band in (INTERACTIVE, STANDARD, BATCH)] == [0, 0, 0]


def test_batch_goes_first_and_all_of_it_then_standard_then_interactive() -> None:
    level = next_level(0.0, [OVER], passed_s=0.25)
    assert [refused_share(level, band) for band in (INTERACTIVE, STANDARD, BATCH)] == [0, 0, 1]
    level = after(level, FAR_OVER, seconds=0.5)
    assert refused_share(level, BATCH) == 1
    assert 0 < refused_share(level, STANDARD) < 1
    assert refused_share(level, INTERACTIVE) == 0
    assert after(level, FAR_OVER, seconds=30) == LEVEL_MAX
    assert refused_share(LEVEL_MAX, INTERACTIVE) == 1


def test_between_the_thresholds_the_level_stays_and_under_the_second_it_falls_to_nothing() -> None:
    assert after(1.7, BETWEEN, seconds=60) == 1.7
    assert 0 < after(1.7, CALM, seconds=1) < 1.7
    assert after(LEVEL_MAX, CALM, seconds=6) == 0.0


def test_the_worst_guard_decides() -> None:
    assert next_level(1.0, [CALM, FAR_OVER], passed_s=1) > 1.0
    assert next_level(1.5, [CALM, BETWEEN], passed_s=1) == 1.5


def test_a_guard_that_is_full_refuses_everything_at_once() -> None:
    assert next_level(0.0, [Guard(50, 10, 5, 50)], passed_s=0.25) == LEVEL_MAX


def test_coming_back_is_worth_it_when_the_level_has_fallen_so_far() -> None:
    for band in (INTERACTIVE, STANDARD, BATCH):
        assert refused_share(after(LEVEL_MAX, CALM, seconds=back_in_s(LEVEL_MAX, band)), band) == 0
    assert back_in_s(0.1, BATCH) >= 1, "never less than a second"


@given(st.floats(0, LEVEL_MAX), st.lists(GUARDS, min_size=1, max_size=3), st.floats(0.01, 10))
def test_the_level_has_bounds_and_no_band_is_refused_before_the_one_below(
    level: float, guards: list[Guard], passed_s: float
) -> None:
    found = next_level(level, guards, passed_s=passed_s)
    assert 0 <= found <= LEVEL_MAX
    shares = [refused_share(found, band) for band in (INTERACTIVE, STANDARD, BATCH)]
    assert shares == sorted(shares)
    for share, below in itertools.pairwise(shares):
        assert share == 0 or below == 1
    if all(guard.value < guard.low for guard in guards):
        assert found <= level
