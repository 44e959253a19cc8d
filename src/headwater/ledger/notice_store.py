"""SQL of the notices: which a receiver is to be sent, and how a try went. Written through the one writer (`writer.py`).

A notice is one row for each receiver, named by the first word of its subject (`gateway/notices.py`).
"""

from typing import NamedTuple

from headwater.ledger.rows import NoticeRow
from headwater.ledger.store import Connection, Statement

# next_try_at_ms NULL: nothing more is tried, it was delivered or given up.
RECORD_TRY = Statement(
    "record_notice_try",
    300,
    "UPDATE notices SET tries_count = ?2, next_try_at_ms = ?3, delivered_at_ms = ?4, failure = ?5 WHERE id = ?1",
)
_COLUMNS = ", ".join(NoticeRow._fields)
_OF_RECEIVER = "substr(subject, 1, length(:receiver) + 1) = :receiver || ' '"
SELECT_DUE = (
    f"SELECT {_COLUMNS} FROM notices WHERE next_try_at_ms <= :now_ms AND {_OF_RECEIVER}"  # noqa: S608
    " ORDER BY next_try_at_ms, id LIMIT :count_max"
)
SELECT_NEXT_TRY = f"SELECT min(next_try_at_ms) FROM notices WHERE next_try_at_ms IS NOT NULL AND {_OF_RECEIVER}"  # noqa: S608
SELECT_PENDING = f"SELECT {_COLUMNS} FROM notices WHERE next_try_at_ms IS NOT NULL ORDER BY id"  # noqa: S608


class Pending(NamedTuple):
    """What a receiver is to be sent: the notices that are due, and when the next one is if none is; None: there is none."""

    due: list[NoticeRow]
    next_try_at_ms: int | None


def read_pending(connection: Connection, receiver: str, *, now_ms: int, count_max: int) -> Pending:
    """The oldest due notices of one receiver, count_max at most."""
    given: dict[str, object] = {"receiver": receiver, "now_ms": now_ms, "count_max": count_max}
    due = [NoticeRow(*row) for row in connection.execute(SELECT_DUE, given)]
    if due:
        return Pending(due, None)
    return Pending([], connection.execute(SELECT_NEXT_TRY, {"receiver": receiver}).fetchone()[0])


def read_undelivered(connection: Connection) -> list[NoticeRow]:
    """Every notice that is still to be sent, to whomever."""
    return [NoticeRow(*row) for row in connection.execute(SELECT_PENDING)]
