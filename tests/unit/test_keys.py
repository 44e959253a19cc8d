import hashlib
import string

from hypothesis import given
from hypothesis import strategies as st

from headwater.keys import HINT_LENGTH, KEY_LENGTH, PREFIX, hash_key, is_well_formed, new_key

ALPHABET = string.ascii_letters + string.digits


def test_every_key_has_the_one_shape() -> None:
    for _ in range(500):
        made = new_key()
        assert len(made.secret) == KEY_LENGTH == 52
        assert made.secret.startswith(PREFIX)
        assert set(made.secret[len(PREFIX) :]) <= set(ALPHABET)
        assert is_well_formed(made.secret)


def test_what_is_kept_of_a_key_is_its_hash_and_its_first_characters() -> None:
    made = new_key()
    assert made.hash == hash_key(made.secret) == hashlib.sha256(made.secret.encode()).digest()
    assert made.hint == made.secret[:HINT_LENGTH]
    assert len(made.hint) - len(PREFIX) <= 5  # of 43 random characters


def test_keys_differ() -> None:
    assert len({new_key().secret for _ in range(1000)}) == 1000


@given(st.integers(0, KEY_LENGTH - 1), st.sampled_from(ALPHABET + "-_ é"))
def test_a_key_with_one_wrong_character_is_no_key(position: int, character: str) -> None:
    secret = new_key().secret
    wrong = secret[:position] + character + secret[position + 1 :]
    assert is_well_formed(wrong) == (wrong == secret)


@given(st.integers(len(PREFIX), KEY_LENGTH - 2))
def test_a_key_with_two_neighbours_swapped_is_no_key(position: int) -> None:
    secret = new_key().secret
    swapped = secret[:position] + secret[position + 1] + secret[position] + secret[position + 2 :]
    assert is_well_formed(swapped) == (swapped == secret)


@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    assert not is_well_formed(text)


@given(st.text(ALPHABET, min_size=KEY_LENGTH - len(PREFIX), max_size=KEY_LENGTH - len(PREFIX)))
def test_a_random_guess_of_the_right_shape_is_refused(body: str) -> None:
    assert not is_well_formed(PREFIX + body)


def test_a_longer_or_shorter_key_is_refused() -> None:
    secret = new_key().secret
    assert not any(is_well_formed(text) for text in (secret[:-1], secret + "0", " " + secret, secret + "\n", ""))
