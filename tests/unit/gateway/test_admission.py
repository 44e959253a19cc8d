import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ContextLengthExceeded
from headwater.gateway.admission import Sized, decide_output_cap, input_tokens_bound, output_cap
from headwater.request import Chat, Message
from tests.unit.gateway.chats import CountingEngine, chat, target
from tests.unit.gateway.fake_time import run

caps = st.none() | st.integers(1, 10_000)


def decided(payload: Chat, engine: CountingEngine, *, context_tokens: int | None = 4096, is_own: bool = True) -> int:
    async def work() -> Sized:
        where = target(engine=engine, context_tokens=context_tokens, is_own=is_own)
        return await decide_output_cap(payload, where, default_max=1000)

    cap = run(work()).chat.output_tokens_max
    assert cap is not None
    return cap


def test_the_bound_counts_bytes_messages_and_the_template() -> None:
    payload = chat(messages=(Message(role="user", content="x"),) * 3, text_bytes=100)
    assert input_tokens_bound(payload) == 100 + 3 * 16 + 512


@given(st.integers(0, 20_000), caps, st.none() | st.integers(1, 20_000), st.integers(1, 5000))
def test_the_cap_is_the_callers_or_the_smaller_of_default_and_room_and_always_fits(
    input_tokens: int, stated: int | None, context_tokens: int | None, default_max: int
) -> None:
    payload = chat(output_tokens_max=stated)
    try:
        cap = output_cap(payload, input_tokens=input_tokens, context_tokens=context_tokens, default_max=default_max)
    except ContextLengthExceeded:
        assert context_tokens is not None
        assert input_tokens + (stated or 1) > context_tokens
        return
    assert cap >= 1
    assert stated is None or cap == stated  # a stated one never shrinks
    assert stated is not None or cap <= default_max
    assert context_tokens is None or input_tokens + cap <= context_tokens


@pytest.mark.parametrize(
    ("input_tokens", "stated", "param", "said"),
    [
        (100, None, "messages", "the messages take 100."),
        (150, 10, "messages", "the messages take 150 and 10 are asked for"),
        (90, 11, "max_tokens", "the messages take 90 and 11 are asked for"),
    ],
)
def test_what_does_not_fit_says_the_limit_and_what_was_asked_for(
    input_tokens: int, stated: int | None, param: str, said: str
) -> None:
    with pytest.raises(ContextLengthExceeded, match="holds 100 tokens") as refused:
        output_cap(chat(output_tokens_max=stated), input_tokens=input_tokens, context_tokens=100, default_max=50)
    assert refused.value.param == param
    assert said in refused.value.message


def test_a_request_that_surely_fits_asks_nobody() -> None:
    engine = CountingEngine(1)
    assert decided(chat(text_bytes=1000), engine) == 1000
    assert decided(chat(text_bytes=1000, output_tokens_max=2000), engine) == 2000
    assert engine.asked_count == 0


def test_one_that_may_not_fit_is_counted_before_anybody_is_refused() -> None:
    engine = CountingEngine(3000)
    assert decided(chat(text_bytes=6000, output_tokens_max=1096), engine) == 1096
    assert decided(chat(text_bytes=6000), engine) == 1000
    with pytest.raises(ContextLengthExceeded):
        decided(chat(text_bytes=6000, output_tokens_max=1097), engine)
    assert engine.asked_count == 3


def test_an_unstated_cap_shrinks_to_the_room_there_is() -> None:
    assert decided(chat(text_bytes=6000), CountingEngine(4000)) == 96


def test_an_upstream_of_unknown_context_decides_for_itself() -> None:
    engine = CountingEngine(None)
    assert decided(chat(text_bytes=10**7), engine, context_tokens=None, is_own=False) == 1000
    assert decided(chat(text_bytes=10**7, output_tokens_max=9), engine, context_tokens=None, is_own=False) == 9


def test_an_upstreams_long_prompt_is_its_own_to_refuse_and_an_impossible_cap_is_ours() -> None:
    engine = CountingEngine(None)
    assert decided(chat(text_bytes=10**5), engine, is_own=False) == 1000
    with pytest.raises(ContextLengthExceeded):
        decided(chat(text_bytes=1, output_tokens_max=5000), engine, is_own=False)
    assert engine.asked_count == 0
