from typing import Any

import msgspec
import pytest

from headwater.admin import prices
from headwater.admin.administration import Administration, Verb
from headwater.admin.books import Books, publish_prices
from headwater.admin.price_terms import PriceTerms, TierTerms, next_price_id
from headwater.admin.prices import (
    ArchivePrice,
    CreatePrice,
    ImportPrices,
    ListPrices,
    PriceView,
    ShowPrice,
    UpdatePrice,
)
from headwater.errors import OperatorError
from headwater.ledger import store
from headwater.ledger.price_list import PriceList
from headwater.money import Price, Tier
from headwater.settings.model import PriceSettings
from tests.unit.admin.conftest import Clock, RunningPlatform, changes_count, last_change

CENT = 10**7
PLAIN = PriceTerms(input="0.10", output="0.30")


def create(administration: Administration, model: str = "qwen", terms: PriceTerms = PLAIN, **fields: Any) -> PriceView:
    return administration.perform(prices.CREATE, CreatePrice(model, terms, **fields))


def update(administration: Administration, model: str = "qwen", **fields: Any) -> PriceView:
    others = {name: fields.pop(name) for name in ("effective_at_ms", "is_cost") if name in fields}
    return administration.perform(prices.UPDATE, UpdatePrice(model, PriceTerms(**fields), **others))


def in_force(administration: Administration, at_ms: int, model: str = "qwen", kind: Any = "price") -> Price | None:
    """As the hot path sees it."""
    return PriceList(administration.read(store.read_prices)).current(model, at_ms, kind)


def test_prices_not_said_follow_those_that_are(administration: Administration, live: RunningPlatform) -> None:
    view = create(administration)
    price = view.price
    assert (price.uncached_input, price.cache_read, price.cache_write, price.cache_write_1h) == (
        *(10 * CENT,) * 3,
        None,
    )
    assert (price.output, price.reasoning, price.currency) == (30 * CENT, 30 * CENT, "USD")
    assert (price.request, price.second, price.image, price.character) == (0, 0, 0, 0)
    assert (view.kind, view.source, view.state, view.is_withdrawn) == ("price", "admin", "in force", False)
    assert (view.created_at_ms, view.effective_at_ms) == (1_000_000, 1_000_000)
    assert live.told == [("set_prices", [price.id])]
    assert live.changes_seen == [1]
    assert in_force(administration, 1_000_000) == price
    assert in_force(administration, 999_999) is None
    noun, object_id, verb, detail = last_change(administration)
    assert (noun, object_id, verb, detail["model"]) == ("price", price.id, "create", "qwen")


def test_everything_a_price_can_say(administration: Administration) -> None:
    terms = PriceTerms(
        input="1",
        cached_input="0",
        cache_write="1.25",
        cache_write_1h="2",
        output="3",
        reasoning="0.000000001",
        request="10",
        second="11",
        image="12",
        character="13",
        multipliers={"batch": "0.5", "priority": "1.75", "flex": "1"},
        tiers=[TierTerms(200_000, "2", "6"), TierTerms(100_000, "1.5", "4", cached_input="0.1", reasoning="5")],
    )
    price = create(administration, terms=terms, currency="EUR").price
    assert msgspec.structs.replace(price, id="") == Price(
        id="",
        model="qwen",
        currency="EUR",
        uncached_input=100 * CENT,
        cache_read=0,
        cache_write=125 * CENT,
        cache_write_1h=200 * CENT,
        output=300 * CENT,
        reasoning=1,
        request=1000 * CENT,
        second=1100 * CENT,
        image=1200 * CENT,
        character=1300 * CENT,
        multipliers=(("batch", 500_000), ("priority", 1_750_000)),
        tiers=(
            Tier(
                above_input_tokens=100_000,
                uncached_input=150 * CENT,
                cache_read=10 * CENT,
                cache_write=150 * CENT,
                output=400 * CENT,
                reasoning=500 * CENT,
            ),
            Tier(
                above_input_tokens=200_000,
                uncached_input=200 * CENT,
                cache_read=200 * CENT,
                cache_write=200 * CENT,
                output=600 * CENT,
                reasoning=600 * CENT,
            ),
        ),
    )


def test_an_update_keeps_what_it_does_not_say(administration: Administration, clock: Clock) -> None:
    terms = PriceTerms(input="1", output="3", cached_input="0.1", multipliers={"batch": "0.5", "flex": "0.7"})
    first = create(administration, terms=terms, currency="EUR").price
    clock.now = 2_000.0
    second = update(administration, output="4", multipliers={"batch": "1"}).price
    assert second.id > first.id
    assert second == msgspec.structs.replace(
        first, id=second.id, output=400 * CENT, multipliers=(("flex", 700_000),)
    ), "reasoning too stays as it was"
    tiered = update(administration, tiers=[TierTerms(9, "2", "6")]).price
    assert [tier.above_input_tokens for tier in tiered.tiers] == [9]
    assert update(administration, input="2").price.tiers == tiered.tiers
    assert update(administration, tiers=[]).price.tiers == ()
    states = [view.state for view in administration.perform(prices.SHOW, ShowPrice("qwen"))]
    assert states == ["past"] * 4 + ["in force"]


def test_a_price_with_a_date_is_in_force_from_then_on(administration: Administration, clock: Clock) -> None:
    now = create(administration).price
    later = update(administration, output="9", effective_at_ms=5_000_000)
    assert (later.state, later.effective_at_ms) == ("scheduled", 5_000_000)
    assert in_force(administration, 4_999_999) == now
    assert in_force(administration, 5_000_000) == later.price
    assert [view.price for view in administration.perform(prices.LIST, ListPrices())] == [now]
    assert len(administration.perform(prices.LIST, ListPrices(with_all=True))) == 2
    between = update(administration, input="5").price
    assert in_force(administration, 4_999_999) == between
    assert in_force(administration, 5_000_000) == later.price
    corrected = update(administration, output="8", effective_at_ms=5_000_000).price
    assert in_force(administration, 5_000_000) == corrected
    clock.now = 5_000.0
    assert [view.price for view in administration.perform(prices.LIST, ListPrices())] == [corrected]


def test_versions_of_one_millisecond_and_of_a_clock_put_back_stay_in_order(
    administration: Administration, clock: Clock
) -> None:
    create(administration)
    ids = [update(administration, input=str(number)).price.id for number in range(1, 30)]
    assert ids == sorted(ids)
    price = in_force(administration, 1_000_000)
    assert price is not None
    assert price.uncached_input == 2900 * CENT
    assert next_price_id("prc_" + "f" * 31 + "0") == "prc_" + "f" * 31 + "1"
    assert next_price_id("prc_").startswith("prc_0")


def test_an_archived_price_is_none_and_can_be_given_again(
    administration: Administration, live: RunningPlatform, clock: Clock
) -> None:
    create(administration)
    view = administration.perform(prices.ARCHIVE, ArchivePrice("qwen", effective_at_ms=1_500_000))
    assert (view.is_withdrawn, view.state) == (True, "scheduled")
    assert in_force(administration, 1_499_999) is not None
    assert in_force(administration, 1_500_000) is None
    assert len(live.told[-1][1]) == 2
    clock.now = 1_500.0
    assert administration.perform(prices.LIST, ListPrices()) == []
    with pytest.raises(OperatorError, match="has no price"):
        update(administration, input="1")
    with pytest.raises(OperatorError, match="has no price"):
        administration.perform(prices.ARCHIVE, ArchivePrice("qwen"))
    again = create(administration, terms=PriceTerms(input="1", output="1")).price
    assert in_force(administration, 1_500_000) == again


def test_costs_stand_beside_prices(administration: Administration) -> None:
    price = create(administration, "acme/large").price
    cost = create(administration, "acme/large", PriceTerms(input="0.05", output="0.2"), is_cost=True)
    assert cost.kind == "cost"
    assert in_force(administration, 1_000_000, "acme/large") == price
    assert in_force(administration, 1_000_000, "acme/large", "cost") == cost.price
    update(administration, "acme/large", input="0.06", is_cost=True)
    assert in_force(administration, 1_000_000, "acme/large") == price
    assert len(administration.perform(prices.SHOW, ShowPrice("acme/large", is_cost=True))) == 2
    administration.perform(prices.ARCHIVE, ArchivePrice("acme/large", is_cost=True))
    assert in_force(administration, 1_000_000, "acme/large", "cost") is None
    with pytest.raises(OperatorError, match="runs here"):
        create(administration, "qwen", is_cost=True)


@pytest.mark.parametrize(
    ("model", "terms", "fields", "words"),
    [
        ("gpt", PLAIN, {}, "no model 'gpt' to price"),
        ("acme/small", PLAIN, {}, "belongs to the configuration file"),
        ("acme/small", PLAIN, {"is_cost": True}, "belongs to the configuration file"),
        ("qwen", PriceTerms(input="1"), {}, "needs --output"),
        ("qwen", PriceTerms(), {}, "needs --input and --output"),
        ("qwen", PriceTerms(input="-1", output="1"), {}, "--input can't be '-1'"),
        ("qwen", PriceTerms(input="1", output="1e9"), {}, "--output can't be"),
        ("qwen", PriceTerms(input="1", output="1000001"), {}, "--output can't be"),
        ("qwen", PriceTerms(input="1", output="1", cache_write_1h="x"), {}, "--cache-write-1h can't be"),
        ("qwen", PriceTerms(input="1", output="1", multipliers={"batch": "x"}), {}, "multiplier of 'batch'"),
        ("qwen", PriceTerms(input="1", output="1", multipliers={"batch": "0.0000001"}), {}, "6 digits"),
        ("qwen", PriceTerms(input="1", output="1", tiers=[TierTerms(0, "1", "1")]), {}, "above 1 or more"),
        ("qwen", PriceTerms(input="1", output="1", tiers=[TierTerms(5, "1", "1")] * 2), {}, "can't be"),
        ("qwen", PLAIN, {"effective_at_ms": 1_000_000}, "past is not priced again"),
        ("qwen", PLAIN, {"effective_at_ms": 10**18}, "at most 100 years"),
        ("qwen", PLAIN, {"currency": "dollar"}, "not a currency"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(
    administration: Administration,
    live: RunningPlatform,
    model: str,
    terms: PriceTerms,
    fields: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(OperatorError, match=words):
        create(administration, model, terms, **fields)
    assert administration.read(store.read_prices) == []
    assert live.told == []
    assert changes_count(administration) == 0


def test_a_second_first_price_is_refused(administration: Administration) -> None:
    made = create(administration)
    with pytest.raises(OperatorError, match="has a price already") as refused:
        create(administration)
    assert made.price.id in refused.value.why
    assert "prices update qwen" in refused.value.now
    update(administration, input="1", effective_at_ms=5_000_000)


def test_a_model_without_a_price_has_none_to_change(administration: Administration) -> None:
    create(administration)
    verbs: list[tuple[Verb[Any, Any], Any]] = [
        (prices.UPDATE, UpdatePrice("acme/large", PLAIN)),
        (prices.ARCHIVE, ArchivePrice("acme/large")),
        (prices.SHOW, ShowPrice("acme/large")),
    ]
    for verb, wish in verbs:
        with pytest.raises(OperatorError, match="'acme/large' has no price") as refused:
            administration.perform(verb, wish)
        assert "qwen" in refused.value.why


def test_what_the_file_prices_is_the_files(administration: Administration, books: Books, clock: Clock) -> None:
    settings = [PriceSettings(model="acme/small", input="1", output="2")]
    publish_prices(books, settings, currency="USD", clock=clock)
    verbs: list[tuple[Verb[Any, Any], Any]] = [
        (prices.UPDATE, UpdatePrice("acme/small", PLAIN)),
        (prices.ARCHIVE, ArchivePrice("acme/small")),
        (prices.IMPORT, ImportPrices([price("acme/small")])),
    ]
    for verb, wish in verbs:
        with pytest.raises(OperatorError, match="belongs to the configuration file") as refused:
            administration.perform(verb, wish)
        assert "[[prices]]" in refused.value.why
    [view] = administration.perform(prices.LIST, ListPrices())
    assert (view.source, view.price.uncached_input) == ("config", 100 * CENT)


def price(model: str, units: int = 1, currency: str = "USD") -> Price:
    nanos = units * 10**9
    return Price(
        id="",
        model=model,
        currency=currency,
        uncached_input=nanos,
        cache_read=nanos,
        cache_write=nanos,
        output=nanos,
        reasoning=nanos,
    )


def test_an_import_is_all_or_nothing(administration: Administration, live: RunningPlatform) -> None:
    with pytest.raises(OperatorError, match="no model 'gpt'"):
        administration.perform(prices.IMPORT, ImportPrices([price("acme/large"), price("gpt")]))
    with pytest.raises(OperatorError, match="in EUR"):
        administration.perform(prices.IMPORT, ImportPrices([price("acme/large"), price("qwen", currency="EUR")]))
    with pytest.raises(OperatorError, match="twice"):
        administration.perform(prices.IMPORT, ImportPrices([price("qwen"), price("qwen", 2)]))
    assert administration.read(store.read_prices) == []
    views = administration.perform(prices.IMPORT, ImportPrices([price("acme/large"), price("qwen", 2)]))
    assert [view.price.model for view in views] == ["acme/large", "qwen"]
    assert len({view.price.id for view in views}) == 2
    assert len(live.told) == 1
    assert last_change(administration)[2] == "import"


def test_importing_the_same_prices_again_makes_no_new_version(
    administration: Administration, live: RunningPlatform
) -> None:
    administration.perform(prices.IMPORT, ImportPrices([price("acme/large"), price("qwen")]))
    assert administration.perform(prices.IMPORT, ImportPrices([price("acme/large"), price("qwen")])) == []
    [view] = administration.perform(prices.IMPORT, ImportPrices([price("acme/large"), price("qwen", 3)]))
    assert view.price.model == "qwen"
    assert len(administration.read(store.read_prices)) == 3
    assert len(live.told) == 2
