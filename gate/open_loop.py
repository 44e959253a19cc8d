"""A load that doesn't wait for answers: requests leave when they are due, however the platform fares. A program of its own.

    python -m gate.open_loop < order.json > result.json

An order has one or more phases; each phase's requests are counted by the second in which they were due. A closed phase
(`callers` instead of `rate`) measures capacity: so many callers, each asking again when it was answered.
"""

import asyncio
import gc
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import cast

import msgspec

from gate.children import environment

CONTENT, CHUNKED_END, HEAD_END = b'"content":"', b"0\r\n\r\n", b"\r\n\r\n"
CONNECTIONS_MAX = 6000
TICK_S = 0.004
LINGER_S = 0.5
LEAVE_S = 0.004


class Phase(msgspec.Struct, kw_only=True):
    """So many seconds of load: `rate` requests a second without waiting, or `callers` that wait.

    requests: with callers, as many requests instead of as many seconds.
    """

    seconds: float = 0.0
    requests: int = 0
    rate: float = 0.0
    callers: int = 0


class Order(msgspec.Struct, kw_only=True):
    """Where to, what, and how long an answer may take to be good: TTFT of a stream, all of what isn't streamed.

    Requests use the bodies in turn. leavers: the numbers of bodies whose clients leave, a stream's at its first content,
    others after LEAVE_S. give_up_s: every client leaves when it has no whole answer by then.
    """

    port: int
    key: str
    path: str
    bodies: list[msgspec.Raw]
    leavers: list[int] = []
    phases: list[Phase]
    first_s: float = 2.0
    total_s: float = 5.0
    give_up_s: float = 10.0
    seed: int = 1


class Second(msgspec.Struct):
    """The requests due in one second, by how they ended."""

    asked: int = 0
    good: int = 0
    late: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0


class Result(msgspec.Struct):
    """seconds: of each phase. refusal_ms_p99: how quickly a refusal came; unsaid: refusals without Retry-After.

    behind_ms_max: how late the program itself ever was; a load that can't keep its pace measures nothing.
    """

    seconds: list[list[Second]]
    refusal_ms_p99: list[float] = []
    good_ms_p99: list[float] = []
    behind_ms_max: list[float] = []
    unsaid_count: int = 0
    connections_max: int = 0
    failures: list[str] = []


class Client(asyncio.Protocol):
    """One connection, one request at a time; afterwards it is idle, or gone."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.head = b""
        self.tail = b""
        self.status = 0
        self.left = -1
        self.due_s = self.first_s = 0.0
        self.second: Second | None = None
        self.phase = 0
        self.is_first_content = False
        self.is_leaving = False
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, number: int, second: Second, phase: int, due_s: float) -> None:
        """Send the request of that number."""
        self.is_leaving = self.load.is_leaving[number % len(self.load.requests)]
        request = self.load.requests[number % len(self.load.requests)]
        if self.is_leaving and not self.load.is_stream[number % len(self.load.requests)]:
            asyncio.get_running_loop().call_later(LEAVE_S, self.leave, number)
        self.number = number
        self.head, self.tail, self.status, self.left = b"", b"", 0, -1
        self.second, self.phase, self.due_s, self.first_s = second, phase, due_s, 0.0
        self.is_first_content = False
        self.load.under_way[self] = None
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.second is None:
            return
        if not self.status:
            self.head += data
            at = self.head.find(HEAD_END)
            if at < 0:
                return
            head, data = self.head[:at].lower(), self.head[at + 4 :]
            self.status = int(head[9:12])
            length = head.find(b"content-length:")
            if length >= 0:
                self.left = int(head[length + 15 :].split(b"\r\n", 1)[0])
            self.has_retry_after = b"retry-after:" in head
            self.is_closing = b"connection: close" in head
        if not self.first_s and CONTENT in data:
            # The first chunk has the role and empty content; a token is what follows.
            if self.left >= 0 or data.count(CONTENT) > 1 or self.is_first_content or b'"content":""' not in data:
                self.first_s = time.monotonic()
            self.is_first_content = True
            if self.is_leaving:
                self.leave(self.number)
                return
        if self.left >= 0:
            self.left -= len(data)
            if self.left <= 0:
                self.answered()
        else:
            self.tail = (self.tail + data)[-5:]
            if self.tail == CHUNKED_END:
                self.answered()

    def answered(self) -> None:
        """The answer is whole: count it, and be idle."""
        second, load, now_s = self.second, self.load, time.monotonic()
        assert second is not None
        if self.status == 200:
            is_stream = self.left < 0
            took_s = (self.first_s if is_stream else now_s) - self.due_s
            is_good = bool(self.first_s) and took_s <= (load.order.first_s if is_stream else load.order.total_s)
            second.good += is_good
            second.late += not is_good
            if is_good:
                load.good_s[self.phase].append(took_s)
        elif self.status in (429, 503):
            second.refused += 1
            load.refusals_s[self.phase].append(now_s - self.due_s)
            load.result.unsaid_count += not self.has_retry_after
        else:
            second.failed += 1
            load.note(f"status {self.status}")
        self.second = None
        load.under_way.pop(self, None)
        if self.is_closing or self.transport.is_closing():
            self.transport.abort()
        else:
            load.on_idle(self)

    def leave(self, number: int) -> None:
        """Leave as planned, if that request is still being answered."""
        if self.second is not None and self.number == number:
            self.second.left += 1
            self.second = None
            self.load.under_way.pop(self, None)
            self.transport.abort()
            self.load.on_left()

    def give_up(self) -> None:
        """Leave without an answer."""
        if self.second is not None:
            self.second.late += 1
            self.second = None
            self.load.under_way.pop(self, None)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        load = self.load
        load.open_count -= 1
        load.idle.pop(self, None)
        load.under_way.pop(self, None)
        if self.second is not None:
            self.second.failed += 1
            self.second = None
            load.note(f"connection lost: {exc}")
            load.on_left()


class Load:
    """All phases of one order."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.requests = [_request(order, body) for body in order.bodies]
        self.is_leaving = [at in order.leavers for at in range(len(order.bodies))]
        self.is_stream = [b'"stream":true' in bytes(body) for body in order.bodies]
        self.on_left: Callable[[], None] = lambda: None
        self.idle: dict[Client, None] = {}
        self.under_way: dict[Client, None] = {}
        self.open_count = 0
        self.result = Result([[] for _ in order.phases])
        self.refusals_s: list[list[float]] = [[] for _ in order.phases]
        self.good_s: list[list[float]] = [[] for _ in order.phases]
        self.on_idle: Callable[[Client], None] = self._keep
        self._opening: set[asyncio.Task[None]] = set()
        self._draw = random.Random(f"arrivals {order.seed}")
        self._number = 0

    def note(self, failure: str) -> None:
        """Keep the first few failures."""
        if len(self.result.failures) < 10:
            self.result.failures.append(failure)

    def _keep(self, client: Client) -> None:
        self.idle[client] = None

    async def run(self) -> Result:
        """Play every phase; returns when the last one's requests have ended or were given up."""
        reaper = asyncio.ensure_future(self._reap())
        for at, phase in enumerate(self.order.phases):
            await (self._counted if phase.requests else self._closed if phase.callers else self._open)(at, phase)
        while self.under_way or self._opening:
            await asyncio.sleep(0.02)
        reaper.cancel()
        for client in list(self.idle):
            client.transport.abort()
        self.result.refusal_ms_p99 = [_p99_ms(took) for took in self.refusals_s]
        self.result.good_ms_p99 = [_p99_ms(took) for took in self.good_s]
        return self.result

    async def _open(self, at: int, phase: Phase) -> None:
        count = int(phase.seconds * phase.rate)
        seconds = self.result.seconds[at]
        seconds += [Second() for _ in range(int(phase.seconds) + 1)]
        began_s, behind_s = time.monotonic(), 0.0
        for number in range(count):
            # Evenly spaced, each somewhere in its own space: random enough, and no noise of its own in a second's sum.
            due_s = began_s + (number + self._draw.random()) / phase.rate
            while (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(max(TICK_S, wait_s))
            behind_s = max(behind_s, -wait_s)
            second = seconds[int(due_s - began_s)]
            second.asked += 1
            self._send(second, at, due_s)
            if number % 32 == 31:
                await asyncio.sleep(0)
        await asyncio.sleep(max(0.0, began_s + phase.seconds - time.monotonic()))
        self.result.behind_ms_max.append(round(behind_s * 1000, 1))

    async def _closed(self, at: int, phase: Phase) -> None:
        seconds = self.result.seconds[at]
        seconds += [Second() for _ in range(int(phase.seconds) + 1)]
        began_s = time.monotonic()
        ends_s = began_s + phase.seconds

        def again(client: Client) -> None:
            now_s = time.monotonic()
            if now_s >= ends_s:
                self._keep(client)
                return
            second = seconds[int(now_s - began_s)]
            second.asked += 1
            self._number += 1
            client.ask(self._number, second, at, now_s)

        self.on_idle = again
        for _ in range(phase.callers):
            self._send(seconds[0], at, time.monotonic())
        await asyncio.sleep(phase.seconds + LINGER_S)
        self.on_idle = self._keep
        self.result.behind_ms_max.append(0.0)

    async def _counted(self, at: int, phase: Phase) -> None:
        """So many requests by so many callers; whoever left, or was cut off, comes again on a new connection."""
        second, done = Second(), asyncio.Event()
        self.result.seconds[at].append(second)

        def again(client: Client | None = None) -> None:
            if second.asked >= phase.requests:
                if client is not None:
                    self._keep(client)
                if not self.under_way:
                    done.set()
                return
            second.asked += 1
            if client is None:
                self._send(second, at, time.monotonic())
            else:
                self._number += 1
                client.ask(self._number, second, at, time.monotonic())

        self.on_idle = self.on_left = again
        for _ in range(phase.callers):
            again()
        await done.wait()
        self.on_idle, self.on_left = self._keep, lambda: None
        self.result.behind_ms_max.append(0.0)

    def _send(self, second: Second, phase: int, due_s: float) -> None:
        self._number += 1
        number = self._number
        while self.idle:
            client, _ = self.idle.popitem()
            if not client.transport.is_closing():
                client.ask(number, second, phase, due_s)
                return
        if self.open_count >= CONNECTIONS_MAX:
            second.failed += 1
            self.note(f"the load has {CONNECTIONS_MAX} connections and opens no more")
            return
        self.open_count += 1
        self.result.connections_max = max(self.result.connections_max, self.open_count)
        task = asyncio.ensure_future(self._connect(number, second, phase, due_s))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, number: int, second: Second, phase: int, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.order.give_up_s):
                _, client = await loop.create_connection(lambda: Client(self), "127.0.0.1", self.order.port)
        except (OSError, TimeoutError) as error:
            self.open_count -= 1
            second.failed += 1
            self.note(f"no connection: {error!r}")
            return
        client.ask(number, second, phase, due_s)

    async def _reap(self) -> None:
        """Give up what takes too long; the oldest are first in the dictionary."""
        while True:
            await asyncio.sleep(0.1)
            before_s = time.monotonic() - self.order.give_up_s
            for client in list(self.under_way):
                if client.due_s > before_s:
                    break
                client.give_up()


def _p99_ms(took_s: list[float]) -> float:
    ordered = sorted(took_s)
    return round(ordered[int(len(ordered) * 0.99)] * 1000, 1) if ordered else 0.0


def _request(order: Order, body: bytes) -> bytes:
    head = (
        f"POST {order.path} HTTP/1.1\r\nhost: 127.0.0.1:{order.port}\r\nauthorization: Bearer {order.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(bytes(body))}\r\n\r\n"
    )
    return head.encode() + bytes(body)


async def run_order(order: Order) -> Result:
    """Put this load on a platform from a process of its own, which ends with the call."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gate.open_loop", env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        out, _ = await process.communicate(msgspec.json.encode(order))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return msgspec.json.decode(out, type=Result)


def main() -> int:
    """Read the order, play it, write the result."""
    import uvloop

    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    gc.disable()  # a collection here would look like a slow platform; the run is short
    result = uvloop.run(Load(order).run())
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
