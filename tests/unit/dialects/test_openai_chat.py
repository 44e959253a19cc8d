"""A good chat-completion request becomes the payload engines read."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.dialects.openai_chat import Parsed, parse
from headwater.errors import InvalidRequest
from headwater.request import FunctionCall, Message, ResponseFormat, Sampling, Tool, ToolCall, ToolChoice
from headwater.settings.model import GatewaySettings
from tests.unit.dialects.requests import CALL, USER, WEATHER, body, with_message, with_parameters

LIMITS = GatewaySettings()
ITEM = {"$ref": "#/$defs/Item"}


def read(**changes: Any) -> Parsed:
    return parse(body(**changes), LIMITS)


def test_the_smallest_request_leaves_everything_to_the_defaults() -> None:
    parsed = read()
    assert (parsed.model, parsed.is_stream, parsed.include_usage, parsed.ignored) == ("m", False, False, ())
    assert parsed.chat.messages == (Message(role="user", content="hi"),)
    assert parsed.chat.sampling == Sampling()
    assert (parsed.chat.choices_count, parsed.chat.output_tokens_max, parsed.chat.logprobs_top_count) == (1, None, None)
    assert parsed.chat.text_bytes == 2


def test_null_means_not_given_for_every_field() -> None:
    names = list(msgspec.structs.asdict(read().chat.sampling))
    names += [
        "stream",
        "stream_options",
        "n",
        "stop",
        "tools",
        "tool_choice",
        "response_format",
        "metadata",
        "logprobs",
    ]
    refused = [
        "audio",
        "functions",
        "function_call",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
        "moderation",
    ]
    assert read(**dict.fromkeys(names + refused)) == read()


def test_sampling_and_limits_arrive_as_given() -> None:
    chat = read(
        temperature=0, top_p=1, presence_penalty=-2, frequency_penalty=2, seed=-(2**63), logit_bias={"15": -100},
        n=8, max_completion_tokens=5, max_tokens=5, stop=["a", "语"], logprobs=True, top_logprobs=20,
    ).chat  # fmt: skip
    assert chat.sampling == Sampling(
        temperature=0, top_p=1, presence_penalty=-2, frequency_penalty=2, seed=-(2**63), logit_bias={"15": -100}
    )
    assert (chat.choices_count, chat.output_tokens_max, chat.stop) == (8, 5, ("a", "语"))
    assert chat.logprobs_top_count == 20
    assert read(logprobs=True).chat.logprobs_top_count == 0
    assert read(max_tokens=7).chat.output_tokens_max == 7
    assert read(stop="x").chat.stop == ("x",)


def test_a_stream_may_ask_for_usage() -> None:
    assert read(stream=True, stream_options={"include_usage": True}).include_usage
    assert not read(stream=True).include_usage
    assert read(stream=True, stream_options={"include_obfuscation": False}).is_stream


def test_messages_of_every_role_arrive() -> None:
    chat = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "system",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "name": "boss",
            },
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "hm", "refusal": None},
            {"role": "tool", "content": "21 °C", "tool_call_id": "call_1"},
            {"role": "assistant", "refusal": "No.", "audio": None, "function_call": None, "annotations": []},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No!"}]},
            {"role": "assistant", "content": None, "reasoning_content": "only thought", "reasoning": "the same"},
        ]
    ).chat
    assert chat.messages == (
        Message(role="system", content="Be brief."),
        Message(role="system", content="a\nb", name="boss"),
        Message(role="user", content="hi"),
        Message(
            role="assistant",
            tool_calls=(ToolCall(id="call_1", function=FunctionCall("get_weather", '{"city":"Paris"}')),),
            reasoning="hm",
        ),
        Message(role="tool", content="21 °C", tool_call_id="call_1"),
        Message(role="assistant", content="No."),
        Message(role="assistant", content="No!"),
        Message(role="assistant", content="", reasoning="only thought"),
    )


def test_tools_and_choices_arrive() -> None:
    strict = {"type": "function", "function": {"name": "now", "strict": True, "parameters": None, "description": None}}
    chat = read(tools=[WEATHER, strict], parallel_tool_calls=False).chat
    function = WEATHER["function"]
    assert chat.tools == (
        Tool(name="get_weather", description="Weather of a city.", parameters=function["parameters"]),
        Tool(name="now", is_strict=True),
    )
    assert chat.is_parallel_tool_calls is False
    assert chat.tool_choice == ToolChoice("auto")
    named = {"type": "function", "function": {"name": "get_weather"}}
    for wire, choice in [
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        (named, ToolChoice("named", "get_weather")),
    ]:
        assert read(tools=[WEATHER], tool_choice=wire).chat.tool_choice == choice


def test_schemas_that_real_clients_send_are_sound() -> None:
    pydantic: dict[str, Any] = {
        "$defs": {"Item": {"properties": {"pattern": {"type": "string"}, "next": {"anyOf": [ITEM, {"type": "null"}]}}}},
        "properties": {"items": {"items": ITEM, "type": "array"}, "type": {"const": "x", "default": 3}},
        "required": ["items"],
        "title": "Order",
        "type": "object",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "x-vendor": {"type": 5},
    }
    assert parse(with_parameters(pydantic), LIMITS).chat.tools[0].parameters == pydantic
    parse(with_parameters({"type": "object", "properties": {"again": {"$ref": "#"}}}), LIMITS)


def test_response_formats_arrive() -> None:
    assert read(response_format={"type": "text"}).chat.response_format == ResponseFormat()
    assert read(response_format={"type": "json_object"}).chat.response_format.kind == "json_object"
    wanted = {"name": "answer", "strict": True, "schema": {"type": "object"}, "description": "d"}
    parsed = read(response_format={"type": "json_schema", "json_schema": wanted})
    assert parsed.chat.response_format == ResponseFormat(
        kind="json_schema", schema={"type": "object"}, schema_name="answer", is_strict=True
    )
    assert parsed.ignored == ("response_format.json_schema.description",)


def test_hints_are_named_in_the_order_of_the_table() -> None:
    parsed = read(
        user="u", metadata={"a": "b"}, store=False, service_tier="auto", modalities=["text"], safety_identifier="s"
    )
    assert parsed.ignored == ("metadata", "user", "safety_identifier")


def test_text_bytes_count_all_a_model_may_read() -> None:
    schema = '{"type": "object", "description": "语"}'
    sent = body(
        messages=[{"role": "user", "content": "语言"}, {"role": "assistant", "tool_calls": [CALL], "reasoning": "ab"}]
    )
    tools = '{"tools":[{"type":"function","function":{"name":"f","description":"ü","parameters":SCHEMA}}],'
    parsed = parse((tools.replace("SCHEMA", schema) + sent.decode()[1:]).encode(), LIMITS)
    call = CALL["function"]
    text = ["语言", "ab", CALL["id"], call["name"], call["arguments"], "f", "ü", schema]
    assert parsed.chat.text_bytes == sum(len(piece.encode()) for piece in text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = [
    "model", "messages", "tools", "tool_choice", "stream", "stream_options", "n", "stop", "logit_bias", "temperature",
    "metadata", "response_format", "prediction", "audio", "top_k", "seed", "max_tokens",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON))
def test_any_json_is_read_or_refused_never_worse(fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        parse(json.dumps({"model": "m", "messages": [USER]} | fields).encode(), LIMITS)


@given(st.binary(max_size=64), st.integers(0, 200))
def test_any_bytes_are_read_or_refused_never_worse(noise: bytes, at: int) -> None:
    sent = body(tools=[WEATHER])
    with pytest.raises(InvalidRequest):
        parse(sent[:at] + b"\xff" + noise + sent[at:], LIMITS)


def test_extra_nulls_in_a_message_are_dropped_without_changing_schemas() -> None:
    sent = with_message(role="assistant", content="x", audio=None, function_call=None, refusal=None)
    assert parse(sent, LIMITS).chat.messages == (Message(role="assistant", content="x"),)
