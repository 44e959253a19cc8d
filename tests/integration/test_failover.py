"""A route: what fails before any content is answered by the next target, in time, once, and charged as if nothing had failed."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.bodies import PROMPT_TOKENS, chat_body
from tests.rig.auditor import audit
from tests.rig.clients import Received
from tests.rig.platform import PRICE, Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKENS = 8
FIRST_BYTE_S, IDLE_S = 0.6, 0.4
SLACK_S = 0.4
GOOD = f"m:tokens={TOKENS}"
DEAR = {name: str(10 * float(price)) for name, price in PRICE.items()}
"""What the fallback costs a caller who asks for it by name; through the route it is charged by the first target's."""

# The fault of the first target, and the error code and outcome of its attempt.
BEFORE = {
    "cut_after=0": ("engine_failed", "upstream_error"),
    "cut_after=0,cut_mode=fin": ("engine_failed", "upstream_error"),
    "close_immediately": ("engine_failed", "upstream_error"),
    "error_in_200_after=0": ("engine_failed", "upstream_error"),
    "garbage": ("engine_failed", "upstream_error"),
    "content_type_html": ("engine_failed", "upstream_error"),
    "no_finish,tokens=0": ("engine_failed", "upstream_error"),
    "redirect=9": ("engine_failed", "upstream_error"),
    "status=500": ("engine_failed", "upstream_error"),
    "status=502": ("engine_failed", "upstream_error"),
    "status=401": ("engine_failed", "upstream_error"),
    "status=404": ("engine_failed", "upstream_error"),
    "status=429": ("overloaded", "upstream_error"),
    "status=429,retry_after=1": ("overloaded", "upstream_error"),
    "status=503": ("overloaded", "upstream_error"),
    "silent": ("timeout", "timeout"),
    "stall_after=0": ("timeout", "timeout"),
}
AFTER = {
    "cut_after=3": "engine_failed",
    "error_in_200_after=3": "engine_failed",
    "stall_after=3": "timeout",
    "no_finish": "engine_failed",
}
HARMLESS = ("bad_json_after=0", "slow_headers_ms=200", "prefill_ms=200", "drip")
WRONG = ("status=400", "status=413", "status=422")
CASES = (*BEFORE, *AFTER, *HARMLESS, *WRONG)


def model_of(knobs: str) -> str:
    return f"m:{knobs}" if "tokens=" in knobs else f"{GOOD},{knobs}"


def route_of(knobs: str) -> str:
    return f"r{CASES.index(knobs)}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    first = upstream("first", engine.base_url, [model_of(knobs) for knobs in CASES], failures_max=0)
    text = config(
        upstreams=[
            first,
            upstream("second", engine.base_url, [GOOD, f"{GOOD},status=500"], failures_max=0, retries_max=0),
            upstream("small", engine.base_url, [GOOD], context_tokens=40),
            upstream("gone", "http://127.0.0.1:9/v1", ["m"]),
        ],
        routes={
            **{route_of(knobs): [f"first/{model_of(knobs)}", f"second/{GOOD}"] for knobs in CASES},
            "unreachable": ["gone/m", f"second/{GOOD}"],
            "hopeless": [f"first/{model_of('status=500')}", f"second/{GOOD},status=500"],
            "three": [f"first/{model_of('status=500')}", f"small/{GOOD}", f"second/{GOOD}"],
            "roomy": [f"small/{GOOD}", f"second/{GOOD}"],
        },
        prices=[
            *({"model": f"first/{model_of(knobs)}", **PRICE} for knobs in CASES),
            {"model": f"second/{GOOD}", **DEAR},
            {"model": f"small/{GOOD}", **PRICE},
            {"model": "gone/m", **PRICE},
        ],
        gateway={"first_byte_timeout_s": FIRST_BYTE_S, "idle_timeout_s": IDLE_S},
    )
    async with running_platform(text, module_path / "p") as running:
        yield running
        await running.idle()
        found = audit(running.database, await engine.settled(1))
        print(found)
        assert found.is_clean, str(found)


async def timed(platform: Platform, model: str, *, stream: bool, **fields: object) -> tuple[Received, float]:
    asked_s = time.monotonic()
    got = await platform.ask(chat_body(model, stream=stream, **fields))
    return got, time.monotonic() - asked_s


def expect_answer(got: Received, *, stream: bool) -> None:
    assert (got.status, got.error, got.finish_reason) == (200, None, "stop")
    if stream:
        assert got.content_count == TOKENS
        assert got.is_done_seen
    assert got.usage is not None
    assert (got.usage["prompt_tokens"], got.usage["completion_tokens"]) == (PROMPT_TOKENS, TOKENS)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_fault_before_content_is_answered_by_the_fallback(platform: Platform, stream: bool) -> None:
    """All faults at once: most of the time is spent in time-outs."""
    answers = await asyncio.gather(*(timed(platform, route_of(knobs), stream=stream) for knobs in BEFORE))
    for (knobs, (code, outcome)), (got, took_s) in zip(BEFORE.items(), answers, strict=True):
        expect_answer(got, stream=stream)
        limit_s = FIRST_BYTE_S if outcome == "timeout" else 0
        assert took_s <= 1.1 * limit_s + SLACK_S, f"{knobs}: {took_s:.2f} s"
        record = await platform.record(got.headers["x-request-id"])
        assert (record["outcome"], record["error_code"], record["model"]) == ("ok", None, route_of(knobs))
        assert (record["usage_source"], record["output"]) == ("reported", TOKENS), knobs
        assert record["cost_nanos"] == PROMPT_TOKENS * 100 + TOKENS * 300, "the first target's price, whoever answers"
        failed, served = platform.attempts(record["request_id"])
        assert (failed["target"], failed["reason"]) == (f"first/{model_of(knobs)}", "first choice")
        assert (failed["outcome"], failed["error_code"], failed["output"]) == (outcome, code, 0), knobs
        assert (served["target"], served["outcome"], served["output"]) == (f"second/{GOOD}", "ok", TOKENS)
        assert served["reason"] == f"fallback: {code} of first/{model_of(knobs)}"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("knobs", AFTER)
async def test_nothing_is_said_twice_once_content_has_come(platform: Platform, knobs: str, stream: bool) -> None:
    got, _ = await timed(platform, route_of(knobs), stream=stream)
    assert got.error is not None
    assert got.error["code"] == AFTER[knobs]
    if stream:
        assert got.content_count == (TOKENS if knobs == "no_finish" else 3)
    assert len(platform.attempts((await platform.record(got.headers["x-request-id"]))["request_id"])) == 1


@pytest.mark.parametrize("knobs", HARMLESS)
async def test_what_is_slow_or_odd_is_no_fault(platform: Platform, knobs: str) -> None:
    got, _ = await timed(platform, route_of(knobs), stream=True)
    expect_answer(got, stream=True)
    (only,) = platform.attempts((await platform.record(got.headers["x-request-id"]))["request_id"])
    assert only["target"] == f"first/{model_of(knobs)}"


@pytest.mark.parametrize("knobs", WRONG)
async def test_a_wrong_request_is_wrong_everywhere(platform: Platform, knobs: str) -> None:
    got, _ = await timed(platform, route_of(knobs), stream=True)
    assert got.error is not None
    assert (got.status, got.error["code"]) == (400, "engine_refused")
    assert len(platform.attempts((await platform.record(got.headers["x-request-id"]))["request_id"])) == 1


async def test_an_upstream_that_can_not_be_reached_costs_no_time(platform: Platform) -> None:
    got, took_s = await timed(platform, "unreachable", stream=True)
    expect_answer(got, stream=True)
    assert took_s < SLACK_S


async def test_when_all_fail_the_last_failure_is_told(platform: Platform) -> None:
    got, _ = await timed(platform, "hopeless", stream=True)
    assert got.error is not None
    assert (got.status, got.error["code"]) == (502, "engine_failed")
    record = await platform.record(got.headers["x-request-id"])
    assert (record["outcome"], record["cost_nanos"]) == ("upstream_error", 0)
    assert len(platform.attempts(record["request_id"])) == 2


async def test_each_choice_of_several_falls_back_by_itself(platform: Platform) -> None:
    got, _ = await timed(platform, route_of("status=500"), stream=True, n=3)
    assert got.error is None
    assert got.content_count == 3 * TOKENS
    made = platform.attempts((await platform.record(got.headers["x-request-id"]))["request_id"])
    assert sorted((row["choice"], row["outcome"]) for row in made) == [
        (choice, outcome) for choice in range(3) for outcome in ("ok", "upstream_error")
    ]


async def test_a_target_whose_context_is_too_small_is_passed_over(platform: Platform) -> None:
    got, _ = await timed(platform, "three", stream=True, max_tokens=60)
    expect_answer(got, stream=True)
    made = platform.attempts((await platform.record(got.headers["x-request-id"]))["request_id"])
    assert [row["target"] for row in made] == [f"first/{model_of('status=500')}", f"second/{GOOD}"]
    assert made[1]["reason"] == f"fallback: context_length_exceeded of small/{GOOD}"
    got, _ = await timed(platform, "roomy", stream=True, max_tokens=60)
    expect_answer(got, stream=True)


async def test_routes_are_models_to_those_who_may_call_them(platform: Platform) -> None:
    listed = {model["id"] for model in (await platform.get("/v1/models")).json()["data"]}
    assert {"three", "roomy", f"second/{GOOD}"} <= listed
    key = (await platform.create_key("--name", "only", "--model", "three"))["key"]
    assert (await platform.ask(chat_body("three", max_tokens=60), api_key=key)).status == 200
    refused = await platform.ask(chat_body(f"second/{GOOD}"), api_key=key)
    assert (refused.status, refused.error and refused.error["code"]) == (403, "model_not_allowed")


async def test_the_receipt_says_why_it_went_where(platform: Platform) -> None:
    got, _ = await timed(platform, route_of("status=500"), stream=False)
    request_id = got.headers["x-request-id"]
    await platform.record(request_id)
    printed = (await platform.cli("usage", "receipt", request_id)).stdout
    assert "why there: first choice" in printed
    assert f"why there: fallback: engine_failed of first/{model_of('status=500')}" in printed


async def test_what_was_done_is_counted(platform: Platform) -> None:
    before = await platform.metrics()
    await timed(platform, route_of("status=500"), stream=False)
    after = await platform.metrics()
    name = 'headwater_gateway_failovers_total{pool="first"}'
    assert after[name] == before[name] + 1
    assert after['headwater_gateway_breaker_state{pool="first"}'] == 0
