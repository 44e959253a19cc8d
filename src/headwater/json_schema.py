"""JSON schemas that came from a caller: are they sound enough to rely on, and does a value fit one?

A caller's schema is untrusted: it may be wrong, hang a validator (`$ref` bombs, regular expressions) or point at other
hosts. `fault` finds what is wrong with one; `Fit` asks the `jsonschema` library under a bound of steps, with everything
local.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
import referencing
from jsonschema import Draft202012Validator, ValidationError, validators
from referencing.exceptions import Unresolvable

Schema = dict[str, Any] | bool

STEPS_MAX: Final = 20_000
"""Keyword checks one value may take (about 0.1 s); beyond it the value is treated as not fitting."""

_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_ONE_SCHEMA: Final = frozenset(
    {"items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else",
     "unevaluatedItems", "unevaluatedProperties"}
)  # fmt: skip
_SCHEMAS_BY_NAME: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_SCHEMA_LIST: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_UNCHECKED: Final = frozenset(
    {"pattern", "patternProperties", "format", "unevaluatedItems", "unevaluatedProperties",
     "$id", "$schema", "$anchor", "$vocabulary", "$dynamicAnchor", "$dynamicRef"}
)  # fmt: skip


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a schema.

    path: where, from the schema's root (`properties.city.type`); what: a phrase after it.
    """

    path: str
    what: str


def fault(schema: dict[str, Any]) -> Fault | None:
    """The first thing wrong with a schema, or None.

    Only keywords a validator acts on are looked at; the rest may hold anything.

    Linear in the schema's size; recursive, so the caller has bounded its depth. A `$ref` must point to a schema within
    the same document.
    """
    seen: set[int] = set()
    refs: list[tuple[str, str]] = []
    for found in _faults(schema, "", seen, refs):
        return found
    for path, ref in refs:
        target = _pointed_at(schema, ref)
        if not isinstance(target, bool) and id(target) not in seen:
            return Fault(
                path, f"must point to a schema within the same document, such as `#/$defs/name`; given {short(ref)}"
            )
    return None


def _faults(schema: object, path: str, seen: set[int], refs: list[tuple[str, str]]) -> Iterator[Fault]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield Fault(path, f"must be a schema (an object or a boolean); given {short(schema)}")
        return
    seen.add(id(schema))
    for keyword, value in schema.items():
        here = f"{path}.{keyword}" if path else keyword
        if keyword in _ONE_SCHEMA:
            yield from _faults(value, here, seen, refs)
        elif keyword in _SCHEMAS_BY_NAME:
            if not isinstance(value, dict):
                yield Fault(here, f"must be an object of schemas; given {short(value)}")
                return
            for name, item in value.items():
                yield from _faults(item, f"{here}.{name[:64]}", seen, refs)
        elif keyword in _SCHEMA_LIST:
            if not isinstance(value, list) or not value:
                yield Fault(here, f"must be an array of at least one schema; given {short(value)}")
                return
            for position, item in enumerate(value):
                yield from _faults(item, f"{here}[{position}]", seen, refs)
        elif (check := _VALUE_CHECKS.get(keyword)) is not None:
            is_sound, expected = check
            if not is_sound(value):
                yield Fault(here, f"must be {expected}; given {short(value)}")
            elif keyword == "$ref":
                refs.append((here, value))


def _is_type(value: object) -> bool:
    return (
        value in _TYPES
        if isinstance(value, str)
        else isinstance(value, list) and all(isinstance(name, str) and name in _TYPES for name in value)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_NUMBER: Final = (_is_number, "a number")
_COUNT: Final = (_is_count, "a whole number ≥ 0")
_STRING: Final = (lambda value: isinstance(value, str), "a string")
_VALUE_CHECKS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "type": (_is_type, "a JSON type or an array of them"),
    "enum": (lambda value: isinstance(value, list), "an array"),
    "required": (_is_names, "an array of strings"),
    "dependentRequired": (
        lambda value: isinstance(value, dict) and all(map(_is_names, value.values())), "an object of arrays of strings",
    ),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains",
        "maxContains"), _COUNT
    ),
    **dict.fromkeys(("pattern", "format", "$ref", "$dynamicRef", "$id", "$anchor", "$dynamicAnchor"), _STRING),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
}  # fmt: skip


def _pointed_at(document: object, ref: str) -> object:
    """What a local JSON Pointer reference (RFC 6901) points at; None when it isn't local or points nowhere."""
    if ref != "#" and not ref.startswith("#/"):
        return None
    node = document
    for token in ref[2:].split("/") if len(ref) > 1 else []:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and re.fullmatch(r"[0-9]{1,6}", key) and int(key) < len(node):
            node = node[int(key)]
        else:
            return None
    return node


def short(value: object) -> str:
    """A value as JSON for an error message, at most 60 characters of it."""
    text = json.dumps(value, ensure_ascii=False)  # msgspec can't write whole numbers above 64 bits
    return text if len(text) <= 60 else text[:57] + "…"


class _OutOfStepsError(Exception):
    """A check took more keyword checks than it may."""


class Fit:
    """Whether values fit one sound schema (`fault` found none), by JSON Schema 2020-12 less what isn't safe to ask.


    Not asked: `pattern` and `patternProperties` (a caller's regular expression can backtrack for years), `format` (an
    annotation), `unevaluated…` and dynamic references. Where `patternProperties` stands, `additionalProperties` beside
    it isn't asked either. So a value can be said to fit that breaks a pattern; never the other way round, except under
    `not`, `oneOf` and `if`.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        """schema: kept by reference until the first question, when the validator is made from a copy."""
        self._schema = schema
        self._is_valid: Callable[[object], bool] | None = None
        self._steps_left = 0

    def fits(self, value: object) -> bool:
        """Whether the value fits; False also when finding out takes more than STEPS_MAX steps or endless recursion."""
        if self._is_valid is None:
            self._is_valid = self._compile()
        self._steps_left = STEPS_MAX
        try:
            return self._is_valid(value)
        except (_OutOfStepsError, RecursionError):
            return False
        except Unresolvable:  # a reference into a keyword that isn't asked
            return False

    def _compile(self) -> Callable[[object], bool]:
        def counted(check: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any) -> Any:
                self._steps_left -= 1
                if self._steps_left < 0:
                    raise _OutOfStepsError
                return check(*arguments)

            return step

        checks: dict[str, Callable[..., Any]] = {**Draft202012Validator.VALIDATORS, "uniqueItems": _unique_items}
        extend: Callable[..., Any] = validators.extend
        bounded = extend(Draft202012Validator, {name: counted(check) for name, check in checks.items()})
        # An empty registry: with none given, the library would fetch unknown references over HTTP.
        validator = bounded(_askable(self._schema), registry=referencing.Registry())
        return lambda value: bool(validator.is_valid(value))


def _unique_items(_validator: Any, is_wanted: bool, items: object, _schema: object) -> Iterator[Exception]:
    """Linear `uniqueItems`: the library's own compares every pair when items can't be sorted."""
    if is_wanted and isinstance(items, list):
        encoded = {json.dumps(_whole(item), sort_keys=True) for item in items}
        if len(encoded) < len(items):
            yield ValidationError("items are not unique")


def _whole(value: object) -> object:
    """The value with 1.0 written as 1: equal numbers are equal in JSON Schema."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value


def _askable(schema: Any) -> Any:
    """A copy of a schema without the keywords in _UNCHECKED."""

    def asked(keywords: dict[str, Any]) -> dict[str, Any]:
        unasked = _UNCHECKED | {"additionalProperties"} if "patternProperties" in keywords else _UNCHECKED
        return {keyword: value for keyword, value in keywords.items() if keyword not in unasked}

    return _mapped(schema, asked)


def moved(schema: dict[str, Any], pointer: str) -> dict[str, Any]:
    """A copy of a sound schema for use inside another one, at pointer (`#/items`): its references start from there."""

    def rebased(keywords: dict[str, Any]) -> dict[str, Any]:
        ref = keywords.get("$ref")
        return keywords if ref is None else {**keywords, "$ref": pointer + ref.removeprefix("#")}

    copy: dict[str, Any] = _mapped(schema, rebased)
    return copy


def _mapped(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy of a sound schema with `change` done wherever keywords are keywords and not names of properties."""
    if not isinstance(schema, dict):
        return schema
    kept = change(schema)
    for keyword, value in kept.items():
        if keyword in _ONE_SCHEMA:
            kept = {**kept, keyword: _mapped(value, change)}
        elif keyword in _SCHEMAS_BY_NAME:
            kept = {**kept, keyword: {name: _mapped(item, change) for name, item in value.items()}}
        elif keyword in _SCHEMA_LIST:
            kept = {**kept, keyword: [_mapped(item, change) for item in value]}
    return kept
