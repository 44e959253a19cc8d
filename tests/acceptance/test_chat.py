"""Chat completions of real models through the official SDK: what each honoured field does, and that the books say the same."""

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import msgspec
import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam
from openai.types.shared_params import ResponseFormatJSONSchema

from tests.acceptance.person import Up
from tests.rig.clients import Client

pytestmark = pytest.mark.model

COUNT = "Count from 1 to 20."
PERSON: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "languages": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "languages"],
    "additionalProperties": False,
}
PERSON_FORMAT: ResponseFormatJSONSchema = {
    "type": "json_schema",
    "json_schema": {"name": "person", "schema": PERSON, "strict": True},
}


def user(text: str) -> list[ChatCompletionMessageParam]:
    """One user message."""
    return [{"role": "user", "content": text}]


def text_of(answer: ChatCompletion, choice: int = 0) -> str:
    """The text of a choice, which must have one."""
    content = answer.choices[choice].message.content
    assert content is not None
    return content


def streamed_text(chunks: Sequence[ChatCompletionChunk], choice: int = 0) -> str:
    """A choice's text put together from a stream's chunks."""
    return "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices if one.index == choice)


def assert_same_as_record(real: Up, request_id: str, answer: ChatCompletion | ChatCompletionChunk) -> dict[str, Any]:
    """The usage that was answered is the usage that was recorded; returns the record."""
    row, usage = real.row(request_id), answer.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert row["outcome"] == "ok"
    assert row["usage_source"] == "reported"
    assert usage.prompt_tokens == row["uncached_input"] + row["cache_read"] + row["cache_write"]
    assert usage.prompt_tokens_details.cached_tokens == row["cache_read"]
    assert usage.completion_tokens == row["output"]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return row


@pytest.mark.parametrize("model", ["smol", "qwen"])
def test_streamed_and_whole_answers_are_the_same_text_and_both_are_recorded(
    client: OpenAI, real: Up, model: str
) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": user("Name three colours."),
        "temperature": 0,
        "seed": 1,
        "max_tokens": 24,
    }
    # A prompt read in one batch and one found in the cache but for its last token differ in the last bits of their sums: with
    # words as likely as each other, in the words too. So both answers are to find it.
    client.chat.completions.create(**asked | {"max_tokens": 1})
    raw = client.chat.completions.with_raw_response.create(**asked)
    whole = raw.parse()
    row = assert_same_as_record(real, raw.headers["x-request-id"], whole)
    assert row["is_stream"] == 0

    with client.chat.completions.with_streaming_response.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as streaming:
        chunks: list[ChatCompletionChunk] = list(streaming.parse())
        request_id = streaming.headers["x-request-id"]
    row = assert_same_as_record(real, request_id, chunks[-1])
    assert row["is_stream"] == 1
    assert row["ttft_ms"] is not None

    assert streamed_text(chunks) == text_of(whole) != ""
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert len({chunk.id for chunk in chunks}) == 1
    assert sum(1 for chunk in chunks if chunk.choices) > 5, "it did stream"


async def test_the_asynchronous_sdk_gets_the_same(async_client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "smol", "messages": user(COUNT), "temperature": 0, "seed": 1, "max_tokens": 20}
    whole: ChatCompletion = await async_client.chat.completions.create(**asked)
    chunks = [chunk async for chunk in await async_client.chat.completions.create(**asked, stream=True)]
    assert streamed_text(chunks) == text_of(whole)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_sdk_s_stream_helper_puts_the_answer_together(client: OpenAI) -> None:
    with client.chat.completions.stream(model="smol", messages=user(COUNT), temperature=0, stop="5") as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content != ""


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_a_stop_sequence_ends_the_answer_before_itself(client: OpenAI, is_stream: bool) -> None:
    asked: dict[str, Any] = {"model": "smol", "messages": user(COUNT), "temperature": 0, "max_tokens": 60}
    free = text_of(client.chat.completions.create(**asked))
    assert "5" in free
    if is_stream:
        chunks = list(client.chat.completions.create(**asked, stop=["nowhere", "5"], stream=True))
        text, reason = streamed_text(chunks), chunks[-1].choices[0].finish_reason
    else:
        answer = client.chat.completions.create(**asked, stop=["nowhere", "5"])
        text, reason = text_of(answer), answer.choices[0].finish_reason
    assert (text, reason) == (free.partition("5")[0], "stop")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_output_cap_is_exact_under_both_names(client: OpenAI, name: str) -> None:
    capped: dict[str, Any] = {name: 7}
    answer = client.chat.completions.create(model="smol", messages=user(COUNT), temperature=0, **capped)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (7, "length")


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_three_choices_are_three_answers_on_one_record(client: OpenAI, real: Up, is_stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "smol",
        "messages": user("Tell me a story."),
        "temperature": 1,
        "max_tokens": 12,
        "n": 3,
        "seed": 7,
    }
    last: ChatCompletion | ChatCompletionChunk
    if is_stream:
        with client.chat.completions.with_streaming_response.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ) as streaming:
            chunks: list[ChatCompletionChunk] = list(streaming.parse())
            request_id, last = streaming.headers["x-request-id"], chunks[-1]
        texts = [streamed_text(chunks, choice) for choice in range(3)]
        reasons = sorted((c.index, c.finish_reason) for chunk in chunks for c in chunk.choices if c.finish_reason)
        assert reasons == [(0, "length"), (1, "length"), (2, "length")]
    else:
        raw = client.chat.completions.with_raw_response.create(**asked)
        whole = raw.parse()
        request_id, last = raw.headers["x-request-id"], whole
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        texts = [text_of(whole, choice) for choice in range(3)]
    assert len(set(texts)) == 3, "a seed makes each choice repeatable, not all of them equal"
    row = assert_same_as_record(real, request_id, last)
    attempts = real.rows("SELECT * FROM attempts WHERE request_id = ? ORDER BY choice", request_id)
    assert (row["choices_count"], [attempt["choice"] for attempt in attempts]) == (3, [0, 1, 2])
    for column in ("uncached_input", "cache_read", "output"):
        assert row[column] == sum(attempt[column] for attempt in attempts)
    assert row["output"] == 36


def test_log_probabilities_are_those_of_the_text(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "smol",
        "messages": user("Name a colour."),
        "temperature": 0,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 3,
    }
    answer: ChatCompletion = client.chat.completions.create(**asked)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == text_of(answer)
    for token in logprobs.content:
        assert bytes(token.bytes or ()) == token.token.encode()
        assert token.logprob <= 0
        tops = [top.logprob for top in token.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert token.token == token.top_logprobs[0].token, "at temperature 0 the likeliest token is taken"
    chunks: list[ChatCompletionChunk] = list(client.chat.completions.create(**asked, stream=True))
    streamed = [
        token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or ()
    ]
    assert [token.token for token in streamed] == [token.token for token in logprobs.content]


def test_logit_bias_forbids_and_forces_tokens(client: OpenAI) -> None:
    # Qwen's first tokens are the printable ASCII characters from "!" on, and each digit is a token of its own.
    asked: dict[str, Any] = {"model": "qwen", "messages": user("Write the digits 1 2 3 4."), "temperature": 0}
    free = text_of(client.chat.completions.create(**asked, max_tokens=12))
    assert "1" in free
    forbidden = text_of(client.chat.completions.create(**asked, max_tokens=12, logit_bias={str(ord("1") - 33): -100}))
    assert "1" not in forbidden
    assert forbidden
    assert text_of(client.chat.completions.create(**asked, max_tokens=4, logit_bias={"0": 100})) == "!!!!"


def test_penalties_break_a_repetition(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "smol", "messages": user("Write five emoji."), "temperature": 0, "max_tokens": 24}
    plain = text_of(client.chat.completions.create(**asked))
    assert max(map(plain.count, plain)) >= 4, f"the model repeats itself when left alone: {plain!r}"
    for penalty in ("frequency_penalty", "presence_penalty"):
        penalized = text_of(client.chat.completions.create(**asked | {penalty: 2.0}))
        assert penalized != plain
    both = text_of(client.chat.completions.create(**asked, frequency_penalty=2.0, presence_penalty=2.0))
    assert max(map(both.count, set(both) - {" ", "\n"})) < max(map(plain.count, plain))


def test_a_seed_repeats_an_answer_and_another_one_makes_another(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "smol",
        "messages": user("Invent a name for a river."),
        "temperature": 1,
        "max_tokens": 16,
    }
    first, again, other = (text_of(client.chat.completions.create(**asked, seed=seed)) for seed in (11, 11, 12))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**63 - 1, -(2**63)])
def test_no_seed_is_secretly_random(client: OpenAI, seed: int) -> None:
    asked: dict[str, Any] = {"model": "smol", "messages": user("Invent a name for a river."), "temperature": 1}
    first, again = (text_of(client.chat.completions.create(**asked, max_tokens=12, seed=seed)) for _ in range(2))
    assert first == again


def test_json_object_is_an_object(client: OpenAI) -> None:
    question = "Give me a JSON object with the keys city and country for Paris."
    answer = client.chat.completions.create(
        model="qwen", messages=user(question), response_format={"type": "json_object"}, temperature=0, max_tokens=60
    )
    assert isinstance(json.loads(text_of(answer)), dict)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Ann is 31 and speaks French and English. Extract the person as JSON.", ("Ann", 31)),
        ("李雷今年二十八岁，会说中文和英语。请用 JSON 提取这个人。", ("李雷", 28)),
    ],
    ids=["english", "chinese"],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_a_strict_schema_holds(client: OpenAI, question: str, expected: tuple[str, int], is_stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "qwen",
        "messages": user(question),
        "response_format": PERSON_FORMAT,
        "temperature": 0,
        "max_tokens": 80,
    }
    if is_stream:
        text = streamed_text(list(client.chat.completions.create(**asked, stream=True)))
    else:
        text = text_of(client.chat.completions.create(**asked))
    person = json.loads(text)
    jsonschema.validate(person, PERSON)
    assert (person["name"], person["age"]) == expected


def test_a_schema_holds_for_a_model_that_would_write_anything_else(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smol",
        messages=user("Write a poem about the sea."),
        response_format=PERSON_FORMAT,
        temperature=0,
        max_tokens=200,
    )
    if answer.choices[0].finish_reason == "stop":
        jsonschema.validate(json.loads(text_of(answer)), PERSON)
    else:  # cut: still the beginning of such an object
        assert text_of(answer).lstrip().startswith("{")


async def test_chinese_and_emoji_survive_streaming_byte_for_byte(real: Up, client: OpenAI) -> None:
    body = {
        "model": "qwen",
        "messages": [{"role": "user", "content": "Repeat exactly: 🎉🚀🌍 你好，世界 👩‍👩‍👧"}],
        "temperature": 0,
        "seed": 1,
        "max_tokens": 40,
    }
    async with await Client.chat(real.base_url, body | {"stream": True}, api_key=real.api_key) as raw:
        got = await raw.read_to_end(timeout_s=120)
    for event in got.events:
        event.raw.decode("utf-8", "strict")  # no event ends within a character
    pieces = [(choice["delta"].get("content") or "") for choice in got.choices]
    assert "�" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 5
    whole = text_of(client.chat.completions.create(**body))  # type: ignore[call-overload]  # a body as plain data
    assert "".join(pieces) == whole
    assert "🎉🚀🌍" in whole
    assert "你好" in whole


class TestContext:
    """What does not fit the model's context."""

    @pytest.mark.parametrize(
        ("words", "cap", "numbers"),
        [(400, None, ("256", "431")), (100, 200, ("256", "131", "200"))],
        ids=["prompt", "cap"],
    )
    def test_overflow_is_refused_with_numbers_before_the_engine(
        self, client: OpenAI, real: Up, words: int, cap: int | None, numbers: tuple[str, ...]
    ) -> None:
        records = real.rows("SELECT count(*) AS n FROM usage_records")
        refused = real.metric("headwater_gateway_refusals_total", code="context_length_exceeded")
        launched = _launched_count(real)
        with pytest.raises(BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=user("word " * words), max_tokens=cap)
        error: APIStatusError = caught.value
        assert error.code == "context_length_exceeded"
        assert error.type == "invalid_request_error"
        assert all(number in error.message for number in numbers)
        assert error.response.headers["x-request-id"].startswith("req_")
        assert real.rows("SELECT count(*) AS n FROM usage_records") == records
        assert real.metric("headwater_gateway_refusals_total", code="context_length_exceeded") == refused + 1
        assert _launched_count(real) == launched, "no slot was started for it"

    def test_a_prompt_near_the_limit_is_answered(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(model="tiny", messages=user("word " * 200), temperature=0)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 231
        assert 1 <= answer.usage.completion_tokens <= 25

    def test_an_unstated_cap_is_what_the_context_leaves(self, client: OpenAI) -> None:
        ends = {"0": -100, "2": -100}  # the tokens with which SmolLM2 ends an answer, never drawn
        answer = client.chat.completions.create(model="tiny", messages=user("Count."), temperature=0, logit_bias=ends)
        assert answer.usage is not None
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.total_tokens == 256


def _launched_count(real: Up) -> int:
    logs = (real.directory / "data" / "logs").glob("tiny-*.log")
    return sum(log.read_text(errors="replace").count("launch_slot_") for log in logs)


class TestWarmSlots:
    """A conversation goes on where its tokens already are, and pays less for them."""

    def test_a_second_turn_reads_the_first_from_the_cache_and_costs_less(self, client: OpenAI, real: Up) -> None:
        facts = " ".join(f"Room {number} is on floor {number // 10}." for number in range(11, 24))
        talk = user(f"{facts} On which floor is room 17?")
        prompts, costs = [], []
        for question in ("And room 23?", "Thanks."):
            raw = client.chat.completions.with_raw_response.create(
                model="qwen", messages=talk, temperature=0, max_tokens=16
            )
            answer = raw.parse()
            row = assert_same_as_record(real, raw.headers["x-request-id"], answer)
            assert row["cost_nanos"] == 100 * row["uncached_input"] + 10 * row["cache_read"] + 300 * row["output"]
            prompts.append(row["uncached_input"] + row["cache_read"])
            costs.append((row, row["cost_nanos"] - 300 * row["output"]))
            talk = [*talk, {"role": "assistant", "content": text_of(answer)}, *user(question)]
        (_, first_input_cost), (second, second_input_cost) = costs
        assert second["cache_read"] >= prompts[0] - 8, "all of the first turn but the tail of its template"
        assert prompts[1] > prompts[0]
        assert second_input_cost < first_input_cost / 2

    def test_two_conversations_keep_a_slot_each(self, client: OpenAI) -> None:
        talks = {name: user(f"My name is {name}. " + f"I live in {name} street. " * 12) for name in ("Ada", "Bob")}
        lengths = {}
        for name, talk in talks.items():
            answer = client.chat.completions.create(model="smol", messages=talk, temperature=0, max_tokens=8)
            assert answer.usage is not None
            lengths[name] = answer.usage.prompt_tokens
            talks[name] = [*talk, {"role": "assistant", "content": text_of(answer)}, *user("What is my name?")]
        for name, talk in talks.items():
            answer = client.chat.completions.create(model="smol", messages=talk, temperature=0, max_tokens=8)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            assert (answer.usage.prompt_tokens_details.cached_tokens or 0) >= lengths[name] - 8


def test_an_answer_is_plain_json_of_the_documented_shape(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="smol", messages=user("Hi"), max_tokens=4)
    value = msgspec.json.decode(raw.content)
    assert value.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert (value["object"], value["model"]) == ("chat.completion", "smol")
