"""Every way a chat-completion request can be wrong, with the status, code and `param` its sender reads."""

import json
from typing import Any

import pytest

from headwater.dialects.openai_chat import parse
from headwater.errors import InvalidRequest
from headwater.settings.model import GatewaySettings
from tests.unit.dialects.requests import CALL, USER, WEATHER, body, nested, with_message, with_parameters

LIMITS = GatewaySettings()

FUNCTION = WEATHER["function"]
ASKED = {"role": "assistant", "tool_calls": [CALL]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}


def part(**fields: Any) -> bytes:
    return with_message(role="user", content=[fields])


def response_format(**changes: Any) -> bytes:
    wanted = {"name": "answer", "schema": {}} | changes
    json_schema = {name: value for name, value in wanted.items() if value is not ...}
    return body(response_format={"type": "json_schema", "json_schema": json_schema})


# (what is wrong, body, code, param, a piece of the message)
CASES: list[tuple[str, bytes, str, str | None, str]] = [
    # not JSON, or not in bounds
    ("empty", b"", "invalid_json", None, "not valid JSON"),
    ("malformed", b'{"model": "m", "messages": [}', "invalid_json", None, "byte 28"),
    ("cut short", body()[:-3], "invalid_json", None, "truncated"),
    ("trailing bytes", body() + b"{}", "invalid_json", None, "trailing"),
    ("invalid UTF-8", b'{"model":"m\xff"}', "invalid_json", None, "UTF-8"),
    (
        "invalid UTF-8 in a schema",
        with_parameters({"description": "X"}).replace(b"X", b"\xff"),
        "invalid_json",
        "tools[0].function.parameters",
        "UTF-8",
    ),
    (
        "lone surrogate",
        rb'{"model":"m","messages":[{"role":"user","content":"\ud800 and more"}]}',
        "invalid_json",
        None,
        "surrogate",
    ),
    ("encoded surrogate", b'{"model":"\xed\xa0\x80"}', "invalid_json", None, "UTF-8"),
    ("byte order mark", b"\xef\xbb\xbf" + body(), "invalid_json", None, "byte 0"),
    ("NaN", body(temperature=float("nan")), "invalid_json", None, "invalid character"),
    ("infinity", b'{"model":"m","messages":[],"temperature":1e999}', "invalid_type", "temperature", "out of range"),
    ("control character", b'{"model":"\x01"}', "invalid_json", None, "invalid character"),
    ("deep", b'{"model":' + b"[" * 65 + b"]" * 65 + b"}", "invalid_request", None, "64 levels"),
    ("bottomless", b"[" * 1_000_000, "invalid_request", None, "64 levels"),
    ("bottomless objects", b'{"a":' * 1_000_000, "invalid_request", None, "64 levels"),
    (
        "bottomless in a schema",
        with_parameters("X").replace(b'"X"', b"[" * 200_000 + b"]" * 200_000),
        "invalid_request",
        None,
        "64 levels",
    ),
    ("not an object", b"[]", "invalid_type", None, "got `array`"),
    ("null", b"null", "invalid_type", None, "got `null`"),
    # fields missing or unknown
    ("no model", body(model=...), "missing_field", "model", "required"),
    ("no messages", body(messages=...), "missing_field", "messages", "required"),
    ("unknown field", body(top_k=40), "unsupported_field", "top_k", "`top_k`"),
    ("unknown field that is null", body(top_k=None), "unsupported_field", "top_k", "`top_k`"),
    ("misspelt field", body(temprature=1), "unsupported_field", "temprature", "Did you mean `temperature`?"),
    (
        "misspelt field of a message",
        with_message(role="user", contnet="x"),
        "unsupported_field",
        "messages[0].contnet",
        "Did you mean `messages[].content`?",
    ),
    ("refused field", body(functions=[]), "unsupported_field", "functions", "Use `tools`"),
    (
        "refused field beside a null one",
        body(audio=None, web_search_options={}),
        "unsupported_field",
        "web_search_options",
        "web search",
    ),
    ("unknown nested field", body(stream=True, stream_options={"x": 1}), "unsupported_field", "stream_options.x", "x"),
    ("endless field name", body(**{"x" * 5000: 1}), "unsupported_field", "x" * 99 + "…", "…"),
    # wrong types
    ("model a number", body(model=3), "invalid_type", "model", "got `int`"),
    ("model empty", body(model=""), "invalid_request", "model", "1 to 256"),
    ("model endless", body(model="m" * 257), "invalid_request", "model", "1 to 256"),
    ("messages a string", body(messages="hi"), "invalid_type", "messages", "got `str`"),
    ("n a string", body(n="1"), "invalid_type", "n", "got `str`"),
    ("n a float", body(n=1.5), "invalid_type", "n", "got `float`"),
    ("n a boolean", body(n=True), "invalid_type", "n", "got `bool`"),
    ("stream a number", body(stream=1), "invalid_type", "stream", "got `int`"),
    ("bias a string", body(logit_bias={"1": "x"}), "invalid_type", "logit_bias", "got `str`"),
    ("metadata a number", body(metadata={"a": 1}), "invalid_type", "metadata", "got `int`"),
    # messages
    ("no message", body(messages=[]), "invalid_request", "messages", "given 0"),
    ("too many messages", body(messages=[USER] * 2049), "invalid_request", "messages", "given 2049"),
    ("message a string", body(messages=["hi"]), "invalid_type", "messages[0]", "got `str`"),
    ("no role", with_message(content="x"), "missing_field", "messages[0].role", "required"),
    ("unknown role", with_message(role="robot", content="x"), "unsupported_value", "messages[0].role", "'robot'"),
    (
        "function role",
        body(messages=[USER, {"role": "function", "name": "f", "content": "x"}]),
        "unsupported_value",
        "messages[1].role",
        "role `tool`",
    ),
    ("no content", with_message(role="user"), "missing_field", "messages[0].content", "required"),
    ("content null", with_message(role="user", content=None), "invalid_type", "messages[0].content", "got `null`"),
    ("content a number", with_message(role="user", content=3), "invalid_type", "messages[0].content", "got `int`"),
    ("no parts", with_message(role="user", content=[]), "invalid_request", "messages[0].content", "at least one part"),
    ("part a string", with_message(role="user", content=["x"]), "invalid_type", "messages[0].content[0]", "got `str`"),
    ("part without type", part(text="x"), "missing_field", "messages[0].content[0].type", "required"),
    (
        "image",
        part(type="image_url", image_url={"url": "data:,"}),
        "unsupported_value",
        "messages[0].content[0]",
        "text only",
    ),
    ("audio", part(type="input_audio", input_audio={}), "unsupported_value", "messages[0].content[0]", "text only"),
    ("file", part(type="file", file={}), "unsupported_value", "messages[0].content[0]", "text only"),
    (
        "refusal by a user",
        part(type="refusal", refusal="no"),
        "unsupported_value",
        "messages[0].content[0].type",
        "'refusal'",
    ),
    (
        "cache breakpoint",
        part(type="text", text="x", prompt_cache_breakpoint={"mode": "explicit"}),
        "unsupported_field",
        "messages[0].content[0].prompt_cache_breakpoint",
        "Prefix caching",
    ),
    ("empty name", with_message(role="user", content="x", name=""), "invalid_request", "messages[0].name", "1 to 64"),
    (
        "assistant says nothing",
        with_message(role="assistant"),
        "invalid_request",
        "messages[0].content",
        "null only beside",
    ),
    (
        "assistant null",
        with_message(role="assistant", content=None),
        "invalid_request",
        "messages[0].content",
        "null only beside",
    ),
    (
        "assistant audio",
        with_message(role="assistant", content="x", audio={"id": "a"}),
        "unsupported_field",
        "messages[0].audio",
        "text",
    ),
    (
        "assistant function_call",
        with_message(role="assistant", content="x", function_call={}),
        "unsupported_field",
        "messages[0].function_call",
        "Use `tool_calls`",
    ),
    (
        "assistant annotations",
        with_message(role="assistant", content="x", annotations=[{}]),
        "unsupported_value",
        "messages[0].annotations",
        "given 1",
    ),
    (
        "call of another type",
        with_message(role="assistant", tool_calls=[CALL | {"type": "custom"}]),
        "unsupported_value",
        "messages[0].tool_calls[0].type",
        "'custom'",
    ),
    (
        "call without id",
        with_message(role="assistant", tool_calls=[{"function": CALL["function"]}]),
        "missing_field",
        "messages[0].tool_calls[0].id",
        "required",
    ),
    (
        "arguments an object",
        with_message(role="assistant", tool_calls=[CALL | {"function": {"name": "f", "arguments": {}}}]),
        "invalid_type",
        "messages[0].tool_calls[0].function.arguments",
        "got `object`",
    ),
    (
        "answer without a call",
        with_message(role="tool", content="x", tool_call_id="call_1"),
        "invalid_request",
        "messages[0].tool_call_id",
        "answers no tool call",
    ),
    (
        "answer to another call",
        body(messages=[USER, ASKED, {"role": "tool", "content": "x", "tool_call_id": "call_2"}]),
        "invalid_request",
        "messages[2].tool_call_id",
        '"call_2"',
    ),
    (
        "answer without id",
        body(messages=[USER, ASKED, {"role": "tool", "content": "x"}]),
        "missing_field",
        "messages[2].tool_call_id",
        "required",
    ),
    # sampling and limits of the answer
    ("temperature", body(temperature=2.1), "invalid_request", "temperature", "from 0 to 2; given 2.1"),
    ("temperature below", body(temperature=-0.1), "invalid_request", "temperature", "given -0.1"),
    ("top_p", body(top_p=1.5), "invalid_request", "top_p", "from 0 to 1"),
    ("presence_penalty", body(presence_penalty=-3), "invalid_request", "presence_penalty", "from -2 to 2"),
    ("frequency_penalty", body(frequency_penalty=3), "invalid_request", "frequency_penalty", "from -2 to 2"),
    ("seed", body(seed=2**63), "invalid_request", "seed", str(2**63)),
    ("seed absurd, beside a null", body(seed=10**30, audio=None), "invalid_request", "seed", "given 1000"),
    ("n zero", body(n=0), "invalid_request", "n", "from 1 to 8; given 0"),
    ("n nine", body(n=9), "invalid_request", "n", "given 9"),
    ("max_tokens zero", body(max_tokens=0), "invalid_request", "max_tokens", "given 0"),
    (
        "max_completion_tokens below",
        body(max_completion_tokens=-1),
        "invalid_request",
        "max_completion_tokens",
        "given -1",
    ),
    ("two caps", body(max_tokens=5, max_completion_tokens=6), "invalid_request", "max_tokens", "(5)"),
    ("stop empty", body(stop=""), "invalid_request", "stop", "given 0"),
    ("stop item empty", body(stop=["a", ""]), "invalid_request", "stop[1]", "given 0"),
    ("stop endless", body(stop="x" * 1025), "invalid_request", "stop", "given 1025"),
    ("stop counted in bytes", body(stop="语" * 342), "invalid_request", "stop", "given 1026"),
    ("too many stops", body(stop=["x"] * 17), "invalid_request", "stop", "given 17"),
    ("stop a number", body(stop=[1]), "invalid_type", "stop[0]", "got `int`"),
    ("bias too large", body(logit_bias={"5": 101}), "invalid_request", "logit_bias", "given 101.0 for token 5"),
    ("bias of a word", body(logit_bias={"cat": 1}), "invalid_request", "logit_bias", '"cat"'),
    ("too many biases", body(logit_bias={str(i): 1 for i in range(301)}), "invalid_request", "logit_bias", "given 301"),
    ("top_logprobs alone", body(top_logprobs=3), "invalid_request", "top_logprobs", "logprobs: true"),
    (
        "top_logprobs of nothing",
        body(top_logprobs=3, logprobs=False),
        "invalid_request",
        "top_logprobs",
        "logprobs: true",
    ),
    ("top_logprobs too many", body(top_logprobs=21, logprobs=True), "invalid_request", "top_logprobs", "given 21"),
    (
        "stream options alone",
        body(stream_options={"include_usage": True}),
        "invalid_request",
        "stream_options",
        "stream: true",
    ),
    ("too much metadata", body(metadata={str(i): "" for i in range(17)}), "invalid_request", "metadata", "given 17"),
    ("metadata endless", body(metadata={"a": "x" * 513}), "invalid_request", "metadata", "513"),
    ("safety identifier endless", body(safety_identifier="x" * 129), "invalid_request", "safety_identifier", "129"),
    # promises that aren't kept here
    ("store", body(store=True), "unsupported_value", "store", "not stored"),
    ("modalities", body(modalities=["text", "audio"]), "unsupported_value", "modalities", "audio"),
    ("service tier", body(service_tier="scale"), "unsupported_value", "service_tier", "scale"),
    (
        "obfuscation",
        body(stream=True, stream_options={"include_obfuscation": True}),
        "unsupported_value",
        "stream_options.include_obfuscation",
        "padded",
    ),
    # tools
    ("too many tools", body(tools=[WEATHER] * 129), "invalid_request", "tools", "given 129"),
    ("custom tool", body(tools=[{"type": "custom", "custom": {}}]), "unsupported_value", "tools[0].type", "'custom'"),
    ("tool without function", body(tools=[{"type": "function"}]), "missing_field", "tools[0].function", "required"),
    (
        "tool without name",
        body(tools=[{"type": "function", "function": {}}]),
        "missing_field",
        "tools[0].function.name",
        "required",
    ),
    (
        "tool name",
        body(tools=[{"type": "function", "function": {"name": "a b"}}]),
        "invalid_request",
        "tools[0].function.name",
        '"a b"',
    ),
    (
        "tool name endless",
        body(tools=[{"type": "function", "function": {"name": "a" * 65}}]),
        "invalid_request",
        "tools[0].function.name",
        "1 to 64",
    ),
    ("tool twice", body(tools=[WEATHER, WEATHER]), "invalid_request", "tools[1].function.name", "declared before"),
    ("parameters an array", with_parameters([]), "invalid_type", "tools[0].function.parameters", "object"),
    (
        "parameters of a string",
        with_parameters({"type": "string"}),
        "invalid_request",
        "tools[0].function.parameters.type",
        '"string"',
    ),
    (
        "parameters huge",
        with_parameters({"description": "x" * 262_144}),
        "invalid_request",
        "tools[0].function.parameters",
        "262144 bytes",
    ),
    ("parameters deep", with_parameters(nested(33)), "invalid_request", "tools[0].function.parameters", "32 levels"),
    (
        "schema type",
        with_parameters({"properties": {"a": {"type": "text"}}}),
        "invalid_schema",
        "tools[0].function.parameters.properties.a.type",
        '"text"',
    ),
    (
        "schema no schema",
        with_parameters({"properties": {"a": 3}}),
        "invalid_schema",
        "tools[0].function.parameters.properties.a",
        "given 3",
    ),
    (
        "schema required",
        with_parameters({"required": "a"}),
        "invalid_schema",
        "tools[0].function.parameters.required",
        "array of strings",
    ),
    (
        "schema enum",
        with_parameters({"properties": {"a": {"enum": 3}}}),
        "invalid_schema",
        "tools[0].function.parameters.properties.a.enum",
        "an array",
    ),
    (
        "schema empty anyOf",
        with_parameters({"anyOf": []}),
        "invalid_schema",
        "tools[0].function.parameters.anyOf",
        "at least one",
    ),
    (
        "schema multipleOf",
        with_parameters({"multipleOf": 0}),
        "invalid_schema",
        "tools[0].function.parameters.multipleOf",
        "above 0",
    ),
    (
        "schema remote reference",
        with_parameters({"$ref": "https://example.com/schema"}),
        "invalid_schema",
        "tools[0].function.parameters.$ref",
        "same document",
    ),
    (
        "schema dangling reference",
        with_parameters({"$ref": "#/$defs/a"}),
        "invalid_schema",
        "tools[0].function.parameters.$ref",
        "same document",
    ),
    (
        "schema reference to no schema",
        with_parameters({"enum": [{}], "$ref": "#/enum/0"}),
        "invalid_schema",
        "tools[0].function.parameters.$ref",
        "same document",
    ),
    ("required without tools", body(tool_choice="required"), "invalid_request", "tool_choice", "at least one tool"),
    (
        "named without tools",
        body(tool_choice={"type": "function", "function": {"name": "f"}}),
        "invalid_request",
        "tool_choice.function.name",
        '"f"',
    ),
    (
        "undeclared tool",
        body(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "f"}}),
        "invalid_request",
        "tool_choice.function.name",
        '"f"',
    ),
    (
        "unknown tool choice",
        body(tools=[WEATHER], tool_choice="always"),
        "unsupported_value",
        "tool_choice",
        "'always'",
    ),
    ("tool choice a number", body(tools=[WEATHER], tool_choice=3), "invalid_type", "tool_choice", "got `int`"),
    (
        "allowed tools",
        body(tools=[WEATHER], tool_choice={"type": "allowed_tools", "allowed_tools": {}}),
        "unsupported_value",
        "tool_choice.type",
        "'allowed_tools'",
    ),
    # the wanted format
    ("format unknown", body(response_format={"type": "yaml"}), "unsupported_value", "response_format.type", "'yaml'"),
    (
        "format without schema object",
        body(response_format={"type": "json_schema"}),
        "missing_field",
        "response_format.json_schema",
        "required",
    ),
    ("format without name", response_format(name=...), "missing_field", "response_format.json_schema.name", "required"),
    ("format name", response_format(name="a b"), "invalid_request", "response_format.json_schema.name", '"a b"'),
    (
        "format without schema",
        response_format(schema=...),
        "missing_field",
        "response_format.json_schema.schema",
        "required",
    ),
    (
        "format schema null",
        response_format(schema=None),
        "missing_field",
        "response_format.json_schema.schema",
        "required",
    ),
    (
        "format schema a string",
        response_format(schema="object"),
        "invalid_type",
        "response_format.json_schema.schema",
        "object",
    ),
    (
        "format schema unsound",
        response_format(schema={"items": []}),
        "invalid_schema",
        "response_format.json_schema.schema.items",
        "schema",
    ),
    (
        "format schema deep",
        response_format(schema=nested(33)),
        "invalid_request",
        "response_format.json_schema.schema",
        "32 levels",
    ),
]


@pytest.mark.parametrize(
    ("sent", "code", "param", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input_is_refused_with_its_code_and_param(sent: bytes, code: str, param: str | None, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(sent, LIMITS)
    error = caught.value
    assert (error.status, error.type, error.code, error.param) == (400, "invalid_request_error", code, param)
    assert said in error.message
    assert len(error.message) < 400  # nothing a caller sends comes back without bound


def test_limits_are_the_settings() -> None:
    tight = GatewaySettings(
        messages_count_max=1, choices_count_max=2, stop_count_max=1, stop_bytes_max=4, tools_count_max=1
    )
    for sent, param in [
        (body(messages=[USER, USER]), "messages"),
        (body(n=3), "n"),
        (body(stop=["a", "b"]), "stop"),
        (body(stop="abcde"), "stop"),
        (body(tools=[WEATHER, {"type": "function", "function": {"name": "f"}}]), "tools"),
    ]:
        parse(sent, LIMITS)
        with pytest.raises(InvalidRequest) as caught:
            parse(sent, tight)
        assert caught.value.param == param


def test_a_wide_body_is_not_a_deep_one() -> None:
    parse(body(messages=[USER] * 2000, tools=[WEATHER]), LIMITS)
    parse(with_message(role="user", content="[" * 100_000 + '"\\' * 3), LIMITS)
    assert json.loads(body())["model"] == "m"
