"""Two organizations on one real model, with the official SDK: what one has read is never reused for the other, and a
budget that is spent is said once."""

import json
from collections.abc import Iterator

import pytest
from openai import OpenAI, RateLimitError
from openai.types.chat import ChatCompletionMessageParam

from tests.acceptance.person import Up

pytestmark = pytest.mark.model

FACTS = " ".join(f"House {number} is {colour}." for number, colour in enumerate(["red", "blue", "green"] * 5))
TALK: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"{FACTS} Which colour is house 7?"}]


@pytest.fixture(scope="module")
def keys(real: Up) -> dict[str, str]:
    """A key of each of two new organizations."""
    made = {}
    for name in ("left", "right"):
        assert real.command("organizations", "create", name).returncode == 0
        done = real.command("keys", "create", "--organization", name, "--json")
        made[name] = json.loads(done.stdout)["key"]
    return made


@pytest.fixture
def sdk(real: Up, keys: dict[str, str]) -> Iterator[dict[str, OpenAI]]:
    """The SDK as each organization uses it, with its retries on."""
    clients = {name: OpenAI(base_url=real.base_url, api_key=key, timeout=240) for name, key in keys.items()}
    yield clients
    for client in clients.values():
        client.close()


def cached_tokens(client: OpenAI) -> int:
    """Ask on the deployment with one slot; how many prompt tokens were not read anew."""
    answer = client.chat.completions.create(model="tiny", messages=TALK, temperature=0, max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


def test_a_prefix_is_reused_within_an_organization_and_never_across(sdk: dict[str, OpenAI]) -> None:
    cached_tokens(sdk["left"])
    assert cached_tokens(sdk["left"]) > 50, "the same organization reads its prompt from the slot"
    assert cached_tokens(sdk["right"]) == 0, "another one reads all of it anew, in the same slot"
    assert cached_tokens(sdk["right"]) > 50
    assert cached_tokens(sdk["left"]) == 0


def test_a_spent_budget_is_said_once_and_the_sdk_does_not_retry(real: Up, sdk: dict[str, OpenAI]) -> None:
    # 0.04 for a million output tokens: after one answer there isn't enough left for another.
    made = real.command("budgets", "create", "--limit", "0.0000125", "--per", "day", "--organization", "left", "--json")
    assert made.returncode == 0, made.stderr
    ask = sdk["left"].chat.completions.with_raw_response.create
    first = ask(model="smol", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=16)
    remaining = first.headers["x-headwater-budget-remaining"]
    assert first.headers["x-headwater-budget-scope"] == "organization"
    assert 0 < float(remaining) < 0.0000125
    refusals = real.metric("headwater_gateway_requests_total", model="smol", outcome="rejected")

    def spend_it_all() -> None:
        for _ in range(100):
            ask(model="smol", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=16)

    with pytest.raises(RateLimitError) as refused:
        spend_it_all()
    error = refused.value
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    assert "It is reset at " in error.message
    assert real.metric("headwater_gateway_requests_total", model="smol", outcome="rejected") == refusals + 1
    usage = real.rows("SELECT sum(spent_nanos) AS spent FROM budget_periods")
    assert usage[0]["spent"] <= 12_500
    # The other organization isn't touched by it.
    assert (
        sdk["right"]
        .chat.completions.create(
            model="smol", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=4
        )
        .choices
    )
