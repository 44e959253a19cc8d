"""`headwater reload`: a changed configuration becomes true without dropping a stream, an impossible one changes nothing."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.integration.bodies import chat_body
from tests.rig.auditor import audit
from tests.rig.clients import Client
from tests.rig.fake_children import deployment, supervised, write_model
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import fake_engine

STREAMS_COUNT, RELOADS_COUNT = 50, 5
SLOW, FAST = "m:tokens=20,gap_ms=200", "m:tokens=3"


def rewrite(platform: Platform, text: str) -> None:
    """Another configuration in the same file."""
    platform.config_path.write_text(text)


async def reload(platform: Platform) -> dict[str, Any]:
    """What the command says."""
    said: dict[str, Any] = (await platform.cli("reload", "--json")).json()
    return said


@asynccontextmanager
async def streams(platform: Platform, model: str, count: int) -> AsyncIterator[list[Client]]:
    """So many streams, each with its first token."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                await Client.chat(platform.base_url, chat_body(model), api_key=platform.key)
            )
            for _ in range(count)
        ]
        await asyncio.gather(*(client.read_tokens(1) for client in clients))
        yield clients


async def test_fifty_streams_live_through_five_reloads_and_each_is_billed_once(short_path: Path) -> None:
    async with fake_engine() as engine:

        def text(number: int) -> str:
            """Every time another upstream, another price, other limits; the streams' upstream has another engine each time."""
            tables = [
                upstream("fake", engine.base_url, [SLOW, FAST], concurrency_max=100 + number),
                upstream(f"other{number}", engine.base_url, [FAST]),
            ]
            prices = [{"model": f"fake/{SLOW}", "input": "0.10", "output": f"0.{number}0"}]
            return config(upstreams=tables, prices=prices, gateway={"idle_timeout_s": 30.0 + number})

        async with running_platform(text(1), short_path / "p") as platform:
            async with streams(platform, f"fake/{SLOW}", STREAMS_COUNT) as clients:
                for number in range(2, 2 + RELOADS_COUNT):
                    rewrite(platform, text(number))
                    said = await reload(platform)
                    assert f'upstreams "other{number}" added' in said["changed"]
                    assert f'upstreams "other{number - 1}" removed' in said["changed"]
                    assert "gateway.idle_timeout_s" in said["changed"]
                    assert said["kept"] == []
                    assert (await platform.ask(chat_body(f"other{number}/{FAST}"))).finish_reason == "stop"
                    gone = await platform.ask(chat_body(f"other{number - 1}/{FAST}"))
                    assert (gone.status, gone.error and gone.error["code"]) == (404, "model_not_found")
                    assert (await platform.ask(chat_body(f"fake/{FAST}"))).finish_reason == "stop"
                got = await asyncio.gather(*(client.read_to_end() for client in clients))
            assert [one.finish_reason for one in got] == ["stop"] * STREAMS_COUNT
            assert all(one.content_count == 20 and one.is_done_seen for one in got)
            records = [one for one in platform.records() if one["model"] == f"fake/{SLOW}"]
            assert [one["outcome"] for one in records] == ["ok"] * STREAMS_COUNT
            assert len({one["cost_nanos"] for one in records}) == 1, "the price of their admission"
            assert await platform.stop() == 0
            found = audit(platform.database, await engine.settled(STREAMS_COUNT))
            assert found.is_clean, str(found)


async def test_an_impossible_configuration_changes_nothing_and_says_why(short_path: Path) -> None:
    async with fake_engine() as engine:
        good = config(upstreams=[upstream("fake", engine.base_url, [FAST])])
        async with running_platform(good, short_path / "p") as platform:
            for bad, word in (
                (good.replace("[gateway]", "[gateway]\nlisen = 3"), "gateway.lisen"),
                (good + '[[deployments]]\nname = "a"\nmodel = "./nothing.gguf"\n', "nothing.gguf"),
                (good.replace(f'model = "fake/{FAST}"', 'model = "fake/other"'), "fake/other"),
                ("[[[", "not valid TOML"),
            ):
                rewrite(platform, bad)
                ran = await platform.cli("reload", check=False)
                assert ran.status == 1, ran
                assert ran.stderr.count("error: ") == 1
                assert word in ran.stderr
                assert (await platform.ask(chat_body(f"fake/{FAST}"))).finish_reason == "stop"
            assert await platform.logged("reload_refused")


async def test_what_needs_a_new_start_is_named_and_stays(short_path: Path) -> None:
    async with fake_engine() as engine:
        table = upstream("fake", engine.base_url, [FAST])
        async with running_platform(config(upstreams=[table]), short_path / "p") as platform:
            changed = config(
                upstreams=[table],
                gateway={"listen": "127.0.0.1:1", "key_cache_count": 9, "stop_count_max": 1},
                billing={"unpriced": "refuse"},
            )
            rewrite(platform, changed)
            ran = await platform.cli("reload")
            assert "changed: gateway.stop_count_max" in ran.stdout
            for key in ("gateway.listen", "gateway.key_cache_count", "billing.unpriced"):
                assert f"needs a restart, stays as it was: {key}\n" in ran.stdout
            assert (await platform.ask(chat_body(f"fake/{FAST}"))).finish_reason == "stop"
            assert (await platform.ask(chat_body(f"fake/{FAST}", stop=["a", "b"]))).status == 400
            again = await reload(platform)
            assert again["changed"] == []


async def test_a_hangup_reloads_too(short_path: Path) -> None:
    async with fake_engine() as engine:
        first, second = upstream("one", engine.base_url, [FAST]), upstream("two", engine.base_url, [FAST])
        async with running_platform(config(upstreams=[first]), short_path / "p") as platform:
            rewrite(platform, config(upstreams=[second]))
            platform.process.send_signal(signal.SIGHUP)
            await platform.logged("reloaded")
            assert (await platform.ask(chat_body(f"two/{FAST}"))).finish_reason == "stop"
            assert (await platform.ask(chat_body(f"one/{FAST}"))).status == 404


async def test_without_a_platform_there_is_nothing_to_reload(short_path: Path) -> None:
    text = config(upstreams=[upstream("fake", "http://127.0.0.1:9/v1", ["m"])])
    async with running_platform(text, short_path / "p") as platform:
        assert await platform.stop() == 0
        for words in (("reload",), ("replicas", "list")):
            ran = await platform.cli(*words, check=False)
            assert (ran.status, "No platform runs" in ran.stderr) == (1, True)


async def test_a_deployment_that_is_taken_out_serves_its_queue_and_its_streams_to_the_end(short_path: Path) -> None:
    model, stays = write_model(short_path, "m"), write_model(short_path, "stays")
    both = [deployment("m", model, slots=2, hang_timeout_s=30.0), deployment("stays", stays)]
    async with supervised(short_path, lambda _: config(deployments=both)) as engines:
        platform = engines.platform
        [replica] = await engines.until_ready("m")
        await engines.set_knobs(replica, step=True, tokens=4)
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    await Client.chat(platform.base_url, chat_body("m"), api_key=platform.key)
                )
                for _ in range(3)
            ]
            await until(lambda: len(engines.truth(model).attempts) == 2)  # one waits in the queue
            rewrite(platform, config(deployments=both[1:]))
            assert (await reload(platform))["changed"] == ['deployments "m" removed', 'prices "m" removed']
            assert (await engines.ask("m")).status == 404
            await engines.until(lambda seen: {one["state"] for one in seen} == {"draining", "ready"})
            assert await engines.is_said_ready()
            reading = [asyncio.create_task(client.read_to_end()) for client in clients]
            while not all(one.done() for one in reading):
                with contextlib.suppress(OSError, AssertionError):
                    await engines.step(replica, 4)
                await asyncio.sleep(0.05)
            assert [one.result().finish_reason for one in reading] == ["stop"] * 3
        await engines.until(lambda seen: [one["deployment"] for one in seen] == ["stays"])
        await until(lambda: len(engines.pids()) == 1)
        assert (await engines.ask("stays")).finish_reason == "stop"


async def test_a_changed_engine_is_started_before_the_old_one_is_drained(short_path: Path) -> None:
    model = write_model(short_path, "m")
    patient: dict[str, object] = {"hang_timeout_s": 30.0}
    changed: dict[str, object] = patient | {"slots": 2, "context_tokens": 256}
    first = config(deployments=[deployment("m", model, **patient)])
    async with supervised(short_path, lambda _: first) as engines:
        platform = engines.platform
        [old] = await engines.until_ready("m")
        await engines.set_knobs(old, step=True, tokens=4)
        async with await Client.chat(platform.base_url, chat_body("m"), api_key=platform.key) as client:
            await until(lambda: len(engines.truth(model).attempts) == 1)
            await engines.step(old, 1)
            await client.read_tokens(1)
            rewrite(platform, config(deployments=[deployment("m", model, replicas=2, **changed)]))
            said = await reload(platform)
            assert said["changed"] == ['deployments "m" changed: replicas, slots, context_tokens']
            seen = await engines.until(
                lambda seen: sorted(one["state"] for one in seen) == ["draining", "ready", "ready"]
            )
            assert next(one for one in seen if one["state"] == "draining")["id"] == old["id"]
            assert (await engines.ask("m")).finish_reason == "stop"
            await engines.step(old, 3)
            assert (await client.read_to_end()).finish_reason == "stop"
        await engines.until_ready("m", 2)
        rewrite(platform, config(deployments=[deployment("m", model, replicas=1, **changed)]))
        await reload(platform)
        await engines.until_ready("m", 1)
        assert len(platform.log("platform_started")) == 1


async def test_a_change_that_can_not_start_leaves_the_old_engine_serving(short_path: Path) -> None:
    model = write_model(short_path, "m")
    async with supervised(short_path, lambda _: config(deployments=[deployment("m", model)])) as engines:
        [old] = await engines.until_ready("m")
        engines.will(model, "refuse")
        rewrite(engines.platform, config(deployments=[deployment("m", model, slots=2)]))
        await reload(engines.platform)
        await engines.platform.logged("deployment_change_failed")
        seen = await engines.replicas("m")
        assert {one["state"] for one in seen} == {"ready", "failed"}
        assert (await engines.ask("m")).finish_reason == "stop"
        await reload(engines.platform)  # tries again
        [new] = await engines.until_ready("m")
        assert new["id"] != old["id"]


async def test_drained_calls_have_a_bound(short_path: Path) -> None:
    model = write_model(short_path, "m")
    stays = upstream("fake", "http://127.0.0.1:9/v1", ["m"])
    gateway = {"drain_timeout_s": 0.5}
    text = config(deployments=[deployment("m", model)], upstreams=[stays], gateway=gateway)
    async with supervised(short_path, lambda _: text) as engines:
        platform = engines.platform
        [replica] = await engines.until_ready("m")
        await engines.set_knobs(replica, endless=True, gap_ms=20.0)
        async with await Client.chat(platform.base_url, chat_body("m"), api_key=platform.key) as client:
            await client.read_tokens(1)
            rewrite(platform, config(upstreams=[stays], gateway=gateway))
            await reload(platform)
            got = await client.read_to_end(timeout_s=10.0)
            assert got.error is not None
        await engines.until(lambda seen: seen == [])
        assert not engines.pids()
