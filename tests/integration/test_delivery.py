"""A stream is passed on as it comes; what says that the answer is complete waits for its record to be durable."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.clients import Client
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

pytestmark = pytest.mark.asyncio(loop_scope="module")
STEPPING, PACED, FAST, SLOW = "m:tokens=6,step", "m:tokens=40,gap_ms=10", "m:tokens=4", "m:tokens=4,gap_ms=150"
REASONING, TOOLS = "m:tokens=3,reasoning=3,step", "m:tool_call=1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    text = config(upstreams=[upstream("fake", engine.base_url, [STEPPING, PACED, FAST, SLOW, REASONING, TOOLS])])
    async with running_platform(text, module_path / "p") as running:
        yield running


@asynccontextmanager
async def locked(database: Path) -> AsyncIterator[None]:
    """The ledger can't commit until the block ends: another connection holds the write lock."""
    connection = sqlite.connect(str(database), isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@pytest.mark.parametrize("model", [STEPPING, REASONING])
async def test_chunk_k_is_delivered_before_chunk_k_plus_1_is_produced(
    engine: FakeEngineHandle, platform: Platform, model: str
) -> None:
    async with await Client.chat(platform.base_url, chat_body(f"fake/{model}"), api_key=platform.key) as client:
        for count in range(1, 7):
            # The engine makes a token only when told to: had the gateway waited for the next one, this would hang.
            while not await engine.step():
                await asyncio.sleep(0)
            got = await client.read_tokens(count, timeout_s=5.0)
            assert got.content_count == count
        assert (await client.read_to_end(timeout_s=5.0)).is_done_seen


async def test_each_chunk_of_a_paced_stream_arrives_before_the_next_is_made(
    engine: FakeEngineHandle, platform: Platform
) -> None:
    got = await platform.ask(chat_body(f"fake/{PACED}"))
    (attempt,) = platform.attempts(got.headers["x-request-id"])
    made_ns = (await engine.closed(attempt["id"])).token_times_ns
    assert len(got.content_arrivals_ns) == len(made_ns) == 40
    late = [k for k in range(39) if got.content_arrivals_ns[k] >= made_ns[k + 1]]
    delays_ms = sorted((there - made) / 1e6 for made, there in zip(made_ns, got.content_arrivals_ns, strict=True))
    print(f"made → arrived: p50 {delays_ms[20]:.2f} ms, max {delays_ms[-1]:.2f} ms; after the next one: {late}")
    assert not late


@pytest.mark.parametrize("model", [FAST, TOOLS])
async def test_the_record_is_readable_when_the_finish_arrives(platform: Platform, model: str) -> None:
    for _ in range(20):
        async with await Client.chat(platform.base_url, chat_body(f"fake/{model}"), api_key=platform.key) as client:
            got = await client.read_until(lambda got: got.finish_reason is not None)
            record = platform.find_record(got.headers["x-request-id"])
            assert record is not None, "the finish went out before the record was committed"
            assert record["outcome"] == "ok"


async def test_nothing_that_ends_a_stream_goes_out_before_the_commit(platform: Platform) -> None:
    async with AsyncExitStack() as lock:
        async with await Client.chat(platform.base_url, chat_body(f"fake/{SLOW}"), api_key=platform.key) as client:
            await client.read_tokens(1)  # its reservation is on the disk by now
            await lock.enter_async_context(locked(platform.database))
            got = await client.read_tokens(4)
            with pytest.raises(TimeoutError):
                await client.read_until(lambda got: got.content_count < len(got.events) - 1, timeout_s=1.0)
            assert (got.finish_reason, got.usage, got.is_done_seen, got.ended) == (None, None, False, None)
            assert platform.find_record(got.headers["x-request-id"]) is None
            unlocked_ns = time.monotonic_ns()
            await lock.aclose()
            await client.read_to_end(timeout_s=5.0)
        assert (got.finish_reason, got.is_done_seen, got.ended) == ("stop", True, "complete")
        assert min(event.arrived_ns for event in got.events[-2:]) >= unlocked_ns
        assert platform.find_record(got.headers["x-request-id"]) is not None


async def test_a_stream_has_no_content_before_its_reservation_is_committed(platform: Platform) -> None:
    async with AsyncExitStack() as lock:
        await lock.enter_async_context(locked(platform.database))
        async with await Client.chat(platform.base_url, chat_body(f"fake/{FAST}"), api_key=platform.key) as client:
            with pytest.raises(TimeoutError):
                await client.read_until(lambda got: bool(got.arrivals), timeout_s=1.0)
            assert client.received.status is None
            await lock.aclose()
            got = await client.read_to_end(timeout_s=5.0)
            assert (got.status, got.finish_reason) == (200, "stop")


async def test_a_whole_answer_has_no_status_line_before_the_commit(platform: Platform) -> None:
    body = chat_body(f"fake/{FAST}", stream=False)
    async with AsyncExitStack() as lock:
        await lock.enter_async_context(locked(platform.database))
        async with await Client.chat(platform.base_url, body, api_key=platform.key) as client:
            with pytest.raises(TimeoutError):
                await client.read_until(lambda got: bool(got.arrivals), timeout_s=1.0)
            assert client.received.status is None
            await lock.aclose()
            got = await client.read_to_end(timeout_s=5.0)
            assert (got.status, got.finish_reason) == (200, "stop")


async def test_a_failed_stream_is_told_its_error_after_the_commit(engine: FakeEngineHandle, short_path: Path) -> None:
    model = "m:tokens=4,cut_after=2,gap_ms=150"
    text = config(upstreams=[upstream("fake", engine.base_url, [model])])
    async with running_platform(text, short_path / "p") as platform, AsyncExitStack() as lock:
        async with await Client.chat(platform.base_url, chat_body(f"fake/{model}"), api_key=platform.key) as client:
            await client.read_tokens(1)
            await lock.enter_async_context(locked(platform.database))
            await client.read_tokens(2)
            with pytest.raises(TimeoutError):
                await client.read_until(lambda got: got.error is not None, timeout_s=0.5)
            await lock.aclose()
            got = await client.read_to_end(timeout_s=5.0)
        assert got.error is not None
        assert got.error["code"] == "engine_failed"


async def test_a_client_that_leaves_after_the_engines_finish_is_still_ok(platform: Platform) -> None:
    body = chat_body(f"fake/{SLOW}")
    async with await Client.chat(platform.base_url, body, api_key=platform.key, request_id="left-late") as client:
        await client.read_tokens(1)
        async with locked(platform.database):
            await client.read_tokens(4)
            with pytest.raises(TimeoutError):  # the engine's finish is read by then, the settlement waits
                await client.read_until(lambda got: got.finish_reason is not None, timeout_s=0.5)
            client.leave("rst")
    record = await platform.record_of("left-late")
    assert (record["outcome"], record["output"]) == ("ok", 4)


async def test_the_finish_waits_for_the_disk_itself(engine: FakeEngineHandle, short_path: Path) -> None:
    """Each sync takes 300 ms longer: the finish comes that much later than the last content."""
    text = config(upstreams=[upstream("fake", engine.base_url, [FAST])])
    async with running_platform(text, short_path / "p") as platform:
        log = short_path / "strace.txt"
        syncs = "fsync,fdatasync"
        inject = ["-e", f"trace={syncs}", "-e", f"inject={syncs}:delay_enter=300000"]
        strace = await asyncio.create_subprocess_exec(
            "strace", "-f", "-p", str(platform.pid), "-o", str(log), *inject, stderr=asyncio.subprocess.PIPE
        )
        try:
            assert strace.stderr is not None
            attached = await asyncio.wait_for(strace.stderr.readline(), 5.0)
            if b"attached" not in attached:
                pytest.fail(f"strace can't attach here: {attached.decode()}")
            got = await platform.ask(chat_body(f"fake/{FAST}"))
            waited_s = (got.events[-1].arrived_ns - got.content_arrivals_ns[-1]) / 1e9
            print(f"last content → finish: {waited_s:.3f} s with 0.3 s more in each sync")
            assert got.finish_reason == "stop"
            assert waited_s >= 0.3
            assert "DELAYED" in log.read_text()
        finally:
            strace.terminate()
            await strace.wait()
