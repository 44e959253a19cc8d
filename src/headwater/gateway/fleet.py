"""The places of pools while they come, go and are replaced: what was taken from a pool is closed once nobody uses it."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from headwater.gateway.engines import Engine
from headwater.gateway.pool import Member, Pool
from headwater.replica import Progress

IDLE_POLL_S = 0.1


class Fleet:
    """Which member is where, by replica or upstream; also those that get no new calls any more. One event loop."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool[Engine]] = {}
        self._members: dict[str, Member[Engine]] = {}
        self._leaving: set[str] = set()
        self._closing: dict[asyncio.Task[None], Engine] = {}

    def add(self, pool: Pool[Engine], member: Member[Engine]) -> None:
        """A member takes from the pool's queue at once."""
        self._pools[member.id], self._members[member.id] = pool, member
        pool.add_member(member)

    def known(self, member_id: str) -> Member[Engine] | None:
        """A member that was added and not withdrawn, retired ones too."""
        return self._members.get(member_id)

    def leave(self, pools: Iterable[str]) -> None:
        """These pools, by name, and no others, get no new requests: their members serve who is in their queues."""
        self._leaving = set(pools)

    def retire(self, member_id: str) -> None:
        """No new calls for it; those that run on it go on. In a pool that is left, it serves the queue first."""
        pool = self._pools.get(member_id)
        if pool is not None and pool.name not in self._leaving:
            pool.remove_member(member_id)

    def withdraw(self, member_id: str) -> None:
        """It is gone; calls running on it fail by themselves."""
        pool, member = self._pools.pop(member_id, None), self._members.pop(member_id, None)
        if pool is not None and member is not None:
            pool.remove_member(member_id)
            self._close(member.endpoint.close(), member.endpoint)

    def replace(self, pool: Pool[Engine], member: Member[Engine]) -> None:
        """Put a member in the place of the one with its id, which is closed when its calls have ended."""
        old = self._members.get(member.id)
        pool.remove_member(member.id)
        self.add(pool, member)
        if old is not None:
            self._close(_close_when_idle(None, old), old.endpoint)

    def remove(self, member_id: str) -> None:
        """Nobody asks for it any more: it is closed when its pool's queue is empty and its calls have ended."""
        pool, member = self._pools.pop(member_id, None), self._members.pop(member_id, None)
        if pool is not None and member is not None:
            self._close(_close_when_idle(pool, member), member.endpoint)

    def progress(self, member_id: str) -> Progress | None:
        """What its calls show of its being alive; None for one that isn't there."""
        member = self._members.get(member_id)
        return None if member is None else member.progress

    def held_count(self, member_id: str) -> int:
        """Calls that hold a place on it, or wait where nobody new can."""
        pool, member = self._pools.get(member_id), self._members.get(member_id)
        if pool is None or member is None:
            return 0
        queued_count = pool.queued_count if pool.name in self._leaving else 0
        return member.places_count - member.free_count + queued_count

    async def close(self) -> None:
        """End every connection now."""
        for task in self._closing:
            task.cancel()
        engines = {*self._closing.values(), *(member.endpoint for member in self._members.values())}
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.gather(*(engine.close() for engine in engines))

    def _close(self, work: Coroutine[Any, Any, None], engine: Engine) -> None:
        task = asyncio.ensure_future(work)
        self._closing[task] = engine
        task.add_done_callback(lambda done: self._closing.pop(done, None) and None)


async def _close_when_idle(pool: Pool[Engine] | None, member: Member[Engine]) -> None:
    """Close its engine once it holds no call. pool: whose queue it is to serve first."""
    while (  # noqa: ASYNC110 the places are counted on the hot path, where nobody is told
        member.free_count < member.places_count or (pool is not None and pool.queued_count)
    ):
        await asyncio.sleep(IDLE_POLL_S)
    if pool is not None:
        pool.remove_member(member.id)
    await member.endpoint.close()
