"""The model store: blobs named by their SHA-256, a manifest for each model that was pulled, and what is half here.

blobs/sha256-<hex>            a whole file whose hash was compared before it got this name
manifests/<name>.json         which blob a model's name stands for, where it came from and when
partial/sha256-<hex>/         the beginning of a blob, kept so that a pull can go on
locks/sha256-<hex>            held by the process that pulls or removes the blob; never deleted
"""

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from headwater.catalogue.entries import Entry
from headwater.catalogue.partial import CHUNK_BYTES, Partial
from headwater.errors import OperatorError

ModelState = Literal["ready", "partial", "damaged", "missing"]
_MANIFEST_BYTES_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was pulled under a name. source: the one that finished it; pulled_at: UTC, ISO 8601."""

    name: str
    sha256: str
    size_bytes: int
    source: str
    pulled_at: str


@dataclass(frozen=True, slots=True)
class Holding:
    """How much of a model is here.

    state: `ready` (whole), `partial` (a pull can go on), `damaged` (not the size it was stored with) or `missing`.
    here_bytes: bytes on the disk; path: where the whole file is or would be.
    """

    state: ModelState
    here_bytes: int
    path: Path


class ModelStore:
    """The store in one directory. Several processes may use it at once; a blob's lock makes one of them its owner."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def blob_path(self, sha256: str) -> Path:
        """Where a whole file is, or would be."""
        return self.directory / "blobs" / f"sha256-{sha256}"

    def partial(self, entry: Entry) -> Partial:
        """The beginning of the entry's blob; only the holder of its lock may enter it."""
        return Partial(self.directory / "partial" / f"sha256-{entry.sha256}", entry.size_bytes)

    def holding(self, entry: Entry) -> Holding:
        """How much of it is here, by size; `verify` reads the bytes."""
        path = self.blob_path(entry.sha256)
        with contextlib.suppress(FileNotFoundError):
            size_bytes = path.stat().st_size
            return Holding("ready" if size_bytes == entry.size_bytes else "damaged", size_bytes, path)
        with contextlib.suppress(FileNotFoundError):
            here_bytes = self.partial(entry).body.stat().st_size
            return Holding("partial" if here_bytes else "missing", here_bytes, path)
        return Holding("missing", 0, path)

    def manifest(self, name: str) -> Manifest | None:
        """What was pulled under `name`; None when nothing was, or the note is damaged (it is only a note)."""
        try:
            with self._manifest_path(name).open("rb") as file:
                return Manifest(**json.loads(file.read(_MANIFEST_BYTES_MAX)))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def admit(self, entry: Entry, partial: Partial, source: str) -> Path:
        """Give the whole and hashed bytes their name, durably; the lock is held. Raises ValueError for other bytes."""
        if partial.digest() != entry.sha256:
            raise ValueError("only the pinned bytes get the name")
        path = self.blob_path(entry.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.sync()
        partial.body.replace(path)
        _sync_directory(path.parent)
        self.note(entry, source)
        shutil.rmtree(partial.directory, ignore_errors=True)
        return path

    def note(self, entry: Entry, source: str) -> None:
        """Write the manifest of a model whose blob is here."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        path = self._manifest_path(entry.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}.new")
        written.write_text(
            json.dumps(asdict(Manifest(entry.name, entry.sha256, entry.size_bytes, source, now)), indent=2)
        )
        written.replace(path)

    def verify(self, entry: Entry, on_bytes: Callable[[int], None] = lambda _: None) -> str:
        """Hash the whole file and return its SHA-256 (lower-case hex), whatever it is.

        Calls `on_bytes` with the bytes read so far. Raises OperatorError when the file isn't here.
        """
        path = self.blob_path(entry.sha256)
        digest, done_bytes = hashlib.sha256(), 0
        try:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    done_bytes += len(chunk)
                    on_bytes(done_bytes)
        except FileNotFoundError as error:
            raise not_here(entry) from error
        return digest.hexdigest()

    def remove(self, entry: Entry) -> int:
        """Delete the model's file or what is half here of it, and its manifest; return the bytes freed.

        A file that another pulled name also stands for stays, and only the manifest goes.
        Raises OperatorError while the model is being pulled.
        """
        with self.locked(entry) as is_held:
            if not is_held:
                raise OperatorError(
                    f"{entry.name} can't be removed now.",
                    why=f"Process {self.lock_holder(entry) or 'of another user'} is pulling it.",
                    now="Stop that pull first.",
                )
            self._manifest_path(entry.name).unlink(missing_ok=True)
            if any(manifest.sha256 == entry.sha256 for manifest in self._manifests()):
                return 0
            freed_bytes = self.holding(entry).here_bytes
            self.blob_path(entry.sha256).unlink(missing_ok=True)
            if self.partial(entry).directory.exists():
                shutil.rmtree(self.partial(entry).directory)
        return freed_bytes

    @contextlib.contextmanager
    def locked(self, entry: Entry) -> Iterator[bool]:
        """Try to become the blob's owner; False when another is. The kernel frees a dead owner's lock."""
        path = self._lock_path(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        try:
            os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):  # the pid is for a message; on a full disk it may be lacking
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield True
        finally:
            os.close(descriptor)

    def lock_holder(self, entry: Entry) -> int | None:
        """The process that last owned the blob's lock, for messages."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._lock_path(entry).read_bytes()[:20])
        return None

    def _lock_path(self, entry: Entry) -> Path:
        return self.directory / "locks" / f"sha256-{entry.sha256}"

    def _manifest_path(self, name: str) -> Path:
        return self.directory / "manifests" / f"{name}.json"

    def _manifests(self) -> list[Manifest]:
        found = (self.manifest(path.stem) for path in (self.directory / "manifests").glob("*.json"))
        return [manifest for manifest in found if manifest is not None]


def not_here(entry: Entry) -> OperatorError:
    """The error for a catalogue model that was not pulled."""
    return OperatorError(
        f"The model {entry.name} is not on this machine.",
        why="It was not pulled, or not to the end.",
        now=f"`headwater models pull {entry.name}` fetches its {entry.size_bytes / 1e6:,.0f} MB.",
    )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
