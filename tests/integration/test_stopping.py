"""Ctrl-C drains, a second one cuts, and a kill loses nothing that anybody was told."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.auditor import Ack, audit
from tests.rig.clients import Client, Received
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
STEPPING, ENDLESS, FAST = "m:tokens=4,step", "m:tokens=5000,gap_ms=20", "m:tokens=5,gap_ms=1"


@pytest_asyncio.fixture(loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(loop_scope="module")
async def platform(engine: FakeEngineHandle, short_path: Path) -> AsyncIterator[Platform]:
    text = config(
        upstreams=[upstream("fake", engine.base_url, [STEPPING, ENDLESS, FAST])], gateway={"drain_timeout_s": 20.0}
    )
    async with running_platform(text, short_path / "p") as running:
        yield running


async def draining(platform: Platform) -> None:
    await platform.logged("platform_stopping")
    async with asyncio.timeout(5.0):
        while (await platform.get("/ready")).status != 503:
            await asyncio.sleep(0)


async def test_an_interrupt_lets_what_runs_end_and_takes_nothing_new(
    engine: FakeEngineHandle, platform: Platform
) -> None:
    whole = asyncio.create_task(platform.ask(chat_body(f"fake/{STEPPING}", stream=False)))
    async with await Client.chat(platform.base_url, chat_body(f"fake/{STEPPING}"), api_key=platform.key) as client:
        await engine.wait_for(lambda truth: len(truth.attempts) == 2)
        platform.interrupt()
        await draining(platform)
        assert "shutting down" in (await platform.get("/ready")).body.decode()
        refused = await platform.ask(chat_body(f"fake/{FAST}"))
        assert (refused.status, refused.error and refused.error["code"]) == (503, "shutting_down")
        assert int(refused.headers["retry-after"]) >= 1
        assert platform.process.returncode is None
        await engine.step(4)
        got = await client.read_to_end()
        assert (got.content_count, got.finish_reason, got.is_done_seen, got.error) == (4, "stop", True, None)
        assert (await whole).finish_reason == "stop"
    assert await platform.ended() == 0
    records = platform.records()
    assert sorted(record["outcome"] for record in records) == ["ok", "ok", "rejected"]
    found = audit(platform.database, await engine.settled(2))
    assert found.is_clean, str(found)
    assert not (platform.directory / "data" / "admin.sock").exists()


async def test_a_second_interrupt_cuts_what_runs_and_settles_it(engine: FakeEngineHandle, platform: Platform) -> None:
    whole = asyncio.create_task(platform.ask(chat_body(f"fake/{ENDLESS}", stream=False)))
    async with await Client.chat(platform.base_url, chat_body(f"fake/{ENDLESS}"), api_key=platform.key) as client:
        await client.read_tokens(5)
        await engine.wait_for(lambda truth: len(truth.attempts) == 2)
        platform.interrupt()
        await draining(platform)
        platform.interrupt()
        got = await client.read_to_end()
        assert got.ended == "complete"
        assert got.error is not None
        assert got.error["code"] == "shutting_down"
        assert got.events[-1].value is not None
        assert "error" in got.events[-1].value
        assert (got.finish_reason, got.is_done_seen) == (None, False)
        answer = await whole
        assert (answer.status, answer.error and answer.error["code"]) == (503, "shutting_down")
    assert await platform.ended() == 0
    for record in platform.records():
        assert (record["outcome"], record["error_code"]) == ("upstream_error", "shutting_down")
        assert record["output"] > 0
        assert (record["cost_nanos"] > 0) == bool(record["is_stream"])
    found = audit(platform.database, await engine.settled(2))
    assert found.is_clean, str(found)


async def test_draining_has_a_bound(engine: FakeEngineHandle, short_path: Path) -> None:
    text = config(upstreams=[upstream("fake", engine.base_url, [ENDLESS])], gateway={"drain_timeout_s": 0.5})
    async with (
        running_platform(text, short_path / "q") as platform,
        await Client.chat(platform.base_url, chat_body(f"fake/{ENDLESS}"), api_key=platform.key) as client,
    ):
        await client.read_tokens(1)
        platform.interrupt()
        got = await client.read_to_end(timeout_s=5.0)
        assert got.error is not None
        assert got.error["code"] == "shutting_down"
        assert await platform.ended() == 0


async def test_a_kill_loses_nothing_that_anybody_was_told(engine: FakeEngineHandle, platform: Platform) -> None:
    answers: list[Received] = []

    async def ask_on() -> None:
        for number in itertools.count():
            body = chat_body(f"fake/{FAST}", stream=number % 2 == 0)
            async with await Client.chat(platform.base_url, body, api_key=platform.key) as client:
                answers.append(client.received)
                await client.read_to_end()
                if client.received.ended != "complete":
                    return

    askers = [asyncio.create_task(ask_on()) for _ in range(8)]
    await until(lambda: len(answers) > 200, timeout_s=20.0)
    killed_at_ns = time.monotonic_ns()
    await platform.kill()
    await asyncio.gather(*askers, return_exceptions=True)  # refused connections, resets: it is gone

    await platform.start()
    got = await platform.ask(chat_body(f"fake/{FAST}"))
    assert got.finish_reason == "stop"
    acks = [_ack(one) for one in [*answers, got] if one.finish_reason is not None]
    assert await platform.stop() == 0
    found = audit(platform.database, await engine.settled(1), acks=acks, killed_at_ns=killed_at_ns)
    print(found)
    assert len(acks) > 150
    assert found.is_clean, str(found)
    (check,) = platform.rows("PRAGMA integrity_check")
    assert check == {"integrity_check": "ok"}


def _ack(got: Received) -> Ack:
    return Ack(
        request_id=got.headers["x-request-id"],
        status=got.status or 0,
        is_complete=True,  # its finish reason came
        output_tokens=None if got.usage is None else got.usage["completion_tokens"],
    )
