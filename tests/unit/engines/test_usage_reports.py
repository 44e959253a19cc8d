from collections.abc import Callable
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.engines.usage_reports import Lie, Reading, Shape, merge_anthropic, read_usage
from headwater.money import Price, Tier
from headwater.usage import TOKENS_MAX, Usage
from tests.unit.engines.usage_shapes import CASES, Call, Case, right_cost, wrong

SHAPES: tuple[Shape, ...] = (
    *("openai_chat", "openai_responses", "anthropic", "gemini", "deepseek", "vllm", "llamacpp"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_report_says_what_was_used_and_that_costs_what_it_was_worked_out_to(case: Case) -> None:
    assert read_usage(case.report.encode(), case.shape) == case.usage
    assert read_usage(msgspec.json.decode(case.report), case.shape) == case.usage
    assert right_cost(Call(case.usage, case.price, case.service_tier, case.units)) == case.cost


def test_the_table_is_long_and_has_every_shape() -> None:
    assert len(CASES) >= 40
    assert {case.shape for case in CASES} == set(SHAPES)
    assert len({case.name for case in CASES}) == len(CASES)
    assert wrong() == []


# The cost once more, another way and in fractions, with a place for every mistake a biller has been caught in.


def _rates(call: Call, mistakes: set[str]) -> Price | Tier:
    counted = call.usage.uncached_input if "the long context without cached tokens" in mistakes else call.usage.input
    if "at the threshold is above it" in mistakes:
        counted += 1
    reached = [tier for tier in call.price.tiers if counted > tier.above_input_tokens and "no tiers" not in mistakes]
    return max(reached, key=lambda tier: tier.above_input_tokens) if reached else call.price


def _second_cost(call: Call, *mistake: str) -> int:
    mistakes, usage, price, units = set(mistake), call.usage, call.price, call.units
    rates = _rates(call, mistakes)
    uncached = usage.input if "cached tokens twice" in mistakes else usage.uncached_input
    read = rates.uncached_input if "cached tokens at the full price" in mistakes else rates.cache_read
    is_5m = rates.cache_write_1h is None or "an hour as five minutes" in mistakes
    write_1h = rates.cache_write if is_5m or rates.cache_write_1h is None else rates.cache_write_1h
    written_5m = (
        usage.cache_write if "an hour on top of five minutes" in mistakes else usage.cache_write - usage.cache_write_1h
    )
    text = usage.output if "reasoning on top of output" in mistakes else usage.output - usage.reasoning
    reasoning = rates.output if "reasoning as output" in mistakes else rates.reasoning
    million = 10**6
    kinds = [
        Fraction(uncached * rates.uncached_input, million),
        Fraction(usage.cache_read * read, million),
        Fraction(written_5m * rates.cache_write, million),
        Fraction(usage.cache_write_1h * write_1h, million),
        Fraction(text * rates.output, million),
        Fraction(usage.reasoning * reasoning, million),
        Fraction(units.requests * price.request * ("no price for the request" not in mistakes), million),
        Fraction(units.images * price.image, million),
        Fraction(units.characters * price.character, million),
    ]
    seconds = Fraction(units.milliseconds, 1000)
    kinds.append(Fraction((round(seconds) if "whole seconds" in mistakes else seconds) * price.second, million))
    if "no multiplier" not in mistakes:
        multiplier = Fraction(dict(price.multipliers).get(call.service_tier, million), million)
        kinds = [kind * multiplier for kind in kinds]
    if "dividing each kind" in mistakes:
        return sum(int(kind + Fraction(1, 2)) for kind in kinds)
    exact = sum(kinds)
    if "cutting off" in mistakes:
        return int(exact)
    if "half to even" in mistakes:
        return round(exact)
    return int(exact + Fraction(1, 2))


def test_a_second_way_of_costing_agrees_with_the_table() -> None:
    assert wrong(_second_cost) == []


@pytest.mark.parametrize(
    "mistake",
    [
        *("cached tokens twice", "cached tokens at the full price", "an hour as five minutes"),
        *("an hour on top of five minutes", "reasoning on top of output", "reasoning as output"),
        *("no tiers", "at the threshold is above it", "the long context without cached tokens"),
        *("no price for the request", "whole seconds", "no multiplier"),
        *("dividing each kind", "cutting off", "half to even"),
    ],
)
def test_the_table_catches_a_doctored_cost(mistake: str) -> None:
    assert wrong(lambda call: _second_cost(call, mistake))


def test_the_table_catches_floats() -> None:
    def cost(call: Call) -> int:
        rates, usage = _rates(call, set()), call.usage
        write_1h = rates.cache_write if rates.cache_write_1h is None else rates.cache_write_1h
        units = call.units.requests * call.price.request + call.units.images * call.price.image
        units += call.units.characters * call.price.character + call.units.milliseconds * call.price.second // 1000
        per_token = (
            (usage.uncached_input, rates.uncached_input),
            (usage.cache_read, rates.cache_read),
            (usage.cache_write - usage.cache_write_1h, rates.cache_write),
            (usage.cache_write_1h, write_1h),
            (usage.output - usage.reasoning, rates.output),
            (usage.reasoning, rates.reasoning),
        )
        total = sum(count * (price / 1e9 / 1e6) for count, price in per_token) + units / 1e9 / 1e6
        return int(total * dict(call.price.multipliers).get(call.service_tier, 10**6) / 1e6 * 1e9 + 0.5)

    assert wrong(cost)


def _reading_as(other: Callable[[dict[str, Any]], tuple[dict[str, Any], Shape]], only: Shape) -> list[str]:
    """What the table finds when one shape's reports are doctored before they are read."""

    def read(report: bytes, shape: Shape) -> Reading:
        if shape != only:
            return read_usage(report, shape)
        return read_usage(*other(msgspec.json.decode(report)))

    return wrong(read=read)


def _anthropic_with_input_inclusive(report: dict[str, Any]) -> tuple[dict[str, Any], Shape]:
    usage = report.get("message", report)
    usage = dict(usage.get("usage", usage))
    cached = usage.get("cache_read_input_tokens") or 0
    return usage | {"input_tokens": max(usage["input_tokens"] - cached, 0)}, "anthropic"


def _gemini_without_thoughts(report: dict[str, Any]) -> tuple[dict[str, Any], Shape]:
    usage = report.get("usageMetadata", report)
    return {name: usage[name] for name in usage if name not in ("thoughtsTokenCount", "totalTokenCount")}, "gemini"


def _llamacpp_without_timings(report: dict[str, Any]) -> tuple[dict[str, Any], Shape]:
    return {name: report[name] for name in report if name != "timings"}, "llamacpp"


def _deepseek_without_hits(report: dict[str, Any]) -> tuple[dict[str, Any], Shape]:
    usage = report.get("usage", report)
    return {name: usage[name] for name in usage if not name.startswith("prompt_cache")}, "deepseek"


@pytest.mark.parametrize(
    ("doctored", "shape"),
    [
        (_anthropic_with_input_inclusive, "anthropic"),
        (_gemini_without_thoughts, "gemini"),
        (_llamacpp_without_timings, "llamacpp"),
        (_deepseek_without_hits, "deepseek"),
    ],
)
def test_the_table_catches_a_doctored_reading(
    doctored: Callable[[dict[str, Any]], tuple[dict[str, Any], Shape]], shape: Shape
) -> None:
    assert _reading_as(doctored, shape)


@pytest.mark.parametrize(
    ("shape", "report", "reason"),
    [
        # missing
        ("openai_chat", {}, "prompt_tokens is missing"),
        ("openai_chat", {"choices": [], "usage": None}, "usage is null"),
        ("openai_chat", {"prompt_tokens": 1}, "completion_tokens is missing"),
        ("vllm", {"prompt_tokens": None, "completion_tokens": 1}, "prompt_tokens is missing"),
        ("openai_responses", {"response": {"usage": None}}, "usage is null"),
        ("openai_responses", {"prompt_tokens": 1, "completion_tokens": 1}, "input_tokens is missing"),
        ("anthropic", {"output_tokens": 15}, "input_tokens is missing"),  # a delta that wasn't merged
        ("gemini", {"usageMetadata": {}}, "promptTokenCount is missing"),
        ("llamacpp", {"choices": []}, "prompt_tokens is missing"),
        ("llamacpp", {"timings": {"predicted_n": 1}}, "prompt_n is missing"),
        # of the wrong type
        ("openai_chat", {"prompt_tokens": "19", "completion_tokens": 1}, "prompt_tokens is not a whole number"),
        ("openai_chat", {"prompt_tokens": 19.0, "completion_tokens": 1}, "prompt_tokens is not a whole number"),
        ("openai_chat", {"prompt_tokens": True, "completion_tokens": 1}, "prompt_tokens is not a whole number"),
        ("openai_chat", {"usage": [1, 2]}, "usage is not an object"),
        (
            "vllm",
            {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": 4},
            "prompt_tokens_details is not an object",
        ),
        ("anthropic", {"input_tokens": 1, "output_tokens": 1, "cache_creation": 3}, "cache_creation is not an object"),
        ("llamacpp", {"timings": 3}, "timings is not an object"),
        # negative or absurd
        (
            "openai_chat",
            {"prompt_tokens": -1, "completion_tokens": 1},
            f"prompt_tokens of -1 is not from 0 to {TOKENS_MAX}",
        ),
        (
            "gemini",
            {"promptTokenCount": 1, "candidatesTokenCount": TOKENS_MAX + 1},
            f"candidatesTokenCount of {TOKENS_MAX + 1} is not from 0 to {TOKENS_MAX}",
        ),
        (
            "gemini",
            {"promptTokenCount": 1, "candidatesTokenCount": TOKENS_MAX, "thoughtsTokenCount": 1},
            f"1 prompt and {TOKENS_MAX + 1} output tokens are more than {TOKENS_MAX}",
        ),
        (
            "anthropic",
            {"input_tokens": -(10**5000), "output_tokens": 1},
            f"input_tokens of about -10^4983 is not from 0 to {TOKENS_MAX}",
        ),
        # parts that are more than the whole
        (
            "openai_chat",
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}},
            "6 cached tokens are more than the 5 prompt tokens",
        ),
        (
            "openai_responses",
            {
                "input_tokens": 5,
                "output_tokens": 1,
                "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 3},
            },
            "3 cached and 3 written tokens are more than the 5 prompt tokens",
        ),
        (
            "openai_chat",
            {"prompt_tokens": 5, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 2}},
            "2 reasoning tokens are more than the 1 output tokens",
        ),
        (
            "gemini",
            {"promptTokenCount": 5, "cachedContentTokenCount": 6, "toolUsePromptTokenCount": 9},
            "6 cached tokens are more than the 5 prompt tokens",
        ),
        (
            "gemini",
            {"promptTokenCount": 5, "candidatesTokenCount": 1, "thoughtsTokenCount": 2, "totalTokenCount": 6},
            "2 reasoning tokens are more than the 1 output tokens",
        ),
        # sums that contradict their parts
        (
            "openai_chat",
            {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 7},
            "a total of 7 is not 5 + 1 tokens",
        ),
        (
            "openai_responses",
            {"input_tokens": 5, "output_tokens": 1, "total_tokens": 5},
            "a total of 5 is not 5 + 1 tokens",
        ),
        (
            "gemini",
            {"promptTokenCount": 5, "candidatesTokenCount": 1, "totalTokenCount": 9},
            "a total of 9 is not 5 + 0 + 1 + 0 tokens",
        ),
        (
            "anthropic",
            {
                "input_tokens": 5,
                "output_tokens": 1,
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 4},
            },
            "9 tokens written to the cache are not 4 of 5 m and 4 of 1 h",
        ),
        (
            "deepseek",
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 4},
            "4 cache hits and 4 misses are not the 9 prompt tokens",
        ),
        (
            "deepseek",
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "prompt_tokens_details": {"cached_tokens": 5},
                "prompt_cache_hit_tokens": 4,
                "prompt_cache_miss_tokens": 5,
            },
            "4 cache hits contradict 5 cached tokens",
        ),
        (
            "llamacpp",
            {
                "usage": {"prompt_tokens": 9, "completion_tokens": 2},
                "timings": {"cache_n": 4, "prompt_n": 4, "predicted_n": 2},
            },
            "timings of 4 + 4 prompt and 2 output tokens contradict usage of 0 cached, 9 prompt and 2 output tokens",
        ),
        (
            "llamacpp",  # several choices: usage counts one of them
            {"usage": {"prompt_tokens": 9, "completion_tokens": 2}, "timings": {"prompt_n": 10, "predicted_n": 3}},
            "timings of 0 + 10 prompt and 3 output tokens contradict usage of 0 cached, 9 prompt and 2 output tokens",
        ),
    ],
)
def test_a_report_that_cannot_be_is_a_lie_and_says_why(shape: Shape, report: dict[str, Any], reason: str) -> None:
    assert read_usage(report, shape) == Lie(reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the report is not JSON"),
        (b"{", "the report is not JSON"),
        (b'{"prompt_tokens":1,"completion_tokens":"\xff"}', "the report is not JSON"),
        (b"[" * 100_000, "the report is not JSON"),
        (b'{"prompt_tokens":' + b"9" * 5000 + b"}", "the report is not JSON"),
        (b"[]", "the report is not a JSON object"),
        (b"null", "the report is not a JSON object"),
        (b"7", "the report is not a JSON object"),
    ],
)
def test_bytes_that_are_no_report_are_a_lie(data: bytes, reason: str) -> None:
    for shape in SHAPES:
        assert read_usage(data, shape) == Lie(reason)


_NAMES = (
    *("usage", "message", "response", "usageMetadata", "timings", "prompt_tokens", "completion_tokens", "total_tokens"),
    *("prompt_tokens_details", "completion_tokens_details", "cached_tokens", "cache_write_tokens", "reasoning_tokens"),
    *("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details", "cache_read_input_tokens"),
    *("cache_creation_input_tokens", "cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"),
    *("promptTokenCount", "cachedContentTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount"),
    *("toolUsePromptTokenCount", "prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "cache_n", "prompt_n"),
    *("predicted_n", "thinking_tokens"),
)
_leaves = st.none() | st.booleans() | st.integers(-2, 20) | st.integers(TOKENS_MAX - 2, TOKENS_MAX + 2)
_anything = st.recursive(
    _leaves | st.floats() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(_NAMES), inner, max_size=12) | st.lists(inner, max_size=3),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(_NAMES), _leaves | _anything, max_size=20), st.sampled_from(SHAPES))
def test_whatever_a_report_holds_it_is_usage_that_can_be_or_a_lie(report: dict[str, Any], shape: Shape) -> None:
    reading = read_usage(report, shape)
    if isinstance(reading, Lie):
        assert reading.reason
        return
    assert min(getattr(reading, name) for name in reading.__struct_fields__) >= 0
    assert reading.cache_write_1h <= reading.cache_write
    assert reading.reasoning <= reading.output
    assert max(reading.input, reading.output) <= TOKENS_MAX


START = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
    "output_tokens": 1,
}


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([], Usage(uncached_input=25, cache_read=7, cache_write=100, cache_write_1h=40, output=1)),
        (
            [{"output_tokens": 15}],
            Usage(uncached_input=25, cache_read=7, cache_write=100, cache_write_1h=40, output=15),
        ),
        (
            [
                {"output_tokens": 15, "input_tokens": None, "cache_creation_input_tokens": None},
                {"output_tokens": 503, "input_tokens": 25, "cache_creation_input_tokens": 100},
            ],
            Usage(uncached_input=25, cache_read=7, cache_write=100, cache_write_1h=40, output=503),
        ),
        (  # a server tool's results came in between: all is cumulative, and nobody said how long the new writes live
            [
                {
                    "input_tokens": 10_682,
                    "cache_creation_input_tokens": 130,
                    "cache_read_input_tokens": 9,
                    "output_tokens": 510,
                }
            ],
            Usage(uncached_input=10_682, cache_read=9, cache_write=130, output=510),
        ),
        (
            [
                {
                    "output_tokens": 5,
                    "cache_creation_input_tokens": 3,
                    "cache_creation": {"ephemeral_1h_input_tokens": 3},
                }
            ],
            Usage(uncached_input=25, cache_read=7, cache_write=3, cache_write_1h=3, output=5),
        ),
    ],
)
def test_a_streamed_message_says_what_its_last_event_says_over_the_first(
    deltas: list[dict[str, Any]], expected: Usage
) -> None:
    merged: dict[str, Any] = dict(START)
    for delta in deltas:
        merged = merge_anthropic(merged, delta)
    assert read_usage(merged, "anthropic") == expected
    assert START["output_tokens"] == 1
