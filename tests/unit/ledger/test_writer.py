import subprocess
import sys
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from headwater.ledger.batch import settlement_writes
from headwater.ledger.store import (
    Connection,
    DatabaseError,
    IntegrityError,
    Write,
    open_reader,
    open_writer,
)
from headwater.ledger.writer import BATCH_SUBMISSIONS_MAX, LedgerFailed, LedgerWriter
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.settlements import KEY, KEY_WRITE, ORGANIZATION, PROJECT, settlement


def submit(writer: LedgerWriter, request_id: str | None = None, **changes: Any) -> "Future[None]":
    return writer.submit(settlement_writes(settlement(request_id, **changes)), settlements_count=1)


def records(reader: Connection) -> list[str]:
    return [row[0] for row in reader.execute("SELECT request_id FROM usage_records ORDER BY request_id")]


def count(reader: Connection, table: str) -> int:
    found: int = reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return found


def test_what_waits_while_the_thread_is_busy_is_committed_at_once(writer: LedgerWriter, reader: Connection) -> None:
    waiting = [submit(writer, f"req_{number:03}") for number in range(300)]  # before the thread takes any
    writer.start()
    for done in waiting:
        done.result(WAIT_S)
    assert (writer.commits_count, writer.settlements_count) == (1, 300)
    assert len(records(reader)) == count(reader, "attempts") == 300


def test_what_comes_in_during_a_commit_goes_with_the_next_one(
    writer: LedgerWriter, reader: Connection, database: Path
) -> None:
    blocker = open_writer(database)
    blocker.execute("BEGIN IMMEDIATE")  # the writer waits for this lock, as it would for a slow disk
    writer.start()
    first = submit(writer, "req_0")
    while not writer._queue.empty():  # until the thread has taken it
        pass
    others = [submit(writer, f"req_{number}") for number in range(1, 50)]
    assert not first.done()
    blocker.execute("ROLLBACK")
    blocker.close()
    wait([first, *others], WAIT_S)
    assert writer.commits_count == 2
    assert len(records(reader)) == 50


def test_a_transaction_has_a_bound(writer: LedgerWriter, reader: Connection) -> None:
    waiting = [submit(writer, f"req_{number:04}") for number in range(BATCH_SUBMISSIONS_MAX + 1)]
    writer.start()
    wait(waiting, WAIT_S)
    assert writer.commits_count == 2
    assert len(records(reader)) == BATCH_SUBMISSIONS_MAX + 1


def test_a_settlement_is_there_for_everyone_when_its_future_resolves(writer: LedgerWriter, database: Path) -> None:
    """The callback runs on the writer's thread the moment it resolves; another connection must see the row by then."""
    writer.start()
    seen: SimpleQueue[bool] = SimpleQueue()

    def look(request_id: str) -> None:
        other = open_reader(database)
        seen.put(request_id in records(other))
        other.close()

    for number in range(20):
        request_id = f"req_{number}"
        submit(writer, request_id).add_done_callback(lambda _, request_id=request_id: look(request_id))  # type: ignore[misc]
    assert all(seen.get(timeout=WAIT_S) for _ in range(20))


def test_a_repeated_request_id_fails_alone(writer: LedgerWriter, reader: Connection) -> None:
    waiting = [submit(writer, request_id) for request_id in ("req_a", "req_b", "req_a", "req_c")]
    writer.start()
    wait(waiting, WAIT_S)
    assert [type(done.exception()) for done in waiting] == [type(None), type(None), IntegrityError, type(None)]
    assert records(reader) == ["req_a", "req_b", "req_c"]
    assert count(reader, "attempts") == 3
    assert writer.settlements_count == 3
    assert submit(writer, "req_a").exception(WAIT_S) is not None  # also when it was committed long ago
    assert submit(writer, "req_d").exception(WAIT_S) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"outcome": "fine"},
        {"usage_source": "guessed"},
        {"cost_nanos": -1},
        {"cost_nanos": None},  # but a price
        {"price_id": None},  # but a cost
        {"price_id": "prc_nobody"},
        {"key_id": "key_nobody"},
        {"organization_id": "org_nobody"},
        {"project_id": "prj_nobody"},
        {"model": None},
        {"queue_ms": "long"},
        {"queue_ms": 1.5},
    ],
    ids=str,
)
def test_a_record_that_breaks_a_constraint_fails_alone(
    writer: LedgerWriter, reader: Connection, fatal: list[BaseException], broken: dict[str, object]
) -> None:
    before, bad, after = submit(writer, "req_a"), submit(writer, "req_b", **broken), submit(writer, "req_c")
    writer.start()
    wait([before, bad, after], WAIT_S)
    assert isinstance(bad.exception(), IntegrityError)
    assert before.exception() is after.exception() is None
    assert records(reader) == ["req_a", "req_c"]
    assert not fatal


@pytest.mark.parametrize("place", range(12, 17))
def test_negative_tokens_are_refused(writer: LedgerWriter, place: int) -> None:
    [usage, *_] = settlement_writes(settlement())
    row = (*usage.row[:place], -1, *usage.row[place + 1 :])
    writer.start()
    assert isinstance(writer.submit([Write(usage.statement, row)]).exception(WAIT_S), IntegrityError)


def test_more_reasoning_than_output_is_refused(writer: LedgerWriter) -> None:
    [usage, *_] = settlement_writes(settlement())
    assert usage.row[15:17] == (7, 2)
    writer.start()
    broken = Write(usage.statement, (*usage.row[:16], 8, *usage.row[17:]))
    assert isinstance(writer.submit([broken]).exception(WAIT_S), IntegrityError)


def test_a_submission_is_whole_or_not_at_all(writer: LedgerWriter, reader: Connection) -> None:
    good = settlement("req_a", attempts_count=2)
    orphan = settlement("req_b").attempts[0]._replace(request_id="req_nobody")
    writer.start()
    done = writer.submit(settlement_writes(good._replace(attempts=(*good.attempts, orphan))))
    assert isinstance(done.exception(WAIT_S), IntegrityError)
    assert count(reader, "usage_records") == count(reader, "attempts") == 0


def test_parents_come_before_children_whatever_order_they_were_handed_over_in(
    tmp_path: Path, writer: LedgerWriter, reader: Connection
) -> None:
    key = KEY._replace(id="key_2", organization_id="org_2", project_id="prj_2", hash=b"2" * 32)
    child = settlement("req_a", organization_id="org_2", project_id="prj_2", key_id="key_2")
    writes = [
        *reversed(settlement_writes(child)),
        KEY_WRITE._replace(row=tuple(key)),
        PROJECT._replace(row=("prj_2", "org_2", "default", 1)),
        ORGANIZATION._replace(row=("org_2", "other", 1)),
    ]
    writer.start()
    assert writer.submit(writes).exception(WAIT_S) is None
    assert records(reader) == ["req_a"]


def test_close_writes_what_waits(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    waiting = [submit(writer) for _ in range(200)]
    writer.close()
    assert all(done.done() and done.exception() is None for done in waiting)
    assert len(records(reader)) == 200
    writer.close()  # twice is once


def test_a_submission_after_close_fails_instead_of_waiting_for_ever(writer: LedgerWriter) -> None:
    writer.start()
    writer.close()
    assert isinstance(submit(writer).exception(WAIT_S), LedgerFailed)


def test_submissions_of_many_threads_all_arrive(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    done: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        for _ in range(50):
            done.put(submit(writer).exception(WAIT_S))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert [done.get_nowait() for _ in range(400)] == [None] * 400
    assert count(reader, "usage_records") == 400


class TestAfterTheDiskIsFull:
    """SQLite's own bound on the file's pages gives the real error (SQLITE_FULL) without filling a disk."""

    @pytest.fixture
    def full(self, database: Path, fatal: list[BaseException]) -> LedgerWriter:
        connection = open_writer(database)
        connection.execute("PRAGMA max_page_count = 1")  # never below what the file has
        writer = LedgerWriter(connection, on_fatal=fatal.append)
        writer.start()
        return writer

    def test_everything_fails_and_the_platform_is_told_once(
        self, full: LedgerWriter, fatal: list[BaseException], reader: Connection
    ) -> None:
        done = [submit(full, f"req_{number:05}") for number in range(2000)]
        wait(done, WAIT_S)
        failed = [one for one in done if one.exception() is not None]
        assert failed
        assert {type(one.exception()) for one in failed} == {LedgerFailed}
        first_failed = done.index(failed[0])
        assert all(one.exception() is not None for one in done[first_failed:])
        assert len(fatal) == 1
        assert isinstance(fatal[0], DatabaseError)
        assert full.failure is fatal[0]
        assert len(records(reader)) == first_failed  # what was confirmed is there, and nothing else
        assert isinstance(submit(full).exception(WAIT_S), LedgerFailed)
        full.close()
        assert isinstance(submit(full).exception(WAIT_S), LedgerFailed)
        assert len(fatal) == 1


IN_A_PROCESS_WITH_A_SMALL_FILE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from headwater.ledger.batch import settlement_writes
from headwater.ledger.store import open_writer
from headwater.ledger.writer import LedgerFailed, LedgerWriter
from tests.unit.ledger.settlements import settlement

path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fatal = []
writer = LedgerWriter(open_writer(path), on_fatal=fatal.append)
writer.start()
writer.submit(settlement_writes(settlement("req_0"))).result(20)
size = path.with_name(path.name + "-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
late = writer.submit(settlement_writes(settlement("req_1"))).exception(20)
assert isinstance(late, LedgerFailed), late
assert len(fatal) == 1, fatal
later = writer.submit(settlement_writes(settlement("req_2"))).exception(20)
assert isinstance(later, LedgerFailed), later
print(type(fatal[0]).__name__, len(fatal))
"""


def test_a_write_that_the_system_refuses_stops_the_ledger(database: Path) -> None:
    """A file size limit makes `write` fail in the middle of the log: the I/O error that the design is about."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS_WITH_A_SMALL_FILE_LIMIT, str(database)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PYTHONPATH": "src:.", "PATH": "/usr/bin"},
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stdout.split()) == (0, ["OperationalError", "1"]), done.stderr
    reader = open_reader(database)
    assert records(reader) == ["req_0"]
    reader.close()
