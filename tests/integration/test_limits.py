"""Places, queues and the bound on concurrent requests: first come, first served, then 503 with a true `Retry-After`."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.clients import Client
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
ONE_SECOND, HELD = "m:tokens=20,gap_ms=50", "m:tokens=3,step"
QUEUED_MAX, CONCURRENT_MAX = 3, 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    def of(name: str, places: int) -> dict[str, object]:
        return upstream(name, engine.base_url, [ONE_SECOND, HELD], concurrency_max=places)

    text = config(
        upstreams=[of("one", 1), of("two", 2), of("many", 100)],
        gateway={"queued_requests_max": QUEUED_MAX, "concurrent_requests_max": CONCURRENT_MAX},
    )
    async with running_platform(text, module_path / "p") as running:
        yield running


async def queued(platform: Platform, name: str, count: int) -> None:
    """Wait until so many attempts wait for that upstream."""
    async with asyncio.timeout(5.0):
        while (await platform.metrics())[f'headwater_gateway_queued{{pool="{name}"}}'] != count:
            await asyncio.sleep(0)


async def test_a_full_queue_refuses_at_once_and_its_retry_after_is_true(platform: Platform) -> None:
    body = chat_body(f"one/{ONE_SECOND}")
    await platform.ask(body)  # so that it has seen how long one takes
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(await Client.chat(platform.base_url, body, api_key=platform.key))
            for _ in range(1 + QUEUED_MAX)
        ]
        await queued(platform, "one", QUEUED_MAX)
        asked_s = time.monotonic()
        refused = await platform.ask(body)
        assert time.monotonic() - asked_s < 0.5, "a refusal doesn't wait"
        assert (refused.status, refused.error and refused.error["code"]) == (503, "overloaded")
        record = await platform.record(refused.headers["x-request-id"])
        assert (record["outcome"], record["error_code"], record["cost_nanos"]) == ("rejected", "overloaded", 0)
        assert platform.attempts(record["request_id"]) == []
        retry_after_s = int(refused.headers["retry-after"])
        assert 1 <= retry_after_s <= 3
        reads = [asyncio.create_task(client.read_to_end()) for client in clients]
        await asyncio.sleep(retry_after_s)  # what the answer told its client to do
        again = await platform.ask(body)
        assert (again.status, again.finish_reason) == (200, "stop")
        ends = [(await read).ended_ns or 0 for read in reads]
        assert all(client.received.finish_reason == "stop" for client in clients)
        assert ends == sorted(ends), "first come, first served"


async def test_choices_need_room_in_the_queue_for_each(engine: FakeEngineHandle, platform: Platform) -> None:
    async with await Client.chat(platform.base_url, chat_body(f"one/{HELD}"), api_key=platform.key) as occupant:
        await engine.wait_for(lambda truth: not truth.is_settled)
        refused = await platform.ask(chat_body(f"one/{HELD}", n=4))
        assert (refused.status, refused.error and refused.error["code"]) == (503, "overloaded")
        async with await Client.chat(platform.base_url, chat_body(f"one/{HELD}", n=3), api_key=platform.key):
            await queued(platform, "one", 3)
        await queued(platform, "one", 0)
        while await engine.step(3):
            await asyncio.sleep(0)
        assert (await occupant.read_to_end()).finish_reason == "stop"
    await platform.idle()


async def test_places_are_never_more_than_there_are(engine: FakeEngineHandle, platform: Platform) -> None:
    before = len(engine.truth().attempts)
    answers = [asyncio.create_task(platform.ask(chat_body(f"two/{HELD}"))) for _ in range(5)]
    await queued(platform, "two", 3)
    truth = await engine.wait_for(lambda truth: len(truth.attempts) >= before + 2)
    assert len(truth.attempts) == before + 2
    assert (await platform.metrics())['headwater_gateway_busy_slots{pool="two"}'] == 2
    while not all(answer.done() for answer in answers):
        await engine.step(3)
    assert [(await answer).finish_reason for answer in answers] == ["stop"] * 5
    assert len(engine.truth().attempts) == before + 5


async def test_one_more_than_the_concurrent_requests_is_refused(engine: FakeEngineHandle, platform: Platform) -> None:
    await platform.idle()
    before = len(engine.truth().attempts)
    answers = [asyncio.create_task(platform.ask(chat_body(f"many/{HELD}"))) for _ in range(CONCURRENT_MAX)]
    await engine.wait_for(lambda truth: len(truth.attempts) == before + CONCURRENT_MAX)
    refused = await platform.ask(chat_body(f"many/{HELD}", stream=False))
    assert (refused.status, refused.error and refused.error["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await platform.get("/health")).status == 200, "only requests for models are bounded"
    while not all(answer.done() for answer in answers):
        await engine.step(3)
    assert [(await answer).status for answer in answers] == [200] * CONCURRENT_MAX
    await platform.idle()
    assert (await platform.ask(chat_body(f"one/{ONE_SECOND}", max_tokens=1))).status == 200
