"""What we say an upstream was used beside what the upstream says: figure by figure, day by day (UTC), model by model.

Ours are the attempts at targets `UPSTREAM/model`, on the day they began; of archived requests the hourly sums, on the
day they ended. Theirs is an export (`usage_export.py`).
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from headwater.ledger import store
from headwater.ledger.hours import ARCHIVED_TO
from headwater.ledger.store import Connection
from headwater.ledger.usage_export import Export, Figure, days_of

CHUNK_COUNT = 20_000
MS_PER_DAY = 86_400_000
HOURS_PER_DAY = 24

_NEXT = "SELECT id FROM attempts WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?"
_ATTEMPTS = (
    "SELECT a.started_at_ms / 86400000, substr(a.target, :skip), count(*),"
    " sum(a.uncached_input + a.cache_read + a.cache_write), sum(a.cache_read), sum(a.output),"
    " coalesce(sum(a.cost_nanos), 0), sum(a.cost_nanos IS NULL)"
    " FROM attempts a JOIN usage_records u ON u.request_id = a.request_id"
    " WHERE a.id > :after AND a.id <= :to AND substr(a.target, 1, :skip - 1) = :prefix"
    " AND a.started_at_ms >= :start AND a.started_at_ms < :end"
    " AND (u.received_at_ms + u.duration_ms) / 3600000 >= :archived_to GROUP BY 1, 2"
)
_HOURS = (
    "SELECT hour / 24, substr(model, :skip), sum(requests_count),"
    " sum(uncached_input + cache_read + cache_write), sum(cache_read), sum(output), sum(upstream_cost_nanos), 0"
    " FROM usage_hours WHERE hour >= :from_hour AND hour < :until_hour AND substr(model, 1, :skip - 1) = :prefix GROUP BY 1, 2"
)

Sums = dict[Figure, int]


class Compared(NamedTuple):
    """One day and model. ours, theirs: by figure, cost in nano-units; None on a side that doesn't know the pair.

    unpriced_count: attempts of ours whose cost isn't known, since no cost was set for the model then.
    """

    day: date
    model: str
    ours: Sums | None
    theirs: Sums | None
    unpriced_count: int

    def difference(self, figure: Figure) -> int:
        """Ours less theirs."""
        return (self.ours or {}).get(figure, 0) - (self.theirs or {}).get(figure, 0)


class Tolerance(NamedTuple):
    """How far two figures may be apart: costs by nanos, every figure by a part of the larger one."""

    nanos: int = 0
    part: Decimal = Decimal(0)

    def allows(self, one: Compared, figure: Figure) -> bool:
        """Whether the two sides are near enough."""
        ours, theirs = ((side or {}).get(figure, 0) for side in (one.ours, one.theirs))
        apart = abs(ours - theirs)
        return (figure == "cost" and apart <= self.nanos) or apart <= self.part * max(abs(ours), abs(theirs))


class Reconciled(NamedTuple):
    """The comparison. figures: those the export has. exceeding: (row, figure) beyond the tolerance."""

    rows: list[Compared]
    figures: tuple[Figure, ...]
    exceeding: list[tuple[Compared, Figure]]
    is_archived: bool

    def total(self, figure: Figure) -> tuple[int, int]:
        """(ours, theirs) of all rows."""
        return (
            sum((row.ours or {}).get(figure, 0) for row in self.rows),
            sum((row.theirs or {}).get(figure, 0) for row in self.rows),
        )


def reconcile(
    connection: Connection,
    upstream: str,
    export: Export,
    *,
    names: Mapping[str, str] | None = None,
    tolerance: Tolerance = Tolerance(),  # noqa: B008 a tuple
    chunk_count: int = CHUNK_COUNT,
) -> Reconciled:
    """Compare over the days of the export. names: models as the upstream reports them to the names we call them by."""
    theirs: dict[tuple[date, str], Sums] = {}
    for row in export.rows:
        known = theirs.setdefault((row.day, (names or {}).get(row.model, row.model)), dict.fromkeys(export.figures, 0))
        for figure in export.figures:
            known[figure] += row.figures[figure]
    first, last = days_of(export.rows)
    archived_to = store.read_state(connection, ARCHIVED_TO) or 0
    ours, unpriced = _ours(connection, upstream, first, last, archived_to, chunk_count)
    rows = [
        Compared(day, model, ours.get((day, model)), theirs.get((day, model)), unpriced.get((day, model), 0))
        for day, model in sorted(ours.keys() | theirs.keys())
    ]
    exceeding = [(row, figure) for row in rows for figure in export.figures if not tolerance.allows(row, figure)]
    is_archived = archived_to > (first - date(1970, 1, 1)).days * HOURS_PER_DAY
    return Reconciled(rows, export.figures, exceeding, is_archived)


def _ours(
    connection: Connection, upstream: str, first: date, last: date, archived_to: int, chunk_count: int
) -> tuple[dict[tuple[date, str], Sums], dict[tuple[date, str], int]]:
    """(sums, attempts without a known cost) by day and model, the model without the upstream's name."""
    start_ms, end_ms = _midnight_ms(first), _midnight_ms(last + timedelta(days=1))
    prefix = f"{upstream}/"
    about = {"prefix": prefix, "skip": len(prefix) + 1}
    found: dict[tuple[date, str], Sums] = {}
    unpriced: dict[tuple[date, str], int] = {}

    def add(rows: list[tuple[int, str, int, int, int, int, int, int]]) -> None:
        for day, model, requests, tokens, cached, output, cost, unpriced_count in rows:
            key = (date(1970, 1, 1) + timedelta(days=day), model)
            of_key = found.setdefault(key, {})
            sums: Sums = {
                "requests": requests,
                "input_tokens": tokens,
                "cached_tokens": cached,
                "output_tokens": output,
                "cost": cost,
            }
            for figure, number in sums.items():
                of_key[figure] = of_key.get(figure, 0) + number
            unpriced[key] = unpriced.get(key, 0) + unpriced_count

    first_hour, until_hour = start_ms // 3_600_000, end_ms // 3_600_000
    for hour in range(first_hour, min(until_hour, archived_to), HOURS_PER_DAY):
        until = min(hour + HOURS_PER_DAY, until_hour, archived_to)
        add(connection.execute(_HOURS, {**about, "from_hour": hour, "until_hour": until}).fetchall())
    span = {**about, "start": start_ms, "end": end_ms, "archived_to": archived_to}
    after = ""
    while True:
        row = connection.execute(_NEXT, (after, chunk_count)).fetchone()
        to = "~" if row is None else row[0]  # ids are letters, digits and _, all before ~
        add(connection.execute(_ATTEMPTS, {**span, "after": after, "to": to}).fetchall())
        if row is None:
            return found, unpriced
        after = to


def _midnight_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
