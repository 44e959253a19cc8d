"""Step 3: the request body, at most so many bytes and in a bounded time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final

from headwater.errors import BodyTooLarge, Overloaded, TimedOut
from headwater.gateway.headers import Headers

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


LARGE_BODIES_MAX: Final = 64
SMALL_BODY_BYTES: Final = 64 * 1024
"""What the server buffers of a body anyway, before anybody reads it."""


class ClientLeft(Exception):
    """The client left before its request was complete; there is nobody to answer and nothing to record."""


class LargeBodies:
    """How many requests with large bodies may be read at once: each may grow to the byte cap before it is refused."""

    def __init__(self, count_max: int = LARGE_BODIES_MAX) -> None:
        self._count_max = count_max
        self.count = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Read one within. Raises Overloaded when too many are being read."""
        if self.count >= self._count_max:
            raise Overloaded(
                f"{self.count} large request bodies are being read; at most {self._count_max} may be.", retry_after_s=1
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


async def read_body(
    receive: Receive,
    headers: Headers,
    *,
    bytes_max: int,
    timeout_s: float,
    large: LargeBodies | None = None,
    is_here: bool = False,
) -> bytes:
    """The whole body. Raises BodyTooLarge (before reading it when the length is declared), TimedOut, ClientLeft.

    large: bounds how many bodies that may be large are read at once; Overloaded over it. None: as many as come.
    is_here: all of it has come, so there is nothing to wait for and no time to bound.
    """
    if headers.content_length is not None and headers.content_length > bytes_max:
        raise _too_large(headers.content_length, bytes_max)
    if is_here:
        return await _read(receive, bytes_max)
    is_small = headers.content_length is not None and headers.content_length <= SMALL_BODY_BYTES
    try:
        if is_small or large is None:
            async with asyncio.timeout(timeout_s):
                return await _read(receive, bytes_max)
        with large.one():
            async with asyncio.timeout(timeout_s):
                return await _read(receive, bytes_max)
    except TimeoutError:
        raise TimedOut(f"The request body did not arrive within {timeout_s:g} s.") from None


async def _read(receive: Receive, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > bytes_max:
            raise _too_large(size, bytes_max)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(size: int, bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body has {size} bytes or more; at most {bytes_max} are accepted.")
