"""The files that engines write their logs to: opened, kept short, and read for the reason of an end."""

import os
import re
from pathlib import Path
from typing import BinaryIO

LOG_BYTES_MAX = 8 * 2**20
LOG_KEPT_BYTES = 2**20
LOG_TAIL_LINES = 5
_ENGINE_ERROR = re.compile(r"[\d.]+ E (.+)")
"""A line of llama.cpp's log at its error level: the time since its start, the level, the message."""


def open_log(path: Path) -> BinaryIO:
    """The engine's log, appended to; an over-long one from earlier starts is begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_over = path.exists() and path.stat().st_size > LOG_BYTES_MAX
    return path.open("wb" if is_over else "ab")


def trim_log(path: Path) -> None:
    """Begin an over-long log anew while its engine writes to it; its last part is kept beside it, as `NAME.log.1`."""
    if not path.exists() or path.stat().st_size <= LOG_BYTES_MAX:
        return
    with path.open("rb") as log_file:
        log_file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
        path.with_suffix(".log.1").write_bytes(log_file.read(LOG_KEPT_BYTES))
    os.truncate(path, 0)  # the engine appends: what it writes next is the beginning


def log_tail(path: Path, *, is_failed_start: bool = False) -> str:
    """Where the engine's log is and its last lines, for the reason a person reads.

    is_failed_start: its errors instead, if it logged any; the first one is the cause, and often not among the last lines.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"; its log can't be read ({error})"
    errors = list(dict.fromkeys(found[1].strip() for line in lines if (found := _ENGINE_ERROR.match(line))))
    telling = errors[:LOG_TAIL_LINES] if is_failed_start and errors else lines[-LOG_TAIL_LINES:]
    tail = " | ".join(line.strip() for line in telling)
    return f"; log {path}: {tail}" if tail else f"; log {path} is empty"
