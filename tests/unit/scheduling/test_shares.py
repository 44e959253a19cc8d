import pytest

from headwater.scheduling.shares import ShareWindow


def test_tokens_count_for_a_minute_and_then_no_more() -> None:
    window = ShareWindow(60.0)
    window.advance(1000.0)
    window.add("a", 10)
    window.add("a", 5)
    window.add("b", 1)
    assert window.tokens(1005.0) == {"a": 15, "b": 1}
    assert window.tokens(1049.0) == {"a": 15, "b": 1}
    window.add("b", 7)
    assert window.tokens(1065.0) == {"b": 7}
    assert window.tokens(5000.0) == {}


def test_a_correction_takes_back_and_leaves_nobody_below_nothing() -> None:
    window = ShareWindow()
    window.add("a", 10)
    window.add("a", -10)
    window.add("b", -3)
    assert window.tokens(0.0) == {}


@pytest.mark.parametrize("silence_s", [61.0, 3600.0, 1e9])
def test_a_long_silence_costs_no_more_than_a_short_one(silence_s: float) -> None:
    window = ShareWindow()
    window.advance(0.0)
    window.add("a", 1)
    assert window.tokens(silence_s) == {}
    window.add("a", 2)
    assert window.tokens(silence_s + 1) == {"a": 2}
