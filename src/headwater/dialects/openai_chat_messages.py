"""Reads the messages of a chat-completion request: what types can't say of them, and the turns engines read."""

from collections.abc import Sequence
from typing import Final

from headwater.dialects.openai_chat_wire import (
    AssistantMessage,
    Content,
    TextPart,
    ToolMessage,
    UserMessage,
    WireMessage,
)
from headwater.errors import InvalidRequest, UnsupportedValue
from headwater.json_schema import short
from headwater.request import FunctionCall, Message, ToolCall

NAME_CHARACTERS_MAX: Final = 64


def read_messages(wire: Sequence[WireMessage], count_max: int) -> tuple[Message, ...]:
    """The conversation. Raises InvalidRequest or UnsupportedValue naming the message."""
    if not 0 < len(wire) <= count_max:
        raise InvalidRequest(f"`messages` must have 1 to {count_max} messages; given {len(wire)}.", param="messages")
    call_ids: set[str] = set()
    messages = []
    for position, message in enumerate(wire):
        if isinstance(message, AssistantMessage):
            messages.append(_assistant(message, position))
            if message.tool_calls:
                call_ids.update(call.id for call in message.tool_calls)
        elif isinstance(message, ToolMessage):
            if message.tool_call_id not in call_ids:
                where = f"messages[{position}].tool_call_id"
                raise InvalidRequest(
                    f"`{where}` {short(message.tool_call_id)} answers no tool call of an earlier assistant message.",
                    param=where,
                )
            content = _joined(message.content, position)
            messages.append(Message(role="tool", content=content, tool_call_id=message.tool_call_id))
        else:
            name = message.name
            if name is not None:
                _check_name_length(name, f"messages[{position}].name")
            content = message.content if isinstance(message.content, str) else _joined(message.content, position)
            messages.append(
                Message(role="user" if isinstance(message, UserMessage) else "system", content=content, name=name)
            )
    return tuple(messages)


def _assistant(message: AssistantMessage, position: int) -> Message:
    where = f"messages[{position}]"
    content = None if message.content is None else _joined(message.content, position, is_assistant=True)
    reasoning = message.reasoning if message.reasoning_content is None else message.reasoning_content
    if not content and message.refusal:
        content = message.refusal
    if content is None and not message.tool_calls:
        if reasoning is None:
            raise InvalidRequest(
                f"`{where}.content` may be null only beside `tool_calls`, `refusal` or `reasoning_content`.",
                param=f"{where}.content",
            )
        content = ""
    if message.annotations:
        raise UnsupportedValue(
            f"`{where}.annotations` must be empty; given {len(message.annotations)}.", param=f"{where}.annotations"
        )
    if message.name is not None:
        _check_name_length(message.name, f"{where}.name")
    calls = []
    for number, call in enumerate(message.tool_calls or ()):
        _check_name_length(call.function.name, f"{where}.tool_calls[{number}].function.name")
        calls.append(
            ToolCall(id=call.id, function=FunctionCall(name=call.function.name, arguments=call.function.arguments))
        )
    return Message(role="assistant", content=content, name=message.name, tool_calls=tuple(calls), reasoning=reasoning)


def _joined(content: Content, position: int, *, is_assistant: bool = False) -> str:
    """The parts' text, joined by line breaks as llama.cpp and vLLM join them. Only an assistant refuses."""
    if isinstance(content, str):
        return content
    if not content:
        raise InvalidRequest(
            f"`messages[{position}].content` must have at least one part; given none.",
            param=f"messages[{position}].content",
        )
    texts = []
    for number, part in enumerate(content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif is_assistant:
            texts.append(part.refusal)
        else:
            param = f"messages[{position}].content[{number}].type"
            raise UnsupportedValue(f"`{param}` 'refusal' is only for an assistant's message.", param=param)
    return "\n".join(texts)


def _check_name_length(name: str, param: str) -> None:
    if not 0 < len(name) <= NAME_CHARACTERS_MAX:
        raise InvalidRequest(
            f"`{param}` must have 1 to {NAME_CHARACTERS_MAX} characters; given {len(name)}.", param=param
        )


def utf8_bytes(text: str | None) -> int:
    """UTF-8 bytes of a text; None has none."""
    if text is None:
        return 0
    return len(text) if text.isascii() else len(text.encode())


def message_bytes(message: Message) -> int:
    """UTF-8 bytes of all text of a message."""
    count = (
        utf8_bytes(message.content)
        + utf8_bytes(message.name)
        + utf8_bytes(message.reasoning)
        + utf8_bytes(message.tool_call_id)
    )
    for call in message.tool_calls:
        count += utf8_bytes(call.id) + utf8_bytes(call.function.name) + utf8_bytes(call.function.arguments)
    return count
