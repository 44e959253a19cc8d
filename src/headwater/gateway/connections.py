"""What one connection of a client may take: bounds on heads, time, pipelining and number, before any request exists.

uvicorn bounds the body that is buffered and what is written but not read; llhttp bounds neither the size of a head nor the
time it takes, and a pipelining client could queue requests without end. See `docs/explanation/overload.md`.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

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
    """uvicorn's connection within bounds. Its transport is in each request's `state`, so that it can be cut off."""

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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
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
