"""Steps 10 and 12: where an answer goes, streamed or gathered, and what is held back until the settlement has committed."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from headwater.dialects.openai_chat_answer import AnswerCollector, StreamWriter, error_body
from headwater.errors import EngineFailed, PlatformError
from headwater.events import Event, Finished, Reasoning, Text, ToolCallDelta
from headwater.gateway.deadline import Deadline
from headwater.usage import Usage

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]
ANSWER_CHARACTERS_MAX = 16 * 2**20
_TEXT = (Text, Reasoning)
_CONTENT = (*_TEXT, ToolCallDelta)


class Sink(Protocol):
    """Takes the events of all choices, then the end: well or badly."""

    has_content: bool
    """Whether any content reached the client's socket."""
    headers: HeaderList
    """Sent with the status line; what is learned on the way there may be added."""

    async def take(self, choice: int, events: list[Event]) -> None:
        """Pass content on at once; keep what may only go out after the settlement."""

    def render(self, usage: Usage) -> bytes:
        """The whole answer as it will be sent; of an answer that isn't streamed."""

    async def finish(self, usage: Usage) -> None:
        """The settlement has committed: write what was held, and end."""

    async def fail(self, error: PlatformError) -> None:
        """The request is settled but did not end well: say so, and end."""


class StreamSink:
    """Server-sent events, each batch of content in its own write. `Finished` and all after it wait for `finish`."""

    def __init__(
        self, send: Send, writer: StreamWriter, headers: HeaderList, *, include_usage: bool, stall: Deadline
    ) -> None:
        """stall: runs while a write is blocked by a client that doesn't read."""
        self._send = send
        self._writer = writer
        self.headers = headers
        self._include_usage = include_usage
        self._stall = stall
        self._held: list[bytes] = []
        self._choices_seen: set[int] = set()
        self.has_content = False

    async def take(self, choice: int, events: list[Event]) -> None:
        """See Sink."""
        parts: list[bytes] = []
        for event in events:
            if isinstance(event, _CONTENT):
                parts.append(self._with_role(choice, self._writer.event(choice, event)))
            elif isinstance(event, Finished):
                self._held.append(self._with_role(choice, self._writer.event(choice, event)))
        if not parts:
            return
        self._stall.start()
        if not self.has_content:
            self.has_content = True
            await self._start()
        await self._send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
        self._stall.clear()

    def render(self, usage: Usage) -> bytes:
        """Never asked for: an idempotency key and a stream exclude each other."""
        raise AssertionError(f"a stream has no body of {usage.output} tokens to keep")

    async def finish(self, usage: Usage) -> None:
        """See Sink."""
        self._stall.start()
        if not self.has_content:
            await self._start()
        if self._include_usage:
            self._held.append(self._writer.usage(usage))
        self._held.append(self._writer.done())
        await self._end(b"".join(self._held))

    async def fail(self, error: PlatformError) -> None:
        """See Sink."""
        self._stall.start()
        if self.has_content:
            await self._end(self._writer.error(error))
        else:
            await send_error(self._send, error, self.headers)

    def _with_role(self, choice: int, rendered: bytes) -> bytes:
        """The first chunk of each choice says who speaks, even when it has nothing to say."""
        if choice in self._choices_seen:
            return rendered
        self._choices_seen.add(choice)
        return self._writer.role(choice) + rendered

    async def _start(self) -> None:
        headers = [
            *self.headers,
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _end(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self._stall.clear()


class WholeSink:
    """One JSON body, written when the settlement has committed; no status line before."""

    def __init__(self, send: Send, collector: AnswerCollector, headers: HeaderList) -> None:
        self._send = send
        self._collector = collector
        self.headers = headers
        self._body: bytes | None = None
        self._characters_count = 0
        self.has_content = False

    async def take(self, choice: int, events: list[Event]) -> None:
        """See Sink. Raises EngineFailed when what is gathered grows beyond any answer: a token may be megabytes long."""
        for event in events:
            self._collector.event(choice, event)
            if isinstance(event, _TEXT):
                self._characters_count += len(event.text)
            elif isinstance(event, ToolCallDelta):
                self._characters_count += len(event.arguments)
        if self._characters_count > ANSWER_CHARACTERS_MAX:
            raise EngineFailed(f"The engine's answer has more than {ANSWER_CHARACTERS_MAX} characters; it was cut off.")

    def render(self, usage: Usage) -> bytes:
        """See Sink."""
        if self._body is None:
            self._body = self._collector.body(usage)
        return self._body

    async def finish(self, usage: Usage) -> None:
        """See Sink."""
        await send_body(self._send, 200, self.render(usage), self.headers)

    async def fail(self, error: PlatformError) -> None:
        """See Sink."""
        await send_error(self._send, error, self.headers)


async def send_body(send: Send, status: int, body: bytes, headers: HeaderList) -> None:
    """A whole JSON answer."""
    head = [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(send: Send, error: PlatformError, headers: HeaderList) -> None:
    """An error in the one shape, with `Retry-After` where coming back can help."""
    extra: HeaderList = []
    if error.retry_after_s is not None:
        extra.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    if error.should_retry is not None:
        extra.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if error.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await send_body(send, error.status, error_body(error), [*headers, *extra])
