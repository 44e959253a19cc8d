"""All SQL of rate limits and weights, named and fixed: what an operator sets, and what windows under way have used.

Statements are written through the one writer (`writer.py`) and rank after those of `admin_store.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from headwater.ledger.store import Connection, Statement, Write

LimitScope = Literal["organization", "project", "key", "model"]


class LimitRow(NamedTuple):
    """A rate limit; what it doesn't limit is None.

    organization_id: None for a model's, which everybody shares. scope_id: the id of what is limited; for a model its name.
    model: only requests to it count; None: to every model. tokens: of prompts and outputs together.
    """

    id: str
    organization_id: str | None
    scope: LimitScope
    scope_id: str
    model: str | None
    requests_per_minute: int | None
    requests_per_hour: int | None
    requests_per_day: int | None
    tokens_per_minute: int | None
    tokens_per_hour: int | None
    tokens_per_day: int | None
    concurrency_max: int | None
    created_at_ms: int
    archived_at_ms: int | None = None


LIMITS = LimitRow._fields[5:12]
"""The columns that limit something."""

_COLUMNS = ", ".join(LimitRow._fields)
INSERT_LIMIT = Statement(
    "insert_limit",
    113,
    f"INSERT INTO rate_limits ({_COLUMNS}) VALUES ({', '.join('?' * len(LimitRow._fields))})",  # noqa: S608 names are ours
)
UPDATE_LIMIT = Statement(
    "update_limit",
    114,
    f"UPDATE rate_limits SET {', '.join(f'{name} = ?{number}' for number, name in enumerate(LIMITS, 2))}"  # noqa: S608
    " WHERE id = ?1 AND archived_at_ms IS NULL",
)
# Archiving twice keeps the first time.
ARCHIVE_LIMIT = Statement(
    "archive_limit", 115, "UPDATE rate_limits SET archived_at_ms = ?2 WHERE id = ?1 AND archived_at_ms IS NULL"
)
SET_ORGANIZATION_WEIGHT = Statement(
    "set_organization_weight", 116, "UPDATE organizations SET weight = ?2 WHERE id = ?1"
)
SET_KEY_WEIGHT = Statement("set_key_weight", 117, "UPDATE api_keys SET weight = ?2 WHERE id = ?1")

SELECT_LIMITS_ALL = f"SELECT {_COLUMNS} FROM rate_limits ORDER BY id"  # noqa: S608
SELECT_LIMITS_IN_FORCE = f"SELECT {_COLUMNS} FROM rate_limits WHERE archived_at_ms IS NULL ORDER BY id"  # noqa: S608
SELECT_LIMIT = f"SELECT {_COLUMNS} FROM rate_limits WHERE id = ?"  # noqa: S608
SELECT_ORGANIZATION_WEIGHTS = "SELECT id, weight FROM organizations WHERE weight <> 1"
SELECT_KEY_WEIGHTS = "SELECT id, weight FROM api_keys WHERE weight <> 1"
# What was asked for and refused is not used. Windows are those of the moment a request was received.
_USED = (
    "SELECT count(*), coalesce(sum(uncached_input + cache_read + cache_write + output), 0) FROM usage_records"
    " WHERE received_at_ms >= ?2 AND received_at_ms < ?3 AND outcome <> 'rejected' AND (?4 IS NULL OR model = ?4)"
)
SELECT_USED: Mapping[LimitScope, str] = {
    "organization": f"{_USED} AND organization_id = ?1",
    "project": f"{_USED} AND project_id = ?1",
    "key": f"{_USED} AND key_id = ?1",
    "model": f"{_USED} AND model = ?1",
}


SELECT_USED_BY_ALL = (
    "SELECT organization_id, project_id, model, count(*),"
    " coalesce(sum(uncached_input + cache_read + cache_write + output), 0) FROM usage_records"
    " WHERE received_at_ms >= ?1 AND received_at_ms < ?2 AND outcome <> 'rejected' GROUP BY 1, 2, 3"
)


class WindowUse(NamedTuple):
    """What one limit's window has used of both."""

    requests: int
    tokens: int


def insert_limit(row: LimitRow) -> Write:
    """The row of a new limit."""
    return Write(INSERT_LIMIT, row)


def update_limit(row: LimitRow) -> Write:
    """The limits of one that exists, as they are from now on."""
    return Write(UPDATE_LIMIT, (row.id, *row[5:12]))


def read_limits(connection: Connection, *, with_archived: bool = False) -> list[LimitRow]:
    """Every limit in force, oldest first; with_archived: those that are lifted too."""
    text = SELECT_LIMITS_ALL if with_archived else SELECT_LIMITS_IN_FORCE
    return [LimitRow(*row) for row in connection.execute(text)]


def find_limit(connection: Connection, limit_id: str) -> LimitRow | None:
    """The limit with this id."""
    row = connection.execute(SELECT_LIMIT, (limit_id,)).fetchone()
    return None if row is None else LimitRow(*row)


def read_used(connection: Connection, limit: LimitRow, starts_ms: int, ends_ms: int) -> WindowUse:
    """What counts of [starts_ms, ends_ms) against a limit; what came before the limit was made doesn't."""
    given = (limit.scope_id, max(starts_ms, limit.created_at_ms), ends_ms, limit.model)
    requests, tokens = connection.execute(SELECT_USED[limit.scope], given).fetchone()
    return WindowUse(int(requests), int(tokens))


class SharedUse(NamedTuple):
    """What the keys of one project have used of one model in some window."""

    organization_id: str
    project_id: str
    model: str
    requests: int
    tokens: int


def read_used_by_all(connection: Connection, starts_ms: int, ends_ms: int) -> list[SharedUse]:
    """What everybody used in [starts_ms, ends_ms), in one pass over its records, through the index by time."""
    return [SharedUse(*row) for row in connection.execute(SELECT_USED_BY_ALL, (starts_ms, ends_ms))]


def read_organization_weights(connection: Connection) -> dict[str, int]:
    """The weights of organizations that weigh more than 1."""
    return _weights(connection.execute(SELECT_ORGANIZATION_WEIGHTS))


def read_key_weights(connection: Connection) -> dict[str, int]:
    """The weights of keys that weigh more than 1."""
    return _weights(connection.execute(SELECT_KEY_WEIGHTS))


def _weights(rows: Iterable[tuple[str, int]]) -> dict[str, int]:
    return {row[0]: int(row[1]) for row in rows}
