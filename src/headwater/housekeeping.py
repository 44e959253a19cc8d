"""What a running platform does besides serving: each task for ever, in the background, until the platform stops.

A task that fails is logged and begun again after a while: none of them may take the platform down, or stay down unseen.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()

AGAIN_AFTER_S = 60.0
FIRST_AFTER_S = 60.0

Task = Callable[[], Awaitable[None]]


async def every(interval_s: float, work: Callable[[], Awaitable[object]]) -> None:
    """Do the work again and again, so long after the last time was done; first a minute after the start."""
    await asyncio.sleep(min(FIRST_AFTER_S, interval_s))
    while True:
        await work()
        await asyncio.sleep(interval_s)


class Housekeeping:
    """The background tasks of one platform: their parent, which begins, restarts and ends them."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, name: str, task: Task) -> None:
        """Run a task that never ends by itself."""
        self._tasks.append(asyncio.create_task(self._keep(name, task), name=name))

    async def stop(self) -> None:
        """End every task and wait until it has."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _keep(self, name: str, task: Task) -> None:
        while True:
            try:
                await task()
                return
            except Exception:
                log.exception("housekeeping_failed", task=name, again_after_s=AGAIN_AFTER_S)
            await asyncio.sleep(AGAIN_AFTER_S)
