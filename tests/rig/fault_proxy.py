"""A TCP proxy that breaks connections on purpose, in-process or as a program.

    async with FaultProxy.between("127.0.0.1:9000") as proxy:
        proxy.set(delay_ms=50)          # every connection, from now on
        proxy.set_next(truncate_after=100)  # the next connection only

    python -m tests.rig.fault_proxy --upstream 127.0.0.1:9000 [--listen 127.0.0.1:0]

As a program it prints a JSON line with its address, takes one JSON order a line on standard input ({"set": {…}},
{"set_next": {…}}, {"rst": true}, {"half_close": "client"}, {"refuse": true}, {"accept": true}, {"stats": true}),
answers each with its figures, and ends when its input does.
"""

import argparse
import asyncio
import contextlib
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, Self

import msgspec

PIECE_BYTES = 65536
Direction = Literal["up", "down"]
"""up: from the client to the upstream; down: back."""
Count = Annotated[int, msgspec.Meta(ge=0)]


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to a connection; the defaults do nothing."""

    delay_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # before each piece is passed on, in both directions
    stall: Literal["none", "up", "down", "both"] = "none"  # nothing is passed on that way, a FIN neither
    drip: bool = False  # one byte a write, both ways
    truncate_after: Count | None = None  # so many bytes down, then closed
    truncate_mode: Literal["fin", "rst"] = "fin"
    garbage_after: Count | None = None  # after so many bytes down, 64 bytes that belong to no protocol are put in


GARBAGE = bytes((at * 37 + 11) % 256 for at in range(64))


class Link:
    """One client's connection and its upstream's. Two pumps carry bytes; the faults may change under them."""

    def __init__(self, proxy: "FaultProxy", client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """client: the accepted connection."""
        self._proxy = proxy
        self._own: Faults | None = proxy.take_next()
        self._client = client
        self._upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.passed = {"up": 0, "down": 0}
        self._has_garbage = False

    @property
    def faults(self) -> Faults:
        """This connection's own faults, or the proxy's."""
        return self._own or self._proxy.faults

    async def run(self) -> None:
        """Carry bytes until both sides are done or one is reset."""
        try:
            self._upstream = await self._proxy.connect()
        except OSError:
            self.reset()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump("up", self._client[0], self._upstream[1]))
                group.create_task(self._pump("down", self._upstream[0], self._client[1]))
        except* ConnectionError:
            self.reset()  # a reset on one side is one on the other, whichever pump met it first
        except* _CutError:
            self.reset() if self.faults.truncate_mode == "rst" else self._close()
        finally:
            self._close()

    async def _pump(self, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._proxy.until(lambda: self.faults.stall not in (way, "both"))
            piece = await reader.read(PIECE_BYTES)
            await self._proxy.until(lambda: self.faults.stall not in (way, "both"))
            await asyncio.sleep(self.faults.delay_ms / 1000)
            if not piece:
                with contextlib.suppress(OSError):  # the other side may be gone already
                    writer.write_eof()
                return
            await self._pass_on(way, piece, writer)

    async def _pass_on(self, way: Direction, piece: bytes, writer: asyncio.StreamWriter) -> None:
        faults = self.faults
        limit = faults.truncate_after if way == "down" else None
        if way == "down" and faults.garbage_after is not None and not self._has_garbage:
            at = faults.garbage_after - self.passed["down"]
            if at <= len(piece):
                self._has_garbage = True
                piece = piece[: max(0, at)] + GARBAGE + piece[max(0, at) :]
        is_last = limit is not None and self.passed[way] + len(piece) >= limit
        if limit is not None and is_last:
            piece = piece[: max(0, limit - self.passed[way])]
        for at in range(0, len(piece), 1 if faults.drip else PIECE_BYTES):
            part = piece[at : at + 1] if faults.drip else piece
            writer.write(part)
            await writer.drain()
            self.passed[way] += len(part)
            if faults.drip:
                await asyncio.sleep(0)
        if is_last:
            raise _CutError

    def reset(self) -> None:
        """Close both sides with RST."""
        for writer in self._writers():
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def abort(self) -> None:
        """Close both sides now, without waiting for what isn't sent yet."""
        for writer in self._writers():
            writer.transport.abort()

    def half_close(self, side: Literal["client", "upstream"]) -> None:
        """Send a FIN to that side and go on carrying what it sends."""
        writers = self._writers()
        writers[0 if side == "client" else -1].write_eof()

    def _close(self) -> None:
        for writer in self._writers():
            writer.close()

    def _writers(self) -> list[asyncio.StreamWriter]:
        return [self._client[1], *([self._upstream[1]] if self._upstream else [])]


class _CutError(Exception):
    """The link has passed all that it may."""


class FaultProxy:
    """Listens, and gives every connection its faults."""

    def __init__(self, upstream: str, listen: str) -> None:
        """Both are `host:port` or `unix:/path`; port 0 listens on a free one and keeps it when the listener reopens."""
        self._upstream, self._listen = upstream, listen
        self.faults = Faults()
        self._next: deque[Faults] = deque()
        self._changed = asyncio.Condition()
        self._links: dict[asyncio.Task[None], Link] = {}
        self._server: asyncio.Server | None = None
        self._notices: set[asyncio.Task[None]] = set()
        self.accepted_count = 0

    @classmethod
    @asynccontextmanager
    async def between(cls, upstream: str, *, listen: str = "127.0.0.1:0") -> AsyncIterator[Self]:
        """Run a proxy in this process until the block ends."""
        proxy = cls(upstream, listen)
        await proxy.accept()
        try:
            yield proxy
        finally:
            await proxy.stop()

    @property
    def address(self) -> str:
        """Where it listens, or would when it doesn't refuse."""
        return self._listen

    @property
    def base_url(self) -> str:
        """The OpenAI base URL through this proxy."""
        return f"http://{self._listen}/v1"

    @property
    def links(self) -> list[Link]:
        """The open connections, oldest first."""
        return list(self._links.values())

    def set(self, **faults: object) -> None:
        """Replace the faults of every connection that has none of its own; without arguments, heal them."""
        self.faults = msgspec.convert(faults, Faults)
        self._tell()

    def set_next(self, **faults: object) -> None:
        """Give the next connection its own faults; several calls queue up."""
        self._next.append(msgspec.convert(faults, Faults))

    def take_next(self) -> Faults | None:
        """Return the faults queued for a connection that has just come, if any."""
        self.accepted_count += 1
        return self._next.popleft() if self._next else None

    def rst(self) -> int:
        """Reset all open connections on both sides; returns how many."""
        links = self.links
        for link in links:
            link.reset()
        return len(links)

    def half_close(self, side: Literal["client", "upstream"]) -> None:
        """Send a FIN to that side of every open connection."""
        for link in self.links:
            link.half_close(side)

    async def refuse(self) -> None:
        """Close the listener: new connections are refused, open ones go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Listen (again) at the same address."""
        if self._server is not None:
            return
        kind, _, rest = self._listen.rpartition(":")
        if kind == "unix":
            self._server = await asyncio.start_unix_server(self._accepted, rest)
        else:
            self._server = await asyncio.start_server(self._accepted, kind, int(rest))
            self._listen = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the upstream."""
        kind, _, rest = self._upstream.rpartition(":")
        return await (
            asyncio.open_unix_connection(rest) if kind == "unix" else asyncio.open_connection(kind, int(rest))
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is looked at again whenever the faults change."""
        if not holds():
            async with self._changed:
                await self._changed.wait_for(holds)

    def stats(self) -> dict[str, Any]:
        """Figures: where it listens, connections accepted and open, bytes of the open ones."""
        return {
            "address": self._listen,
            "is_refusing": self._server is None,
            "accepted": self.accepted_count,
            "open": len(self._links),
            "passed": [link.passed for link in self.links],
        }

    async def stop(self) -> None:
        """Close the listener and every connection."""
        await self.refuse()
        tasks = [*self._links, *self._notices]
        for link in self.links:
            link.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(self, (reader, writer))
        task = asyncio.get_running_loop().create_task(link.run())
        self._links[task] = link
        task.add_done_callback(self._links.pop)

    def _tell(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)


async def _obey(proxy: FaultProxy, order: dict[str, Any]) -> dict[str, Any]:
    for name, value in order.items():
        match name:
            case "set":
                proxy.set(**value)
            case "set_next":
                proxy.set_next(**value)
            case "rst":
                proxy.rst()
            case "half_close":
                proxy.half_close(value)
            case "refuse":
                await proxy.refuse()
            case "accept":
                await proxy.accept()
            case "stats":
                continue
            case _:
                return {"error": f"There is no order {name}"}
    return proxy.stats()


async def _program(upstream: str, listen: str) -> None:
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with FaultProxy.between(upstream, listen=listen) as proxy:
        print(msgspec.json.encode({"ready": True} | proxy.stats()).decode(), flush=True)
        while line := await orders.readline():
            try:
                answer = await _obey(proxy, msgspec.json.decode(line, type=dict[str, Any]))
            except (msgspec.DecodeError, OSError) as error:
                answer = {"error": str(error)}
            print(msgspec.json.encode(answer).decode(), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="tests.rig.fault_proxy", description="A proxy that breaks connections.")
    parser.add_argument("--upstream", required=True, help="host:port or unix:/path")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port (0: a free port) or unix:/path")
    options = parser.parse_args(argv)
    asyncio.run(_program(options.upstream, options.listen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
