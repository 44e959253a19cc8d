"""The call of a request others wait for: cut when the shared part of its prompt is read, saved, and gone on with.

llama.cpp saves a slot only while nothing runs in it, so a leader's call is closed, the slot's state saved, and the same call
made again: all of its prompt but a token is found in the slot, and the caller sees one answer. Without anybody waiting,
nothing of this happens. What it costs and saves: `docs/explanation/prefixes.md`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from headwater.engines.llamacpp import PrefillProgress, SavedWire, last_progress
from headwater.errors import PlatformError
from headwater.gateway.http_client import Response
from headwater.gateway.prefixes import COPY_KEPT_S, Prefixes, Reading
from headwater.gateway.slots import Slot

log = structlog.get_logger()

STATE_TIMEOUT_S = 30.0
"""For saving or restoring a state: an engine does it between two batches, and copies as fast as memory allows."""
REUSED_SHARE_MIN = 0.9
"""An engine that finds less than this of what it had read can't make use of saved states: some architectures can't go back."""

ResultT = TypeVar("ResultT")


async def uninterrupted(slot: Slot, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Do something to a slot's cache to its end, or for STATE_TIMEOUT_S, even if the awaiting task is cancelled meanwhile.

    The cancellation is raised then: a slot must not be given to anybody while its cache may still change. If it may after
    all, it `is_unknown` from then on. Raises what the work raises, and TimeoutError.
    """
    slot.is_unknown = True
    task = asyncio.ensure_future(asyncio.wait_for(work, STATE_TIMEOUT_S))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
    finally:
        is_confirmed = task.done() and not task.cancelled() and not isinstance(task.exception(), TimeoutError)
        slot.is_unknown = not is_confirmed


class LeadingResponse(Response):
    """A leader's answer, perhaps in two calls. Owned by the task that reads it."""

    __slots__ = (
        "_current",
        "_is_continued",
        "_is_plain",
        "_pending",
        "_processed",
        "_reading",
        "_reopen",
        "_save",
        "_slot",
    )

    def __init__(
        self,
        first: Response,
        slot: Slot,
        reading: Reading,
        *,
        save: Callable[[str], Coroutine[Any, Any, SavedWire]],
        reopen: Callable[[], Awaitable[Response]],
    ) -> None:
        """save: of the slot to a file by name. reopen: makes the same call again."""
        self.status, self.headers = first.status, first.headers
        self._current = first
        self._slot = slot
        self._reading = reading
        self._save = save
        self._reopen = reopen
        self._pending = b""
        self._processed = 0
        self._is_plain = self._is_continued = False

    async def read_all(self, bytes_max: int) -> bytes:
        """See Response."""
        return await self._current.read_all(bytes_max)

    def close(self) -> None:
        """See Response."""
        self._current.close()

    def finish(self) -> None:
        """See Response."""
        self._current.finish()

    @property
    def _prefixes(self) -> Prefixes:
        assert self._slot.prefixes is not None, "only a replica's slots have readings"
        return self._slot.prefixes

    async def read(self) -> bytes:
        """The next bytes: whole events until the prompt is read, as they come from then on."""
        if self._is_plain:
            return await self._current.read()
        while data := await self._current.read():
            self._pending += data
            end = self._pending.rfind(b"\n\n") + 2
            if end > 1:
                events, self._pending = self._pending[:end], self._pending[end:]
                return await self._look(events)
        return self._become_plain(b"")

    async def _look(self, events: bytes) -> bytes:
        progress = last_progress(events)
        if progress is None:
            # Comments say nothing of the prompt; any event without progress comes after it.
            return self._become_plain(events) if b"data:" in events else events
        if self._is_continued:
            if progress.cached < REUSED_SHARE_MIN * self._processed:
                self._give_up(f"of {self._processed} tokens in the slot {progress.cached} were reused")
            return self._become_plain(events)
        if self._prefixes.should_copy(self._reading, progress):
            await self._copy(progress)
            return events[: progress.end]  # what came after is made again
        return self._become_plain(events) if progress.processed >= progress.total else events

    def _become_plain(self, events: bytes) -> bytes:
        """Nobody needs to look at this answer any more."""
        self._is_plain = True
        self._tell_others()
        rest, self._pending = self._pending, b""
        return events + rest

    def _tell_others(self) -> None:
        if not self._reading.is_over:
            self._prefixes.over(self._reading)
            if self._reading.wanted_count and self._prefixes.on_change is not None:
                self._prefixes.on_change()

    def _give_up(self, reason: str) -> None:
        log.warning("prefix_sharing_ended", slot=self._slot.number, reason=reason)
        self._prefixes.give_up()

    async def _copy(self, progress: PrefillProgress) -> None:
        """Cut the call, save the slot, let the others go, and make the call again."""
        prefixes, reading, slot = self._prefixes, self._reading, self._slot
        name = prefixes.borrow_name()
        if name is None:  # every file is about to be restored by somebody
            self._tell_others()
            self._is_plain = True
            return
        self._current.close()
        self._pending = b""
        self._processed = progress.processed
        try:
            saved = await uninterrupted(slot, self._save(name))
        except asyncio.CancelledError:
            if not slot.is_unknown:
                prefixes.give_back(name)
            raise
        except PlatformError as error:
            prefixes.give_back(name)
            self._give_up(f"the engine can't save a slot ({error})")
        except TimeoutError:  # it may still write to the file: that is never used again
            self._give_up(f"the engine did not save a slot within {STATE_TIMEOUT_S:g} s")
        else:
            copy = prefixes.saved(name, reading, tokens=saved.n_saved, size_bytes=saved.n_written)
            asyncio.get_running_loop().call_later(COPY_KEPT_S, prefixes.forget, copy)
        reading.cached_tokens_max = progress.cached
        self._is_continued = True
        self._tell_others()
        self._current = await self._reopen()
