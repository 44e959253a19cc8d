"""JSON bytes to a wire struct, and a failed decode to the error its caller reads.

`msgspec` says where it stopped as `$.messages[2].role`; OpenAI's `param` says `messages[2].role`. A field that the
table in `fields` refuses is `unsupported_field` or `unsupported_value` with the table's advice; one it doesn't know
gets the nearest name it does.
"""

import json
import re
from typing import Any, Final, TypeVar

import msgspec

from headwater.dialects import fields
from headwater.dialects.json_depth import is_deeper
from headwater.errors import InvalidRequest, UnsupportedField, UnsupportedValue

T = TypeVar("T")

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_INVALID_VALUE: Final = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)
_PART_TYPES: Final = frozenset({"image_url", "input_audio", "file"})


def decode(body: bytes, decoder: msgspec.json.Decoder[T], *, depth_max: int) -> T:
    """Decode a request body.

    Raises InvalidRequest (not JSON, too deep, a wrong type, a field missing), UnsupportedField or UnsupportedValue,
    with `param`.
    """
    if is_deeper(body, depth_max):
        raise too_deep(depth_max, None)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        return _again_without_nulls(body, decoder, error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(error, None) from error
    except RecursionError as error:  # depth_max is set higher than the interpreter can follow
        raise too_deep(depth_max, None) from error


def too_deep(depth_max: int, param: str | None) -> InvalidRequest:
    """The error for JSON nested too deep."""
    return InvalidRequest(
        f"{_name(param)} nests arrays and objects deeper than {depth_max} levels, the limit.", param=param
    )


def not_json(error: msgspec.DecodeError | UnicodeDecodeError, param: str | None) -> InvalidRequest:
    """The error for bytes that aren't JSON: malformed, cut short, not UTF-8, or with half a surrogate pair."""
    reason = "it is not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    return InvalidRequest(f"{_name(param)} is not valid JSON: {reason}.", param=param, code="invalid_json")


def _name(param: str | None) -> str:
    return f"`{param}`" if param else "The request body"


def _again_without_nulls(body: bytes, decoder: msgspec.json.Decoder[T], error: msgspec.ValidationError) -> T:
    """Try once more without refused fields that are null, which means they aren't given; else the refusal.

    Kept off the fast path: only some clients write every field they know, null where unset.
    """
    if _UNKNOWN.match(str(error)) is None:
        raise refusal(error) from error
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as syntax:
        raise not_json(syntax, None) from syntax
    if not _drop_null_refused(document):
        raise refusal(error) from error
    try:
        return decoder.decode(json.dumps(document))
    except msgspec.ValidationError as second:
        raise refusal(second) from second


def _drop_null_refused(document: Any) -> bool:
    """Remove refused fields that are null from a request and its messages; False when there was none."""
    if not isinstance(document, dict):
        return False
    messages = document.get("messages")
    places = [("", document)]
    if isinstance(messages, list):
        places += [("messages[].", message) for message in messages if isinstance(message, dict)]
    dropped = False
    for prefix, place in places:
        for name in [name for name, value in place.items() if value is None]:
            row = fields.find(prefix + name)
            if row is not None and row.kind == "refused":
                del place[name]
                dropped = True
    return dropped


def refusal(error: msgspec.ValidationError) -> InvalidRequest:
    """The error a caller reads for a body of the wrong shape."""
    what, at, place = str(error).rpartition(" - at `")
    what, path = (what, _param(place.removesuffix("`"))) if at else (place, "")
    if unknown := _UNKNOWN.match(what):
        return _unknown_field(f"{path}.{unknown[1]}" if path else unknown[1])
    if missing := _MISSING.match(what):
        param = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"`{param}` is required.", param=param, code="missing_field")
    if invalid := _INVALID_VALUE.match(what):
        return _unsupported_value(path, invalid[1])
    return InvalidRequest(
        f"{_name(path or None)}: {what[:1].lower()}{what[1:]}.", param=path or None, code="invalid_type"
    )


def _param(path: str) -> str:
    """`$.messages[2].role` → `messages[2].role`; `[...]`, any key of an object, names the object."""
    return path.removeprefix("key in ").removeprefix("$").removeprefix(".").split("[...]")[0]


def _unknown_field(param: str) -> UnsupportedField:
    shown = param if len(param) <= 100 else param[:99] + "…"
    row = fields.find(param)
    if row is not None and row.kind == "refused":
        return UnsupportedField(f"`{shown}` is not supported. {row.note}", param=shown)
    near = fields.close_match(param)
    advice = (
        f" Did you mean `{near}`?" if near else " It is no field of the OpenAI chat-completions request; leave it out."
    )
    return UnsupportedField(f"`{shown}` is not supported.{advice}", param=shown)


def _unsupported_value(param: str, given: str) -> UnsupportedValue:
    shown = given if len(given) <= 80 else given[:79] + "…"
    if param.endswith(".type") and given.strip("'") in _PART_TYPES:
        part = param.removesuffix(".type")
        return UnsupportedValue(f"`{part}` is of type {shown}, but the models here take text only.", param=part)
    if param.endswith(".role") and given == "'function'":
        return UnsupportedValue(
            f"`{param}` 'function' is not supported. Use role `tool` with `tool_call_id`, which replaced it.",
            param=param,
        )
    row = fields.find(param)
    expected = f" Expected {row.constraint}." if row is not None and row.constraint else ""
    return UnsupportedValue(f"`{param}` has the unsupported value {shown}.{expected}", param=param)
