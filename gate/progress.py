"""How far a run is: a bar on a terminal, plain lines elsewhere, silence in tests."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 10.0


class Progress(Protocol):
    """What a rig tells of its way. Steps may be of any size; their number may be an estimate."""

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        """Start a phase of `total` steps, of which `done` were done before; the phase before it is over."""

    def advance(self, count: int = 1) -> None:
        """So many more steps are done."""

    def say(self, text: str) -> None:
        """Tell one fact."""


class Silent:
    """Says nothing."""

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        """Nothing."""

    def advance(self, count: int = 1) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Lines:
    """A line when a phase begins, one at most every ten seconds, one when it is over."""

    def __init__(self, test: str) -> None:
        self._test = test
        self._what, self._total, self._done, self._said_s = "", 0, 0, 0.0

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        """Start a phase."""
        self._what, self._total, self._done = what, total, done
        self._print()

    def advance(self, count: int = 1) -> None:
        """Count on."""
        self._done += count
        if self._done >= self._total or time.monotonic() - self._said_s >= LINE_EVERY_S:
            self._print()

    def say(self, text: str) -> None:
        """Print it."""
        print(f"{self._test}: {text}", file=sys.stderr, flush=True)

    def _print(self) -> None:
        self._said_s = time.monotonic()
        self.say(f"{self._what}: {self._done} of {self._total}")


class Bar:
    """A bar on the terminal, for as long as the `with` block lasts."""

    def __init__(self, test: str, console: Console) -> None:
        self._test = test
        columns = (
            TextColumn("[bold]{task.fields[test]}[/] {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=console)
        self._task = self._bar.add_task("starting", total=None, test=test)

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        """Start a phase."""
        self._bar.reset(self._task, description=what, total=total, completed=done)

    def advance(self, count: int = 1) -> None:
        """Move on."""
        self._bar.advance(self._task, count)

    def say(self, text: str) -> None:
        """Print it above the bar."""
        self._bar.console.print(f"{self._test}: {text}", markup=False)

    def __enter__(self) -> Self:
        """Show it."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()
