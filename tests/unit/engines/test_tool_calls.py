"""Written-out calls become tool calls where that is safe, and every other text comes out as it went in."""

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.engines.tool_calls import HELD_CHARACTERS_MAX, ToolCallRepair, enforced_schema
from headwater.errors import EngineFailed
from headwater.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Progress,
    Reasoning,
    Text,
    TokenLogprob,
    ToolCallDelta,
)
from headwater.json_schema import Fit, fault
from headwater.request import Tool, ToolChoice

WEATHER = Tool(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TREE = Tool(
    name="plant",
    parameters={
        "type": "object",
        "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}},
        "properties": {"tree": {"$ref": "#/$defs/tree"}},
    },
)
NOW = Tool(name="now")
TOOLS = (WEATHER, NOW, TREE)
AUTO, REQUIRED = ToolChoice(), ToolChoice("required")
PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
LIMA = '{"name": "get_weather", "arguments": {"city": "Lima"}}'


def run(
    text: str | Iterable[str],
    choice: ToolChoice = AUTO,
    *,
    is_parallel: bool | None = None,
    reason: FinishReason = "stop",
    tools: tuple[Tool, ...] = TOOLS,
) -> tuple[str, list[tuple[str, str]], str]:
    """(text that came out, calls as (name, arguments), finish reason)."""
    ids = itertools.count(1)
    repair = ToolCallRepair(tools, choice, lambda: f"call_{next(ids)}", is_parallel)
    out: list[Event] = []
    for piece in [text] if isinstance(text, str) else text:
        out += repair.feed(Text(piece))
    out += repair.feed(Finished(reason))
    assert repair.finish() == []
    calls = [event for event in out if isinstance(event, ToolCallDelta)]
    assert [(call.index, call.id) for call in calls] == [(n, f"call_{n + 1}") for n in range(len(calls))]
    assert isinstance(out[-1], Finished)
    written = "".join(event.text for event in out if isinstance(event, Text))
    return written, [(call.name or "", call.arguments) for call in calls], out[-1].reason


CALL = ("get_weather", '{"city":"Paris"}')
OTHER = ("get_weather", '{"city":"Lima"}')


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (PARIS, [CALL]),
        (f"  \n{PARIS}\n ", [CALL]),
        (f"```json\n{PARIS}\n```", [CALL]),
        (f"```JSON\r\n{PARIS}\r\n```\n", [CALL]),
        (f"```\n{PARIS}\n```", [CALL]),
        (f"```tool_call\n{PARIS}```", [CALL]),
        (f"```json{PARIS}```", [CALL]),
        (f"```json\n{PARIS}\n", [CALL]),  # the closing fence was a stop sequence, or forgotten
        (f"<tool_call>\n{PARIS}\n</tool_call>", [CALL]),
        (f"<tool_call>\n{PARIS}\n</tool_call>\n<tool_call>\n{LIMA}\n</tool_call>", [CALL, OTHER]),
        (f"```json\n{PARIS}\n```\n\n```json\n{LIMA}\n```", [CALL, OTHER]),
        (f"{PARIS}\n{LIMA}", [CALL, OTHER]),
        (f"[{PARIS}, {LIMA}]", [CALL, OTHER]),
        (f"```json\n[{PARIS}]\n```", [CALL]),
        ('{"name":"get_weather","parameters":{"city":"Paris"}}', [CALL]),
        ('{"arguments":{"city":"Paris"},"name":"get_weather"}', [CALL]),
        ('{"type":"function","name":"get_weather","parameters":{"city":"Paris"}}', [CALL]),
        ('{"type":"function","function":{"name":"get_weather","arguments":{"city":"Paris"}}}', [CALL]),
        ('{"id":"x","function":{"name":"get_weather","arguments":"{\\"city\\": \\"Paris\\"}"}}', [CALL]),
        (
            '{"name":"get_weather","arguments":{"city":"语言\\n\\u8bed","days":3}}',
            [("get_weather", '{"city":"语言\\n语","days":3}')],
        ),
        ('{"name":"now","arguments":{}}', [("now", "{}")]),
        (
            '{"name":"now","arguments":{"at":123456789012345678901234567890}}',
            [("now", '{"at":123456789012345678901234567890}')],
        ),
    ],
)
def test_calls_that_were_written_out_are_made(text: str, calls: list[tuple[str, str]]) -> None:
    assert run(text) == ("", calls, "tool_calls")
    assert run(text, REQUIRED) == ("", calls, "tool_calls")
    assert run(text, tools=()) == (text, [], "stop")
    assert run(text, ToolChoice("none")) == (text, [], "stop")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "Hello",
        f"Sure: {PARIS}",
        f"{PARIS} That is the call.",
        f"```json\n{PARIS}\n```\nThis asks for the weather.",
        '{"name": "say_hi", "arguments": {}}',
        '{"name": "get_weather", "arguments": {"town": "Paris"}}',
        '{"name": "get_weather", "arguments": {"city": 3}}',
        '{"name": "get_weather", "arguments": {}}',
        '{"name": "get_weather", "arguments": ["Paris"]}',
        '{"name": "get_weather", "arguments": "Paris"}',
        '{"name": "get_weather", "arguments": "{"}',
        '{"name": "get_weather"}',
        '{"name": 3, "arguments": {}}',
        '{"name": "get_weather", "arguments": {"city": "Paris"}, "parameters": {}}',
        '{"name": "get_weather", "arguments": {"city": "Paris"}, "why": "asked"}',
        '{"type": "object", "name": "get_weather", "arguments": {"city": "Paris"}}',
        '{"function": "get_weather", "arguments": {"city": "Paris"}}',
        '{"answer": 42}',
        "{}",
        "[]",
        "[1, 2]",
        "[[1]]",
        f"[{PARIS}, 3]",
        f'[{PARIS}, {{"name": "say_hi", "arguments": {{}}}}]',
        PARIS[:-1],
        PARIS + "}",
        PARIS + ",",
        PARIS.replace(",", ",,"),
        PARIS.replace(":", "="),
        PARIS.replace('"', "'"),
        PARIS.replace("Paris", "Pa\nris"),
        PARIS.replace("Paris", "\\x"),
        '{"name": "now", "arguments": {"a": 01}}',
        '{"name": "now", "arguments": {"a": nul}}',
        '{"name": "now", "arguments": {"a": NaN}}',
        '{"name": "now", "arguments": {"a": "\\ud800"}}',
        '{"name": "now", "arguments": ' + "[" * 100,
        f"```python\n{PARIS}\n```",
        f"```json\n{PARIS}\n``",
        f"```json\n{PARIS}\n```\n```",
        "```json\nprint()\n```",
        f"``{PARIS}``",
        f"<tool_calls>{PARIS}</tool_calls>",
        f"<tool_call>{PARIS}</tool",
        "<b>",
    ],
)
def test_any_other_text_stays_text(text: str) -> None:
    assert run(text) == (text, [], "stop")
    assert run(text, REQUIRED) == (text, [], "stop")


def test_text_is_released_at_the_first_character_that_ends_the_hope() -> None:
    for held, last in [
        ("  ", "H"), ("`", "a"), ("```", "p"), ("```json\n", "p"), ("{", "a"), ('{"answer', '"'), ("[", "1"),
        ("<", "b"), (f"{PARIS}\n", "T"), (f"```json\n{PARIS}\n``", "x"),
    ]:  # fmt: skip
        repair = ToolCallRepair(TOOLS, AUTO, str, None)
        for character in held:
            assert repair.feed(Text(character)) == []
        assert repair.feed(Text(last)) == [*map(Text, held), Text(last)]
        assert repair.feed(Text(PARIS)) == [Text(PARIS)]
        assert repair.feed(Finished("stop")) == [Finished("stop")]


def test_text_is_not_held_beyond_the_bound() -> None:
    start = '{"name": "get_weather", "arguments": {"city": "'
    repair = ToolCallRepair(TOOLS, AUTO, str, None)
    filler = Text("x" * (HELD_CHARACTERS_MAX - len(start)))
    assert repair.feed(Text(start)) == []
    assert repair.feed(filler) == []
    assert repair.feed(Text("x")) == [Text(start), filler, Text("x")]
    assert run(start + filler.text + '"}}', REQUIRED)[2] == "tool_calls"  # enforced answers are held longer


def test_one_call_only_where_one_is_allowed() -> None:
    for text, rest in [(f"{PARIS}\n{LIMA}", f"\n{LIMA}"), (f"[{PARIS},{LIMA}]", f",{LIMA}]")]:
        assert run(text, is_parallel=False) == (rest, [CALL], "tool_calls")
        assert run(text, ToolChoice("named", "get_weather")) == (rest, [CALL], "tool_calls")
    assert run(PARIS, is_parallel=False) == ("", [CALL], "tool_calls")
    assert run(PARIS, ToolChoice("named", "now")) == (PARIS, [], "stop")


def test_a_cut_answer_is_text_unless_a_call_was_enforced() -> None:
    assert run(PARIS, reason="length") == (PARIS, [], "length")
    assert run(PARIS, reason="content_filter") == (PARIS, [], "content_filter")
    for text, calls in [
        (PARIS[:-8], [("get_weather", '{"city": "')]),
        ('{"name":"now"', [("now", "")]),
        ('{"name":"now","arguments":', [("now", "")]),
        (f"[{PARIS},{LIMA[:-4]}", [CALL, ("get_weather", '{"city": "Lim')]),
        (f"[{PARIS},", [CALL]),
        (PARIS, [CALL]),
    ]:
        assert run(text, REQUIRED, reason="length", is_parallel=True) == ("", calls, "length")
    for text in ("", '{"name":"no', '{"name":"say_hi","arguments":{', "{"):
        assert run(text, REQUIRED, reason="length") == (text, [], "length")


def test_other_events_pass_at_once() -> None:
    repair = ToolCallRepair(TOOLS, AUTO, str, None)
    assert repair.feed(Text("{")) == []
    assert repair.feed(Reasoning("hm")) == [Reasoning("hm")]
    assert repair.feed(Progress(1, 2, 0)) == [Progress(1, 2, 0)]
    own = ToolCallDelta(0, "call_9", "now", "{}")  # an engine that knows the model's form makes its own calls
    assert repair.feed(own) == [Text("{"), own]
    assert repair.feed(Finished("tool_calls")) == [Finished("tool_calls")]


def test_nothing_held_is_lost_when_the_answer_breaks_off() -> None:
    failed = Failed(EngineFailed("It died."))
    repair = ToolCallRepair(TOOLS, REQUIRED, str, None)
    assert repair.feed(Text('{"name')) == []
    assert repair.feed(failed) == [Text('{"name'), failed]
    repair = ToolCallRepair(TOOLS, REQUIRED, str, None)
    assert repair.feed(Text('{"name')) == []
    assert repair.finish() == [Text('{"name')]


def test_log_probabilities_stay_with_released_text() -> None:
    pieces = [Text("{", [TokenLogprob("{", -0.1)]), Text("x", [TokenLogprob("x", -0.2)])]
    repair = ToolCallRepair(TOOLS, AUTO, str, None)
    assert [*repair.feed(pieces[0]), *repair.feed(pieces[1])] == pieces


_PIECES = st.sampled_from(
    [PARIS, LIMA, '{"name":"now","arguments":{}}', '{"name": "x", "arguments": {}}', "```json\n", "```", "\n", " ", "[",
     "]", ",", "<tool_call>", "</tool_call>", "Hi", "{", "}", '"', "\\", "语",
     '{"name": "now", "arguments": {"a": [1, -2.5e3, null, "\\"{"]}}']
)  # fmt: skip
_TEXTS = st.lists(_PIECES, max_size=7).map("".join)
_CHOICES = st.sampled_from([AUTO, REQUIRED, ToolChoice("named", "now"), ToolChoice("none")])
_REASONS: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "length"])


@given(_TEXTS, st.lists(st.integers(0, 400), max_size=12), _CHOICES, st.sampled_from([None, True, False]), _REASONS)
def test_how_text_is_cut_into_events_changes_nothing(
    text: str, cuts: list[int], choice: ToolChoice, is_parallel: bool | None, reason: FinishReason
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    whole = run(text, choice, is_parallel=is_parallel, reason=reason)
    assert run(pieces, choice, is_parallel=is_parallel, reason=reason) == whole
    assert run(list(text), choice, is_parallel=is_parallel, reason=reason) == whole

    written, calls, finish_reason = whole
    assert text.endswith(written)  # what is not a call comes out, in place
    if not calls:
        assert (written, finish_reason) == (text, reason)
    else:
        source = text.removesuffix(written) if written else text
        for name, arguments in calls:
            assert json.dumps(name) in source
            if reason == "stop":
                tool = next(tool for tool in TOOLS if tool.name == name)
                assert Fit(tool.parameters).fits(json.loads(arguments))


@given(_TEXTS)
def test_a_text_of_calls_has_nothing_else_in_it(text: str) -> None:
    written, calls, _ = run(text)
    if not calls:
        return
    assert written == ""
    rest = text
    for name, arguments in calls:
        start, end = _object(rest)
        assert json.loads(rest[start:end]) == {"name": name, "arguments": json.loads(arguments)}
        rest = rest[:start] + rest[end:]
    for mark in ("```json", "```", "<tool_call>", "</tool_call>", "[", "]", ","):
        rest = rest.replace(mark, "")
    assert rest.strip() == ""


def _object(text: str) -> tuple[int, int]:
    """Where the first JSON object of a text starts and ends."""
    start = text.index("{")
    return start, json.JSONDecoder().raw_decode(text, start)[1]


def test_enforced_schema_lets_exactly_the_calls_through() -> None:
    one = enforced_schema(TOOLS, REQUIRED, None)
    several = enforced_schema(TOOLS, REQUIRED, is_parallel=True)
    named = enforced_schema(TOOLS, ToolChoice("named", "plant"), is_parallel=True)
    call: dict[str, Any] = json.loads(PARIS)
    plant = {"name": "plant", "arguments": {"tree": {"left": {"left": {}}}}}
    wrong_plant = {"name": "plant", "arguments": {"tree": {"left": {"left": 3}}}}
    for schema in (one, several, named):
        assert fault(schema) is None
        json.dumps(schema)
    good: list[Any] = [call, plant, {"name": "now", "arguments": {}}]
    for value in good:
        assert Fit(one).fits(value)
        assert Fit(several).fits([value, call])
    wrong: list[Any] = [
        [call],
        {"name": "x", "arguments": {}},
        {"name": "now", "arguments": {"a": 1}},
        {**call, "a": 1},
    ]
    for value in [*wrong, wrong_plant]:
        assert not Fit(one).fits(value)
        assert not Fit(several).fits([value])
    assert not Fit(several).fits([])
    assert Fit(named).fits(plant)
    assert not Fit(named).fits(wrong_plant)
    assert not Fit(named).fits(call)
    assert list(named["properties"]) == ["name", "arguments"]
