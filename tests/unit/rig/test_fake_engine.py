"""The fake engine as a plain client sees it when nothing goes wrong, and its truth log beside that."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest

from tests.rig.clients import Client, Received, ask, call
from tests.rig.oracle import Expected, expected
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.rig.truth import Attempt, Truth

from .conftest import chat_body
from .test_oracle import TOOL

pytestmark = pytest.mark.asyncio(loop_scope="module")


def agrees(got: Received, oracle: Expected, attempt: Attempt) -> bool:
    """Whether the client, the oracle and the truth log tell the same story of a whole answer."""
    assert got.usage is not None
    return (
        got.text == oracle.text
        and got.reasoning == oracle.reasoning_text
        and tuple(got.tool_calls) == oracle.tool_calls
        and got.finish_reason == oracle.finish_reason == attempt.finish_reason
        and got.usage == attempt.reported_usage
        and got.usage["completion_tokens"] == oracle.output_tokens == attempt.tokens_sent == len(attempt.token_times_ns)
        and got.usage["prompt_tokens"] == oracle.prompt_tokens == attempt.facts["prompt_tokens"]
        and got.usage["prompt_tokens_details"]["cached_tokens"] == oracle.cached_tokens
        and got.usage["completion_tokens_details"]["reasoning_tokens"] == oracle.reasoning_tokens
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        "m",
        "m:tokens=0",
        "m:tokens=9,batch=4",
        "m:reasoning=3,batch=2",
        "m:tool_call=2",
        "m:text=fenced_tool",
        "m:cached=4",
        "m:drip,tokens=3",
        "m:big_chunk=70000",
        "m:prefill_ms=5,slow_headers_ms=5",
    ],
)
async def test_client_oracle_and_truth_agree(engine: FakeEngineHandle, model: str, stream: bool) -> None:
    body, request_id = chat_body(model, stream=stream, tools=[TOOL]), f"agree-{model}-{stream}"
    got = await ask(engine.base_url, body, request_id=request_id)
    assert (got.status, got.ended, got.is_done_seen) == (200, "complete", stream)
    assert agrees(got, expected(request_id, body), await engine.closed(request_id))


async def test_a_wrong_oracle_is_caught(engine: FakeEngineHandle) -> None:
    """The twin of the test above: an oracle, a log or a client that is off by one token must not agree."""
    body = chat_body("m:tokens=6")
    got = await ask(engine.base_url, body, request_id="twin")
    attempt = await engine.closed("twin")
    assert agrees(got, expected("twin", body), attempt)
    assert not agrees(got, expected("twin", chat_body("m:tokens=7")), attempt)
    assert not agrees(got, expected("another id", body), attempt)
    lying = await ask(engine.base_url, chat_body("m:tokens=6,usage_shift=1"), request_id="lying")
    assert not agrees(lying, expected("lying", body), await engine.closed("lying"))
    attempt.tokens_sent -= 1
    assert not agrees(got, expected("twin", body), attempt)


async def test_requests_follow_each_other_on_one_connection(engine: FakeEngineHandle) -> None:
    client = await Client.chat(engine.base_url, chat_body("m:tokens=2"), request_id="alive-1")
    async with client:
        await client.read_to_end()
        again = Client(client.sock)
        await again.send("POST", "/v1/chat/completions", json.dumps(chat_body("m:tokens=2", stream=False)).encode())
        assert (await again.read_to_end()).status == 200


async def test_each_token_is_out_before_the_next_is_made(engine: FakeEngineHandle) -> None:
    """Stepped: the engine makes token k + 1 only after this client, which has seen token k, permits it."""
    async with await Client.chat(engine.base_url, chat_body("m:step,tokens=4"), request_id="stepped") as client:
        await client.read_until(lambda got: len(got.events) == 1)
        for count in range(1, 5):
            assert await engine.step(request_id="stepped") == 1
            assert (await client.read_tokens(count)).content_count == count
        got = await client.read_to_end()
    attempt = await engine.closed("stepped")
    assert all(seen < made for seen, made in zip(got.content_arrivals_ns, attempt.token_times_ns[1:], strict=False))


async def test_tokens_keep_their_pace(engine: FakeEngineHandle) -> None:
    await ask(engine.base_url, chat_body("m:tokens=5,gap_ms=20"), request_id="paced")
    times = (await engine.closed("paced")).token_times_ns
    assert (times[-1] - times[0]) / 1e6 >= 4 * 20 - 1
    assert all(later > earlier for earlier, later in pairwise(times))


async def test_running_counts_come_when_asked(engine: FakeEngineHandle) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = chat_body("m:tokens=3,cached=2", timings_per_token=True, stream_options=options)
    got = await ask(engine.base_url, body)
    counted = [value for value in got.values if value["choices"] and value["choices"][0]["delta"].get("content")]
    assert [value["timings"]["predicted_n"] for value in counted] == [1, 2, 3]
    assert [value["usage"]["completion_tokens"] for value in counted] == [1, 2, 3]
    assert counted[0]["timings"] == {"cache_n": 2, "prompt_n": 4, "predicted_n": 1}
    plain = await ask(engine.base_url, chat_body("m:timings=0,continuous_usage=0") | body | {"model": "m:timings=0"})
    assert not any("timings" in value for value in plain.values)


async def test_prefill_progress_comes_when_asked(engine: FakeEngineHandle) -> None:
    model = "m:prefill_ms=40,prefill_step_ms=10,cached=2,tokens=1"
    got = await ask(engine.base_url, chat_body(model, return_progress=True))
    marks = [value["prompt_progress"] for value in got.values if "prompt_progress" in value]
    assert [mark["processed"] for mark in marks] == [2, 3, 4, 5, 6]
    assert all(mark["total"] == 6 and mark["cache"] == 2 for mark in marks)
    silent = await ask(engine.base_url, chat_body(model))
    assert not any("prompt_progress" in value for value in silent.values)


async def test_logprobs_come_when_asked(engine: FakeEngineHandle) -> None:
    for stream in (True, False):
        body = chat_body("m:tokens=4", stream=stream, logprobs=True, top_logprobs=2)
        got = await ask(engine.base_url, body, request_id="logged")
        tokens = [token for choice in got.choices for token in (choice.get("logprobs") or {"content": []})["content"]]
        assert "".join(token["token"] for token in tokens) == got.text
        assert all(len(token["top_logprobs"]) == 2 for token in tokens)


async def test_knobs_come_from_defaults_header_and_model_in_that_order() -> None:
    async with fake_engine(tokens=1, reasoning=1) as engine:
        header = {"x-fake-knobs": "tokens=2"}
        assert (await ask(engine.base_url, chat_body("m"))).content_count == 2
        assert (await ask(engine.base_url, chat_body("m"), headers=header)).content_count == 3
        assert (await ask(engine.base_url, chat_body("m:tokens=5"), headers=header)).content_count == 6
        await engine.set_knobs(reasoning=None, tokens=7)
        assert (await ask(engine.base_url, chat_body("m"))).content_count == 7
        with pytest.raises(ValueError, match="no_such"):
            await engine.set_knobs(no_such=1)


async def test_an_unknown_knob_is_answered_400(engine: FakeEngineHandle) -> None:
    got = await ask(engine.base_url, chat_body("m:cut_aftr=3"), request_id="misspelt")
    assert got.status == 400
    assert got.error is not None
    assert "cut_aftr" in got.error["message"]
    assert (await engine.closed("misspelt")).fault == "bad_knobs"


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
async def test_a_body_that_is_no_json_object_is_answered_400(engine: FakeEngineHandle, body: bytes) -> None:
    async with await Client.connect(engine.base_url) as client:
        await client.send("POST", "/v1/chat/completions", body)
        assert (await client.read_to_end()).status == 400


async def test_several_choices_are_refused(engine: FakeEngineHandle) -> None:
    assert (await ask(engine.base_url, chat_body(n=2))).status == 400
    assert (await ask(engine.base_url, chat_body(n=1))).status == 200


async def test_the_side_routes_answer(engine: FakeEngineHandle) -> None:
    root = engine.base_url.removesuffix("/v1")
    assert (await call(root, "GET", "/health")).json() == {"status": "ok"}
    assert [model["id"] for model in (await call(root, "GET", "/v1/models")).json()["data"]] == ["fake"]
    assert (await call(root, "GET", "/nowhere")).status == 404
    await ask(engine.base_url, chat_body(), request_id="logged-too")
    await engine.closed("logged-too")
    assert Truth.parse((await call(root, "GET", "/truth")).body).only("logged-too").tokens_sent > 0


async def test_a_key_is_asked_for_and_only_its_presence_is_logged() -> None:
    async with fake_engine(api_key="sekret") as engine:
        assert (await ask(engine.base_url, chat_body(), request_id="none")).status == 401
        assert (await ask(engine.base_url, chat_body(), request_id="wrong", api_key="other")).status == 401
        assert (await ask(engine.base_url, chat_body(), request_id="right", api_key="sekret")).status == 200
        truth = await engine.settled(3)
        assert [attempt.facts["has_authorization"] for attempt in truth.attempts] == [False, True, True]
        assert [attempt.started_at_ns is None for attempt in truth.attempts] == [True, True, False]
        assert b"sekret" not in engine.truth_path.read_bytes()


async def test_slots_bound_the_work_and_the_rest_waits_in_order() -> None:
    async with fake_engine(slots=2, tokens=1, step=True) as engine:
        clients = []
        for number in range(6):
            clients.append(await Client.chat(engine.base_url, chat_body(), request_id=f"r{number}"))
            await engine.wait_for(lambda truth, count=number + 1: len(truth.attempts) == count)  # type: ignore[misc]
        assert await engine.step() == 6  # those in the queue keep their permit until they have a slot
        await asyncio.gather(*(client.read_to_end() for client in clients))
        for client in clients:
            client.close()
        truth = await engine.settled(6)
        starts = sorted(truth.attempts, key=lambda attempt: attempt.started_at_ns or 0)
        assert [attempt.request_id for attempt in starts] == [f"r{number}" for number in range(6)]
        assert most_at_once(truth.attempts) == 2


def most_at_once(attempts: list[Attempt]) -> int:
    """Return how many attempts were in a slot at the same time."""
    changes = [(a.started_at_ns or 0, 1) for a in attempts] + [(a.closed_at_ns or 0, -1) for a in attempts]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


async def test_a_slot_that_was_asked_for_is_the_one_given() -> None:
    async with fake_engine(slots=3, step=True, tokens=1) as engine:
        first = await Client.chat(engine.base_url, chat_body(id_slot=2, cache_prompt=True), request_id="first")
        await engine.wait_for(lambda truth: bool(truth.attempts) and truth.only("first").slot == 2)
        second = await Client.chat(engine.base_url, chat_body(id_slot=2), request_id="second")
        await engine.wait_for(lambda truth: len(truth.attempts) == 2)
        busy = [state for state in await engine.slots() if state["is_processing"]]
        assert [(state["id"], state["request_id"]) for state in busy] == [(2, "first")]
        await engine.step()
        await first.read_to_end()
        await engine.wait_for(lambda truth: truth.only("second").slot == 2)
        await engine.step()
        await second.read_to_end()
        assert engine.truth().only("first").facts["cache_prompt"] is True
        assert (await ask(engine.base_url, chat_body(id_slot=3))).status == 400
        first.close()
        second.close()


async def test_it_listens_on_a_unix_socket_too() -> None:
    async with fake_engine(unix=True) as engine:
        got = await ask(engine.base_url, chat_body("m:tokens=5"), request_id="u", unix=engine.unix)
        assert got.text == expected("u", chat_body("m:tokens=5")).text


async def test_hundreds_of_streams_at_once_stay_right(engine: FakeEngineHandle) -> None:
    body: dict[str, Any] = chat_body("m:tokens=20,gap_ms=20")
    names = [f"many-{number}" for number in range(300)]
    answers = await asyncio.gather(*(ask(engine.base_url, body, request_id=name, timeout_s=60) for name in names))
    truth = await engine.wait_for(lambda truth: all(name in truth.by_request for name in names) and truth.is_settled)
    for name, got in zip(names, answers, strict=True):
        assert agrees(got, expected(name, body), truth.only(name))
