"""Each time-out ends a request at its time, ±10 %, and a client that reads nothing is cut off."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.auditor import audit
from tests.rig.clients import Client
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONNECT_S, FIRST_BYTE_S, IDLE_S, TOTAL_S, STALL_S = 1.0, 1.5, 1.2, 2.0, 1.0
SILENT, STALLING, STEADY = "m:silent", "m:tokens=9,stall_after=2", "m:tokens=5000,gap_ms=20"
HELD, HEAVY, FLOOD = "m:tokens=3,step", "m:tokens=401,big_chunk=3000000", "m:endless,big_chunk=3000000"


@pytest.fixture(scope="module")
def black_hole_url() -> Iterator[str]:
    """An address that takes no connection and refuses none: its backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        for filler in fillers:
            filler.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, black_hole_url: str, module_path: Path) -> AsyncIterator[Platform]:
    text = config(
        upstreams=[
            upstream("hole", black_hole_url, ["m"], connect_timeout_s=CONNECT_S),
            upstream(
                "fake",
                engine.base_url,
                [SILENT, STALLING],
                first_byte_timeout_s=FIRST_BYTE_S,
                idle_timeout_s=IDLE_S,
            ),
            upstream("steady", engine.base_url, [STEADY, SILENT], total_timeout_s=TOTAL_S),
            upstream("one", engine.base_url, [HELD], concurrency_max=1, total_timeout_s=TOTAL_S),
            upstream("heavy", engine.base_url, [HEAVY, FLOOD]),
        ],
        gateway={"write_stall_timeout_s": STALL_S},
    )
    async with running_platform(text, module_path / "p") as running:
        yield running
        await running.idle()
        found = audit(running.database, await engine.settled(1), stall_s=STALL_S)
        print(found)
        assert found.is_clean, str(found)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_each_time_out_comes_at_its_time(platform: Platform, stream: bool) -> None:
    wanted_s = {
        "hole/m": CONNECT_S,
        f"fake/{SILENT}": FIRST_BYTE_S,
        f"fake/{STALLING}": IDLE_S,
        f"steady/{STEADY}": TOTAL_S,
        f"steady/{SILENT}": TOTAL_S,
    }

    async def one(model: str) -> tuple[str, float]:
        asked_s = time.monotonic()
        got = await platform.ask(chat_body(model, stream=stream))
        took_s = time.monotonic() - asked_s
        assert got.error is not None
        assert got.error["code"] == "timeout"
        assert got.status == (200 if stream and got.content_count else 504)
        record = await platform.record(got.headers["x-request-id"])
        assert (record["outcome"], record["error_code"]) == ("timeout", "timeout")
        assert abs(record["duration_ms"] / 1000 - took_s) < 0.1
        return model, took_s

    took_s = dict(await asyncio.gather(*(one(model) for model in wanted_s)))
    for model, wanted in wanted_s.items():
        print(f"{model}: {took_s[model]:.3f} s of {wanted} s")
    assert all(abs(took_s[model] - wanted) <= wanted / 10 for model, wanted in wanted_s.items())


async def test_time_in_the_queue_counts_towards_the_total(engine: FakeEngineHandle, platform: Platform) -> None:
    async with await Client.chat(platform.base_url, chat_body(f"one/{HELD}"), api_key=platform.key):
        await engine.wait_for(lambda truth: not truth.is_settled)
        asked_s = time.monotonic()
        got = await platform.ask(chat_body(f"one/{HELD}"))
        assert abs(time.monotonic() - asked_s - TOTAL_S) <= TOTAL_S / 10
        assert (got.status, got.error and got.error["code"]) == (504, "timeout")
        record = await platform.record(got.headers["x-request-id"])
        assert (record["outcome"], record["output"], record["cost_nanos"]) == ("timeout", 0, 0)
        # Who held the place ran out of time just before: the waiter may have had it for a moment, for nothing.
        assert not any(row["output"] for row in platform.attempts(record["request_id"]))


async def test_a_client_that_reads_nothing_is_cut_off_and_leaves_nothing_behind(
    engine: FakeEngineHandle, platform: Platform
) -> None:
    await platform.idle()
    before = platform.fds_count()
    body = chat_body(f"heavy/{FLOOD}", max_tokens=1_000_000)
    client = await Client.chat(
        platform.base_url, body, api_key=platform.key, request_id="stalls", receive_bytes_max=4096
    )
    async with client:
        asked_s = time.monotonic()
        record = await platform.record_of("stalls", timeout_s=STALL_S * 5)
        took_s = time.monotonic() - asked_s
        print(f"cut off after {took_s:.2f} s, {record['output']} tokens taken from the engine")
        assert record["outcome"] == "client_gone"
        assert STALL_S <= took_s <= STALL_S * 2
        (row,) = platform.attempts(record["request_id"])
        attempt = await engine.closed(row["id"])
        assert attempt.is_aborted, "the engine's work is stopped"
        await platform.idle()
        got = await client.read_to_end()
        assert got.ended in ("reset", "eof"), "the connection is cut"
        assert not got.is_done_seen
    await until(lambda: platform.fds_count() <= before)


async def test_a_slow_reader_that_reads_is_not_cut_off(platform: Platform) -> None:
    """It takes far longer than the stall time-out in all, but never stops for as long."""
    body = chat_body(f"heavy/{HEAVY}", max_tokens=400)
    client = await Client.chat(platform.base_url, body, api_key=platform.key, receive_bytes_max=65536)
    async with client:
        got = await client.read_slowly(bytes_each=65536, pause_s=STALL_S / 25, timeout_s=60.0)
        assert got.finish_reason == "length"
        assert got.ended == "complete"
    took_s = (got.arrivals[-1][0] - got.arrivals[0][0]) / 1e9
    print(f"read for {took_s:.1f} s in {len(got.arrivals)} bites")
    assert took_s > STALL_S
