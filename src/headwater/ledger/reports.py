"""Sums over usage records for people, read beside the running platform on a connection that can't write.

Read in one pass with the database's own aggregation; each report is one statement and so sees one moment.
"""

from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy import Integer, case, cast, create_engine, func, select
from sqlalchemy.engine import Engine

from headwater.ledger.schema import api_keys, usage_records
from headwater.ledger.store import open_reader

By = Literal["model", "key", "day"]


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
    """Sums of the records received in [start, end), by model, key (name and id) or UTC day; largest cost first, days in order."""
    records = usage_records.c
    day = func.strftime("%Y-%m-%d", cast(records.received_at_ms / 1000, Integer), "unixepoch")
    group = {"model": records.model, "key": api_keys.c.name + " (" + records.key_id + ")", "day": day}[by]
    query = (
        select(
            group.label("grp"),
            func.count(),
            func.sum(case((records.outcome == "ok", 1), else_=0)),
            func.sum(records.uncached_input + records.cache_read + records.cache_write),
            func.sum(records.cache_read),
            func.sum(records.output),
            func.coalesce(func.sum(records.cost_nanos), 0).label("cost"),
            func.sum(case((records.cost_nanos.is_(None), 1), else_=0)),
        )
        .select_from(usage_records.join(api_keys, api_keys.c.id == records.key_id))
        .where(records.received_at_ms >= int(start.timestamp() * 1000))
        .where(records.received_at_ms < int(end.timestamp() * 1000))
        .group_by("grp")
        .order_by("grp" if by == "day" else func.sum(records.cost_nanos).desc(), "grp")
    )
    with engine.connect() as connection:
        return [UsageSum(*row) for row in connection.execute(query)]
