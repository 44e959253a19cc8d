"""What the fake engine can be told to do, and the three ways to tell it: defaults, a header, the model's name.

A request's knobs are the engine's defaults, then the header `x-fake-knobs`, then the suffix of the model's name
(`m:cut_after=7,gap_ms=5`); later ones win. An unknown knob is refused, so that a misspelt one can't make a test pass.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every knob with its default; the defaults together are a fast engine without a fault. `*_after` counts tokens."""

    # the answer
    tokens: Count | None = None  # exactly so many content tokens; None: drawn from the request id
    min_tokens: Count = 4
    max_tokens: Count = 24
    exact: bool = False  # as many tokens as the body's cap allows
    endless: bool = False  # never finishes; ignores the body's cap too
    reasoning: Count = 0  # so many reasoning tokens before the content ones
    tool_call: Count = 0  # so many native calls of the first declared (or the named) tool
    text: str = ""  # a canned text's name, or base64url without padding
    cached: Count = 0  # cached prompt tokens reported (at most the prompt)

    # pace and shape
    gap_ms: Milliseconds = 0.0  # between tokens
    batch: Annotated[int, msgspec.Meta(ge=1)] = 1  # tokens in one chunk
    big_chunk: Count = 0  # the first content token is padded to so many bytes
    drip: bool = False  # every byte is a write of its own
    step: bool = False  # every token waits for a permit (POST /step)
    slow_headers_ms: Milliseconds = 0.0  # after a slot is taken, before the status line
    prefill_ms: Milliseconds = 0.0
    prefill_step_ms: Milliseconds = 0.0  # a progress chunk so often, if the body asks (`return_progress`); 0: none
    tail_gap_ms: Milliseconds = 0.0  # between the chunk with finish_reason and what follows it
    timings: bool = True  # running counts in llama.cpp's shape, if the body asks (`timings_per_token`)
    continuous_usage: bool = True  # running counts in vLLM's shape, if the body asks (`continuous_usage_stats`)

    # faults
    cut_after: Count | None = None
    cut_mode: Literal["rst", "fin"] = "rst"  # also how close_immediately closes
    crash_after: Count | None = None  # the whole process exits with status 70
    stall_after: Count | None = None  # silence, the socket stays open
    silent: bool = False  # takes the request and never answers a byte
    close_immediately: bool = False
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    retry_after: Count | None = None  # the header's seconds, with status
    redirect: Count | None = None  # 302 to that port on loopback
    content_type_html: bool = False  # a web page with status 200
    garbage: bool = False  # the whole body is random bytes
    bad_json_after: Count | None = None  # one line that isn't JSON, then the stream goes on
    error_in_200_after: Count | None = None  # an error event inside the stream, which then ends
    no_finish: bool = False  # ends in good order, without a finish_reason
    no_usage: bool = False
    no_done: bool = False
    usage_negative: bool = False
    usage_absurd: bool = False
    usage_shift: int = 0  # added to the output tokens reported: a lie that looks true


KNOB_NAMES = frozenset(Knobs.__struct_fields__)


class KnobError(ValueError):
    """A knob that doesn't exist, or a value it can't take."""


def parse_knobs(text: str) -> dict[str, str]:
    """Read `cut_after=7,no_done` into a mapping of strings; a name alone means true. Names aren't checked here."""
    items = (item.strip().partition("=") for item in text.split(",") if item.strip())
    return {name: value if equals else "true" for name, equals, value in items}


def split_model(model: str) -> tuple[str, dict[str, str]]:
    """Split a model's name from its knobs: `m:silent` gives m and silent; `base:adapter` stays whole."""
    name, colon, tail = model.rpartition(":")
    if not colon or ("=" not in tail and not parse_knobs(tail).keys() & KNOB_NAMES):
        return model, {}
    return name, parse_knobs(tail)


def make_knobs(*layers: Mapping[str, object]) -> Knobs:
    """Merge layers, later ones winning; a value of None takes a knob back to its default. Raises KnobError."""
    merged = {name: value for layer in layers for name, value in layer.items()}
    try:
        return msgspec.convert({k: v for k, v in merged.items() if v is not None}, Knobs, strict=False)
    except msgspec.ValidationError as error:
        raise KnobError(str(error)) from error
