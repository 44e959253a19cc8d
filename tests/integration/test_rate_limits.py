"""Rate limits on a running platform: the rig's short size, and what callers, operators and a restart see."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gate import rate_limits as rig
from gate.rows import missed
from gate.state import State
from tests.integration.bodies import MESSAGES, PROMPT_TOKENS, chat_body
from tests.integration.gate_runs import Told
from tests.rig.admin import administer
from tests.rig.clients import Client, Received
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

SEED = 1
EXACT, OTHER, HELD, FAILING = "m:exact", "m:tokens=4", "m:tokens=3,step", "m:status=500"
module_loop = pytest.mark.asyncio(loop_scope="module")


async def test_no_window_is_above_its_limit_and_all_of_it_is_usable() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await rig.run("short", SEED, State.in_memory("limits", "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "limits"}
    assert figures["edges"] == rig.EDGES_COUNT["short"]
    assert figures["refused"] > figures["served"] > 0


@dataclass
class Limited:
    """A key of its own with a limit of its own."""

    platform: Platform
    key: str
    key_id: str
    limit_id: str

    async def ask(self, model: str = EXACT, *, tokens: int = 10, **fields: Any) -> Received:
        body = chat_body(f"fake/{model}", max_tokens=tokens, **fields)
        return await self.platform.ask(body, api_key=self.key)

    async def left(self, of: str = "tokens") -> int:
        """What an answer says that is left, as soon as it says so."""
        got = await self.ask(tokens=1_000_000, stream=False)
        return int(got.headers[f"x-ratelimit-remaining-{of}"])


async def limited(platform: Platform, **numbers: int) -> Limited:
    made = await administer(platform, "keys.create", name="k")
    key_id = made["details"]["id"]
    limit = await administer(platform, "limits.create", key=key_id, numbers=numbers)
    return Limited(platform, made["key"], key_id, limit["id"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    text = config(upstreams=[upstream("fake", engine.base_url, [EXACT, OTHER, HELD, FAILING])])
    async with running_platform(text, module_path / "p") as running:
        yield running


@module_loop
async def test_headers_say_how_a_limited_caller_stands_and_nobody_else_gets_any(platform: Platform) -> None:
    caller = await limited(platform, tokens_per_day=1000, requests_per_hour=9)
    for is_stream in (False, True):
        got = await caller.ask(stream=is_stream)
        assert got.status == 200
        assert got.headers["x-ratelimit-limit-tokens"] == "1000"
        assert got.headers["x-ratelimit-limit-requests"] == "9"
        assert re.fullmatch(r"(\d+h\d+m|\d+m)?\d+s", got.headers["x-ratelimit-reset-tokens"])
    assert await caller.left() == 1000 - 2 * (PROMPT_TOKENS + 10)
    assert await caller.left("requests") == 7
    unlimited = await platform.ask(chat_body(f"fake/{EXACT}"))
    assert not [name for name in unlimited.headers if name.startswith("x-ratelimit")]


@module_loop
async def test_a_refused_request_is_told_when_to_come_back_and_costs_nothing(platform: Platform) -> None:
    caller = await limited(platform, requests_per_day=1)
    assert (await caller.ask()).status == 200
    before = await platform.metrics()
    for _ in range(5):
        got = await caller.ask()
        assert (got.status, (got.error or {})["code"]) == (429, "rate_limit_exceeded")
        assert abs(int(got.headers["retry-after"]) - (86_400 - time.time() % 86_400)) <= 1.5
        assert "x-should-retry" not in got.headers
        assert caller.key_id in (got.error or {})["message"]
    name = 'headwater_gateway_rate_limit_refusals_total{limited="requests",scope="key"}'
    assert (await platform.metrics())[name] == before[name] + 5
    records = platform.rows("SELECT outcome FROM usage_records WHERE key_id = ?", caller.key_id)
    assert len(records) <= 2, "of one key's refusals in a minute one is recorded; the others are counted"
    assert {"outcome": "ok"} in records


@module_loop
async def test_a_request_above_the_whole_limit_is_told_not_to_come_back(platform: Platform) -> None:
    caller = await limited(platform, tokens_per_minute=100)
    got = await caller.ask(tokens=101)
    assert (got.status, (got.error or {})["code"]) == (429, "above_rate_limit")
    assert got.headers["x-should-retry"] == "false"
    assert "retry-after" not in got.headers


@module_loop
async def test_an_unstated_cap_fits_a_whole_limit(platform: Platform) -> None:
    caller = await limited(platform, tokens_per_day=200)
    body = chat_body(f"fake/{OTHER}", stream=False)
    got = await platform.ask(body, api_key=caller.key)
    assert got.status == 200
    cap = int(got.headers["x-headwater-output-cap"].partition(";")[0])
    assert PROMPT_TOKENS + cap <= 200
    assert got.headers["x-headwater-output-cap"].endswith("reason=rate_limit")
    assert int(got.headers["x-ratelimit-remaining-tokens"]) == 200 - (got.usage or {})["total_tokens"]


@module_loop
async def test_requests_at_once_are_limited_and_one_that_leaves_makes_room(platform: Platform) -> None:
    caller = await limited(platform, concurrency_max=2, tokens_per_day=10_000)
    body = chat_body(f"fake/{HELD}", max_tokens=10)
    async with (
        await Client.chat(platform.base_url, body, api_key=caller.key) as first,
        await Client.chat(platform.base_url, body, api_key=caller.key) as second,
    ):
        await until(lambda: platform.rows("SELECT 1 FROM reservations WHERE key_id = ?", caller.key_id)[1:])
        got = await caller.ask()
        assert (got.status, got.headers["retry-after"]) == (429, "1")
        first.leave("rst")

        async def is_served() -> bool:
            return (await caller.ask()).status == 200

        async with asyncio.timeout(10):
            while not await is_served():
                pass
        second.leave("rst")
    await platform.idle()
    served = platform.rows(
        "SELECT sum(uncached_input + output) AS n FROM usage_records WHERE key_id = ?", caller.key_id
    )
    used = 10_000 - await caller.left()
    typical = -(-sum(len(one["content"]) for one in MESSAGES) // 4) + len(MESSAGES)
    assert used == served[0]["n"] + 2 * typical, "two left before the first token: their prompts stay used"


@module_loop
async def test_what_the_budget_refuses_and_what_fails_gives_its_tokens_back(platform: Platform) -> None:
    caller = await limited(platform, tokens_per_day=5000, requests_per_day=10)
    assert (await caller.ask(FAILING)).status == 502
    assert await caller.left() == 5000
    assert await caller.left("requests") == 9, "it ran"
    await administer(platform, "budgets.create", key=caller.key_id, limit="0", period="day")
    got = await caller.ask(stream=False)
    assert (got.status, (got.error or {})["code"]) == (429, "insufficient_quota")
    assert got.headers["x-ratelimit-remaining-tokens"] == "5000"
    assert got.headers["x-ratelimit-remaining-requests"] == "9"


@module_loop
async def test_changes_of_a_limit_are_in_force_at_once(platform: Platform) -> None:
    caller = await limited(platform, requests_per_day=1)
    assert (await caller.ask()).status == 200
    assert (await caller.ask()).status == 429
    await platform.cli("limits", "update", caller.limit_id, "--requests-per-day", "2")
    assert (await caller.ask()).status == 200
    assert (await caller.ask()).status == 429
    await platform.cli("limits", "archive", caller.limit_id)
    got = await caller.ask()
    assert got.status == 200
    assert "x-ratelimit-limit-requests" not in got.headers


@module_loop
async def test_a_model_is_limited_for_everybody_together_or_for_one_organization(platform: Platform) -> None:
    one, two = await limited(platform, concurrency_max=9), await limited(platform, concurrency_max=9)
    made = await administer(platform, "limits.create", model=f"fake/{OTHER}", numbers={"requests_per_day": 2})
    own = await administer(
        platform, "limits.create", organization="default", model=f"fake/{EXACT}", numbers={"requests_per_day": 1}
    )
    try:
        assert [(await caller.ask(OTHER)).status for caller in (one, two, one, two)] == [200, 200, 429, 429]
        assert [(await caller.ask()).status for caller in (one, two)] == [200, 429]
        assert (await one.ask(OTHER)).status == 429
    finally:
        await administer(platform, "limits.archive", id=made["id"])
        await administer(platform, "limits.archive", id=own["id"])


async def test_a_restart_forgets_nothing_of_the_windows_under_way(short_path: Path) -> None:
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [EXACT, HELD])])
        async with running_platform(text, short_path / "p") as platform:
            caller = await limited(platform, tokens_per_day=1000, requests_per_day=50, concurrency_max=1)
            for _ in range(3):
                assert (await caller.ask()).status == 200
            async with await Client.chat(
                platform.base_url, chat_body(f"fake/{HELD}", max_tokens=7), api_key=caller.key
            ):
                await until(lambda: platform.rows("SELECT 1 FROM reservations WHERE key_id = ?", caller.key_id)[3:])
                await platform.kill()
            await platform.start()
            assert await caller.left() == 1000 - 3 * (PROMPT_TOKENS + 10)
            assert await caller.left("requests") == 46, "the one that was cut was asked too"
            assert (await caller.ask()).status == 200, "nothing is in flight after a start"
