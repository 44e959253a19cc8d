"""Children of a test: ready or refused with their own words, and never left behind."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.rig.processes import fake_engine, free_port, running
from tests.rig.truth import Truth, TruthLog

READY = "import time; print('{\"ready\": true}', flush=True); "


def is_alive(pid: int) -> bool:
    """Whether there is such a process (a zombie of ours counts as alive)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_program_that_never_gets_ready_is_stopped_and_quoted() -> None:
    with pytest.raises(RuntimeError, match="this is why"):
        async with running(["-c", "import sys; sys.exit('this is why')"]):
            pass
    with pytest.raises(RuntimeError, match="TimeoutError"):
        async with running(["-c", "import time; time.sleep(60)"], ready_timeout_s=0.3):
            pass


async def test_a_child_is_gone_after_the_block_even_if_the_test_fails() -> None:
    pids: list[int] = []

    async def failing_test() -> None:
        async with running(["-c", READY + "time.sleep(60)"]) as child:
            pids.append(child.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing_test()
    assert not is_alive(pids[0])


async def test_a_child_deaf_to_sigterm_is_killed() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY + "time.sleep(60)"
    async with running(["-c", code]) as child:
        assert await child.stop(grace_s=0.2) == -9
        assert not is_alive(child.pid)


async def test_the_engine_ends_with_the_process_that_started_it() -> None:
    async with fake_engine() as engine:
        stdin = engine.child.process.stdin
        assert stdin is not None
        stdin.close()
        async with asyncio.timeout(5):
            assert await engine.child.process.wait() == 0


async def test_a_bad_default_knob_stops_the_engines_start() -> None:
    with pytest.raises(RuntimeError, match="cut_aftr"):
        async with fake_engine(cut_aftr=1):
            pass


async def test_an_engine_killed_and_started_again_goes_on_with_its_log(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "truth.jsonl"
    async with fake_engine(port=port, truth_path=path) as engine:
        await engine.child.kill()
    async with fake_engine(port=port, truth_path=path) as engine:
        assert engine.base_url.endswith(f":{port}/v1")


def test_a_torn_last_line_and_restarted_serials_are_read_right(tmp_path: Path) -> None:
    log = TruthLog(tmp_path / "log")
    for request_id in ("first", "second"):
        log.write("received", 1, request_id=request_id)
        log.write("closed", 1, tokens_sent=2, token_times_ns=[0, 10**9])
    log.close()
    with (tmp_path / "log").open("ab") as file:
        file.write(b'{"event": "rece')
    truth = Truth.read(tmp_path / "log")
    assert [attempt.request_id for attempt in truth.attempts] == ["first", "second"]
    assert truth.is_settled
    assert [truth.only("first").tokens_made_in(span_s) for span_s in (0.5, 1.0)] == [1, 2]
    with pytest.raises(AssertionError, match="0 attempts"):
        truth.only("third")
