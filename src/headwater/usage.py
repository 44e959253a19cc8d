"""Units of use: how many tokens of each kind, and how we know."""

from typing import Literal

import msgspec

UsageSource = Literal["reported", "counted", "estimated"]
Outcome = Literal["ok", "client_gone", "upstream_error", "timeout", "rejected"]


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one attempt or request. Disjoint parts: input = uncached + cache_read + cache_write.

    reasoning is a part of output, not beside it; so is cache_write_1h of cache_write: what was written to live an hour
    rather than the usual minutes, which some providers bill dearer. Every field is ≥ 0 (checked where untrusted numbers
    come in: `reported`, `engines.usage_reports`).
    """

    uncached_input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def input(self) -> int:
        """All input tokens, cached or not."""
        return self.uncached_input + self.cache_read + self.cache_write

    def __add__(self, other: "Usage") -> "Usage":
        """Sum part by part: the branches of one request with n > 1."""
        return Usage(
            uncached_input=self.uncached_input + other.uncached_input,
            cache_read=self.cache_read + other.cache_read,
            cache_write=self.cache_write + other.cache_write,
            cache_write_1h=self.cache_write_1h + other.cache_write_1h,
            output=self.output + other.output,
            reasoning=self.reasoning + other.reasoning,
        )


NO_USAGE = Usage()
TOKENS_MAX = 2**31
"""Above this an upstream's count is absurd; it is refused as a report and we count ourselves.

With prices of at most a million units for a million tokens (`money.PRICE_UNITS_MAX`) and no multiplier above 2, no
request of one call outgrows 63 bits; beyond that `money.cost_nanos` raises OverflowError.
"""


def reported(
    *,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int = 0,
    cache_write_tokens: int = 0,
    reasoning_tokens: int = 0,
) -> Usage | None:
    """Usage from an OpenAI-style report, where `prompt_tokens` includes the cached ones.

    Returns None when the report lies: a negative or absurd number, more cached than prompt, more reasoning than output.
    """
    numbers = (prompt_tokens, completion_tokens, cached_tokens, cache_write_tokens, reasoning_tokens)
    if min(numbers) < 0 or max(numbers) > TOKENS_MAX:
        return None
    if cached_tokens + cache_write_tokens > prompt_tokens or reasoning_tokens > completion_tokens:
        return None
    return Usage(
        uncached_input=prompt_tokens - cached_tokens - cache_write_tokens,
        cache_read=cached_tokens,
        cache_write=cache_write_tokens,
        output=completion_tokens,
        reasoning=reasoning_tokens,
    )


_STRENGTH: dict[UsageSource, int] = {"reported": 0, "counted": 1, "estimated": 2}


def weakest(sources: list[UsageSource]) -> UsageSource:
    """The least certain of several sources: a record is only as good as its worst part. Empty means nothing was used: counted."""
    return max(sources, key=_STRENGTH.__getitem__, default="counted")
