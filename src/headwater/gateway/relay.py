"""Steps 9 and 10: one call is made, its bytes become events, and what they say is counted and passed on.

    open ─▶ read ─▶ decode ─▶ count ─▶ (reservation on the disk, marks) ─▶ sink

What is done for each chunk is kept short: the calls of a busy gateway spend their time here.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog

from headwater.clock import Clock
from headwater.engines.openai_stream import OpenAIStreamDecoder
from headwater.engines.tool_calls import ToolCallRepair
from headwater.errors import EngineFailed, TimedOut
from headwater.events import Event
from headwater.gateway.attempt import BYTES_PER_TOKEN_ESTIMATED, Attempt
from headwater.gateway.cashier import Cashier, Reservation
from headwater.gateway.deadline import Deadline
from headwater.gateway.engines import Engine
from headwater.gateway.http_client import ConnectionBroken, Response
from headwater.gateway.pool import CHARGE_TOKENS, Ask, Lease
from headwater.gateway.routing import Target
from headwater.gateway.sinks import Sink
from headwater.gateway.stop import Stop, Stopped
from headwater.gateway.telemetry import Telemetry
from headwater.gateway.weights import Weights
from headwater.ids import new_id
from headwater.request import Chat, Request

log = structlog.get_logger()

TAIL_TIMEOUT_S = 5.0
"""After the engine's terminal event only its closing usage may still come; it is not waited for longer than this."""
MARK_S, MARK_TOKENS = 1.0, 256
"""A stream under way is marked in the books this often, whichever comes first: a crash loses no more than that."""


class Course:
    """How far a request has come: what its calls share. Owned by the request's task.

    reservation: set once the request is admitted. ttft_s: from received to the first content passed on; None before.
    """

    __slots__ = (
        "_cashier",
        "_is_complete_at",
        "_mark",
        "_mark_at_s",
        "_mark_at_tokens",
        "_weights",
        "attempts",
        "clock",
        "counted",
        "queue_s",
        "request",
        "reservation",
        "stop",
        "ttft_s",
    )

    def __init__(self, request: Request, cashier: Cashier, clock: Clock, weights: Weights) -> None:
        self.request = request
        self.clock = clock
        self.stop = Stop()
        self.attempts: list[Attempt] = []
        self.reservation: Reservation | None = None
        self.queue_s = 0.0
        self.ttft_s: float | None = None
        self.counted = 0
        self._cashier = cashier
        self._weights = weights
        self._is_complete_at = request.payload.choices_count
        self._mark: asyncio.Future[None] | None = None
        self._mark_at_s = self._mark_at_tokens = 0.0

    def ask(self, prefix: tuple[int, ...] = (), *, is_evictable: bool = True) -> Ask:
        """What the queue is told of an attempt of this request."""
        request = self.request
        principal = request.principal
        return Ask(
            principal.organization_id,
            principal.key_id,
            request.band,
            organization_weight=self._weights.organization(principal.organization_id),
            key_weight=self._weights.key(principal.key_id),
            deadline_s=request.deadline_s,
            input_tokens=request.payload.text_bytes // BYTES_PER_TOKEN_ESTIMATED,
            prefix=prefix,
            is_evictable=is_evictable,
        )

    def finish_one(self) -> None:
        """A choice's terminal event was read; with the last one the outcome is fixed: who leaves now leaves an `ok` request."""
        if sum([attempt.is_finished for attempt in self.attempts]) == self._is_complete_at:
            self.stop.disarm()

    async def before_content(self, now_s: float) -> None:
        """What is to be on the disk before more of a stream goes out: its reservation and the mark before the last."""
        reservation = self.reservation
        assert reservation is not None, "a request is admitted before it is answered"
        is_first = not self._mark_at_s
        if not reservation.is_durable and reservation.durable is not None:
            await asyncio.shield(reservation.durable)
            reservation.is_durable = True
        if not is_first:
            if (
                self._mark is not None
            ):  # on a slow disk a stream waits, so that a crash never loses more than two marks' worth
                await self._cashier.marked(self._mark)
            self._mark = self._cashier.mark(reservation, self.attempts)
        self._mark_at_s, self._mark_at_tokens = now_s + MARK_S, self.counted + MARK_TOKENS

    def is_mark_due(self, now_s: float) -> bool:
        """Whether `before_content` has something to do; true at the first time."""
        return now_s >= self._mark_at_s or self.counted >= self._mark_at_tokens


class Call(NamedTuple):
    """One call to make: what is asked, of whom, on which place, and where its answer goes.

    on_content: called once, when the first content comes.
    """

    attempt: Attempt
    target: Target
    lease: Lease[Engine]
    chat: Chat
    sink: Sink
    on_content: Callable[[], None] | None = None


async def relay(call: Call, course: Course, telemetry: Telemetry) -> None:
    """Make a call and pass its events on until its answer is complete.

    Raises what `Engine.open` raises, and EngineFailed or TimedOut when the answer breaks off, is garbage or falls silent.
    """
    attempt, target = call.attempt, call.target
    response: Response | None = None
    cut = Stop()

    def silent() -> None:
        if attempt.is_finished and response is not None:
            response.close()  # only the closing usage is missing: the answer is complete without it
        else:
            kind = "idle" if attempt.has_started else "first-byte"
            cut.press("timeout", TimedOut(f"The engine was silent for longer than the {kind} time-out."))

    silence = Deadline(asyncio.get_running_loop(), target.timeouts.first_byte_s, silent)
    silence.start()
    decoder = OpenAIStreamDecoder(call.lease.slot.reading)  # a leader's prompt may be read in two calls
    try:
        with cut:
            response = await call.lease.member.endpoint.open(
                call.chat,
                model=target.engine_model,
                attempt_id=attempt.id,
                slot=call.lease.slot,
                is_prefix_reusable=call.lease.is_prefix_reusable,
            )
            await _pass_on(call, course, response, decoder, silence)
    except Stopped as stopped:
        raise stopped.error or TimedOut("The engine was silent.") from None
    except ConnectionBroken as error:
        if not attempt.is_finished:
            raise EngineFailed(f"The engine broke off in the middle of its answer: {error}.") from error
    finally:
        silence.close()
        if response is not None:
            response.close()
        attempt.lying_report = decoder.lying_report
        if decoder.bad_lines_count or decoder.lying_reports_count:
            _report_misbehaviour(attempt, decoder, course.request.id, telemetry)
    if not attempt.is_finished:
        raise EngineFailed("The engine ended its answer without saying that it was complete.")


async def _pass_on(
    call: Call, course: Course, response: Response, decoder: OpenAIStreamDecoder, silence: Deadline
) -> None:
    """Read, count and pass on, chunk by chunk, to the end of the answer."""
    attempt, sink, choice = call.attempt, call.sink, call.attempt.choice
    repair = _repair(call.target, call.chat)
    is_stream, idle_s = course.request.is_stream, call.target.timeouts.idle_s
    now, progress = asyncio.get_running_loop().time, call.lease.member.progress
    is_tail = False  # of the closing usage, which has one time-out in all, whatever else is said in it
    while data := await response.read():
        events: list[Event] = decoder.feed(data)
        if events:  # bytes that say nothing, such as keep-alive comments, are silence too
            if not is_tail:
                silence.clear()
            counted = attempt.counted
            failure = attempt.observe(events)
            progress.advanced_at_s = now_s = now()
            if attempt.counted != counted:
                _count(call, course, counted)
            if failure is None and attempt.finish_reason is not None and not is_tail:
                course.finish_one()
            if repair is not None:
                events = [out for event in events for out in repair.feed(event)]
            if is_stream and course.is_mark_due(now_s):
                await course.before_content(now_s)
            await sink.take(choice, events)
            if course.ttft_s is None and sink.has_content:
                course.ttft_s = course.clock.monotonic_s() - course.request.received_monotonic_s
            if failure is not None:
                raise failure
            if not is_tail:
                is_tail = attempt.finish_reason is not None
                silence.start(TAIL_TIMEOUT_S if is_tail else idle_s)
        if decoder.is_done:
            response.finish()
            break
    if repair is not None:
        await sink.take(choice, repair.finish())


def _count(call: Call, course: Course, before_count: int) -> None:
    """Content came: pass the count on. before_count: of this attempt before it."""
    attempt = call.attempt
    counted = attempt.counted
    course.counted += counted - before_count
    if not before_count:
        attempt.content_at_s = course.clock.monotonic_s()
        if call.on_content is not None:
            call.on_content()
    if counted - attempt.charged_count >= CHARGE_TOKENS:
        attempt.charged_count = counted
        call.lease.charge(counted)


def _report_misbehaviour(attempt: Attempt, decoder: OpenAIStreamDecoder, request_id: str, telemetry: Telemetry) -> None:
    telemetry.bad_lines.inc(decoder.bad_lines_count)
    log.warning(
        "upstream_misbehaved",
        request_id=request_id,
        attempt=attempt.id,
        target=attempt.target,
        bad_lines_count=decoder.bad_lines_count,
        lying_reports_count=decoder.lying_reports_count,
    )


def _repair(target: Target, chat: Chat) -> ToolCallRepair | None:
    """Our own engines' small models write tool calls as text; an upstream's parser is its own business."""
    if not target.is_own or not chat.tools or chat.tool_choice.mode == "none":
        return None
    return ToolCallRepair(
        chat.tools, chat.tool_choice, lambda: new_id("call_"), is_parallel=chat.is_parallel_tool_calls is not False
    )
