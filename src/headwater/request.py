"""The envelope that travels from the socket to the ledger, and the payloads it carries.

The life of a request touches the envelope only. A dialect makes the payload, an engine adapter reads it.
"""

from typing import Any, Literal

import msgspec

from headwater.scheduling.bands import Band


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, as the API key told us. allowed_models: None means every model."""

    organization_id: str
    project_id: str
    key_id: str
    allowed_models: frozenset[str] | None = None
    expires_at_s: float | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """A call the model made earlier in the conversation; arguments is JSON text, as the API has it."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """One earlier tool call, with the id its answer refers to."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn. Text parts are joined by the dialect, so content is plain text, or None beside tool calls."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call; parameters is a JSON schema whose bytes and depth were bounded by the dialect."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = {}
    is_strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True):
    """auto: the model decides; none: it must not; required: it must call one; named: it must call `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """text, any JSON object, or JSON that fits `schema`."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: dict[str, Any] | None = None
    schema_name: str | None = None
    is_strict: bool = False


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are drawn. None everywhere means: the engine's or model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation to be continued by n independent answers.

    output_tokens_max: the caller's cap, or None; the life fills in a number before an engine sees the payload.
    text_bytes: UTF-8 bytes of all text, tools and schemas, the basis of the input bound.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    is_parallel_tool_calls: bool | None = None
    response_format: ResponseFormat = ResponseFormat()
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    output_tokens_max: int | None = None
    choices_count: int = 1
    logprobs_top_count: int | None = None
    """None: no log probabilities; 0: the chosen token's only; up to 20: that many alternatives."""
    text_bytes: int = 0

    def for_choice(self, choice: int) -> "Chat":
        """What the call for one of the n choices asks: the same, with a seed of its own; equal seeds would repeat one answer."""
        seed = self.sampling.seed
        if seed is None or choice == 0:
            return self
        wrapped = (seed + choice + 2**63) % 2**64 - 2**63
        return msgspec.structs.replace(self, sampling=msgspec.structs.replace(self.sampling, seed=wrapped))


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One call, authenticated, parsed and resolved: everything the life needs to know of it."""

    id: str
    principal: Principal
    model: str
    deadline_s: float
    """On the monotonic clock: after it the request has timed out, wherever it is."""
    is_stream: bool
    payload: Chat
    dialect: str
    received_at_s: float
    received_monotonic_s: float
    client_request_id: str | None = None
    tags: tuple[str, ...] = ()
    """The declared tags the caller named, whose budgets count too."""
    service_tier: str = "standard"
    """The tier whose multiplier counts in a price."""
    band: Band = Band.STANDARD
