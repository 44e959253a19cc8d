"""The ledger writer: one thread, one writing connection, group commit.

`submit(writes)` hands over one atomic submission and returns a future that resolves once it is on the disk. The thread
takes everything that waits, writes it in one transaction and commits once; there is no timer, so a lone settlement
never waits for company, and under load the batch is whatever came in while the last commit was being synced.

One bad submission (a duplicate id, a broken check) fails alone: its batch is rolled back and replayed one by one. An
I/O error is different: SQLite would carry on after a failed fsync as if nothing were lost, so the writer stops for good,
every waiting future fails with `LedgerFailed`, and `on_fatal` is told; the process must then exit.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import chain
from operator import attrgetter
from queue import SimpleQueue
from typing import NamedTuple

from headwater.ledger.store import Connection, DatabaseError, IntegrityError, Rows, Statement, Write

BATCH_SUBMISSIONS_MAX = 1024
"""Bound of one transaction, so that the oldest settlement in it is not kept waiting by the newest."""
UNSOUND = (IntegrityError, OverflowError)
"""What a submission that breaks a constraint raises, or one with a number beyond 63 bits: it alone is at fault."""
COMMITS_PER_CHECKPOINT = 64
ROWS_AT_ONCE_MAX = 16
"""Rows given to SQLite in one call. Each call hands the interpreter's lock to the event loop and waits to have it back,
which costs more than a row does; each number of rows is a statement of its own, which SQLite keeps prepared."""


class LedgerFailed(Exception):
    """The ledger can no longer be trusted to keep what it is given; the process is to stop."""


class _Submission(NamedTuple):
    writes: Sequence[Write | Rows]
    settlements_count: int
    done: "Future[None]"


_rank = attrgetter("rank")


class LedgerWriter:
    """Owner of the writing connection. Counters are read by metrics from other threads; only the thread writes them."""

    def __init__(self, connection: Connection, *, on_fatal: Callable[[BaseException], None]) -> None:
        """connection: from `store.open_writer`; on_fatal: called once, on the writer's thread, after an I/O error."""
        self._connection = connection
        self._on_fatal = on_fatal
        self._queue: SimpleQueue[_Submission | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._checkpointed_count = 0
        self._texts: dict[tuple[str, int], str] = {}
        self._failure: BaseException | None = None
        self._is_closed = False
        self.commits_count = 0
        self.settlements_count = 0

    def start(self) -> None:
        """Start the thread; call once."""
        self._thread.start()

    @property
    def failure(self) -> BaseException | None:
        """The I/O error that stopped the writer, or None while it works."""
        return self._failure

    def submit(self, writes: Sequence[Write | Rows], *, settlements_count: int = 0) -> "Future[None]":
        """Hand over rows that become durable together or not at all. Never blocks; safe from any thread.

        The future fails with IntegrityError when these rows break a constraint, with LedgerFailed when the ledger
        is gone. Cancelling whoever waits for it cancels nothing here.
        """
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()
        if self._failure is not None:
            done.set_exception(LedgerFailed(str(self._failure)))
        elif self._is_closed:
            done.set_exception(LedgerFailed("the ledger is closed"))
        else:
            self._queue.put(_Submission(writes, settlements_count, done))
        return done

    def close(self) -> None:
        """Write what waits, stop the thread, close the connection (which checkpoints the WAL). Idempotent."""
        self._is_closed = True
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch: list[_Submission] = []
            first = self._queue.get()
            while first is not None:
                batch.append(first)
                if self._queue.empty() or len(batch) >= BATCH_SUBMISSIONS_MAX:
                    break
                first = self._queue.get()
            is_open = first is not None
            if batch:
                self._write(batch)

    def _write(self, batch: list[_Submission]) -> None:
        if self._failure is not None:
            self._refuse(batch)
            return
        try:
            self._commit(batch)
        except UNSOUND as error:
            self._replay(batch, error)
            return
        except Exception as error:  # noqa: BLE001 whatever else went wrong at a commit, the ledger can't vouch for it
            self._fail(error)
            self._refuse(batch)
            return
        for submission in batch:
            submission.done.set_result(None)
        self._checkpoint_if_due()

    def _checkpoint_if_due(self) -> None:
        """Move what was committed from the write-ahead log into the database now and then, when nobody waits for it.

        SQLite's own checkpoints say nothing when they fail: the log would grow without bound while every sync fails.
        """
        if self.commits_count < self._checkpointed_count + COMMITS_PER_CHECKPOINT:
            return
        self._checkpointed_count = self.commits_count
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except DatabaseError as error:
            self._fail(error)

    def _replay(self, batch: list[_Submission], error: Exception) -> None:
        """Undo the batch and write its submissions one by one, so that the bad one fails alone."""
        try:
            self._connection.execute("ROLLBACK")
        except DatabaseError as rollback_error:
            self._fail(rollback_error)
            self._refuse(batch)
            return
        if len(batch) == 1:
            batch[0].done.set_exception(error)
            return
        for submission in batch:
            self._write([submission])

    def _commit(self, batch: list[_Submission]) -> None:
        execute = self._connection.execute
        rows: dict[Statement, list[tuple[object, ...]]] = {}
        for submission in batch:
            for write in submission.writes:
                if isinstance(write, Rows):
                    rows.setdefault(write.statement, []).extend(write.rows)
                else:
                    rows.setdefault(write.statement, []).append(write.row)
        execute("BEGIN IMMEDIATE")
        for statement in sorted(rows, key=_rank):
            self._execute(statement, rows[statement])
        execute("COMMIT")
        self.commits_count += 1
        self.settlements_count += sum(submission.settlements_count for submission in batch)

    def _execute(self, statement: Statement, rows: list[tuple[object, ...]]) -> None:
        """Write all rows of a statement, as many at once as it takes."""
        for at in range(0, len(rows), ROWS_AT_ONCE_MAX):
            some = rows[at : at + ROWS_AT_ONCE_MAX]
            sql = self._sql(statement, len(some))
            if sql is None:
                self._connection.executemany(statement.sql, some)
            elif len(some) == 1:
                self._connection.execute(sql, some[0])
            else:
                self._connection.execute(sql, tuple(chain.from_iterable(some)))

    def _sql(self, statement: Statement, count: int) -> str | None:
        known = self._texts.get((statement.name, count))
        if known is None:
            known = statement.for_rows(count)
            if known is not None:
                self._texts[statement.name, count] = known
        return known

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except DatabaseError as rollback_error:  # the disk is gone; the first error is the one to report
            error.add_note(f"the rollback failed too: {rollback_error}")
        self._on_fatal(error)

    def _refuse(self, batch: list[_Submission]) -> None:
        for submission in batch:
            submission.done.set_exception(LedgerFailed(str(self._failure)))
