"""Read an OpenAI-style chat stream (OpenAI, vLLM, llama.cpp, most providers) into events.

One decoder for all of them: what an engine adds (llama.cpp's `timings` and `prompt_progress`, vLLM's running `usage`,
either name of reasoning) are optional fields of one chunk. Source: the OpenAI API reference, "The chat completion chunk
object"; llama.cpp `tools/server/README.md`; vLLM `stream_options.continuous_usage_stats`.
"""

from typing import Any, Protocol

import msgspec

from headwater.engines.sse import LineTooLong, SSEParser
from headwater.errors import EngineFailed
from headwater.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Progress,
    Reasoning,
    Started,
    Text,
    TokenLogprob,
    ToolCallDelta,
    UsageReport,
)
from headwater.usage import reported

BAD_LINES_MAX = 8
"""So many unreadable lines are passed over; after that the stream is garbage, not damaged."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None
    refusal: str | None = None


class _Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Timings(msgspec.Struct):
    cache_n: int | None = None
    prompt_n: int = 0
    predicted_n: int = 0


class _PromptProgress(msgspec.Struct):
    total: int = 0
    cache: int = 0
    processed: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    prompt_progress: _PromptProgress | None = None
    error: Any = None
    object: str | None = None  # "error" where vLLM before 0.11 says so


_decode = msgspec.json.Decoder(_Chunk).decode

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


_BROKEN_OFF = ("error", "abort")
"""What OpenRouter and SGLang say where others send an error event; it is no end of an answer."""


class Recount(Protocol):
    """What corrects an engine's count of cached tokens, when one request was read in two calls.

    cached_tokens_max: so many were cached before the first of them; None as long as there was only one.
    """

    @property
    def cached_tokens_max(self) -> int | None:
        """See above."""


class OpenAIStreamDecoder:
    """One attempt's answer: bytes in, events out. Pure.

    `is_done` turns true at `[DONE]`. `bad_lines_count` and `lying_reports_count` say what was passed over, for the log;
    `lying_report` is the last event with a count nobody may believe, as it came, for the books.
    """

    def __init__(self, recount: Recount | None = None) -> None:
        self._recount = recount
        self._lines = SSEParser()
        self._has_started = False
        self._timings_cached: int | None = None
        self.is_done = False
        self.bad_lines_count = 0
        self.lying_reports_count = 0
        self.lying_report: bytes | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by these bytes. A stream that is garbage ends in Failed; nothing is raised."""
        events: list[Event] = []
        try:
            payloads = self._lines.feed(data)
        except LineTooLong as error:
            return [Failed(EngineFailed(f"The engine's answer can't be read: {error}."))]
        for payload in payloads:
            if payload == b"[DONE]":
                self.is_done = True
                break
            try:
                chunk = _decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.bad_lines_count += 1
                if self.bad_lines_count > BAD_LINES_MAX:
                    events.append(
                        Failed(
                            EngineFailed(f"The engine sent more than {BAD_LINES_MAX} lines that are not JSON events.")
                        )
                    )
                    break
                continue
            lies_count = self.lying_reports_count
            self._chunk(chunk, events)
            if self.lying_reports_count > lies_count:
                self.lying_report = payload
        return events

    def _chunk(self, chunk: _Chunk, events: list[Event]) -> None:
        if chunk.error is not None or chunk.object == "error":
            events.append(Failed(EngineFailed("The engine reported an error in the middle of its answer.")))
            return
        if not self._has_started:
            self._has_started = True
            events.append(Started())
        if chunk.prompt_progress is not None:
            progress = chunk.prompt_progress
            events.append(Progress(progress.processed, progress.total, progress.cache))
        # The engine's running count goes before the content it counts: a reader that stops after the content has both.
        if chunk.timings is not None:
            self._timings(chunk.timings, events)
        choices = chunk.choices or ()
        for choice in choices:
            self._choice(choice, events)
        if chunk.usage is not None and chunk.usage.completion_tokens is not None:
            # The closing count has a chunk of its own (OpenAI) or comes with the finish (DeepSeek); others are running.
            self._usage(chunk.usage, events, is_final=all(choice.finish_reason for choice in choices))

    def _choice(self, choice: _Choice, events: list[Event]) -> None:
        delta = choice.delta
        if delta is not None:
            if reasoning := delta.reasoning_content or delta.reasoning:
                events.append(Reasoning(reasoning))
            if text := delta.content or delta.refusal:
                events.append(Text(text, choice.logprobs.content if choice.logprobs is not None else None))
            for call in delta.tool_calls or ():
                function = call.function or _Function()
                events.append(ToolCallDelta(call.index, call.id, function.name, function.arguments or ""))
        if choice.finish_reason in _BROKEN_OFF:
            events.append(Failed(EngineFailed("The engine gave up in the middle of its answer.")))
        elif choice.finish_reason:  # some providers send "" until the end
            events.append(Finished(_FINISH.get(choice.finish_reason, "stop")))

    def _timings(self, timings: _Timings, events: list[Event]) -> None:
        cached = timings.cache_n or 0
        self._timings_cached = timings.cache_n
        prompt = timings.prompt_n + cached
        if self._recount is not None:
            cached = self._recounted(cached)
        usage = reported(prompt_tokens=prompt, completion_tokens=timings.predicted_n, cached_tokens=cached)
        if usage is None:
            self.lying_reports_count += 1
        elif timings.predicted_n:  # during prefill the count is of tokens read so far, not of the prompt
            events.append(UsageReport(usage, is_final=False))

    def _usage(self, wire: _Usage, events: list[Event], *, is_final: bool) -> None:
        prompt, completion = wire.prompt_tokens_details, wire.completion_tokens_details
        cached = None if prompt is None else prompt.cached_tokens
        if cached is None:  # DeepSeek has its own word; llama.cpp says it in its timings only
            cached = wire.prompt_cache_hit_tokens if wire.prompt_cache_hit_tokens is not None else self._timings_cached
        if self._recount is not None:
            cached = self._recounted(cached or 0)
        output = wire.completion_tokens or 0
        reasoning = (completion.reasoning_tokens or 0) if completion is not None else 0
        if reasoning and wire.total_tokens == wire.prompt_tokens + output + reasoning:
            output += reasoning  # xAI counts reasoning beside the output, not in it; the total tells
        usage = reported(
            prompt_tokens=wire.prompt_tokens,
            completion_tokens=output,
            cached_tokens=cached or 0,
            cache_write_tokens=(prompt.cache_write_tokens or 0) if prompt is not None else 0,
            reasoning_tokens=reasoning,
        )
        if usage is None:
            self.lying_reports_count += 1
        else:
            events.append(UsageReport(usage, is_final=is_final))

    def _recounted(self, cached: int) -> int:
        """What of the cached tokens an earlier request had read."""
        assert self._recount is not None
        most = self._recount.cached_tokens_max
        return cached if most is None else min(cached, most)
