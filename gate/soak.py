"""Two hundred thousand requests, a twentieth of them faulty and a twentieth left: memory stays flat, and nothing is left over.

Half of them stream. Each leg is one platform from its start to its end; after every ten thousand requests it is let idle
and asked what it holds. In the end the auditor compares the books of each leg with the engine's own account.
"""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from gate.open_loop import Order, Phase, Result, run_order
from gate.overload import UNMEASURED, one_core_each
from gate.progress import Progress
from gate.rows import Row, Size, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.auditor import audit
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import fake_engine

NAME = "soak"
LEGS = {"full": 2, "short": 1}
STEPS = {"full": (2_000, *[10_000] * 10), "short": (2_000, 800, 800)}
"""Requests of each step of a leg; the first only warms up what is opened and cached once."""
WARM_STEPS = {"full": 2, "short": 0}
"""Looks at memory that don't count: until about 1,800 requests caches and pools fill, and the allocator finds its size."""
SLOPE_MB_MAX = {"full": 1.0, "short": 12.0}
"""MB per ten thousand requests. The short form sees too few of them for more than the leak of its twin."""
CALLERS_COUNT = 16
GOOD = ("m:tokens=6", "m:tokens=12,batch=4", "m:reasoning=3,cached=4,tokens=4", "m:tokens=3")
FAULTY = (
    *("m:tokens=9,cut_after=4", "m:tokens=9,error_in_200_after=2", "m:tokens=9,stall_after=5", "m:tokens=9,no_usage"),
    *("m:tokens=9,usage_negative", "m:status=500", "m:close_immediately", "m:tokens=9,bad_json_after=3"),
)
LEFT = "m:tokens=400,gap_ms=5"
BODIES_COUNT, FAULTY_COUNT, LEFT_COUNT = 320, 16, 16
GATEWAY: dict[str, object] = {"idle_timeout_s": 0.5, "first_byte_timeout_s": 5.0, "drain_timeout_s": 0.5}
IDLE_TIMEOUT_S, KEPT_S = 30.0, 4.5
TWINS = {"requests_are_kept": "beyond"}


class Held(NamedTuple):
    """What an idle platform holds, by its own metrics and the kernel's account."""

    resident_mb: float
    tasks_count: int
    descriptors_count: int
    live_count: int
    queued_count: int


def bodies() -> tuple[list[msgspec.Raw], list[int]]:
    """The requests that are sent in turn, half of them streams; and the numbers of those whose clients leave."""
    made, leavers = [], []
    for at in range(BODIES_COUNT):
        model, is_stream = GOOD[at // 2 % len(GOOD)], at % 2 == 0
        if at % (BODIES_COUNT // FAULTY_COUNT) == 7:
            model, is_stream = FAULTY[at // (BODIES_COUNT // FAULTY_COUNT) % len(FAULTY)], at % 40 < 20
        elif at % (BODIES_COUNT // LEFT_COUNT) == 12:
            model, is_stream = LEFT, at % 40 < 20
            leavers.append(at)
        made.append(msgspec.Raw(msgspec.json.encode(chat_body(f"fake/{model}", stream=is_stream))))
    return made, leavers


async def look(platform: Platform) -> Held:
    """Let it become idle, and see what it holds."""
    await platform.idle(timeout_s=IDLE_TIMEOUT_S)
    metrics = await platform.metrics()
    queued = sum(value for name, value in metrics.items() if name.startswith("headwater_gateway_queued"))
    return Held(
        metrics["process_resident_memory_bytes"] / 1e6,
        int(metrics["headwater_gateway_tasks"]),
        int(metrics["process_open_fds"]),
        int(metrics["headwater_gateway_live_requests"]),
        int(queued),
    )


def slope_mb(held: Sequence[Held], step: int) -> float:
    """Least squares: MB of resident memory that each ten thousand requests add. step: requests between two looks."""
    xs = [at * step / 10_000 for at in range(len(held))]
    x_mean, y_mean = sum(xs) / len(xs), sum(one.resident_mb for one in held) / len(held)
    over = sum((x - x_mean) * (one.resident_mb - y_mean) for x, one in zip(xs, held, strict=True))
    return over / sum((x - x_mean) ** 2 for x in xs)


async def play(platform: Platform, count: int, seed: int) -> Result:
    """So many requests, from a process of its own."""
    made, leavers = bodies()
    order = Order(
        port=int(platform.root_url.rpartition(":")[2]),
        key=platform.key,
        path="/v1/chat/completions",
        bodies=made,
        leavers=leavers,
        phases=[Phase(requests=count, callers=CALLERS_COUNT)],
        give_up_s=60.0,
        seed=seed,
    )
    return await run_order(order)


async def leg(size: Size, seed: int, progress: Progress, *, twin: str | None = None) -> dict[str, int | float]:
    """One platform through all its steps, judged."""
    command = [] if twin is None else twins.wrapper(twin)
    figures: dict[str, int | float] = {"requests": 0, "good": 0, "faulty": 0, "left": 0, "refused": 0}
    complaints: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hw-") as folder, one_core_each():
        async with fake_engine() as engine:
            text = config(
                upstreams=[
                    upstream("fake", engine.base_url, [*GOOD, *FAULTY, LEFT], running_counts="timings_per_token")
                ],
                gateway=GATEWAY,
            )
            env = UNMEASURED | twins.ENVIRONMENT
            async with running_platform(text, Path(folder) / "p", wrapper=command, env=env) as platform:
                held: list[Held] = []
                for at, count in enumerate(STEPS[size]):
                    got = (await play(platform, count, seed)).seconds[0][0]
                    figures["requests"] += got.asked
                    figures["good"] += got.good
                    figures["faulty"] += got.failed + got.late
                    figures["left"] += got.left
                    figures["refused"] += got.refused
                    held.append(await look(platform))
                    if at == 0:
                        base = await settled(platform)
                    else:
                        progress.advance(count)
                if twin is None:
                    complaints += _left_over(platform, base, await settled(platform))
                figures["leaked"] = len(complaints)
                await platform.stop()
                found = audit(platform.database, await engine.settled(0, timeout_s=IDLE_TIMEOUT_S))
                for metric, value in found.metrics.items():
                    figures[metric] = figures.get(metric, 0) + value
                complaints += map(str, found.findings)
    seen = held[WARM_STEPS[size] :]
    slope = slope_mb(seen, STEPS[size][-1])
    figures |= {"slope_mb_per_10k": round(slope, 2), "resident_mb": round(held[-1].resident_mb, 1)}
    figures["beyond"] = int(slope > SLOPE_MB_MAX[size])
    if twin is None:
        progress.say("MB when idle: " + ", ".join(f"{one.resident_mb:.1f}" for one in held))
        for words in complaints[:20]:
            progress.say(words)
    return figures


async def settled(platform: Platform) -> Held:
    """What it holds once the connections to engines that it keeps for a while are too old; a request closes the oldest."""
    await asyncio.sleep(KEPT_S)
    for _ in range(CALLERS_COUNT + 1):
        await platform.ask(chat_body(f"fake/{GOOD[-1]}"))
    return await look(platform)


def _left_over(platform: Platform, before: Held, after: Held) -> list[str]:
    """What an idle platform has more than at its beginning."""
    said = [
        f"{name}: {value} after, {base} before"
        for name, value, base in zip(Held._fields[1:], after[1:], before[1:], strict=True)
        if value > base
    ]
    sql = "SELECT count(*) AS n FROM reservations WHERE id NOT IN (SELECT reservation_id FROM resolutions)"
    holds = platform.rows(sql)[0]["n"]
    return said + ([f"{holds} reservations are open"] if holds else [])


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every leg, then the twin at the short size."""
    names = [f"leg-{at}" for at in range(LEGS[size])]
    of_leg, of_twin = sum(STEPS[size][1:]), sum(STEPS["short"][1:])
    done = of_leg * sum(map(state.is_done, names)) + of_twin * sum(state.is_done(f"twin-{twin}") for twin in TWINS)
    progress.begin("requests", of_leg * len(names) + of_twin * len(TWINS), done=done)
    for at, name in enumerate(names):
        if not state.is_done(name):
            state.save(name, await leg(size, seed + at, progress))
    for twin, metric in TWINS.items():
        if not state.is_done(f"twin-{twin}"):
            figures = await leg("short", seed, progress, twin=twin)
            state.save(f"twin-{twin}", {metric: figures[metric]})
    rows = rows_of(NAME, _summed(state, names))
    for twin, metric in TWINS.items():
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")[metric] > 0))
    return rows


def _summed(state: State, names: Sequence[str]) -> Mapping[str, int | float]:
    """All legs together; of slopes and sizes the worst."""
    worst = {
        metric: max(state.figures(name)[metric] for name in names) for metric in ("slope_mb_per_10k", "resident_mb")
    }
    return {**state.sums("leg-"), **worst}
