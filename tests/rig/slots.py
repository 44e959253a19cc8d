"""The fake engine's slots: so many requests are worked on at once, the others wait in the order they came."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """Hands out slot numbers, first come, first served among those who can use the slot that is free."""

    def __init__(self, count: int) -> None:
        """count: 0 means without bound, numbered from 0 as needed."""
        self.count = count
        self.busy: dict[int, int] = {}
        """Slot number → the serial of the attempt in it."""
        self._waiting: dict[asyncio.Future[int], tuple[int, int | None]] = {}

    @asynccontextmanager
    async def take(self, serial: int, wanted: int | None) -> AsyncIterator[int]:
        """Wait for a slot (for that very one if `wanted`) and hold it; a cancelled waiter leaves the queue."""
        slot = self._free(wanted)
        if slot is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = (serial, wanted)
            try:
                slot = await future
            except asyncio.CancelledError:
                # The slot may have been handed over in the same turn of the loop as the cancel.
                if future.done() and not future.cancelled():
                    self._release(future.result())
                raise
            finally:
                self._waiting.pop(future, None)
        else:
            self.busy[slot] = serial
        try:
            yield slot
        finally:
            self._release(slot)

    def _free(self, wanted: int | None) -> int | None:
        if wanted is not None and wanted >= 0:
            return None if wanted in self.busy else wanted
        numbers = range(self.count or len(self.busy) + 1)
        return next((number for number in numbers if number not in self.busy), None)

    def _release(self, slot: int) -> None:
        del self.busy[slot]
        for future, (serial, wanted) in self._waiting.items():
            if not future.done() and (wanted is None or wanted < 0 or wanted == slot):
                self.busy[slot] = serial
                future.set_result(slot)
                return
