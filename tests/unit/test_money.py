import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headwater.money import NANOS_MAX, NANOS_PER_UNIT, Price, cost_nanos, format_nanos, parse_nanos
from headwater.usage import Usage


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
usages = st.builds(
    lambda uncached, read, write, output, share: Usage(
        uncached_input=uncached, cache_read=read, cache_write=write, output=output, reasoning=output * share // 100
    ),
    *(tokens, tokens, tokens, tokens, st.integers(0, 100)),
)


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


@given(usages, prices)
def test_a_cost_is_within_half_a_nano_unit_of_the_exact_sum(usage: Usage, costs: Price) -> None:
    exact_millionths = (
        usage.uncached_input * costs.uncached_input
        + usage.cache_read * costs.cache_read
        + usage.cache_write * costs.cache_write
        + (usage.output - usage.reasoning) * costs.output
        + usage.reasoning * costs.reasoning
    )
    difference = cost_nanos(usage, costs) * 10**6 - exact_millionths
    assert -500_000 < difference <= 500_000


@given(usages, prices, st.integers(1, 1000))
def test_a_token_read_from_the_cache_never_makes_a_request_dearer(usage: Usage, costs: Price, moved: int) -> None:
    assume(costs.cache_read <= costs.uncached_input)
    assume(usage.uncached_input >= moved)
    warmer = Usage(
        uncached_input=usage.uncached_input - moved,
        cache_read=usage.cache_read + moved,
        cache_write=usage.cache_write,
        output=usage.output,
        reasoning=usage.reasoning,
    )
    assert cost_nanos(warmer, costs) <= cost_nanos(usage, costs)


@given(usages, usages, prices)
def test_more_use_never_costs_less(usage: Usage, more: Usage, costs: Price) -> None:
    assert cost_nanos(usage + more, costs) >= cost_nanos(usage, costs)
