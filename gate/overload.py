"""Ten times more than can be served, from clients that don't wait: goodput stays, refusals are quick and true, it recovers.

The engine is the bottleneck: places × pace. The gateway has one core to itself, load and engine share another. Capacity is
measured first, in the same run; every multiple is of that.
"""

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.process import choose_cores, cpu_s, pinned
from gate.open_loop import Order, Phase, Result, Second, run_order
from gate.progress import Progress
from gate.rows import Row, Size, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.auditor import audit
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

NAME = "overload"
MODEL, PLACES = "m:tokens=8,gap_ms=12", 16
PACE_RPS = PLACES / (8 * 0.012)
"""What the engine alone can serve: a machine with other work may measure less, and then ten times of it is no flood."""
MULTIPLES = {"full": (1, 2, 5, 10), "short": (1, 10)}
PHASE_S = {"full": 60.0, "short": 4.0}
AFTER_S = {"full": 60.0, "short": 4.0}
MEASURED_S, CALLERS_COUNT = {"full": 8.0, "short": 3.0}, 2 * PLACES
FIRST_S, TOTAL_S, GIVE_UP_S = {"full": 2.0, "short": 1.5}, {"full": 5.0, "short": 1.5}, 10.0
"""A good answer: a stream's first token within FIRST_S, an answer in one piece within TOTAL_S of when it was due.

Both are well under a phase: what comes early in a phase is answered in time by any order, a queue without bound too.
"""
GOODPUT_MIN, RECOVERY_S_MAX, LAG_P99_S_MAX = 0.9, 10.0, {"full": 0.05, "short": 0.25}
REFUSAL_SHARE_MAX = 0.2
WELL = 0.9
"""A second in which this share of the first phase's goodput was reached is a good one again."""
TWINS = {"nobody_is_refused": "beyond"}
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
GATEWAY: dict[str, object] = {"queued_requests_max": 128, "concurrent_requests_max": 512, "drain_timeout_s": 0.5}


class Lag(NamedTuple):
    """Samples of the platform's own histogram: how many in all, and how many within each bound."""

    samples_count: float
    within: Mapping[float, float]

    def p99_s(self, before: "Lag") -> float:
        """The smallest bound that holds 99 of 100 samples since `before`; infinite when the last one doesn't."""
        wanted = 0.99 * (self.samples_count - before.samples_count)
        found = [bound for bound, count in self.within.items() if count - before.within[bound] >= wanted]
        return min(found, default=float("inf"))


async def read_lag(platform: Platform) -> Lag:
    """The histogram as it stands."""
    prefix = "headwater_gateway_event_loop_lag_seconds"
    metrics = await platform.metrics()
    within = {
        float(name.split('"')[1]): value
        for name, value in metrics.items()
        if name.startswith(f"{prefix}_bucket") and "+Inf" not in name
    }
    return Lag(metrics[f"{prefix}_count"], within)


@contextlib.contextmanager
def one_core_each() -> Iterator[int | None]:
    """This process, and so load and engine, on one core; yields the core of the platform, None where there is only one."""
    before = os.sched_getaffinity(0)
    try:
        cores = choose_cores()
    except RuntimeError:
        yield None
        return
    os.sched_setaffinity(0, {cores.load})
    try:
        yield cores.subject
    finally:
        os.sched_setaffinity(0, before)


@contextlib.asynccontextmanager
async def flooded_platform(*, twin: str | None, core: int | None) -> AsyncIterator[tuple[Platform, FakeEngineHandle]]:
    """A platform with one upstream of so many places, sound or a twin, on a core of its own, until the block ends."""
    command = [] if twin is None else twins.wrapper(twin)
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        async with fake_engine() as engine:
            text = config(
                upstreams=[upstream("fake", engine.base_url, [MODEL], concurrency_max=PLACES)], gateway=GATEWAY
            )
            env = UNMEASURED | twins.ENVIRONMENT
            async with contextlib.AsyncExitStack() as stack:
                with contextlib.nullcontext() if core is None else pinned(core):  # inherited by what is started
                    platform = await stack.enter_async_context(
                        running_platform(text, Path(folder) / "p", wrapper=command, env=env)
                    )
                yield platform, engine


async def play(platform: Platform, *phases: Phase, size: Size, seed: int) -> Result:
    """Put this load on the platform, from a process of its own."""
    bodies = [msgspec.Raw(msgspec.json.encode(chat_body(f"fake/{MODEL}", stream=stream))) for stream in (True, False)]
    order = Order(
        port=int(platform.root_url.rpartition(":")[2]),
        key=platform.key,
        path="/v1/chat/completions",
        bodies=bodies,
        phases=list(phases),
        first_s=FIRST_S[size],
        total_s=TOTAL_S[size],
        give_up_s=GIVE_UP_S,
        seed=seed,
    )
    return await run_order(order)


def goodput(seconds: Sequence[Second]) -> float:
    """Good answers a second, over the whole seconds of a phase."""
    whole = seconds[:-1] or seconds
    return sum(second.good for second in whole) / len(whole)


def recovery_s(seconds: Sequence[Second], wanted: float) -> float:
    """From which second on goodput stays at what it was, over two seconds each; infinite when it isn't there at the end."""
    whole = [second.good for second in seconds[:-1]]
    last_bad = -1
    for at in range(len(whole) - 1):
        if (whole[at] + whole[at + 1]) / 2 < WELL * wanted:
            last_bad = at
    return float("inf") if last_bad == len(whole) - 2 else float(last_bad + 1)


async def flood(
    size: Size, seed: int, progress: Progress, *, twin: str | None = None, capacity: float | None = None
) -> dict[str, int | float]:
    """Measure capacity, offer every multiple of it, then once more what it can do; the figures, with `beyond` the goals missed.

    capacity: of a sound build, for a twin.
    """
    figures: dict[str, int | float] = {}
    with one_core_each() as core:
        async with flooded_platform(twin=twin, core=core) as (platform, engine):
            if capacity is None:
                measured = await play(
                    platform, Phase(seconds=MEASURED_S[size], callers=CALLERS_COUNT), size=size, seed=seed
                )
                capacity = sum(second.good for second in measured.seconds[0][1:-1]) / (len(measured.seconds[0]) - 2)
            figures["capacity_rps"] = round(capacity, 1)
            progress.advance()
            served_s = 0.0
            lag_p99_s, unsaid, complaints = 0.0, 0, []
            goodputs: dict[int, float] = {}
            for multiple in MULTIPLES[size]:
                before, began_cpu_s = await read_lag(platform), cpu_s(platform.pid)
                got = await play(platform, Phase(seconds=PHASE_S[size], rate=capacity * multiple), size=size, seed=seed)
                used_s, seconds = cpu_s(platform.pid) - began_cpu_s, got.seconds[0]
                p99_s = (await read_lag(platform)).p99_s(before)
                lag_p99_s = max(lag_p99_s, p99_s)
                goodputs[multiple] = goodput(seconds)
                unsaid += got.unsaid_count
                done = sum(second.good + second.late for second in seconds)
                refused = sum(second.refused for second in seconds)
                if multiple == 1:
                    served_s = used_s / max(1, done)
                figures |= {
                    f"goodput_{multiple}x_rps": round(goodputs[multiple], 1),
                    f"refused_{multiple}x": refused,
                    f"late_{multiple}x": sum(second.late for second in seconds),
                    f"cpu_{multiple}x_percent": round(100 * used_s / PHASE_S[size]),
                    f"failed_{multiple}x": sum(second.failed for second in seconds),
                    f"lag_p99_{multiple}x_ms": p99_s * 1000,
                    f"refusal_p99_{multiple}x_ms": got.refusal_ms_p99[0],
                    f"ttft_p99_{multiple}x_ms": got.good_ms_p99[0],
                }
                complaints += got.failures
                progress.advance()
            figures["refusal_us"] = round(max(0.0, used_s - done * served_s) / max(1, refused) * 1e6)
            figures["served_us"] = round(served_s * 1e6)
            after = await play(platform, Phase(seconds=AFTER_S[size], rate=capacity), size=size, seed=seed)
            figures["recovery_s"] = recovery_s(after.seconds[0], goodputs[1])
            progress.advance()
            await platform.idle(timeout_s=60.0)
            found = audit(platform.database, await engine.settled(0, timeout_s=30.0))
            complaints += map(str, found.findings)
            figures |= found.metrics
    peak, top = max(goodputs.values()), goodputs[MULTIPLES[size][-1]]
    figures |= {"kept_percent": round(100 * top / peak, 1), "unsaid": unsaid}
    goals = {
        "kept_percent": top >= GOODPUT_MIN * peak,
        "recovery_s": figures["recovery_s"] <= RECOVERY_S_MAX,
        "lag": lag_p99_s <= LAG_P99_S_MAX[size],
        "refusal_us": figures["refusal_us"] <= REFUSAL_SHARE_MAX * figures["served_us"],
    }
    figures["beyond"] = sum(not met for met in goals.values())
    if twin is None:
        for words in [*(f"{name}: missed" for name, met in goals.items() if not met), *complaints]:
            progress.say(words)
    return figures


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """The flood, then the twins, each at the short size."""
    steps = 2 + len(MULTIPLES[size]), 2 + len(MULTIPLES["short"])
    done = steps[0] * state.is_done("flood") + steps[1] * sum(state.is_done(f"twin-{twin}") for twin in TWINS)
    progress.begin("phases", steps[0] + steps[1] * len(TWINS), done=done)
    if not state.is_done("flood"):
        state.save("flood", await flood(size, seed, progress))
    for twin, metric in TWINS.items():
        if not state.is_done(f"twin-{twin}"):
            capacity = max(PACE_RPS, state.figures("flood")["capacity_rps"])
            figures = await flood("short", seed, progress, twin=twin, capacity=capacity)
            state.save(f"twin-{twin}", {metric: figures[metric]})
    rows = rows_of(NAME, state.figures("flood"))
    for twin, metric in TWINS.items():
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")[metric] > 0))
    return rows
