"""Normalise what providers report as usage to `Usage`: disjoint parts of input, reasoning inside output. Pure.

Providers differ in what includes what, and every difference read wrongly is a wrong bill: OpenAI's and Gemini's prompt
includes the cached tokens, Anthropic's excludes them; OpenAI's output includes reasoning, Gemini's and xAI's exclude it.
Sources: the API references of OpenAI (chat completion and response objects), Anthropic (Messages, streaming, prompt
caching), Google (Gemini `UsageMetadata`), DeepSeek (context caching) and xAI; vLLM `UsageInfo`; llama.cpp
`tools/server/README.md`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from headwater.usage import TOKENS_MAX, Usage

Shape = Literal["openai_chat", "openai_responses", "anthropic", "gemini", "deepseek", "vllm", "llamacpp"]


class Lie(NamedTuple):
    """A report that can't be, and why: what it contradicts, or what is missing. One sentence without its full stop."""

    reason: str


Reading = Usage | Lie
Fields = Mapping[str, Any]


class _NotSo(Exception):
    """Carries a `Lie` out of the readers below; never leaves `read_usage`."""


def read_usage(report: Fields | bytes, shape: Shape) -> Reading:
    """The usage in a provider's answer, event or bare usage object; a `Lie` with its reason when it can't be true.

    report: the decoded JSON object, or its bytes. Anthropic's streamed events are merged first: `merge_anthropic`.
    Nothing is raised, whatever the report holds.
    """
    if isinstance(report, bytes):
        try:
            decoded: object = msgspec.json.decode(report)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return Lie("the report is not JSON")
        if not isinstance(decoded, dict):
            return Lie("the report is not a JSON object")
        report = decoded
    try:
        return _READERS[shape](report)
    except _NotSo as lie:
        return Lie(str(lie))


def merge_anthropic(earlier: Fields, later: Fields) -> dict[str, Any]:
    """The usage of a streamed message so far: `message_start`'s, then each `message_delta`'s over it. Pure.

    earlier, later: usage objects, not whole events. Counts are cumulative, so a later number replaces an earlier one and
    null says nothing. Deltas carry no split of the cache writes: when their sum has changed, the earlier split is void.
    """
    merged = dict(earlier)
    said = {name: value for name, value in later.items() if value is not None}
    written = "cache_creation_input_tokens"
    if written in said and said[written] != earlier.get(written) and "cache_creation" not in said:
        merged.pop("cache_creation", None)
    merged.update(said)
    return merged


def _openai(report: Fields) -> Usage:
    return _openai_usage(_inside(report, "usage"))


def _openai_usage(usage: Fields) -> Usage:
    return _from_totals(
        prompt=_count(usage, "prompt_tokens"),
        output=_count(usage, "completion_tokens"),
        prompt_details=_details(usage, "prompt_tokens_details"),
        output_details=_details(usage, "completion_tokens_details"),
        total=_count_or_none(usage, "total_tokens"),
    )


def _responses(report: Fields) -> Usage:
    usage = _inside(_inside(report, "response"), "usage")
    return _from_totals(
        prompt=_count(usage, "input_tokens"),
        output=_count(usage, "output_tokens"),
        prompt_details=_details(usage, "input_tokens_details"),
        output_details=_details(usage, "output_tokens_details"),
        total=_count_or_none(usage, "total_tokens"),
    )


def _deepseek(report: Fields) -> Usage:
    usage = _inside(report, "usage")
    read = _openai_usage(usage)
    hit = _count_or_none(usage, "prompt_cache_hit_tokens")
    miss = _count_or_none(usage, "prompt_cache_miss_tokens")
    if hit is None and miss is None:
        return read
    hit, miss = hit or 0, miss or 0
    if hit + miss != read.input:
        raise _NotSo(f"{hit} cache hits and {miss} misses are not the {read.input} prompt tokens")
    if read.cache_read not in (0, hit):
        raise _NotSo(f"{hit} cache hits contradict {read.cache_read} cached tokens")
    return _usage(prompt=read.input, cached=hit, output=read.output, reasoning=read.reasoning)


def _anthropic(report: Fields) -> Usage:
    usage = _inside(_inside(report, "message"), "usage")
    written = _count_or_none(usage, "cache_creation_input_tokens")
    split = _details(usage, "cache_creation")
    written_1h = _count_or_none(split, "ephemeral_1h_input_tokens")
    written_5m = _count_or_none(split, "ephemeral_5m_input_tokens")
    if written_1h is not None or written_5m is not None:
        written_1h, written_5m = written_1h or 0, written_5m or 0
        if written is not None and written != written_1h + written_5m:
            raise _NotSo(f"{written} tokens written to the cache are not {written_5m} of 5 m and {written_1h} of 1 h")
        written = written_1h + written_5m
    uncached, read = _count(usage, "input_tokens"), _count_or_none(usage, "cache_read_input_tokens") or 0
    written = written or 0
    return _usage(
        prompt=uncached + read + written,  # here alone input excludes both
        cached=read,
        written=written,
        written_1h=written_1h or 0,
        output=_count(usage, "output_tokens"),
        reasoning=_count_or_none(_details(usage, "output_tokens_details"), "thinking_tokens") or 0,
    )


def _gemini(report: Fields) -> Usage:
    usage = _inside(report, "usageMetadata")
    prompt = _count(usage, "promptTokenCount")
    cached = _count_or_none(usage, "cachedContentTokenCount") or 0
    if cached > prompt:  # beside the tools' tokens, which are never cached
        raise _NotSo(f"{cached} cached tokens are more than the {prompt} prompt tokens")
    tools = _count_or_none(usage, "toolUsePromptTokenCount") or 0
    # Zeros are left out of protobuf's JSON: a report before the first candidate has no count of them.
    candidates = _count_or_none(usage, "candidatesTokenCount") or 0
    thoughts = _count_or_none(usage, "thoughtsTokenCount") or 0
    total = _count_or_none(usage, "totalTokenCount")
    if total in (None, prompt + tools + candidates + thoughts, prompt + candidates + thoughts):
        output = candidates + thoughts
    elif total == prompt + tools + candidates:  # Vertex AI has reported thoughts inside the candidates
        output = candidates
    else:
        raise _NotSo(f"a total of {total} is not {prompt} + {tools} + {candidates} + {thoughts} tokens")
    return _usage(prompt=prompt + tools, cached=cached, output=output, reasoning=thoughts)


def _llamacpp(report: Fields) -> Usage:
    bare_timings = "timings" not in report and "predicted_n" in report
    timings = report if bare_timings else _details(report, "timings")
    predicted = _count_or_none(timings, "predicted_n")
    if predicted is None:
        return _openai(report)
    processed, reused = _count(timings, "prompt_n"), _count_or_none(timings, "cache_n")
    if bare_timings or report.get("usage") is None:
        return _usage(prompt=processed + (reused or 0), cached=reused or 0, output=predicted)
    usage = _openai(report)
    if reused is None:  # before `cache_n`: what the prompt has and wasn't processed came from the cache
        reused = max(usage.input - processed, 0)
    if (reused + processed, predicted) != (usage.input, usage.output) or usage.cache_read not in (0, reused):
        raise _NotSo(
            f"timings of {reused} + {processed} prompt and {predicted} output tokens contradict usage of"
            f" {usage.cache_read} cached, {usage.input} prompt and {usage.output} output tokens"
        )
    return _usage(prompt=usage.input, cached=reused, output=predicted, reasoning=usage.reasoning)


def _from_totals(
    *, prompt: int, output: int, prompt_details: Fields, output_details: Fields, total: int | None
) -> Usage:
    """OpenAI's way, chat or responses: prompt includes what is cached or written, output includes reasoning.

    Where the total says that reasoning came on top of output (xAI's way), it is added.
    """
    reasoning = _count_or_none(output_details, "reasoning_tokens") or 0
    if total is not None and total != prompt + output:
        if total != prompt + output + reasoning:
            raise _NotSo(f"a total of {total} is not {prompt} + {output} tokens")
        output += reasoning
    return _usage(
        prompt=prompt,
        cached=_count_or_none(prompt_details, "cached_tokens") or 0,
        written=_count_or_none(prompt_details, "cache_write_tokens") or 0,
        output=output,
        reasoning=reasoning,
    )


def _usage(
    *, prompt: int, cached: int = 0, written: int = 0, written_1h: int = 0, output: int, reasoning: int = 0
) -> Usage:
    """The one place where parts are taken from wholes, and refused where they don't fit."""
    if cached + written > prompt:
        more = f"{cached} cached tokens" if not written else f"{cached} cached and {written} written tokens"
        raise _NotSo(f"{more} are more than the {prompt} prompt tokens")
    if reasoning > output:
        raise _NotSo(f"{reasoning} reasoning tokens are more than the {output} output tokens")
    if max(prompt, output) > TOKENS_MAX:
        raise _NotSo(f"{prompt} prompt and {output} output tokens are more than {TOKENS_MAX}")
    return Usage(
        uncached_input=prompt - cached - written,
        cache_read=cached,
        cache_write=written,
        cache_write_1h=written_1h,
        output=output,
        reasoning=reasoning,
    )


def _inside(report: Fields, name: str) -> Fields:
    """The object under a name; the report itself where it is bare. Missing when the name is there without an object."""
    if name not in report:
        return report
    found = report[name]
    if found is None:
        raise _NotSo(f"{name} is null")
    return _object(found, name)


def _details(usage: Fields, name: str) -> Fields:
    """The object under a name; empty when it is missing or null."""
    found = usage.get(name)
    return {} if found is None else _object(found, name)


def _object(found: object, name: str) -> Fields:
    if not isinstance(found, Mapping):
        raise _NotSo(f"{name} is not an object")
    return found


def _count(usage: Fields, name: str) -> int:
    count = _count_or_none(usage, name)
    if count is None:
        raise _NotSo(f"{name} is missing")
    return count


def _count_or_none(usage: Fields, name: str) -> int | None:
    count = usage.get(name)
    if count is None:
        return None
    if not isinstance(count, int) or isinstance(count, bool):
        raise _NotSo(f"{name} is not a whole number")
    if not 0 <= count <= TOKENS_MAX:
        raise _NotSo(f"{name} of {_short(count)} is not from 0 to {TOKENS_MAX}")
    return count


def _short(count: int) -> str:
    """A number for a sentence; one of thousands of digits only by its sign, since Python refuses to write it."""
    return str(count) if abs(count) < 10**30 else f"about {'-' if count < 0 else ''}10^{count.bit_length() * 3 // 10}"


_READERS: Final[Mapping[Shape, Callable[[Fields], Usage]]] = {
    "openai_chat": _openai,
    "openai_responses": _responses,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "deepseek": _deepseek,
    "vllm": _openai,  # running counts too; its prompt_tokens_details may be null
    "llamacpp": _llamacpp,
}
