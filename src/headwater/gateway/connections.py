"""What one connection of a client may take: bounds on heads, time, pipelining and number, before any request exists.

uvicorn bounds the body that is buffered and what is written but not read; llhttp bounds neither the size of a head nor the
time it takes, and a pipelining client could queue requests without end. See `docs/explanation/overload.md`.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from headwater.dialects.openai_chat_answer import error_body
from headwater.errors import HeadTooLarge, Overloaded, PlatformError
from headwater.ids import REQUEST, new_id

CONNECTIONS_MAX: Final = 4096
HEAD_BYTES_MAX: Final = 64 * 1024
"""One read more (uvloop's are 256 KiB) may come before it is noticed."""
SWEEP_S: Final = 10.0
SWEEPS_MAX: Final = 2
"""A head that isn't whole after so many sweeps, 20 to 30 s, will not be waited for."""
REFUSED_S: Final = 1.0
"""How long a connection over the bound is kept to be told so: it must have sent its request first."""
REFUSED_MAX: Final = 256
"""Connections over the bound that are told; those over this one too are cut off unheard."""
RETRY_AFTER_S: Final = 1
INTERIM: Final = b"HTTP/1.1 100"
"""How an answer begins that only says that the body may come."""
ADMITTED: Final = "is_admitted"
"""Set in a request's `state` when `Bounds.refuse_early` let it pass: it is not to be asked again."""
RefuseEarly = Callable[[bytes, bytes], PlatformError | bool]
"""Given a request's path and the bytes it came with: why it is refused; true when it is admitted, false when that is to
be decided once it has been read."""


def canned(error: PlatformError, *, is_last: bool = True) -> bytes:
    """A whole HTTP answer with this error. is_last: the connection closes after it."""
    body = error_body(error)
    reason = {431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}[error.status]
    retry = b"" if error.retry_after_s is None else b"retry-after: %d\r\n" % max(1, round(error.retry_after_s))
    return (
        b"HTTP/1.1 %d %s\r\nx-request-id: %s\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: %s\r\n\r\n%s"
        % (
            error.status,
            reason,
            new_id(REQUEST).encode(),
            retry,
            len(body),
            b"close" if is_last else b"keep-alive",
            body,
        )
    )


class OneWrite:
    """The transport of one answer: its head waits for the first piece of its body, and both go out in one write.

    A write is a system call, and a wake-up of whoever reads; of a short answer the second one is a twentieth of all its work.
    What the application sends as a head it must be ready to follow with a body at once.
    """

    __slots__ = ("_head", "_transport", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.write: Callable[[bytes], None] = self._write_head
        """See asyncio.WriteTransport."""

    def _write_head(self, data: bytes) -> None:
        if data.startswith(INTERIM):
            self._transport.write(data)
            return
        self._head = data
        self.write = self._write_first

    def _write_first(self, data: bytes) -> None:
        self.write = self._transport.write
        self._transport.write(self._head + data)
        self._head = b""

    def flush(self) -> None:
        """Let a head go that no body followed."""
        if self._head:
            self._write_first(b"")

    def close(self) -> None:
        """See asyncio.BaseTransport."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._transport.is_closing()


class Bounds:
    """The connections of one server, and how many there may be. Owned by the event loop's thread."""

    def __init__(
        self, connections_max: int = CONNECTIONS_MAX, *, on_refused: Callable[[], object] = lambda: None
    ) -> None:
        """on_refused: called for each connection over the bound."""
        self.connections_max = connections_max
        self.open: set[BoundedProtocol] = set()
        self.on_refused = on_refused
        self.refuse_early: RefuseEarly | None = None
        """Asked for each request once its head is there; None: nobody is."""

    async def sweep(self) -> None:
        """Cut off, again and again, whoever has not sent a whole head in time; for ever, cancel it to stop."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep_once()

    def sweep_once(self) -> None:
        """Look at every connection once; those met so for the third time are cut off."""
        for protocol in list(self.open):
            if protocol.is_awaited:
                protocol.sweeps_count += 1
                if protocol.sweeps_count > SWEEPS_MAX:
                    protocol.transport.abort()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's connection within bounds. It is in each request's `state` as `connection`."""

    def __init__(self, bounds: Bounds, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._bounds = bounds
        self._is_deaf = False
        """Nothing more is read of it: it is over the bound, or pipelines."""
        self._is_refused = False
        self.is_in_head = True
        """A request's head has come in part, or the first one not at all."""
        self.sweeps_count = 0
        self._head_bytes = 0
        self._data = b""
        self._is_skipping = False
        """The request was refused by its head; its body is passed over."""
        self._answer: OneWrite | None = None
        self._on_lost: Callable[[], None] | None = None
        self._is_lost = False

    # -- what a request can know of its connection, and do with it -------------------------------------------------------

    def watch(self, on_lost: Callable[[], None] | None) -> None:
        """See `stop.Watch`. In place of a task that waits in `receive`, which costs more than most of a short request's steps."""
        self._on_lost = on_lost
        if on_lost is None:
            return
        if self._is_lost:
            on_lost()
        else:
            self.flow.resume_reading()  # it may have stopped within a large body, and the end is read like anything else

    @property
    def has_body(self) -> bool:
        """Whether the whole body of the request being served has come: reading it doesn't wait."""
        return not self.cycle.more_body

    def abort(self) -> None:
        """Cut it off."""
        self.transport.abort()

    # -- what the transport calls ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}
        bounds = self._bounds
        bounds.open.add(self)
        over_count = len(bounds.open) - bounds.connections_max
        if over_count > 0:
            bounds.on_refused()
            self._is_refused = True
            if over_count > REFUSED_MAX:
                transport.abort()
            else:
                self.loop.call_later(REFUSED_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._bounds.open.discard(self)
        super().connection_lost(exc)
        self._is_lost = True
        if self._on_lost is not None:
            self._on_lost()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._is_deaf:
            return
        if self._is_refused:
            count, most = len(self._bounds.open), self._bounds.connections_max
            self._end_with(
                Overloaded(f"{count} connections are open; at most {most} may be.", retry_after_s=RETRY_AFTER_S)
            )
            return
        if self._bounds.refuse_early is not None:
            self._data = data
        super().data_received(data)
        if self.is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._end_with(HeadTooLarge(f"The request's head has more than {HEAD_BYTES_MAX} bytes."))

    def _end_with(self, error: PlatformError) -> None:
        self._is_deaf = True
        if not self.transport.is_closing():
            self.transport.write(canned(error))
            self.transport.close()

    @property
    def is_awaited(self) -> bool:
        """Whether a request is awaited, or the rest of one that was answered early, and no keep-alive time-out counts."""
        return not self._is_being_served() and self.timeout_keep_alive_task is None

    def _is_being_served(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    # -- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins; one that begins before the last is answered ends the connection with that answer."""
        super().on_message_begin()
        if self._is_being_served():
            self._is_deaf = True
            self.cycle.keep_alive = False
            return
        self.is_in_head, self._is_skipping = True, False
        self.sweeps_count = self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """See uvicorn."""
        if self._is_deaf:
            return
        self.is_in_head = False
        refuse_early = self._bounds.refuse_early
        if refuse_early is not None and self.parser.get_method() == b"POST":
            found = refuse_early(self.url, self._data)
            if isinstance(found, PlatformError):
                self._refuse_by_head(found)
                return
            if found:
                self.scope["state"][ADMITTED] = True
        super().on_headers_complete()
        if self.cycle is not None:
            self._answer = OneWrite(self.transport)
            self.cycle.transport = cast("asyncio.Transport", self._answer)

    def on_response_complete(self) -> None:
        """See uvicorn."""
        if self._answer is not None:
            self._answer.flush()
        super().on_response_complete()

    def _refuse_by_head(self, error: PlatformError) -> None:
        """Answer without a task, without the body: the cheapest answer there is."""
        self._is_skipping = True
        if self.flow.write_paused:  # it asks and doesn't read
            self.transport.abort()
            return
        is_last = not self.parser.should_keep_alive()
        self.transport.write(canned(error, is_last=is_last))
        if is_last:
            self.transport.close()
        else:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_body(self, body: bytes) -> None:
        """See uvicorn."""
        if not (self._is_deaf or self._is_skipping):
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See uvicorn."""
        if not (self._is_deaf or self._is_skipping):
            super().on_message_complete()
