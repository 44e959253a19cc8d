"""Asks an engine for its slots: only its working loop can answer that, while a web server's thread says that all is well."""

import asyncio
from pathlib import Path
from typing import NamedTuple

import msgspec

from headwater.controller.liveness import Answer

ANSWER_BYTES_MAX = 4 * 2**20


class _Slot(msgspec.Struct):
    is_processing: bool


class Asked(NamedTuple):
    """What came of it, and how far the work was: equal marks mean that nothing moved."""

    answer: Answer
    mark: int | None


async def ask(socket_path: Path, api_key: str, *, timeout_s: float, mark: int | None) -> Asked:
    """Ask for `/slots`. mark: of the last time it was asked, None when it wasn't.

    Source: llama.cpp's server, `GET /slots`; the answer waits for the batch that is being computed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            body = await _get(socket_path, api_key)
        slots = msgspec.json.decode(body, type=list[_Slot])
    except (
        OSError,
        LookupError,
        ValueError,
        EOFError,
        asyncio.LimitOverrunError,
    ):  # as are a time-out, bad JSON, a broken answer
        return Asked(Answer.MISSED, mark)
    if not any(slot.is_processing for slot in slots):
        return Asked(Answer.MOVING, None)
    now = hash(body)
    return Asked(Answer.STILL if mark in (None, now) else Answer.MOVING, now)


async def _get(socket_path: Path, api_key: str) -> bytes:
    """The body of a 200 that states its length. Raises OSError, LookupError, ValueError, EOFError, LimitOverrunError."""
    reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=ANSWER_BYTES_MAX)
    try:
        writer.write(
            f"GET /slots HTTP/1.0\r\nhost: engine\r\nauthorization: Bearer {api_key}\r\nconnection: close\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.") or head.split(b" ", 2)[1] != b"200":
            raise ValueError("it did not answer with 200")
        length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        if not 0 <= length <= ANSWER_BYTES_MAX:
            raise ValueError(f"its answer would have {length} bytes")
        return await reader.readexactly(length)
    finally:
        writer.transport.abort()
