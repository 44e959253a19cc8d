"""One file of archived requests: what goes into it, how it is written and read again. Runs in a process of its own.

    python -m headwater.ledger.archive_file plan DATABASE CUTOFF_MS
    python -m headwater.ledger.archive_file write DATABASE DIRECTORY CHUNK_COUNT CUTOFF_MS REQUESTS_MAX
    python -m headwater.ledger.archive_file resume DATABASE PATH CHUNK_COUNT SHA256 DONE

A file is gzipped JSON lines, a request on each. `write` makes one of the oldest requests, `resume` takes up one that was
made before; both then print JSON lines: first what the file is, then its requests in chunks. A chunk says which rows it
takes out of the log and what they add up to. It is made from the file as it was read back from the disk: nothing leaves
the log that isn't there.
"""

import contextlib
import gzip
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from headwater.ledger.archivable import eligible
from headwater.ledger.carried import carried
from headwater.ledger.durable import make_directory, partial_file, sha256_of, sync_directory, sync_file
from headwater.ledger.store import open_reader

COMPRESSION = 6


class Content(NamedTuple):
    """What a file holds. reservations_to: the greatest reservation id in it, None when it has none."""

    requests_count: int
    first_received_at_ms: int
    last_received_at_ms: int
    reservations_to: int | None


# -- the file --------------------------------------------------------------------------------------------------------


def write_file(database: Path, directory: Path, cutoff_ms: int, requests_max: int) -> tuple[Path, Content] | None:
    """Write the oldest requests to a new file, sync it, and read it back from the disk; None when none is old enough.

    Raises ValueError when what is read back isn't what was written.
    """
    make_directory(directory)
    written = hashlib.sha256()
    content: Content | None = None
    with partial_file(directory / "usage.jsonl.gz") as partial:
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as file:
            for request in islice(eligible(database, cutoff_ms), requests_max):
                line = json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                written.update(line)
                file.write(line)
                content = _with(content, request)
        if content is None:
            return None
        sync_file(partial)
        with gzip.open(partial, "rb") as file:
            if hashlib.file_digest(file, "sha256").digest() != written.digest():
                raise ValueError(f"{directory}: the disk doesn't give back what was written to it")
        path = _free_name(directory, content)
        partial.rename(path)
        sync_directory(directory)
    return path, content


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The requests of a file, in its order."""
    with gzip.open(path, "rb") as file:
        for line in file:
            yield json.loads(line)


def content_of(path: Path, sha256: bytes) -> Content:
    """What a file holds. Raises ValueError when it isn't the file with this hash, or holds nothing."""
    if sha256_of(path) != sha256:
        raise ValueError(f"{path} is not the file that was archived: its SHA-256 is another")
    content: Content | None = None
    for request in read_lines(path):
        content = _with(content, request)
    if content is None:
        raise ValueError(f"{path} holds nothing")
    return content


def _with(content: Content | None, request: dict[str, Any]) -> Content:
    held = request["reservation"]
    received_at_ms = (request["record"] or held)["received_at_ms"]
    if content is None:
        content = Content(0, received_at_ms, received_at_ms, None)
    return Content(
        content.requests_count + 1,
        min(content.first_received_at_ms, received_at_ms),
        max(content.last_received_at_ms, received_at_ms),
        content.reservations_to if held is None else held["id"],
    )


def _free_name(directory: Path, content: Content) -> Path:
    name = f"usage-{_stamp(content.first_received_at_ms)}-{_stamp(content.last_received_at_ms)}"
    names = (f"{name}{suffix}.jsonl.gz" for suffix in ("", *(f"-{number}" for number in range(2, 10_000))))
    return next(path for path in (directory / one for one in names) if not path.exists())


def _stamp(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")


# -- what leaves the log ---------------------------------------------------------------------------------------------


def chunks(path: Path, done: int, reservations_to: int, chunk_count: int) -> Iterator[dict[str, Any]]:
    """The file's requests from number `done` on, so many at a time, each as the rows it takes and the sums it leaves."""
    lines = islice(read_lines(path), done, None)
    while requests := list(islice(lines, chunk_count)):
        done += len(requests)
        held = [request["reservation"]["id"] for request in requests if request["reservation"] is not None]
        reservations_to = max([reservations_to, *held])
        yield {
            "done": done,
            "reservations_to": reservations_to,
            "sums": [[*key, nanos] for key, nanos in carried(requests).items()],
            "attempts": [row["id"] for request in requests for row in request["attempts"]],
            "transfers": [row["id"] for request in requests for row in request["transfers"]],
            "records": [request["request_id"] for request in requests if request["record"] is not None],
            "reservations": held,
        }


def main(arguments: Sequence[str]) -> None:
    """Do what the module says, telling it on standard output."""
    match arguments:
        case ["plan", database, cutoff_ms]:
            content = None
            for request in eligible(Path(database), int(cutoff_ms)):
                content = _with(content, request)
            _tell({} if content is None else content._asdict())
            return
        case ["write", database, directory, chunk_count, cutoff_ms, requests_max]:
            made = write_file(Path(database), Path(directory), int(cutoff_ms), int(requests_max))
            if made is None:
                _tell({})
                return
            (path, content), done = made, 0
        case ["resume", database, path_text, chunk_count, sha256, done_text]:
            path, done = Path(path_text), int(done_text)
            content = content_of(path, bytes.fromhex(sha256))
        case _:
            raise SystemExit(__doc__)
    _tell({"file": path.name, "sha256": sha256_of(path).hex(), **content._asdict()})
    with contextlib.closing(open_reader(Path(database))) as connection:
        before = connection.execute("SELECT max(reservations_to) FROM archives").fetchone()[0] or 0
    for chunk in chunks(path, done, before, int(chunk_count)):
        _tell(chunk)


def _tell(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
