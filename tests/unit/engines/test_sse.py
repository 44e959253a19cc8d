import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.engines.sse import LINE_BYTES_MAX, LineTooLong, SSEParser

STREAM = (
    b": ping\n\nevent: message\nid: 7\nretry: 10\ndata: one\n\ndata:two\r\n\r\ndata:  three \r\n\n\r\n"
    b'data: {"a":"\xe4\xbd\xa0"}\n\ndatafield: no\n data: no\ndata: [DONE]\n\ndata: cut off'
)
PAYLOADS = [b"one", b"two", b"three", '{"a":"你"}'.encode(), b"[DONE]"]


def test_payloads_are_those_of_the_data_lines() -> None:
    assert SSEParser().feed(STREAM) == PAYLOADS


def test_a_cut_at_any_byte_changes_nothing() -> None:
    for position in range(len(STREAM) + 1):
        parser = SSEParser()
        assert parser.feed(STREAM[:position]) + parser.feed(STREAM[position:]) == PAYLOADS


def test_byte_by_byte_changes_nothing() -> None:
    parser = SSEParser()
    assert [payload for byte in STREAM for payload in parser.feed(bytes([byte]))] == PAYLOADS


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_in_any_pieces_parse_alike(pieces: list[bytes]) -> None:
    one, other = SSEParser(), SSEParser()
    assert [payload for piece in pieces for payload in one.feed(piece)] == other.feed(b"".join(pieces))


def test_a_line_without_end_is_refused_and_one_at_the_bound_is_not() -> None:
    parser = SSEParser()
    assert parser.feed(b"x" * LINE_BYTES_MAX) == []
    with pytest.raises(LineTooLong):
        parser.feed(b"x")
