"""The table of every field of the OpenAI chat-completions request, and what becomes of each.

The parser takes its advice from here, the reference page is generated from here, and tests hold the wire types to it.
Three classes:

    honoured   it does what the API says it does, within the constraint
    hint       accepted and listed in the response header `x-headwater-ignored`; it may be left out without the caller
    being
               promised anything else: not another answer, not another price, not another keeping of data
    refused    400 naming it

`null` means "not given" for every field of the table, refused ones too. A field that isn't in the table gets 400 as
well. Source: the request types of the official Python SDK `openai` 3.54 (November 2026).
"""

import difflib
from typing import Final, Literal

import msgspec

FieldClass = Literal["honoured", "hint", "refused"]


class Field(msgspec.Struct, frozen=True):
    """One row.

    path: OpenAI's spelling, `[]` for any item; constraint: what is accepted; note: how, or why not and what to do.
    """

    path: str
    kind: FieldClass
    constraint: str
    note: str


def _row(path: str, kind: FieldClass, constraint: str, note: str = "") -> Field:
    return Field(path, kind, constraint, note)


TOP_LEVEL: Final[tuple[Field, ...]] = (
    _row("model", "honoured", "a name from `GET /v1/models`, at most 256 bytes"),
    _row("messages", "honoured", "1 to `messages_count_max` messages"),
    _row("stream", "honoured", "true or false", "Server-sent events, ending in `data: [DONE]`."),
    _row("stream_options", "honoured", "object; only with `stream: true`"),
    _row("max_completion_tokens", "honoured", "whole number ≥ 1", "Caps everything generated, reasoning included."),
    _row("max_tokens", "honoured", "whole number ≥ 1", "The older name; if both are given they must be equal."),
    _row("n", "honoured", "1 to `choices_count_max`", "Each choice is generated and counted on its own."),
    _row("temperature", "honoured", "0 to 2"),
    _row("top_p", "honoured", "0 to 1"),
    _row("presence_penalty", "honoured", "−2 to 2"),
    _row("frequency_penalty", "honoured", "−2 to 2"),
    _row("seed", "honoured", "64-bit whole number", "Best effort: batching can still change the result."),
    _row("stop", "honoured", "string, or up to `stop_count_max` strings of 1 to `stop_bytes_max` bytes"),
    _row(
        "logit_bias",
        "honoured",
        "up to 300 token ids, each −100 to 100",
        "Ids are those of the called model's own tokenizer.",
    ),
    _row("logprobs", "honoured", "true or false"),
    _row("top_logprobs", "honoured", "0 to 20; only with `logprobs: true`"),
    _row("tools", "honoured", "up to `tools_count_max` functions", "See “Tool calls” below."),
    _row("tool_choice", "honoured", '`"auto"`, `"none"`, `"required"`, or one function by name'),
    _row(
        "parallel_tool_calls",
        "honoured",
        "true or false",
        "false: at most one call an answer. Without tools it changes nothing.",
    ),
    _row("response_format", "honoured", "`text`, `json_object` or `json_schema`", "Enforced by the engine's grammar."),
    _row("modalities", "honoured", '`["text"]` only', "The models answer in text."),
    _row(
        "service_tier",
        "honoured",
        '`"auto"`, `"default"`, `"priority"` or `"flex"`',
        "Who is served first when requests wait; a price may have a multiplier for `priority` and `flex`.",
    ),
    _row("store", "honoured", "false only", "Nothing is stored, so true would be a promise not kept."),
    _row(
        "metadata",
        "hint",
        "up to 16 strings of at most 512 characters, names at most 64",
        "Not stored: there is no stored completion it could tag.",
    ),
    _row("user", "hint", "string", "Use is counted by API key, not by this name."),
    _row("safety_identifier", "hint", "string of at most 128 characters", "No abuse detection reads it here."),
    _row("prompt_cache_key", "hint", "string", "Prefix caching picks its own key; answer and price stay the same."),
    _row("prediction", "hint", "`content` prediction", "Only a speed-up elsewhere; the answer is the same without it."),
    _row(
        "reasoning_effort",
        "refused",
        "",
        "It would change the answer and what it costs, and no engine here takes it yet; leave it out.",
    ),
    _row(
        "verbosity",
        "refused",
        "",
        "It would change the answer, and no engine here takes it; say it in a system message.",
    ),
    _row(
        "prompt_cache_retention",
        "refused",
        "",
        "It asks for a promise about how long prompts are kept in a cache, which engines don't give; leave it out.",
    ),
    _row(
        "prompt_cache_options",
        "refused",
        "",
        "It asks for a promise about how long prompts are kept in a cache, which engines don't give; leave it out.",
    ),
    _row("audio", "refused", "", "The models answer in text only."),
    _row("functions", "refused", "", "Use `tools`, which replaced it."),
    _row("function_call", "refused", "", "Use `tool_choice`, which replaced it."),
    _row("moderation", "refused", "", "There is no moderation model behind this API; leave it out."),
    _row("web_search_options", "refused", "", "There is no web search behind this API; leave it out."),
)

NESTED: Final[tuple[Field, ...]] = (
    _row(
        "stream_options.include_usage", "honoured", "true or false", "One more chunk with the usage, `choices` empty."
    ),
    _row("stream_options.include_obfuscation", "honoured", "false only", "Chunks are never padded."),
    _row(
        "messages[].role",
        "honoured",
        "`system`, `developer`, `user`, `assistant`, `tool`",
        "`developer` is read as `system`; the older `function` gets 400.",
    ),
    _row(
        "messages[].content",
        "honoured",
        "string or text parts; null only beside an assistant's calls, refusal or reasoning",
        "Parts are joined with a line break.",
    ),
    _row(
        "messages[].name",
        "honoured",
        "string of at most 64 characters; system, developer, user, assistant",
        "Passed on; many chat templates don't show it to the model.",
    ),
    _row("messages[].refusal", "honoured", "string; assistant only", "Stands for the content when there is none."),
    _row(
        "messages[].reasoning_content",
        "honoured",
        "string; assistant only",
        "Passed on; the chat template decides whether the model sees it.",
    ),
    _row(
        "messages[].reasoning",
        "honoured",
        "string; assistant only",
        "The same under its other name; `reasoning_content` wins.",
    ),
    _row("messages[].tool_calls", "honoured", "function calls; assistant only"),
    _row("messages[].tool_call_id", "honoured", "id of a call in an earlier assistant message; tool only"),
    _row("messages[].annotations", "hint", "empty; assistant only", "So that an answer can be sent back as it came."),
    _row("messages[].audio", "refused", "", "The models read text only; send the transcript as content."),
    _row("messages[].function_call", "refused", "", "Use `tool_calls`, which replaced it."),
    _row("messages[].tool_calls[].id", "honoured", "string"),
    _row("messages[].tool_calls[].type", "honoured", "`function`"),
    _row("messages[].tool_calls[].function.name", "honoured", "string of at most 64 characters"),
    _row("messages[].tool_calls[].function.arguments", "honoured", "string"),
    _row("messages[].content[].type", "honoured", "`text`; for an assistant also `refusal`"),
    _row("messages[].content[].text", "honoured", "string"),
    _row("messages[].content[].refusal", "honoured", "string; assistant only"),
    _row("messages[].content[].image_url", "refused", "", "The models read text only."),
    _row("messages[].content[].input_audio", "refused", "", "The models read text only."),
    _row("messages[].content[].file", "refused", "", "The models read text only."),
    _row(
        "messages[].content[].prompt_cache_breakpoint",
        "refused",
        "",
        "Prefix caching picks its own boundaries; leave it out.",
    ),
    _row("tools[].type", "honoured", "`function`"),
    _row("tools[].custom", "refused", "", "Tools without a JSON schema aren't offered; declare a function."),
    _row("tools[].function.name", "honoured", "1 to 64 of `a-z A-Z 0-9 _ -`, once each"),
    _row("tools[].function.description", "honoured", "string"),
    _row(
        "tools[].function.parameters",
        "honoured",
        "JSON schema of an object: `schema_bytes_max`, `schema_depth_max`, only `$ref`s within itself",
    ),
    _row("tools[].function.strict", "honoured", "true or false", "Passed to the engine; see “Tool calls” below."),
    _row("tool_choice.type", "honoured", "`function`"),
    _row("tool_choice.function.name", "honoured", "a declared tool"),
    _row("tool_choice.allowed_tools", "refused", "", "Declare only the tools that may be called."),
    _row("tool_choice.custom", "refused", "", "Tools without a JSON schema aren't offered; declare a function."),
    _row("response_format.type", "honoured", "`text`, `json_object`, `json_schema`"),
    _row("response_format.json_schema.name", "honoured", "1 to 64 of `a-z A-Z 0-9 _ -`"),
    _row(
        "response_format.json_schema.description",
        "hint",
        "string",
        "The model isn't shown it; the grammar needs only the schema.",
    ),
    _row(
        "response_format.json_schema.schema",
        "honoured",
        "JSON schema: `schema_bytes_max`, `schema_depth_max`, only `$ref`s within itself",
    ),
    _row("response_format.json_schema.strict", "honoured", "true or false", "The schema is enforced either way."),
)

TABLE: Final[tuple[Field, ...]] = TOP_LEVEL + NESTED
_BY_PATH: Final = {field.path: field for field in TABLE}


def find(path: str) -> Field | None:
    """The row of a request's path, list positions allowed (`messages[2].audio`); None when the table has none."""
    return _BY_PATH.get(_without_positions(path))


def close_match(path: str) -> str | None:
    """The accepted field whose name looks most like this unknown one, or None."""
    general = _without_positions(path)
    prefix, dot, name = general.rpartition(".")
    names = [
        field.path.removeprefix(prefix + dot)
        for field in TABLE
        if field.kind != "refused" and field.path.startswith(prefix + dot)
    ]
    found = difflib.get_close_matches(name[:64], [n for n in names if "." not in n and "[" not in n], n=1, cutoff=0.7)
    return prefix + dot + found[0] if found else None


def _without_positions(path: str) -> str:
    parts = path.split("[")
    return parts[0] + "".join("[]" + part.partition("]")[2] for part in parts[1:])
