"""Leaving a real engine, in the queue, in prefill and in decode: its one slot serves the next request at once.

The engine is llama.cpp with a small model and a single slot, so nothing else can serve the next request: the time from
leaving to its first token, less what that takes when nobody has left, is how long the engine went on.
"""

import asyncio
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gate.children import ROOT
from gate.progress import Progress
from gate.rows import Row, Size, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.clients import Client
from tests.rig.platform import Platform, config, running_platform

NAME = "cancel"
LEAVERS = {"full": 204, "short": 12}
LEAVERS_PER_PLATFORM = 34
TWIN_LEAVERS, ALONE_COUNT = 3, 9
MODEL, NAME_HERE = "smollm2-135m-instruct", "tiny"
CONTEXT_TOKENS = 4096
CANCEL_S_MAX, BATCHES_MAX = 1.0, 2
DECODE_TOKENS = 900
NEXT_TIMEOUT_S, TRIES_MAX = 60.0, 5
TWINS = {"calls_stay_open": "beyond"}
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
QUEUED = f'headwater_gateway_queued{{pool="{NAME_HERE}"}}'
Phase = Literal["queue", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("queue", "prefill", "decode")
Figures = dict[str, int | float]


class Leaver(NamedTuple):
    """One who leaves. after_s: in prefill, that long after it was sent; tokens: in decode, after so many."""

    number: int
    phase: Phase
    is_stream: bool
    how: Literal["fin", "rst"]
    after_s: float
    tokens: int


def plan(count: int, seed: int) -> list[Leaver]:
    """Every phase, streamed and not, in turn."""
    draw = random.Random(f"cancel {seed}")
    kinds = [(phase, is_stream) for phase in PHASES for is_stream in (True, False)]
    return [
        Leaver(number, *kinds[number % 6], draw.choice(["fin", "rst"]), draw.uniform(0.2, 0.6), draw.randint(1, 30))
        for number in range(count)
    ]


def long_prompt(number: int) -> str:
    """Some 1,500 tokens that no slot has read, told apart by their first word."""
    return f"{number}. " + " ".join(f"Room {at} is painted in colour {at * 7 % 13}." for at in range(130))


class Engine:
    """The platform with its one slot, as the leavers use it."""

    def __init__(self, platform: Platform, batch_s: float) -> None:
        """batch_s: what one prefill batch takes, as it was measured at the start."""
        self.platform, self.batch_s = platform, batch_s
        self.alone_s = 0.0
        self._count = 0

    async def next_first_token_s(self) -> float:
        """Ask something short; seconds until its first token."""
        self._count += 1
        began_s = time.monotonic()
        body = chat_body(NAME_HERE, messages=[{"role": "user", "content": f"{self._count}: hi"}], max_tokens=2)
        async with await Client.chat(self.platform.base_url, body, api_key=self.platform.key) as client:
            await client.read_tokens(1, timeout_s=NEXT_TIMEOUT_S)
            took_s = time.monotonic() - began_s
            got = await client.read_to_end(timeout_s=NEXT_TIMEOUT_S)
        assert got.status == 200, got.body
        return took_s

    async def leave(self, one: Leaver) -> tuple[float, list[str]]:
        """Leave as planned; how long the work went on, and what was wrong. A small model may end early: then once more."""
        for again in range(TRIES_MAX):
            name = f"leaver-{one.number}-{again}"
            took_s = await (self._leave_queue if one.phase == "queue" else self._leave_slot)(one, name)
            record = await self.platform.record_of(name)
            if record["outcome"] != "ok":
                return took_s, self._wrong(one, record)
        return 0.0, [f"{one}: the model never wrote long enough to be left"]

    async def _leave_slot(self, one: Leaver, name: str) -> float:
        text = long_prompt(one.number) if one.phase == "prefill" else f"{name}: write a very long story about a river."
        async with await self._ask(text, name, is_stream=one.is_stream) as client:
            if one.phase == "prefill" or not one.is_stream:
                # Without a stream nothing tells that the prompt has been read; a short one has been after this time.
                await asyncio.sleep(one.after_s + (3 * self.alone_s if one.phase == "decode" else 0.0))
            else:
                await client.read_tokens(one.tokens, timeout_s=NEXT_TIMEOUT_S)
            client.leave(one.how)
            return max(0.0, await self.next_first_token_s() - self.alone_s)

    async def _leave_queue(self, one: Leaver, name: str) -> float:
        async with await self._ask(
            "Write a very long story about a river.", f"{name}-holder", is_stream=True
        ) as holder:
            await holder.read_tokens(1, timeout_s=NEXT_TIMEOUT_S)
            async with await self._ask("Hi", name, is_stream=one.is_stream) as client:
                await self._queued(1)
                left_s = time.monotonic()
                client.leave(one.how)
                await self._queued(0)
                took_s = time.monotonic() - left_s
            holder.leave("rst")
            next_s = max(0.0, await self.next_first_token_s() - self.alone_s)
        return max(took_s, next_s)

    async def _ask(self, text: str, name: str, *, is_stream: bool) -> Client:
        body = chat_body(
            NAME_HERE,
            stream=is_stream,
            messages=[{"role": "user", "content": text}],
            max_tokens=DECODE_TOKENS,
            temperature=0,
        )
        return await Client.chat(self.platform.base_url, body, api_key=self.platform.key, request_id=name)

    async def _queued(self, count: int) -> None:
        async with asyncio.timeout(NEXT_TIMEOUT_S):
            while (await self.platform.metrics())[QUEUED] != count:
                await asyncio.sleep(0)

    def _wrong(self, one: Leaver, record: dict[str, Any]) -> list[str]:
        """What is wrong with the books of one who left."""
        calls_count = len(self.platform.attempts(record["request_id"]))
        wrong = []
        if record["outcome"] != "client_gone":
            wrong.append(f"{one}: outcome {record['outcome']}")
        if one.phase == "queue" and calls_count:
            wrong.append(f"{one}: {calls_count} calls from the queue")
        if one.phase != "decode" and (record["output"] or record["cost_nanos"]):
            wrong.append(f"{one}: {record['output']} tokens were billed")
        if one.phase == "decode" and not 0 < record["output"] < DECODE_TOKENS:
            wrong.append(f"{one}: {record['output']} tokens were billed")
        return wrong


@contextlib.asynccontextmanager
async def one_slot(*, twin: str | None) -> AsyncIterator[Engine]:
    """The platform with the real engine, sound or a twin, until the block ends."""
    command = [] if twin is None else twins.wrapper(twin)
    models = os.environ.get("HEADWATER_MODELS__DIRECTORY", str(ROOT / "data" / "models"))
    deployment = {"name": NAME_HERE, "model": MODEL, "slots": 1, "context_tokens": CONTEXT_TOKENS, "threads": 1}
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        text = config(
            deployments=[deployment],
            gateway={"drain_timeout_s": 0.5},
            models={"directory": str(Path(models).absolute())},
        )
        env = UNMEASURED | twins.ENVIRONMENT
        async with running_platform(text, Path(folder) / "p", wrapper=command, env=env) as platform:
            ready = await platform.logged("engine_ready")
            engine = Engine(platform, float(ready["batch_s"]))
            engine.alone_s = statistics.median([await engine.next_first_token_s() for _ in range(ALONE_COUNT)])
            yield engine


async def leave_all(leavers: Sequence[Leaver], progress: Progress, *, twin: str | None = None) -> Figures:
    """One after another on one platform; the figures with every time, so that rounds can be put together."""
    figures: Figures = {"leavers": 0, "misstated": 0}
    async with one_slot(twin=twin) as engine:
        figures |= {"alone_ms": round(engine.alone_s * 1000), "batch_ms": round(engine.batch_s * 1000)}
        for one in leavers:
            took_s, wrong = await engine.leave(one)
            figures["leavers"] += 1
            figures["misstated"] += len(wrong)
            figures[f"took_ms-{one.phase}-{one.number}"] = round(took_s * 1000, 1)
            for words in wrong if twin is None else []:
                progress.say(words)
            progress.advance()
    return figures


def judged(rounds: Sequence[Mapping[str, int | float]]) -> Figures:
    """All rounds together: per phase p50 and p99 in ms, and `beyond`, the phases whose p99 is over its bound."""
    figures: Figures = {name: sum(part[name] for part in rounds) for name in ("leavers", "misstated")}
    figures |= {name: max(part[name] for part in rounds) for name in ("alone_ms", "batch_ms")}
    beyond = 0
    for phase in PHASES:
        times = sorted(value for part in rounds for name, value in part.items() if name.startswith(f"took_ms-{phase}-"))
        if not times:
            continue
        p99_ms = times[min(len(times) - 1, int(len(times) * 0.99))]
        figures |= {f"{phase}_p50_ms": times[len(times) // 2], f"{phase}_p99_ms": p99_ms}
        bound_ms = 1000 * CANCEL_S_MAX
        if phase == "prefill":
            bound_ms = max(bound_ms, BATCHES_MAX * figures["batch_ms"])
        beyond += p99_ms > bound_ms
    return figures | {"beyond": beyond}


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every leaver, so many on each platform, then the twin."""
    leavers, step = plan(LEAVERS[size], seed), LEAVERS_PER_PLATFORM
    parts = {f"leavers-{at}": leavers[at : at + step] for at in range(0, len(leavers), step)}
    done = sum(len(part) for name, part in parts.items() if state.is_done(name))
    done += TWIN_LEAVERS * sum(state.is_done(f"twin-{twin}") for twin in TWINS)
    progress.begin("leavers", len(leavers) + TWIN_LEAVERS * len(TWINS), done=done)
    for name, part in parts.items():
        if not state.is_done(name):
            state.save(name, await leave_all(part, progress))
    streams_in_decode = [one for one in plan(60, seed) if one.phase == "decode" and one.is_stream][:TWIN_LEAVERS]
    for twin, metric in TWINS.items():
        if not state.is_done(f"twin-{twin}"):
            figures = judged([await leave_all(streams_in_decode, progress, twin=twin)])
            state.save(f"twin-{twin}", {metric: figures[metric]})
    rows = rows_of(NAME, judged([state.figures(name) for name in parts]))
    for twin, metric in TWINS.items():
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")[metric] > 0))
    return rows
