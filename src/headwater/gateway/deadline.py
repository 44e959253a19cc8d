"""A deadline that is moved often and expires seldom: one timer, re-armed only when it fires too early."""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls `on_expire` once when `limit_s` passed since the last `start()`, unless `clear()` came in between.

    start and clear are two attribute writes, cheap enough for every chunk of a stream.
    """

    __slots__ = ("_at_s", "_handle", "_limit_s", "_loop", "_on_expire")

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float, on_expire: Callable[[], None]) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._on_expire = on_expire
        self._at_s: float | None = None
        self._handle: asyncio.TimerHandle | None = loop.call_later(limit_s, self._check)

    def start(self, limit_s: float | None = None) -> None:
        """Count from now; with limit_s, by another limit from here on. A shorter one takes effect at once."""
        if limit_s is not None and limit_s != self._limit_s:
            self._limit_s = limit_s
            self._arm(limit_s)
        self._at_s = self._loop.time() + self._limit_s

    def clear(self) -> None:
        """Stop counting until the next start."""
        self._at_s = None

    def close(self) -> None:
        """Never fire again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, delay_s: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(delay_s, self._check)

    def _check(self) -> None:
        if self._at_s is None:
            # A start after this moment can't be due before limit_s from now.
            self._arm(self._limit_s)
        elif (left_s := self._at_s - self._loop.time()) > 0:
            self._arm(left_s)
        else:
            self._handle = None
            self._on_expire()
