"""What an engine says while it answers, in one vocabulary for every engine and every API.

An engine adapter turns upstream bytes into these; the life of the request counts them; a dialect turns them into a
client's bytes. One attempt produces: Started? Progress* (Text | Reasoning | ToolCallDelta | Usage)* Finished Usage? —
or ends early in Failed. `Finished` and `Failed` are terminal in meaning; a `Usage` may still follow `Finished`.
"""

from typing import Literal

import msgspec

from headwater.errors import PlatformError
from headwater.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Started(msgspec.Struct, frozen=True, gc=False):
    """The engine accepted the request (its first event, before any content)."""


class TokenLogprob(msgspec.Struct, frozen=True, omit_defaults=False):
    """One token's log probability in the OpenAI shape, with the best alternatives."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list["TopLogprob"] = []


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative the model also considered at a position."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class Text(msgspec.Struct, frozen=True):
    """Some answer text; usually one token, sometimes several or a part of one. logprobs: those of its tokens, if asked for."""

    text: str
    logprobs: list[TokenLogprob] | None = None


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """Some of the model's reasoning, which is not part of the answer text."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of tool call number `index`. The first piece has id and name; arguments come in pieces of JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Progress(msgspec.Struct, frozen=True, gc=False):
    """Prefill went on: `processed` of `total` prompt tokens are read, `cached` of them from an earlier request."""

    processed: int
    total: int
    cached: int


class UsageReport(msgspec.Struct, frozen=True, gc=False):
    """The engine's own count so far; `is_final` when it is the closing one. Later reports replace earlier ones."""

    usage: Usage
    is_final: bool


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The model ended its answer, and why."""

    reason: FinishReason


class Failed(msgspec.Struct, frozen=True):
    """The attempt can't go on; the error is safe to show to the caller."""

    error: PlatformError


Event = Started | Text | Reasoning | ToolCallDelta | Progress | UsageReport | Finished | Failed
