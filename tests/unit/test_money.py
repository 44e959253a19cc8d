import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from headwater.money import (
    NANOS_MAX,
    NANOS_PER_UNIT,
    NO_UNITS,
    PARTS_PER_MILLION,
    PRICE_UNITS_MAX,
    Price,
    Tier,
    Units,
    calls_cost_nanos,
    cost_nanos,
    format_nanos,
    parse_nanos,
    price_terms_json,
    with_terms,
    worst_case_nanos,
)
from headwater.usage import TOKENS_MAX, Usage


def price(uncached: int, cache_read: int, cache_write: int, output: int, reasoning: int) -> Price:
    return Price(
        id="prc_1",
        model="m",
        currency="USD",
        uncached_input=uncached,
        cache_read=cache_read,
        cache_write=cache_write,
        output=output,
        reasoning=reasoning,
    )


nanos = st.integers(0, 10**15)
prices = st.builds(price, nanos, nanos, nanos, nanos, nanos)
tokens = st.integers(0, 10**6)
percents = st.integers(0, 100)
usages = st.builds(
    lambda uncached, read, write, share_1h, output, share: Usage(
        uncached_input=uncached,
        cache_read=read,
        cache_write=write,
        cache_write_1h=write * share_1h // 100,
        output=output,
        reasoning=output * share // 100,
    ),
    *(tokens, tokens, tokens, percents, tokens, percents),
)

SERVICE_TIERS = ("standard", "batch", "flex", "priority")
service_tiers = st.sampled_from(SERVICE_TIERS)
_rates: dict[str, Any] = {
    "uncached_input": nanos,
    "cache_read": nanos,
    "cache_write": nanos,
    "cache_write_1h": st.none() | nanos,
    "output": nanos,
    "reasoning": nanos,
}
tiers = st.builds(Tier, above_input_tokens=st.integers(0, 3 * 10**6), **_rates)
rich_prices = st.builds(
    Price,
    id=st.just("prc_1"),
    model=st.just("m"),
    currency=st.just("USD"),
    **_rates,
    request=nanos,
    second=nanos,
    image=nanos,
    character=nanos,
    tiers=st.lists(tiers, max_size=3, unique_by=lambda tier: tier.above_input_tokens).map(tuple),
    multipliers=st.dictionaries(service_tiers, st.integers(0, 4 * PARTS_PER_MILLION)).map(lambda m: tuple(m.items())),
)


def _rising(costs: Price) -> Price:
    """The price with tiers that are each at least as dear as the one below."""
    below: Price | Tier = msgspec.structs.replace(costs, cache_write_1h=costs.cache_write_1h or costs.cache_write)
    tiers_so_far = []
    for tier in costs.tiers:
        raised = {name: getattr(below, name) + (getattr(tier, name) or 0) % 10**9 for name in _rates}
        below = Tier(above_input_tokens=tier.above_input_tokens, **raised)
        tiers_so_far.append(below)
    return msgspec.structs.replace(costs, tiers=tuple(tiers_so_far))


def _cacheable(costs: Price) -> Price:
    """The price with no cache read dearer than uncached input, in any tier."""

    def capped(rates: Price | Tier) -> int:
        return min(rates.cache_read, rates.uncached_input)

    tiers_capped = tuple(msgspec.structs.replace(tier, cache_read=capped(tier)) for tier in costs.tiers)
    return msgspec.structs.replace(costs, cache_read=capped(costs), tiers=tiers_capped)


rising_prices = rich_prices.map(_rising)
cacheable_prices = rich_prices.map(_cacheable)
few = st.integers(0, 1000)
units_of_use = st.builds(Units, requests=few, milliseconds=st.integers(0, 10**6), images=few, characters=few)


def moved(usage: Usage, **changes: int) -> Usage:
    """The usage with so much more (or less) of some fields."""
    return msgspec.structs.replace(usage, **{name: getattr(usage, name) + by for name, by in changes.items()})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("0.10", 100_000_000),
        ("0.1", 100_000_000),
        ("1.23", 1_230_000_000),
        ("0.000000001", 1),
        ("0.0000000010", 1),  # a tenth digit that says nothing
        ("9223372036.854775807", NANOS_MAX),
    ],
)
def test_a_decimal_string_is_read_exactly(text: str, expected: int) -> None:
    assert parse_nanos(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "ten", "1,5", "0x10", "-1", "-0.1", "nan", "inf", "-inf", "1.0000000001", "0.00000000001"),
        *("9223372036.854775808", "9999999999999", "1e400", "1.5.1", "$1"),
        # what the decimal module would take, round or choke on
        *(f"1.{'0' * 25}1", " 1 ", "1_000", "١", "1e3", "1e999999999999999999", "-0"),
    ],
)
def test_what_is_no_plain_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"decimal|digits|beyond"):
        parse_nanos(text)


@given(st.integers(0, NANOS_MAX))
def test_writing_and_reading_an_amount_gives_it_back(amount: int) -> None:
    assert parse_nanos(format_nanos(amount)) == amount


@given(st.integers(-(2**70), 2**70))
def test_a_written_amount_is_exact_and_short(amount: int) -> None:
    text = format_nanos(amount)
    whole, _, fraction = text.lstrip("-").partition(".")
    assert int(whole) * NANOS_PER_UNIT + int(fraction.ljust(9, "0") or 0) == abs(amount)
    assert text.startswith("-") == (amount < 0)
    assert not fraction.endswith("0")


def test_a_cost_worked_out_by_hand() -> None:
    # 0.10 / 0.01 / 0.125 / 0.30 / 0.60 a million: 1,000 × 0.10 + 2,000 × 0.01 + 400 × 0.125 + (300 − 100) × 0.30 + 100 × 0.60
    # = 100 + 20 + 50 + 60 + 60 = 290 units per million = 0.00029 units.
    usage = Usage(uncached_input=1000, cache_read=2000, cache_write=400, output=300, reasoning=100)
    costs = price(100_000_000, 10_000_000, 125_000_000, 300_000_000, 600_000_000)
    assert format_nanos(cost_nanos(usage, costs)) == "0.00029"


@pytest.mark.parametrize(("uncached", "expected"), [(0, 0), (1, 0), (49, 0), (50, 1), (149, 1), (150, 2), (151, 2)])
def test_a_cost_is_divided_once_and_rounded_half_up(uncached: int, expected: int) -> None:
    # at 10,000 nano-units a million tokens, a token costs a hundredth of a nano-unit
    assert cost_nanos(Usage(uncached_input=uncached), price(10_000, 0, 0, 0, 0)) == expected


def test_halves_of_two_kinds_add_up_before_they_are_rounded() -> None:
    # 0.5 + 0.5 nano-units are 1, not 2, and 0.4 + 0.4 are 1, not 0
    assert cost_nanos(Usage(uncached_input=50, output=50), price(10_000, 0, 0, 10_000, 0)) == 1
    assert cost_nanos(Usage(uncached_input=40, output=40), price(10_000, 0, 0, 10_000, 0)) == 1


def test_reasoning_is_charged_instead_of_output_not_beside_it() -> None:
    usage = Usage(output=10, reasoning=10)
    assert cost_nanos(usage, price(0, 0, 0, 5 * 10**6, 7 * 10**6)) == 70


def test_a_cost_of_63_bits_is_kept_and_one_more_is_refused() -> None:
    assert cost_nanos(Usage(output=10**6), price(0, 0, 0, NANOS_MAX, 0)) == NANOS_MAX
    with pytest.raises(OverflowError):
        cost_nanos(Usage(output=10**6, uncached_input=1), price(10**6, 0, 0, NANOS_MAX, 0))


def exact_cost(usage: Usage, costs: Price, service_tier: str, units: Units) -> int:
    """The cost before its division, in 10^-15 nano-units, written out once more."""
    exceeded = [tier for tier in costs.tiers if usage.input > tier.above_input_tokens]
    rates = exceeded[-1] if exceeded else costs
    total = (
        usage.uncached_input * rates.uncached_input
        + usage.cache_read * rates.cache_read
        + usage.cache_write * rates.cache_write
        + usage.cache_write_1h
        * ((rates.cache_write_1h or 0) - rates.cache_write if rates.cache_write_1h is not None else 0)
        + usage.output * rates.output
        + usage.reasoning * (rates.reasoning - rates.output)
        + units.requests * costs.request
        + units.images * costs.image
        + units.characters * costs.character
    ) * 1000 + units.milliseconds * costs.second
    return total * next((parts for name, parts in costs.multipliers if name == service_tier), 10**6)


@given(usages, rich_prices, service_tiers, units_of_use)
def test_a_cost_is_within_half_a_nano_unit_of_the_exact_sum_and_never_negative(
    usage: Usage, costs: Price, service_tier: str, units: Units
) -> None:
    cost = cost_nanos(usage, costs, service_tier=service_tier, units=units)
    difference = cost * 10**15 - exact_cost(usage, costs, service_tier, units)
    assert -5 * 10**14 < difference <= 5 * 10**14
    assert cost >= 0


@given(usages, cacheable_prices, service_tiers, st.integers(1, 1000))
def test_a_token_read_from_the_cache_never_makes_a_request_dearer(
    usage: Usage, costs: Price, service_tier: str, count: int
) -> None:
    assume(usage.uncached_input >= count)
    warmer = moved(usage, uncached_input=-count, cache_read=count)
    assert cost_nanos(warmer, costs, service_tier=service_tier) <= cost_nanos(usage, costs, service_tier=service_tier)


@given(usages, usages, prices)
def test_more_use_never_costs_less(usage: Usage, more: Usage, costs: Price) -> None:
    assert cost_nanos(usage + more, costs) >= cost_nanos(usage, costs)


MORE_OF_A_KIND = (
    {"uncached_input": 1},
    {"cache_read": 1},
    {"cache_write": 1},
    {"cache_write": 1, "cache_write_1h": 1},
    {"output": 1},
    {"output": 1, "reasoning": 1},
)


@given(usages, rising_prices, service_tiers, st.sampled_from(MORE_OF_A_KIND), st.integers(1, 10**6))
def test_more_of_a_kind_never_costs_less_where_a_longer_input_is_not_cheaper(
    usage: Usage, costs: Price, service_tier: str, kind: dict[str, int], count: int
) -> None:
    more = moved(usage, **dict.fromkeys(kind, count))
    assert cost_nanos(more, costs, service_tier=service_tier) >= cost_nanos(usage, costs, service_tier=service_tier)


@given(rich_prices, service_tiers, units_of_use, units_of_use)
def test_more_of_another_unit_never_costs_less(costs: Price, service_tier: str, one: Units, more: Units) -> None:
    both = Units(**{name: getattr(one, name) + getattr(more, name) for name in one.__struct_fields__})
    assert cost_nanos(Usage(), costs, service_tier=service_tier, units=both) >= cost_nanos(
        Usage(), costs, service_tier=service_tier, units=one
    )


@given(st.lists(usages, max_size=8), rich_prices, service_tiers, units_of_use)
def test_a_request_of_several_calls_costs_the_sum_of_their_exact_costs(
    calls: list[Usage], costs: Price, service_tier: str, units: Units
) -> None:
    cost = calls_cost_nanos(calls, costs, service_tier=service_tier, units=units)
    exact = sum(exact_cost(usage, costs, service_tier, NO_UNITS) for usage in calls)
    exact += exact_cost(Usage(), costs, service_tier, units)
    assert -5 * 10**14 < cost * 10**15 - exact <= 5 * 10**14
    if not costs.tiers:
        assert cost == cost_nanos(sum(calls, Usage()), costs, service_tier=service_tier, units=units)


def test_three_prompts_are_not_one_long_prompt() -> None:
    tier = Tier(above_input_tokens=200, uncached_input=9 * 10**6, cache_read=0, cache_write=0, output=0, reasoning=0)
    costs = msgspec.structs.replace(price(10**6, 0, 0, 0, 0), tiers=(tier,))
    assert calls_cost_nanos([Usage(uncached_input=100)] * 3, costs) == 300
    assert cost_nanos(Usage(uncached_input=300), costs) == 2700


def test_the_largest_threshold_exceeded_counts_for_all_of_a_request() -> None:
    def tier(above: int, nanos_a_token: int) -> Tier:
        each = nanos_a_token * 10**6
        return Tier(
            above_input_tokens=above,
            uncached_input=each,
            cache_read=each,
            cache_write=each,
            output=each,
            reasoning=each,
        )

    costs = msgspec.structs.replace(price(*[10**6] * 5), tiers=(tier(1000, 7), tier(100, 3)))
    for tokens_in, nanos_a_token in [(100, 1), (101, 3), (1000, 3), (1001, 7)]:
        for kind in ("uncached_input", "cache_read", "cache_write"):
            usage = Usage(output=10, reasoning=5, **{kind: tokens_in})
            assert cost_nanos(usage, costs) == (tokens_in + 10) * nanos_a_token
    assert cost_nanos(Usage(output=10**6), costs) == 10**6, "output doesn't lengthen the input"


def test_time_is_priced_by_the_millisecond_without_rounding_on_the_way() -> None:
    costs = msgspec.structs.replace(price(10_000, 0, 0, 0, 0), second=333_333)  # 0.333333 nano-units a second
    assert cost_nanos(Usage(), costs, units=Units(milliseconds=1500)) == 0  # 0.4999995
    assert cost_nanos(Usage(), costs, units=Units(milliseconds=1501)) == 1  # 0.50033…
    assert cost_nanos(Usage(uncached_input=49), costs, units=Units(milliseconds=31)) == 1  # 0.49 + 0.0103…


@given(rich_prices, service_tiers, st.lists(st.tuples(usages, percents), min_size=1, max_size=8), few, few)
def test_no_request_within_its_bounds_costs_more_than_the_worst_case(
    costs: Price, service_tier: str, calls: list[tuple[Usage, int]], spare: int, requests: int
) -> None:
    used = [usage for usage, _ in calls]
    worst = worst_case_nanos(
        costs,
        input_tokens=max(usage.input for usage in used) + spare,
        output_tokens=max(usage.output for usage in used),
        choices_count=len(used),
        requests=requests,
        service_tier=service_tier,
    )
    units = Units(requests=requests)
    assert calls_cost_nanos(used, costs, service_tier=service_tier, units=units) <= worst
    assert cost_nanos(used[0], costs, service_tier=service_tier, units=units) <= worst


def test_a_worst_case_worked_out_by_hand() -> None:
    tier = Tier(
        above_input_tokens=100,
        uncached_input=2 * 10**6,
        cache_read=0,
        cache_write=3 * 10**6,
        cache_write_1h=5 * 10**6,
        output=7 * 10**6,
        reasoning=6 * 10**6,
    )
    costs = msgspec.structs.replace(
        price(10**6, 0, 2 * 10**6, 4 * 10**6, 11 * 10**6),
        request=10**6,
        tiers=(tier,),
        multipliers=(("batch", 500_000), ("priority", 1_500_000)),
    )
    # below the tier: 100 × 2 (written) + 10 × 11 (reasoning) + 1
    assert worst_case_nanos(costs, input_tokens=100, output_tokens=10) == 311
    # the tier can be reached: 101 × 5 + 10 × 7 = 575, against 101 × 2 + 10 × 11 = 312 without it
    assert worst_case_nanos(costs, input_tokens=101, output_tokens=10) == 576
    # with much output the short price is the dearer one: 101 × 2 + 1,000 × 11, against 101 × 5 + 1,000 × 7
    assert worst_case_nanos(costs, input_tokens=101, output_tokens=1000) == 11_203
    assert worst_case_nanos(costs, input_tokens=100, output_tokens=10, choices_count=3, requests=1) == 931
    assert worst_case_nanos(costs, input_tokens=100, output_tokens=10, service_tier="batch") == 311, "no discount"
    assert worst_case_nanos(costs, input_tokens=100, output_tokens=10, service_tier="priority") == 467  # 466.5, up
    assert worst_case_nanos(price(1, 0, 0, 0, 0), input_tokens=1, output_tokens=0) == 1, "a millionth is reserved as 1"
    assert worst_case_nanos(costs, input_tokens=0, output_tokens=0, requests=0) == 0


def test_a_worst_case_beyond_63_bits_is_refused() -> None:
    dearest = price(*[PRICE_UNITS_MAX * NANOS_PER_UNIT] * 5)
    assert worst_case_nanos(dearest, input_tokens=TOKENS_MAX, output_tokens=TOKENS_MAX) == TOKENS_MAX * 2 * 10**9
    with pytest.raises(OverflowError):
        worst_case_nanos(dearest, input_tokens=TOKENS_MAX, output_tokens=TOKENS_MAX, choices_count=3)


def test_the_dearest_call_at_twice_the_dearest_price_fits_63_bits() -> None:
    dearest = msgspec.structs.replace(
        price(*[PRICE_UNITS_MAX * NANOS_PER_UNIT] * 5), multipliers=(("priority", 2 * PARTS_PER_MILLION),)
    )
    usage = Usage(uncached_input=TOKENS_MAX, output=TOKENS_MAX)
    assert cost_nanos(usage, dearest, service_tier="priority") == TOKENS_MAX * 4 * 10**9 <= NANOS_MAX


@given(rich_prices)
@example(price(1, 2, 3, 4, 5))
def test_terms_survive_being_written_and_read(costs: Price) -> None:
    text = price_terms_json(costs)
    plain = price(costs.uncached_input, costs.cache_read, costs.cache_write, costs.output, costs.reasoning)
    assert with_terms(plain, text) == costs
    assert with_terms(costs, text) == costs
    assert with_terms(costs, None) == plain
    assert (text is None) == (costs == plain)
    if text is not None:
        assert not [number for number in _numbers(json.loads(text)) if type(number) is not int]


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in _numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in _numbers(inner)]
    return [] if value is None else [value]


def test_terms_as_they_are_written() -> None:
    costs = msgspec.structs.replace(
        price(3, 0, 4, 15, 15), cache_write_1h=6, request=5, multipliers=(("priority", 2_000_000), ("batch", 500_000))
    )
    assert price_terms_json(costs) == (
        '{"cache_write_1h":6,"request":5,"multipliers":{"batch":500000,"priority":2000000}}'
    )
    assert with_terms(price(3, 0, 4, 15, 15), '{ "request": 5 }').request == 5


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "7",
            "{",
            '{"request":1.5}',
            '{"request":"1"}',
            '{"request":-1}',
            '{"requests":1}',
            '{"image":1e3}',
        ),
        *(
            '{"multipliers":{"batch":-1}}',
            '{"multipliers":{"batch":0.5}}',
            '{"tiers":[{}]}',
            '{"request":9223372036854775808}',
        ),
        '{"tiers":[{"above_input_tokens":-1,"uncached_input":1,"cache_read":1,"cache_write":1,"output":1,"reasoning":1}]}',
    ],
)
def test_terms_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"terms of price prc_1|nano-units|multiplier"):
        with_terms(price(1, 1, 1, 1, 1), text)


def test_a_price_that_cannot_be_is_refused() -> None:
    tier = Tier(above_input_tokens=1, uncached_input=1, cache_read=1, cache_write=1, output=1, reasoning=1)
    with pytest.raises(ValueError, match="output of -1"):
        price(1, 1, 1, -1, 1)
    with pytest.raises(ValueError, match="same number of input tokens"):
        msgspec.structs.replace(price(1, 1, 1, 1, 1), tiers=(tier, tier))
    with pytest.raises(ValueError, match="same service tier"):
        msgspec.structs.replace(price(1, 1, 1, 1, 1), multipliers=(("batch", 1), ("batch", 2)))


def test_prices_that_say_the_same_in_another_order_are_equal() -> None:
    def tier(above: int) -> Tier:
        return Tier(above_input_tokens=above, uncached_input=1, cache_read=1, cache_write=1, output=1, reasoning=1)

    one = msgspec.structs.replace(price(1, 1, 1, 1, 1), tiers=(tier(9), tier(5)), multipliers=(("b", 1), ("a", 2)))
    other = msgspec.structs.replace(price(1, 1, 1, 1, 1), tiers=(tier(5), tier(9)), multipliers=(("a", 2), ("b", 1)))
    assert one == other
    assert one.tiers == (tier(5), tier(9))
