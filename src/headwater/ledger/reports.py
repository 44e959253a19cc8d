"""Sums over use for people, read beside the running platform on a connection that can't write.

A request counts at the moment it ended (`hours.py`): the sums are the same whether its record is in the database still or
was archived.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import create_engine
from sqlalchemy.engine import Engine

from headwater.ledger.hours import By, read_usage
from headwater.ledger.store import Connection, open_reader

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UsageSum(NamedTuple):
    """One group's sums. cost_nanos covers priced records; unpriced_count says how many aren't in it."""

    group: str
    requests_count: int
    ok_count: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost_nanos: int
    unpriced_count: int


def reader_engine(database: Path) -> Engine:
    """A read-only SQLAlchemy engine on the platform's database."""
    return create_engine("sqlite://", creator=lambda: open_reader(database))


def usage_by(engine: Engine, by: By, *, start: datetime, end: datetime) -> list[UsageSum]:
    """Sums of the requests that ended in [start, end), by model, key (name and id) or UTC day; the dearest first, days in order."""
    with engine.connect() as borrowed:
        connection = borrowed.connection.driver_connection
        assert connection is not None
        found = read_usage(connection, by, start_ms=_milliseconds(start), end_ms=_milliseconds(end))
        names = _key_names(connection) if by == "key" else {}
    sums = [
        UsageSum(
            group=_group(by, one.group, names),
            requests_count=one.requests_count,
            ok_count=one.ok_count,
            input_tokens=one.usage.input,
            cached_input_tokens=one.usage.cache_read,
            output_tokens=one.usage.output,
            cost_nanos=one.cost_nanos,
            unpriced_count=one.unpriced_count,
        )
        for one in found
    ]
    return sums if by == "day" else sorted(sums, key=lambda one: (-one.cost_nanos, one.group))


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _group(by: By, group: str | int, names: dict[str, str]) -> str:
    if by == "day":
        return (EPOCH + timedelta(days=int(group))).date().isoformat()
    return f"{names.get(str(group), 'unknown')} ({group})" if by == "key" else str(group)


def _key_names(connection: Connection) -> dict[str, str]:
    return {key_id: name for key_id, name in connection.execute("SELECT id, name FROM api_keys")}  # noqa: C416
