import asyncio
from typing import Any

from headwater.gateway.deadline import Deadline
from tests.unit.gateway.fake_time import run


class Watched:
    """A deadline on the running loop and the moments, from its making on, at which it expired."""

    def __init__(self, limit_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.made_s = self.loop.time()
        self.expired_s: list[float] = []
        self.deadline = Deadline(self.loop, limit_s, self._expire)

    def _expire(self) -> None:
        self.expired_s.append(round(self.loop.time() - self.made_s, 6))


def test_it_expires_once_after_its_limit() -> None:
    async def work() -> None:
        watched = Watched(10)
        watched.deadline.start()
        await asyncio.sleep(100)
        assert watched.expired_s == [10]

    run(work())


def test_it_does_not_count_before_the_first_start() -> None:
    async def work() -> None:
        watched = Watched(10)
        await asyncio.sleep(95)
        assert watched.expired_s == []
        watched.deadline.start()
        await asyncio.sleep(100)
        assert watched.expired_s == [105]

    run(work())


def test_every_start_counts_anew_and_a_clear_stops_counting() -> None:
    async def work() -> None:
        watched = Watched(10)
        for _ in range(50):
            watched.deadline.start()
            await asyncio.sleep(9.9)
        assert watched.expired_s == []
        watched.deadline.clear()
        await asyncio.sleep(1000)
        assert watched.expired_s == []
        watched.deadline.start()
        await asyncio.sleep(1000)
        assert watched.expired_s == [50 * 9.9 + 1000 + 10]

    run(work())


def test_a_shorter_limit_takes_effect_at_once_and_a_longer_one_too() -> None:
    async def work() -> None:
        short, long = Watched(60), Watched(5)
        short.deadline.start(5)
        long.deadline.start(60)
        await asyncio.sleep(100)
        assert (short.expired_s, long.expired_s) == ([5], [60])

    run(work())


def test_a_closed_one_never_expires() -> None:
    async def work() -> None:
        started, unstarted = Watched(10), Watched(10)
        started.deadline.start()
        for watched in (started, unstarted):
            watched.deadline.close()
            watched.deadline.close()
        await asyncio.sleep(100)
        assert started.expired_s == unstarted.expired_s == []

    run(work())


def test_a_stream_of_chunks_costs_a_timer_for_each_limit_not_for_each_chunk() -> None:
    async def work() -> None:
        watched = Watched(10)
        calls: list[float] = []
        real = watched.loop.call_later

        def counting(delay: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
            calls.append(delay)
            return real(delay, *rest, **more)

        watched.loop.call_later = counting  # type: ignore[assignment, method-assign]
        for _ in range(1000):
            watched.deadline.start()
            watched.deadline.clear()
            watched.deadline.start()
        assert calls == []

    run(work())
