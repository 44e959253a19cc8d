"""What the fake engine will answer, computed from the request id and the body alone: the oracle of the tests. Pure.

The fake engine itself asks this module what to say, so a test that compares a gateway's record with `expected(...)`
compares it with what an honest engine generates for that id, wherever a fault then cuts it off.
"""

import base64
import binascii
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from tests.rig.knobs import KnobError, Knobs, make_knobs, split_model

PieceKind = Literal["text", "reasoning", "tool_name", "tool_arguments"]
MULTI_BYTE = (" é", "中", " 🙂", "文", " naïve")
CANNED = (
    "fenced_tool",
    "bare_tool",
    "fenced_unknown_tool",
    "fenced_bad_args",
    "prose_tool",
    "fenced_code",
    "json_object",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of the answer. call: which tool call it belongs to (0 for text)."""

    kind: PieceKind
    text: str
    call: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The whole answer to one request, if nothing cuts it off. One piece is one output token."""

    request_id: str
    pieces: tuple[Piece, ...]
    prompt_tokens: int
    cached_tokens: int
    finish_reason: Literal["stop", "length", "tool_calls"]

    @property
    def output_tokens(self) -> int:
        """Tokens of the whole answer, reasoning and tool calls included."""
        return len(self.pieces)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning, a part of `output_tokens`."""
        return sum(piece.kind == "reasoning" for piece in self.pieces)

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.text_of("text")

    @property
    def reasoning_text(self) -> str:
        """The reasoning's text."""
        return self.text_of("reasoning")

    @property
    def tool_calls(self) -> tuple[tuple[str, str], ...]:
        """Name and JSON arguments of each call, in order."""
        names = [piece.text for piece in self.pieces if piece.kind == "tool_name"]
        return tuple(
            (name, "".join(p.text for p in self.pieces if p.kind == "tool_arguments" and p.call == call))
            for call, name in enumerate(names)
        )

    def text_of(self, kind: PieceKind) -> str:
        """All the pieces of one kind, joined."""
        return "".join(piece.text for piece in self.pieces if piece.kind == kind)


def expected(request_id: str | None, body: Mapping[str, Any], *, knobs: Mapping[str, object] | None = None) -> Expected:
    """Return the answer to this body under this id; None stands for a request without `x-request-id`.

    knobs: the engine's defaults and the header's, if any; those in the model's name are read from the body.
    """
    _, of_model = split_model(str(body.get("model", "")))
    return compose(request_id or id_of(body), body, make_knobs(knobs or {}, of_model))


def compose(request_id: str, body: Mapping[str, Any], knobs: Knobs) -> Expected:
    """Return the answer once the knobs are merged; `expected` is the same for one who isn't the engine."""
    draw = random.Random(request_id)
    cap = output_cap(body)
    pieces, reason = _pieces(draw, body, knobs, cap)
    if cap is not None and len(pieces) > cap:
        pieces, reason = pieces[:cap], "length"
    prompt = prompt_tokens(body.get("messages", ()))
    return Expected(
        request_id=request_id,
        pieces=tuple(pieces),
        prompt_tokens=prompt,
        cached_tokens=min(knobs.cached, prompt),
        finish_reason=reason,
    )


def prompt_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Count a prompt: 3 a message and one for each word of its text (split at white space); other parts are free."""
    count = 0
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = " ".join(str(part.get("text", "")) for part in content)
        count += 3 + len(content.split())
    return count


def output_cap(body: Mapping[str, Any]) -> int | None:
    """Return the smallest cap on output tokens in the body; None when it states none."""
    caps = [body[name] for name in ("max_completion_tokens", "max_tokens", "n_predict") if body.get(name) is not None]
    return min(map(int, caps), default=None)


def digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the body as JSON with sorted keys, in hex: the same for bytes that say the same."""
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()


def id_of(body: Mapping[str, Any]) -> str:
    """Return the id that stands in for a missing `x-request-id`."""
    return f"body-{digest(body)[:24]}"


def endless_words(request_id: str) -> Iterator[Piece]:
    """Go on for ever, deterministically, after the answer proper has run out."""
    draw = random.Random(f"{request_id} endless")
    while True:
        yield Piece("text", _word(draw))


def garbage(request_id: str, size_bytes: int = 4096) -> bytes:
    """Return bytes that are no protocol's, always the same for an id."""
    return random.Random(f"{request_id} garbage").randbytes(size_bytes)


def _pieces(
    draw: random.Random, body: Mapping[str, Any], knobs: Knobs, cap: int | None
) -> tuple[list[Piece], Literal["stop", "length", "tool_calls"]]:
    drawn = draw.randint(knobs.min_tokens, max(knobs.min_tokens, knobs.max_tokens))
    reasoning = [Piece("reasoning", _word(draw)) for _ in range(knobs.reasoning)]
    tool = _tool(body)
    if knobs.tool_call and tool is not None:
        return reasoning + _tool_pieces(draw, tool, knobs.tool_call), "tool_calls"
    if knobs.text:
        return reasoning + [Piece("text", part) for part in _split(_canned(knobs.text, tool))], "stop"
    count = drawn if knobs.tokens is None else knobs.tokens
    is_exact = knobs.exact and cap is not None
    if is_exact:
        count = max(0, (cap or 0) - len(reasoning))
    words = [Piece("text", _word(draw)) for _ in range(count)]
    if knobs.big_chunk and words:
        words[0] = Piece("text", words[0].text.ljust(knobs.big_chunk, "x"))
    return reasoning + words, "length" if is_exact else "stop"


def _word(draw: random.Random) -> str:
    number = draw.randrange(1000)
    return MULTI_BYTE[number % len(MULTI_BYTE)] if number < 200 else f" tok{number}"


def _split(text: str, width: int = 4) -> list[str]:
    return [text[at : at + width] for at in range(0, len(text), width)]


def _tool(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choice = body.get("tool_choice")
    functions = [tool["function"] for tool in body.get("tools") or ()]
    if choice == "none" or not functions:
        return None
    if isinstance(choice, Mapping):
        wanted = choice["function"]["name"]
        return next((function for function in functions if function["name"] == wanted), None)
    first: Mapping[str, Any] = functions[0]
    return first


def _tool_pieces(draw: random.Random, tool: Mapping[str, Any], calls_count: int) -> list[Piece]:
    pieces = []
    for call in range(calls_count):
        arguments = msgspec.json.encode(value_for(tool.get("parameters") or {}, draw)).decode()
        pieces.append(Piece("tool_name", str(tool["name"]), call))
        pieces += [Piece("tool_arguments", part, call) for part in _split(arguments)]
    return pieces


def value_for(schema: Mapping[str, Any], draw: random.Random) -> Any:
    """Return a value that fits a plain JSON schema (types, enum, const, minimum, minLength, minItems)."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type", "object"):
        case "string":
            return f"v{draw.randrange(100)}".ljust(int(schema.get("minLength", 0)), "x")
        case "integer":
            return int(schema.get("minimum", draw.randrange(10)))
        case "number":
            return float(schema.get("minimum", 1.5))
        case "boolean":
            return True
        case "array":
            return [value_for(schema.get("items") or {"type": "string"}, draw)] * max(1, int(schema.get("minItems", 1)))
        case "null":
            return None
        case _:
            return {name: value_for(part, draw) for name, part in (schema.get("properties") or {}).items()}


def _canned(name: str, tool: Mapping[str, Any] | None) -> str:
    """Return a canned text, or decode base64url; its calls are of the declared tool, or of `lookup`."""
    tool = tool or {"name": "lookup", "parameters": {}}
    call = {"name": tool["name"], "arguments": value_for(tool.get("parameters") or {}, random.Random(0))}
    match name:
        case "fenced_tool":
            return f"```json\n{_json(call)}\n```"
        case "bare_tool":
            return _json(call)
        case "fenced_unknown_tool":
            return f"```json\n{_json(call | {'name': 'no_such_tool'})}\n```"
        case "fenced_bad_args":
            return f"```json\n{_json(call | {'arguments': 'not an object'})}\n```"
        case "prose_tool":
            return f"I would call this:\n```json\n{_json(call)}\n```\nShall I?"
        case "fenced_code":
            return "```python\nprint('héllo')\n```"
        case "json_object":
            return '{"answer": 42, "word": "中"}'
        case _:
            try:
                return base64.b64decode(name + "=" * (-len(name) % 4), altchars=b"-_", validate=True).decode()
            except (binascii.Error, UnicodeDecodeError) as error:
                raise KnobError(f"text={name} is neither one of {', '.join(CANNED)} nor base64url of UTF-8") from error


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def text_knob(text: str) -> str:
    """Return the value of the knob `text` that makes the engine say exactly this."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
