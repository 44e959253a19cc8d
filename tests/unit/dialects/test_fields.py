"""The field table, the wire types and the reference page say the same."""

import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.chat import completion_create_params

from headwater.dialects import fields, openai_chat_wire, reference
from headwater.dialects.openai_chat import parse
from headwater.errors import InvalidRequest
from headwater.settings.model import GatewaySettings
from tests.unit.dialects.requests import CALL, USER, WEATHER, body

LIMITS = GatewaySettings()
PAGE = Path(__file__).parents[3] / "docs/reference/chat-completions.md"

# For each field a value that is accepted, with what must stand beside it; for a refused one what others would accept.
SAMPLES: dict[str, dict[str, Any]] = {
    "model": {"model": "m"},
    "messages": {"messages": [USER]},
    "stream": {"stream": True},
    "stream_options": {"stream": True, "stream_options": {}},
    "max_completion_tokens": {"max_completion_tokens": 5},
    "max_tokens": {"max_tokens": 5},
    "n": {"n": 2},
    "temperature": {"temperature": 1},
    "top_p": {"top_p": 0.5},
    "presence_penalty": {"presence_penalty": 1},
    "frequency_penalty": {"frequency_penalty": 1},
    "seed": {"seed": 1},
    "stop": {"stop": "x"},
    "logit_bias": {"logit_bias": {"1": 5}},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "tools": {"tools": [WEATHER]},
    "tool_choice": {"tools": [WEATHER], "tool_choice": "none"},
    "parallel_tool_calls": {"parallel_tool_calls": False},
    "response_format": {"response_format": {"type": "json_object"}},
    "modalities": {"modalities": ["text"]},
    "service_tier": {"service_tier": "default"},
    "store": {"store": False},
    "metadata": {"metadata": {"a": "b"}},
    "user": {"user": "u"},
    "safety_identifier": {"safety_identifier": "s"},
    "prompt_cache_key": {"prompt_cache_key": "k"},
    "prediction": {"prediction": {"type": "content", "content": "x"}},
    "reasoning_effort": {"reasoning_effort": "low"},
    "verbosity": {"verbosity": "low"},
    "prompt_cache_retention": {"prompt_cache_retention": "24h"},
    "prompt_cache_options": {"prompt_cache_options": {"ttl": "30m"}},
    "audio": {"audio": {"voice": "alloy", "format": "wav"}},
    "functions": {"functions": [{"name": "f"}]},
    "function_call": {"function_call": "auto"},
    "moderation": {"moderation": {"model": "x"}},
    "web_search_options": {"web_search_options": {}},
}


def test_every_field_has_a_sample_and_one_class() -> None:
    assert set(SAMPLES) == {row.path for row in fields.TOP_LEVEL}
    paths = [row.path for row in fields.TABLE]
    assert len(paths) == len(set(paths))


def test_every_field_of_the_official_sdk_is_in_the_table() -> None:
    official = set(typing.get_type_hints(completion_create_params.CompletionCreateParamsBase)) | {"stream"}
    assert {row.path for row in fields.TOP_LEVEL} == official


@pytest.mark.parametrize("row", fields.TOP_LEVEL, ids=lambda row: row.path)
def test_each_field_behaves_as_its_class_says(row: fields.Field) -> None:
    sent = body(**SAMPLES[row.path])
    if row.kind == "refused":
        with pytest.raises(InvalidRequest) as caught:
            parse(sent, LIMITS)
        assert (caught.value.code, caught.value.param) == ("unsupported_field", row.path)
        assert row.note in caught.value.message
        assert parse(body(**{row.path: None}), LIMITS) == parse(body(), LIMITS)
    elif row.kind == "hint":
        parsed, plain = parse(sent, LIMITS), parse(body(), LIMITS)
        assert parsed.ignored == (row.path,)
        assert parsed.chat == plain.chat
    else:
        assert parse(sent, LIMITS).ignored == ()


def test_wire_types_have_exactly_the_accepted_fields() -> None:
    accepted = {row.path for row in fields.TABLE if row.kind != "refused"}
    # A field of an object whose own fields are in the table needs no row where the parent row says it all.
    implied = {
        "tools[].function",
        "tool_choice.function",
        "response_format.json_schema",
        "messages[].tool_calls[].function",
    }
    implied |= {"prediction.type", "prediction.content", "prediction.content[].type", "prediction.content[].text"}
    implied |= {"prediction.content[].refusal"}
    assert set(_paths(openai_chat_wire.ChatCompletionRequest, "")) - implied == accepted


def _paths(wire: Any, prefix: str) -> typing.Iterator[str]:
    """The path of every field of a wire type."""
    if isinstance(wire, types.UnionType) or typing.get_origin(wire) is typing.Union:
        for member in typing.get_args(wire):
            yield from _paths(member, prefix)
    elif typing.get_origin(wire) is list:
        yield from _paths(typing.get_args(wire)[0], prefix + "[]")
    elif isinstance(wire, type) and issubclass(wire, msgspec.Struct):
        dot = f"{prefix}." if prefix else ""
        if (tag := wire.__struct_config__.tag_field) is not None:
            yield dot + tag
        for field in msgspec.structs.fields(wire):
            yield dot + field.encode_name
            yield from _paths(field.type, dot + field.encode_name)


def test_nested_refused_fields_are_named() -> None:
    for message, param in [
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "messages[0].audio"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0]"),
        ({"role": "assistant", "tool_calls": [CALL | {"custom": {}}]}, "messages[0].tool_calls[0].custom"),
    ]:
        with pytest.raises(InvalidRequest) as caught:
            parse(body(messages=[message]), LIMITS)
        assert caught.value.param == param


def test_reference_page_is_fresh() -> None:
    stale = "stale: run `python -m headwater.dialects.reference > docs/reference/chat-completions.md`"
    assert PAGE.read_text(encoding="utf-8") == reference.page(), stale
