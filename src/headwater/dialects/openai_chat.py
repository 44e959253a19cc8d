"""Reads `POST /v1/chat/completions`: bytes to a `Chat` we may trust, or the error that says why not.

`parse` decodes into the wire structs (types and unknown fields are settled there), then checks what types can't say, in
the order of the fields in the table, and builds the payload that engines read.
"""

import re
from typing import Final

import msgspec

from headwater.dialects.decode import decode
from headwater.dialects.fields import TOP_LEVEL
from headwater.dialects.openai_chat_messages import message_bytes, read_messages
from headwater.dialects.openai_chat_tools import read_response_format, read_tool_choice, read_tools
from headwater.dialects.openai_chat_wire import ChatCompletionRequest
from headwater.errors import InvalidRequest, UnsupportedValue
from headwater.json_schema import short
from headwater.request import Chat, Sampling
from headwater.scheduling.bands import ANSWERED_TIERS, TIERS, Band
from headwater.settings.model import GatewaySettings

NAME: Final = "openai_chat"
"""What `Request.dialect` says for requests read here."""

HINTS: Final = tuple(row.path for row in TOP_LEVEL if row.kind == "hint")
LOGIT_BIAS_COUNT_MAX: Final = 300
TOP_LOGPROBS_MAX: Final = 20
MODEL_BYTES_MAX: Final = 256
OUTPUT_TOKENS_MAX: Final = 2**31 - 1
_DECODER: Final = msgspec.json.Decoder(ChatCompletionRequest)
_TOKEN_ID: Final = re.compile(r"[0-9]{1,9}")


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """A request read and checked.

    ignored: hints that were given, for `x-headwater-ignored`. include_usage is only ever true of a stream.
    service_tier: the one that serves it, as the answer says it; None when none was asked for.
    """

    model: str
    is_stream: bool
    include_usage: bool
    chat: Chat
    band: Band = Band.STANDARD
    service_tier: str | None = None
    ignored: tuple[str, ...] = ()


def parse(body: bytes, limits: GatewaySettings) -> Parsed:
    """Read a request body.

    Raises InvalidRequest, UnsupportedField or UnsupportedValue (all 400), with `param` in OpenAI's spelling and a
    message that says what was wrong, the limit and the value given.
    """
    wire = decode(body, _DECODER, depth_max=limits.json_depth_max)
    if not 0 < len(wire.model.encode()) <= MODEL_BYTES_MAX:
        raise InvalidRequest(f"`model` must be a name of 1 to {MODEL_BYTES_MAX} bytes.", param="model")
    _check_promises(wire)
    messages = read_messages(wire.messages, limits.messages_count_max)
    tools, tools_bytes = read_tools(wire.tools or (), limits)
    response_format, format_bytes = read_response_format(wire.response_format, limits)
    is_stream, include_usage = _stream(wire)
    band = Band.STANDARD if wire.service_tier is None else TIERS[wire.service_tier]
    return Parsed(
        model=wire.model,
        is_stream=is_stream,
        include_usage=include_usage,
        ignored=_ignored(wire),
        band=band,
        service_tier=None if wire.service_tier is None else ANSWERED_TIERS[band],
        chat=Chat(
            messages=messages,
            tools=tools,
            tool_choice=read_tool_choice(wire.tool_choice, tools),
            is_parallel_tool_calls=wire.parallel_tool_calls,
            response_format=response_format,
            sampling=_sampling(wire),
            stop=_stop(wire.stop, limits),
            output_tokens_max=_output_tokens_max(wire),
            choices_count=_choices_count(wire.n, limits.choices_count_max),
            logprobs_top_count=_logprobs_top_count(wire),
            text_bytes=sum(map(message_bytes, messages)) + tools_bytes + format_bytes,
        ),
    )


def _check_promises(wire: ChatCompletionRequest) -> None:
    """Refuse values that would be a promise this platform doesn't keep."""
    if wire.modalities is not None and wire.modalities != ["text"]:
        raise UnsupportedValue(
            f'`modalities` must be ["text"]: the models answer in text; given {short(wire.modalities)}.',
            param="modalities",
        )
    if wire.service_tier is not None and wire.service_tier not in TIERS:
        raise UnsupportedValue(
            f"`service_tier` must be one of {', '.join(map(repr, TIERS))}; given {short(wire.service_tier)}.",
            param="service_tier",
        )
    if wire.store:
        raise UnsupportedValue("`store` must be false: completions are not stored here.", param="store")
    if wire.metadata is not None:
        if len(wire.metadata) > 16:
            raise InvalidRequest(
                f"`metadata` may have at most 16 entries; given {len(wire.metadata)}.", param="metadata"
            )
        for name, value in wire.metadata.items():
            if len(name) > 64 or len(value) > 512:
                raise InvalidRequest(
                    f"`metadata` names may have 64 characters and values 512; given {len(name)} and {len(value)}.",
                    param="metadata",
                )
    if wire.safety_identifier is not None and len(wire.safety_identifier) > 128:
        raise InvalidRequest(
            f"`safety_identifier` may have 128 characters; given {len(wire.safety_identifier)}.",
            param="safety_identifier",
        )


def _ignored(wire: ChatCompletionRequest) -> tuple[str, ...]:
    names = [name for name in HINTS if getattr(wire, name) is not None]
    if (response_format := wire.response_format) is not None and (wanted := response_format.json_schema) is not None:
        names += ["response_format.json_schema.description"] if wanted.description is not None else []
    return tuple(names)


def _stream(wire: ChatCompletionRequest) -> tuple[bool, bool]:
    """(is_stream, include_usage)."""
    options = wire.stream_options
    if options is None:
        return wire.stream is True, False
    if not wire.stream:
        raise InvalidRequest("`stream_options` is only allowed with `stream: true`.", param="stream_options")
    if options.include_obfuscation:
        raise UnsupportedValue(
            "`stream_options.include_obfuscation` must be false: chunks are never padded.",
            param="stream_options.include_obfuscation",
        )
    return True, options.include_usage is True


def _sampling(wire: ChatCompletionRequest) -> Sampling:
    _check_range("temperature", wire.temperature, 0, 2)
    _check_range("top_p", wire.top_p, 0, 1)
    _check_range("presence_penalty", wire.presence_penalty, -2, 2)
    _check_range("frequency_penalty", wire.frequency_penalty, -2, 2)
    _check_range("seed", wire.seed, -(2**63), 2**63 - 1)
    return Sampling(
        temperature=wire.temperature,
        top_p=wire.top_p,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        seed=wire.seed,
        logit_bias=_logit_bias(wire.logit_bias) if wire.logit_bias else None,
    )


def _check_range(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise InvalidRequest(f"`{name}` must be from {least} to {most}; given {short(value)}.", param=name)


def _logit_bias(biases: dict[str, float]) -> dict[str, float]:
    if len(biases) > LOGIT_BIAS_COUNT_MAX:
        raise InvalidRequest(
            f"`logit_bias` may have {LOGIT_BIAS_COUNT_MAX} entries; given {len(biases)}.", param="logit_bias"
        )
    for token, bias in biases.items():
        if not _TOKEN_ID.fullmatch(token):
            raise InvalidRequest(
                f"`logit_bias` keys must be token ids (whole numbers); given {short(token)}.", param="logit_bias"
            )
        if not -100 <= bias <= 100:
            raise InvalidRequest(
                f"`logit_bias` values must be from -100 to 100; given {short(bias)} for token {token}.",
                param="logit_bias",
            )
    return biases


def _stop(stop: str | list[str] | None, limits: GatewaySettings) -> tuple[str, ...]:
    sequences = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(sequences) > limits.stop_count_max:
        raise InvalidRequest(
            f"`stop` may have {limits.stop_count_max} sequences; given {len(sequences)}.", param="stop"
        )
    for position, sequence in enumerate(sequences):
        size = len(sequence.encode())
        if not 0 < size <= limits.stop_bytes_max:
            param = "stop" if isinstance(stop, str) else f"stop[{position}]"
            raise InvalidRequest(f"`{param}` must have 1 to {limits.stop_bytes_max} bytes; given {size}.", param=param)
    return sequences


def _output_tokens_max(wire: ChatCompletionRequest) -> int | None:
    _check_range("max_completion_tokens", wire.max_completion_tokens, 1, OUTPUT_TOKENS_MAX)
    _check_range("max_tokens", wire.max_tokens, 1, OUTPUT_TOKENS_MAX)
    if wire.max_completion_tokens is None:
        return wire.max_tokens
    if wire.max_tokens not in (None, wire.max_completion_tokens):
        raise InvalidRequest(
            f"`max_tokens` ({wire.max_tokens}) and `max_completion_tokens` ({wire.max_completion_tokens}) differ, "
            "but mean the same; give one of them.",
            param="max_tokens",
        )
    return wire.max_completion_tokens


def _choices_count(n: int | None, choices_count_max: int) -> int:
    _check_range("n", n, 1, choices_count_max)
    return 1 if n is None else n


def _logprobs_top_count(wire: ChatCompletionRequest) -> int | None:
    if wire.top_logprobs is None:
        return 0 if wire.logprobs else None
    if not wire.logprobs:
        raise InvalidRequest("`top_logprobs` is only allowed with `logprobs: true`.", param="top_logprobs")
    _check_range("top_logprobs", wire.top_logprobs, 0, TOP_LOGPROBS_MAX)
    return wire.top_logprobs
