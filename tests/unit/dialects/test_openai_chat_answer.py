"""Events become the bytes of an answer: streamed, whole, and the same either way."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model

from headwater.dialects.openai_chat import parse
from headwater.dialects.openai_chat_answer import AnswerCollector, AnswerHead, StreamWriter, error_body
from headwater.dialects.openai_models import ModelObject, model_body, models_body
from headwater.errors import ContextLengthExceeded, EngineFailed
from headwater.events import (
    Event,
    Finished,
    FinishReason,
    Progress,
    Reasoning,
    Started,
    Text,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    UsageReport,
)
from headwater.settings.model import GatewaySettings
from headwater.usage import Usage

HEAD = AnswerHead("chatcmpl-1", 1_700_000_000, 'mod"el')
USAGE = Usage(uncached_input=3, cache_read=2, cache_write=1, output=7, reasoning=4)
USAGE_OBJECT = {
    "prompt_tokens": 6,
    "completion_tokens": 7,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 4},
}


def chunk(data: bytes) -> dict[str, Any]:
    """The JSON of exactly one server-sent event."""
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 2
    loaded: dict[str, Any] = json.loads(data[6:])
    return loaded


def choice_of(data: bytes) -> dict[str, Any]:
    (choice,) = chunk(data)["choices"]
    assert isinstance(choice, dict)
    return choice


def test_chunks_are_as_the_api_has_them() -> None:
    writer = StreamWriter(HEAD, include_usage=False)
    assert chunk(writer.role(1)) == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": 'mod"el',
        "choices": [
            {"index": 1, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ],
    }
    assert choice_of(writer.event(0, Text('a"\n语')))["delta"] == {"content": 'a"\n语'}
    assert choice_of(writer.event(0, Reasoning("hm")))["delta"] == {"reasoning_content": "hm", "reasoning": "hm"}
    first = choice_of(writer.event(2, ToolCallDelta(0, "call_1", "f", "")))
    assert first["index"] == 2
    assert first["delta"] == {
        "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]
    }
    more = choice_of(writer.event(2, ToolCallDelta(0, arguments='{"a')))
    assert more["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}]}
    last = choice_of(writer.event(0, Finished("length")))
    assert (last["delta"], last["finish_reason"]) == ({}, "length")
    assert writer.done() == b"data: [DONE]\n\n"


def test_log_probabilities_go_with_their_text() -> None:
    entry = TokenLogprob("a", -0.5, [97], [TopLogprob("b", -1.5, [98])])
    choice = choice_of(StreamWriter(HEAD, include_usage=False).event(0, Text("a", [entry])))
    assert choice["delta"] == {"content": "a"}
    assert choice["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [{"token": "b", "logprob": -1.5, "bytes": [98]}],
            }
        ],
        "refusal": None,
    }


def test_usage_comes_last_and_is_null_before_when_asked_for() -> None:
    with_usage, without = StreamWriter(HEAD, include_usage=True), StreamWriter(HEAD, include_usage=False)
    for event in (Text("a"), Text("a", []), Reasoning("a"), ToolCallDelta(0), Finished("stop")):
        assert chunk(with_usage.event(0, event))["usage"] is None
        assert "usage" not in chunk(without.event(0, event))
    assert chunk(with_usage.role(0))["usage"] is None
    last = chunk(with_usage.usage(USAGE))
    assert (last["choices"], last["usage"]) == ([], USAGE_OBJECT)


def test_events_that_are_no_answer_render_to_nothing() -> None:
    writer = StreamWriter(HEAD, include_usage=True)
    for event in (Started(), Progress(1, 2, 0), UsageReport(USAGE, is_final=True)):
        assert writer.event(0, event) == b""


def test_errors_have_one_shape() -> None:
    error = ContextLengthExceeded("Too long.", param="messages")
    wanted = {
        "error": {
            "message": "Too long.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }
    assert json.loads(error_body(error)) == wanted
    failed = chunk(StreamWriter(HEAD, include_usage=True).error(EngineFailed("It died.")))
    assert failed == {"error": {"message": "It died.", "type": "server_error", "param": None, "code": "engine_failed"}}


def test_a_whole_answer_is_as_the_api_has_it() -> None:
    collector = AnswerCollector(HEAD, 2)
    said: list[Event] = [Started(), Text("Hel"), Progress(1, 1, 0), Text("lo"), Finished("stop")]
    called: list[Event] = [
        Reasoning("h"),
        Reasoning("m"),
        ToolCallDelta(0, "call_1", "f", "{"),
        ToolCallDelta(0, arguments="}"),
        Finished("tool_calls"),
    ]
    for choice, events in enumerate([said, called]):
        for event in events:
            collector.event(choice, event)
    body = json.loads(collector.body(USAGE))
    assert body["object"] == "chat.completion"
    assert body["usage"] == USAGE_OBJECT
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        },
        {
            "index": 1,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "reasoning_content": "hm",
                "reasoning": "hm",
                "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        },
    ]


def test_an_unfinished_choice_has_no_body() -> None:
    collector = AnswerCollector(HEAD, 2)
    collector.event(0, Finished("stop"))
    with pytest.raises(ValueError, match="choice 1"):
        collector.body(USAGE)


def test_models_are_listed_as_the_api_has_them() -> None:
    model = ModelObject("qwen-small", 1_700_000_000, "headwater")
    wanted = {"id": "qwen-small", "object": "model", "created": 1_700_000_000, "owned_by": "headwater"}
    assert json.loads(model_body(model)) == wanted
    assert json.loads(models_body([model])) == {"object": "list", "data": [wanted]}
    Model.model_validate_json(model_body(model), strict=True)


# Any answer at all: streaming it and gathering it say the same, and the official SDK accepts both.

_LOGPROBS = st.lists(
    st.builds(
        TokenLogprob,
        st.text(max_size=3),
        st.floats(-50, 0),
        st.none() | st.lists(st.integers(0, 255), max_size=3),
        st.lists(st.builds(TopLogprob, st.text(max_size=2), st.floats(-50, 0)), max_size=2),
    ),
    max_size=2,
)
_TEXTS = st.text(max_size=6)
_EVENTS = st.one_of(
    st.builds(Text, _TEXTS, st.none() | _LOGPROBS),
    st.builds(Reasoning, _TEXTS),
    st.builds(ToolCallDelta, st.integers(0, 2), st.none(), st.none(), _TEXTS),
    st.just(Started()),
    st.just(Progress(1, 2, 0)),
)


@st.composite
def _answers(draw: st.DrawFn) -> list[list[Event]]:
    """For each choice its events; a call's first piece has its id and name."""
    answers: list[list[Event]] = []
    for _ in range(draw(st.integers(1, 3))):
        events: list[Event] = []
        begun: set[int] = set()
        for event in draw(st.lists(_EVENTS, max_size=8)):
            if isinstance(event, ToolCallDelta) and event.index not in begun:
                begun.add(event.index)
                events.append(
                    ToolCallDelta(event.index, f"call_{event.index}", draw(st.sampled_from("fg")), event.arguments)
                )
            else:
                events.append(event)
        events.append(Finished(draw(st.sampled_from(get_args(FinishReason)))))
        answers.append(events)
    return answers


def _accumulated(stream: list[bytes]) -> dict[str, Any]:
    """What a client makes of a stream: the reference."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for data in stream:
        loaded = chunk(data)
        usage = loaded["usage"] or usage
        for piece in loaded["choices"]:
            choice = choices.setdefault(piece["index"], {"message": {"content": ""}, "calls": {}, "logprobs": None})
            delta, message = piece["delta"], choice["message"]
            message["role"] = delta.get("role", message.get("role"))
            for name in ("content", "reasoning_content", "reasoning"):
                if name in delta:
                    message[name] = message.get(name, "") + delta[name]
            for call in delta.get("tool_calls", []):
                whole = choice["calls"].setdefault(call["index"], {"function": {"arguments": ""}})
                whole.update({name: call[name] for name in ("id", "type") if name in call})
                arguments = whole["function"]["arguments"] + call["function"]["arguments"]
                whole["function"].update({**call["function"], "arguments": arguments})
            if piece["logprobs"] is not None:
                choice["logprobs"] = (choice["logprobs"] or []) + piece["logprobs"]["content"]
            choice["finish_reason"] = piece["finish_reason"]
    return {"choices": choices, "usage": usage}


@given(_answers(), st.randoms(use_true_random=False))
def test_a_stream_says_what_the_whole_answer_says(answers: list[list[Event]], random: Any) -> None:
    writer, collector = StreamWriter(HEAD, include_usage=True), AnswerCollector(HEAD, len(answers))
    stream = [writer.role(choice) for choice in range(len(answers))]
    order = [choice for choice, events in enumerate(answers) for _ in events]
    random.shuffle(order)
    waiting = [iter(events) for events in answers]
    for choice in order:
        event = next(waiting[choice])
        collector.event(choice, event)
        stream.append(writer.event(choice, event))
    stream.append(writer.usage(USAGE))
    stream = [data for data in stream if data]
    for data in stream:
        ChatCompletionChunk.model_validate_json(data[6:], strict=True)

    whole, streamed = json.loads(collector.body(USAGE)), _accumulated(stream)
    ChatCompletion.model_validate_json(json.dumps(whole), strict=True)
    assert whole["usage"] == streamed["usage"]
    for choice in whole["choices"]:
        told = streamed["choices"][choice["index"]]
        calls = [told["calls"][index] for index in sorted(told["calls"])]
        message = {**told["message"], "refusal": None} | ({"tool_calls": calls} if calls else {})
        if calls and not message["content"]:
            message["content"] = None
        assert choice["message"] == message
        assert choice["finish_reason"] == told["finish_reason"]
        assert (choice["logprobs"] or {"content": None})["content"] == told["logprobs"]


@given(_answers())
def test_an_answer_can_be_sent_back_as_it_came(answers: list[list[Event]]) -> None:
    collector = AnswerCollector(HEAD, len(answers))
    for choice, events in enumerate(answers):
        for event in events:
            collector.event(choice, event)
    messages = [choice["message"] for choice in json.loads(collector.body(USAGE))["choices"]]
    parsed = parse(json.dumps({"model": "m", "messages": messages}).encode(), GatewaySettings())
    assert [message.content or None for message in parsed.chat.messages] == [m["content"] or None for m in messages]
