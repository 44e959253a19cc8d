"""An event loop whose clock jumps to the next timer when nothing else is left to do: no test waits."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    loop: "FakeTimeLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing will ever happen: the test would hang")
        self.loop.now_s += max(0.0, timeout)
        return super().select(0)


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """Time begins at 1000 s."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now_s = 1000.0
        super().__init__(selector)

    def time(self) -> float:
        """Seconds on the loop's own clock."""
        return self.now_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in fake time."""
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(work)
