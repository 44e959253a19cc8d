"""Step 3: the request body, at most so many bytes and in a bounded time."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from headwater.errors import BodyTooLarge, TimedOut
from headwater.gateway.headers import Headers

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientLeft(Exception):
    """The client left before its request was complete; there is nobody to answer and nothing to record."""


async def read_body(receive: Receive, headers: Headers, *, bytes_max: int, timeout_s: float) -> bytes:
    """The whole body. Raises BodyTooLarge (before reading it when the length is declared), TimedOut, ClientLeft."""
    if headers.content_length is not None and headers.content_length > bytes_max:
        raise _too_large(headers.content_length, bytes_max)
    try:
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
