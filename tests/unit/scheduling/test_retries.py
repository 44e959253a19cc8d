import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import EngineFailed, InvalidRequest, NoReplica, Overloaded, PlatformError, TimedOut, UpstreamDown
from headwater.scheduling.retries import (
    BROKEN,
    BUDGET_MAX,
    BUSY,
    CONNECT,
    EARNED,
    PAUSE_S,
    REFUSED,
    SERVER,
    SILENT,
    WAIT_S_MAX,
    WRONG,
    Again,
    RetryBudget,
    again,
    may_go_elsewhere,
)


def failed(fault: str | None, *, retry_after_s: float | None = None) -> PlatformError:
    return EngineFailed("x", fault=fault, retry_after_s=retry_after_s)


def decided(
    error: PlatformError, *, has_content: bool = False, retries_count: int = 0, draw: float = 0.5
) -> Again | None:
    return again(error, has_content=has_content, retries_count=retries_count, retries_max=1, draw=draw)


@pytest.mark.parametrize("fault", [CONNECT, BROKEN, SERVER, SILENT, BUSY, REFUSED])
def test_a_fault_before_content_may_be_mended_elsewhere_and_after_content_never(fault: str) -> None:
    assert may_go_elsewhere(failed(fault), has_content=False)
    assert not may_go_elsewhere(failed(fault), has_content=True)


@pytest.mark.parametrize("error", [Overloaded("full"), NoReplica("none"), UpstreamDown("open")])
def test_a_target_that_takes_nothing_sends_the_request_on(error: PlatformError) -> None:
    assert may_go_elsewhere(error, has_content=False)


@pytest.mark.parametrize(
    "error", [InvalidRequest("bad", fault=WRONG), TimedOut("total"), EngineFailed("of ours"), PlatformError("of ours")]
)
def test_what_no_other_target_could_mend_ends_the_request(error: PlatformError) -> None:
    assert not may_go_elsewhere(error, has_content=False)


@pytest.mark.parametrize("fault", [CONNECT, BROKEN, SERVER])
def test_the_same_target_is_asked_again_once_after_a_pause_with_jitter(fault: str) -> None:
    assert decided(failed(fault)) == Again(PAUSE_S)
    assert decided(failed(fault), draw=0.0) == Again(PAUSE_S / 2)
    assert decided(failed(fault), retries_count=1) is None
    assert decided(failed(fault), has_content=True) is None


@pytest.mark.parametrize("fault", [SILENT, REFUSED, WRONG, None])
def test_what_took_long_or_would_fail_again_is_not_repeated(fault: str | None) -> None:
    assert decided(failed(fault)) is None


@given(wish_s=st.floats(0, 100), draw=st.floats(0, 0.999))
def test_retry_after_is_never_cut_short(wish_s: float, draw: float) -> None:
    once_more = decided(failed(BUSY, retry_after_s=wish_s), draw=draw)
    if wish_s > WAIT_S_MAX:
        assert once_more is None
    else:
        assert once_more is not None
        assert once_more.pause_s >= wish_s


@given(st.lists(st.booleans(), max_size=500))
def test_retries_never_add_more_than_a_fifth_and_the_few_saved_up(wants: list[bool]) -> None:
    budget = RetryBudget()
    offered, retried = [0], [0]
    for wants_retry in wants:
        budget.offered()
        offered.append(offered[-1] + 1)
        retried.append(retried[-1] + (wants_retry and budget.take()))
    for start in range(0, len(offered), 7):
        more, again_more = offered[-1] - offered[start], retried[-1] - retried[start]
        assert again_more <= EARNED * more + BUDGET_MAX + EARNED + 1e-6
    assert retried[-1] <= EARNED * offered[-1] + 1e-6


def test_a_hundred_calls_bear_a_fifth_of_retries_whatever_was_saved_up() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.offered()
    assert sum(budget.take() for _ in range(100)) + EARNED * 100 <= 20
    assert BUDGET_MAX + EARNED * 100 <= 20


def test_six_calls_earn_a_retry() -> None:
    budget = RetryBudget()
    for _ in range(6):
        assert not budget.take()
        budget.offered()
    assert budget.take()
    assert not budget.take()
