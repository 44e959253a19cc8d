"""Whether everybody gets their part: `make gate-fair`. The goals and what they mean: docs/explanation/scheduling.md.

Run: python -m gate.fair [--size full|short] [--only simulated|platform|engine …]; exit 1 when a goal is missed.
Most is played in virtual time on the real pool; the platform and the real engine show that the rest of the way keeps it.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gate import fair_engine, fair_platform, fair_simulated, machine
from gate.fair_goals import Goal, rows, sentence
from gate.rows import Size

NAME = "fair"
RESULTS = Path(__file__).resolve().parent / "results"
MINUTES: dict[Size, int] = {"full": 10, "short": 2}
"""Virtual minutes of each simulated load."""


async def simulated(size: Size) -> list[Goal]:
    """See fair_simulated. On a thread: it runs event loops of its own."""
    return await asyncio.to_thread(fair_simulated.run, MINUTES[size])


async def platform(size: Size) -> list[Goal]:
    """See fair_platform; minutes, or seconds for the short size."""
    windows_count, window_s, rounds_count, round_s = (2, 60.0, 2, 20.0) if size == "full" else (1, 8.0, 1, 4.0)
    goals = await fair_platform.equal_tenants(windows_count, window_s)
    goals += await fair_platform.quiet_tenant(window_s)
    if size == "full":
        goals += await fair_platform.as_much_as_first_come(round_s, rounds_count)
        goals += await fair_platform.equal_tenants(1, window_s, twin="first_come")
    return goals + await fair_platform.quiet_tenant(window_s, twin="first_come")


async def engine(size: Size) -> list[Goal]:
    """See fair_engine."""
    return await fair_engine.run(prompts_count=fair_engine.PROMPTS_COUNT if size == "full" else 12)


PARTS: dict[str, Callable[[Size], Awaitable[list[Goal]]]] = {
    "simulated": simulated,
    "platform": platform,
    "engine": engine,
}


async def measure(size: Size, parts: list[str]) -> list[Goal]:
    """One part after the other; each figure is told when it is known."""
    goals: list[Goal] = []
    for part in parts:
        found = await PARTS[part](size)
        for goal in found:
            print(f"{'' if goal.is_met else 'MISSED '}{goal}", flush=True)
        goals += found
    return goals


def main(argv: list[str] | None = None) -> int:
    """Measure, write the result, say it in one sentence; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m gate.fair", description="Whether everybody gets their part.")
    parser.add_argument("--size", choices=("full", "short"), default="full")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args(argv)
    size: Size = options.size
    started_at, begun_s = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    goals = asyncio.run(measure(size, options.only))
    duration_s = time.monotonic() - begun_s
    if size == "full" and options.only == list(PARTS):
        result = {
            "test": NAME,
            "size": size,
            "machine": machine.describe(),
            "started_at": started_at,
            "duration_s": round(duration_s, 1),
            "rows": rows(NAME, goals),
        }
        (RESULTS / f"{NAME}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    print(sentence(goals, duration_s), flush=True)
    return int(any(not goal.is_met for goal in goals))


if __name__ == "__main__":
    sys.exit(main())
