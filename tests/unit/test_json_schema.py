"""A caller's schema is checked before it is relied on, and can't hurt the one who asks it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from headwater.json_schema import Fit, fault, moved

PERSON: dict[str, Any] = {
    "$defs": {"age": {"type": "integer", "minimum": 0}},
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"$ref": "#/$defs/age"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True, "maxItems": 3},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "is_fit"),
    [
        ({"name": "Ada"}, True),
        ({"name": "Ada", "age": 36, "tags": ["a", 1]}, True),
        ({"name": "Ada", "age": 36.0}, True),
        ({"name": ""}, False),
        ({"name": "Ada", "age": -1}, False),
        ({"name": "Ada", "age": True}, False),
        ({"name": "Ada", "age": "36"}, False),
        ({"name": "Ada", "tags": ["c"]}, False),
        ({"name": "Ada", "tags": ["a", "a"]}, False),
        ({"name": "Ada", "tags": [1, 1.0]}, False),
        ({"name": "Ada", "more": 1}, False),
        ({"age": 1}, False),
        ([], False),
        (None, False),
    ],
)
def test_values_fit_or_not(value: Any, is_fit: bool) -> None:
    assert fault(PERSON) is None
    assert Fit(PERSON).fits(value) is is_fit


def test_faults_name_their_place() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"properties": {"a": {"items": 3}}}, "properties.a.items"),
        ({"anyOf": [True, {"minimum": "1"}]}, "anyOf[1].minimum"),
        ({"$defs": []}, "$defs"),
        ({"dependentRequired": {"a": "b"}}, "dependentRequired"),
        ({"maxItems": True}, "maxItems"),
        ({"maxItems": -1}, "maxItems"),
        ({"type": ["string", "text"]}, "type"),
        ({"uniqueItems": 1}, "uniqueItems"),
        ({"not": {"$ref": "other.json"}}, "not.$ref"),
    ]
    for schema, path in cases:
        found = fault(schema)
        assert found is not None
        assert found.path == path


def test_what_is_only_a_name_is_no_keyword() -> None:
    schema = {
        "properties": {"pattern": {"type": "string"}, "$ref": {"type": "integer"}, "type": {}},
        "default": {"type": 5},
    }
    assert fault(schema) is None
    fit = Fit(schema)
    assert fit.fits({"pattern": "(", "$ref": 1})
    assert not fit.fits({"pattern": 1})


def test_regular_expressions_are_not_asked() -> None:
    hostile = "^(a+)+$"
    schema = {
        "properties": {"a": {"pattern": hostile, "type": "string"}},
        "patternProperties": {hostile: {"type": "integer"}},
        "additionalProperties": False,
        "propertyNames": {"pattern": hostile},
        "unevaluatedProperties": False,
    }
    assert fault(schema) is None
    assert Fit(schema).fits({"a": "a" * 40 + "!", "a" * 40 + "!": "x"})
    assert not Fit(schema).fits({"a": 3})


@pytest.mark.timeout(60)  # unbounded, the first alone would take years
def test_no_schema_takes_more_than_its_steps() -> None:
    doubling = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {}}
    endless = {
        "properties": {"a": {"$ref": "#"}},
        "allOf": [{"$ref": "#/$defs/self"}],
        "$defs": {"self": {"$ref": "#/$defs/self"}},
    }
    many = {"items": {"anyOf": [{"required": [str(n)]} for n in range(200)]}}
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"$defs": doubling, "$ref": "#/$defs/d0"}, {}),
        (endless, {}),
        (many, [{}] * 5000),
    ]
    for schema, value in cases:
        assert fault(schema) is None
        assert not Fit(schema).fits(value)
    assert Fit({"uniqueItems": True}).fits([{"n": n} for n in range(20_000)])


def test_a_reference_into_what_is_not_asked_fits_nothing() -> None:
    schema = {"patternProperties": {"x": {}}, "properties": {"a": {"$ref": "#/patternProperties/x"}}}
    assert fault(schema) is None
    assert not Fit(schema).fits({"a": 1})


@pytest.mark.filterwarnings("error")
def test_nothing_is_fetched() -> None:
    schema = {
        "$schema": "http://127.0.0.1:9/draft",
        "$id": "http://127.0.0.1:9/id",
        "properties": {"a": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {"type": "string"}},
    }
    assert Fit(schema).fits({"a": "s"})
    assert not Fit(schema).fits({"a": 1})


def test_a_moved_schema_means_the_same() -> None:
    outer = {"type": "object", "properties": {"person": moved(PERSON, "#/properties/person")}}
    assert outer["properties"]["person"]["properties"]["age"] == {"$ref": "#/properties/person/$defs/age"}  # type: ignore[index]
    for value, is_fit in [
        ({"person": {"name": "Ada", "age": 3}}, True),
        ({"person": {"name": "Ada", "age": -3}}, False),
    ]:
        assert Fit(outer).fits(value) is is_fit
    assert PERSON["properties"]["age"] == {"$ref": "#/$defs/age"}
    assert moved({"properties": {"next": {"$ref": "#"}}}, "#/items") == {"properties": {"next": {"$ref": "#/items"}}}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "", "a", "bc"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
_LEAVES = st.one_of(
    st.just(True),
    st.sampled_from(["string", "integer", "object", "array", "null"]).map(lambda name: {"type": name}),
    st.lists(_VALUES, max_size=3).map(lambda values: {"enum": values}),
    st.integers(0, 2).map(lambda count: {"minItems": count, "minLength": count, "maximum": count, "uniqueItems": True}),
)
_SCHEMAS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("ab"), inner).map(
            lambda named: {"properties": named, "required": list(named)[:1]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"oneOf": several}),
        inner.map(lambda one: {"items": one, "additionalProperties": False}),
        inner.map(lambda one: {"not": one}),
    ),
    max_leaves=6,
).map(lambda schema: schema if isinstance(schema, dict) else {})


@given(_SCHEMAS, _VALUES)
def test_agrees_with_the_library_where_everything_may_be_asked(schema: dict[str, Any], value: Any) -> None:
    assert fault(schema) is None
    assert Fit(schema).fits(value) == Draft202012Validator(schema).is_valid(value)
