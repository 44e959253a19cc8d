"""F1, F3 and F4 on the real platform in front of the fake engine, and first come, first served in its place."""

import asyncio
import contextlib
import itertools
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from gate.fair_goals import Goal, at_most
from gate.fair_world import jain, percentile
from headwater.scheduling.fair_queue import OUTPUT_WEIGHT
from tests.rig import twins
from tests.rig.admin import administer
from tests.rig.clients import ask
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import fake_engine

PLACES_COUNT = 8
MESSAGES = [{"role": "user", "content": "Say something, please."}]
INPUT_TOKENS = 6
"""As the fake engine counts them: three for the message, one for each word."""


class Kind(NamedTuple):
    """Requests alike: how many tokens an answer has, and the pace of the fake engine."""

    tokens: int
    gap_ms: int

    @property
    def model(self) -> str:
        """The fake engine's model that answers so."""
        return f"m:tokens={self.tokens},gap_ms={self.gap_ms}"

    @property
    def cost(self) -> int:
        """As the queue counts it."""
        return INPUT_TOKENS + OUTPUT_WEIGHT * self.tokens


SHORT, LONG = (Kind(8, 15),), (Kind(40, 15),)
MIXED, MIXED_S = (Kind(20, 20), Kind(40, 20), Kind(60, 20)), 0.8
"""Lengths that differ, as they do: answers all alike that began together would end together for ever, and places come free
in bunches that no order can help. MIXED_S: what one takes in the mean, were the engine all there is."""
CALLERS_COUNT = 32
WAIT_S_MAX = 60.0


class Load:
    """The callers of one organization, and when each of their answers was complete."""

    def __init__(self, platform: Platform, name: str, key: str, kinds: Sequence[Kind]) -> None:
        self.name = name
        self.done: list[tuple[float, int]] = []
        """When an answer was complete, and its cost."""
        self.refused_count = 0
        self.given_up_s: list[float] = []
        """How long those had waited for their answer whom the end of the load cut off."""
        self._platform = platform
        self._key = key
        self._kinds = itertools.cycle(kinds)
        self._tasks: set[asyncio.Task[None]] = set()

    async def always(self, callers_count: int) -> None:
        """So many callers, each asking again when it was answered."""
        await asyncio.gather(*(self._caller() for _ in range(callers_count)))

    async def at_random(self, rate_per_s: float) -> None:
        """Requests at random moments, whatever becomes of them."""
        draw = random.Random(f"fair {self.name}")
        due_s = time.monotonic()
        try:
            while True:
                due_s += draw.expovariate(rate_per_s)
                await asyncio.sleep(due_s - time.monotonic())
                task = asyncio.ensure_future(self._once())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            left = list(self._tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def cost(self, begin_s: float, end_s: float) -> float:
        """What was served in a span of time, as the queue counts it."""
        return sum(cost for done_s, cost in self.done if begin_s <= done_s < end_s)

    async def _caller(self) -> None:
        while True:
            await self._once()

    async def _once(self) -> None:
        kind = next(self._kinds)
        body = {"model": f"fake/{kind.model}", "messages": MESSAGES}
        asked_s = time.monotonic()
        try:
            got = await ask(self._platform.base_url, body, api_key=self._key, timeout_s=WAIT_S_MAX)
        except asyncio.CancelledError:
            self.given_up_s.append(time.monotonic() - asked_s)
            raise
        if got.status == 200:
            self.done.append((time.monotonic(), kind.cost))
        else:
            assert got.status == 503, got.body
            self.refused_count += 1


@contextlib.asynccontextmanager
async def shared_platform(twin: str | None = None) -> AsyncIterator[Callable[[str, Sequence[Kind]], Awaitable[Load]]]:
    """A platform with one upstream; what it yields makes an organization with its load."""
    command = [] if twin is None else twins.wrapper(twin)
    with TemporaryDirectory(prefix="hw-") as folder:
        async with fake_engine() as engine:
            models = [kind.model for kind in (*SHORT, *LONG, *MIXED)]
            fake = upstream("fake", engine.base_url, models, concurrency_max=PLACES_COUNT)
            text = config(upstreams=[fake], gateway={"queued_requests_max": 128})
            directory = Path(folder) / "p"
            async with running_platform(text, directory, wrapper=command, env=twins.ENVIRONMENT) as platform:

                async def organization(name: str, kinds: Sequence[Kind]) -> Load:
                    await administer(platform, "organizations.create", name=name)
                    made: dict[str, Any] = await administer(platform, "keys.create", name=name, organization=name)
                    return Load(platform, name, made["key"], kinds)

                organization.platform = platform  # type: ignore[attr-defined]
                yield organization


async def play(*loads: Awaitable[None], seconds: float, warm_up_s: float = 2.0) -> float:
    """Let these run for so long after a warm-up; returns when the warm-up was over, on the monotonic clock."""
    tasks = [asyncio.ensure_future(load) for load in loads]
    await asyncio.sleep(warm_up_s)
    begun_s = time.monotonic()
    ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*(task for task in tasks if task not in ended), return_exceptions=True)
    for task in ended:
        task.result()  # a load ends by itself only when it failed
    return begun_s


async def equal_tenants(windows_count: int, window_s: float, *, twin: str | None = None) -> list[Goal]:
    """F1: one organization with short requests, one with long ones, both always waiting."""
    async with shared_platform(twin) as organization:
        short, long = await organization("short", SHORT), await organization("long", LONG)
        seconds = windows_count * window_s
        begun_s = await play(short.always(CALLERS_COUNT), long.always(CALLERS_COUNT), seconds=seconds)
    spans = [(begun_s + at * window_s, begun_s + (at + 1) * window_s) for at in range(windows_count)]
    worst = min(jain([one.cost(*span) for one in (short, long)]) for span in spans)
    return [Goal("F1_platform_jain_min", worst, 0.99, twin=twin)]


async def quiet_tenant(seconds: float, *, twin: str | None = None) -> list[Goal]:
    """F3: one organization at a quarter of the capacity beside one that sends ten times the capacity."""
    capacity_per_s = PLACES_COUNT / MIXED_S
    async with shared_platform(twin) as organization:
        quiet, flood = await organization("quiet", MIXED), await organization("flood", MIXED)
        loads = (quiet.at_random(0.25 * capacity_per_s), flood.at_random(10 * capacity_per_s))
        await play(*loads, seconds=seconds)
        platform: Platform = organization.platform  # type: ignore[attr-defined]
        sql = "SELECT queue_ms, duration_ms, name FROM usage_records u JOIN organizations o ON o.id = u.organization_id"
        served = platform.rows(sql + " WHERE outcome = 'ok'")
        service_s = statistics.fmean((row["duration_ms"] - row["queue_ms"]) / 1000 for row in served)
        waits_s = [row["queue_ms"] / 1000 for row in served if row["name"] == quiet.name]
        # Whoever was cut off waited all the time that isn't its service.
        waits_s += [max(0.0, waited_s - service_s) for waited_s in quiet.given_up_s]
    goals = [at_most("F3_platform_wait_p95_s", percentile(waits_s, 0.95), service_s, " s")._replace(twin=twin)]
    if twin is None:
        goals.append(at_most("F3_platform_refused", quiet.refused_count, 0))
    return goals


async def throughput(seconds: float, *, twin: str | None = None) -> float:
    """Cost served a second with two organizations that always wait, both with long requests."""
    async with shared_platform(twin) as organization:
        loads = [await organization(name, LONG) for name in ("one", "two")]
        begun_s = await play(*(load.always(CALLERS_COUNT) for load in loads), seconds=seconds)
    return sum(load.cost(begun_s, begun_s + seconds) for load in loads) / seconds


async def as_much_as_first_come(seconds: float, rounds_count: int) -> list[Goal]:
    """F4: what a fair order costs in throughput, measured in turns."""
    fair = first_come = 0.0
    for _ in range(rounds_count):
        fair += await throughput(seconds)
        first_come += await throughput(seconds, twin="first_come")
    return [Goal("F4_throughput_part", fair / first_come, 0.97)]
