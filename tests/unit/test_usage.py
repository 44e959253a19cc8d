import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.usage import NO_USAGE, TOKENS_MAX, Usage, UsageSource, reported, weakest

counts = st.integers(-3, TOKENS_MAX + 3) | st.integers(-(2**70), 2**70)


def test_a_report_is_taken_apart_into_disjoint_parts() -> None:
    usage = reported(prompt_tokens=100, completion_tokens=50, cached_tokens=30, reasoning_tokens=20)
    assert usage == Usage(uncached_input=70, cache_read=30, output=50, reasoning=20)
    assert usage.input == 100


@pytest.mark.parametrize(
    "lie",
    [
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": -1},
        {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": -1},
        {"prompt_tokens": 1, "completion_tokens": 1, "reasoning_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": 1, "reasoning_tokens": -1},
        {"prompt_tokens": TOKENS_MAX + 1, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": TOKENS_MAX + 1},
    ],
)
def test_a_report_that_lies_is_none(lie: dict[str, int]) -> None:
    assert reported(**lie) is None


@given(counts, counts, counts, counts)
def test_any_report_is_refused_or_keeps_its_own_sums(prompt: int, completion: int, cached: int, reasoning: int) -> None:
    usage = reported(
        prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached, reasoning_tokens=reasoning
    )
    if usage is None:
        assert (
            min(prompt, completion, cached, reasoning) < 0
            or max(prompt, completion) > TOKENS_MAX
            or cached > prompt
            or reasoning > completion
        )
    else:
        assert min(usage.uncached_input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning) >= 0
        assert (usage.input, usage.output) == (prompt, completion)
        assert usage.reasoning <= usage.output


def test_branches_of_a_request_add_up_part_by_part() -> None:
    one = Usage(uncached_input=1, cache_read=2, cache_write=3, cache_write_1h=2, output=4, reasoning=1)
    other = Usage(uncached_input=10, cache_read=20, cache_write=30, cache_write_1h=20, output=40, reasoning=10)
    assert one + other == Usage(
        uncached_input=11, cache_read=22, cache_write=33, cache_write_1h=22, output=44, reasoning=11
    )
    assert one + NO_USAGE == one


def test_what_is_written_to_live_an_hour_is_a_part_of_what_is_written() -> None:
    assert Usage(uncached_input=1, cache_read=2, cache_write=30, cache_write_1h=20).input == 33


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([], "counted"),
        (["reported"], "reported"),
        (["reported", "counted"], "counted"),
        (["counted", "estimated", "reported"], "estimated"),
    ],
)
def test_a_record_is_as_sure_as_its_least_sure_part(sources: list[UsageSource], expected: UsageSource) -> None:
    assert weakest(sources) == expected
