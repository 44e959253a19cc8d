"""Every fault of an engine ends in the right status, typed error, outcome and usage record, streamed or not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.bodies import PROMPT_TOKENS, chat_body
from tests.rig.auditor import audit
from tests.rig.clients import Received
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault and what is to come of it. status: before any content; in the middle of a stream it is an event.

    content: tokens that reach a streaming client. source: of the streamed request; whole_source: of the other, if it differs.
    """

    knobs: str
    status: int = 200
    code: str | None = None
    outcome: str = "ok"
    source: str = "reported"
    output: int = TOKENS
    content: int = TOKENS
    retry_after: str | None = None
    upstream: str = "fake"


def failed(knobs: str, *, after: int = 0, **fields: Any) -> Case:
    """The engine broke after so many tokens that were counted by us."""
    usual = {"status": 502, "code": "engine_failed", "outcome": "upstream_error", "content": after}
    return Case(knobs=knobs, output=after, **{**usual, "source": "estimated" if after else "counted", **fields})


def timed_out(knobs: str, *, after: int = 0, **fields: Any) -> Case:
    """The engine fell silent after so many tokens."""
    return failed(knobs, after=after, status=504, code="timeout", outcome="timeout", **fields)


CASES = [
    # nothing is wrong, though it may look odd
    Case(knobs=""),
    Case(knobs="drip"),
    Case(knobs="slow_headers_ms=100"),
    Case(knobs="prefill_ms=100"),
    Case(knobs="big_chunk=100000"),
    Case(knobs="batch=4", content=2),
    Case(knobs="reasoning=3,cached=2", output=TOKENS + 3, content=TOKENS + 3),
    Case(knobs="no_done"),
    Case(knobs="bad_json_after=3"),
    Case(knobs="no_usage", source="estimated"),
    Case(knobs="usage_negative", source="estimated"),
    Case(knobs="usage_absurd", source="estimated"),
    Case(knobs="usage_shift=5", output=TOKENS + 5),
    Case(knobs="tail_gap_ms=60000", source="estimated"),
    # it breaks
    failed("cut_after=0"),
    failed("cut_after=0,cut_mode=fin"),
    failed("cut_after=3", after=3),
    failed("cut_after=3,cut_mode=fin", after=3),
    failed("cut_after=8,cut_mode=fin", after=8),
    failed("error_in_200_after=0"),
    failed("error_in_200_after=3", after=3),
    failed("no_finish,no_usage", after=8),
    failed("no_finish", after=8, source="reported"),
    failed("close_immediately"),
    failed("close_immediately,cut_mode=fin"),
    failed("garbage"),
    failed("content_type_html"),
    failed("redirect=9"),
    failed("status=500"),
    failed("status=502"),
    failed("status=401"),
    failed("status=404"),
    failed("status=429,retry_after=7", status=503, code="overloaded", retry_after="7"),
    failed("status=503", status=503, code="overloaded", retry_after="5"),
    failed("status=400", status=400, code="engine_refused"),
    failed("status=422", status=400, code="engine_refused"),
    # it falls silent
    timed_out("silent"),
    timed_out("stall_after=0"),
    timed_out("stall_after=3", after=3),
    timed_out("stall_after=8", after=8),
    # engines that count as they go
    failed("batch=4,cut_after=8", after=8, source="reported", content=2, upstream="timings"),
    failed("batch=4,cut_after=8", after=8, source="reported", content=2, upstream="usage"),
    failed("timings=0,cut_after=3", after=3, upstream="timings"),
    timed_out("stall_after=3", after=3, source="reported", upstream="timings"),
    failed("usage_negative,cut_after=3", after=3, upstream="timings"),
]


def model_of(case: Case) -> str:
    return f"m:tokens={TOKENS}" + (f",{case.knobs}" if case.knobs else "")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    def of(name: str, running_counts: str) -> dict[str, object]:
        # What becomes of a fault is looked at here, not what is done about it (`test_failover.py`, `test_outage.py`).
        models = dict.fromkeys(model_of(case) for case in CASES if case.upstream == name)
        return upstream(name, engine.base_url, models, running_counts=running_counts, retries_max=0, failures_max=0)

    text = config(
        upstreams=[of("fake", "none"), of("timings", "timings_per_token"), of("usage", "continuous_usage_stats")],
        gateway={"first_byte_timeout_s": 0.6, "idle_timeout_s": 0.4},
    )
    async with running_platform(text, module_path / "p") as running:
        yield running
        found = audit(running.database, await engine.settled(2 * len(CASES)))
        print(found)
        assert found.is_clean, str(found)


def case_id(case: Case) -> str:
    return f"{case.upstream}-{case.knobs or 'nothing'}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answers(platform: Platform) -> dict[tuple[str, bool], Received]:
    """All cases, a few at a time: most of their time is spent in time-outs."""
    places = asyncio.Semaphore(8)

    async def ask(case: Case, stream: bool) -> tuple[tuple[str, bool], Received]:
        async with places:
            got = await platform.ask(chat_body(f"{case.upstream}/{model_of(case)}", stream=stream))
            return (case_id(case), stream), got

    return dict(await asyncio.gather(*(ask(case, stream) for case in CASES for stream in (True, False))))


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_fault_ends_in_its_error_outcome_and_record(
    platform: Platform, answers: dict[tuple[str, bool], Received], case: Case, stream: bool
) -> None:
    got = answers[case_id(case), stream]
    assert got.ended == "complete", "a stream ends in good order, whatever happened behind it"
    if stream and case.content:
        _check_stream(got, case)
    else:
        _check_whole(got, case)
    record = await platform.record(got.headers["x-request-id"])
    assert (record["outcome"], record["error_code"]) == (case.outcome, case.code)
    assert (record["usage_source"], record["output"]) == (case.source, case.output)
    assert (record["is_stream"], record["choices_count"]) == (int(stream), 1)
    if case.source == "reported":
        assert record["uncached_input"] + record["cache_read"] == PROMPT_TOKENS
    if case.output == 0:
        assert record["uncached_input"] == 0, "an attempt that produced nothing used nothing"
    if not stream and case.outcome != "ok":
        assert record["cost_nanos"] == 0
    else:
        assert (record["cost_nanos"] > 0) == (case.output > 0)
    (attempt,) = platform.attempts(record["request_id"])
    assert (attempt["outcome"], attempt["error_code"]) == (case.outcome, case.code)


def _check_stream(got: Received, case: Case) -> None:
    assert got.status == 200
    assert got.content_count == case.content
    if case.code is None:
        assert got.error is None
        assert got.is_done_seen
        assert got.finish_reason == "stop"
        assert got.usage is not None
        assert got.usage["completion_tokens"] == case.output
        assert got.usage["prompt_tokens"] > 0
    else:
        assert got.error is not None, "a cut stream says so"
        assert got.error["code"] == case.code
        assert set(got.error) == {"message", "type", "param", "code"}
        assert got.finish_reason is None, "no made-up finish"
        assert got.usage is None
        assert got.events[-1].value is not None, "the error is the last event"
        assert "error" in got.events[-1].value
        assert not got.is_done_seen


def _check_whole(got: Received, case: Case) -> None:
    assert got.status == case.status
    assert got.headers.get("retry-after") == case.retry_after
    assert got.headers["content-type"] == "application/json"
    if case.code is None:
        assert got.usage is not None
        assert got.usage["completion_tokens"] == case.output
        assert got.finish_reason == "stop"
        assert len(got.choices) == 1
    else:
        assert got.error is not None
        assert got.error["code"] == case.code
        assert set(got.error) == {"message", "type", "param", "code"}


async def test_an_endless_stream_ends_at_the_total_timeout(short_path: Path) -> None:
    model = "m:endless,gap_ms=5"
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [model], total_timeout_s=0.5)])
        await _check_endless(engine, text, model, short_path)


async def _check_endless(engine: FakeEngineHandle, text: str, model: str, short_path: Path) -> None:
    async with running_platform(text, short_path / "p") as platform:
        got, whole = await asyncio.gather(
            platform.ask(chat_body(f"fake/{model}", max_tokens=5)),
            platform.ask(chat_body(f"fake/{model}", stream=False)),
        )
        assert (got.status, got.ended, got.finish_reason) == (200, "complete", None)
        assert got.error is not None
        assert got.error["code"] == "timeout"
        assert whole.status == 504
        record = await platform.record(got.headers["x-request-id"])
        assert (record["outcome"], record["usage_source"]) == ("timeout", "estimated")
        assert record["output"] >= got.content_count > 5
        found = audit(platform.database, await engine.settled(2))
        assert found.is_clean, str(found)


async def test_an_engine_that_crashes_is_an_engine_that_failed(short_path: Path) -> None:
    model = "m:tokens=8,crash_after=3"
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [model])])
        async with running_platform(text, short_path / "p") as platform:
            got = await platform.ask(chat_body(f"fake/{model}"))
            assert got.error is not None
            assert (got.content_count, got.error["code"]) == (3, "engine_failed")
            record = await platform.record(got.headers["x-request-id"])
            assert (record["outcome"], record["output"]) == ("upstream_error", 3)
            # nobody listens there now
            got = await platform.ask(chat_body(f"fake/{model}"))
            assert (got.status, got.error and got.error["code"]) == (502, "engine_failed"), "without a retry budget yet"
            record = await platform.record(got.headers["x-request-id"])
            assert (record["outcome"], record["output"], record["cost_nanos"]) == ("upstream_error", 0, 0)
