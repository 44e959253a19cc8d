"""The OpenAI chat-completions request as it arrives: one struct for each object of the wire.

`msgspec` parses and type-checks in one pass. The structs hold exactly the fields that the table in `fields` calls
honoured or hint (a test compares them); a refused or unknown field fails the parse, and `refusal` turns that failure
into the error a caller reads. Source: the request types of the official Python SDK `openai` 3.54.
"""

from typing import Any, Literal

import msgspec

NO_SCHEMA = msgspec.Raw()
"""Default of a schema field; a schema stays undecoded until its bytes and depth are known to be within bounds."""


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """`{"type": "text"}`."""

    text: str


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    """`{"type": "refusal"}`, which only an assistant says."""

    refusal: str


Content = str | list[TextPart | RefusalPart]
"""Refusals are sorted out by role later: as a union, parts must have a `type`."""


class WireFunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """The function half of an earlier tool call."""

    name: str
    arguments: str


class WireToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """An earlier tool call."""

    id: str
    function: WireFunctionCall
    type: Literal["function"] = "function"


class SystemMessage(msgspec.Struct, tag_field="role", tag="system", forbid_unknown_fields=True):
    """What the application tells the model."""

    content: Content
    name: str | None = None


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer", forbid_unknown_fields=True):
    """A system message by its newer name."""

    content: Content
    name: str | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user", forbid_unknown_fields=True):
    """What a person or program asks."""

    content: Content
    name: str | None = None


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True):
    """An earlier answer, as our own `message` object or any OpenAI-compatible one has it."""

    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[WireToolCall] | None = None
    annotations: list[Any] | None = None


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool", forbid_unknown_fields=True):
    """What a called tool answered."""

    content: Content
    tool_call_id: str


WireMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class WireFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A declared function; `parameters` is still JSON text."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw = NO_SCHEMA
    strict: bool | None = None


class WireTool(msgspec.Struct, forbid_unknown_fields=True):
    """A declared tool."""

    type: Literal["function"]
    function: WireFunction


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """The function a named tool choice names."""

    name: str


class NamedToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """`tool_choice` as an object."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options that only a stream has."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True):
    """The `json_schema` half of a response format; `schema` is still JSON text."""

    name: str
    description: str | None = None
    schema: msgspec.Raw = NO_SCHEMA
    strict: bool | None = None


class WireResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class Prediction(msgspec.Struct, tag_field="type", tag="content", forbid_unknown_fields=True):
    """A guess of the answer's text; a hint."""

    content: Content


class ChatCompletionRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[WireMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[WireTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: WireResponseFormat | None = None
    modalities: list[str] | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prediction: Prediction | None = None
