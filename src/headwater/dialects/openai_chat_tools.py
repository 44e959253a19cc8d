"""Reads the tools and the wanted format of a chat-completion request, and the JSON schemas in both."""

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from headwater import json_schema
from headwater.dialects.decode import not_json, too_deep
from headwater.dialects.json_depth import is_deeper
from headwater.dialects.openai_chat_messages import utf8_bytes
from headwater.dialects.openai_chat_wire import JsonSchemaFormat, NamedToolChoice, WireResponseFormat, WireTool
from headwater.errors import InvalidRequest
from headwater.json_schema import short
from headwater.request import ResponseFormat, Tool, ToolChoice
from headwater.settings.model import GatewaySettings

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_AUTO: Final = ToolChoice()
_TEXT: Final = ResponseFormat()
_JSON_OBJECT: Final = ResponseFormat(kind="json_object")


def read_tools(wire: Iterable[WireTool], limits: GatewaySettings) -> tuple[tuple[Tool, ...], int]:
    """The declared tools, and their UTF-8 bytes: names, descriptions, schemas as they were sent."""
    declared = tuple(wire)
    if len(declared) > limits.tools_count_max:
        raise InvalidRequest(f"`tools` may have {limits.tools_count_max} tools; given {len(declared)}.", param="tools")
    tools: dict[str, Tool] = {}
    size = 0
    for position, tool in enumerate(declared):
        function, where = tool.function, f"tools[{position}].function"
        if not _NAME.fullmatch(function.name):
            raise InvalidRequest(
                f"`{where}.name` must be 1 to 64 of a-z, A-Z, 0-9, _ and -; given {short(function.name)}.",
                param=f"{where}.name",
            )
        if function.name in tools:
            raise InvalidRequest(
                f"`{where}.name` {function.name} was declared before; names must differ.", param=f"{where}.name"
            )
        parameters = _schema(function.parameters, f"{where}.parameters", limits) or {}
        if parameters.get("type", "object") != "object":
            raise InvalidRequest(
                f'`{where}.parameters.type` must be "object"; given {short(parameters["type"])}.',
                param=f"{where}.parameters.type",
            )
        tools[function.name] = Tool(
            name=function.name,
            description=function.description,
            parameters=parameters,
            is_strict=function.strict is True,
        )
        size += len(function.name) + utf8_bytes(function.description) + len(bytes(function.parameters))
    return tuple(tools.values()), size


def read_tool_choice(wire: str | NamedToolChoice | None, tools: tuple[Tool, ...]) -> ToolChoice:
    """The wish about calls. Raises InvalidRequest when no declared tool could meet it."""
    match wire:
        case None | "auto":
            return _AUTO
        case "none":
            return ToolChoice("none")
        case "required":
            if not tools:
                raise InvalidRequest(
                    '`tool_choice` "required" needs at least one tool in `tools`; given none.', param="tool_choice"
                )
            return ToolChoice("required")
        case NamedToolChoice(function=function):
            if all(tool.name != function.name for tool in tools):
                raise InvalidRequest(
                    f"`tool_choice.function.name` {short(function.name)} is not a tool declared in `tools`.",
                    param="tool_choice.function.name",
                )
            return ToolChoice("named", function.name)
    raise AssertionError(wire)  # the wire type has no other


def read_response_format(wire: WireResponseFormat | None, limits: GatewaySettings) -> tuple[ResponseFormat, int]:
    """The wanted format and the UTF-8 bytes of its schema as it was sent."""
    if wire is None or wire.type == "text":
        return _TEXT, 0
    if wire.type == "json_object":
        return _JSON_OBJECT, 0
    wanted: JsonSchemaFormat | None = wire.json_schema
    param = "response_format.json_schema"
    if wanted is None:
        raise InvalidRequest(
            f"`{param}` is required when the type is `json_schema`.", param=param, code="missing_field"
        )
    if not _NAME.fullmatch(wanted.name):
        raise InvalidRequest(
            f"`{param}.name` must be 1 to 64 of a-z, A-Z, 0-9, _ and -; given {short(wanted.name)}.",
            param=f"{param}.name",
        )
    schema = _schema(wanted.schema, f"{param}.schema", limits)
    if schema is None:
        raise InvalidRequest(f"`{param}.schema` is required.", param=f"{param}.schema", code="missing_field")
    made = ResponseFormat(kind="json_schema", schema=schema, schema_name=wanted.name, is_strict=wanted.strict is True)
    return made, len(bytes(wanted.schema))


def _schema(raw: msgspec.Raw, param: str, limits: GatewaySettings) -> dict[str, Any] | None:
    """Decode a JSON schema within its bounds; None when it wasn't given or is null."""
    text = bytes(raw)
    if not text or text == b"null":
        return None
    if len(text) > limits.schema_bytes_max:
        raise InvalidRequest(f"`{param}` may have {limits.schema_bytes_max} bytes; given {len(text)}.", param=param)
    if is_deeper(text, limits.schema_depth_max):
        raise too_deep(limits.schema_depth_max, param)
    try:
        schema = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(error, param) from error
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"`{param}` must be a JSON schema, an object; given {short(schema)}.", param=param, code="invalid_type"
        )
    if (fault := json_schema.fault(schema)) is not None:
        path = f"{param}.{fault.path}" if fault.path else param
        raise InvalidRequest(f"`{path}` {fault.what}.", param=path, code="invalid_schema")
    return schema
