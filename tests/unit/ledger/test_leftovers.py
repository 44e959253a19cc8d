from pathlib import Path
from typing import Any

from headwater.ledger.archive import Archived, Archiver
from headwater.ledger.rows import ResolutionRow, StoredAnswer
from headwater.ledger.store import (
    INSERT_EPOCH,
    INSERT_NOTICE,
    INSERT_RESERVATION,
    INSERT_RESOLUTION,
    PUT_ANSWER,
    PUT_MARK,
    Write,
    open_reader,
)
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger.conftest import WAIT_S

NOW_MS = 1_796_000_000_000
MONTH_MS = 30 * 86_400_000


class Clock:
    """Stands still."""

    def now_s(self) -> float:
        return NOW_MS / 1000


def names(database: Path, sql: str) -> set[Any]:
    reader = open_reader(database)
    found = {row[0] for row in reader.execute(sql)}
    reader.close()
    return found


async def test_what_nobody_needs_any_more_is_deleted_and_nothing_else(database: Path, writer: LedgerWriter) -> None:
    writer.start()
    writes = [Write(INSERT_EPOCH, (1, "test", 1))]
    for number, expires_at_ms in enumerate([NOW_MS - 1] * 120 + [NOW_MS + 1] * 5):
        row = StoredAnswer("prj_1", "/v1", f"k{number}", b"h" * 32, "req_1", b"a" * 10_000, 1, expires_at_ms)
        writes.append(Write(PUT_ANSWER, row))
    long_ago_ms = NOW_MS - MONTH_MS - 1
    for subject, next_try_at_ms, delivered_at_ms in (
        ("old", None, NOW_MS - MONTH_MS),
        ("given up", None, None),
        ("fresh", None, NOW_MS - MONTH_MS + 1),
        ("waiting", NOW_MS + 5, None),
    ):
        notice = (subject, "budget_threshold", subject, "{}", long_ago_ms, 1, next_try_at_ms, delivered_at_ms, None)
        writes.append(Write(INSERT_NOTICE, notice))
    for held in range(1, 8):
        held_row = (held, f"req_{held}", 1, "org_1", "prj_1", "key_1", "m", None, 0, None, None, None)
        writes.append(Write(INSERT_RESERVATION, (*held_row, "openai_chat", "standard", 1, 1, None, 1, 2)))
        writes.append(Write(PUT_MARK, (held, "[]", 1)))
    writes += [Write(INSERT_RESOLUTION, ResolutionRow(held, "void", 0, 5)) for held in range(1, 6)]
    writer.submit(writes).result(WAIT_S)
    archiver = Archiver(database, writer, database.parent / "archives", None, Clock())
    assert await archiver.run_once() == Archived((), 0, answers_count=120, notices_count=2, marks_count=5)
    assert names(database, "SELECT idempotency_key FROM idempotency_keys") == {
        f"k{number}" for number in range(120, 125)
    }
    assert names(database, "SELECT subject FROM notices") == {"fresh", "waiting"}
    assert names(database, "SELECT reservation_id FROM marks") == {6, 7}
    assert await archiver.run_once() == Archived()
    assert len(names(database, "SELECT id FROM reservations")) == 7
