"""A client that leaves stops the engine's work in a second, wherever the request is, streaming or not."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.auditor import audit
from tests.rig.clients import Client
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.rig.tail import TruthTail, marked

pytestmark = pytest.mark.asyncio(loop_scope="module")
DECODE, PREFILL = "m:tokens=5000,gap_ms=20", "m:prefill_ms=60000"
LIMIT_S = 1.0
Phase = Literal["prefill", "decode"]
How = Literal["fin", "rst", "half_close"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    text = config(
        upstreams=[
            upstream("fake", engine.base_url, [DECODE, PREFILL], running_counts="timings_per_token"),
            upstream("one", engine.base_url, [DECODE, PREFILL, "m:tokens=3"], concurrency_max=1),
        ],
    )
    async with running_platform(text, module_path / "p") as running:
        yield running
        await running.idle()
        found = audit(running.database, await engine.settled(1))
        print(found)
        assert found.is_clean, str(found)


@dataclass(frozen=True)
class Left:
    """One client that left: how long the engine went on."""

    phase: Phase
    stream: bool
    how: How
    took_s: float


async def decoding(engine: FakeEngineHandle, request_id: str) -> None:
    """Wait until the engine has made a token for that attempt."""
    async with asyncio.timeout(5.0):
        while not any(slot.get("request_id") == request_id and slot["n_decoded"] for slot in await engine.slots()):
            await asyncio.sleep(0)


async def leave(
    platform: Platform, engine: FakeEngineHandle, tail: TruthTail, phase: Phase, *, stream: bool, how: How, number: int
) -> Left:
    """Ask, leave when the engine is in that phase, and return how long its work went on."""
    name = f"left-{phase}-{stream}-{how}-{number}"
    messages = marked(number)
    body = chat_body(f"fake/{DECODE if phase == 'decode' else PREFILL}", stream=stream, messages=messages)
    async with await Client.chat(platform.base_url, body, api_key=platform.key, request_id=name) as client:
        (request_id,) = await tail.wait_begun(messages)
        if stream and phase == "decode":
            await client.read_tokens(3)
        elif phase == "decode":
            await decoding(engine, request_id)
        left_ns = time.monotonic_ns()
        client.leave(how)
        record = await platform.record_of(name)
        assert record["outcome"] == "client_gone"
        (row,) = platform.attempts(record["request_id"])
        attempt = await engine.closed(row["id"])
        assert attempt.aborted_at_ns is not None
        assert attempt.abort_phase == phase
        if phase == "prefill":
            assert (record["output"], record["cost_nanos"]) == (0, 0), "left before the first token: nothing to pay"
        else:
            assert record["usage_source"] == "reported"
            assert record["output"] > 0
        return Left(phase, stream, how, (attempt.aborted_at_ns - left_ns) / 1e9)


async def test_the_engine_stops_within_a_second(engine: FakeEngineHandle, platform: Platform) -> None:
    phases: tuple[Phase, ...] = ("prefill", "decode")
    hows: tuple[How, ...] = ("fin", "rst", "half_close")
    kinds = list(itertools.product(phases, (True, False), hows, range(4)))
    places, tail = asyncio.Semaphore(12), TruthTail(engine.truth_path)

    async def one(number: int, phase: Phase, stream: bool, how: How) -> Left:
        async with places:
            return await leave(platform, engine, tail, phase, stream=stream, how=how, number=number)

    left = await asyncio.gather(*(one(number, *kind[:3]) for number, kind in enumerate(kinds)))
    for phase, stream in itertools.product(phases, (True, False)):
        times_ms = sorted(one.took_s * 1000 for one in left if (one.phase, one.stream) == (phase, stream))
        what = f"{phase}, {'streaming' if stream else 'whole'}"
        print(f"leave → abort, {what}: p50 {times_ms[len(times_ms) // 2]:.1f} ms, max {times_ms[-1]:.1f} ms")
    assert max(one.took_s for one in left) <= LIMIT_S
    await platform.idle()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["fin", "rst", "half_close"])
async def test_one_who_leaves_the_queue_never_reaches_the_engine(
    engine: FakeEngineHandle, platform: Platform, stream: bool, how: How
) -> None:
    queued = 'headwater_gateway_queued{pool="one"}'
    name = f"queued-{stream}-{how}"
    body = chat_body("one/m:tokens=3", stream=stream)
    async with (
        await Client.chat(platform.base_url, chat_body(f"one/{DECODE}"), api_key=platform.key) as occupant,
        await Client.chat(platform.base_url, body, api_key=platform.key, request_id=name) as waiter,
    ):
        await occupant.read_tokens(1)
        async with asyncio.timeout(5.0):
            while (await platform.metrics())[queued] != 1:
                await asyncio.sleep(0)
        left_s = time.monotonic()
        waiter.leave(how)
        record = await platform.record_of(name, timeout_s=LIMIT_S)
        assert time.monotonic() - left_s <= LIMIT_S
        assert (record["outcome"], record["output"], record["cost_nanos"]) == ("client_gone", 0, 0)
        assert platform.attempts(record["request_id"]) == []
        assert (await platform.metrics())[queued] == 0
        occupant.leave("rst")
    await platform.idle()
    got = await platform.ask(chat_body("one/m:tokens=3"))
    assert got.finish_reason == "stop", "the place is free again"


async def test_one_who_waits_in_the_engines_own_queue_is_aborted_there(short_path: Path) -> None:
    async with fake_engine(slots=1) as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [DECODE])])
        async with running_platform(text, short_path / "p") as platform:
            body = chat_body(f"fake/{DECODE}")
            async with await Client.chat(platform.base_url, body, api_key=platform.key) as occupant:
                await occupant.read_tokens(1)  # it has the engine's only slot before the other comes
                async with await Client.chat(
                    platform.base_url, body, api_key=platform.key, request_id="waits"
                ) as waiter:
                    await engine.wait_for(lambda truth: len(truth.attempts) == 2)
                    left_ns = time.monotonic_ns()
                    waiter.leave("fin")
                    record = await platform.record_of("waits")
                    (row,) = platform.attempts(record["request_id"])
                    attempt = await engine.closed(row["id"])
                    assert attempt.abort_phase == "queued"
                    assert ((attempt.aborted_at_ns or 0) - left_ns) / 1e9 <= LIMIT_S
                    assert (record["outcome"], record["output"]) == ("client_gone", 0)


async def test_leaving_three_choices_aborts_all_three(engine: FakeEngineHandle, platform: Platform) -> None:
    body = chat_body(f"fake/{DECODE}", n=3)
    async with await Client.chat(platform.base_url, body, api_key=platform.key, request_id="left-three") as client:
        await client.read_tokens(9)
        left_ns = time.monotonic_ns()
        client.leave("rst")
    record = await platform.record_of("left-three")
    rows = platform.attempts(record["request_id"])
    assert [row["choice"] for row in rows] == [0, 1, 2]
    attempts = [await engine.closed(row["id"]) for row in rows]
    assert max((one.aborted_at_ns or 0) - left_ns for one in attempts) / 1e9 <= LIMIT_S
    assert all(one.is_aborted for one in attempts)
    assert record["output"] == sum(row["output"] for row in rows) >= 9


async def test_leavers_leave_nothing_behind(engine: FakeEngineHandle, platform: Platform) -> None:
    await platform.idle()
    before = platform.fds_count()
    for number in range(20):
        body = chat_body(f"fake/{DECODE}", stream=number % 2 == 0)
        async with await Client.chat(
            platform.base_url, body, api_key=platform.key, request_id=f"fd-{number}"
        ) as client:
            if number % 2 == 0:
                await client.read_tokens(1)
            else:
                await asyncio.sleep(0.05)
            client.leave("rst")
        if number % 2 == 0:
            await platform.record_of(f"fd-{number}")
    await platform.idle()
    await until(lambda: platform.fds_count() <= before)
