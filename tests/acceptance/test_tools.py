"""Tool calls of a real small model: it writes them as text, and callers get them as tool calls, or as the text they are."""

import json
from typing import Any

import jsonschema
import pytest
from openai import OpenAI
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
)

from tests.acceptance.person import Up

pytestmark = pytest.mark.model

WEATHER: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city"],
}
ADD: dict[str, object] = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
}
SCHEMAS = {"get_weather": WEATHER, "add": ADD}
TOOLS: list[ChatCompletionFunctionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather of a city",
            "parameters": WEATHER,
        },
    },
    {"type": "function", "function": {"name": "add", "description": "Add two numbers", "parameters": ADD}},
]
PARIS: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris right now?"}]
TWO_CITIES: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the weather in Paris and in Rome?"}
]
ASKED: dict[str, Any] = {"model": "qwen", "temperature": 0, "seed": 1, "tools": TOOLS, "max_tokens": 120}


def calls_of(answer: ChatCompletion) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments of the first choice's calls; every one is of a declared tool and fits its schema."""
    calls = []
    for call in answer.choices[0].message.tool_calls or ():
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        assert call.id
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, SCHEMAS[call.function.name])
        calls.append((call.function.name, arguments))
    return calls


@pytest.mark.parametrize(
    ("question", "cities"),
    [("What is the weather in Paris right now?", {"Paris"}), ("现在北京的天气怎么样？", {"北京", "Beijing"})],
    ids=["english", "chinese"],
)
def test_a_call_that_the_model_wrote_as_text_arrives_as_a_call(client: OpenAI, question: str, cities: set[str]) -> None:
    answer: ChatCompletion = client.chat.completions.create(**ASKED, messages=[{"role": "user", "content": question}])
    ((name, arguments),) = calls_of(answer)
    assert name == "get_weather"
    assert arguments["city"] in cities
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


def test_a_streamed_call_is_the_same_call(client: OpenAI) -> None:
    whole: ChatCompletion = client.chat.completions.create(**ASKED, messages=PARIS)
    chunks: list[ChatCompletionChunk] = list(client.chat.completions.create(**ASKED, messages=PARIS, stream=True))
    names, arguments, ids = [], "", []
    for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.index == 0
            assert call.function is not None
            ids += [call.id] if call.id else []
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments or ""
    assert [(names[0], json.loads(arguments))] == calls_of(whole)
    assert (len(ids), len(names)) == (1, 1)
    assert not any(chunk.choices[0].delta.content for chunk in chunks), "the JSON it was made of is not shown too"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_sdk_s_stream_helper_understands_the_call(client: OpenAI) -> None:
    with client.chat.completions.stream(**ASKED, messages=PARIS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [event.name for event in done] == ["get_weather"]
    assert calls_of(final)[0][0] == "get_weather"


def test_nothing_is_invented_when_there_is_nothing_to_call(client: OpenAI) -> None:
    """Asked to say hi, this model makes up `say_hi`: a name nobody declared stays text."""
    only_weather = ASKED | {"tools": TOOLS[:1], "max_tokens": 40}
    for asked in (ASKED | {"max_tokens": 40}, only_weather):
        answer: ChatCompletion = client.chat.completions.create(
            **asked, messages=[{"role": "user", "content": "Say hi"}]
        )
        calls = calls_of(answer)
        assert {name for name, _ in calls} <= SCHEMAS.keys()
        assert calls or answer.choices[0].message.content


def test_tools_with_choice_none_get_text(client: OpenAI) -> None:
    answer: ChatCompletion = client.chat.completions.create(
        **ASKED | {"max_tokens": 20}, messages=PARIS, tool_choice="none"
    )
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("model", ["qwen", "smol"])
def test_a_required_call_is_made_even_by_a_model_that_knows_no_tools(client: OpenAI, model: str) -> None:
    asked = ASKED | {"model": model, "max_tokens": 200}
    answer: ChatCompletion = client.chat.completions.create(**asked, messages=PARIS, tool_choice="required")
    if answer.choices[0].finish_reason == "length":  # a very small model may ramble inside a string of the call
        assert model == "smol"
        return
    ((name, arguments),) = calls_of(answer)
    assert answer.choices[0].finish_reason == "tool_calls"
    if model == "qwen":
        assert (name, arguments["city"]) == ("get_weather", "Paris")


def test_a_named_tool_is_called_whatever_was_said(client: OpenAI) -> None:
    answer: ChatCompletion = client.chat.completions.create(
        **ASKED,
        messages=[{"role": "user", "content": "Say hi"}],
        tool_choice={"type": "function", "function": {"name": "add"}},
    )
    assert [name for name, _ in calls_of(answer)] == ["add"]


def test_parallel_calls_are_several_and_without_them_there_is_one(client: OpenAI) -> None:
    several: ChatCompletion = client.chat.completions.create(
        **ASKED, messages=TWO_CITIES, tool_choice="required", parallel_tool_calls=True
    )
    assert [arguments["city"] for _, arguments in calls_of(several)] == ["Paris", "Rome"]
    ids = [call.id for call in several.choices[0].message.tool_calls or ()]
    assert len(set(ids)) == len(ids)
    one: ChatCompletion = client.chat.completions.create(
        **ASKED, messages=TWO_CITIES, tool_choice="required", parallel_tool_calls=False
    )
    assert len(calls_of(one)) == 1
    auto: ChatCompletion = client.chat.completions.create(**ASKED, messages=TWO_CITIES, parallel_tool_calls=False)
    assert len(calls_of(auto)) <= 1


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_a_required_call_that_the_cap_cuts_ends_with_length(client: OpenAI, is_stream: bool) -> None:
    asked = ASKED | {"max_tokens": 14, "messages": PARIS, "tool_choice": "required"}
    if is_stream:
        chunks: list[ChatCompletionChunk] = list(client.chat.completions.create(**asked, stream=True))
        reason = chunks[-1].choices[0].finish_reason
        pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        found = [(piece.function.name, piece.function.arguments) for piece in pieces if piece.function]
    else:
        answer: ChatCompletion = client.chat.completions.create(**asked)
        reason = answer.choices[0].finish_reason
        found = [
            (call.function.name, call.function.arguments)
            for call in answer.choices[0].message.tool_calls or ()
            if isinstance(call, ChatCompletionMessageFunctionToolCall)
        ]
    assert reason == "length"
    ((name, arguments),) = found
    assert name == "get_weather"
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments or "")


def test_an_unforced_call_that_the_cap_cuts_stays_text(client: OpenAI) -> None:
    answer: ChatCompletion = client.chat.completions.create(**ASKED | {"max_tokens": 12}, messages=PARIS)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls is None
    assert "get_weather" in (answer.choices[0].message.content or "")


def test_the_whole_loop_of_call_result_and_answer(client: OpenAI, real: Up) -> None:
    talk = list(PARIS)
    first = client.chat.completions.create(**ASKED, messages=talk, tool_choice="required")
    message = first.choices[0].message
    result = '{"temperature_c": 21, "sky": "sunny"}'
    talk.append(message.to_dict())  # as the SDK's own examples send an answer back
    talk += [{"role": "tool", "tool_call_id": call.id, "content": result} for call in message.tool_calls or ()]
    raw = client.chat.completions.with_raw_response.create(
        **ASKED | {"max_tokens": 60}, messages=talk, tool_choice="none"
    )
    answer: ChatCompletion = raw.parse()
    assert "21" in (answer.choices[0].message.content or "")
    assert real.row(raw.headers["x-request-id"])["outcome"] == "ok"
