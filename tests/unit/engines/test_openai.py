import msgspec
import pytest

from headwater.engines.openai import RunningCounts, encode
from headwater.request import Chat, ResponseFormat, ToolChoice
from tests.unit.engines.chats import COMMON_WIRE, FULL, SCHEMA, SMALL, TOOLS_WIRE, wire


def changed(chat: Chat, **changes: object) -> Chat:
    return msgspec.structs.replace(chat, **changes)


def test_every_field_arrives_and_nothing_else() -> None:
    assert wire(encode(FULL, model="large-1")) == COMMON_WIRE | {
        "model": "large-1",
        "tools": TOOLS_WIRE,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True},
        },
    }


def test_a_small_request_carries_only_what_was_said() -> None:
    assert wire(encode(SMALL, model="m")) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 16,
    }


def test_n_is_ours_and_is_never_sent() -> None:
    assert "n" not in wire(encode(changed(SMALL, choices_count=8), model="m"))


def test_the_output_cap_goes_by_the_name_the_upstream_reads() -> None:
    sent = wire(encode(SMALL, model="m", output_cap_field="max_completion_tokens"))
    assert sent["max_completion_tokens"] == 16
    assert "max_tokens" not in sent


@pytest.mark.parametrize(
    ("running_counts", "options", "timings"),
    [
        ("none", {"include_usage": True}, None),
        ("continuous_usage_stats", {"include_usage": True, "continuous_usage_stats": True}, None),
        ("timings_per_token", {"include_usage": True}, True),
    ],
)
def test_running_counts_are_asked_for_as_configured(
    running_counts: RunningCounts, options: dict[str, bool], timings: bool | None
) -> None:
    sent = wire(encode(SMALL, model="m", running_counts=running_counts))
    assert sent["stream_options"] == options
    assert sent.get("timings_per_token") is timings


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice("auto"), "auto"),
        (ToolChoice("none"), "none"),
        (ToolChoice("required"), "required"),
        (ToolChoice("named", "now"), {"type": "function", "function": {"name": "now"}}),
    ],
)
def test_the_tool_choice_is_the_callers(choice: ToolChoice, expected: object) -> None:
    sent = wire(encode(changed(FULL, tool_choice=choice), model="m"))
    assert sent["tool_choice"] == expected
    assert sent["tools"] == TOOLS_WIRE


def test_parallel_calls_unsaid_stay_unsaid() -> None:
    assert "parallel_tool_calls" not in wire(encode(changed(FULL, is_parallel_tool_calls=None), model="m"))


def test_json_objects_are_asked_for_and_text_is_the_default() -> None:
    asked = changed(SMALL, response_format=ResponseFormat(kind="json_object"))
    assert wire(encode(asked, model="m"))["response_format"] == {"type": "json_object"}
    assert "response_format" not in wire(encode(SMALL, model="m"))


def test_a_schema_without_a_name_gets_one() -> None:
    asked = changed(SMALL, response_format=ResponseFormat(kind="json_schema", schema=SCHEMA))
    assert wire(encode(asked, model="m"))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": False},
    }


@pytest.mark.parametrize(("count", "expected"), [(None, (None, None)), (0, (True, 0)), (20, (True, 20))])
def test_log_probabilities_are_asked_for_as_counted(count: int | None, expected: tuple[object, object]) -> None:
    sent = wire(encode(changed(SMALL, logprobs_top_count=count), model="m"))
    assert (sent.get("logprobs"), sent.get("top_logprobs")) == expected
