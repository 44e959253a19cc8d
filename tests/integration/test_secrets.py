"""No secret is in a log, an error, a metric or the database, and a credential goes to its own upstream only."""

import asyncio
from pathlib import Path

from tests.integration.bodies import chat_body
from tests.rig.clients import Client
from tests.rig.platform import config, running_platform, upstream
from tests.rig.processes import fake_engine

UPSTREAM_KEY = "sk-upstream-3f9a8b7c6d5e4f3a2b1c"
HEADER_SECRET = "tenant-secret-77c1d2e3f4"
PROMPT = "zanzibar-prompt-is-private"
MODELS = ["m:tokens=3", "m:status=401", "m:status=500", "m:garbage", "m:cut_after=1", "m:silent", "m:close_immediately"]


async def test_secrets_and_prompts_are_nowhere(short_path: Path) -> None:
    async with fake_engine(api_key=UPSTREAM_KEY) as engine, fake_engine() as stranger:
        redirect = f"m:redirect={stranger.base_url.rpartition(':')[2].removesuffix('/v1')}"
        text = config(
            upstreams=[
                upstream(
                    "fake",
                    engine.base_url,
                    [*MODELS, redirect],
                    api_key={"env": "FAKE_KEY"},
                    headers={"x-tenant": HEADER_SECRET},
                    first_byte_timeout_s=0.5,
                    failures_max=0,  # it fails so often that its breaker would open
                    retries_max=0,
                ),
                upstream("wrong", engine.base_url, MODELS[:1], api_key={"env": "WRONG_KEY"}, retries_max=0),
            ],
            log={"level": "debug"},
        )
        env = {"FAKE_KEY": UPSTREAM_KEY, "WRONG_KEY": f"{UPSTREAM_KEY}-wrong"}
        async with running_platform(text, short_path / "p", env=env) as platform:
            seen: list[bytes] = []
            for model in (*MODELS, redirect):
                for stream in (True, False):
                    messages = [{"role": "user", "content": PROMPT}]
                    got = await platform.ask(chat_body(f"fake/{model}", stream=stream, messages=messages))
                    seen.append(got.body)
            ok = await platform.ask(chat_body(f"fake/{MODELS[0]}"))
            assert (ok.status, ok.finish_reason) == (200, "stop"), "the upstream got its key"
            refused = await platform.ask(chat_body(f"wrong/{MODELS[0]}", stream=False))
            assert (refused.status, refused.error and refused.error["code"]) == (502, "engine_failed")
            forged = f"{platform.key[:-1]}{'0' if platform.key[-1] != '0' else '1'}"
            seen += [refused.body, (await platform.ask(chat_body("fake/x"), api_key=forged)).body]
            seen += [(await platform.ask({"model": "fake/x", PROMPT: 1})).body.replace(PROMPT.encode(), b"")]
            for path in ("/metrics", "/ready", "/health", "/v1/models", "/v1/usage", "/v1/nothing"):
                seen.append((await platform.get(path)).body)
            async with await Client.chat(platform.base_url, chat_body(f"fake/{MODELS[0]}"), api_key=platform.key):
                await asyncio.sleep(0)
            await platform.idle()
            explained = await platform.cli("config", "explain")
            seen += [explained.stdout.encode(), explained.stderr.encode()]
            for arguments in (("keys", "list"), ("usage",), ("usage", "--by", "key", "--json")):
                ran = await platform.cli(*arguments)
                seen += [ran.stdout.encode(), ran.stderr.encode()]
            files = {path: path.read_bytes() for path in _files(platform.directory)}
            assert await platform.stop() == 0
            files |= {path: path.read_bytes() for path in _files(platform.directory)}
            logged = platform.log_path.read_bytes()
            assert b"request_settled" in logged

            secrets = [platform.key, platform.key[10:], forged, UPSTREAM_KEY, HEADER_SECRET, PROMPT]
            for secret in (one.encode() for one in secrets):
                for what in seen:
                    assert secret not in what, f"{secret!r} was shown: {what!r}"
                for file, content in files.items():
                    assert secret not in content, f"{secret!r} is in {file}"
            assert any(file.name == "headwater.db-wal" for file in files), "looked into the write-ahead log too"
        assert stranger.truth().attempts == [], "a redirect takes no credential anywhere"
        assert all(one.facts["has_authorization"] for one in engine.truth().attempts)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != "headwater.toml"]
