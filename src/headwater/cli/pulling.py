"""Pulling a model before a person's eyes, on standard error: a bar on a terminal, elsewhere a line about every tenth.

`headwater models pull` and `headwater up` show the same.
"""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from headwater.catalogue.entries import Entry
from headwater.catalogue.progress import Advanced, Progress, PullEvent, SourceLeft, SourceTried, Waiting
from headwater.settings.model import ModelStoreSettings

LINE_EVERY_PERCENT: Final = 10


def pull_shown(entry: Entry, settings: ModelStoreSettings, *, also: Progress | None = None) -> Path:
    """Pull a model and show how it goes; one that is here shows nothing.

    also: told every event too. Returns and raises as `headwater.catalogue.pull.pull`.
    """
    from headwater.catalogue.pull import pull
    from headwater.catalogue.store import ModelStore

    if ModelStore(Path(settings.directory)).holding(entry).state == "ready":
        return pull(entry, settings, progress=also or (lambda _: None))
    display: _Display = _Bar(entry) if sys.stderr.isatty() else _Lines(entry)

    def tell(event: PullEvent) -> None:
        display.show(event)
        if also:
            also(event)

    with display:
        return pull(entry, settings, progress=tell)


class _Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def show(self, event: PullEvent) -> None: ...


class _Bar:
    """Rich's progress bar with bytes, speed and the time left; sources that were left stay above it."""

    def __init__(self, entry: Entry) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(entry.name, total=entry.size_bytes)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: PullEvent) -> None:
        if isinstance(event, Advanced):
            self._bar.update(self._task, completed=event.done_bytes)
        else:
            self._bar.console.print(_sentence(event), markup=False, highlight=False, soft_wrap=True)


class _Lines:
    """Plain lines for logs and pipes, with the seconds it has taken."""

    def __init__(self, entry: Entry) -> None:
        self._name, self._started_s, self._shown_percent = entry.name, time.monotonic(), -LINE_EVERY_PERCENT

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass  # each line is whole when it is written

    def show(self, event: PullEvent) -> None:
        if not isinstance(event, Advanced):
            self._write(_sentence(event))
            return
        percent = 100 * event.done_bytes // event.total_bytes
        if percent >= self._shown_percent + LINE_EVERY_PERCENT or percent == 100 > self._shown_percent:
            self._shown_percent = percent
            took_s = time.monotonic() - self._started_s
            megabytes = f"{event.done_bytes / 1e6:,.0f} of {event.total_bytes / 1e6:,.0f} MB"
            self._write(f"{self._name}: {percent} % ({megabytes}) after {took_s:.0f} s")

    @staticmethod
    def _write(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _sentence(event: SourceTried | SourceLeft | Waiting) -> str:
    match event:
        case SourceTried(source):
            return f"from {source}"
        case SourceLeft(source, reason):
            return f"left {source}: {reason}"
        case Waiting(process_id):
            who = f"process {process_id}" if process_id else "another process"
            return f"{who} is pulling this model; waiting for it"
