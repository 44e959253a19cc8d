from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from headwater.ledger.batch import settlement_writes
from headwater.ledger.reports import UsageSum, reader_engine, usage_by
from headwater.ledger.store import DatabaseError
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.settlements import settlement

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
DURATION_MS = 30  # of each request here; it counts when it ends


def at(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


@pytest.fixture
def engine(database: Path, writer: LedgerWriter) -> Iterator[Engine]:
    writer.start()
    for moment, model, cost, outcome in (
        (MONDAY, "m", 30, "ok"),
        (MONDAY + timedelta(days=1) - timedelta(milliseconds=1), "m", 40, "client_gone"),
        (MONDAY + timedelta(days=1), "z", 50, "ok"),
        (MONDAY + timedelta(days=1, hours=3), "free", None, "ok"),
        (MONDAY + timedelta(days=2), "m", 1_000, "ok"),  # outside
        (MONDAY - timedelta(milliseconds=1), "m", 1_000, "ok"),  # outside
    ):
        price = None if cost is None else "prc_1"
        one = settlement(
            received_at_ms=at(moment) - DURATION_MS, model=model, cost_nanos=cost, price_id=price, outcome=outcome
        )
        writer.submit(settlement_writes(one)).result(WAIT_S)
    engine = reader_engine(database)
    yield engine
    engine.dispose()


def test_sums_by_model_the_dearest_first(engine: Engine) -> None:
    assert usage_by(engine, "model", start=MONDAY, end=MONDAY + timedelta(days=2)) == [
        UsageSum("m", 2, 1, 30, 10, 14, 70, 0),
        UsageSum("z", 1, 1, 15, 5, 7, 50, 0),
        UsageSum("free", 1, 1, 15, 5, 7, 0, 1),
    ]


def test_sums_by_day_in_order(engine: Engine) -> None:
    days = usage_by(engine, "day", start=MONDAY, end=MONDAY + timedelta(days=2))
    assert [(one.group, one.requests_count, one.cost_nanos, one.unpriced_count) for one in days] == [
        ("2026-11-23", 2, 70, 0),
        ("2026-11-24", 2, 50, 1),
    ]


def test_sums_by_key_name_it_and_give_its_id(engine: Engine) -> None:
    [one] = usage_by(engine, "key", start=MONDAY, end=MONDAY + timedelta(days=2))
    assert one == UsageSum("laptop (key_1)", 4, 3, 60, 20, 28, 120, 1)


def test_an_empty_span_has_no_rows(engine: Engine) -> None:
    assert usage_by(engine, "model", start=MONDAY, end=MONDAY) == []


def test_a_report_can_not_write(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(DatabaseError, match="readonly"):
        connection.exec_driver_sql("DELETE FROM usage_records")
