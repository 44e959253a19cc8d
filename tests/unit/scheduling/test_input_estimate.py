"""What prompts probably have in tokens: cautious first, exact for what resembles what was seen, never far below it."""

from hypothesis import given
from hypothesis import strategies as st

from headwater.request import Chat, Message
from headwater.scheduling.input_estimate import InputEstimates, prompt_bytes, typical_tokens


def test_at_first_every_byte_is_taken_for_a_token() -> None:
    assert InputEstimates().estimate("m", 300) == 300


def test_a_prompt_like_one_that_was_seen_is_estimated_exactly() -> None:
    estimates = InputEstimates()
    estimates.learn("m", 297, 71)
    assert estimates.estimate("m", 297) == 71
    assert estimates.estimate("other", 297) == 297
    assert estimates.estimate("m", 3000) == 3000, "another size class"


def test_a_mixture_is_estimated_by_its_densest_and_that_is_forgotten_slowly() -> None:
    estimates = InputEstimates()
    estimates.learn("m", 300, 200)
    estimates.learn("m", 300, 50)
    assert 190 <= estimates.estimate("m", 300) <= 200
    for _ in range(300):
        estimates.learn("m", 300, 50)
    assert estimates.estimate("m", 300) <= 51


@given(sizes=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1))
def test_an_estimate_is_never_below_what_the_last_prompt_of_that_size_had(sizes: list[tuple[int, int]]) -> None:
    estimates = InputEstimates()
    for size_bytes, tokens in sizes:
        estimates.learn("m", size_bytes, tokens)
        assert estimates.estimate("m", size_bytes) >= tokens


def test_sizes_are_of_text_and_messages() -> None:
    made = Chat(messages=(Message(role="user", content="x" * 40),) * 2, text_bytes=80)
    assert (prompt_bytes(made), typical_tokens(made)) == (112, 22)
    estimates = InputEstimates()
    assert estimates.probable("m", made) == 22
    estimates.learn("m", 112, 50)
    assert estimates.probable("m", made) == 50
