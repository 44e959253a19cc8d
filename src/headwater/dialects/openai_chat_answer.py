"""Writes the answer of `POST /v1/chat/completions`: events to bytes, streamed or whole.

`StreamWriter` renders one server-sent event for each event, `AnswerCollector` the one body of a caller who doesn't
stream; putting a stream's chunks together gives the same message. Events that are not part of an answer (started,
progress, usage) render to nothing. Reasoning goes out under both names clients look for, `reasoning_content` and
`reasoning`. `system_fingerprint` is left out: it would promise that the same value means the same engine build, which
upstreams don't tell. Source: the response types of the official Python SDK `openai` 3.54.
"""

from typing import Any, Final

import msgspec

from headwater.errors import PlatformError
from headwater.events import Event, Finished, FinishReason, Reasoning, Text, TokenLogprob, ToolCallDelta
from headwater.usage import Usage

DONE: Final = b"data: [DONE]\n\n"
_encode: Final = msgspec.json.Encoder().encode


class AnswerHead(msgspec.Struct, frozen=True):
    """What every chunk and the whole body repeat. id: `chatcmpl-…`; created: whole seconds since the Unix epoch.

    service_tier: the tier that served the request, None when none was asked for: then the field is left out.
    """

    id: str
    created: int
    model: str
    service_tier: str | None = None


class StreamWriter:
    """Renders the chunks of one streamed answer.

    Choices may interleave.
    """

    def __init__(self, head: AnswerHead, include_usage: bool) -> None:
        """include_usage: every chunk carries `usage`, null until the one that `usage` renders."""
        tier = b"" if head.service_tier is None else b'"service_tier":%s,' % _encode(head.service_tier)
        self._open = (
            b'data: {"id":%s,"object":"chat.completion.chunk","created":%d,"model":%s,%s"choices":['
            % (_encode(head.id), head.created, _encode(head.model), tier)
        )  # fmt: skip
        self._close = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._text_end = b'},"logprobs":null,"finish_reason":null}]' + self._close
        self._text_start: dict[int, bytes] = {}

    def role(self, choice: int) -> bytes:
        """The first chunk of a choice: who speaks."""
        return self._chunk(choice, b'{"role":"assistant","content":""}')

    def event(self, choice: int, event: Event) -> bytes:
        """The chunk of one event of a choice; empty for events a client isn't told of (`error` renders a failure)."""
        if isinstance(event, Text):
            if event.logprobs is None:
                return self._starts(choice) + _encode(event.text) + self._text_end
            delta = b'{"content":' + _encode(event.text) + b"}"
            return self._chunk(choice, delta, b'{"content":' + _encode(event.logprobs) + b',"refusal":null}')
        if isinstance(event, Reasoning):
            text = _encode(event.text)
            return self._chunk(choice, b'{"reasoning_content":' + text + b',"reasoning":' + text + b"}")
        if isinstance(event, ToolCallDelta):
            return self._chunk(choice, b'{"tool_calls":[' + _call_delta(event) + b"]}")
        if isinstance(event, Finished):
            return self._chunk(choice, b"{}", finish_reason=_encode(event.reason))
        return b""

    def usage(self, usage: Usage) -> bytes:
        """The chunk with the whole request's usage and no choices; sent only if asked for."""
        return self._open + b'],"usage":' + _encode(usage_object(usage)) + b"}\n\n"

    def done(self) -> bytes:
        """The end of a stream that ended well."""
        return DONE

    def error(self, error: PlatformError) -> bytes:
        """The last event of a stream that can't go on."""
        return b"data: " + error_body(error) + b"\n\n"

    def _starts(self, choice: int) -> bytes:
        start = self._text_start.get(choice)
        if start is None:
            start = self._text_start[choice] = self._open + b'{"index":%d,"delta":{"content":' % choice
        return start

    def _chunk(self, choice: int, delta: bytes, logprobs: bytes = b"null", finish_reason: bytes = b"null") -> bytes:
        return b'%s{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":%s}]%s' % (
            self._open, choice, delta, logprobs, finish_reason, self._close,
        )  # fmt: skip


class AnswerCollector:
    """Gathers the events of all choices and renders the one body of an answer that isn't streamed."""

    def __init__(self, head: AnswerHead, choices_count: int) -> None:
        """choices_count: how many choices there will be, numbered from 0."""
        self._head = head
        self._choices = [_Choice() for _ in range(choices_count)]

    def event(self, choice: int, event: Event) -> None:
        """Take one event of a choice; those a client isn't told of change nothing."""
        self._choices[choice].add(event)

    def body(self, usage: Usage) -> bytes:
        """The `chat.completion` object. Raises ValueError when a choice has not finished: nothing is made up for it."""
        tier = self._head.service_tier
        return _encode(
            {
                "id": self._head.id,
                "object": "chat.completion",
                "created": self._head.created,
                "model": self._head.model,
                **({} if tier is None else {"service_tier": tier}),
                "choices": [choice.rendered(index) for index, choice in enumerate(self._choices)],
                "usage": usage_object(usage),
            }
        )


class _Choice:
    """One choice as it grows."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] | None = None
        self._calls: dict[int, _Call] = {}
        self._finish_reason: FinishReason | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Text):
            self._text.append(event.text)
            if event.logprobs is not None:
                self._logprobs = (self._logprobs or []) + event.logprobs
        elif isinstance(event, Reasoning):
            self._reasoning.append(event.text)
        elif isinstance(event, ToolCallDelta):
            self._calls.setdefault(event.index, _Call()).add(event)
        elif isinstance(event, Finished):
            self._finish_reason = event.reason

    def rendered(self, index: int) -> dict[str, Any]:
        if self._finish_reason is None:
            raise ValueError(f"choice {index} has not finished")
        text = "".join(self._text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self._calls and not text else text,
            "refusal": None,
        }
        if self._reasoning:
            message["reasoning_content"] = message["reasoning"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [self._calls[number].rendered() for number in sorted(self._calls)]
        return {
            "index": index,
            "message": message,
            "logprobs": None if self._logprobs is None else {"content": self._logprobs, "refusal": None},
            "finish_reason": self._finish_reason,
        }


class _Call:
    """One tool call as it grows."""

    def __init__(self) -> None:
        self._id = ""
        self._name = ""
        self._arguments: list[str] = []

    def add(self, delta: ToolCallDelta) -> None:
        self._id = delta.id or self._id
        self._name = delta.name or self._name
        self._arguments.append(delta.arguments)

    def rendered(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "function",
            "function": {"name": self._name, "arguments": "".join(self._arguments)},
        }


def _call_delta(delta: ToolCallDelta) -> bytes:
    function: dict[str, Any] = {"arguments": delta.arguments}
    rendered: dict[str, Any] = {"index": delta.index}
    if delta.id is not None:
        rendered |= {"id": delta.id, "type": "function"}
    if delta.name is not None:
        function = {"name": delta.name, **function}
    return _encode({**rendered, "function": function})


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage as the API says it: `prompt_tokens` includes the cached ones, `completion_tokens` the reasoning."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def error_body(error: PlatformError) -> bytes:
    """The one shape of an error: `{"error": {"message", "type", "param", "code"}}`."""
    return _encode(
        {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}},
    )
