"""How many tokens a prompt probably has at an upstream that can't be asked: learned from what it reported. Pure.

Prompts of one size class (their bytes to the next power of two) of one model have much the same tokens for a byte. The
largest such share seen lately is the estimate, so that requests that resemble each other are estimated exactly and a
mixture too high. Before anything was seen every byte is taken for a token, which is several times too high.
"""

from math import ceil

from headwater.request import Chat

BYTES_PER_MESSAGE = 16
BYTES_PER_TOKEN_TYPICAL = 4
FORGETTING = 1 / 32
"""How far the estimate goes towards a smaller share with each request that shows one."""


def prompt_bytes(chat: Chat) -> int:
    """The size an estimate goes by: UTF-8 bytes of all text, and what the messages' frames take."""
    return chat.text_bytes + BYTES_PER_MESSAGE * len(chat.messages)


def typical_tokens(chat: Chat) -> int:
    """Tokens of a prompt of English text: one for every four bytes and for each message."""
    return max(1, -(-chat.text_bytes // BYTES_PER_TOKEN_TYPICAL) + len(chat.messages))


class InputEstimates:
    """What was learned, by model and size class: at most 48 numbers for each model."""

    def __init__(self) -> None:
        self._tokens_per_byte: dict[tuple[str, int], float] = {}

    def estimate(self, model: str, size_bytes: int) -> int:
        """Tokens of a prompt of this size, at least 1."""
        # A hair less, so that the very prompt it was learned from isn't rounded up to one token more.
        return max(1, ceil(self._tokens_per_byte.get((model, size_bytes.bit_length()), 1.0) * size_bytes - 1e-6))

    def probable(self, model: str, chat: Chat) -> int:
        """What is the likeliest rather than the safest to assume: what was learned, else what is typical."""
        size_bytes = prompt_bytes(chat)
        if (model, size_bytes.bit_length()) in self._tokens_per_byte:
            return self.estimate(model, size_bytes)
        return typical_tokens(chat)

    def learn(self, model: str, size_bytes: int, tokens: int) -> None:
        """A prompt of this size had so many tokens, as its upstream reported."""
        place = (model, size_bytes.bit_length())
        seen = tokens / max(1, size_bytes)
        known = self._tokens_per_byte.get(place, 0.0)
        self._tokens_per_byte[place] = max(seen, known - (known - seen) * FORGETTING)
