"""Load for the benchmarks: callers in a closed loop, and streams whose every chunk is timed.

Both run on uvloop with an asyncio.Protocol of their own (a general HTTP client would be the bottleneck), check each
answer's status and text, and sample the subject's CPU clock at the borders of the measured window.
"""

import asyncio
import bisect
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)
CHUNKED_END = b"\r\n0\r\n\r\n"
ERRORS_MAX = 200  # a cell with more wrong answers than this stops early; it is reported as failed anyway


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: a port of 127.0.0.1 (or a Unix socket, when set), a path, the headers this subject wants."""

    port: int
    path: str
    headers: tuple[str, ...]
    socket_path: str | None = None

    async def connect(self, make: Callable[[], ProtocolT]) -> ProtocolT:
        """Open one connection for the protocol `make` makes."""
        loop = asyncio.get_running_loop()
        if self.socket_path is not None:
            return (await loop.create_unix_connection(make, self.socket_path))[1]
        return (await loop.create_connection(make, "127.0.0.1", self.port))[1]

    def request(self, body: dict[str, object]) -> bytes:
        """The bytes of one HTTP/1.1 POST of `body`."""
        data = json.dumps(body, separators=(",", ":")).encode()
        head = [f"POST {self.path} HTTP/1.1", f"host: 127.0.0.1:{self.port}", "content-type: application/json"]
        head += [*self.headers, f"content-length: {len(data)}"]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def chat(model: str, *, stream: bool) -> dict[str, object]:
    """The request body of every benchmark: a system and a user message, about 31 tokens."""
    body: dict[str, object] = {
        "model": model,
        "max_tokens": 64,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant that answers briefly."},
            {"role": "user", "content": "Say hello to the people who read this benchmark."},
        ],
    }
    return body | {"stream": True, "stream_options": {"include_usage": True}} if stream else body


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile of `values`, NaN when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))] if ordered else float("nan")


# ---- callers that don't stream ----


@dataclass(slots=True)
class Calls:
    """What a closed loop of callers measured in its window."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    error_count: int = 0
    first_error: str = ""


def answer_end(data: bytes) -> int | None:
    """Where the HTTP answer at the start of `data` ends; None while it is incomplete."""
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = data[:head_end].lower()
    at = head.find(b"content-length:")
    if at >= 0:
        end = head_end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        return end if len(data) >= end else None
    return len(data) if data.endswith(CHUNKED_END) else None  # one answer at a time, so nothing follows it


class Caller(asyncio.Protocol):
    """One connection that sends the next request when it has the answer to the last."""

    def __init__(self, request: bytes, expected: bytes, calls: Calls, window_s: tuple[float, float]) -> None:
        self.request, self.expected, self.calls = request, expected, calls
        self.window_start_s, self.window_end_s = window_s
        self.buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry
        self.send()

    def send(self) -> None:
        """Start one request's clock and write it."""
        self.sent_s = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if answer_end(self.buffer) is None:
            return
        now, answer, self.buffer = time.perf_counter(), self.buffer, b""
        if not (answer.startswith(b"HTTP/1.1 200") and self.expected in answer):
            self.calls.error_count += 1
            self.calls.first_error = self.calls.first_error or answer[:600].decode(errors="replace")
        elif self.window_start_s <= now <= self.window_end_s:
            self.calls.latencies_s.append(now - self.sent_s)
        if now >= self.window_end_s or self.calls.error_count > ERRORS_MAX:
            self.transport.close()
        else:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if time.perf_counter() < self.window_end_s and self.calls.error_count <= ERRORS_MAX:
            self.calls.error_count += 1
            self.calls.first_error = self.calls.first_error or f"connection lost: {exc}"
        if not self.done.done():
            self.done.set_result(None)


async def run_calls(
    target: Target,
    model: str,
    expected: str,
    *,
    connections: int,
    warm_s: float,
    seconds: float,
    cpu_s: Callable[[], float],
) -> Calls:
    """Keep `connections` callers busy; measure for `seconds` after `warm_s`.

    cpu_s: reads the subject's CPU clock, in seconds. A lost connection is an error and is not opened again.
    """
    loop, calls = asyncio.get_running_loop(), Calls()
    request, start = target.request(chat(model, stream=False)), time.perf_counter()
    window = (start + warm_s, start + warm_s + seconds)
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), cpu_s()))

    gc.disable()  # a collection of the load's own garbage would show as the subject's latency
    try:
        loop.call_later(warm_s, mark)
        loop.call_later(warm_s + seconds, mark)
        callers = [
            await target.connect(lambda: Caller(request, expected.encode(), calls, window)) for _ in range(connections)
        ]
        await asyncio.wait_for(asyncio.gather(*(c.done for c in callers)), warm_s + seconds + 60)
    finally:
        gc.enable()
    if len(marks) < 2:
        mark()
    calls.wall_s, calls.cpu_s = marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]
    return calls


# ---- streams ----


@dataclass(frozen=True, slots=True)
class StreamSample:
    """One stream as it arrived.

    arrivals_s: for each chunk with text, seconds since the request was written. bunched_count: chunks with text that
    came in the same read as the chunk before. completion_tokens: from the usage chunk. problem: why the stream can't
    count as complete (no finish, usage or [DONE], or not a stream at all); empty when it can.
    """

    text: str = ""
    arrivals_s: tuple[float, ...] = ()
    bunched_count: int = 0
    finish_reason: str | None = None
    completion_tokens: int | None = None
    problem: str = ""


@dataclass(slots=True)
class Streams:
    """What one wave of streams measured; the subject's CPU covers the whole wave."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    samples: list[StreamSample] = field(default_factory=list)
    error_count: int = 0
    first_error: str = ""

    @property
    def chunk_count(self) -> int:
        return sum(len(s.arrivals_s) for s in self.samples)

    @property
    def ttfts_s(self) -> list[float]:
        return [s.arrivals_s[0] for s in self.samples if s.arrivals_s]

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for s in self.samples for a, b in zip(s.arrivals_s, s.arrivals_s[1:], strict=False)]

    @property
    def bunched_ratio(self) -> float:
        return sum(s.bunched_count for s in self.samples) / max(1, self.chunk_count)


class Listener(asyncio.Protocol):
    """One stream: writes the request, keeps every read with its time; reading them is left for later."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.reads: list[tuple[float, bytes]] = []
        self.tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry
        self.sent_s = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.perf_counter(), data))
        self.tail = (self.tail + data)[-len(CHUNKED_END) :]
        if self.tail == CHUNKED_END:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self.done.done():
            self.done.set_result(None)


def dechunk(raw: bytes, start: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Undo HTTP/1.1 chunked encoding from `start`.

    Returns the body and, for each HTTP chunk, (end offset in the body, end offset in `raw`).
    """
    body, borders, at = bytearray(), [], start
    while (line_end := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:line_end].split(b";", 1)[0], 16)
        at = line_end + 2 + size
        body += raw[line_end + 2 : at]
        borders.append((len(body), at))
        at += 2
        if size == 0:
            break
    return bytes(body), borders


def read_stream(reads: Sequence[tuple[float, bytes]], sent_s: float) -> StreamSample:
    """Find each chunk with text in a stream's reads and the read that completed it. Pure."""
    raw = b"".join(data for _, data in reads)
    ends: list[int] = []  # ends[i] = bytes received up to and with read i
    for _, data in reads:
        ends.append((ends[-1] if ends else 0) + len(data))
    head_end = raw.find(b"\r\n\r\n")
    if not raw.startswith(b"HTTP/1.1 200") or b"chunked" not in raw[:head_end].lower():
        return StreamSample(problem=raw[:600].decode(errors="replace") or "no answer")
    body, borders = dechunk(raw, head_end + 4)
    body_ends = [border[0] for border in borders]
    text, arrivals, bunched, last_read, at = [], [], 0, -1, 0
    finish_reason: str | None = None
    completion_tokens: int | None = None
    done = False
    while (end := body.find(b"\n\n", at)) >= 0:
        line, at = body[at:end].strip(), end + 2
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            continue
        chunk = json.loads(data)
        if usage := chunk.get("usage"):
            completion_tokens = usage["completion_tokens"]
        for choice in chunk.get("choices") or ():
            finish_reason = choice.get("finish_reason") or finish_reason
            if not (choice.get("delta") or {}).get("content"):
                continue
            # The event is here when its last byte is: that HTTP chunk's end less what the body has after the event.
            border = borders[bisect.bisect_left(body_ends, end + 2)]
            read = bisect.bisect_left(ends, border[1] - (border[0] - end - 2))
            text.append(choice["delta"]["content"])
            arrivals.append(reads[read][0] - sent_s)
            bunched += read == last_read
            last_read = read
    problem = "" if done and finish_reason and completion_tokens is not None else f"cut: …{body[-200:]!r}"
    return StreamSample("".join(text), tuple(arrivals), bunched, finish_reason, completion_tokens, problem)


async def run_streams(
    target: Target,
    model: str,
    expected: str,
    *,
    streams: int,
    spread_s: float,
    timeout_s: float,
    cpu_s: Callable[[], float],
) -> Streams:
    """Open `streams` streams, starts spread evenly over `spread_s` (0: all at once), and time every chunk."""
    result = Streams()
    request = target.request(chat(model, stream=True))
    listeners: list[Listener] = []

    async def listen(delay_s: float) -> None:
        if delay_s:
            await asyncio.sleep(delay_s)
        listener = await target.connect(lambda: Listener(request))
        listeners.append(listener)
        await listener.done

    gc.disable()
    cpu_before, start = cpu_s(), time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(listen(spread_s * i / streams) for i in range(streams)))
    finally:
        result.wall_s, result.cpu_s = time.perf_counter() - start, cpu_s() - cpu_before
        gc.enable()
    for listener in listeners:
        sample = read_stream(listener.reads, listener.sent_s)
        result.samples.append(sample)
        if sample.problem or sample.text != expected:
            result.error_count += 1
            result.first_error = result.first_error or sample.problem or f"wrong text: {sample.text[:200]!r}"
    return result
