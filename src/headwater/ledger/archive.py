"""Keep the log small: requests of long ago move to files, and what nobody needs any more is deleted.

A child process (`archive_file.py`) writes a file of the oldest requests, syncs it and reads it back; what it then names,
chunk by chunk, leaves the log through the one writer. Each chunk is one transaction: the rows go, what they add up to is
added to `carried_sums`, and `archives` says how far the file has come. So at every moment the carried sums and the log
make the cached sums, a request is in the log or in a listed file and never in both, and a run that was cut short is
taken up where it stopped. Hourly sums stay.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from headwater.errors import OperatorError
from headwater.ledger import store
from headwater.ledger.hours import ARCHIVED_TO, MS_PER_HOUR
from headwater.ledger.leftovers import LEFTOVERS, Leftover
from headwater.ledger.migrate import current_revision, require_head
from headwater.ledger.store import Statement, Write, open_reader

DIRECTORY = "archives"
"""Beside the database."""
REQUESTS_MAX = 50_000
"""Requests of one file."""
CHUNK_COUNT = 200
"""Requests that leave the log in one transaction: a few milliseconds of the writer's time."""
UNLISTED = ".unlisted"
"""Ends the name of a file that `archives` doesn't know: its requests are in the log."""
MS_PER_DAY = 86_400_000
LINE_BYTES_MAX = 2**24

LEFT = "archive_left"
"""Name in `ledger_state`: how many requests of the newest file are still in the log."""

# A chunk is only added to a file that has come as far as the chunk expects; else NULL breaks the constraint, and all of it fails.
PUT_ARCHIVE = Statement(
    "put_archive",
    200,
    "INSERT INTO archives (file, sha256, reservations_to, records_count, first_received_at_ms, last_received_at_ms,"
    " created_at_ms) VALUES (?1, unhex(?2), ?3, ?5, ?6, ?7, ?8) ON CONFLICT (file) DO UPDATE SET"
    " records_count = CASE WHEN records_count = ?4 THEN excluded.records_count END,"
    " reservations_to = excluded.reservations_to",
)
ADD_TO_CARRIED = Statement(
    "add_to_carried",
    201,
    "INSERT INTO carried_sums (kind, name, amount_nanos) VALUES (?, ?, ?)"
    " ON CONFLICT (kind, name) DO UPDATE SET amount_nanos = amount_nanos + excluded.amount_nanos",
)


def _delete(rank: int, table: str, column: str) -> Statement:
    """Delete the rows whose key is in a JSON array."""
    text = f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))"  # noqa: S608 names are ours
    return Statement(f"archive_{table}", rank, text)


# Children before parents. Keys as read from the file: a row that came later isn't there, and stays.
DELETES = {
    "attempts": (_delete(202, "attempts", "id"),),
    "transfers": (_delete(203, "transfers", "id"),),
    "records": (_delete(204, "usage_records", "request_id"),),
    "reservations": (
        _delete(205, "marks", "reservation_id"),
        _delete(206, "resolutions", "reservation_id"),
        _delete(207, "reservations", "id"),
    ),
}
RAISE_STATE = Statement(
    "raise_state",
    208,
    "INSERT INTO ledger_state (name, value) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
)


class Archived(NamedTuple):
    """What a run did. files: written or finished by it; requests_count: that left the log; the rest: rows deleted."""

    files: tuple[str, ...] = ()
    requests_count: int = 0
    answers_count: int = 0
    notices_count: int = 0
    marks_count: int = 0


class Plan(NamedTuple):
    """What a run would archive now; times None when that is nothing."""

    requests_count: int
    first_received_at_ms: int | None
    last_received_at_ms: int | None


class Submits(Protocol):
    """The ledger's one writer (`writer.LedgerWriter`)."""

    def submit(self, writes: Sequence[Write]) -> "Future[None]":
        """Make rows durable together or not at all."""


class Clock(Protocol):
    """What the archiver asks of time."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""


class Archiver:
    """Archives and cleans up; whoever runs it owns the data directory. One run at a time, from the event loop's thread."""

    def __init__(
        self,
        database: Path,
        writer: Submits,
        directory: Path,
        after_days: float | None,
        clock: Clock,
        *,
        requests_max: int = REQUESTS_MAX,
        chunk_count: int = CHUNK_COUNT,
    ) -> None:
        """directory: of the files, made when needed. after_days: at least 1; None archives nothing, and only cleans up."""
        if after_days is not None and after_days < 1:
            raise ValueError(f"requests of less than a day ago may still change their sums; after_days is {after_days}")
        self._database = database
        self._writer = writer
        self._directory = directory
        self._after_days = after_days
        self._clock = clock
        self._requests_max = requests_max
        self._chunk_count = chunk_count
        self._lock = asyncio.Lock()

    async def run_once(self) -> Archived:
        """Do all there is to do now; returns when it is on the disk.

        Raises OperatorError when a file can't be written or read; the log is then as far as `archives` says, and the
        next run goes on from there. Raises `writer.LedgerFailed` when the ledger is gone.
        """
        async with self._lock:
            now_ms = int(self._clock.now_s() * 1000)
            counts = [await self._clean_up(one, now_ms) for one in LEFTOVERS]
            if self._after_days is None:
                return Archived((), 0, *counts)
            files: list[str] = []
            requests_count = 0
            async for file, count in self._archive(cutoff_ms(now_ms, self._after_days)):
                files += [file] if file not in files else []
                requests_count += count
            return Archived(tuple(files), requests_count, *counts)

    async def _clean_up(self, leftover: Leftover, now_ms: int) -> int:
        """Delete what is left over, so much at a time; returns how many rows that was."""
        until_ms = now_ms - leftover.kept_ms
        first = left = await self._count(leftover, until_ms)
        for _ in range(-(-first // leftover.rows_at_once)):
            await asyncio.wrap_future(self._writer.submit([Write(leftover.delete, (until_ms,))]))
        if first:
            left = await self._count(leftover, until_ms)
        return first - left

    async def _archive(self, cutoff: int) -> AsyncIterator[tuple[str, int]]:
        """(file, requests that left the log into it) after each transaction."""
        unfinished = await asyncio.to_thread(self._unfinished)
        if unfinished is not None:
            async for step in self._move(cutoff, "resume", *unfinished):
                yield step
        await asyncio.to_thread(self._set_unlisted_aside)
        while True:
            is_any = False
            async for step in self._move(cutoff, "write", str(self._directory), str(cutoff), str(self._requests_max)):
                is_any = True
                yield step
            if not is_any:
                return

    async def _move(
        self, cutoff: int, verb: Literal["write", "resume"], place: str, *arguments: str
    ) -> AsyncIterator[tuple[str, int]]:
        """Let the child make or reopen a file, and take what it names out of the log."""
        words = (verb, str(self._database), place, str(self._chunk_count), *arguments)
        async with contextlib.aclosing(_child_lines(*words)) as lines:
            about: dict[str, Any] = await anext(lines, {})
            if not about:
                return
            done = 0 if verb == "write" else int(arguments[-1])
            async for chunk in lines:
                began_s = time.monotonic()
                writes = _chunk_writes(about, done, chunk, cutoff, int(self._clock.now_s() * 1000))
                await asyncio.wrap_future(self._writer.submit(writes))
                count, done = chunk["done"] - done, chunk["done"]
                yield about["file"], count
                await asyncio.sleep(time.monotonic() - began_s)  # half of the writer's time is left to requests

    def _unfinished(self) -> tuple[str, str, str] | None:
        """(path, SHA-256, requests that have left the log) of a file whose requests haven't all left; None: there is none."""
        with contextlib.closing(open_reader(self._database)) as connection:
            if not store.read_state(connection, LEFT):
                return None
            file, sha256, done = connection.execute(
                "SELECT file, lower(hex(sha256)), records_count FROM archives ORDER BY id DESC LIMIT 1"
            ).fetchone()
            return str(self._directory / file), sha256, str(done)

    def _set_unlisted_aside(self) -> None:
        """Rename files of runs that were cut short before anything left the log, or that a restored database forgot."""
        with contextlib.closing(open_reader(self._database)) as connection:
            listed = {file for (file,) in connection.execute("SELECT file FROM archives")}
        for path in self._directory.glob("usage-*.jsonl.gz"):
            if path.name not in listed:
                path.rename(path.with_name(path.name + UNLISTED))

    async def _count(self, leftover: Leftover, until_ms: int) -> int:
        def look() -> int:
            with contextlib.closing(open_reader(self._database)) as connection:
                return int(connection.execute(leftover.counting, (until_ms,)).fetchone()[0])

        return await asyncio.to_thread(look)


def cutoff_ms(now_ms: int, after_days: float) -> int:
    """Requests that were over before this moment may be archived: the beginning of an hour, since hours are summed whole."""
    return int(now_ms - after_days * MS_PER_DAY) // MS_PER_HOUR * MS_PER_HOUR


async def plan(database: Path, after_days: float, now_ms: int) -> Plan:
    """What would be archived; changes nothing, and may be asked while the platform runs."""
    revision = current_revision(database)
    if revision is None:
        return Plan(0, None, None)
    require_head(database, revision)
    async with contextlib.aclosing(_child_lines("plan", str(database), str(cutoff_ms(now_ms, after_days)))) as lines:
        about: dict[str, Any] = await anext(lines, {})
    return Plan(about.get("requests_count", 0), about.get("first_received_at_ms"), about.get("last_received_at_ms"))


def _chunk_writes(about: dict[str, Any], done: int, chunk: dict[str, Any], cutoff: int, now_ms: int) -> list[Write]:
    """One transaction. done: requests of the file that have left the log before it."""
    writes = [
        Write(
            PUT_ARCHIVE,
            (
                *(about["file"], about["sha256"], chunk["reservations_to"], done, chunk["done"]),
                *(about["first_received_at_ms"], about["last_received_at_ms"], now_ms),
            ),
        ),
        Write(store.PUT_STATE, (LEFT, about["requests_count"] - chunk["done"])),
        Write(RAISE_STATE, (ARCHIVED_TO, cutoff // MS_PER_HOUR)),
    ]
    writes += [Write(ADD_TO_CARRIED, tuple(row)) for row in chunk["sums"]]
    for name, statements in DELETES.items():
        if chunk[name]:
            writes += [Write(statement, (json.dumps(chunk[name]),)) for statement in statements]
    return writes


async def _child_lines(*arguments: str) -> AsyncGenerator[dict[str, Any], None]:
    """What the child tells, an object a line. Raises OperatorError when it fails; ended when its listener goes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater.ledger.archive_file", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said = asyncio.ensure_future(process.stderr.read())
    try:
        while line := await process.stdout.readline():
            yield json.loads(line)
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors = (await said).decode(errors="replace").strip().splitlines()
    if status:
        raise OperatorError(
            "Old usage records could not be archived.",
            why=f"{errors[-1] if errors else f'The process ended with {status}'}.",
            now="Mend the cause; the next run goes on where this one stopped. Nothing is lost.",
        )
