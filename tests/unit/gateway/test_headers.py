import pytest

from headwater.errors import UnsupportedMediaType
from headwater.gateway.headers import REQUEST_ID_CHARACTERS_MAX, Headers, read_headers, require_json


def read(*pairs: tuple[bytes, bytes]) -> Headers:
    return read_headers({"headers": list(pairs)})


def test_the_few_headers_that_matter_are_read_and_others_are_not() -> None:
    headers = read(
        (b"host", b"x"),
        (b"authorization", b"Bearer k\xe9y"),
        (b"x-api-key", b"k"),
        (b"content-type", b"application/json"),
        (b"content-encoding", b"gzip"),
        (b"content-length", b"12"),
        (b"x-request-id", b"theirs"),
    )
    assert headers == Headers("Bearer kéy", "k", "application/json", "gzip", 12, "theirs")
    assert read() == Headers()


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"abc-1", "abc-1"),
        (b"x" * 500, "x" * REQUEST_ID_CHARACTERS_MAX),
        (b"a\nb", None),
        (b"a\x1b[31m", None),
        (b"\x85", None),
        (b"", ""),
    ],
)
def test_a_clients_own_request_id_is_bounded_and_printable(sent: bytes, kept: str | None) -> None:
    assert read((b"x-request-id", sent)).client_request_id == kept


@pytest.mark.parametrize("sent", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_json_is_taken(sent: str) -> None:
    require_json(Headers(content_type=sent))
    require_json(Headers(content_type=sent, content_encoding="identity"))


@pytest.mark.parametrize(
    "sent", [None, "", "text/plain", "application/jsonp", "text/plain; application/json", "x" * 9999]
)
def test_anything_else_is_refused_and_said(sent: str | None) -> None:
    with pytest.raises(UnsupportedMediaType, match="must be application/json; given") as refused:
        require_json(Headers(content_type=sent))
    assert len(refused.value.message) < 250


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="gzip"):
        require_json(Headers(content_type="application/json", content_encoding="gzip"))
