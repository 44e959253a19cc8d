"""Overload: the gate's rig at its short size; bounds on connections, heads, pipelining and bodies; shedding by band."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest_asyncio

from gate import overload
from gate.rows import missed
from gate.state import State
from tests.integration.bodies import chat_body
from tests.integration.gate_runs import Told
from tests.rig.auditor import audit
from tests.rig.clients import Client, ask
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

SEED = 1
QUICK, HELD, FLOOD = "m:tokens=3", "m:tokens=3,step", "m:endless,big_chunk=3900000,gap_ms=20"
CONNECTIONS_MAX, STALL_S = 8, 0.5
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture
async def platform(engine: FakeEngineHandle, short_path: Path) -> AsyncIterator[Platform]:
    text = config(
        upstreams=[upstream("fake", engine.base_url, [QUICK, HELD, FLOOD])],
        gateway={"connections_max": CONNECTIONS_MAX, "write_stall_timeout_s": STALL_S, "concurrent_requests_max": 4},
    )
    async with running_platform(text, short_path / "p") as running:
        yield running


async def metric(platform: Platform, name: str) -> float:
    """One sample of the platform's metrics."""
    return (await platform.metrics())[name]


async def test_ten_times_more_than_can_be_served() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await overload.run("short", SEED, State.in_memory("overload", "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "overload"}
    assert figures["refused_10x"] > figures["goodput_10x_rps"]


async def test_a_connection_over_the_bound_is_told_and_closed_and_the_next_one_served(platform: Platform) -> None:
    clients = [await Client.connect(platform.root_url) for _ in range(CONNECTIONS_MAX)]
    body = chat_body(f"fake/{QUICK}")
    refused = await platform.ask(body)
    assert (refused.status, refused.error and refused.error["code"]) == (503, "overloaded")
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
    assert refused.headers["x-request-id"].startswith("req_")
    for client in clients:
        client.close()
    got = await _served(platform)
    assert got == 200
    assert await metric(platform, "headwater_gateway_refused_connections_total") >= 1


async def _served(platform: Platform) -> int | None:
    """The status of a small request once there is room for it."""
    async with asyncio.timeout(5):
        while (got := await platform.ask(chat_body(f"fake/{QUICK}"))).status == 503:
            await asyncio.sleep(0)
    return got.status


async def test_a_head_without_end_is_cut_off_and_held_by_nobody(platform: Platform) -> None:
    async with await Client.connect(platform.root_url) as client:
        await client.send_raw(HEAD)
        async with asyncio.timeout(5):
            while client.received.ended is None:
                try:
                    await client.send_raw(b"x-filler: " + b"x" * 8000 + b"\r\n")
                except (ConnectionResetError, BrokenPipeError):
                    break
                await asyncio.sleep(0)
                if client.received.status is None:
                    try:
                        await client.read_until(lambda got: got.status is not None, timeout_s=0.005)
                    except TimeoutError:
                        continue
        assert client.received.status in (431, None), "a reset may overtake the answer"
    assert await _served(platform) == 200


async def test_a_request_sent_before_the_last_is_answered_ends_the_connection_with_that_answer(
    engine: FakeEngineHandle, platform: Platform
) -> None:
    async with await Client.chat(platform.base_url, chat_body(f"fake/{HELD}"), api_key=platform.key) as client:
        await engine.wait_for(lambda truth: len(truth.attempts) == 1)
        body = msgspec.json.encode(chat_body(f"fake/{QUICK}"))
        more = HEAD + b"authorization: Bearer %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
            platform.key.encode(),
            len(body),
        )
        for _ in range(50):
            await client.send_raw(more + body)
        while await engine.step(1):
            await asyncio.sleep(0)
        got = await client.read_to_end()
        assert (got.status, got.finish_reason, got.is_done_seen) == (200, "stop", True)
    await platform.idle()
    assert len(engine.truth().attempts) == 1, "none of the fifty was served"
    found = audit(platform.database, await engine.settled(1))
    assert found.is_clean, str(found)


async def test_one_who_pipelines_and_leaves_is_noticed(engine: FakeEngineHandle, platform: Platform) -> None:
    async with await Client.chat(
        platform.base_url, chat_body(f"fake/{HELD}"), api_key=platform.key, request_id="pipeliner"
    ) as client:
        await engine.wait_for(lambda truth: len(truth.attempts) == 1)
        await client.send_raw(HEAD + b"\r\n")
        client.leave("fin")
        record = await platform.record_of("pipeliner", timeout_s=1.0)
        assert record["outcome"] == "client_gone"


async def test_requests_over_the_bound_are_refused_before_their_body_is_read_and_the_first_leaves_a_record(
    engine: FakeEngineHandle, platform: Platform
) -> None:
    answers = [asyncio.create_task(platform.ask(chat_body(f"fake/{HELD}"))) for _ in range(4)]
    await engine.wait_for(lambda truth: len(truth.attempts) == 4)
    refused = [await platform.ask(chat_body(f"fake/{QUICK}")) for _ in range(3)]
    assert [got.status for got in refused] == [503] * 3
    assert all(int(got.headers["retry-after"]) >= 1 for got in refused)
    async with await Client.connect(platform.root_url) as client:  # refused without its body
        await client.send(
            "POST",
            "/v1/chat/completions",
            headers={"authorization": f"Bearer {platform.key}", "content-length": "5000000"},
        )
        assert (await client.read_to_end(timeout_s=2)).status == 503
    while not all(answer.done() for answer in answers):
        await engine.step(3)
    await platform.idle()
    records = [record for record in platform.records() if record["outcome"] == "rejected"]
    assert [record["error_code"] for record in records] == ["overloaded"]
    assert await metric(platform, 'headwater_gateway_refusals_total{code="overloaded"}') == 3


async def test_a_slow_reader_is_cut_off_and_what_is_kept_for_it_has_a_bound(platform: Platform) -> None:
    before = await metric(platform, "process_resident_memory_bytes")
    clients = [
        await Client.chat(
            platform.base_url,
            chat_body(f"fake/{FLOOD}", n=2),  # one first chunk may fit into the kernel's buffers, two don't
            api_key=platform.key,
            request_id=f"slow-{number}",
            receive_bytes_max=4096,
        )
        for number in range(2)
    ]
    for number, client in enumerate(clients):
        await client.read_until(lambda got: got.status is not None)
        assert (await platform.record_of(f"slow-{number}"))["outcome"] == "client_gone"
        client.close()
    after = await metric(platform, "process_resident_memory_bytes")
    assert after - before < 64e6


async def test_when_memory_is_short_everything_is_refused_and_the_platform_says_so(
    engine: FakeEngineHandle, short_path: Path
) -> None:
    # 64 MiB, the least that can be configured, is less than the process has when it starts or soon after.
    text = config(
        upstreams=[upstream("fake", engine.base_url, [QUICK])],
        gateway={"memory_bytes_max": 64 * 2**20, "body_bytes_max": 32 * 2**20},
    )
    async with running_platform(text, short_path / "p") as platform:
        big = chat_body(f"fake/{QUICK}", messages=[{"role": "user", "content": "x" * 20_000_000}])

        async def level() -> float:
            return await metric(platform, "headwater_gateway_shed_level")

        sending = asyncio.create_task(ask(platform.base_url, big, api_key=platform.key))
        async with asyncio.timeout(10):
            while not await level():
                await asyncio.sleep(0)
        for tier in ("flex", "default"):
            got = await platform.ask(chat_body(f"fake/{QUICK}", service_tier=tier))
            if got.status == 503:
                assert int(got.headers["retry-after"]) >= 1
                assert got.headers["x-request-id"].startswith("req_")
        await sending
        await platform.logged("shedding_began")


async def test_descriptors_are_raised_to_the_hard_limit(platform: Platform) -> None:
    limits = Path(f"/proc/{platform.pid}/limits").read_text()
    soft, hard = next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3:5]
    assert soft == hard
    assert int(soft) >= os.sysconf("SC_OPEN_MAX") or soft == hard
    assert await metric(platform, "process_max_fds") == int(hard)
    await until(lambda: platform.fds_count() > 0)
