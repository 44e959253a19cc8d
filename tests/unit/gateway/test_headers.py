import pytest

from headwater.errors import InvalidRequest, UnsupportedMediaType
from headwater.gateway.headers import (
    REQUEST_ID_CHARACTERS_MAX,
    TAGS_COUNT_MAX,
    Headers,
    read_headers,
    read_tags,
    require_json,
)


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
        (b"idempotency-key", b"once"),
        (b"x-headwater-tags", b"a,b"),
    )
    assert headers == Headers("Bearer kéy", "k", "application/json", "gzip", 12, "theirs", "once", "a,b")
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


@pytest.mark.parametrize(
    ("sent", "tags"),
    [
        (None, ()),
        ("", ()),
        (" , ,", ()),
        ("search", ("search",)),
        ("search,night", ("search", "night")),
        (" b ,a\tb  a ", ("b", "a")),
        ("A.b_c:1-2", ("A.b_c:1-2",)),
        ("x" * 64, ("x" * 64,)),
        (",".join(["one"] * 50), ("one",)),
        (" ".join(str(n) for n in range(TAGS_COUNT_MAX)), tuple(str(n) for n in range(TAGS_COUNT_MAX))),
    ],
)
def test_tags_are_separated_by_commas_or_spaces_and_each_counts_once(sent: str | None, tags: tuple[str, ...]) -> None:
    assert read_tags(Headers(tags=sent)) == tags


def test_tags_in_several_headers_all_count() -> None:
    headers = read((b"x-headwater-tags", b"a, b"), (b"host", b"x"), (b"x-headwater-tags", b"b,c"))
    assert read_tags(headers) == ("a", "b", "c")


@pytest.mark.parametrize("sent", ["a/b", "x" * 65, "ü", "'", "a;b", "a\x01b", '"a"', "ok,no!"])
def test_what_can_be_no_tag_is_refused_and_shown_in_part(sent: str) -> None:
    with pytest.raises(InvalidRequest, match="is no tag; a tag has 1 to 64 letters") as refused:
        read_tags(Headers(tags=sent))
    assert (refused.value.status, refused.value.param) == (400, "x-headwater-tags")
    assert len(refused.value.message) < 300
    assert "\x01" not in refused.value.message


def test_more_tags_than_a_request_may_name_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"names {TAGS_COUNT_MAX + 1} tags; at most {TAGS_COUNT_MAX} may be"):
        read_tags(Headers(tags=",".join(str(n) for n in range(TAGS_COUNT_MAX + 1))))
