"""The oracle: what the fake engine will say is a function of the request id, the body and the knobs."""

import json
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.knobs import KnobError, Knobs, make_knobs, parse_knobs, split_model
from tests.rig.oracle import CANNED, compose, expected, prompt_tokens, text_knob

from .conftest import chat_body

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 5},
                "days": {"type": "integer", "minimum": 2},
                "unit": {"enum": ["C", "F"]},
                "tags": {"type": "array", "items": {"type": "boolean"}},
            },
            "required": ["city", "days"],
        },
    },
}


def test_the_same_id_gives_the_same_answer_and_another_id_another() -> None:
    first, again, other = (expected(request_id, chat_body("m:tokens=20")) for request_id in ("att_1", "att_1", "att_2"))
    assert first == again
    assert first.text != other.text


def test_without_an_id_the_body_decides() -> None:
    assert expected(None, chat_body()) == expected(None, dict(reversed(chat_body().items())))
    assert expected(None, chat_body()).request_id != expected(None, chat_body(seed=1)).request_id


@given(st.text(min_size=1), st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_the_count_is_within_the_bounds_and_the_cap(request_id: str, low: int, extra: int, cap: int) -> None:
    answer = expected(request_id, chat_body(f"m:min_tokens={low},max_tokens={low + extra}", max_completion_tokens=cap))
    assert min(low, cap) <= answer.output_tokens <= min(low + extra, cap)
    assert answer.finish_reason == "length" or answer.output_tokens <= cap


def test_exact_uses_the_cap_and_ends_by_length() -> None:
    answer = expected("r", chat_body("m:exact,reasoning=2", max_tokens=64))
    assert (answer.output_tokens, answer.reasoning_tokens, answer.finish_reason) == (64, 2, "length")


def test_some_tokens_have_several_bytes() -> None:
    text = expected("r", chat_body("m:tokens=200")).text
    assert len(text.encode()) > len(text)


def test_prompt_tokens_are_words_and_three_a_message() -> None:
    parts = [{"type": "text", "text": "a b"}, {"type": "text", "text": "c"}]
    assert prompt_tokens([{"role": "system", "content": "x y"}, {"role": "user", "content": parts}]) == 5 + 6
    assert prompt_tokens([{"role": "assistant", "content": None}]) == 3


def test_a_tool_call_fits_its_schema() -> None:
    answer = expected("r", chat_body("m:tool_call=2", tools=[TOOL]))
    assert [name for name, _ in answer.tool_calls] == ["weather", "weather"]
    for _, arguments in answer.tool_calls:
        jsonschema.validate(json.loads(arguments), TOOL["function"]["parameters"])  # type: ignore[index]
    assert answer.finish_reason == "tool_calls"


def test_no_tool_is_called_that_may_not_be() -> None:
    assert expected("r", chat_body("m:tool_call=1")).tool_calls == ()
    assert expected("r", chat_body("m:tool_call=1", tools=[TOOL], tool_choice="none")).tool_calls == ()


@pytest.mark.parametrize("name", CANNED)
def test_a_canned_text_is_said_word_for_word(name: str) -> None:
    text = expected("r", chat_body(f"m:text={name}", tools=[TOOL])).text
    assert text
    assert ("weather" in text) == (name in {"fenced_tool", "bare_tool", "prose_tool", "fenced_bad_args"})


@given(st.text(min_size=1, max_size=200))
def test_any_text_can_be_asked_for_through_the_models_name(text: str) -> None:
    assert expected("r", chat_body(f"m:text={text_knob(text)}")).text == text


def test_a_models_name_is_split_only_where_there_are_knobs() -> None:
    assert split_model("m:cut_after=7,no_done") == ("m", {"cut_after": "7", "no_done": "true"})
    assert split_model("base:adapter") == ("base:adapter", {})
    assert split_model("base:adapter:silent") == ("base:adapter", {"silent": "true"})


def test_later_layers_win_and_none_takes_a_knob_back() -> None:
    knobs = make_knobs({"gap_ms": 5, "tokens": 3}, parse_knobs("tokens=4"), {"gap_ms": None})
    assert (knobs.tokens, knobs.gap_ms) == (4, 0.0)


@pytest.mark.parametrize(
    "layer", [{"cut_aftr": 1}, {"tokens": -1}, {"cut_mode": "gone"}, {"batch": 0}, {"silent": "maybe"}]
)
def test_a_misspelt_or_impossible_knob_is_refused(layer: dict[str, object]) -> None:
    with pytest.raises(KnobError):
        make_knobs(layer)


def test_text_that_is_neither_canned_nor_base64_is_refused() -> None:
    with pytest.raises(KnobError, match="neither"):
        compose("r", chat_body(), make_knobs({"text": "fenced_toool!"}))


def test_knobs_dont_change_what_a_fault_would_cut_off() -> None:
    plain = compose("r", chat_body("m"), Knobs())
    assert replace(compose("r", chat_body("m"), Knobs(cut_after=2, gap_ms=9)), request_id="r") == plain
