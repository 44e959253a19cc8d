"""What the prefix benchmark says of its ratios."""

import pytest

from bench.prefix import geometric_mean, goals_of, sentence
from bench.report import Row


def mixed(mean: float) -> list[Row]:
    return [
        Row(subject="headwater", scenario="mixed", metric="tokens_per_s_ratio_mean", value=mean, unit="1"),
        Row(subject="headwater", scenario="mixed", metric="tokens_per_s_ratio_error", value=0.01, unit="1"),
    ]


def test_twice_as_fast_and_half_as_fast_make_one() -> None:
    mean, error = geometric_mean([2.0, 0.5])
    assert mean == pytest.approx(1.0)
    assert error == pytest.approx(0.6931, abs=1e-4)  # ln 2: stdev(ln 2, -ln 2) / √2
    assert geometric_mean([0.5]) == (0.5, None)


def test_alike_pairs_have_no_error() -> None:
    mean, error = geometric_mean([0.9] * 4)
    assert mean == pytest.approx(0.9)
    assert error == pytest.approx(0.0)


def test_the_mixed_load_may_lose_three_percent() -> None:
    assert [goal.is_met for goal in goals_of(mixed(0.97))] == [True]
    assert [goal.is_met for goal in goals_of(mixed(0.9699))] == [False]
    assert goals_of([]) == []


def test_one_pair_says_nothing_of_its_error() -> None:
    assert "was 0.980 ± 0.010 of" in sentence(mixed(0.98))
    assert "was 0.980 of" in sentence(mixed(0.98)[:1])
