"""Why a request is ended from outside, and how: the first reason wins, and it interrupts the request's task once."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from headwater.errors import PlatformError
from headwater.usage import Outcome

Watch = Callable[[Callable[[], None] | None], None]
"""Watches a client's connection: calls what it is given once when the connection is lost, at once when it is lost already.

None: nothing is to be called any more.
"""


class Stopped(Exception):
    """The request was ended from outside. error: what to tell the caller, None when it is gone."""

    def __init__(self, outcome: Outcome, error: PlatformError | None) -> None:
        super().__init__(outcome)
        self.outcome: Outcome = outcome
        self.error = error


class Stop:
    """A request's stop button: `with Stop() as stop:` turns a pressed button into `Stopped` where the task waits.

    It works like `asyncio.timeout`: the task is cancelled, and that one cancellation is taken back on the way out. A
    cancellation by anybody else passes through untouched. Once `disarm()`ed (the outcome is fixed) it does nothing.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._reason: Stopped | None = None
        self._is_armed = True

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._reason is not None and task is not None:
            still_asked = task.uncancel()
            if kind is None or (kind is asyncio.CancelledError and not still_asked):
                raise self._reason from None

    def press(self, outcome: Outcome, error: PlatformError | None) -> None:
        """End the request, unless its outcome is fixed or an earlier reason ends it already."""
        if self._is_armed and self._reason is None and self._task is not None:
            self._reason = Stopped(outcome, error)
            self._task.cancel()

    def disarm(self) -> None:
        """The outcome is fixed: from here on the request runs to its end."""
        self._is_armed = False


class LiveRequests:
    """The stop buttons of all requests being served or queued."""

    def __init__(self) -> None:
        self._stops: set[Stop] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._stops)

    def add(self, stop: Stop) -> None:
        """A request's life begins."""
        self._stops.add(stop)
        self._is_empty.clear()

    def discard(self, stop: Stop) -> None:
        """A request is settled and answered."""
        self._stops.discard(stop)
        if not self._stops:
            self._is_empty.set()

    def stop_all(self, outcome: Outcome, error: PlatformError) -> None:
        """Press every button; the requests end and settle in their own tasks."""
        for stop in list(self._stops):
            stop.press(outcome, error)

    async def empty(self) -> None:
        """Wait until no request is left."""
        while self._stops:
            self._is_empty.clear()
            await self._is_empty.wait()
