import msgspec
import pytest

from headwater.engines.llamacpp import (
    PrefillProgress,
    decode_prompt,
    decode_restored,
    decode_saved,
    decode_tokens,
    encode,
    encode_state_file,
    encode_template,
    encode_tokenize,
    enforced_tools_schema,
    last_progress,
)
from headwater.request import Chat, ResponseFormat, ToolChoice
from tests.unit.engines.chats import COMMON_WIRE, FULL, MESSAGES_WIRE, SCHEMA, SMALL, TOOLS_WIRE, wire

OURS = {"id_slot": 3, "cache_prompt": True, "return_progress": True, "timings_per_token": True}


def changed(chat: Chat, **changes: object) -> Chat:
    return msgspec.structs.replace(chat, **changes)


def test_every_field_arrives_and_nothing_else() -> None:
    assert wire(encode(FULL, slot=3, is_prefix_reusable=True)) == COMMON_WIRE | OURS | {
        "tools": TOOLS_WIRE,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True},
        },
    }


def test_a_small_request_streams_reports_its_progress_and_says_which_slot() -> None:
    assert wire(encode(SMALL, slot=3, is_prefix_reusable=True)) == OURS | {
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 16,
    }


def test_n_is_ours_and_is_never_sent() -> None:
    assert "n" not in wire(encode(changed(SMALL, choices_count=8), slot=0, is_prefix_reusable=True))


@pytest.mark.parametrize("is_reusable", [True, False])
def test_another_organizations_tokens_are_not_reused(is_reusable: bool) -> None:
    assert wire(encode(SMALL, slot=0, is_prefix_reusable=is_reusable))["cache_prompt"] is is_reusable


@pytest.mark.parametrize("choice", [ToolChoice("required"), ToolChoice("named", "weather")])
def test_a_required_tool_is_a_schema_of_the_whole_answer(choice: ToolChoice) -> None:
    chat = changed(FULL, tool_choice=choice)
    schema = enforced_tools_schema(chat)
    assert schema is not None
    sent = wire(encode(chat, slot=0, is_prefix_reusable=True))
    assert sent["response_format"] == {"type": "json_schema", "json_schema": {"name": "tool_call", "schema": schema}}
    assert sent["tool_choice"] == "auto"  # its own `required` would put a second grammar beside ours
    assert sent["tools"] == TOOLS_WIRE


def test_a_named_tool_is_the_only_one_the_schema_allows() -> None:
    schema = enforced_tools_schema(changed(FULL, tool_choice=ToolChoice("named", "weather")))
    assert schema is not None
    assert schema["properties"]["name"] == {"const": "weather"}
    assert schema["required"] == ["name", "arguments"]


def test_tools_that_must_not_be_called_are_not_shown() -> None:
    sent = wire(encode(changed(FULL, tool_choice=ToolChoice("none")), slot=0, is_prefix_reusable=True))
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & sent.keys()


@pytest.mark.parametrize("choice", [ToolChoice("auto"), ToolChoice("none")])
def test_where_no_call_is_required_the_callers_own_format_stands(choice: ToolChoice) -> None:
    chat = changed(FULL, tool_choice=choice, response_format=ResponseFormat(kind="json_object"))
    assert enforced_tools_schema(chat) is None
    assert wire(encode(chat, slot=0, is_prefix_reusable=True))["response_format"] == {"type": "json_object"}


def test_required_without_tools_asks_nothing() -> None:
    assert enforced_tools_schema(changed(SMALL, tool_choice=ToolChoice("required"))) is None


def test_the_prompt_that_is_counted_is_the_prompt_that_is_sent() -> None:
    assert wire(encode_template(FULL)) == {"messages": MESSAGES_WIRE, "tools": TOOLS_WIRE}
    assert wire(encode_template(changed(FULL, tool_choice=ToolChoice("none")))) == {"messages": MESSAGES_WIRE}


def test_a_laid_out_prompt_is_tokenized_with_its_special_tokens() -> None:
    assert wire(encode_tokenize("<|im_start|>")) == {
        "content": "<|im_start|>",
        "add_special": True,
        "parse_special": True,
    }
    assert decode_prompt(b'{"prompt":"<|im_start|>","more":1}').prompt == "<|im_start|>"
    assert decode_tokens(b'{"tokens":[1,2,3]}').tokens == [1, 2, 3]


def progress_event(total: int, cached: int, processed: int, elapsed_ms: int) -> bytes:
    """As llama.cpp writes it."""
    progress = b'{"total":%d,"cache":%d,"processed":%d,"time_ms":%d}' % (total, cached, processed, elapsed_ms)
    return b'data: {"choices":[{"delta":{"role":"assistant","content":null}}],"prompt_progress":' + progress + b"}\n\n"


def test_the_last_progress_and_where_its_event_ends() -> None:
    first, last = progress_event(900, 5, 45, 300), progress_event(900, 5, 85, 650)
    content = b'data: {"choices":[{"delta":{"content":"Yes"}}]}\n\n'
    found = last_progress(first + last + content)
    assert found == PrefillProgress(85, 900, 5, 0.65, len(first + last))
    assert last_progress(content) is None


def test_a_text_that_speaks_of_progress_is_none() -> None:
    said = msgspec.json.encode(progress_event(1, 0, 1, 1).decode())
    assert last_progress(b'data: {"choices":[{"delta":{"content":' + said + b"}}]}\n\n") is None


def test_a_state_is_saved_and_restored_by_the_name_of_its_file() -> None:
    assert msgspec.json.decode(encode_state_file("200")) == {"filename": "200"}
    saved = decode_saved(b'{"id_slot":1,"filename":"200","n_saved":892,"n_written":20566752,"timings":{"save_ms":9.8}}')
    assert (saved.n_saved, saved.n_written) == (892, 20566752)
    assert decode_restored(b'{"id_slot":2,"filename":"200","n_restored":892,"n_read":20566752}').n_restored == 892
