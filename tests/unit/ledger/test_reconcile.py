"""Our attempts beside an upstream's export: nothing differs where they agree, and each difference is named."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from headwater.ledger.archive import Archiver
from headwater.ledger.reconcile import Tolerance, reconcile
from headwater.ledger.store import Connection, open_reader, open_writer
from headwater.ledger.usage_export import FIGURES, Export, ExportRow
from headwater.ledger.writer import LedgerWriter
from headwater.usage import Usage
from tests.unit.ledger import books

HEAD = "date,model,requests,input_tokens,cached_tokens,output_tokens,cost\n"


@pytest.fixture
def database(template: bytes, tmp_path: Path) -> Path:
    """Books with 3 calls of acme/large a day over three days, and some of other targets."""
    path = tmp_path / "calls.db"
    path.write_bytes(template)
    till = books.open_till(path)
    for _ in range(9):
        usage = Usage(uncached_input=100, cache_read=50, output=30)
        held = till.reserve("key_1", "org_1", model="acme/large", price=books.UPSTREAM, amount_nanos=10**6)
        till.settle(held, usage, upstream_cost=books.COST, target="acme/large")
        held = till.reserve("key_1", "org_1", model="acme-2/large", price=books.UPSTREAM, amount_nanos=10**6)
        till.settle(held, usage, upstream_cost=books.COST, target="acme-2/large")
        till.now_ms += books.DAY_MS // 3
    till.__exit__(None, None, None)
    return path


@pytest.fixture
def connection(database: Path) -> Iterator[Connection]:
    connection = open_reader(database)
    yield connection
    connection.close()


def export(*, cost: int = 3 * 17_550, output: int = 90, days: int = 3, model: str = "large") -> Export:
    """What the upstream says of each day; by default the truth."""
    first = datetime.fromtimestamp(books.BEGAN_MS / 1000, UTC).date()
    figures = {"requests": 3, "input_tokens": 450, "cached_tokens": 150, "output_tokens": output, "cost": cost}
    rows = [
        ExportRow(date.fromordinal(first.toordinal() + day), model, {figure: figures[figure] for figure in FIGURES})
        for day in range(days)
    ]
    return Export(rows, FIGURES)


def test_nothing_differs_where_both_say_the_same(connection: Connection) -> None:
    result = reconcile(connection, "acme", export(), chunk_count=2)
    assert result.exceeding == []
    assert len(result.rows) == 3
    assert all(row.ours == row.theirs for row in result.rows)
    assert result.total("cost") == (9 * 17_550, 9 * 17_550)
    assert result.total("requests") == (9, 9)
    assert sum(row.unpriced_count for row in result.rows) == 0


@pytest.mark.parametrize(
    ("claimed", "figure", "difference"),
    [({"cost": 3 * 17_550 + 1}, "cost", -1), ({"output": 89}, "output_tokens", 1)],
)
def test_the_smallest_difference_is_named_by_day_and_model(
    connection: Connection, claimed: dict[str, int], figure: str, difference: int
) -> None:
    result = reconcile(connection, "acme", export(**claimed))  # type: ignore[arg-type]
    assert [(row.day.isoformat(), row.model, named) for row, named in result.exceeding] == [
        (f"2026-11-0{day}", "large", figure) for day in (6, 7, 8)
    ]
    assert {row.difference(named) for row, named in result.exceeding} == {difference}


def test_a_day_one_side_does_not_know_differs(connection: Connection) -> None:
    more = reconcile(connection, "acme", export(days=4))
    assert {row.day.day for row, _ in more.exceeding} == {9}
    assert more.rows[-1].ours is None
    fewer = reconcile(connection, "acme", export(days=2))
    assert fewer.exceeding == []
    assert len(fewer.rows) == 2  # days outside the export are not its business


def test_a_model_of_another_name_can_be_named(connection: Connection) -> None:
    foreign = export(model="large-2026-01-01")
    assert len(reconcile(connection, "acme", foreign).exceeding) == 6 * len(FIGURES)
    assert reconcile(connection, "acme", foreign, names={"large-2026-01-01": "large"}).exceeding == []


def test_an_upstream_nobody_called_has_nothing(connection: Connection) -> None:
    assert all(row.ours is None for row in reconcile(connection, "acm", export()).rows)


def test_calls_without_a_known_cost_are_counted(database: Path) -> None:
    writer = open_writer(database)
    writer.execute("DROP TRIGGER attempts_are_never_changed")
    writer.execute("UPDATE attempts SET cost_id = NULL, cost_nanos = NULL WHERE id = (SELECT min(id) FROM attempts)")
    writer.close()
    connection = open_reader(database)
    result = reconcile(connection, "acme", export())
    assert [row.unpriced_count for row in result.rows] == [1, 0, 0]
    assert [figure for _, figure in result.exceeding] == ["cost"]
    connection.close()


@pytest.mark.parametrize(
    ("tolerance", "cost", "is_allowed"),
    [
        (Tolerance(), 0, True),
        (Tolerance(), 1, False),
        (Tolerance(nanos=10), 10, True),
        (Tolerance(nanos=10), 11, False),
        (Tolerance(part=Decimal("0.01")), 531, True),
        (Tolerance(part=Decimal("0.01")), 533, False),
    ],
)
def test_a_tolerance_allows_so_much_and_no_more(
    connection: Connection, tolerance: Tolerance, cost: int, is_allowed: bool
) -> None:
    result = reconcile(connection, "acme", export(cost=3 * 17_550 + cost), tolerance=tolerance)
    assert (result.exceeding == []) is is_allowed


def test_an_amount_does_not_excuse_tokens_and_a_part_does(connection: Connection) -> None:
    assert reconcile(connection, "acme", export(output=89), tolerance=Tolerance(nanos=10**9)).exceeding
    assert not reconcile(connection, "acme", export(output=89), tolerance=Tolerance(part=Decimal("0.02"))).exceeding


class _Clock:
    def now_s(self) -> float:
        return (books.BEGAN_MS + 3 * books.DAY_MS) / 1000


def test_archived_calls_are_compared_by_their_hourly_sums(connection: Connection, database: Path) -> None:
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    writer.start()
    archived = asyncio.run(Archiver(database, writer, database.parent / "archives", 1.0, _Clock()).run_once())
    writer.close()
    assert archived.requests_count > 5
    result = reconcile(connection, "acme", export(), chunk_count=2)
    assert result.is_archived
    assert result.exceeding == []
