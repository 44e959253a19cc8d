"""Tenants and an engine in virtual time around the real pool: hours of load in seconds, the same at every run.

The engine reads a prompt at a fixed pace and makes tokens at a fixed pace, on each slot alike; what a slot has read of a
prompt is not read again. Everything else is the product: `Pool`, `FairQueue`, `Placing`.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from headwater.errors import Overloaded
from headwater.gateway.pool import CHARGE_TOKENS, Ask, Member, Place, Pool
from headwater.scheduling.bands import Band
from headwater.scheduling.fair_queue import INPUT_WEIGHT, OUTPUT_WEIGHT, FairQueue
from tests.unit.gateway.fake_time import FakeTimeLoop

READ_PER_S, MADE_PER_S = 2000.0, 50.0
"""Input tokens read and output tokens made in a second on one slot."""
BLOCK_TOKENS = 32
WARM_UP_S = 60.0

Queue = FairQueue[Place[str]]


class Tenant(NamedTuple):
    """Who asks for what, how often.

    rate_per_s: requests come at random; None: `depth` requests always wait or run. prefixes_count: so many long beginnings
    that its prompts share, none if 0.
    """

    organization: str
    key: str = "key"
    weight: int = 1
    key_weight: int = 1
    band: Band = Band.STANDARD
    input_tokens: tuple[int, int] = (16, 64)
    output_tokens: tuple[int, int] = (16, 48)
    rate_per_s: float | None = None
    depth: int = 32
    prefixes_count: int = 0

    @property
    def name(self) -> str:
        """For figures."""
        return f"{self.organization}/{self.key}"

    @property
    def service_s(self) -> float:
        """Seconds that its mean request takes on a slot."""
        return sum(self.input_tokens) / 2 / READ_PER_S + sum(self.output_tokens) / 2 / MADE_PER_S


class Outcome:
    """What came of a run. Everything from the end of the warm-up on."""

    def __init__(self) -> None:
        self.windows: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        """Cost served by number of the minute and tenant."""
        self.waits_s: dict[str, list[float]] = defaultdict(list)
        self.refused: dict[str, int] = defaultdict(int)
        self.cached_tokens = self.prompt_tokens = 0
        self.gap_max = 0.0
        self.tokens = 0.0
        self.busy = 0.0

    def shares(self, window: int) -> dict[str, float]:
        """Each tenant's part of what was served in one minute."""
        served = self.windows[window]
        total = sum(served.values())
        return {name: cost / total for name, cost in sorted(served.items())}

    def of_all(self) -> dict[str, float]:
        """Cost served by tenant over all minutes."""
        sums: dict[str, float] = defaultdict(float)
        for served in self.windows.values():
            for name, cost in served.items():
                sums[name] += cost
        return dict(sorted(sums.items()))


class World:
    """One pool with its replicas, its tenants, and the account of what they got."""

    def __init__(
        self,
        tenants: Sequence[Tenant],
        queue: Queue,
        *,
        slots: Sequence[int] = (8,),
        queued_max: int = 256,
        seed: int = 1,
    ) -> None:
        self.tenants = tenants
        self.outcome = Outcome()
        self._random = random.Random(f"fair {seed}")
        self._queue = queue
        self._slots = slots
        self._queued_max = queued_max
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, minutes: int) -> Outcome:
        """Play the load for so many minutes after a minute of warm-up."""
        with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
            runner.run(self._play(minutes))
        return self.outcome

    async def _play(self, minutes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin_s = self._loop.time() + WARM_UP_S
        self._end_s = self._begin_s + 60.0 * minutes
        self._pool = Pool[str]("m", queued_max=self._queued_max, queue=self._queue)
        for number, count in enumerate(self._slots):
            self._pool.add_member(Member(f"rep_{number}", "", count, is_slotted=True))
        drivers = [asyncio.ensure_future(self._drive(tenant)) for tenant in self.tenants]
        while self._loop.time() < self._end_s:
            await asyncio.sleep(1.0)
            if self._loop.time() >= self._begin_s:
                self.outcome.gap_max = max(self.outcome.gap_max, self._pool.fairness_gap)
        for task in (*drivers, *self._tasks):
            task.cancel()
        await asyncio.gather(*drivers, *self._tasks, return_exceptions=True)

    async def _drive(self, tenant: Tenant) -> None:
        if tenant.rate_per_s is not None:
            while True:
                await asyncio.sleep(self._random.expovariate(tenant.rate_per_s))
                self._start(tenant, lambda: None)
        places = asyncio.Semaphore(tenant.depth)
        while True:
            await places.acquire()
            self._start(tenant, places.release)

    def _start(self, tenant: Tenant, done: Callable[[], None]) -> None:
        task = asyncio.ensure_future(self._request(tenant))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: done())

    async def _request(self, tenant: Tenant) -> None:
        draw = self._random
        input_tokens, output_tokens = draw.randint(*tenant.input_tokens), draw.randint(*tenant.output_tokens)
        ask = Ask(
            tenant.organization,
            tenant.name,
            tenant.band,
            tenant.weight,
            tenant.key_weight,
            input_tokens=input_tokens,
            prefix=self._prefix(tenant, input_tokens),
        )
        pool, came_s = self._pool, self._loop.time()
        is_counted = came_s >= self._begin_s
        try:
            pool.check(1, ask)
            lease = await pool.lease(ask)
        except Overloaded:
            self.outcome.refused[tenant.name] += is_counted
            return
        if is_counted:
            self.outcome.waits_s[tenant.name].append(self._loop.time() - came_s)
            self.outcome.cached_tokens += lease.warm_tokens
            self.outcome.prompt_tokens += input_tokens
        uncached = input_tokens - lease.warm_tokens
        await asyncio.sleep(uncached / READ_PER_S)
        self._served(tenant, INPUT_WEIGHT * uncached)
        made = 0
        while made < output_tokens:
            step = min(CHARGE_TOKENS, output_tokens - made)
            await asyncio.sleep(step / MADE_PER_S)
            made += step
            lease.charge(made)
            self._served(tenant, OUTPUT_WEIGHT * step)
        pool.release(lease, prefix=ask.prefix, input_tokens=uncached, output_tokens=made)

    def _prefix(self, tenant: Tenant, input_tokens: int) -> tuple[int, ...]:
        """One hash a block: all but the last fifth is one of the tenant's shared beginnings."""
        if not tenant.prefixes_count:
            return ()
        blocks = max(1, input_tokens // BLOCK_TOKENS)
        which, shared = self._random.randrange(tenant.prefixes_count), blocks * 4 // 5
        start = hash((tenant.organization, which))
        own = [self._random.getrandbits(60) for _ in range(blocks - shared)]
        return tuple([hash((start, at)) for at in range(shared)] + own)

    def _served(self, tenant: Tenant, cost: float) -> None:
        now_s = self._loop.time()
        if self._begin_s <= now_s < self._end_s:
            self.outcome.windows[int((now_s - self._begin_s) // 60)][tenant.name] += cost


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything. Source: Jain, Chiu, Hawe (1984)."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values)) if any(values) else 0.0


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` of all are not above; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0
