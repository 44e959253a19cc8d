"""Each fault knob does to a plain client what it says, and the truth log names it."""

import asyncio

import pytest

from tests.rig.clients import Client, Received, ask
from tests.rig.oracle import expected, garbage
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.rig.truth import Attempt

from .conftest import chat_body

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def played(engine: FakeEngineHandle, knobs: str, *, stream: bool = True) -> tuple[Received, Attempt]:
    """Ask under these knobs and return what came, with the engine's account of it."""
    request_id = f"{knobs}-{stream}"
    got = await ask(engine.base_url, chat_body(f"m:{knobs}", stream=stream), request_id=request_id)
    return got, await engine.closed(request_id)


@pytest.mark.parametrize(("mode", "ending"), [("rst", "reset"), ("fin", "eof")])
@pytest.mark.parametrize("count", [0, 3, 8])
async def test_cut_after_k_tokens(engine: FakeEngineHandle, count: int, mode: str, ending: str) -> None:
    got, attempt = await played(engine, f"tokens=8,cut_after={count},cut_mode={mode}")
    assert (got.content_count, got.ended, got.finish_reason) == (count, ending, None)
    assert (attempt.fault, attempt.tokens_sent, attempt.is_finished, attempt.is_aborted) == ("cut", count, False, False)


async def test_a_fault_comes_after_exactly_k_tokens_whatever_the_batch(engine: FakeEngineHandle) -> None:
    got, attempt = await played(engine, "tokens=8,batch=3,cut_after=4")
    assert (got.content_count, attempt.tokens_sent, attempt.fault) == (2, 4, "cut")
    assert got.text == "".join(piece.text for piece in expected(attempt.request_id, chat_body("m:tokens=8")).pieces[:4])


async def test_cut_before_an_answer_in_one_piece(engine: FakeEngineHandle) -> None:
    got, attempt = await played(engine, "tokens=8,cut_after=3", stream=False)
    assert (got.status, got.ended, attempt.tokens_sent) == (None, "reset", 3)


@pytest.mark.parametrize(("knob", "count"), [("stall_after=3", 3), ("silent", 0)])
async def test_silence_with_an_open_socket(engine: FakeEngineHandle, knob: str, count: int) -> None:
    async with await Client.chat(engine.base_url, chat_body(f"m:tokens=8,{knob}"), request_id=knob) as client:
        with pytest.raises(TimeoutError):
            await client.read_to_end(timeout_s=0.3)
        assert (client.received.content_count, client.received.ended) == (count, None)
        assert (client.received.status is None) == (knob == "silent")
    attempt = await engine.closed(knob)
    assert (attempt.fault, attempt.tokens_sent) == (knob.partition("_")[0], count)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_error_status(engine: FakeEngineHandle, status: int) -> None:
    got, attempt = await played(engine, f"status={status},retry_after=7")
    assert (got.status, got.headers["retry-after"]) == (status, "7")
    assert got.error is not None
    assert (attempt.fault, attempt.started_at_ns) == (f"status_{status}", None)


async def test_a_broken_line_and_the_stream_goes_on(engine: FakeEngineHandle) -> None:
    got, attempt = await played(engine, "tokens=6,bad_json_after=2")
    broken = [at for at, event in enumerate(got.events) if event.value is None and event.raw != b"data: [DONE]"]
    assert broken == [3]  # after the role and two tokens
    assert got.text == expected(attempt.request_id, chat_body("m:tokens=6")).text
    assert got.finish_reason == "stop"
    assert attempt.faults == ["bad_json"]


async def test_an_error_inside_a_200(engine: FakeEngineHandle) -> None:
    got, attempt = await played(engine, "tokens=6,error_in_200_after=2")
    assert (got.status, got.ended, got.content_count, got.finish_reason) == (200, "complete", 2, None)
    assert got.error is not None
    assert (attempt.fault, attempt.tokens_sent, attempt.is_finished) == ("error_in_200", 2, False)
    whole, _ = await played(engine, "tokens=6,error_in_200_after=2", stream=False)
    assert (whole.status, whole.error is not None) == (200, True)


@pytest.mark.parametrize("stream", [True, False])
async def test_garbage(engine: FakeEngineHandle, stream: bool) -> None:
    got, attempt = await played(engine, "garbage", stream=stream)
    assert (got.status, got.body, attempt.fault) == (200, garbage(attempt.request_id), "garbage")


async def test_the_ends_that_lack_something(engine: FakeEngineHandle) -> None:
    got, attempt = await played(engine, "tokens=3,no_done")
    assert (got.is_done_seen, got.finish_reason, attempt.faults) == (False, "stop", ["no_done"])
    got, attempt = await played(engine, "tokens=3,no_usage")
    assert (got.usage, got.is_done_seen, attempt.reported_usage, attempt.faults) == (None, True, None, ["no_usage"])
    got, attempt = await played(engine, "tokens=3,no_finish")
    assert (got.finish_reason, got.is_done_seen, attempt.finish_reason) == (None, True, None)


@pytest.mark.parametrize(
    ("knob", "reported"),
    [("usage_negative", -5), ("usage_absurd", 10**15), ("usage_shift=2", 5), ("usage_shift=-2", 1)],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_lying_usage_beside_the_true_count(
    engine: FakeEngineHandle, knob: str, reported: int, stream: bool
) -> None:
    got, attempt = await played(engine, f"tokens=3,{knob}", stream=stream)
    assert got.usage is not None
    assert (got.usage["completion_tokens"], attempt.tokens_sent) == (reported, 3)
    assert attempt.faults == [knob.partition("=")[0]]


@pytest.mark.parametrize(("mode", "ending"), [("rst", "reset"), ("fin", "eof")])
async def test_closing_at_once(engine: FakeEngineHandle, mode: str, ending: str) -> None:
    got, attempt = await played(engine, f"close_immediately,cut_mode={mode}")
    assert (got.status, got.ended, attempt.fault) == (None, ending, "close_immediately")


async def test_a_redirect_and_a_web_page(engine: FakeEngineHandle) -> None:
    got, _ = await played(engine, "redirect=9")
    assert (got.status, got.headers["location"]) == (302, "http://127.0.0.1:9/v1/chat/completions")
    got, attempt = await played(engine, "content_type_html")
    assert (got.status, got.headers["content-type"], attempt.tokens_sent) == (200, "text/html; charset=utf-8", 0)


async def test_an_endless_answer_goes_past_every_cap_until_the_client_leaves(engine: FakeEngineHandle) -> None:
    body = chat_body("m:endless,batch=8", max_tokens=16)
    async with await Client.chat(engine.base_url, body, request_id="endless") as client:
        got = await client.read_tokens(500)
        assert got.finish_reason is None
        client.leave("fin")
        truth = await engine.wait_for(lambda truth: truth.only("endless").is_aborted)
    assert truth.only("endless").tokens_sent >= 500


async def test_dripping_sends_many_small_pieces(engine: FakeEngineHandle) -> None:
    for _ in range(
        20
    ):  # the kernel joins bytes for a reader that is late, so one answer proves nothing on a busy machine
        got = await ask(engine.base_url, chat_body("m:tokens=2,drip"))
        assert got.finish_reason == "stop"
        if len(got.arrivals) > 3 * len(got.events):
            return
    raise AssertionError("no answer came in more pieces than events")


async def test_a_gap_before_the_tail_lets_a_client_leave_between(engine: FakeEngineHandle) -> None:
    async with await Client.chat(
        engine.base_url, chat_body("m:tokens=2,tail_gap_ms=5000"), request_id="tail"
    ) as client:
        got = await client.read_until(lambda got: got.finish_reason is not None)
        assert not got.is_done_seen
    attempt = await engine.closed("tail")
    assert (attempt.tokens_sent, attempt.is_finished) == (2, False)


async def test_a_crash_takes_the_process_and_leaves_the_log() -> None:
    async with fake_engine() as engine:
        got = await ask(engine.base_url, chat_body("m:tokens=5,crash_after=2"), request_id="crash")
        async with asyncio.timeout(5):
            assert await engine.child.process.wait() == 70
        assert got.content_count == 2
        attempt = engine.truth().only("crash")
        assert (attempt.fault, attempt.closed_at_ns) == ("crash", None)
