"""The beginning of a blob: what has arrived, in order, hashed as it is written, kept so that a pull can go on.

Sources are interchangeable, since all must deliver the same pinned bytes: what one began, another may finish.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

CHUNK_BYTES: Final = 2**20
_BODY: Final = "body"
_ENDS: Final = "part-ends.json"


class WrongLength(Exception):
    """The bytes are not the model: too many came, or too few from a source that has no more."""


class Partial:
    """One partial blob; its owner holds the model's lock. A context manager: inside it the file is open.

    length: bytes here so far.
    part_ends: where the finished parts of a source of parts end, ascending, each at most `length`.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.directory, self.size_bytes = directory, size_bytes
        self.length = 0
        self.part_ends: list[int] = []
        self._descriptor = -1
        self._hash = hashlib.sha256()

    @property
    def body(self) -> Path:
        """The file of the bytes so far."""
        return self.directory / _BODY

    @property
    def missing_bytes(self) -> int:
        """What is still to come."""
        return self.size_bytes - self.length

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.body, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        found_bytes = os.fstat(self._descriptor).st_size
        self.part_ends = _read_ends(self.directory / _ENDS, min(found_bytes, self.size_bytes))
        self.rewind(found_bytes if found_bytes <= self.size_bytes else 0)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def write(self, data: bytes) -> None:
        """Append. Raises WrongLength, nothing written, when the model has fewer bytes; OSError on a full disk."""
        if len(data) > self.missing_bytes:
            raise WrongLength(f"it sent more than the model's {self.size_bytes:,} bytes")
        view = memoryview(data)
        while view:  # a nearly full disk takes a part, and what it took is counted
            count = os.pwrite(self._descriptor, view, self.length)
            self._hash.update(view[:count])
            self.length += count
            view = view[count:]

    def rewind(self, length: int) -> None:
        """Keep the first `length` bytes, which are hashed anew."""
        os.ftruncate(self._descriptor, length)
        self._hash, self.length = hashlib.sha256(), 0
        while self.length < length:
            chunk = os.pread(self._descriptor, min(CHUNK_BYTES, length - self.length), self.length)
            if not chunk:
                break
            self._hash.update(chunk)
            self.length += len(chunk)
        self.part_ends = [end for end in self.part_ends if end <= self.length]

    def end_part(self) -> None:
        """Note that a part ends here, so that an interrupted pull goes on after it."""
        self.part_ends.append(self.length)
        written = self.directory / (_ENDS + ".new")
        written.write_text(json.dumps(self.part_ends))
        written.replace(self.directory / _ENDS)

    def digest(self) -> str:
        """SHA-256 of the bytes so far, lower-case hex."""
        return self._hash.hexdigest()

    def sync(self) -> None:
        """Make the bytes survive a power cut."""
        os.fsync(self._descriptor)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory beside the body, on the same disk, gone afterwards."""
        path = self.directory / "scratch"
        shutil.rmtree(path, ignore_errors=True)  # an earlier run may have been killed
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _read_ends(path: Path, length: int) -> list[int]:
    """The noted ends, or none when the note is missing or damaged: then parts are fetched from the start again."""
    try:
        ends = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    if not isinstance(ends, list) or not all(type(end) is int and end > 0 for end in ends) or ends != sorted(set(ends)):
        return []
    return [end for end in ends if end <= length]
