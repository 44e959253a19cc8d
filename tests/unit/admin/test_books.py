from pathlib import Path

import pytest

from headwater.admin import prices
from headwater.admin.administration import Administration
from headwater.admin.books import Books, open_books, publish_prices
from headwater.admin.price_terms import PriceTerms
from headwater.errors import OperatorError
from headwater.ledger.price_list import PriceList
from headwater.ledger.store import PriceVersion, read_prices
from headwater.money import Price
from headwater.settings.model import CostSettings, PriceSettings
from tests.unit.admin.conftest import Clock

QWEN = PriceSettings(model="qwen", input="0.10", output="0.30")
NOW_MS = 1_000_000


def publish(books: Books, *settings: PriceSettings, currency: str = "USD", at_s: float = 1_000.0) -> None:
    clock = Clock()
    clock.now = at_s
    publish_prices(books, settings, currency=currency, clock=clock)


def price(books: Books, model: str = "qwen", at_ms: int = NOW_MS) -> Price | None:
    """The price in force."""
    return PriceList(books.read(read_prices)).current(model, at_ms)


def test_the_default_organization_and_project_are_made_once(short_path: Path, clock: Clock) -> None:
    path = short_path / "headwater.db"
    first = open_books(path, clock=clock, on_fatal=lambda _: None)
    first.close()
    again = open_books(path, clock=clock, on_fatal=lambda _: None)
    again.close()
    assert (first.organization_id, first.project_id) == (again.organization_id, again.project_id)
    assert first.organization_id.startswith("org_")
    assert first.project_id.startswith("prj_")


def test_a_file_that_is_no_ledger_is_refused(short_path: Path, clock: Clock) -> None:
    (short_path / "headwater.db").write_text("my diary")
    with pytest.raises(OperatorError):
        open_books(short_path / "headwater.db", clock=clock, on_fatal=lambda _: None)
    assert (short_path / "headwater.db").read_text() == "my diary"


def test_prices_not_said_follow_those_that_are(books: Books) -> None:
    publish(books, QWEN)
    plain = price(books)
    assert plain is not None
    assert (plain.uncached_input, plain.cache_read, plain.cache_write) == (100_000_000,) * 3
    assert (plain.output, plain.reasoning, plain.cache_write_1h, plain.request) == (300_000_000, 300_000_000, None, 0)
    settings = PriceSettings(
        model="z",
        input="1",
        cached_input="0",
        cache_write="1.25",
        cache_write_1h="2",
        output="3",
        reasoning="0.000000001",
        request="10",
    )
    publish(books, settings)
    full = price(books, "z")
    assert full is not None
    assert (full.uncached_input, full.cache_read, full.cache_write) == (10**9, 0, 1_250_000_000)
    assert (full.cache_write_1h, full.request) == (2 * 10**9, 10**10)
    assert (full.output, full.reasoning, full.currency) == (3 * 10**9, 1, "USD")


def test_the_same_price_stays_the_same_version(books: Books) -> None:
    publish(books, QWEN)
    publish(books, QWEN, at_s=2_000.0)
    publish(books, PriceSettings(model="qwen", input="0.1", output="0.300"), at_s=3_000.0)
    assert len(books.read(read_prices)) == 1


def test_another_price_or_currency_is_a_new_version_and_the_old_one_stays(books: Books) -> None:
    publish(books, QWEN)
    publish(books, PriceSettings(model="qwen", input="0.10", output="0.31"))  # in the same millisecond
    publish(books, PriceSettings(model="qwen", input="0.10", output="0.31"), currency="EUR")
    versions = books.read(read_prices)
    assert [version.price.id for version in versions] == sorted(version.price.id for version in versions)
    assert len(versions) == 3
    assert price(books) == versions[2].price
    assert versions[2].price.currency == "EUR"


def test_a_model_taken_out_of_the_configuration_has_no_price_from_now_on(books: Books) -> None:
    publish(books, QWEN)
    publish(books, at_s=2_000.0)
    assert price(books, at_ms=1_999_999) is not None
    assert price(books, at_ms=2_000_000) is None
    publish(books, at_s=3_000.0)
    assert len(books.read(read_prices)) == 2, "and is withdrawn once"
    publish(books, QWEN, at_s=4_000.0)
    assert price(books, at_ms=4_000_000) is not None


def test_costs_are_versions_beside_prices(books: Books, clock: Clock) -> None:
    cost = CostSettings(model="acme/large", input="1", output="2")
    publish_prices(
        books, [PriceSettings(model="acme/large", input="2", output="4")], [cost], currency="USD", clock=clock
    )
    known = PriceList(books.read(read_prices))
    paid, taken = (known.current("acme/large", NOW_MS, kind) for kind in ("price", "cost"))
    assert paid is not None
    assert taken is not None
    assert (paid.output, taken.output) == (4 * 10**9, 2 * 10**9)
    publish_prices(books, [PriceSettings(model="acme/large", input="2", output="4")], [], currency="USD", clock=clock)
    known = PriceList(books.read(read_prices))
    assert known.current("acme/large", NOW_MS, "price") == paid
    assert known.current("acme/large", NOW_MS, "cost") is None


def set_by_hand(at_rest: Administration, output: str, effective_at_ms: int | None = None) -> PriceVersion:
    wish = prices.CreatePrice("qwen", PriceTerms(input="1", output=output), effective_at_ms=effective_at_ms)
    made = at_rest.perform(prices.CREATE, wish)
    return next(version for version in at_rest.read(read_prices) if version.price.id == made.price.id)


def test_what_was_set_by_hand_stays_where_the_file_says_nothing(books: Books, at_rest: Administration) -> None:
    made = set_by_hand(at_rest, "9")
    publish(books)
    assert price(books) == made.price
    assert len(books.read(read_prices)) == 1


def test_the_file_prevails_over_what_was_set_by_hand_now_and_at_a_date_to_come(
    books: Books, at_rest: Administration
) -> None:
    set_by_hand(at_rest, "9", effective_at_ms=5_000_000)
    set_by_hand(at_rest, "8")
    publish(books, QWEN)
    for at_ms in (NOW_MS, 4_999_999, 5_000_000, 6_000_000):
        found = price(books, at_ms=at_ms)
        assert found is not None
        assert found.output == 300_000_000, at_ms
    publish(books, QWEN)
    assert len(books.read(read_prices)) == 4, "once is enough"
    publish(books, at_s=2_000.0)
    assert [price(books, at_ms=at_ms) for at_ms in (2_000_000, 5_000_000)] == [None, None]
