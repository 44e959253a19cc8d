"""Whatever happens to an engine is found, said and mended: the short form of `make gate TEST=supervision`, and one by one."""

import asyncio
import os
import signal
import time
from pathlib import Path

from gate import supervision
from gate.rows import missed
from gate.state import State
from tests.integration.bodies import chat_body
from tests.integration.gate_runs import Told
from tests.rig.auditor import audit
from tests.rig.clients import Client
from tests.rig.fake_children import supervised


async def test_ten_faults_leave_no_orphan_and_a_truthful_ready_and_both_twins_are_caught() -> None:
    told = Told()
    rows = await supervision.run("short", 1, State.in_memory(supervision.NAME, "short", 1), told)
    assert missed(rows) == [], told.said
    assert len([row for row in rows if row["metric"] == "twin_caught"]) == len(supervision.TWIN_FAULTS)


async def test_a_failed_replica_is_started_again_by_hand(short_path: Path) -> None:
    async with supervised(short_path, restarts_max=0) as engines:
        [replica] = await engines.until_ready("m")
        os.kill(replica["pid"], signal.SIGKILL)
        [failed] = await engines.until(lambda seen: seen[0]["state"] == "failed")
        assert "killed by signal 9" in failed["reason"]
        refused = await engines.ask("m")
        assert (refused.status, refused.error and refused.error["code"]) == (503, "no_replica")
        listed = await engines.platform.cli("replicas", "list")
        assert replica["id"] in listed.stdout
        assert "failed" in listed.stdout
        [said] = (await engines.platform.cli("replicas", "restart", replica["id"], "--json")).json()
        assert said["id"] == replica["id"]
        await engines.until_ready("m")
        assert (await engines.ask("m")).finish_reason == "stop"
        unknown = await engines.platform.cli("replicas", "restart", "rep_unknown", check=False)
        assert (unknown.status, "replicas list" in unknown.stderr) == (1, True)


async def test_a_ready_replica_ends_its_calls_before_it_restarts(short_path: Path) -> None:
    async with supervised(short_path, hang_timeout_s=30.0) as engines:
        [old] = await engines.until_ready("m")
        await engines.set_knobs(old, gap_ms=100.0, tokens=12)
        platform = engines.platform
        async with await Client.chat(platform.base_url, chat_body("m"), api_key=platform.key) as client:
            await client.read_tokens(1)
            await platform.cli("replicas", "restart", old["id"])
            got = await client.read_to_end()
            assert (got.finish_reason, got.content_count) == ("stop", 12)
        [new] = await engines.until(lambda seen: seen[0]["state"] == "ready" and seen[0]["pid"] != old["pid"])
        assert new["restarts_count"] == 0


async def test_two_replicas_one_hung_and_calls_that_keep_coming(short_path: Path) -> None:
    async with supervised(short_path, replicas=2) as engines:
        first, second = await engines.until_ready("m", 2)
        await engines.act(first, "hang")
        began_s, answered = time.monotonic(), 0

        def is_found(states: dict[str, str]) -> bool:
            return states[first["id"]] not in ("ready", "suspect")

        async def keep_asking() -> None:
            nonlocal answered
            while True:
                got = await engines.ask("m", stream=False, max_tokens=16)
                answered += got.finish_reason is not None

        askers = [asyncio.create_task(keep_asking()) for _ in range(8)]  # more than one of them can hold
        try:
            await engines.until(lambda seen: is_found({one["id"]: one["state"] for one in seen}))
            assert time.monotonic() - began_s < supervision.FOUND_WITHIN_S
            assert await engines.is_said_ready(), "the other one answers"
        finally:
            for asker in askers:
                asker.cancel()
            await asyncio.gather(*askers, return_exceptions=True)
        seen = await engines.until_ready("m", 2)
        assert {one["restarts_count"] for one in seen} == {0, 1}
        assert second["pid"] in [one["pid"] for one in seen], "nobody touched it"
        assert answered > 0


async def test_shutting_down_drains_the_queue_too_and_a_second_signal_hurries(short_path: Path) -> None:
    async with supervised(short_path, slots=1, hang_timeout_s=30.0) as engines:
        [replica] = await engines.until_ready("m")
        await engines.set_knobs(replica, gap_ms=50.0, tokens=10)
        platform = engines.platform
        calls = [asyncio.create_task(engines.ask("m")) for _ in range(3)]  # two of them wait in the queue
        await engines.until(lambda _: len(engines.truth(short_path / "m.gguf").attempts) == 1)
        platform.interrupt()
        got = await asyncio.gather(*calls)
        assert [one.finish_reason for one in got] == ["stop"] * 3
        assert await platform.ended() == 0
        assert [one["outcome"] for one in platform.records()] == ["ok"] * 3
    async with supervised(short_path / "hurry", slots=1, hang_timeout_s=30.0) as engines:
        [replica] = await engines.until_ready("m")
        await engines.set_knobs(replica, endless=True, gap_ms=50.0)
        platform = engines.platform
        calls = [asyncio.create_task(engines.ask("m")) for _ in range(3)]
        await engines.until(lambda _: len(engines.truth(short_path / "hurry" / "m.gguf").attempts) == 1)
        platform.interrupt()
        await platform.logged("platform_stopping")
        platform.interrupt()
        got = await asyncio.gather(*calls)
        assert {one.error and one.error["code"] for one in got} == {"shutting_down"}
        assert await platform.ended() == 0
        found = audit(platform.database, engines.truth(short_path / "hurry" / "m.gguf"))
        assert found.is_clean, str(found)
