"""Sums of use over a span of time: whole hours from the hourly sums, the pieces at its ends from the records.

A request counts at the moment it ended, as it does in `usage_hours`. So the sums are the same before and after its record
was archived, and they cost as much as there are hours, not requests. An hour whose records were archived can't be cut: it
counts, whole, where it begins.
"""

from typing import Literal, NamedTuple

from headwater.ledger import store
from headwater.ledger.store import Connection
from headwater.usage import Usage

By = Literal["model", "key", "day"]
MS_PER_HOUR = 3_600_000
HOURS_PER_DAY = 24
LONG_MS = MS_PER_HOUR
"""Hardly a request takes longer; where one did, records are looked for from the beginning."""
ARCHIVED_TO = "archived_hours_to"
"""Name in `ledger_state`: every request that was archived ended before this hour (counted since the Unix epoch)."""


class Cut(NamedTuple):
    """A span as [first_hour, until_hour) of the hourly sums and pieces [from_ms, until_ms) of the records."""

    first_hour: int
    until_hour: int
    pieces: tuple[tuple[int, int], ...]


class UsageSums(NamedTuple):
    """One group's sums. cost_nanos covers priced records; unpriced_count says how many aren't in it.

    group: a model, a key's id, or a UTC day (days since the Unix epoch).
    """

    group: str | int
    requests_count: int
    ok_count: int
    unpriced_count: int
    usage: Usage
    cost_nanos: int


def cut(start_ms: int, end_ms: int, archived_to_hour: int) -> Cut:
    """How the span [start_ms, end_ms) is read. archived_to_hour: of earlier hours, records may be gone. Pure."""
    first, until = -(-start_ms // MS_PER_HOUR), end_ms // MS_PER_HOUR
    if start_ms >= end_ms:
        return Cut(first, first, ())
    if first > until:  # it begins and ends within one hour, and holds no hour's beginning
        return Cut(first, first, ((start_ms, end_ms),) if until >= archived_to_hour else ())
    pieces: list[tuple[int, int]] = []
    if start_ms < first * MS_PER_HOUR and first > archived_to_hour:
        pieces.append((start_ms, first * MS_PER_HOUR))
    if until * MS_PER_HOUR < end_ms:
        if until >= archived_to_hour:
            pieces.append((until * MS_PER_HOUR, end_ms))
        else:
            until += 1
    return Cut(first, until, tuple(pieces))


_TOKENS = ("uncached_input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning")
_SUMS = ("requests_count", "ok_count", "unpriced_count", *_TOKENS, "cost_nanos")
_OF_RECORD = ("1", "outcome = 'ok'", "cost_nanos IS NULL", *_TOKENS, "coalesce(cost_nanos, 0)")
_ENDED_MS = "(received_at_ms + duration_ms)"
_GROUPS = {
    "model": ("model", "model"),
    "key": ("key_id", "key_id"),
    "day": (f"hour / {HOURS_PER_DAY}", f"{_ENDED_MS} / {HOURS_PER_DAY * MS_PER_HOUR}"),
}
"""What a group is called in `usage_hours` and in `usage_records`."""


def read_usage(
    connection: Connection, by: By, *, start_ms: int, end_ms: int, key_id: str | None = None
) -> list[UsageSums]:
    """Sums of the requests that ended in [start_ms, end_ms), of one key or of all, by group and in the groups' order.

    Everything is read at one moment, in a transaction of its own.
    """
    connection.execute("BEGIN")
    try:
        span = cut(start_ms, end_ms, store.read_state(connection, ARCHIVED_TO) or 0)
        values: dict[str, object] = {"key_id": key_id, "first": span.first_hour, "until": span.until_hour}
        for number, (from_ms, until_ms) in enumerate(span.pieces):
            values |= {f"from{number}": from_ms, f"until{number}": until_ms}
            values[f"after{number}"] = _received_after_ms(connection, from_ms // MS_PER_HOUR, key_id)
        rows = connection.execute(_text(by, len(span.pieces), is_of_key=key_id is not None), values).fetchall()
    finally:
        connection.execute("COMMIT")
    return [
        UsageSums(group, requests, ok, unpriced, Usage(**dict(zip(_TOKENS, tokens, strict=True))), cost)
        for group, requests, ok, unpriced, *tokens, cost in rows
    ]


def _text(by: By, pieces_count: int, *, is_of_key: bool) -> str:
    """The query over the hourly sums and the pieces; all of it is made of names of ours."""
    of_hour, of_record = _GROUPS[by]
    of_key = " AND key_id = :key_id" if is_of_key else ""
    hours = (
        f"SELECT {of_hour} AS grp, {', '.join(_SUMS)} FROM usage_hours WHERE hour >= :first AND hour < :until{of_key}"  # noqa: S608
    )
    pieces = [
        f"SELECT {of_record}, {', '.join(_OF_RECORD)} FROM usage_records WHERE {_ended_within(number)}{of_key}"  # noqa: S608
        for number in range(pieces_count)
    ]
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    return f"SELECT grp, {sums} FROM ({' UNION ALL '.join([hours, *pieces])}) GROUP BY grp ORDER BY grp"  # noqa: S608


def _ended_within(number: int) -> str:
    return (
        f"received_at_ms >= :after{number} AND received_at_ms < :until{number}"
        f" AND {_ENDED_MS} >= :from{number} AND {_ENDED_MS} < :until{number}"
    )


def _received_after_ms(connection: Connection, hour: int, key_id: str | None) -> int:
    """From when on records are to be looked at, by when they were received, to see every one that ended in the hour."""
    begins_ms = hour * MS_PER_HOUR
    of_key = "" if key_id is None else " AND key_id = :key_id"
    summed = f"SELECT coalesce(sum(requests_count), 0) FROM usage_hours WHERE hour = :hour{of_key}"  # noqa: S608
    seen = f"SELECT count(*) FROM usage_records WHERE {_ended_within(0)}{of_key}"  # noqa: S608
    values = {"key_id": key_id, "hour": hour, "from0": begins_ms, "until0": begins_ms + MS_PER_HOUR}
    after_ms = begins_ms - LONG_MS
    row = connection.execute(f"SELECT ({summed}) = ({seen})", {**values, "after0": after_ms}).fetchone()
    return after_ms if row[0] else 0
