"""What every engine's stream must mean, however its bytes are cut. One decoder reads them all."""

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.engines.openai_stream import BAD_LINES_MAX, OpenAIStreamDecoder
from headwater.engines.sse import LINE_BYTES_MAX
from headwater.errors import EngineFailed
from headwater.events import Event, Failed, Finished, Started, Text, UsageReport
from tests.unit.engines import streams
from tests.unit.engines.streams import Recorded


def read(*pieces: bytes, decoder: OpenAIStreamDecoder | None = None) -> list[Event]:
    """Events until the first failure or `[DONE]`, which is where the life of a request stops reading."""
    decoder = decoder or OpenAIStreamDecoder()
    events: list[Event] = []
    for piece in pieces:
        for event in decoder.feed(piece):
            events.append(event)
            if isinstance(event, Failed):
                return events
        if decoder.is_done:
            break
    return events


@pytest.fixture(params=streams.ALL)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return streams.ALL[request.param]


def check(recorded: Recorded, events: list[Event]) -> None:
    if recorded.is_failed:
        assert events
        assert isinstance(events[-1], Failed)
        events = events[:-1]
    assert events == recorded.events


def test_a_stream_in_one_piece(recorded: Recorded) -> None:
    decoder = OpenAIStreamDecoder()
    check(recorded, read(recorded.data, decoder=decoder))
    assert decoder.bad_lines_count == recorded.bad_lines_count
    assert decoder.lying_reports_count == recorded.lying_reports_count


def test_a_stream_cut_at_every_byte_border(recorded: Recorded) -> None:
    data = recorded.data
    for position in range(len(data) + 1):
        check(recorded, read(data[:position], data[position:]))


def test_a_stream_byte_by_byte(recorded: Recorded) -> None:
    check(recorded, read(*(bytes([byte]) for byte in recorded.data)))


@pytest.mark.parametrize("name", streams.ALL)
@settings(max_examples=50)
@given(data=st.data())
def test_a_stream_in_any_pieces(name: str, data: st.DataObject) -> None:
    recorded = streams.ALL[name]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(recorded.data)), max_size=20)))
    borders = [0, *cuts, len(recorded.data)]
    check(recorded, read(*(recorded.data[start:end] for start, end in itertools.pairwise(borders))))


@pytest.mark.parametrize(
    "name", [name for name, one in streams.ALL.items() if not one.is_failed and b"[DONE]" in one.data]
)
def test_done_is_noticed(name: str) -> None:
    decoder = OpenAIStreamDecoder()
    read(streams.ALL[name].data, decoder=decoder)
    assert decoder.is_done


def test_every_stream_that_ends_well_has_one_end_and_one_beginning(recorded: Recorded) -> None:
    assert sum(isinstance(event, Finished) for event in recorded.events) <= 1
    assert sum(isinstance(event, Started) for event in recorded.events) <= 1
    if recorded.events:
        assert isinstance(recorded.events[0], Started)


def test_an_error_of_the_engine_does_not_show_its_words() -> None:
    failed = read(streams.ERROR_IN_THE_MIDDLE.data)[-1]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, EngineFailed)
    assert "sk-secret" not in failed.error.message


def test_a_few_bad_lines_are_passed_over_and_one_more_is_the_end() -> None:
    good = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    damaged = read(b"data: ?\n\n" * BAD_LINES_MAX + good)
    assert damaged == [Started(), Text("a")]
    garbage = read(b"data: ?\n\n" * (BAD_LINES_MAX + 1) + good)
    assert [type(event) for event in garbage] == [Failed]


def test_a_line_without_end_is_a_failure_not_a_full_memory() -> None:
    decoder = OpenAIStreamDecoder()
    piece = b"x" * (2**20)
    events = read(*[piece] * (LINE_BYTES_MAX // 2**20 + 1), decoder=decoder)
    assert [type(event) for event in events] == [Failed]


def test_json_nested_too_deep_is_a_bad_line() -> None:
    decoder = OpenAIStreamDecoder()
    assert read(b'data: {"error":' + b"[" * 100_000 + b"\n\n", decoder=decoder) == []
    assert decoder.bad_lines_count == 1


@given(st.lists(st.binary(max_size=200), max_size=20))
@example([b"data: [DONE]\n", b"data: {}\n"])
@example([b'data: {"choices":[{"delta":{"tool_calls":[{"index":99999999999999999999}]}}]}\n'])
def test_random_bytes_raise_nothing(pieces: list[bytes]) -> None:
    read(*pieces)


_names = st.sampled_from(
    [
        *("choices", "delta", "content", "finish_reason", "usage", "prompt_tokens", "completion_tokens", "timings"),
        *("error", "tool_calls", "index", "function", "arguments", "logprobs", "prompt_progress", "predicted_n"),
    ]
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(_names, _json, max_size=5), max_size=10))
def test_random_json_raises_nothing_and_never_yields_a_negative_count(chunks: list[dict[str, object]]) -> None:
    for event in read(*(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)):
        usage = getattr(event, "usage", None)
        if usage is not None:
            assert min(usage.uncached_input, usage.cache_read, usage.output, usage.reasoning) >= 0


class _Recount:
    """Of a request that was read in two calls."""

    def __init__(self, cached_tokens_max: int | None) -> None:
        self.cached_tokens_max = cached_tokens_max


@pytest.mark.parametrize(("most", "expected"), [(None, 884), (0, 0), (5, 5), (884, 884)])
def test_what_a_request_itself_has_read_in_an_earlier_call_is_no_cached_input(most: int | None, expected: int) -> None:
    timings = {"cache_n": 884, "prompt_n": 1, "predicted_n": 1}
    closing = {"prompt_tokens": 885, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 884}}
    running = {"choices": [{"delta": {"content": "The"}}], "timings": timings}
    for event in (running, {"choices": [], "usage": closing}, {"choices": [], "usage": closing, "timings": timings}):
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        for said in read(data, decoder=OpenAIStreamDecoder(_Recount(most))):
            if isinstance(said, UsageReport):
                assert (said.usage.uncached_input, said.usage.cache_read) == (885 - expected, expected)
                assert said.usage.output == 1
