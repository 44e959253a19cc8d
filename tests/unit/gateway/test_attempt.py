import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import EngineFailed
from headwater.events import Event, Failed, Finished, Progress, Reasoning, Started, Text, ToolCallDelta, UsageReport
from headwater.gateway.attempt import Attempt
from headwater.usage import NO_USAGE, Outcome, Usage, UsageSource
from tests.unit.gateway.chats import chat

TEXT, THOUGHT, CALL = Text("a"), Reasoning("b"), ToolCallDelta(0, "call_1", "f", "{}")


def attempt(*events: Event, text_bytes: int = 40) -> Attempt:
    made = Attempt(0, "m", chat(text_bytes=text_bytes, output_tokens_max=100), queued_at_s=1.5)
    for event in events:
        made.observe([event])
    return made


def report(output: int, *, is_final: bool, uncached: int = 30, cached: int = 10, reasoning: int = 0) -> UsageReport:
    return UsageReport(Usage(uncached_input=uncached, cache_read=cached, output=output, reasoning=reasoning), is_final)


@pytest.mark.parametrize(
    ("events", "usage", "source"),
    [
        # the engine's closing count, whatever we counted
        ([TEXT, TEXT, Finished("stop"), report(3, is_final=True)], report(3, is_final=True).usage, "reported"),
        ([TEXT, TEXT, Finished("stop"), report(1, is_final=True)], report(1, is_final=True).usage, "reported"),
        # a running count that knows of all we have
        ([report(1, is_final=False), TEXT], report(1, is_final=False).usage, "reported"),
        ([report(5, is_final=False), TEXT], report(5, is_final=False).usage, "reported"),
        # a running count that content has overtaken: the prompt is known, the output is ours to count
        (
            [report(1, is_final=False), TEXT, THOUGHT, CALL],
            Usage(uncached_input=30, cache_read=10, output=3, reasoning=1),
            "counted",
        ),
        # a later report replaces an earlier one
        (
            [report(1, is_final=False), TEXT, TEXT, report(2, is_final=False)],
            report(2, is_final=False).usage,
            "reported",
        ),
        # none at all: 40 bytes are 10 tokens, and one for the message
        ([TEXT, THOUGHT, CALL], Usage(uncached_input=11, output=3, reasoning=1), "estimated"),
        ([TEXT, Finished("stop")], Usage(uncached_input=11, output=1), "estimated"),
        # a whole answer without content is an answer
        ([Finished("stop")], Usage(uncached_input=11), "estimated"),
        ([Finished("stop"), report(0, is_final=True)], report(0, is_final=True).usage, "reported"),
        # nothing came of it
        ([], NO_USAGE, "counted"),
        ([Started(), Progress(10, 40, 0)], NO_USAGE, "counted"),
        ([Started(), report(0, is_final=False)], NO_USAGE, "counted"),
        ([Failed(EngineFailed("x"))], NO_USAGE, "counted"),
        # it failed after some content
        ([TEXT, TEXT, Failed(EngineFailed("x"))], Usage(uncached_input=11, output=2), "estimated"),
    ],
)
def test_use_is_the_engines_count_or_ours(events: list[Event], usage: Usage, source: UsageSource) -> None:
    assert attempt(*events).usage() == (usage, source)


_events = st.one_of(
    st.just(TEXT),
    st.just(THOUGHT),
    st.just(CALL),
    st.just(Started()),
    st.just(Finished("length")),
    st.builds(report, st.integers(0, 9), is_final=st.booleans()),
)


@given(st.lists(_events, max_size=20))
def test_use_always_has_its_shape(events: list[Event]) -> None:
    one = attempt(*events)
    usage, source = one.usage()
    assert min(usage.uncached_input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning) >= 0
    assert usage.reasoning <= usage.output
    assert source in ("reported", "counted", "estimated")
    if not one.is_finished and not any(
        isinstance(event, Text | Reasoning | ToolCallDelta | UsageReport) for event in events
    ):
        assert usage == NO_USAGE


@pytest.mark.parametrize("outcome", ["client_gone", "timeout", "upstream_error"])
def test_an_attempt_that_finished_is_ok_whatever_became_of_its_request(outcome: Outcome) -> None:
    assert attempt(TEXT, Finished("stop")).row("req_1", outcome).outcome == "ok"
    assert attempt(TEXT).row("req_1", outcome).outcome == outcome


def test_its_row_says_where_when_and_what() -> None:
    one = attempt(TEXT)
    one.replica_id, one.duration_s, one.error_code = "rep_1", 0.25, "engine_failed"
    row = one.row("req_1", "upstream_error")
    assert (row.request_id, row.target, row.replica_id, row.choice) == ("req_1", "m", "rep_1", 0)
    assert (row.started_at_ms, row.duration_ms, row.error_code) == (1500, 250, "engine_failed")
    assert row.id.startswith("att_")


def test_an_answer_far_beyond_its_cap_is_a_runaway_and_one_within_twice_of_it_is_not() -> None:
    one = attempt(*[TEXT] * 200)
    assert one.counted <= one.counted_max
    for _ in range(2000):
        one.observe([TEXT])
    assert one.counted > one.counted_max
