"""Which price is in force at a moment."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headwater.ledger import store
from headwater.ledger.price_list import PriceList
from headwater.ledger.store import Connection, PriceKind, PriceVersion
from headwater.ledger.writer import LedgerWriter
from headwater.money import Price
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.settlements import PRICE


def version(
    number: int,
    effective_at_ms: int,
    *,
    model: str = "m",
    kind: PriceKind = "price",
    is_withdrawn: bool = False,
) -> PriceVersion:
    """Ids ascend in the order the versions were made."""
    price = msgspec.structs.replace(PRICE, id=f"prc_{number:03}", model=model, output=number)
    return PriceVersion(price, effective_at_ms, kind, effective_at_ms, "admin", is_withdrawn)


def name(price: Price | None) -> str | None:
    return None if price is None else price.id


def test_a_version_is_in_force_until_the_next_ones_date() -> None:
    prices = PriceList([version(1, 100), version(2, 200), version(3, 300)])
    moments = [99, 100, 199, 200, 299, 300, 10**15]
    assert [name(prices.current("m", at)) for at in moments] == [
        *(None, "prc_001", "prc_001"),
        *("prc_002", "prc_002", "prc_003", "prc_003"),
    ]


def test_a_clock_that_is_put_back_finds_the_earlier_version_again() -> None:
    prices = PriceList([version(1, 100), version(2, 200)])
    assert name(prices.current("m", 250)) == "prc_002"
    assert name(prices.current("m", 150)) == "prc_001"
    assert name(prices.current("m", 50)) is None
    assert name(prices.current("m", 250)) == "prc_002"


def test_of_two_with_one_date_the_later_made_counts() -> None:
    assert name(PriceList([version(2, 100), version(1, 100)]).current("m", 100)) == "prc_002"


def test_a_planned_version_takes_effect_though_another_was_made_after_it() -> None:
    prices = PriceList([version(1, 100), version(2, 500), version(3, 200)])
    assert [name(prices.current("m", at)) for at in (150, 200, 499, 500)] == [
        "prc_001",
        "prc_003",
        "prc_003",
        "prc_002",
    ]


def test_after_a_withdrawal_there_is_no_price_until_there_is_one_again() -> None:
    gone = version(2, 200, is_withdrawn=True)
    prices = PriceList([version(1, 100), gone, version(3, 300)])
    assert [name(prices.current("m", at)) for at in (199, 200, 299, 300)] == ["prc_001", None, None, "prc_003"]
    assert prices.in_force("m", 250) == gone
    assert prices.in_force("m", 99) is None


def test_prices_and_costs_and_models_are_apart() -> None:
    prices = PriceList([version(1, 100), version(2, 100, kind="cost"), version(3, 100, model="n")])
    assert name(prices.current("m", 150)) == "prc_001"
    assert name(prices.current("m", 150, kind="cost")) == "prc_002"
    assert name(prices.current("n", 150)) == "prc_003"
    assert prices.current("n", 150, kind="cost") is None
    assert prices.current("unknown", 150) is None


def test_a_route_without_a_price_of_its_own_has_its_first_targets() -> None:
    prices = PriceList([version(1, 100), version(2, 200)], stand_ins={"route": "m", "priced": "m"})
    assert [name(prices.current("route", at)) for at in (99, 100, 200)] == [None, "prc_001", "prc_002"]
    assert prices.current("route", 200, kind="cost") is None, "costs are of what was called"
    prices.load([version(1, 100), version(3, 100, model="priced"), version(4, 200, model="priced", is_withdrawn=True)])
    assert name(prices.current("priced", 100)) == "prc_003"
    assert prices.current("priced", 200) is None, "withdrawn is a price of its own too: none"
    prices.stand_in({})
    assert prices.current("route", 100) is None


def test_loading_replaces_everything_that_was_known() -> None:
    prices = PriceList([version(1, 100)])
    assert name(prices.current("m", 150)) == "prc_001"
    prices.load([version(2, 120), version(3, 100, model="n")])
    assert name(prices.current("m", 150)) == "prc_002"
    assert name(prices.current("m", 110)) is None
    assert name(prices.current("n", 150)) == "prc_003"
    assert prices.version("prc_001") is None
    assert name(prices.version("prc_003")) == "prc_003"
    prices.load([])
    assert prices.current("m", 150) is None


def test_a_model_that_had_no_price_has_one_once_it_is_loaded() -> None:
    prices = PriceList()
    assert prices.current("m", 150) is None
    prices.load([version(1, 100)])
    assert name(prices.current("m", 150)) == "prc_001"


@given(
    made=st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["m", "n"]), st.sampled_from(["price", "cost"]), st.booleans()),
        max_size=12,
    ),
    asked=st.lists(
        st.tuples(st.sampled_from(["m", "n"]), st.sampled_from(["price", "cost"]), st.integers(0, 22)), max_size=30
    ),
)
def test_whatever_was_asked_before_the_answer_is_the_plain_one(
    made: list[tuple[int, str, PriceKind, bool]], asked: list[tuple[str, PriceKind, int]]
) -> None:
    versions = [
        version(number, at, model=model, kind=kind, is_withdrawn=gone)
        for number, (at, model, kind, gone) in enumerate(made)
    ]
    prices = PriceList(reversed(versions))
    for model, kind, now_ms in asked:
        past = [
            one for one in versions if (one.price.model, one.kind) == (model, kind) and one.effective_at_ms <= now_ms
        ]
        best = max(past, key=lambda one: (one.effective_at_ms, one.price.id), default=None)
        wanted = None if best is None or best.is_withdrawn else best.price
        assert prices.current(model, now_ms, kind) == wanted
        assert prices.in_force(model, now_ms, kind) == best


def test_versions_come_back_from_the_disk_as_they_were(writer: LedgerWriter, reader: Connection) -> None:
    dear = msgspec.structs.replace(PRICE, id="prc_2", request=5, cache_write_1h=7, multipliers=(("batch", 500_000),))
    writer.start()
    writer.submit([store.price_write(dear, 2_000, kind="cost", effective_at_ms=9_000, is_withdrawn=True)]).result(
        WAIT_S
    )
    first, second = store.read_prices(reader)
    assert first == PriceVersion(PRICE, 1_000, "price", 1_000, "config", is_withdrawn=False)
    assert second == PriceVersion(dear, 2_000, "cost", 9_000, "config", is_withdrawn=True)
