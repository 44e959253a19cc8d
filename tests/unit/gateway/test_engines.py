import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import EngineFailed, InvalidRequest, Overloaded, PlatformError
from headwater.gateway.engines import ERROR_MESSAGE_CHARACTERS_MAX, refusal

SAID = json.dumps({"error": {"message": "context is 4096, key sk-secret", "type": "x", "code": 400}}).encode()


def refused(status: int, body: bytes = SAID, retry_after: str | None = None) -> PlatformError:
    return refusal(status, body, retry_after, "upstream 'acme'")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_complaint_about_the_request_goes_to_the_caller_in_the_engines_words(status: int) -> None:
    error = refused(status)
    assert isinstance(error, InvalidRequest)
    assert (error.status, error.code) == (400, "engine_refused")
    assert "context is 4096" in error.message


@pytest.mark.parametrize("status", [301, 302, 401, 402, 403, 404, 405, 408, 409, 500, 501, 502, 504, 529, 599, 204])
def test_everything_else_is_between_us_and_the_engine(status: int) -> None:
    error = refused(status)
    assert type(error) is EngineFailed
    assert str(status) in error.message
    assert "sk-secret" not in error.message


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "expected_s"),
    [
        (None, 5),
        ("", 5),
        ("17", 17),
        ("999999", 3600),
        ("9" * 5000, 3600),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 5),
        ("-3", 5),
        ("²", 5),  # a digit to `isdigit`, no number
    ],
)
def test_an_overloaded_engine_says_when_to_come_back(status: int, retry_after: str | None, expected_s: float) -> None:
    error = refused(status, retry_after=retry_after)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == expected_s
    assert "sk-secret" not in error.message


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"error":"text"}', b'{"error":{"message":7}}', b"\xff", b"["]
)
def test_a_refusal_without_words_says_that_too(body: bytes) -> None:
    assert "it gave no reason" in refused(400, body).message


def test_an_engines_words_are_bounded() -> None:
    body = json.dumps({"error": {"message": "x" * 100_000}}).encode()
    assert len(refused(400, body).message) < ERROR_MESSAGE_CHARACTERS_MAX + 100


@given(st.integers(100, 999), st.binary(max_size=200), st.none() | st.text(max_size=8))
def test_any_answer_is_an_error_of_ours(status: int, body: bytes, retry_after: str | None) -> None:
    assert refused(status, body, retry_after).status in (400, 502, 503)
