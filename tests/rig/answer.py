"""One attempt, as the fake engine plays it: refusals, the queue for a slot, prefill, decode, the faults, the end."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import msgspec

from tests.rig import wire
from tests.rig.http1 import Connection
from tests.rig.knobs import Knobs
from tests.rig.oracle import Expected, Piece, endless_words, garbage
from tests.rig.slots import Slots
from tests.rig.truth import Phase, TruthLog

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream", "cache-control": "no-cache"}
CRASH_STATUS = 70


@dataclass(slots=True, kw_only=True)
class Answer:
    """One attempt in the making. Only its own task changes it; `GET /slots` and `POST /step` look at it."""

    serial: int
    conn: Connection
    body: Mapping[str, Any]
    knobs: Knobs
    expected: Expected
    log: TruthLog
    slots: Slots
    is_authorized: bool
    phase: Phase = "queued"
    token_times_ns: list[int] = field(default_factory=list)
    reasoning_sent: int = 0
    steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def run(self) -> None:
        """Play it to its end; a peer that leaves cancels this, in whatever phase, and the log says so."""
        try:
            self.conn.is_dripping = self.knobs.drip
            if not await self._refuse():
                wanted = self.body.get("id_slot")
                async with self.slots.take(self.serial, wanted) as slot:
                    self.log.write("started", self.serial, slot=slot)
                    self.phase = "prefill"
                    await self._work()
        except asyncio.CancelledError:
            how = self.conn.peer_left or "shutdown"
            self.log.write("aborted", self.serial, how=how, phase=self.phase, tokens_sent=len(self.token_times_ns))
            raise
        finally:
            times = self.token_times_ns
            self.log.write("closed", self.serial, tokens_sent=len(times), token_times_ns=times)

    # before a slot

    async def _refuse(self) -> bool:
        """Answer what needs no slot; returns whether that was all."""
        knobs = self.knobs
        slot = self.body.get("id_slot")
        if not self.is_authorized:
            await self._error(401, "Incorrect API key provided", "authentication_error")
        elif int(self.body.get("n") or 1) != 1:
            await self._error(400, "This engine answers one choice only", "invalid_request_error")
        elif slot is not None and self.slots.count and slot >= self.slots.count:
            await self._error(400, f"There is no slot {slot}", "invalid_request_error")
        elif knobs.close_immediately:
            self._fault("close_immediately")
            await self.conn.cut(knobs.cut_mode)
        elif knobs.status is not None:
            self._fault(f"status_{knobs.status}")
            kind = "rate_limit_error" if knobs.status == 429 else "server_error"
            await self._error(knobs.status, f"The fake engine was told to answer {knobs.status}", kind)
        elif knobs.redirect is not None:
            self._fault("redirect")
            target = f"http://127.0.0.1:{knobs.redirect}/v1/chat/completions"
            await self.conn.answer(302, b"", {"location": target})
        elif knobs.content_type_html:
            self._fault("content_type_html")
            await self.conn.answer(200, wire.HTML, {"content-type": "text/html; charset=utf-8"})
        else:
            return False
        return True

    async def _error(self, status: int, message: str, kind: str) -> None:
        retry = {} if self.knobs.retry_after is None else {"retry-after": str(self.knobs.retry_after)}
        await self.conn.answer(status, msgspec.json.encode(wire.error(message, type_=kind, code=status)), JSON | retry)

    # in a slot

    async def _work(self) -> None:
        if self.knobs.silent:
            self._fault("silent")
            await asyncio.Event().wait()  # until the peer leaves
        await asyncio.sleep(self.knobs.slow_headers_ms / 1000)
        if self.body.get("stream"):
            await self._stream()
        else:
            await self._whole()

    async def _stream(self) -> None:
        conn, knobs = self.conn, self.knobs
        maker = wire.ChunkMaker(self.expected, self.body, knobs, int(time.time()))
        await conn.start(200, EVENTS, length=None)
        if knobs.garbage:
            self._fault("garbage")
            await conn.send(garbage(self.expected.request_id), is_last=True)
            return
        await self._prefill(maker)
        await conn.send(maker.role())

        async def emit(group: list[Piece]) -> None:
            text = "".join(piece.text for piece in group)
            log = wire.logprobs(group, self.body) if group[0].kind == "text" else None
            await conn.send(maker.chunk(wire.delta(group[0], text), self._counts(), log=log))

        if await self._decode(emit):
            await self._finish(maker)

    async def _finish(self, maker: wire.ChunkMaker) -> None:
        knobs, conn = self.knobs, self.conn
        report = None
        head = b"" if knobs.no_finish else maker.chunk({}, self._counts(), finish=self.expected.finish_reason)
        tail = b""
        if maker.is_usage_asked and not knobs.no_usage:
            report = wire.usage(self.expected, *self._counts(), knobs)
            tail += maker.usage_chunk(report)
        if not knobs.no_done:
            tail += wire.DONE
        self._log_lies(is_usage_asked=maker.is_usage_asked)
        if knobs.tail_gap_ms and head:
            await conn.send(head)
            await asyncio.sleep(knobs.tail_gap_ms / 1000)
            head = b""
        await conn.send(head + tail, is_last=True)
        self._log_finished(report)

    async def _whole(self) -> None:
        knobs = self.knobs
        if knobs.garbage:
            self._fault("garbage")
            await self.conn.answer(200, garbage(self.expected.request_id), JSON)
            return
        await self._prefill(None)

        async def emit(_group: list[Piece]) -> None:
            return

        if await self._decode(emit):
            report = None if knobs.no_usage else wire.usage(self.expected, *self._counts(), knobs)
            is_finished = not knobs.no_finish
            answer = wire.completion(self.expected, self.body, int(time.time()), report, is_finished=is_finished)
            self._log_lies(is_usage_asked=True)
            await self.conn.answer(200, msgspec.json.encode(answer), JSON)
            self._log_finished(report)

    async def _prefill(self, maker: wire.ChunkMaker | None) -> None:
        """Spend the prefill's time, with progress chunks on the way if there is a stream that asked for them."""
        knobs, expected = self.knobs, self.expected
        if maker is None or not knobs.prefill_step_ms or not self.body.get("return_progress"):
            await asyncio.sleep(knobs.prefill_ms / 1000)
        else:
            passed_ms = 0.0
            while passed_ms < knobs.prefill_ms:
                read = int((expected.prompt_tokens - expected.cached_tokens) * passed_ms / knobs.prefill_ms)
                await self.conn.send(maker.progress(expected.cached_tokens + read, passed_ms))
                step_ms = min(knobs.prefill_step_ms, knobs.prefill_ms - passed_ms)
                await asyncio.sleep(step_ms / 1000)
                passed_ms += step_ms
            await self.conn.send(maker.progress(expected.prompt_tokens, passed_ms))
        self.phase = "decode"

    async def _decode(self, emit: Callable[[list[Piece]], Awaitable[None]]) -> bool:
        """Make the tokens one after another, paced; returns False when a fault has already ended the answer."""
        knobs = self.knobs
        loop = asyncio.get_running_loop()
        pieces: Iterable[Piece] = self.expected.pieces
        if knobs.endless:
            pieces = chain(pieces, endless_words(self.expected.request_id))
        due_s = loop.time()
        for group in grouped(pieces, knobs.batch, self._stops()):
            if not await self._go_on():
                return False
            if knobs.step:
                for _ in group:
                    await self.steps.acquire()
            await asyncio.sleep(max(0.0, due_s - loop.time()))  # 0 still gives the others their turn
            await self.conn.may_write()  # a token is made when it can be sent
            # On a schedule, so that one late wake-up doesn't push back every token after it.
            due_s += knobs.gap_ms * len(group) / 1000
            self.token_times_ns += [time.monotonic_ns()] * len(group)
            self.reasoning_sent += sum(piece.kind == "reasoning" for piece in group)
            await emit(group)
        return await self._go_on()

    # faults

    def _stops(self) -> set[int]:
        knobs = self.knobs
        places = (knobs.cut_after, knobs.crash_after, knobs.stall_after, knobs.bad_json_after, knobs.error_in_200_after)
        return {place for place in places if place is not None}

    async def _go_on(self) -> bool:
        """Do what the knobs want after so many tokens; returns False when that ended the answer."""
        knobs, conn, made = self.knobs, self.conn, len(self.token_times_ns)
        is_stream = bool(self.body.get("stream"))
        if knobs.crash_after == made:
            self._fault("crash")
            await conn.drain()
            os._exit(CRASH_STATUS)
        if knobs.cut_after == made:
            self._fault("cut")
            await conn.cut(knobs.cut_mode)
            return False
        if knobs.stall_after == made:
            self._fault("stall")
            await asyncio.Event().wait()  # until the peer leaves
        if knobs.error_in_200_after == made:
            self._fault("error_in_200")
            error = wire.error("The fake engine broke down")
            if is_stream:
                await conn.send(wire.event(error), is_last=True)
            else:
                await conn.answer(200, msgspec.json.encode(error), JSON)
            return False
        if knobs.bad_json_after == made:
            self._fault("bad_json")
            broken = b'{"choices": [{"index": 0, "delta": {"content": "'
            if not is_stream:
                await conn.answer(200, broken, JSON)
                return False
            await conn.send(b"data: " + broken + b"\n\n")
        return True

    # the log

    def _counts(self) -> tuple[int, int]:
        return len(self.token_times_ns), self.reasoning_sent

    def _fault(self, name: str) -> None:
        self.log.write("fault", self.serial, fault=name, tokens_sent=len(self.token_times_ns))

    def _log_lies(self, *, is_usage_asked: bool) -> None:
        knobs = self.knobs
        is_stream = bool(self.body.get("stream"))
        lies = {
            "no_finish": knobs.no_finish,
            "no_usage": knobs.no_usage and is_usage_asked,
            "no_done": knobs.no_done and is_stream,
            "usage_negative": knobs.usage_negative,
            "usage_absurd": knobs.usage_absurd,
            "usage_shift": knobs.usage_shift != 0,
        }
        for name, is_told in lies.items():
            if is_told:
                self._fault(name)

    def _log_finished(self, report: dict[str, Any] | None) -> None:
        reason = None if self.knobs.no_finish else self.expected.finish_reason
        self.log.write("finished", self.serial, finish_reason=reason, usage=report)


def grouped(pieces: Iterable[Piece], batch: int, stops: set[int]) -> Iterator[list[Piece]]:
    """Gather up to `batch` pieces of one kind into a chunk; it ends where a fault is due; tool pieces go alone."""
    group: list[Piece] = []
    for at, piece in enumerate(pieces):
        if group and (len(group) >= batch or at in stops or piece.kind != group[0].kind or "tool" in piece.kind):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group
