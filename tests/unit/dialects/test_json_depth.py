"""Depth is told from bytes alone."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.dialects.json_depth import is_deeper

_TRICKY = st.text(alphabet='[]{}"\\a\u8bed', max_size=6)
_JSON = st.recursive(
    st.integers() | _TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TRICKY, inner, max_size=4),
    max_leaves=30,
)


def _depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 0


@given(_JSON, st.integers(1, 12), st.booleans())
def test_is_exact_for_valid_json(value: Any, depth_max: int, is_ascii: bool) -> None:
    assert is_deeper(json.dumps(value, ensure_ascii=is_ascii).encode(), depth_max) == (_depth(value) > depth_max)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 9,
        b"[{" * 9,
        b'{"a":' * 9,
        b'["\\\\",' * 9,
        b'["\\"[",' * 9,
        b"[}" + b"[" * 11,
        b'[[[[[[[[["\\',
        b'"\\"' + b'",' + b"[" * 9,
    ],
)
def test_unfinished_nesting_is_seen(body: bytes) -> None:
    assert is_deeper(body, 8)


@pytest.mark.parametrize(
    "piece", [b"[", b"[]", b"{}[", b"[[[[[[]]]]]],", b'"\\"', b"\\", b"]", b'["[', b"[" * 30 + b"]" * 30]
)
@pytest.mark.timeout(60)
def test_a_hostile_8_mib_body_takes_no_hours(piece: bytes) -> None:
    is_deeper(piece * (8 * 2**20 // len(piece)), 64)  # linear: about 0.3 s on a slow core; quadratic would be hours
