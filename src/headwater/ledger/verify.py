"""Prove the books: recompute every charge, balance, cap and hourly sum from the log, and name the first row that differs.

    python -m headwater.ledger.verify DATABASE [--json] [--chunk N] [--nice N]

It runs in a process of its own, beside the platform or without it, on a read-only connection. One short transaction
takes all cached sums together with how far the log goes; then the log up to there is read in chunks. Since rows of the
log are only ever added, and resolutions and transfers get their ids in the order they are committed, that is exact
while the platform writes on, and no long transaction keeps it from checkpointing. Exit code: 0 the books balance, 1 they
don't, 2 they can't be read.
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path

import msgspec

from headwater.errors import OperatorError
from headwater.ledger import store
from headwater.ledger.migrate import current_revision, require_head
from headwater.ledger.store import DatabaseError
from headwater.ledger.verify_log import Archived, Progress, Verification
from headwater.ledger.verify_result import VerifyResult

CHUNK_COUNT = 5_000
EXIT_OK, EXIT_DIFFERS, EXIT_UNREADABLE, EXIT_INTERRUPTED = 0, 1, 2, 130
TRIES_MAX = 3
BAR_WIDTH = 30


def verify(
    database: Path, *, now_ms: int, chunk_count: int = CHUNK_COUNT, progress: Progress = lambda _done, _all: None
) -> VerifyResult:
    """Recompute a database of this version's schema. Raises DatabaseError when it can't be read.

    now_ms: hours that ended an hour before it are complete. chunk_count: rows read by one statement.
    """
    began_s = time.monotonic()
    for tries_left in reversed(range(TRIES_MAX)):
        with contextlib.closing(store.open_reader(database)) as connection:
            work = Verification(connection, now_ms=now_ms, chunk_count=chunk_count, progress=progress)
            try:
                work.run()
            except Archived:
                if not tries_left:
                    raise DatabaseError("rows were archived again and again while the log was read") from None
                continue
            return VerifyResult(
                database=str(database),
                verdict="differs" if work.findings.count else "ok",
                differences_count=work.findings.count,
                differences=work.findings.first,
                notes=work.notes,
                checked=dict(work.checked),
                duration_s=round(time.monotonic() - began_s, 3),
            )
    raise AssertionError("unreachable")


def check_readable(database: Path) -> None:
    """Raise OperatorError unless there is a database of this version's schema."""
    revision = current_revision(database)
    if revision is None:
        raise OperatorError(
            f"There are no books yet: {database} doesn't exist.", now="Start the platform first: headwater up."
        )
    require_head(database, revision)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of this module; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m headwater.ledger.verify", description="Prove the books.")
    parser.add_argument("database", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--chunk", type=int, default=CHUNK_COUNT, metavar="N", help="rows read by one statement")
    parser.add_argument("--nice", type=int, default=0, metavar="N", help="how much this process yields to others")
    given = parser.parse_args(arguments)
    if given.nice:
        os.nice(given.nice)
    try:
        check_readable(given.database)
        result = verify(
            given.database,
            now_ms=time.time_ns() // 1_000_000,
            chunk_count=max(1, given.chunk),
            progress=_progress(os.getppid()),
        )
    except (OperatorError, DatabaseError, ValueError) as error:
        if given.json:
            _print(msgspec.json.encode({"database": str(given.database), "verdict": "unreadable", "error": str(error)}))
        sys.stderr.write(f"error: {error}\n")
        return EXIT_UNREADABLE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
    _print(msgspec.json.format(msgspec.json.encode(result)) if given.json else str(result).encode())
    return EXIT_OK if result.is_ok else EXIT_DIFFERS


def _progress(parent: int) -> Progress:
    """Shows a bar on a terminal; ends this process when the one that started it is gone."""
    is_shown = sys.stderr.isatty()

    def tell(done: int, rows: int) -> None:
        if os.getppid() != parent:
            sys.exit(EXIT_UNREADABLE)
        if is_shown:
            _show_bar(done, rows)

    return tell


def _show_bar(done: int, rows: int) -> None:
    part = done / max(rows, 1)
    bar = "█" * int(part * BAR_WIDTH)
    sys.stderr.write(f"\r\x1b[K{bar:░<{BAR_WIDTH}} {part:4.0%}  {done:,} rows")
    sys.stderr.flush()


def _print(text: bytes) -> None:
    sys.stdout.buffer.write(text + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
