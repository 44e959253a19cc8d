"""What an operator changes while the platform runs is in force when the command returns, and still so after a restart."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.clients import Received
from tests.rig.platform import PRICE, Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
FAST, OTHER = "m:tokens=5", "m:tokens=7"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    text = config(
        upstreams=[upstream("fake", engine.base_url, [FAST, OTHER])], prices=[{"model": f"fake/{FAST}", **PRICE}]
    )
    async with running_platform(text, module_path / "p") as running:
        yield running


async def cli(platform: Platform, *arguments: str) -> Any:
    """What a command prints as JSON."""
    return (await platform.cli(*arguments, "--json")).json()


async def ask(platform: Platform, key: str, model: str = FAST) -> Received:
    return await platform.ask(chat_body(f"fake/{model}"), api_key=key)


async def code_of(platform: Platform, key: str, model: str = FAST) -> str | None:
    """What a request with that key is refused with, or None."""
    got = await ask(platform, key, model)
    return None if got.error is None else f"{got.status} {got.error['code']}"


async def organization(platform: Platform, name: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """A new organization and a key of it."""
    made = await cli(platform, "organizations", "create", name, *arguments)
    return made, (await platform.create_key("--organization", name))["key"]


async def test_a_budget_holds_from_the_moment_it_is_made_until_it_is_lifted(platform: Platform) -> None:
    made, key = await organization(platform, "capped")
    assert await code_of(platform, key) is None
    budget = await cli(platform, "budgets", "create", "--limit", "0", "--per", "month", "--organization", "capped")
    assert await code_of(platform, key) == "429 insufficient_quota"
    assert await code_of(platform, platform.key) is None, "another organization is not meant"
    await cli(platform, "budgets", "update", budget["id"], "--limit", "10")
    got = await ask(platform, key)
    record = await platform.record(got.headers["x-request-id"])
    assert record["cost_nanos"] > 0
    shown = await cli(platform, "budgets", "show", budget["id"])
    assert (shown["spent_nanos"], shown["held_nanos"]) == (record["cost_nanos"], 0)
    assert shown["remaining_nanos"] == 10**10 - record["cost_nanos"]
    await cli(platform, "budgets", "update", budget["id"], "--limit", "0.000000001")
    assert await code_of(platform, key) == "429 insufficient_quota"
    await cli(platform, "budgets", "archive", budget["id"])
    assert await code_of(platform, key) is None
    assert (await cli(platform, "organizations", "show", "capped"))["balance_nanos"] < 0, made["id"]


@pytest.mark.parametrize("scope", ["project", "key"])
async def test_a_budget_of_a_project_or_key_caps_that_and_nothing_beside_it(platform: Platform, scope: str) -> None:
    await cli(platform, "projects", "create", f"{scope}-in", "--organization", "default")
    inside = await platform.create_key("--project", f"{scope}-in", "--name", f"{scope} in")
    outside = await platform.create_key(*(("--project", "key-in") if scope == "key" else ()))
    for made in (inside, outside):
        assert await code_of(platform, made["key"]) is None  # both are in memory from here on
    named = f"{scope}-in" if scope == "project" else inside["id"]
    budget = await cli(platform, "budgets", "create", "--limit", "0", "--per", "day", f"--{scope}", named)
    assert await code_of(platform, inside["key"]) == "429 insufficient_quota"
    assert await code_of(platform, outside["key"]) is None
    await cli(platform, "budgets", "archive", budget["id"])
    assert await code_of(platform, inside["key"]) is None


async def test_credit_can_be_spent_at_once_and_is_gone_at_once(platform: Platform) -> None:
    _, key = await organization(platform, "prepaid", "--prepaid")
    assert await code_of(platform, key) == "429 insufficient_quota"
    grant = await cli(platform, "grants", "create", "--organization", "prepaid", "--amount", "10", "--expires", "90d")
    got = await ask(platform, key)
    record = await platform.record(got.headers["x-request-id"])
    shown = await cli(platform, "grants", "show", grant["id"])
    assert shown["remaining_nanos"] == 10**10 - record["cost_nanos"]
    await cli(platform, "grants", "adjust", "--organization", "prepaid", "--amount", "100")
    archived = await cli(platform, "grants", "archive", grant["id"])
    assert (archived["state"], archived["remaining_nanos"]) == ("revoked", 0)
    assert await code_of(platform, key) == "429 insufficient_quota", "an adjustment is no credit"
    assert (await cli(platform, "organizations", "show", "prepaid"))["balance"] == "100"
    await cli(platform, "organizations", "update", "prepaid", "--postpaid")
    assert await code_of(platform, key) is None
    await cli(platform, "organizations", "update", "prepaid", "--prepaid")
    assert await code_of(platform, key) == "429 insufficient_quota"


async def test_a_price_counts_from_the_next_request_on(platform: Platform) -> None:
    async def charged(model: str) -> tuple[str | None, int | None]:
        got = await ask(platform, platform.key, model)
        record = await platform.record(got.headers["x-request-id"])
        return record["price_id"], record["cost_nanos"]

    assert await charged(OTHER) == (None, None)
    first = await cli(platform, "prices", "create", f"fake/{OTHER}", "--input", "0", "--output", "1000000")
    assert await charged(OTHER) == (first["id"], 7 * 10**9)
    second = await cli(platform, "prices", "update", f"fake/{OTHER}", "--output", "500000", "--reasoning", "0")
    assert await charged(OTHER) == (second["id"], 7 * 10**9 // 2)
    await cli(platform, "prices", "update", f"fake/{OTHER}", "--output", "1", "--effective", "2100-01-01")
    assert (await charged(OTHER))[0] == second["id"]
    await cli(platform, "prices", "archive", f"fake/{OTHER}")
    assert await charged(OTHER) == (None, None)
    refused = await platform.cli("prices", "update", f"fake/{FAST}", "--output", "1", check=False)
    assert refused.status == 1
    assert "belongs to the configuration file" in refused.stderr


async def test_a_changed_key_is_held_to_its_change_and_an_archived_owner_opens_nothing(platform: Platform) -> None:
    _, key = await organization(platform, "leaving")
    await cli(platform, "projects", "create", "crawler", "--organization", "leaving")
    other = await platform.create_key("--project", "crawler", "--name", "crawler key")
    assert await code_of(platform, other["key"]) is None
    await cli(platform, "keys", "update", "crawler key", "--model", f"fake/{OTHER}")
    assert await code_of(platform, other["key"]) == "403 model_not_allowed"
    assert await code_of(platform, other["key"], OTHER) is None
    await cli(platform, "keys", "update", "crawler key", "--all-models")
    assert await code_of(platform, other["key"]) is None
    assert await code_of(platform, key) is None
    await cli(platform, "projects", "archive", "crawler")
    assert await code_of(platform, other["key"]) == "401 revoked_api_key"
    assert await code_of(platform, key) is None
    await cli(platform, "organizations", "archive", "leaving")
    assert await code_of(platform, key) == "401 revoked_api_key"


async def test_everything_is_shown_alike_and_in_force_after_a_restart(
    engine: FakeEngineHandle, short_path: Path
) -> None:
    text = config(upstreams=[upstream("fake", engine.base_url, [FAST])], prices=[])
    async with running_platform(text, short_path / "p") as platform:
        _, key = await organization(platform, "acme", "--prepaid")
        await cli(platform, "prices", "create", f"fake/{FAST}", "--input", "1", "--output", "2")
        await cli(platform, "grants", "create", "--organization", "acme", "--amount", "10")
        gone = await cli(platform, "grants", "create", "--organization", "acme", "--amount", "5")
        await cli(platform, "budgets", "create", "--limit", "3", "--per", "total", "--organization", "acme")
        assert await code_of(platform, key) is None
        await cli(platform, "grants", "archive", gone["id"])

        async def shown() -> list[Any]:
            nouns = ("organizations", "projects", "keys", "budgets", "grants", "prices")
            return [await cli(platform, noun, "list") for noun in nouns]

        running = await shown()
        assert running[3][0]["spent_nanos"] > 0
        assert await platform.stop() == 0
        assert await shown() == running
        await platform.start()
        assert await code_of(platform, key) is None
        after = await shown()
        assert after[3][0]["spent_nanos"] == 2 * running[3][0]["spent_nanos"]
        assert after[5] == running[5]
