"""The HTTP client against real sockets: every framing of HTTP/1.1, cut at every byte, and peers that misbehave."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headwater.gateway.http_client import (
    BUFFERED_BYTES_MAX,
    HEAD_BYTES_MAX,
    ConnectionBroken,
    ConnectTimedOut,
    HttpClient,
    Origin,
    origin_of,
)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"a":1}'


@asynccontextmanager
async def listening(serve: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on a free port, and no connection of it left over at the end."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left: some tests want just that
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0.01)  # aborted transports close on a later turn of the loop


class Server:
    """A peer that answers each request of each connection with the bytes a test wants, and counts connections."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.requests: list[bytes] = []
        self.connections_count = 0
        self.is_closing_after = False
        self.piece_bytes: int | None = None
        self.client_left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_count += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._write(writer, self.answers.pop(0))
                if self.is_closing_after:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.client_left.set()

    async def _write(self, writer: asyncio.StreamWriter, answer: bytes) -> None:
        size = self.piece_bytes or len(answer) or 1
        for at in range(0, len(answer), size):
            writer.write(answer[at : at + size])
            await writer.drain()
            if self.piece_bytes:
                await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    *, keep_alive: bool = True, connect_timeout_s: float = 5.0
) -> AsyncIterator[tuple[Server, HttpClient]]:
    server = Server()
    async with listening(server.serve) as port:
        client = HttpClient(
            origin_of(f"http://127.0.0.1:{port}"),
            headers={"authorization": "Bearer k"},
            connect_timeout_s=5.0,
            keep_alive=keep_alive,
        )
        try:
            yield server, client
        finally:
            await client.close()


async def post(client: HttpClient) -> tuple[int, bytes]:
    response = await client.post("/v1/x", BODY, request_id="att_1")
    try:
        return response.status, await response.read_all(2**24)
    finally:
        response.close()


WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-Y: z\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


async def test_a_request_goes_out_in_one_piece_with_its_headers() -> None:
    async with serving() as (server, client):
        server.answers = [WHOLE]
        assert await post(client) == (200, b"hello")
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert body == BODY
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /v1/x HTTP/1.1"
        assert {b"authorization: Bearer k", b"x-request-id: att_1", b"content-length: 7"} < set(lines)


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED, INTERIM], ids=["length", "chunked", "after an interim head"])
@pytest.mark.parametrize("piece_bytes", [None, 1, 2, 7])
async def test_any_framing_cut_anywhere_reads_alike_and_keeps_the_connection(
    answer: bytes, piece_bytes: int | None
) -> None:
    async with serving() as (server, client):
        server.answers, server.piece_bytes = [answer] * 3, piece_bytes
        for _ in range(3):
            assert await post(client) == (200, b"hello")
        assert server.connections_count == 1


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async with serving() as (server, client):
        server.answers, server.is_closing_after = [b"HTTP/1.1 200 OK\r\n\r\nall of it"] * 2, True
        assert await post(client) == (200, b"all of it")
        assert await post(client) == (200, b"all of it")
        assert server.connections_count == 2


async def test_an_answer_without_a_body_is_complete_at_once() -> None:
    async with serving() as (server, client):
        server.answers = [NO_CONTENT, WHOLE]
        assert await post(client) == (204, b"")
        assert await post(client) == (200, b"hello")


async def test_without_keep_alive_each_request_has_a_connection() -> None:
    async with serving(keep_alive=False) as (server, client):
        server.answers = [WHOLE, WHOLE]
        assert [await post(client), await post(client)] == [(200, b"hello")] * 2
        assert server.connections_count == 2
        assert b"connection: close" in server.requests[0]


async def test_a_connection_the_peer_asks_to_close_is_not_used_again() -> None:
    async with serving() as (server, client):
        closing = WHOLE.replace(b"X-Y: z", b"connection: close")
        server.answers = [closing, WHOLE]
        assert [await post(client), await post(client)] == [(200, b"hello")] * 2
        assert server.connections_count == 2


async def test_at_once_requests_use_connections_of_their_own() -> None:
    async with serving() as (server, client):
        server.answers = [WHOLE] * 20
        assert await asyncio.gather(*(post(client) for _ in range(20))) == [(200, b"hello")] * 20
        assert server.connections_count == 20


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n",
        b"this is not HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello",
    ],
    ids=["nothing", "half a head", "half a body", "chunks without an end", "garbage", "garbage for a chunk"],
)
async def test_an_answer_that_breaks_off_or_is_garbage_is_an_error(answer: bytes) -> None:
    async with serving() as (server, client):
        server.answers, server.is_closing_after = [answer], True
        with pytest.raises(ConnectionBroken):
            await post(client)


async def test_what_came_before_a_break_is_still_read() -> None:
    async with serving() as (server, client):
        server.answers, server.is_closing_after = [b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"], True
        response = await client.post("/", BODY, request_id="r")
        assert await response.read() == b"hello"
        with pytest.raises(ConnectionBroken):
            await response.read()
        response.close()


async def test_a_head_without_end_is_refused() -> None:
    async with serving() as (server, client):
        server.answers = [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * (HEAD_BYTES_MAX // 4)]
        with pytest.raises(ConnectionBroken):
            await post(client)


async def test_bytes_after_an_answer_end_the_connection() -> None:
    async with serving() as (server, client):
        server.answers = [WHOLE + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", WHOLE]
        response = await client.post("/", BODY, request_id="r")
        assert await response.read() == b"hello"
        response.close()
        assert await post(client) == (200, b"hello")


async def test_closing_early_tells_the_peer_at_once() -> None:
    async with serving() as (server, client):
        server.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"]
        response = await client.post("/", BODY, request_id="r")
        assert await response.read() == b"hello"
        response.close()
        response.close()
        async with asyncio.timeout(1):
            await server.client_left.wait()
        with pytest.raises(ConnectionBroken):
            await response.read()


async def test_a_cancelled_wait_for_the_head_closes_the_connection() -> None:
    async with serving() as (server, client):
        server.answers = [b""]
        asking = asyncio.create_task(client.post("/", BODY, request_id="r"))
        async with asyncio.timeout(5):
            while not server.requests:
                await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(1):
            await server.client_left.wait()


async def test_finishing_before_the_formal_end_still_keeps_the_connection() -> None:
    first, second = CHUNKED[:-5], CHUNKED[-5:]
    gate = asyncio.Event()
    connections_count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections_count
        connections_count += 1
        with_end = False
        while head := await reader.read(4096):
            assert head.endswith(BODY)
            writer.write(first)
            if not with_end:
                await gate.wait()
            with_end = True
            writer.write(second)

    async with listening(serve) as port:
        client = HttpClient(Origin("h", "127.0.0.1", port), headers={}, connect_timeout_s=5.0, keep_alive=True)
        response = await client.post("/", BODY, request_id="r")
        assert await response.read() == b"hello"
        response.finish()
        response.close()  # a second word changes nothing
        gate.set()
        async with asyncio.timeout(1):
            while not client.idle_count:
                await asyncio.sleep(0)
        assert await post(client) == (200, b"hello")
        assert connections_count == 1
        await client.close()


async def test_a_reader_that_stops_reading_stops_the_sender() -> None:
    total = 1024 * BUFFERED_BYTES_MAX
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.read(4096)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * BUFFERED_BYTES_MAX)
            await writer.drain()
            sent += BUFFERED_BYTES_MAX

    async with listening(serve) as port:
        client = HttpClient(Origin("h", "127.0.0.1", port), headers={}, connect_timeout_s=5.0, keep_alive=False)
        response = await client.post("/", BODY, request_id="r")
        seen = -1
        while seen != sent:  # until the sender no longer gets anything off
            seen = sent
            for _ in range(200):
                await asyncio.sleep(0.0005)
        assert sent < total
        assert len(await response.read_all(total + 1)) == total
        response.close()
        await client.close()


async def test_no_connection_in_time_is_its_own_error() -> None:
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # nobody accepts them: the queue is full, and who comes now is not answered at all
            early = waiting.enter_context(socket.socket())
            early.setblocking(False)
            early.connect_ex(listener.getsockname())
        origin = Origin("h", *listener.getsockname())
        client = HttpClient(origin, headers={}, connect_timeout_s=0.2, keep_alive=True)
        with pytest.raises(ConnectTimedOut):
            await post(client)
        await client.close()


async def test_no_connection_at_all_is_the_systems_error(tmp_path: Path) -> None:
    nobody = Origin("h", unix_path=tmp_path / "nobody.sock")
    with pytest.raises(OSError, match="No such file"):
        await post(HttpClient(nobody, headers={}, connect_timeout_s=1.0, keep_alive=True))


def test_a_header_can_not_smuggle_another() -> None:
    async def make() -> None:
        HttpClient(origin_of("http://h"), headers={"a": "b\r\nc: d"}, connect_timeout_s=1.0, keep_alive=True)

    with pytest.raises(ValueError, match="control character"):
        asyncio.run(make())


def test_an_origin_knows_its_port_and_hides_credentials() -> None:
    assert origin_of("http://h/v1") == Origin("h", "h", 80)
    assert origin_of("http://user:secret@h:81/v1") == Origin("h:81", "h", 81)
    secure = origin_of("https://h")
    assert (secure.port, secure.tls is not None and secure.tls.verify_mode) == (443, ssl.CERT_REQUIRED)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    made, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    what = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    where = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(made)]
    subprocess.run(["openssl", *what.split(), *where], check=True, capture_output=True)
    return made, key


async def test_over_tls_only_with_a_certificate_that_can_be_verified(certificate: tuple[Path, Path]) -> None:
    serving_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving_side.load_cert_chain(*certificate)
    server = Server()
    server.answers = [WHOLE, CHUNKED]
    async with listening(server.serve, tls=serving_side) as port:

        def client(tls: ssl.SSLContext) -> HttpClient:
            origin = Origin("localhost", "localhost", port, tls)
            return HttpClient(origin, headers={}, connect_timeout_s=5.0, keep_alive=True)

        trusting = client(ssl.create_default_context(cafile=str(certificate[0])))
        assert [await post(trusting), await post(trusting)] == [(200, b"hello")] * 2
        assert server.connections_count == 1
        with pytest.raises(ssl.SSLCertVerificationError):
            await post(client(ssl.create_default_context()))
        await trusting.close()
