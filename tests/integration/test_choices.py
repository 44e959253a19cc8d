"""n choices are n calls under one record, each with a place of its own when one is free."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.bodies import PROMPT_TOKENS, chat_body
from tests.rig.auditor import audit
from tests.rig.clients import Received
from tests.rig.oracle import expected
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.rig.truth import Attempt

pytestmark = pytest.mark.asyncio(loop_scope="module")
PACED, BROKEN, REFUSED = "m:gap_ms=5", "m:tokens=6,gap_ms=5,cut_after=3", "m:status=429,retry_after=9"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    def of(name: str, places: int) -> dict[str, object]:
        return upstream(name, engine.base_url, [PACED, BROKEN, REFUSED], concurrency_max=places)

    text = config(upstreams=[of("one", 1), of("two", 2), of("many", 16)])
    async with running_platform(text, module_path / "p") as running:
        yield running
        await running.idle()
        found = audit(running.database, await engine.settled(1))
        assert found.is_clean, str(found)


def overlap_max(attempts: list[Attempt]) -> int:
    """The most of them that were open at once."""
    moments = [(one.received_at_ns, 1) for one in attempts] + [(one.closed_at_ns or 0, -1) for one in attempts]
    count = most = 0
    for _, step in sorted(moments):
        count += step
        most = max(most, count)
    return most


def texts(got: Received) -> dict[int, str]:
    """The text of each choice."""
    found: dict[int, str] = {}
    for choice in got.choices:
        delta = choice.get("delta") or choice.get("message") or {}
        found[choice["index"]] = found.get(choice["index"], "") + (delta.get("content") or "")
    return found


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("name", "places"), [("one", 1), ("two", 2), ("many", 3)])
async def test_each_choice_takes_a_place_when_one_is_free(
    engine: FakeEngineHandle, platform: Platform, name: str, places: int, stream: bool
) -> None:
    got = await platform.ask(chat_body(f"{name}/{PACED}", stream=stream, n=3))
    record = await platform.record(got.headers["x-request-id"])
    rows = platform.attempts(record["request_id"])
    assert (got.status, got.error) == (200, None)
    assert (record["choices_count"], record["outcome"], [row["choice"] for row in rows]) == (3, "ok", [0, 1, 2])
    attempts = [await engine.closed(row["id"]) for row in rows]
    assert overlap_max(attempts) == places
    assert all(one.facts["n"] in (None, 1) for one in attempts), "the engine is never asked for n"
    sent = {"model": PACED, "max_tokens": 4096}
    wanted = {at: expected(row["id"], sent).text for at, row in enumerate(rows)}
    assert texts(got) == wanted
    assert got.usage is not None
    assert got.usage["completion_tokens"] == record["output"] == sum(one.tokens_sent for one in attempts)
    assert record["uncached_input"] == 3 * PROMPT_TOKENS
    finished = [choice["index"] for choice in got.choices if choice.get("finish_reason")]
    assert sorted(finished) == [0, 1, 2]


@pytest.mark.parametrize("name", ["one", "two", "many"])
async def test_one_broken_choice_ends_them_all(platform: Platform, name: str) -> None:
    got = await platform.ask(chat_body(f"{name}/{BROKEN}", n=3))
    assert (got.ended, got.error and got.error["code"]) == ("complete", "engine_failed")
    assert got.finish_reason is None
    record = await platform.record(got.headers["x-request-id"])
    rows = platform.attempts(record["request_id"])
    assert record["outcome"] == "upstream_error"
    assert 1 <= len(rows) <= 3
    assert any(row["error_code"] == "engine_failed" for row in rows)
    await platform.idle()


async def test_a_refused_choice_keeps_its_retry_after(platform: Platform) -> None:
    got = await platform.ask(chat_body(f"two/{REFUSED}", n=3, stream=False))
    assert (got.status, got.headers.get("retry-after")) == (503, "9")
    await platform.idle()
