import time
from pathlib import Path

import pytest

from headwater.admin.books import Books, open_books, publish_prices
from headwater.errors import OperatorError
from headwater.ledger.store import open_reader, read_latest_prices
from headwater.money import Price
from headwater.settings.model import PriceSettings
from tests.unit.admin.conftest import Clock

QWEN = PriceSettings(model="qwen", input="0.10", output="0.30")


def publish(books: Books, *settings: PriceSettings, currency: str = "USD") -> dict[str, Price]:
    """Publish in a millisecond of its own, as starts of a platform do: ids sort by time only that finely."""
    now_ms = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == now_ms:
        pass
    return publish_prices(books, settings, currency=currency, clock=Clock())


def stored_count(books: Books) -> int:
    reader = open_reader(books.database)
    count: int = reader.execute("SELECT count(*) FROM prices").fetchone()[0]
    reader.close()
    return count


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
    price = publish(books, QWEN)["qwen"]
    assert (price.uncached_input, price.cache_read, price.cache_write) == (100_000_000,) * 3
    assert (price.output, price.reasoning) == (300_000_000,) * 2
    full = PriceSettings(
        model="z", input="1", cached_input="0", cache_write="1.25", output="3", reasoning="0.000000001"
    )
    price = publish(books, full)["z"]
    assert (price.uncached_input, price.cache_read, price.cache_write) == (10**9, 0, 1_250_000_000)
    assert (price.output, price.reasoning, price.currency) == (3 * 10**9, 1, "USD")


def test_the_same_price_stays_the_same_version(books: Books) -> None:
    first = publish(books, QWEN)
    assert publish(books, QWEN) == first
    assert publish(books, PriceSettings(model="qwen", input="0.1", output="0.300")) == first
    assert stored_count(books) == 1


def test_another_price_or_currency_is_a_new_version_and_the_old_one_stays(books: Books) -> None:
    old = publish(books, QWEN)["qwen"]
    dearer = publish(books, PriceSettings(model="qwen", input="0.10", output="0.31"))["qwen"]
    assert dearer.id > old.id
    euros = publish(books, PriceSettings(model="qwen", input="0.10", output="0.31"), currency="EUR")["qwen"]
    assert euros.id > dearer.id
    assert stored_count(books) == 3
    reader = open_reader(books.database)
    assert read_latest_prices(reader) == [euros]
    reader.close()


def test_a_model_taken_out_of_the_configuration_has_no_price_from_now_on(books: Books) -> None:
    publish(books, QWEN)
    assert publish(books) == {}
    assert stored_count(books) == 1
