"""A small HTTP/1.1 server for the fake engine: every byte, every close and every leaving peer is in its hands.

A real framework hides just what the rig has to do: write half an answer, reset the socket, see the peer's FIN while an
answer is being made. The parser is httptools; the rest is one asyncio protocol.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import httptools

REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
BUFFER_BYTES_MAX = 16 * 1024
"""Above this many unsent bytes a writer waits, so that `tokens_sent` stays near what the peer took."""
How = Literal["eof", "reset", "closed"]


@dataclass(slots=True)
class HttpRequest:
    """One request as it arrived; header names in lower case."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


Handler = Callable[[HttpRequest, "Connection"], Coroutine[Any, Any, None]]


class Connection(asyncio.Protocol):
    """One accepted connection: parses requests, runs them one after another, and cancels the one whose peer leaves."""

    def __init__(self, handler: Handler, connections: set["Connection"]) -> None:
        """connections: the server's set of open ones, in which this one keeps itself."""
        self._handler, self._connections = handler, connections
        self._parser = httptools.HttpRequestParser(self)
        self._request = HttpRequest()
        self._body: list[bytes] = []
        self._pending: list[HttpRequest] = []
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._is_chunked = False
        self._lost = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.peer_left: How | None = None
        """How the peer left while a request was running; None: it didn't."""
        self.is_dripping = False
        self._is_ours_to_close = False
        self._has_begun = False

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's isn't a subclass of it
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES_MAX)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self._transport.close()

    def eof_received(self) -> bool:
        """A FIN while a request runs means the client gave up, as every engine we know reads it."""
        if self.task is not None and not self._is_ours_to_close:
            self._leave("eof")
            self._transport.abort()
        return False  # without a running request: flush what is left and close

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what runs."""
        self._leave("reset" if exc is not None else "closed")
        self._lost.set()
        self._may_write.set()
        self._connections.discard(self)

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._may_write.set()

    # what the parser calls

    def on_message_begin(self) -> None:
        """Start a request."""
        self._request, self._body = HttpRequest(), []

    def on_url(self, url: bytes) -> None:
        """Keep the path."""
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Answer `Expect: 100-continue`."""
        if self._request.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Run it, or keep it until the one before is done."""
        self._request.method = self._parser.get_method().decode("latin-1")
        self._request.body = b"".join(self._body)
        self._pending.append(self._request)
        if self.task is None:
            self._run_next()

    def _run_next(self) -> None:
        self.task = None
        if self._pending and not self._transport.is_closing():
            self._has_begun = False
            self.task = asyncio.get_running_loop().create_task(self._run(self._pending.pop(0)))
            self.task.add_done_callback(self._ended)

    async def _run(self, request: HttpRequest) -> None:
        self._has_begun = True
        await self._handler(request, self)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._transport.abort()
            task.get_loop().call_exception_handler({"message": "The fake engine has a bug", "exception": error})
        self._run_next()

    def _leave(self, how: How) -> None:
        if self.task is not None and self.peer_left is None and not self._is_ours_to_close:
            self.peer_left = how
            if self._has_begun:
                self.task.cancel()  # at once, so that not one token more is written to a transport already closed
            else:
                # A task cancelled before its first turn would never run, and so never log what it received.
                asyncio.get_running_loop().call_soon(self.task.cancel)

    # what a handler calls

    async def start(self, status: int, headers: dict[str, str], *, length: int | None) -> None:
        """Write the status line and headers. length: None for a chunked body."""
        self._is_chunked = length is None
        framing = {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
        lines = [
            f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}",
            *(f"{k}: {v}" for k, v in (headers | framing).items()),
        ]
        await self._write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")

    async def send(self, data: bytes, *, is_last: bool = False) -> None:
        """Write a part of the body, as one chunk if the body is chunked, with the end of the body if it is the last."""
        if self._is_chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if is_last else b"")
        await self._write(data)

    async def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Write a whole answer."""
        await self.start(status, headers, length=len(body))
        await self.send(body, is_last=True)

    async def may_write(self) -> None:
        """Wait until a peer that reads slowly has caught up."""
        await self._may_write.wait()

    async def _write(self, data: bytes) -> None:
        # Every wait comes before its write: after the last byte the handler goes on at once, so that a client which has
        # everything and closes is never taken for one that left.
        if self.is_dripping:
            for at in range(len(data)):
                await asyncio.sleep(0)
                await self._may_write.wait()
                self._transport.write(data[at : at + 1])
        else:
            await self._may_write.wait()
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until everything written has been handed to the kernel."""
        self._transport.set_write_buffer_limits(high=0)  # so that `_may_write` waits for an empty buffer
        await asyncio.sleep(0)  # the loop may keep what was written until the end of its turn
        await self._may_write.wait()

    async def cut(self, mode: Literal["rst", "fin"]) -> None:
        """Close the connection here and now, once what was written has left. A Unix socket has no RST: it sees EOF."""
        await self.drain()
        self._is_ours_to_close = True
        if mode == "rst":
            sock = self._transport.get_extra_info("socket")
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()
        await self._lost.wait()
