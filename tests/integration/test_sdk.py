"""The official `openai` SDK, synchronous and asynchronous, sees nothing unusual."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from tests.integration.bodies import LOOKUP_TOOL, PROMPT_TOKENS
from tests.rig.oracle import expected
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
FAST, CACHED, TOOLS = "m:tokens=6", "m:tokens=6,reasoning=2,cached=3", "m:tool_call=2"
ENDLESS, BROKEN, SILENT = "m:tokens=5000,gap_ms=10", "m:tokens=6,cut_after=3", "m:silent"
REFUSED, OVERLOADED = "m:status=500", "m:status=429,retry_after=1"
MODELS = [FAST, CACHED, TOOLS, ENDLESS, BROKEN, SILENT, REFUSED, OVERLOADED]
MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two three"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    text = config(
        upstreams=[upstream("fake", engine.base_url, MODELS, first_byte_timeout_s=1.0, failures_max=0, retries_max=0)]
    )
    async with running_platform(text, module_path / "p") as running:
        yield running


@pytest.fixture
def client(platform: Platform) -> Iterator[OpenAI]:
    with OpenAI(base_url=platform.base_url, api_key=platform.key, max_retries=0) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def async_client(platform: Platform) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=platform.base_url, api_key=platform.key, max_retries=0) as made:
        yield made


def attempt_id(platform: Platform, request_id: str | None) -> str:
    assert request_id is not None
    (row,) = platform.attempts(request_id)
    return str(row["id"])


async def test_a_whole_answer(platform: Platform, client: OpenAI) -> None:
    got = await asyncio.to_thread(client.chat.completions.create, model=f"fake/{CACHED}", messages=MESSAGES)
    said = expected(attempt_id(platform, got._request_id), {"model": CACHED, "max_tokens": 4096})
    assert got.object == "chat.completion"
    assert got.model == f"fake/{CACHED}"
    assert got.choices[0].message.content == said.text
    assert (got.choices[0].message.model_extra or {})["reasoning_content"] == said.reasoning_text
    assert got.choices[0].finish_reason == "stop"
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (PROMPT_TOKENS, 8)
    assert got.usage.total_tokens == PROMPT_TOKENS + 8
    assert got.usage.prompt_tokens_details is not None
    assert got.usage.prompt_tokens_details.cached_tokens == 3
    assert got.usage.completion_tokens_details is not None
    assert got.usage.completion_tokens_details.reasoning_tokens == 2


async def test_a_stream(platform: Platform, client: OpenAI) -> None:
    def read() -> tuple[str, list[Any]]:
        with client.chat.completions.with_streaming_response.create(
            model=f"fake/{FAST}", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ) as response:
            return response.headers["x-request-id"], list(response.parse())

    request_id, chunks = await asyncio.to_thread(read)
    said = expected(attempt_id(platform, request_id), {"model": FAST, "max_tokens": 4096})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 6)


async def test_an_asynchronous_stream_and_whole_answer(async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(model=f"fake/{FAST}", messages=MESSAGES, stream=True, n=2)
    finished = set()
    async for chunk in stream:
        assert chunk.usage is None, "not asked for"
        finished |= {choice.index for choice in chunk.choices if choice.finish_reason == "stop"}
    assert finished == {0, 1}
    got = await async_client.chat.completions.create(model=f"fake/{FAST}", messages=MESSAGES, n=2)
    assert [choice.index for choice in got.choices] == [0, 1]
    assert all(choice.message.content for choice in got.choices)


async def test_the_stream_helper_puts_tool_calls_together(async_client: AsyncOpenAI) -> None:
    tools: Any = [LOOKUP_TOOL]
    async with async_client.chat.completions.stream(model=f"fake/{TOOLS}", messages=MESSAGES, tools=tools) as stream:
        events = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in events
    streamed = final.choices[0].message.tool_calls
    whole = await async_client.chat.completions.create(model=f"fake/{TOOLS}", messages=MESSAGES, tools=tools)
    assert whole.choices[0].finish_reason == final.choices[0].finish_reason == "tool_calls"
    for calls in (streamed, whole.choices[0].message.tool_calls):
        assert calls is not None
        assert len(calls) == 2
        assert len({call.id for call in calls}) == 2
        for call in calls:
            assert call.type == "function"
            assert call.function.name == "lookup"
            assert set(json.loads(call.function.arguments)) == {"word", "limit"}


async def test_models_are_listed(async_client: AsyncOpenAI) -> None:
    listed = [model.id async for model in async_client.models.list()]
    assert listed == sorted(f"fake/{model}" for model in MODELS)
    assert (await async_client.models.retrieve(f"fake/{FAST}")).id == f"fake/{FAST}"


ERRORS: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
    ({"model": "fake/nothing"}, openai.NotFoundError, "model_not_found"),
    ({"messages": []}, openai.BadRequestError, "invalid_request"),
    ({"n": 9}, openai.BadRequestError, "invalid_request"),
    ({"extra_body": {"top_k": 3}}, openai.BadRequestError, "unsupported_field"),
    ({"model": f"fake/{REFUSED}"}, openai.InternalServerError, "engine_failed"),
    ({"model": f"fake/{OVERLOADED}"}, openai.InternalServerError, "overloaded"),
    ({"model": f"fake/{SILENT}"}, openai.InternalServerError, "timeout"),
]


@pytest.mark.parametrize(("fields", "kind", "code"), ERRORS, ids=[case[2] for case in ERRORS])
@pytest.mark.parametrize("stream", [True, False])
async def test_errors_have_the_sdks_classes(
    client: OpenAI, async_client: AsyncOpenAI, fields: Any, kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    wanted: Any = {"model": f"fake/{FAST}", "messages": MESSAGES, "stream": stream} | fields
    with pytest.raises(kind) as met:
        await async_client.chat.completions.create(**wanted)

    def ask() -> None:
        client.chat.completions.create(**wanted)

    with pytest.raises(kind) as met_too:
        await asyncio.to_thread(ask)
    for error in (met.value, met_too.value):
        assert error.code == code
        assert error.request_id is not None
        assert error.request_id.startswith("req_")


async def test_bad_keys_have_the_sdks_classes(platform: Platform, async_client: AsyncOpenAI) -> None:
    limited = await platform.create_key("--model", f"fake/{FAST}")
    for key, kind in (("hw-nonsense", openai.AuthenticationError), (limited["key"], openai.PermissionDeniedError)):
        with pytest.raises(kind):
            await async_client.with_options(api_key=key).chat.completions.create(
                model=f"fake/{CACHED}", messages=MESSAGES
            )


async def test_a_broken_stream_raises_where_it_broke(async_client: AsyncOpenAI, client: OpenAI) -> None:
    stream = await async_client.chat.completions.create(model=f"fake/{BROKEN}", messages=MESSAGES, stream=True)
    pieces: list[str] = []

    async def read_on() -> None:
        async for chunk in stream:
            pieces.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)

    with pytest.raises(openai.APIError) as met:
        await read_on()
    assert len(pieces) == 3
    assert met.value.code == "engine_failed"

    def read() -> None:
        list(client.chat.completions.create(model=f"fake/{BROKEN}", messages=MESSAGES, stream=True))

    with pytest.raises(openai.APIError):
        await asyncio.to_thread(read)


async def test_the_sdks_own_retries_work_with_our_retry_after(platform: Platform) -> None:
    before = len(platform.records())
    async with AsyncOpenAI(base_url=platform.base_url, api_key=platform.key, max_retries=1) as retrying:
        with pytest.raises(openai.InternalServerError):
            await retrying.chat.completions.create(model=f"fake/{OVERLOADED}", messages=MESSAGES)
    assert len(platform.records()) == before + 2


async def test_closing_a_stream_cancels_the_engines_work(
    engine: FakeEngineHandle, platform: Platform, async_client: AsyncOpenAI, client: OpenAI
) -> None:
    stream = await async_client.chat.completions.create(model=f"fake/{ENDLESS}", messages=MESSAGES, stream=True)
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()

    def read_some() -> None:
        with client.chat.completions.create(model=f"fake/{ENDLESS}", messages=MESSAGES, stream=True) as chunks:
            next(iter(chunks))

    await asyncio.to_thread(read_some)
    whole = asyncio.create_task(async_client.chat.completions.create(model=f"fake/{ENDLESS}", messages=MESSAGES))
    await engine.wait_for(lambda truth: sum(one.facts["model"] == ENDLESS for one in truth.attempts) == 3)
    whole.cancel()
    truth = await engine.wait_for(lambda truth: truth.is_settled, timeout_s=2.0)
    assert all(one.is_aborted for one in truth.attempts if one.facts["model"] == ENDLESS)
    await platform.idle()
    outcomes = {row["outcome"] for row in platform.records() if row["model"] == f"fake/{ENDLESS}"}
    assert outcomes == {"client_gone"}


async def test_many_at_once_from_threads(platform: Platform, client: OpenAI) -> None:
    answers: list[str | None] = []

    def ask() -> None:
        got = client.chat.completions.create(model=f"fake/{FAST}", messages=MESSAGES)
        answers.append(got.choices[0].message.content)

    def ask_all() -> None:
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    await asyncio.to_thread(ask_all)
    assert len(answers) == 16
    assert all(answers)
