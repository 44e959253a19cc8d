"""When the ledger can't be written the platform stops: nothing is served that can't be recorded."""

import asyncio
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.bodies import chat_body
from tests.rig.auditor import Ack, audit
from tests.rig.clients import Client, call
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
"""A measurement of coverage would itself fail where nothing can be written, and say so at length."""

FAST, ENDLESS, FLOOD = "m:tokens=3", "m:tokens=5000,gap_ms=20", "m:endless,big_chunk=3000000"


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest.fixture
async def platform(engine: FakeEngineHandle, short_path: Path) -> AsyncIterator[Platform]:
    text = config(
        upstreams=[upstream("fake", engine.base_url, [FAST, ENDLESS, FLOOD])], gateway={"write_stall_timeout_s": 2.0}
    )
    async with running_platform(text, short_path / "p", env=UNMEASURED) as running:
        yield running


def forbid_growth(platform: Platform, file_bytes_max: int) -> None:
    """No file of the platform's can grow beyond that from now on, as on a full disk."""
    resource.prlimit(platform.pid, resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))


@pytest.mark.parametrize("is_log_full_too", [False, True])
async def test_a_full_disk_ends_everything_in_words(
    engine: FakeEngineHandle, platform: Platform, is_log_full_too: bool
) -> None:
    told = await platform.ask(chat_body(f"fake/{FAST}"))
    whole = asyncio.create_task(platform.ask(chat_body(f"fake/{ENDLESS}", stream=False)))
    async with await Client.chat(platform.base_url, chat_body(f"fake/{ENDLESS}"), api_key=platform.key) as stream:
        await stream.read_tokens(3)
        await engine.wait_for(lambda truth: len(truth.attempts) == 3)
        forbid_growth(platform, 0 if is_log_full_too else platform.log_path.stat().st_size + 8192)
        got = await platform.ask(chat_body(f"fake/{FAST}"))
        assert got.error is not None
        assert got.error["code"] == "ledger_unavailable"
        assert (got.finish_reason, got.is_done_seen, got.usage) == (None, False, None)
        cut = await stream.read_to_end(timeout_s=5.0)
        assert cut.ended == "complete"
        assert cut.error is not None
        assert cut.error["code"] == "ledger_unavailable"
        assert (cut.finish_reason, cut.is_done_seen) == (None, False)
        answer = await whole
        assert (answer.status, answer.error and answer.error["code"]) == (503, "ledger_unavailable")
    status = await platform.ended()
    assert status != 0
    if not is_log_full_too:
        assert status == 1
        said = platform.log_tail()
        assert "error: The ledger could not be written" in said
        assert "headwater doctor" in said
        assert "Traceback" not in said
    # What was acknowledged is there, what was refused isn't, and the platform starts again on the same files.
    await platform.start()
    assert platform.find_record(got.headers["x-request-id"]) is None
    again = await platform.ask(chat_body(f"fake/{FAST}"))
    assert again.finish_reason == "stop"
    assert await platform.stop() == 0
    acks = [
        Ack(request_id=one.headers["x-request-id"], status=200, is_complete=True, output_tokens=3)
        for one in (told, again)
    ]
    found = audit(platform.database, await engine.settled(5), acks=acks)
    assert {finding.message for finding in found.findings} == {"the engine worked on it; the ledger doesn't know it"}
    assert len(found.findings) == 3, "the three whose answers were refused"


async def test_ready_says_so_while_it_lasts(engine: FakeEngineHandle, platform: Platform) -> None:
    """A client that reads nothing holds the end up for the write stall; meanwhile nobody is sent here."""
    body = chat_body(f"fake/{FLOOD}", max_tokens=1_000_000)
    stalled = await Client.chat(platform.base_url, body, api_key=platform.key, receive_bytes_max=4096)
    async with stalled:
        await engine.wait_for(lambda truth: len(truth.attempts) == 1)
        forbid_growth(platform, platform.log_path.stat().st_size + 8192)
        await platform.ask(chat_body(f"fake/{FAST}"))
        ready = await call(platform.root_url, "GET", "/ready")
        assert ready.status == 503
        assert "the ledger failed" in " ".join(ready.json()["reasons"])
        assert (await platform.metrics())["headwater_ledger_failed"] == 1
        refused = await platform.ask(chat_body(f"fake/{FAST}", stream=False))
        assert (refused.status, refused.error and refused.error["type"]) == (503, "server_error")
        assert await platform.ended() == 1


async def test_a_failed_sync_is_never_taken_for_a_commit(
    engine: FakeEngineHandle, platform: Platform, short_path: Path
) -> None:
    """SQLite goes on after a failed fsync; the platform must not."""
    syncs = "fsync,fdatasync"
    inject = ["-e", f"trace={syncs}", "-e", f"inject={syncs}:error=EIO"]
    log = short_path / "strace.txt"
    strace = await asyncio.create_subprocess_exec(
        "strace", "-f", "-p", str(platform.pid), "-o", str(log), *inject, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert strace.stderr is not None
        attached = await asyncio.wait_for(strace.stderr.readline(), 5.0)
        if b"attached" not in attached:
            pytest.skip(f"strace can't attach here: {attached.decode()}")
        got = await platform.ask(chat_body(f"fake/{FAST}"))
        assert got.error is not None
        assert got.error["code"] == "ledger_unavailable"
        assert (got.finish_reason, got.is_done_seen) == (None, False)
        assert await platform.ended() == 1
        assert "INJECTED" in log.read_text()
    finally:
        if strace.returncode is None:
            strace.terminate()
        await strace.wait()
    await platform.start()
    await until(lambda: platform.records() is not None)
    assert (await platform.ask(chat_body(f"fake/{FAST}"))).finish_reason == "stop"
