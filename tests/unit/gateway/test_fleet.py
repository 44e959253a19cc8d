"""Members of pools while they come, go and are replaced: nobody's call is cut before its time."""

import asyncio
from typing import Any

from headwater.gateway import fleet
from headwater.gateway.fleet import Fleet
from headwater.gateway.pool import Member, Pool


class Engine:
    """Notes that it was closed."""

    replica_id = "rep_1"

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def close(self) -> None:
        self.closed.set()


def member(engine: Any, name: str = "one") -> Member[Any]:
    return Member[Any](name, engine, 2, is_slotted=False)


async def closed(engine: Engine) -> None:
    async with asyncio.timeout(5.0):
        await engine.closed.wait()


async def test_a_retired_member_takes_nothing_new_and_comes_back_as_it_was() -> None:
    pool, engine, ours = Pool[Any]("m", queued_max=9), Engine(), Fleet()
    one = member(engine)
    ours.add(pool, one)
    one.free_count -= 1
    ours.retire("one")
    assert not pool.members
    assert ours.held_count("one") == 1
    assert ours.progress("one") is one.progress
    assert not engine.closed.is_set()
    known = ours.known("one")
    assert known is one
    ours.add(pool, known)
    assert pool.members == {"one": one}
    ours.withdraw("one")
    await closed(engine)
    assert not pool.members
    assert (ours.held_count("one"), ours.progress("one"), ours.known("one")) == (0, None, None)
    ours.withdraw("one")  # late news


async def test_a_replaced_upstream_is_closed_when_its_calls_have_ended() -> None:
    pool, old, new, ours = Pool[Any]("up", queued_max=9), Engine(), Engine(), Fleet()
    before, after = member(old), member(new)
    ours.replace(pool, before)
    before.free_count -= 1
    ours.replace(pool, after)
    assert pool.members == {"one": after}
    await asyncio.sleep(2 * fleet.IDLE_POLL_S)
    assert not old.closed.is_set()
    before.free_count += 1
    await closed(old)
    assert not new.closed.is_set()
    await ours.close()
    assert new.closed.is_set()


async def test_one_that_nobody_asks_for_any_more_serves_its_calls_first() -> None:
    pool, engine, ours = Pool[Any]("up", queued_max=9), Engine(), Fleet()
    one = member(engine)
    ours.add(pool, one)
    one.free_count -= 1
    ours.remove("one")
    assert pool.members == {"one": one}, "who waits in its queue is served"
    one.free_count += 1
    await closed(engine)
    assert not pool.members


async def test_in_a_pool_that_is_left_a_retired_member_serves_the_queue() -> None:
    pool, engine, ours = Pool[Any]("m", queued_max=9), Engine(), Fleet()
    ours.add(pool, member(engine))
    ours.leave(["m"])
    ours.retire("one")
    assert "one" in pool.members
    await ours.close()
    assert engine.closed.is_set()


async def test_closing_cuts_what_was_waited_for() -> None:
    pool, engine, ours = Pool[Any]("up", queued_max=9), Engine(), Fleet()
    one = member(engine)
    ours.add(pool, one)
    one.free_count -= 1
    ours.remove("one")
    await ours.close()
    assert engine.closed.is_set()
