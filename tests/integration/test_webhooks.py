"""The running platform tells a webhook that a budget is nearly spent, whatever crashes between the two."""

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.integration.bodies import chat_body
from tests.rig.admin import administer
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import fake_engine
from tests.rig.receiver import Received, Receiver

MODEL = "m:tokens=20"
LIMIT = "0.0005"
"""A request costs 0.0000071, that is more than one percent of it."""
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def platform(tmp_path: Path, receiver: Receiver) -> AsyncIterator[Platform]:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    webhook = f'[[webhooks]]\nurl = "{receiver.url}"\nsecret = {{ file = "{secret}" }}\n'
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [MODEL])]) + webhook
        async with running_platform(text, tmp_path) as running:
            yield running


async def spend(platform: Platform) -> None:
    """Make a budget, and the one request that takes it over its threshold."""
    await administer(platform, "budgets.create", limit=LIMIT, period="month", thresholds=[1], project="default")
    await platform.ask(chat_body(f"fake/{MODEL}", max_tokens=20, stream=False))


async def delivered(platform: Platform) -> None:
    await until(lambda: platform.rows("SELECT id FROM notices WHERE delivered_at_ms IS NOT NULL"))


def assert_genuine(got: Received) -> None:
    headers = got.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + got.body
    wanted = base64.b64encode(hmac.new(b"s" * 32, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"


async def test_a_threshold_is_told_once_and_at_once(platform: Platform, receiver: Receiver) -> None:
    await spend(platform)
    await receiver.wait_for(1)
    await delivered(platform)
    (got,) = receiver.received
    assert_genuine(got)
    event = msgspec.json.decode(got.body)
    assert event["type"] == "budget.threshold_reached"
    assert (event["data"]["scope"], event["data"]["percent"], event["data"]["limit"]) == ("project", 1, LIMIT)
    (line,) = platform.log("budget_threshold")
    assert (await platform.logged("webhook_delivered"))["tries_count"] == 1
    assert line["budget"] == event["data"]["budget_id"]
    assert (await platform.metrics())['headwater_gateway_webhooks_total{outcome="delivered"}'] == 1


async def test_a_platform_killed_while_it_tells_tells_it_after_its_restart(
    platform: Platform, receiver: Receiver
) -> None:
    real = receiver.respond

    async def kill(_: Received) -> bytes | None:
        await platform.kill()  # it has sent the notice, and never hears that it was taken
        return None

    receiver.respond = kill
    await spend(platform)
    await receiver.wait_for(1)
    await platform.ended()
    receiver.respond = real
    await platform.start()
    await receiver.wait_for(2)
    await delivered(platform)
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert_genuine(second)
