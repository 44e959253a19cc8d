"""Engines that die, can't load, or are given what is no model: what the caller is told, what is recorded, what goes on serving."""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.person import SMOL, Up, cpu_s, environ_for, is_alive, until, up, weights
from tests.rig.clients import Client, ask

pytestmark = pytest.mark.model

QUIET = ["--listen", "127.0.0.1:0", "--no-first-question"]
STORY: dict[str, Any] = {"model": "smol", "messages": [{"role": "user", "content": "Tell me a very long story."}]}
LONG = STORY | {"max_tokens": 1500, "temperature": 0}
HI: dict[str, Any] = {"model": "smol", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def deployment(name: str, model: str = SMOL, **fields: object) -> str:
    """One deployment of the configuration file, and its price."""
    table = {
        "name": name,
        "model": model,
        "slots": 2,
        "context_tokens": 2048,
        "threads": 1,
        "batch_tokens": 32,
    } | fields
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    return f'[[deployments]]\n{lines}\n\n[[prices]]\nmodel = "{name}"\ninput = "0.02"\noutput = "0.04"\n\n'


@pytest.fixture(scope="module")
def refused_by_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GGUF whose header is sound and whose first layer's tensor has another name: only the engine can tell."""
    path = tmp_path_factory.mktemp("broken") / "renamed.gguf"
    shutil.copyfile(weights(SMOL), path)
    with path.open("r+b") as file:
        at = file.read(8 * 2**20).index(b"blk.0.attn_q.weight")
        file.seek(at)
        file.write(b"blk.0.attn_x.weight")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """SmolLM2 on two replicas of one slot each."""
    config = deployment("smol", slots=1, replicas=2)
    with up(tmp_path_factory.mktemp("pair"), config=config, arguments=QUIET) as platform:
        platform.wait_ready()
        yield platform


class TestDying:
    """An engine process that is killed while it answers."""

    async def test_a_stream_ends_with_a_typed_error_and_the_engine_comes_back(
        self, tmp_path: Path, figure: Callable[[str], None]
    ) -> None:
        with up(tmp_path, config=deployment("smol"), arguments=QUIET) as platform:
            platform.wait_ready()
            key = platform.api_key
            engine = platform.engine("smol")
            async with await Client.chat(platform.base_url, LONG | {"stream": True}, api_key=key) as client:
                await client.read_tokens(5, timeout_s=60)
                os.kill(engine, signal.SIGKILL)
                killed_s = time.monotonic()
                got = await client.read_to_end(timeout_s=30)
            told_s = time.monotonic() - killed_s
            assert got.status == 200
            assert got.ended == "complete"
            assert got.error is not None
            assert (got.error["type"], got.error["code"]) == ("server_error", "engine_failed")
            assert not got.is_done_seen
            assert got.finish_reason is None
            row = platform.row(got.headers["x-request-id"])
            assert (row["outcome"], row["error_code"]) == ("upstream_error", "engine_failed")
            assert got.content_count <= row["output"] <= got.content_count + 10
            assert row["cost_nanos"] == 20 * (row["uncached_input"] + row["cache_read"]) + 40 * row["output"] > 0

            status, why = platform.get("/ready")
            assert status == 503, "a moment after the crash nothing is ready"
            assert "smol" in why
            assert "signal 9" in why
            assert platform.get("/health")[0] == 200
            until(lambda: platform.get("/ready")[0] == 200, timeout_s=60, what="a restarted engine")
            ready_s = time.monotonic() - killed_s
            figure(f"engine killed: client told after {told_s:.2f} s, ready again after {ready_s:.1f} s")
            assert platform.engine("smol") != engine
            assert platform.metric("headwater_replica_restarts_total", model="smol") == 1
            again = await ask(platform.base_url, HI, api_key=key, timeout_s=60)
            assert (again.status, again.finish_reason) in [(200, "length"), (200, "stop")]

    async def test_a_whole_answer_becomes_502_and_costs_nothing_and_the_next_waits_for_the_restart(
        self, tmp_path: Path
    ) -> None:
        with up(tmp_path, config=deployment("smol"), arguments=QUIET) as platform:
            platform.wait_ready()
            engine = platform.engine("smol")
            began_cpu_s = cpu_s(engine)
            async with await Client.chat(platform.base_url, LONG, api_key=platform.api_key) as client:
                async with asyncio.timeout(30):
                    while cpu_s(engine) - began_cpu_s < 0.5:
                        await asyncio.sleep(0.02)
                os.kill(engine, signal.SIGKILL)
                got = await client.read_to_end(timeout_s=30)
            assert got.status == 502
            assert got.error is not None
            assert got.error["code"] == "engine_failed"
            row = platform.row(got.headers["x-request-id"])
            assert (row["outcome"], row["cost_nanos"]) == ("upstream_error", 0)
            # A restart is a matter of seconds: whoever asks meanwhile waits in the queue and is served.
            until(lambda: platform.get("/ready")[0] == 503, timeout_s=5, what="a platform that knows it isn't ready")
            waited = await ask(platform.base_url, HI, api_key=platform.api_key, timeout_s=60)
            assert waited.status == 200
            assert platform.row(waited.headers["x-request-id"])["queue_ms"] > 0

    async def test_an_engine_that_keeps_dying_is_given_up_with_its_reason(self, tmp_path: Path) -> None:
        with up(tmp_path, config=deployment("smol", restarts_max=1), arguments=QUIET) as platform:
            platform.wait_ready()
            for _ in range(2):
                until(lambda: platform.get("/ready")[0] == 200, timeout_s=60, what="a ready engine")
                os.kill(platform.engine("smol"), signal.SIGKILL)
                until(
                    lambda: platform.get("/ready")[0] == 503, timeout_s=5, what="a platform that knows it isn't ready"
                )
            until(lambda: "ended 2 times" in platform.get("/ready")[1], timeout_s=30, what="a replica given up")
            got = await ask(platform.base_url, HI, api_key=platform.api_key, timeout_s=30)
            assert got.status == 503
            assert got.error is not None
            assert got.error["code"] == "no_replica"
            assert int(got.headers["retry-after"]) > 0


class TestTwoReplicas:
    """A deployment with replicas = 2."""

    async def test_both_are_used_and_one_goes_on_alone(self, pair: Up) -> None:
        key = pair.api_key
        assert len(pair.engines()["smol"]) == 2
        first, second = await asyncio.gather(
            *(ask(pair.base_url, LONG | {"max_tokens": 40}, api_key=key, timeout_s=120) for _ in range(2))
        )
        sql = "SELECT replica_id FROM attempts WHERE request_id IN (?, ?)"
        used = pair.rows(sql, first.headers["x-request-id"], second.headers["x-request-id"])
        assert len({row["replica_id"] for row in used}) == 2

        os.kill(pair.engines()["smol"][0], signal.SIGKILL)
        until(
            lambda: pair.metric("headwater_replicas", model="smol", state="ready") == 1, timeout_s=5, what="one replica"
        )
        assert pair.get("/ready")[0] == 200, "one replica is enough to serve"
        got = await ask(pair.base_url, HI, api_key=key, timeout_s=60)
        assert got.status == 200
        until(
            lambda: pair.metric("headwater_replicas", model="smol", state="ready") == 2, timeout_s=60, what="both again"
        )


class TestLoading:
    """Engines that can't load their model."""

    def test_a_model_the_engine_refuses_ends_up_with_its_reason(self, tmp_path: Path, refused_by_engine: Path) -> None:
        with up(tmp_path, config=deployment("odd", str(refused_by_engine)), arguments=QUIET) as platform:
            assert platform.wait_exit(60) == 1
            said = platform.log
            assert "'odd'" in said
            assert "could not load the model" in said
            assert "attn_q" in said, "the engine's own last lines say what is missing"
            assert "headwater doctor" in said
            assert "Traceback" not in said
            assert "API key" not in platform.out, "no key is shown for a platform that serves nothing"
            assert not any(map(is_alive, platform.seen_engine_pids))

    def test_too_little_memory_ends_up_with_its_reason(self, tmp_path: Path) -> None:
        config = deployment("huge", slots=32, context_tokens=8192)  # some 6 GB of KV cache
        with up(tmp_path, config=config, arguments=QUIET, shell_prefix="ulimit -v 4000000;") as platform:
            assert platform.wait_exit(90) == 1
            said = platform.log
            assert "'huge'" in said
            assert "headwater doctor" in said
            assert "Traceback" not in said.partition("replica_changed")[0]

    async def test_the_others_serve_when_one_deployment_cannot(self, tmp_path: Path, refused_by_engine: Path) -> None:
        config = deployment("smol") + deployment("odd", str(refused_by_engine))
        with up(tmp_path, config=config, arguments=QUIET) as platform:
            platform.wait_ready()
            assert "odd: a replica failed" in platform.out
            status, body = platform.get("/ready")
            assert status == 503
            (reason,) = json.loads(body)["reasons"]
            assert "'odd'" in reason
            assert "'smol'" not in reason
            key = platform.api_key
            assert (await ask(platform.base_url, HI, api_key=key, timeout_s=60)).status == 200
            got = await ask(platform.base_url, HI | {"model": "odd"}, api_key=key, timeout_s=30)
            assert got.status == 503
            assert got.error is not None
            assert got.error["code"] == "no_replica"
            assert platform.row(got.headers["x-request-id"])["outcome"] == "rejected"

    async def test_a_caller_is_not_shown_the_machine_s_insides(self, tmp_path: Path, refused_by_engine: Path) -> None:
        config = deployment("smol") + deployment("odd", str(refused_by_engine))
        with up(tmp_path, config=config, arguments=QUIET) as platform:
            platform.wait_ready()
            got = await ask(platform.base_url, HI | {"model": "odd"}, api_key=platform.api_key, timeout_s=30)
            assert got.error is not None
            assert str(tmp_path) not in got.error["message"], "paths of the machine are for its operator"


def _text(path: Path) -> None:
    path.write_text("This is no model.\n" * 100)


def _safetensors(path: Path) -> None:
    head = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))


def _cut_in_header(path: Path) -> None:
    with weights(SMOL).open("rb") as file:
        path.write_bytes(file.read(5000))


def _cut_in_tensors(path: Path) -> None:
    with weights(SMOL).open("rb") as file:
        path.write_bytes(file.read(40 * 2**20))


def _absent(path: Path) -> None:
    assert not path.exists()


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (_text, "unknown file"),
        (_safetensors, "safetensors"),
        (_cut_in_header, "ends inside its header"),
        (_cut_in_tensors, "tensor"),
        (_absent, "m.gguf"),
        (_directory, "m.gguf"),
    ],
    ids=["text", "safetensors", "cut in its header", "cut in its tensors", "absent", "a directory"],
)
def test_what_is_no_model_is_named_before_anything_starts(
    tmp_path: Path, make: Callable[[Path], None], word: str
) -> None:
    make(tmp_path / "m.gguf")
    with up(tmp_path / "there", config=deployment("odd", str(tmp_path / "m.gguf")), arguments=QUIET) as platform:
        assert platform.wait_exit(30) in (1, 2)
        said = platform.log
        assert word in said
        assert str(tmp_path / "m.gguf") in said
        assert "Traceback" not in said
        assert not platform.events("platform_started"), "nothing was started for it"
        assert platform.seen_engine_pids == set()
    assert not (tmp_path / "there" / "data" / "headwater.db").exists(), "and nothing is left half-done"


def test_a_context_the_model_was_not_made_for_is_refused(tmp_path: Path) -> None:
    with up(
        tmp_path, config=deployment("smol", context_tokens=16384), arguments=QUIET, environ=environ_for()
    ) as platform:
        assert platform.wait_exit(30) in (1, 2)
        assert "16384" in platform.log
        assert "8192" in platform.log
