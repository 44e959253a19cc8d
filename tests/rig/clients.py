"""Raw-socket HTTP clients that read as far as they are told and leave in every way a client can.

    async with await Client.chat(base_url, body) as client:
        await client.read_tokens(5)
        client.leave("rst")

No HTTP library is between the test and the socket: what arrived, when, and how it ended is in `client.received`.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import httptools
import msgspec

Ending = Literal["complete", "eof", "reset"]
READ_BYTES = 65536


@dataclass(slots=True)
class SseEvent:
    """One server-sent event. value: its JSON, or None when it isn't a JSON object (`[DONE]`, a comment, garbage)."""

    arrived_ns: int
    raw: bytes
    value: dict[str, Any] | None


@dataclass(slots=True)
class Received:
    """Everything that came back. arrivals: (monotonic ns, bytes) of each read from the socket, framing included."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    arrivals: list[tuple[int, bytes]] = field(default_factory=list)
    body: bytes = b""
    events: list[SseEvent] = field(default_factory=list)
    ended: Ending | None = None
    """complete: the whole message came; eof: the server closed before that; reset: RST; None: open, or we left."""
    ended_ns: int | None = None
    content_count: int = 0
    """Events that carry content, reasoning or a piece of a tool call."""

    @property
    def values(self) -> list[dict[str, Any]]:
        """The JSON objects of the stream, or the one of a plain body."""
        if self.is_stream:
            return [event.value for event in self.events if event.value is not None]
        return [self.json()] if self.ended == "complete" and self.body else []

    @property
    def is_stream(self) -> bool:
        """Whether the answer says it is an event stream."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def is_done_seen(self) -> bool:
        """Whether `[DONE]` came."""
        return any(event.raw == b"data: [DONE]" for event in self.events)

    @property
    def error(self) -> dict[str, Any] | None:
        """The first error object, in the stream or as the body."""
        return next((value["error"] for value in self.values if value.get("error")), None)

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Every choice of every chunk, in order."""
        return [choice for value in self.values for choice in value.get("choices") or ()]

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return self._joined("content")

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return self._joined("reasoning_content")

    @property
    def content_arrivals_ns(self) -> list[int]:
        """When each event arrived that carries content, reasoning or a piece of a tool call."""
        return [event.arrived_ns for event in self.events if event.value is not None and _has_content(event.value)]

    @property
    def finish_reason(self) -> str | None:
        """The last finish reason, if one came."""
        return next((c["finish_reason"] for c in reversed(self.choices) if c.get("finish_reason")), None)

    @property
    def usage(self) -> dict[str, Any] | None:
        """The last usage object, if one came."""
        return next((value["usage"] for value in reversed(self.values) if value.get("usage")), None)

    @property
    def tool_calls(self) -> list[tuple[str, str]]:
        """Name and arguments of each tool call, pieces joined."""
        calls: dict[int, tuple[str, str]] = {}
        for choice in self.choices:
            for at, call in enumerate(_delta(choice).get("tool_calls") or ()):
                index, function = call.get("index", at), call["function"]
                name, arguments = calls.get(index, ("", ""))
                calls[index] = (name + function.get("name", ""), arguments + function.get("arguments", ""))
        return [calls[index] for index in sorted(calls)]

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object. Raises msgspec.DecodeError when it isn't one."""
        return msgspec.json.decode(self.body, type=dict[str, Any])

    def _joined(self, name: str) -> str:
        return "".join(_delta(choice).get(name) or "" for choice in self.choices)


def _delta(choice: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = choice.get("delta") or choice.get("message") or {}
    return found


def _has_content(value: dict[str, Any]) -> bool:
    deltas = [_delta(choice) for choice in value.get("choices") or ()]
    return any(delta.get(name) for delta in deltas for name in ("content", "reasoning_content", "tool_calls"))


class Client:
    """One connection with one request on it. Reads only when told to, so not calling is how a client stalls."""

    def __init__(self, sock: socket.socket) -> None:
        """sock: connected, non-blocking; this object closes it."""
        self.sock = sock
        self.received = Received()
        self._parser = httptools.HttpResponseParser(self)
        self._unsplit = b""
        self._now_ns = 0
        self.has_left = False

    @classmethod
    async def chat(
        cls,
        base_url: str,
        body: Mapping[str, Any],
        *,
        request_id: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        unix: str | None = None,
        receive_bytes_max: int | None = None,
    ) -> Self:
        """Connect and send a chat request. receive_bytes_max: a small kernel buffer, so that stalling is felt soon."""
        extra = dict(headers or {})
        if request_id is not None:
            extra["x-request-id"] = request_id
        if api_key is not None:
            extra["authorization"] = f"Bearer {api_key}"
        client = await cls.connect(base_url, unix=unix, receive_bytes_max=receive_bytes_max)
        try:
            await client.send("POST", f"{urlsplit(base_url).path}/chat/completions", msgspec.json.encode(body), extra)
        except BaseException:
            client.close()  # whoever called never sees it
            raise
        return client

    @classmethod
    async def connect(cls, base_url: str, *, unix: str | None = None, receive_bytes_max: int | None = None) -> Self:
        """Connect to the base URL's host and port, or to the Unix socket. Raises OSError when nobody listens."""
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if receive_bytes_max is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes_max)
        parts = urlsplit(base_url)
        address = unix or (parts.hostname or "127.0.0.1", parts.port or 80)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:  # cancelled too: whoever called never sees it
            sock.close()
            raise
        return cls(sock)

    async def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send one request."""
        fields = {"host": "test", "content-type": "application/json", "content-length": str(len(body))} | dict(
            headers or {}
        )
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.send_raw(head.encode("latin-1") + b"\r\n" + body)

    async def send_raw(self, data: bytes) -> None:
        """Send any bytes."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read_until(self, is_enough: Callable[[Received], bool], *, timeout_s: float = 30.0) -> Received:
        """Read until the condition holds or the answer ends. Raises TimeoutError; `received` keeps what came."""
        async with asyncio.timeout(timeout_s):
            while self.received.ended is None and not is_enough(self.received):
                await self._read_once(READ_BYTES)
        return self.received

    async def read_to_end(self, *, timeout_s: float = 30.0) -> Received:
        """Read until the answer is complete or the server closes."""
        return await self.read_until(lambda _: False, timeout_s=timeout_s)

    async def read_tokens(self, count: int, *, timeout_s: float = 30.0) -> Received:
        """Read until so many events with content have come, or the answer ends."""
        return await self.read_until(lambda got: got.content_count >= count, timeout_s=timeout_s)

    async def read_slowly(self, *, bytes_each: int, pause_s: float, timeout_s: float = 30.0) -> Received:
        """Read to the end in small bites with a pause after each."""
        async with asyncio.timeout(timeout_s):
            while self.received.ended is None:
                await self._read_once(bytes_each)
                await asyncio.sleep(pause_s)
        return self.received

    async def _read_once(self, size_bytes: int) -> None:
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, size_bytes)
        except ConnectionResetError:
            self._end("reset")
            return
        self._now_ns = time.monotonic_ns()
        if not data:
            self._end("eof")
            return
        self.received.arrivals.append((self._now_ns, data))
        self._parser.feed_data(data)

    def _end(self, how: Ending) -> None:
        # A body without length or chunks is complete when the server closes; every other early close isn't.
        framed = {"content-length", "transfer-encoding"} & self.received.headers.keys()
        if how == "eof" and self.received.status is not None and not framed:
            how = "complete"
        self.received.ended, self.received.ended_ns = how, time.monotonic_ns()

    # what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self.received.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Keep the status."""
        self.received.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body and split off the events that are whole."""
        self.received.body += data
        if not self.received.is_stream:
            return
        *events, self._unsplit = (self._unsplit + data).split(b"\n\n")
        for raw in events:
            event = SseEvent(self._now_ns, raw, _value(raw))
            self.received.events.append(event)
            self.received.content_count += event.value is not None and _has_content(event.value)

    def on_message_complete(self) -> None:
        """The answer is whole (an interim 100 isn't the answer)."""
        if self.received.status != 100:
            self._end("complete")

    # ways to leave

    def leave(self, how: Literal["fin", "rst", "half_close"]) -> None:
        """Leave: fin says goodbye in both directions, rst resets, half_close sends nothing more but reads on.

        fin shuts the socket down instead of closing it, since closing with unread bytes would send RST.
        """
        self.has_left = how != "half_close"
        if how == "rst":
            if self.sock.family != socket.AF_UNIX:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()
        else:
            self.sock.shutdown(socket.SHUT_RDWR if how == "fin" else socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket."""
        self.close()


def _value(raw: bytes) -> dict[str, Any] | None:
    if not raw.startswith(b"data: "):
        return None
    try:
        return msgspec.json.decode(raw[6:], type=dict[str, Any])
    except msgspec.DecodeError:
        return None


async def ask(
    base_url: str,
    body: Mapping[str, Any],
    *,
    request_id: str | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    unix: str | None = None,
    timeout_s: float = 30.0,
) -> Received:
    """Send a chat request and read its answer to the end, however that comes."""
    async with await Client.chat(
        base_url, body, request_id=request_id, api_key=api_key, headers=headers, unix=unix
    ) as client:
        return await client.read_to_end(timeout_s=timeout_s)


async def call(
    base_url: str,
    method: str,
    path: str,
    value: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    unix: str | None = None,
    timeout_s: float = 10.0,
) -> Received:
    """Send any request; path is absolute, value is sent as JSON unless it is None."""
    async with await Client.connect(base_url, unix=unix) as client:
        await client.send(method, path, b"" if value is None else msgspec.json.encode(value), headers)
        return await client.read_to_end(timeout_s=timeout_s)
