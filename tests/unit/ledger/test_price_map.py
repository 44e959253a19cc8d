"""The excerpt beside this file is LiteLLM's (MIT; `price_map_excerpt.LICENSE`): what it says is kept as it was said."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.ledger.price_map import MappedPrice, PriceMap, Skipped, read_price_map
from headwater.money import NANOS_MAX, PRICE_UNITS_MAX, Price, Tier, cost_nanos, price_terms_json, with_terms
from headwater.usage import Usage

EXCERPT = Path(__file__).with_name("price_map_excerpt.json").read_bytes()
CENT = 10**7  # nano-units; a hundredth of a dollar for a million tokens


def one(entry: dict[str, Any] | str, name: str = "m") -> MappedPrice:
    """The price of a single entry, given as a dict or as JSON."""
    text = entry if isinstance(entry, str) else json.dumps(entry)
    read = read_price_map(f'{{"{name}":{text}}}'.encode())
    assert not read.skipped
    return read.prices[0]


def reason(entry: dict[str, Any] | str) -> str:
    """Why a single entry is skipped."""
    text = entry if isinstance(entry, str) else json.dumps(entry)
    read = read_price_map(f'{{"good":{{"input_cost_per_token":0,"output_cost_per_token":0}},"m":{text}}}'.encode())
    assert [price.model for price in read.prices] == ["good"]
    return read.skipped[0].reason


def of(read: PriceMap, model: str) -> MappedPrice:
    return next(price for price in read.prices if price.model == model)


def tokens(uncached: int, read: int, output: int, **others: int) -> dict[str, Any]:
    """Prices in cents per million."""
    prices = {
        "cache_write": uncached,
        "reasoning": output,
        "uncached_input": uncached,
        "cache_read": read,
        "output": output,
    }
    return {name: cents * CENT for name, cents in (prices | others).items()}


def draft(model: str, rates: dict[str, Any], **others: Any) -> Price:
    return Price(id="", model=model, currency="USD", **rates, **others)


HALF = ("batch", 500_000)
DRAFTS = [
    draft("gpt-4o", tokens(250, 125, 1000), multipliers=(HALF, ("priority", 1_700_000))),
    draft(
        "gpt-5",
        tokens(125, 0, 1000) | {"cache_read": 125_000_000},
        multipliers=(HALF, ("flex", 500_000), ("priority", 2_000_000)),
    ),
    draft(
        "gpt-5.4",
        tokens(250, 25, 1500),
        tiers=(Tier(above_input_tokens=272_000, **tokens(500, 50, 2250)),),
        multipliers=(("priority", 2_000_000),),
    ),
    draft("claude-sonnet-4-5", tokens(300, 30, 1500, cache_write=375, cache_write_1h=600), multipliers=(HALF,)),
    draft(
        "anthropic.claude-sonnet-4-5-20250929-v1:0",
        tokens(300, 30, 1500, cache_write=375, cache_write_1h=600),
        tiers=(Tier(above_input_tokens=200_000, **tokens(600, 60, 2250, cache_write=750, cache_write_1h=1200)),),
        multipliers=(HALF,),
    ),
    draft("gemini/gemini-2.5-flash", tokens(30, 3, 250), multipliers=(("priority", 1_800_000),)),
    draft(
        "gemini/gemini-2.5-pro",
        tokens(125, 0, 1000) | {"cache_read": 125_000_000},
        tiers=(Tier(above_input_tokens=200_000, **tokens(250, 25, 1500)),),
        multipliers=(("priority", 1_800_000),),
    ),
    draft("deepseek/deepseek-chat", tokens(28, 0, 42, cache_write=0) | {"cache_read": 28_000_000}),
    draft(
        "xai/grok-4.20-multi-agent-beta-0309",
        tokens(125, 20, 250),
        tiers=(Tier(above_input_tokens=199_999, **tokens(250, 40, 500)),),  # xAI's long price begins at 200,000
    ),
    draft(
        "dashscope/qwen-plus-latest",
        tokens(40, 40, 120, reasoning=400),
        tiers=(Tier(above_input_tokens=256_000, **tokens(120, 120, 360, reasoning=1200)),),
    ),
    draft("perplexity/sonar-medium-online", tokens(0, 0, 180), request=5 * 10**12),  # 0.005 a request
    draft("text-embedding-3-small", tokens(2, 2, 0), multipliers=(HALF,)),
    draft("tts-1", tokens(0, 0, 0), character=15 * 10**9),
    draft("whisper-1", tokens(0, 0, 0), second=100 * 10**9),
]
SKIPPED = [
    Skipped(
        "databricks/databricks-claude-sonnet-4-1",
        "databricks/databricks-claude-sonnet-4-1",
        "input_cost_per_token of 0.0000029999900000000002 is finer than a nano-unit per million",
    ),
    Skipped(
        "amazon.rerank-v1:0", "amazon.rerank-v1:0", "it is priced in what can't be billed here: input_cost_per_query"
    ),
    Skipped(
        "gpt-image-1",
        "gpt-image-1",
        "it is priced in what can't be billed here: cache_read_input_image_token_cost, input_cost_per_image_token,"
        " input_cost_per_image_token_batches, output_cost_per_image_token",
    ),
]


def test_an_excerpt_of_the_real_map_is_read_to_the_nano_unit() -> None:
    read = read_price_map(EXCERPT)
    assert [price.draft for price in read.prices] == DRAFTS
    assert list(read.skipped) == SKIPPED


def test_what_a_price_leaves_out_or_assumes_is_said() -> None:
    read = read_price_map(EXCERPT)
    assert of(read, "gpt-5").notes == ("not in the price: search_context_cost_per_query",)
    assert of(read, "deepseek/deepseek-chat").notes == ()  # it gives the cache's price twice, under two names
    assert of(read, "claude-sonnet-4-5").notes == (
        '"batch" is taken to hold for cache_creation_input_token_cost_above_1hr too: the map doesn\'t say',
        "not in the price: search_context_cost_per_query",
    )
    batch, flex, other = of(read, "gpt-5.4").notes
    # 0.13 after half of 0.25 was rounded: that is no half any more
    assert batch.startswith('"batch" is not one multiplier of the price: cache_read_input_token_cost_batches, ')
    assert flex.startswith('"flex" is not one multiplier of the price: ')
    assert other.startswith("not in the price: regional_processing_uplift_multiplier_eu")


def test_models_are_asked_for_by_the_names_callers_use() -> None:
    wanted = {
        "acme/large-1": "gpt-4o",
        "mine": "gpt-5",
        "same": "gpt-4o",
        "lost": "gpt-6-turbo",
        "rr": "amazon.rerank-v1:0",
    }
    read = read_price_map(EXCERPT, models=wanted)
    assert [(price.model, price.source, price.draft.model) for price in read.prices] == [
        ("acme/large-1", "gpt-4o", "acme/large-1"),
        ("mine", "gpt-5", "mine"),
        ("same", "gpt-4o", "same"),
    ]
    assert [(skipped.model, skipped.source) for skipped in read.skipped] == [
        ("lost", "gpt-6-turbo"),
        ("rr", "amazon.rerank-v1:0"),
    ]
    assert read.skipped[0].reason == "the map has no entry of that name"
    assert (read.prices[0].provider, read.prices[0].mode) == ("openai", "chat")
    assert read_price_map(EXCERPT, models={}) == PriceMap((), ())


def test_a_price_gets_its_id_and_keeps_its_terms() -> None:
    for mapped in read_price_map(EXCERPT).prices:
        price = mapped.price("prc_7")
        assert price.id == "prc_7"
        assert msgspec.structs.replace(price, id="") == mapped.draft
        assert with_terms(price, price_terms_json(price)) == price


def test_a_mapped_price_charges_what_the_map_says() -> None:
    sonnet = of(read_price_map(EXCERPT), "anthropic.claude-sonnet-4-5-20250929-v1:0").price("prc_1")
    usage = Usage(uncached_input=1000, cache_read=190_000, cache_write=9001, output=100)
    # 1,000 × 6,000 + 190,000 × 600 + 9,001 × 7,500 + 100 × 22,500
    assert cost_nanos(usage, sonnet) == 189_757_500


@pytest.mark.parametrize(
    ("written", "nanos"),
    [
        ("1e-07", 10**8),
        ("1E-7", 10**8),
        ("0.0000001", 10**8),
        ("0.00000010000", 10**8),
        ("1e-15", 1),
        ("123456789e-15", 123_456_789),
        ("2.8e-7", 280_000_000),  # 279999999.99999994 as a float
        ("1", 10**15),
        ("0", 0),
        ("0.0", 0),
        ("0e-99", 0),
    ],
)
def test_a_number_is_read_as_it_is_written(written: str, nanos: int) -> None:
    price = one(f'{{"input_cost_per_token":{written},"output_cost_per_token":0}}')
    assert price.draft.uncached_input == price.draft.cache_read == price.draft.cache_write == nanos


def test_floats_would_get_some_of_the_excerpt_wrong() -> None:
    floats = {
        name: int(entry.get("cache_read_input_token_cost", 0) * 1e15) for name, entry in json.loads(EXCERPT).items()
    }
    exact = {price.source: price.draft.cache_read for price in read_price_map(EXCERPT).prices}
    assert [name for name in exact if floats[name] not in (0, exact[name])]


@given(st.integers(0, PRICE_UNITS_MAX * 10**9))
def test_every_price_there_can_be_survives_the_map(nanos: int) -> None:
    assert one(f'{{"input_cost_per_token":{nanos}e-15,"output_cost_per_token":0}}').draft.uncached_input == nanos


CHAT = {"mode": "chat", "input_cost_per_token": 1e-06, "output_cost_per_token": 4e-06}


def test_a_level_keeps_what_it_does_not_say_from_the_one_below() -> None:
    price = one(
        CHAT
        | {
            "cache_read_input_token_cost": 1e-07,
            "output_cost_per_reasoning_token": 4e-06,  # the output's: it goes along with it
            "input_cost_per_token_above_128k_tokens": 2e-06,
            "output_cost_per_token_above_256k_tokens": 8e-06,
            "cache_creation_input_token_cost_above_128k_tokens": 3e-06,
        }
    ).draft
    assert price.reasoning == price.output == 400 * CENT
    assert price.tiers == (
        Tier(above_input_tokens=128_000, **tokens(200, 10, 400, cache_write=300)),
        Tier(above_input_tokens=256_000, **tokens(200, 10, 800, cache_write=300)),
    )


def test_reasoning_with_a_price_of_its_own_keeps_it() -> None:
    price = one(
        CHAT | {"output_cost_per_reasoning_token": 5e-06, "output_cost_per_token_above_128k_tokens": 8e-06}
    ).draft
    assert price.reasoning == price.tiers[0].reasoning == 500 * CENT


@pytest.mark.parametrize(
    ("more", "multipliers", "note"),
    [
        ({"input_cost_per_token_batches": 5e-07, "output_cost_per_token_batches": 2e-06}, (HALF,), None),
        ({"input_cost_per_token_batches": 0, "output_cost_per_token_batches": 0}, (("batch", 0),), None),
        (
            {"input_cost_per_token_batches": 5e-07, "output_cost_per_token_batches": 1e-06},
            (),
            '"batch" is not one multiplier of the price: input_cost_per_token_batches, output_cost_per_token_batches',
        ),
        (
            {"input_cost_per_token_flex": 5e-07},
            (),
            '"flex" is not one multiplier of the price: input_cost_per_token_flex',
        ),
        (
            {
                "cache_read_input_token_cost": 0,
                "cache_read_input_token_cost_flex": 1e-07,
                "input_cost_per_token_flex": 5e-07,
                "output_cost_per_token_flex": 2e-06,
            },
            (),
            (
                '"flex" is not one multiplier of the price: cache_read_input_token_cost_flex, input_cost_per_token_flex,'
                " output_cost_per_token_flex"
            ),
        ),
        (
            {"output_cost_per_token": 3e-06, "input_cost_per_token": 3e-06}
            | {"input_cost_per_token_priority": 5e-06, "output_cost_per_token_priority": 5e-06},
            (),
            '"priority" at 5/3 times the price is finer than a millionth',
        ),
        (
            {"input_cost_per_token_priority": 5, "output_cost_per_token_priority": 20},
            (),
            '"priority" at more than 100 times the price is absurd',
        ),
    ],
)
def test_a_service_tier_is_one_multiplier_or_is_left_out_with_a_note(
    more: dict[str, Any], multipliers: tuple[tuple[str, int], ...], note: str | None
) -> None:
    price = one(CHAT | more)
    assert price.draft.multipliers == multipliers
    assert price.notes == (() if note is None else (note,))


def test_an_extra_of_a_model_paid_by_tokens_is_a_note_and_a_zero_is_nothing() -> None:
    price = one(
        CHAT
        | {"input_cost_per_audio_token": 1e-05, "output_cost_per_image_token": 0.0, "search_context_cost_per_query": {}}
        | {"code_interpreter_cost_per_session": None, "max_tokens": 7}
    )
    assert price.notes == ("not in the price: input_cost_per_audio_token",)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("7", "the entry is not a JSON object"),
        ({"mode": "chat"}, "it has no price"),
        ({"mode": "chat", "output_cost_per_token": 1e-06}, "it has no input_cost_per_token"),
        ({"mode": "chat", "input_cost_per_token": 1e-06}, "it has no output_cost_per_token"),
        (CHAT | {"input_cost_per_token": "0.0"}, "input_cost_per_token is not a number"),
        (CHAT | {"input_cost_per_token": True}, "input_cost_per_token is not a number"),
        (CHAT | {"output_cost_per_token": -1e-06}, "output_cost_per_token is negative"),
        (CHAT | {"input_cost_per_request": 1e30}, "input_cost_per_request is absurd"),
        ('{"input_cost_per_token":1e-999999999,"output_cost_per_token":0}', "input_cost_per_token is absurd"),
        (
            '{"input_cost_per_token":1.5e-15,"output_cost_per_token":0}',
            "input_cost_per_token of 1.5E-15 is finer than a nano-unit per million",
        ),
        (
            '{"input_cost_per_token":1.000000000000001,"output_cost_per_token":0}',
            "input_cost_per_token of 1.000000000000001 is dearer than 1000000 units per million",
        ),
        (
            CHAT | {"input_cost_per_token_above_128k_tokens": 2},
            "input_cost_per_token of 2 is dearer than 1000000 units per million",
        ),
        (
            {"mode": "image_generation", "input_cost_per_pixel": 2e-08},
            "it is priced in what can't be billed here: input_cost_per_pixel",
        ),
        (
            {"mode": "audio_transcription", "input_cost_per_second": 1e-04, "output_cost_per_second": 2e-04},
            "it has two prices for a second: input_cost_per_second and output_cost_per_second",
        ),
        ({"tiered_pricing": 3}, "tiered_pricing is not a list"),
        ({"tiered_pricing": [3]}, "tiered_pricing has a row without a range of two numbers"),
        (
            {"tiered_pricing": [CHAT | {"range": [1, 2]}]},
            "tiered_pricing has what can't be read: mode",
        ),
        (
            {"tiered_pricing": [{"range": [1, 2], "input_cost_per_token": 0, "output_cost_per_token": 0}]},
            "tiered_pricing has what can't be read: a range from 1",
        ),
        (
            {"tiered_pricing": [{"range": [0, 2], "input_cost_per_token": 1e-06}]},
            "tiered_pricing has a row without output_cost_per_token",
        ),
    ],
)
def test_what_would_be_billed_wrongly_is_skipped_with_the_reason(entry: dict[str, Any] | str, expected: str) -> None:
    assert reason(entry) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"<html>", "is not JSON"),
        (b'{"m":{"input_cost_per_token":1e-07}', "is not JSON"),
        (b'{"m":"\xff"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'"gpt-4o"', "is not a JSON object"),
        (b'{"message":"Not Found","status":"404"}', "it is another file"),
        (b'{"m":{"input_cost_per_token":1e-99999999999999999999999}}', "a number that can't be read"),
    ],
)
def test_what_is_no_price_map_is_refused_with_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_price_map(data)


_money_fields = [name for entry in json.loads(EXCERPT).values() for name in entry] + ["tiered_pricing"]
_values = (
    st.none()
    | st.booleans()
    | st.integers(-2, 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, 1e-06, 2e-06, 5e-07, "x", {}, [], [{"range": [0, 10], "input_cost_per_token": 1e-06}]])
)


@given(st.dictionaries(st.text(max_size=3), st.dictionaries(st.sampled_from(_money_fields), _values) | st.just({})))
def test_any_map_gives_prices_that_can_be_or_reasons(entries: dict[str, dict[str, Any]]) -> None:
    read = read_price_map(json.dumps(entries).encode())
    assert len(read.prices) + len(read.skipped) == len(entries)
    for mapped in read.prices:
        price = mapped.draft
        assert (
            max(price.uncached_input, price.output, price.request, price.image) <= PRICE_UNITS_MAX * 10**9 < NANOS_MAX
        )
    assert all(skipped.reason for skipped in read.skipped)
