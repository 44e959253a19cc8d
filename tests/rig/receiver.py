"""A receiver of webhooks: a small HTTP server that keeps what it is sent and answers as a test wants."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Received(NamedTuple):
    """One request as it came; names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


Respond = Callable[[Received], Awaitable[bytes | None]]
OK = b"HTTP/1.1 204 No Content\r\n\r\n"


async def take(_: Received) -> bytes:
    """Say that it was taken."""
    return OK


class Receiver:
    """A small HTTP server that keeps what it was sent; `respond` gives the bytes of the answer, None hangs up."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.taken: list[str] = []
        self.respond: Respond = take
        self.port = 0
        self._came = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it is; the path has a character that must stay as it is written."""
        return f"http://127.0.0.1:{self.port}/hooks/a%20b"

    async def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Nobody listens any more; what is under way is cut."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_for(self, count: int, *, timeout_s: float = 20.0) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(timeout_s), self._came:
            await self._came.wait_for(lambda: len(self.received) >= count)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        one = Received(request.split(" ")[1], headers, body)
        self.received.append(one)
        async with self._came:
            self._came.notify_all()
        answer = await self.respond(one)
        if answer is not None:
            if answer == OK:
                self.taken.append(headers["webhook-id"])
            writer.write(answer)
            await writer.drain()
