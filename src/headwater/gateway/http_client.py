"""The HTTP/1.1 client towards engines and upstreams: POST, then a body that is read as it comes.

Parsing is httptools' (llhttp, as on the server's side); here is only what a relay needs around it: kept-alive connections
of one origin, one write for each request, back-pressure, and a close that really closes. It does not follow redirects, keep
cookies, decompress, retry or read proxies from the environment. Why not a general client: `docs/explanation/decisions.md`.
Source: RFC 9112.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

BUFFERED_BYTES_MAX = 64 * 1024
"""More than this unread, and the socket isn't read either: the sender meets our caller's pace."""
RECEIVE_BUFFER_BYTES = 256 * 1024
"""What the kernel may hold for us; its own choice grows to megabytes, that is minutes of tokens nobody will read."""
HEAD_BYTES_MAX = 64 * 1024
KEEP_ALIVE_S = 4.0
"""Common servers close an idle connection after 5 s; reusing one just then would lose a request."""
LINGER_S = 1.0
"""How long the formal end of an answer that said all it had to say is waited for, before its connection is cut."""
_NO_BODY = frozenset((204, 304))


class ConnectionBroken(Exception):
    """The peer closed or reset the connection before its answer was complete, or sent what is not HTTP."""


class ConnectTimedOut(Exception):
    """No connection within the connect time-out."""


class Origin(NamedTuple):
    """Where to connect: a Unix socket, or a host and port with or without TLS. host_header: as it is sent."""

    host_header: str
    host: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = None
    unix_path: Path | None = None


def origin_of(url: str) -> Origin:
    """The origin of an http(s) URL; TLS verifies against the system's authorities."""
    parts = urlsplit(url)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls is not None else 80)
    return Origin(parts.netloc.rpartition("@")[2], parts.hostname or "", port, tls)


class _Connection(asyncio.Protocol):
    """One connection: carries one exchange after the other, never two at once."""

    def __init__(self, client: "HttpClient") -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._body: list[bytes] = []
        self._buffered = 0
        self._head_bytes = 0
        self._is_paused = False
        self._has_length = False
        self.transport: asyncio.Transport
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_head_complete = False
        self.is_complete = True
        self.is_reusable = False
        self.error: ConnectionBroken | None = None
        self.idle_since_s = 0.0
        self._linger: asyncio.TimerHandle | None = None

    # -- what the client and the response call --------------------------------------------------------------------

    def send(self, request: bytes) -> None:
        """Begin an exchange."""
        self._parser = httptools.HttpResponseParser(self)
        self._body, self._buffered, self._head_bytes = [], 0, 0
        self.status, self.headers = 0, {}
        self.is_head_complete = self.is_complete = self.is_reusable = self._has_length = False
        self.transport.write(request)

    async def head(self) -> None:
        """Wait for the response's head. Raises ConnectionBroken."""
        while not self.is_head_complete:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def read(self) -> bytes:
        """Whatever of the body has come, at least a byte; empty at its end. Raises ConnectionBroken."""
        while not self._body:
            if self.is_complete:
                return b""
            if self.error is not None:
                raise self.error
            await self._wait()
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._buffered = 0
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()
        return data

    @property
    def is_lingering(self) -> bool:
        """Whether it only waits for the formal end of its answer."""
        return self._linger is not None

    def linger(self) -> None:
        """Nobody reads any more, but only the formal end is missing: wait for it a moment, then give the connection up."""
        self._linger = self._loop.call_later(LINGER_S, self.close)

    def close(self) -> None:
        """End the connection now: this is how the engine learns that nobody listens any more."""
        self._stop_lingering()
        if self.error is None:
            self.error = ConnectionBroken("the connection was closed here")
        self.transport.abort()
        self._wake()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.is_complete:
            self.error = ConnectionBroken("it sent more than its answer")
            self.transport.abort()
            return
        if not self.is_head_complete:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if not self.is_head_complete and self._head_bytes > HEAD_BYTES_MAX:
                raise httptools.HttpParserError(f"a head of more than {HEAD_BYTES_MAX} bytes")
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self.error = ConnectionBroken(f"it sent what is not HTTP ({error})")
            self.transport.abort()
        self._wake()

    def eof_received(self) -> None:
        """See asyncio.Protocol. A body without a length ends here."""
        if self.is_head_complete and not self._has_length:
            self.is_complete = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_lingering()
        self._client.forget(self)
        if self.error is None:
            self.error = ConnectionBroken(
                "it closed the connection" if exc is None else f"the connection broke ({exc})"
            )
        self._wake()

    # -- httptools callbacks ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A response begins; there is one for each request, whatever else the peer sends."""
        if self.is_complete:
            raise ConnectionBroken("it sent more than its answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the response."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is read; an interim one (1xx) is passed over."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = {}
            return
        self.status = status
        self._has_length = (
            b"content-length" in self.headers or b"transfer-encoding" in self.headers or status in _NO_BODY
        )
        self.is_head_complete = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body.append(body)
        self._buffered += len(body)
        if self._buffered > BUFFERED_BYTES_MAX and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """The body is whole."""
        if self.is_head_complete:
            self.is_complete = True
            self.is_reusable = self._has_length and self._parser.should_keep_alive()
            if self._linger is not None:
                self._stop_lingering()
                self._client.release(self)

    # -- waiting: there is one reader at most ----------------------------------------------------------------------

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Response:
    """A response whose head has come. Read it to its end and the connection is kept; close it earlier and it's gone."""

    __slots__ = ("_client", "_connection", "headers", "read", "status")

    def __init__(self, client: "HttpClient", connection: _Connection) -> None:
        self._client = client
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers
        self.read: Callable[[], Awaitable[bytes]] = connection.read
        """The next bytes of the body, empty at its end. Raises ConnectionBroken."""

    async def read_all(self, bytes_max: int) -> bytes:
        """The body up to bytes_max; what comes after is left unread. Raises ConnectionBroken."""
        parts = bytearray()
        while len(parts) < bytes_max and (data := await self._connection.read()):
            parts += data
        return bytes(parts[:bytes_max])

    def close(self) -> None:
        """Done with it; idempotent. The connection is kept if its answer was complete, else cut."""
        self._client.release(self._connection)

    def finish(self) -> None:
        """Done with it, having read all it has to say; whatever formal end is missing may still come. Idempotent."""
        self._client.release(self._connection, is_said=True)


class HttpClient:
    """Connections to one origin. How many there are is bounded by whoever calls (the pool's places)."""

    def __init__(
        self, origin: Origin, *, headers: Mapping[str, str], connect_timeout_s: float, keep_alive: bool
    ) -> None:
        """headers: sent with every request. keep_alive: whether connections are used again."""
        self._origin = origin
        self._connect_timeout_s = connect_timeout_s
        self._keep_alive = keep_alive
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        if any(not text.isprintable() for pair in headers.items() for text in pair):
            raise ValueError("a header of an upstream holds a control character")
        fixed = {"host": origin.host_header, "content-type": "application/json", **headers}
        if not keep_alive:
            fixed["connection"] = "close"
        self._fixed = "".join(f"\r\n{name}: {value}" for name, value in fixed.items()).encode("latin-1")

    async def post(self, path: str, body: bytes, *, request_id: str) -> Response:
        """Send a request and wait for the response's head.

        Raises ConnectTimedOut, ConnectionBroken, OSError (no connection at all).
        """
        connection = self._take_idle() or await self._connect()
        self._busy.add(connection)
        try:
            connection.send(
                b"POST %s HTTP/1.1%s\r\nx-request-id: %s\r\ncontent-length: %d\r\n\r\n%s"
                % (path.encode(), self._fixed, request_id.encode(), len(body), body)
            )
            await connection.head()
        except BaseException:
            self._busy.discard(connection)
            connection.close()
            raise
        return Response(self, connection)

    @property
    def idle_count(self) -> int:
        """Connections kept for the next request."""
        return len(self._idle)

    def release(self, connection: _Connection, *, is_said: bool = False) -> None:
        """Take a connection back after its exchange; is_said: only the formal end of the answer can be missing."""
        if connection not in self._busy or connection.is_lingering:
            return
        if is_said and not connection.is_complete and connection.error is None:
            connection.linger()
            return
        self._busy.discard(connection)
        if connection.is_reusable and connection.error is None and self._keep_alive:
            connection.idle_since_s = self._loop.time()
            self._idle.append(connection)
            # The last one back is taken first, so what a burst left lies at the front: too old to be used, not closed by all.
            if self._idle[0].idle_since_s < connection.idle_since_s - KEEP_ALIVE_S:
                self._idle.pop(0).close()
        else:
            connection.close()

    def forget(self, connection: _Connection) -> None:
        """A connection is gone."""
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """End every connection."""
        for connection in [*self._idle, *self._busy]:
            connection.close()
        self._idle.clear()
        self._busy.clear()

    def _take_idle(self) -> _Connection | None:
        oldest_s = self._loop.time() - KEEP_ALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s >= oldest_s and connection.error is None:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        origin = self._origin

        def new_connection() -> _Connection:
            return _Connection(self)

        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if origin.unix_path is not None:
                    _, made = await self._loop.create_unix_connection(new_connection, str(origin.unix_path))
                else:
                    _, made = await self._loop.create_connection(
                        new_connection, origin.host, origin.port, ssl=origin.tls
                    )
        except TimeoutError as error:
            raise ConnectTimedOut(f"no connection within {self._connect_timeout_s:g} s") from error
        return made
