"""Reads a log of `strace -f -y -xx` as the ordered file operations on one database, and what it acknowledged.

Pure but for reading the log. A call counts when it has returned; an acknowledgement counts when it begins, since from
then on somebody may have read it. Failed calls did nothing. A call that this reader doesn't know, on a file of the
database's, is an error: a replay that leaves writes out proves nothing.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,fsync,fdatasync,"
    "sync_file_range,ftruncate,truncate,fallocate,unlink,unlinkat,rename,renameat,renameat2,link,linkat,mmap"
)
"""What to trace: all that can change a file or make it durable."""
OPTIONS = ("-f", "--seccomp-bpf", "-y", "-xx", "-s", "10000000", "-e", "signal=none", "-e", f"trace={CALLS}")
"""strace's options for a log that can be read here; seccomp-bpf lets every other call run at full speed."""


class UnreadableLog(Exception):
    """The log holds something that this reader can't replay faithfully."""


class Write(NamedTuple):
    """Bytes written into a file. name, here and below: what is behind the database's own: "", "-wal" or "-journal"."""

    name: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A file was given that size."""

    name: str
    size: int


class Create(NamedTuple):
    """A file may have been made: it was opened with O_CREAT."""

    name: str


class Remove(NamedTuple):
    """A name was taken out of the directory."""

    name: str


class Rename(NamedTuple):
    """A name was given to another file."""

    name: str
    to: str


class Sync(NamedTuple):
    """All that was written to a file is durable."""

    name: str


class SyncDirectory(NamedTuple):
    """All names made and taken away in the directory are durable."""


class Ack(NamedTuple):
    """Somebody was told that this submission is durable."""

    number: int


Operation = Write | Truncate | Create | Remove | Rename | Sync | SyncDirectory | Ack

_LINE = re.compile(rb"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)", re.DOTALL)
_RESULT = re.compile(rb"\) += (-?\d+)[^\"]*$")
_FD = re.compile(rb"(\d+|AT_FDCWD)<([^>]*)>")
_STRING = re.compile(rb'"([^"]*)"(\.\.\.)?')
_UNFINISHED = b" <unfinished ...>"
_HEX = re.compile(rb"(?:\\x[0-9a-f]{2})*\Z")


def read(lines: Iterable[bytes], database: str, acks: str) -> Iterator[Operation]:
    """The operations on the files of `database` (its journals too), its directory and the journal of acknowledgements.

    database, acks: absolute paths without links in them. Raises UnreadableLog.
    """
    return _Reader(database, acks).read(lines)


class _Reader:
    def __init__(self, database: str, acks: str) -> None:
        self._directory, self._acks = str(PurePosixPath(database).parent), acks
        # -shm is shared memory by the name of a file: SQLite builds it anew after a crash, and never syncs it.
        self._names = {f"{database}{suffix}": suffix for suffix in ("", "-wal", "-journal")}
        # A line without any of these in it is about something else; paths are in hex like every string.
        self._marks = (_hex(database), _hex(self._directory) + b">", _hex(acks))

    def read(self, lines: Iterable[bytes]) -> Iterator[Operation]:
        begun: dict[bytes, tuple[bytes, bytes]] = {}
        for raw in lines:
            line = _LINE.match(raw.rstrip(b"\n"))
            if line is None:
                continue  # "+++ exited with 0 +++"
            thread, resumed, name, rest = line.groups()
            if resumed is not None:
                name, start = begun.pop(thread, (resumed, b""))
                rest = start + rest
            elif rest.endswith(_UNFINISHED):
                begun[thread] = name, rest.removesuffix(_UNFINISHED)
                if name == b"write" and self._is_ack(rest):
                    yield from self._acknowledged(rest)
                continue
            if not any(mark in rest for mark in self._marks):
                continue
            result = _RESULT.search(rest)
            if result is None:
                raise UnreadableLog(f"a call without its result: {_short(name + rest)}")
            if int(result[1]) >= 0 and not (resumed is not None and self._is_ack(rest)):
                yield from self._operations(name.decode(), rest[: result.start()], int(result[1]))

    def _operations(self, call: str, arguments: bytes, result: int) -> Iterator[Operation]:
        named, opened = self._names.get(self._path(arguments)), self._open_name(arguments)
        last = arguments.rpartition(b", ")[2]
        match call:
            case "open" | "openat" | "creat" if named is not None:
                if call == "creat" or b"O_CREAT" in arguments:
                    yield Create(named)
                if call == "creat" or b"O_TRUNC" in arguments:
                    yield Truncate(named, 0)
            case "write" if self._is_ack(arguments):
                yield from self._acknowledged(arguments)
            case "pwrite64" if opened is not None:
                yield Write(opened, int(last), _data(arguments)[:result])
            case "ftruncate" if opened is not None:
                yield Truncate(opened, int(last))
            case "fsync" | "fdatasync" if opened is not None:
                yield Sync(opened)
            case "fsync" | "fdatasync" if self._open_path(arguments) == self._directory:
                yield SyncDirectory()
            case "unlink" | "unlinkat" if named is not None:
                yield Remove(named)
            case "mmap" if opened is not None and b"PROT_WRITE" in arguments and b"MAP_SHARED" in arguments:
                raise UnreadableLog(f"{opened or 'the database'} is written through a mapping, which no log shows")
            case "mmap":
                pass
            case _ if named is not None or opened is not None:
                raise UnreadableLog(f"a call that can't be replayed: {call}({_short(arguments)}")

    def _is_ack(self, arguments: bytes) -> bool:
        return self._open_path(arguments) == self._acks

    def _acknowledged(self, arguments: bytes) -> Iterator[Operation]:
        return (Ack(int(number)) for number in _data(arguments).split())

    def _open_path(self, arguments: bytes) -> str | None:
        # An mmap names its descriptor in the middle, everything else at the start.
        found = _FD.search(arguments)
        return None if found is None else _decode(found[2])

    def _open_name(self, arguments: bytes) -> str | None:
        return self._names.get(self._open_path(arguments) or "")

    def _path(self, arguments: bytes) -> str:
        found = _STRING.search(arguments)
        if found is None:
            return ""
        path = _decode(found[1])
        folder = _FD.match(arguments)
        return path if path.startswith("/") or folder is None else str(PurePosixPath(_decode(folder[2])) / path)


def _hex(text: str) -> bytes:
    return "".join(f"\\x{byte:02x}" for byte in text.encode()).encode()


def _bytes(hexed: bytes) -> bytes:
    if not _HEX.match(hexed):
        raise UnreadableLog(f"a string that isn't in hex: {_short(hexed)}")
    return bytes.fromhex(hexed.replace(b"\\x", b"").decode())


def _decode(hexed: bytes) -> str:
    # A removed file's descriptor has `(deleted)` behind its path, in plain letters.
    return _bytes(hexed.partition(b"(")[0]).decode(errors="replace")


def _data(arguments: bytes) -> bytes:
    found = _STRING.search(arguments)
    if found is None or found[2]:
        raise UnreadableLog(f"data that was cut short: {_short(arguments)}")
    return _bytes(found[1])


def _short(text: bytes) -> str:
    return text[:200].decode(errors="replace")
