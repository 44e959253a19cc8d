"""A client that leaves stops the engine's work: seen in the gateway's places and in the processor time of the engine itself."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

from tests.acceptance.person import Up, cpu_s, until
from tests.rig.clients import Client

pytestmark = pytest.mark.model

STOP_S_MAX = 1.0
QUIET_S = 1.2
"""An engine that uses almost nothing for this long has stopped."""
QUIET_CPU_S = 0.03

Leaving = Literal["fin", "rst"]


def body(model: str, text: str, **fields: object) -> dict[str, Any]:
    """A chat request with one user message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def long_prompt(mark: str) -> str:
    """About 1,500 tokens that no slot has read yet."""
    return f"{mark}. " + " ".join(f"Room {number} is painted in colour {number * 7 % 13}." for number in range(130))


def engine_stops_s(pid: int, since_s: float, *, timeout_s: float = 8.0) -> float:
    """Seconds from `since_s` (monotonic) until the engine last worked; it must then stay quiet for QUIET_S."""
    samples = [(time.monotonic(), cpu_s(pid))]
    while True:
        now_s = time.monotonic()
        samples.append((now_s, cpu_s(pid)))
        before = [used_s for at_s, used_s in samples if at_s <= now_s - QUIET_S]
        if before and samples[-1][1] - before[-1] <= QUIET_CPU_S:
            break
        assert now_s - since_s < timeout_s, "the engine works on"
        time.sleep(0.02)
    final_s = samples[-1][1]
    return max(0.0, next(at_s for at_s, used_s in samples if used_s >= final_s - QUIET_CPU_S) - since_s)


def places_free_s(real: Up, model: str, since_s: float) -> float:
    """Seconds from `since_s` until the gateway has no place of the model taken."""
    until(
        lambda: real.metric("headwater_gateway_busy_slots", pool=model) == 0,
        timeout_s=8.0,
        what=f"a free place of {model}",
    )
    return time.monotonic() - since_s


def row_of(real: Up, client_request_id: str) -> dict[str, Any]:
    """The one record of a request by the id its client gave it."""
    sql = "SELECT * FROM usage_records WHERE client_request_id = ?"
    until(lambda: real.rows(sql, client_request_id), timeout_s=5.0, what=f"the record of {client_request_id}")
    (row,) = real.rows(sql, client_request_id)
    return row


def batch_s(real: Up, model: str) -> float:
    """What one prefill batch of the deployment took when it was measured."""
    return float(next(event["batch_s"] for event in real.events("engine_ready") if event["deployment"] == model))


async def start(real: Up, asked: Mapping[str, Any], mark: str) -> Client:
    """Send a request under the client's own id."""
    return await Client.chat(real.base_url, asked, api_key=real.api_key, request_id=mark)


async def works(real: Up, model: str, *, used_s: float) -> None:
    """Wait until the engine has worked for so long."""
    pid = real.engine(model)
    began_s = cpu_s(pid)
    async with asyncio.timeout(30):
        while cpu_s(pid) - began_s < used_s:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_leaving_a_stream_in_decode(real: Up, how: Leaving, figure: Callable[[str], None]) -> None:
    mark = f"decode-stream-{how}"
    async with await start(real, body("qwen", f"{mark}: count to 500.", stream=True, max_tokens=1500), mark) as client:
        got = await client.read_tokens(8, timeout_s=60)
        rate = got.content_count / ((got.arrivals[-1][0] - got.arrivals[0][0]) / 1e9 + 0.01)
        left_s = time.monotonic()
        client.leave(how)
        free_s = places_free_s(real, "qwen", left_s)
        stopped_s = engine_stops_s(real.engine("qwen"), left_s)
    row = row_of(real, mark)
    figure(
        f"{mark}: place free after {free_s:.2f} s, engine quiet after {stopped_s:.2f} s; "
        f"received {got.content_count} tokens, billed {row['output']}"
    )
    assert free_s <= STOP_S_MAX
    assert stopped_s <= STOP_S_MAX
    assert (row["outcome"], row["usage_source"]) == ("client_gone", "reported")
    assert got.content_count <= row["output"] <= got.content_count + max(10, rate * STOP_S_MAX)
    prices = 100 * row["uncached_input"] + 10 * row["cache_read"] + 300 * row["output"]
    assert row["cost_nanos"] == prices > 0


async def test_leaving_a_whole_answer_in_decode(real: Up, figure: Callable[[str], None]) -> None:
    mark = "decode-whole"
    async with await start(real, body("qwen", f"{mark}: count to 500.", max_tokens=1500), mark) as client:
        await works(real, "qwen", used_s=2.0)  # the prompt has about 40 tokens: most of this is decode
        left_s = time.monotonic()
        client.leave("fin")
        free_s = places_free_s(real, "qwen", left_s)
        stopped_s = engine_stops_s(real.engine("qwen"), left_s)
        assert client.received.status is None
    row = row_of(real, mark)
    figure(
        f"{mark}: place free after {free_s:.2f} s, engine quiet after {stopped_s:.2f} s; billed {row['output']} tokens"
    )
    assert free_s <= STOP_S_MAX
    assert stopped_s <= STOP_S_MAX
    assert row["outcome"] == "client_gone"
    assert 0 < row["output"] < 1500
    assert row["cost_nanos"] > 0


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_leaving_in_prefill(real: Up, is_stream: bool, figure: Callable[[str], None]) -> None:
    mark = f"prefill-{'streamed' if is_stream else 'whole'}"
    bound_s = max(STOP_S_MAX, 2 * batch_s(real, "qwen"))
    async with await start(real, body("qwen", long_prompt(mark), stream=is_stream, max_tokens=50), mark) as client:
        await works(real, "qwen", used_s=0.8)
        assert client.received.status is None, "it is still reading the prompt"
        left_s = time.monotonic()
        client.leave("fin")
        free_s = places_free_s(real, "qwen", left_s)
        stopped_s = engine_stops_s(real.engine("qwen"), left_s)
    row = row_of(real, mark)
    figure(
        f"{mark}: place free after {free_s:.2f} s, engine quiet after {stopped_s:.2f} s; "
        f"a batch was measured with {batch_s(real, 'qwen'):.2f} s, the bound is {bound_s:.2f} s"
    )
    assert free_s <= STOP_S_MAX
    assert stopped_s <= bound_s
    assert row["outcome"] == "client_gone"
    assert (row["uncached_input"], row["cache_read"], row["output"], row["cost_nanos"]) == (0, 0, 0, 0)
    assert row["ttft_ms"] is None


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_leaving_the_queue(real: Up, is_stream: bool, figure: Callable[[str], None]) -> None:
    mark = f"queue-{'streamed' if is_stream else 'whole'}"
    holder_body = body("tiny", f"{mark}: count from 1 to 1000, one number a line.", stream=True)
    async with await start(real, holder_body, f"{mark}-holder") as holder:
        await holder.read_tokens(1, timeout_s=60)
        async with await start(real, body("tiny", "Hi", stream=is_stream, max_tokens=5), mark) as client:
            until(lambda: real.metric("headwater_gateway_queued", pool="tiny") == 1, timeout_s=5, what="a queue of one")
            left_s = time.monotonic()
            client.leave("fin")
            until(lambda: real.metric("headwater_gateway_queued", pool="tiny") == 0, timeout_s=5, what="an empty queue")
            gone_s = time.monotonic() - left_s
        got = await holder.read_to_end(timeout_s=120)
    row = row_of(real, mark)
    figure(f"{mark}: out of the queue after {gone_s:.2f} s")
    assert gone_s <= STOP_S_MAX
    assert (row["outcome"], row["output"], row["uncached_input"], row["cost_nanos"]) == ("client_gone", 0, 0, 0)
    assert real.rows("SELECT * FROM attempts WHERE request_id = ?", row["request_id"]) == [], "no engine was asked"
    assert got.finish_reason in ("stop", "length"), "whoever held the place is not disturbed"
    assert got.is_done_seen


async def test_leaving_with_three_choices_stops_them_all(real: Up, figure: Callable[[str], None]) -> None:
    mark = "decode-three"
    asked = body("smol", "Tell me a long story.", stream=True, max_tokens=1500, n=3) | {"temperature": 1}
    async with await start(real, asked, mark) as client:
        await client.read_until(lambda got: len({choice["index"] for choice in got.choices}) == 3, timeout_s=60)
        left_s = time.monotonic()
        client.leave("rst")
        free_s = places_free_s(real, "smol", left_s)
        stopped_s = engine_stops_s(real.engine("smol"), left_s)
    row = row_of(real, mark)
    attempts = real.rows("SELECT * FROM attempts WHERE request_id = ?", row["request_id"])
    figure(
        f"{mark}: places free after {free_s:.2f} s, engine quiet after {stopped_s:.2f} s; billed {row['output']} tokens"
    )
    assert free_s <= STOP_S_MAX
    assert stopped_s <= STOP_S_MAX
    assert (row["outcome"], len(attempts)) == ("client_gone", 3)
    assert row["output"] == sum(attempt["output"] for attempt in attempts) > 0


async def test_a_slot_that_was_left_serves_the_next_one_at_once(real: Up) -> None:
    async with await start(real, body("tiny", "Count from 1 to 900.", stream=True), "left-then-next") as client:
        await client.read_tokens(2, timeout_s=60)
        client.leave("rst")
    async with await start(real, body("tiny", "Hi", max_tokens=3), "next-after-left") as client:
        got = await client.read_to_end(timeout_s=60)
    assert got.status == 200
    assert row_of(real, "next-after-left")["outcome"] == "ok"
