"""One write for the head of an answer and the first piece of its body; what a request can know of its connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from headwater.gateway.body import Receive
from headwater.gateway.connections import BoundedProtocol, OneWrite
from headwater.gateway.http import Scope
from headwater.gateway.server import HttpServer, bind_tcp
from headwater.gateway.sinks import Send, send_body

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Transport:
    """What was done to it, in order."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def one(transport: Transport) -> OneWrite:
    return OneWrite(cast("asyncio.Transport", transport))


def test_a_head_goes_with_the_first_piece_and_the_others_as_they_come(transport: Transport, one: OneWrite) -> None:
    one.write(HEAD)
    assert transport.done == []
    one.write(b"a")
    one.write(b"b")
    one.flush()
    assert transport.done == [HEAD + b"a", b"b"]


def test_a_head_without_a_body_goes_at_the_end_of_the_answer_once(transport: Transport, one: OneWrite) -> None:
    one.write(HEAD)
    one.flush()
    one.flush()
    assert transport.done == [HEAD]


def test_an_interim_answer_waits_for_nothing(transport: Transport, one: OneWrite) -> None:
    one.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.done == [b"HTTP/1.1 100 Continue\r\n\r\n"], "the body that is to follow it waits for it"
    one.write(HEAD)
    one.write(b"a")
    assert transport.done[1:] == [HEAD + b"a"]


def test_what_is_held_goes_before_the_connection_closes(transport: Transport, one: OneWrite) -> None:
    one.write(HEAD)
    assert not one.is_closing()
    one.close()
    assert transport.done == [HEAD, "closed"]
    assert one.is_closing()


class Served:
    """An application that serves one request: as far as `go`, then until its client leaves or `answer`."""

    def __init__(self, *, is_read: bool) -> None:
        self.is_read = is_read
        self.go, self.answer, self.has_left, self.has_begun = (asyncio.Event() for _ in range(4))
        self.had_body: bool | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: BoundedProtocol = scope["state"]["connection"]
        self.had_body = connection.has_body
        self.has_begun.set()
        await self.go.wait()
        if self.is_read:
            while (await receive()).get("more_body"):
                pass
        connection.watch(self.has_left.set)
        await self.answer.wait()
        connection.watch(None)
        await send_body(send, 200, b"{}", [])


@asynccontextmanager
async def connected(app: Served) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    listener = bind_tcp("127.0.0.1", 0)
    with listener:
        server = HttpServer(app, listener)
        await server.start()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            yield reader, writer
        finally:
            app.go.set()
            app.answer.set()
            writer.close()
            await server.stop()


def request(size: int) -> bytes:
    return b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size


@pytest.mark.parametrize("size", [2, 8 * 2**20], ids=["small", "over the buffers"])
async def test_a_client_that_leaves_is_noticed_at_once(size: int) -> None:
    app = Served(is_read=True)
    app.go.set()
    async with connected(app) as (_, writer):
        writer.write(request(size) + b"x" * size)
        await writer.drain()
        await app.has_begun.wait()
        assert not app.has_left.is_set()
        writer.close()
        async with asyncio.timeout(10):
            await app.has_left.wait()


async def test_a_client_that_left_before_anybody_watched_is_noticed_too() -> None:
    app = Served(is_read=False)
    async with connected(app) as (_, writer):
        writer.write(request(2) + b"{}")
        await app.has_begun.wait()
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)
        assert not app.has_left.is_set()
        app.go.set()
        async with asyncio.timeout(10):
            await app.has_left.wait()


async def test_a_client_that_leaves_after_its_answer_concerns_nobody() -> None:
    app = Served(is_read=True)
    app.go.set()
    app.answer.set()
    async with connected(app) as (reader, writer):
        writer.write(request(2) + b"{}")
        async with asyncio.timeout(10):
            await reader.readuntil(b"{}")
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)
        assert not app.has_left.is_set()


@pytest.mark.parametrize(("sent", "is_whole"), [(b"{}", True), (b"{", False)])
async def test_a_body_that_has_come_whole_is_known(sent: bytes, is_whole: bool) -> None:
    app = Served(is_read=True)
    async with connected(app) as (_, writer):
        writer.write(request(2) + sent)
        await app.has_begun.wait()
        assert app.had_body is is_whole
        writer.write(b"}"[: 2 - len(sent)])
