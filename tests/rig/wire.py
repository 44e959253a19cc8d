"""The OpenAI chat wire as engines speak it, with llama.cpp's and vLLM's additions: expected answers to JSON. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tests.rig.knobs import Knobs
from tests.rig.oracle import Expected, Piece

ABSURD_TOKENS = 10**15
DONE = b"data: [DONE]\n\n"
HTML = b"<!doctype html><html><title>Sign in</title><body>Please sign in.</body></html>"


def usage(expected: Expected, output_tokens: int, reasoning_tokens: int, knobs: Knobs) -> dict[str, Any]:
    """The usage object for so many tokens, with the knobs' lies."""
    reported = output_tokens + knobs.usage_shift
    if knobs.usage_negative:
        reported = -5
    if knobs.usage_absurd:
        reported = ABSURD_TOKENS
    return {
        "prompt_tokens": expected.prompt_tokens,
        "completion_tokens": reported,
        "total_tokens": expected.prompt_tokens + reported,
        "prompt_tokens_details": {"cached_tokens": expected.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def timings(expected: Expected, output_tokens: int, knobs: Knobs) -> dict[str, Any]:
    """llama.cpp's running counts; they lie like the usage does, since there the two come from one counter."""
    reported = usage(expected, output_tokens, 0, knobs)["completion_tokens"]
    return {
        "cache_n": expected.cached_tokens,
        "prompt_n": expected.prompt_tokens - expected.cached_tokens,
        "predicted_n": reported,
    }


def error(message: str, *, type_: str = "server_error", code: int | str = 500) -> dict[str, Any]:
    """An error in the OpenAI shape."""
    return {"error": {"message": message, "type": type_, "param": None, "code": code}}


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def delta(piece: Piece, text: str) -> dict[str, Any]:
    """The delta for one piece, or for several of the same kind whose texts are joined."""
    match piece.kind:
        case "text":
            return {"content": text}
        case "reasoning":
            return {"reasoning_content": text}
        case "tool_name":
            function = {"name": text, "arguments": ""}
            return {
                "tool_calls": [
                    {"index": piece.call, "id": _call_id(piece.call), "type": "function", "function": function}
                ]
            }
        case _:
            return {"tool_calls": [{"index": piece.call, "function": {"arguments": text}}]}


def logprobs(pieces: Sequence[Piece], body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Log probabilities of content tokens, or None when the body didn't ask."""
    if not body.get("logprobs"):
        return None
    alternatives = int(body.get("top_logprobs") or 0)
    return {"content": [_logprob(piece.text, alternatives) for piece in pieces if piece.kind == "text"]}


def _logprob(token: str, alternatives: int) -> dict[str, Any]:
    top = [_one_logprob(token if rank == 0 else f" alt{rank}", -0.25 - rank) for rank in range(alternatives)]
    return _one_logprob(token, -0.25) | {"top_logprobs": top}


def _one_logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _call_id(call: int) -> str:
    return f"call_fake{call}"


class ChunkMaker:
    """Makes the chunks of one stream: the fields they share are decided once."""

    def __init__(self, expected: Expected, body: Mapping[str, Any], knobs: Knobs, created_s: int) -> None:
        """created_s: Unix time in the chunks."""
        options = body.get("stream_options") or {}
        self._common = {
            "id": f"chatcmpl-{expected.request_id}",
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": body.get("model"),
        }
        self._expected, self._body, self._knobs = expected, body, knobs
        self._is_timed = bool(knobs.timings and body.get("timings_per_token"))
        self._is_counted = bool(knobs.continuous_usage and options.get("continuous_usage_stats") and not knobs.no_usage)
        self.is_usage_asked = bool(options.get("include_usage"))

    def chunk(
        self,
        delta: dict[str, Any],
        counts: tuple[int, int],
        *,
        finish: str | None = None,
        log: dict[str, Any] | None = None,
    ) -> bytes:
        """One chunk with a choice. counts: output tokens and reasoning tokens so far, this chunk's included."""
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        if log is not None:
            choice["logprobs"] = log
        value: dict[str, Any] = {**self._common, "choices": [choice]}
        if self._is_timed:
            value["timings"] = timings(self._expected, counts[0], self._knobs)
        if self._is_counted:
            value["usage"] = usage(self._expected, *counts, self._knobs)
        return event(value)

    def role(self) -> bytes:
        """The first chunk of an answer, before any token."""
        return event({**self._common, "choices": [_role_choice()]})

    def progress(self, processed: int, time_ms: float) -> bytes:
        """llama.cpp's `prompt_progress`: so many prompt tokens are read, the cached ones included."""
        expected = self._expected
        progress = {
            "total": expected.prompt_tokens,
            "cache": expected.cached_tokens,
            "processed": processed,
            "time_ms": time_ms,
        }
        return event({**self._common, "choices": [_role_choice()], "prompt_progress": progress})

    def usage_chunk(self, report: dict[str, Any]) -> bytes:
        """The closing chunk without a choice that carries the usage."""
        return event({**self._common, "choices": [], "usage": report})


def _role_choice() -> dict[str, Any]:
    return {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}


def completion(
    expected: Expected, body: Mapping[str, Any], created_s: int, report: dict[str, Any] | None, *, is_finished: bool
) -> dict[str, Any]:
    """The whole answer as one object, for callers that don't stream. report: the usage, or None to leave it out."""
    calls = [
        {"id": _call_id(at), "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(expected.tool_calls)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else expected.text}
    if calls:
        message["tool_calls"] = calls
    if expected.reasoning_tokens:
        message["reasoning_content"] = expected.reasoning_text
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": expected.finish_reason if is_finished else None,
        "logprobs": logprobs(expected.pieces, body),
    }
    answer: dict[str, Any] = {
        "id": f"chatcmpl-{expected.request_id}",
        "object": "chat.completion",
        "created": created_s,
        "model": body.get("model"),
        "choices": [choice],
    }
    if report is not None:
        answer["usage"] = report
    return answer
