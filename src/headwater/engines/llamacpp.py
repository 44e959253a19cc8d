"""Our own llama.cpp server: the OpenAI wire plus what makes its work visible, cancellable and ours to place. Pure.

llama.cpp notices a closed socket only when it writes, so every call streams, asks for `return_progress` (a write after
each prefill batch) and `timings_per_token` (its own running counts). The slot is always the gateway's choice. Required
and named tools are enforced by its grammar. Source: llama.cpp `tools/server/README.md`.
"""

import re
from typing import Any, NamedTuple

import msgspec

from headwater.engines.openai import chat_body, response_format_wire, tool_wire
from headwater.engines.tool_calls import enforced_schema
from headwater.request import Chat

_encoder = msgspec.json.Encoder()

SEEDS_COUNT = 2**32 - 1
"""llama.cpp keeps 32 bits of a seed and takes all ones for "random": these many seeds repeat an answer."""


_PROGRESS = re.compile(rb'"prompt_progress":{"total":(\d+),"cache":(\d+),"processed":(\d+),"time_ms":(\d+)}')
"""Text that says the same is no match: inside a JSON string its quotes are escaped."""


class PrefillProgress(NamedTuple):
    """How far a prompt is read: `processed` of `total` tokens, `cached` of them not anew; end: of the event, in the bytes."""

    processed: int
    total: int
    cached: int
    elapsed_s: float
    end: int


class SavedWire(msgspec.Struct):
    """Answer of `/slots/N?action=save`."""

    n_saved: int
    n_written: int


class RestoredWire(msgspec.Struct):
    """Answer of `/slots/N?action=restore`."""

    n_restored: int


class PromptWire(msgspec.Struct):
    """Answer of `/apply-template`."""

    prompt: str


class TokensWire(msgspec.Struct):
    """Answer of `/tokenize`."""

    tokens: list[int]


def encode(chat: Chat, *, slot: int, is_prefix_reusable: bool) -> bytes:
    """The body of `POST /v1/chat/completions` for one choice in one slot.

    is_prefix_reusable: whether the slot's cached tokens may be used; false when they are another organization's.
    """
    body = chat_body(chat, output_cap_field="max_tokens")
    body |= {
        "id_slot": slot,
        "cache_prompt": is_prefix_reusable,
        "return_progress": True,
        "timings_per_token": True,
    }
    if chat.sampling.seed is not None:
        body["seed"] = chat.sampling.seed % SEEDS_COUNT
    if chat.tools and chat.tool_choice.mode != "none":
        body["tools"] = [tool_wire(tool) for tool in chat.tools]
        body["tool_choice"] = "auto"
        if chat.is_parallel_tool_calls is not None:
            body["parallel_tool_calls"] = chat.is_parallel_tool_calls
    schema = enforced_tools_schema(chat)
    if schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "tool_call", "schema": schema}}
    elif chat.response_format.kind != "text":
        body["response_format"] = response_format_wire(chat.response_format)
    return _encoder.encode(body)


def enforced_tools_schema(chat: Chat) -> dict[str, Any] | None:
    """The schema the whole answer must fit when a tool call is required, else None."""
    if chat.tools and chat.tool_choice.mode in ("required", "named"):
        return enforced_schema(chat.tools, chat.tool_choice, is_parallel=bool(chat.is_parallel_tool_calls))
    return None


def encode_template(chat: Chat) -> bytes:
    """The body of `POST /apply-template`: the same messages and tools, to learn the prompt text."""
    body = chat_body(chat, output_cap_field="max_tokens")
    wire = {"messages": body["messages"]}
    if chat.tools and chat.tool_choice.mode != "none":
        wire["tools"] = [tool_wire(tool) for tool in chat.tools]
    return _encoder.encode(wire)


def encode_tokenize(prompt: str) -> bytes:
    """The body of `POST /tokenize` for a templated prompt: special tokens are parsed, as the engine will."""
    return _encoder.encode({"content": prompt, "add_special": True, "parse_special": True})


decode_prompt = msgspec.json.Decoder(PromptWire).decode
decode_tokens = msgspec.json.Decoder(TokensWire).decode


def last_progress(events: bytes) -> PrefillProgress | None:
    """The last progress of the prefill in these whole events, None without one."""
    found: re.Match[bytes] | None = None
    for match in _PROGRESS.finditer(events):
        found = match
    if found is None:
        return None
    total, cached, processed, elapsed_ms = map(int, found.groups())
    return PrefillProgress(processed, total, cached, elapsed_ms / 1000, events.find(b"\n\n", found.end()) + 2)


def encode_state_file(name: str) -> bytes:
    """The body of `POST /slots/N?action=save` and `…=restore`."""
    return _encoder.encode({"filename": name})


decode_saved = msgspec.json.Decoder(SavedWire).decode
decode_restored = msgspec.json.Decoder(RestoredWire).decode
