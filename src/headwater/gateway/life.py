"""The life of a request, from the moment it is authenticated, complete and resolved; `docs/explanation/request.md` numbers it.

admit ─▶ queue ─▶ replica and slot ─▶ encode ─▶ relay events, counting ─▶ settle ─▶ last byte

One `Life` serves one request, whatever its dialect and however many choices it has. Its outcome is fixed once; its
settlement is made once, before anything that says the answer is complete.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

import structlog

from headwater.clock import Clock
from headwater.engines.openai_stream import OpenAIStreamDecoder
from headwater.engines.tool_calls import ToolCallRepair
from headwater.errors import Draining, EngineFailed, LedgerUnavailable, Overloaded, PlatformError, TimedOut
from headwater.events import Event, Failed
from headwater.gateway.admission import decide_output_cap
from headwater.gateway.attempt import Attempt
from headwater.gateway.cashier import Cashier, Reservation
from headwater.gateway.deadline import Deadline
from headwater.gateway.engines import Engine
from headwater.gateway.http_client import ConnectionBroken, Response
from headwater.gateway.pool import Lease
from headwater.gateway.routing import Target
from headwater.gateway.settle import Settler
from headwater.gateway.sinks import Sink
from headwater.gateway.slots import prefix_chain
from headwater.gateway.stop import LiveRequests, Stop, Stopped, watch_disconnect
from headwater.gateway.telemetry import Telemetry
from headwater.ids import new_id
from headwater.ledger.charge import is_void, request_cost_nanos
from headwater.ledger.rows import Settlement, StoredAnswer, UsageRow
from headwater.money import Price
from headwater.request import Chat, Request
from headwater.usage import NO_USAGE, Outcome, weakest

log = structlog.get_logger()

TAIL_TIMEOUT_S = 5.0
"""After the engine's terminal event only its closing usage may still come; it is not waited for longer than this."""
MARK_S, MARK_TOKENS = 1.0, 256
"""A stream under way is marked in the books this often, whichever comes first: a crash loses no more than that."""


class LifeContext(NamedTuple):
    """What every life needs of the gateway. live: the stop buttons of all requests being served."""

    clock: Clock
    cashier: Cashier
    settler: Settler
    telemetry: Telemetry
    live: LiveRequests
    concurrent_max: int
    output_default_max: int
    is_draining: Callable[[], bool]


Keep = Callable[[bytes, int], StoredAnswer | None]
"""Given the answer's body and the time in ms: the row that keeps it for its idempotency key, None when it isn't kept."""


class Ending(NamedTuple):
    """How a request ended, and the error its caller is told, if it is still there to be told."""

    outcome: Outcome
    error: PlatformError | None = None


class Life:
    """One request, admitted to settled."""

    def __init__(self, request: Request, target: Target, context: LifeContext, *, keep: Keep | None = None) -> None:
        """keep: of a request with an idempotency key; asked only for an answer that is ok."""
        self.request = request
        self._keep = keep
        self._reservation: Reservation | None = None
        self._target = target
        self._context = context
        self._stop = Stop()
        self._attempts: list[Attempt] = []
        self._queue_s = 0.0
        self._ttft_s: float | None = None

    async def run(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], sink: Sink) -> None:
        """Serve the request to its last byte; whatever happens, it is settled."""
        self._context.live.add(self._stop)
        try:
            await self._conclude(await self._end(receive, sink), sink)
        finally:
            self._context.live.discard(self._stop)

    async def _end(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], sink: Sink) -> Ending:
        """Answer the request under its stop button and time-out, and say how that ended."""
        context, stop = self._context, self._stop
        left_s = self.request.deadline_s - context.clock.monotonic_s()
        total = Deadline(asyncio.get_running_loop(), max(0.0, left_s), self._out_of_time)
        total.start()
        watcher = asyncio.ensure_future(watch_disconnect(receive, stop))
        try:
            with stop:
                await self._answer(sink)
            return Ending("ok")
        except Stopped as stopped:
            return Ending(stopped.outcome, stopped.error)
        except PlatformError as error:
            return Ending(_outcome_of(error, has_attempts=bool(self._attempts)), error)
        except asyncio.CancelledError:
            # The server gave this task up. What was used is settled all the same; nobody is left to be answered.
            settlement = self._settlement(Ending("client_gone"))
            context.settler.settle(settlement)
            context.telemetry.settled(settlement)
            raise
        except Exception:
            log.exception("request_failed", request_id=self.request.id)
            return Ending(
                "upstream_error", PlatformError("The platform failed on this request; the cause is in its log.")
            )
        finally:
            watcher.cancel()
            total.close()

    # -- step 6: admit ---------------------------------------------------------------------------------------------

    async def _answer(self, sink: Sink) -> None:
        context, request, target = self._context, self.request, self._target
        if context.is_draining():
            raise Draining(
                "The gateway is shutting down; another one, or this one restarted, will answer.", retry_after_s=5
            )
        if len(context.live) > context.concurrent_max:
            raise Overloaded(
                f"{len(context.live) - 1} requests are being served; at most {context.concurrent_max} may be.",
                retry_after_s=target.pool.place_expected_s(),
            )
        target.pool.check(request.payload.choices_count)
        sized = await decide_output_cap(request.payload, target, default_max=context.output_default_max)
        wanted = sized.chat.output_tokens_max
        sized, self._reservation = await context.cashier.reserve(request, target, sized)
        chat = sized.chat
        if chat.output_tokens_max != wanted:
            sink.headers.append((b"x-headwater-output-cap", b"%d; reason=budget" % (chat.output_tokens_max or 0)))
        if request.is_stream:
            sink.headers += context.cashier.remaining_headers(request)
        prefix = prefix_chain(chat) if target.is_own else ()
        if chat.choices_count == 1:
            await self._attempt(0, chat, prefix, sink)
        else:
            await self._attempts_at_once(chat, prefix, sink)

    async def _attempts_at_once(self, chat: Chat, prefix: tuple[int, ...], sink: Sink) -> None:
        """n choices are n calls, each with a place of its own; the first failure ends them all."""
        try:
            async with asyncio.TaskGroup() as group:
                for choice in range(chat.choices_count):
                    group.create_task(self._attempt(choice, chat.for_choice(choice), prefix, sink))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    # -- steps 7 to 10: queue, replica and slot, encode, relay -------------------------------------------------------

    async def _attempt(self, choice: int, chat: Chat, prefix: tuple[int, ...], sink: Sink) -> None:
        clock, pool = self._context.clock, self._target.pool
        queued_s = clock.monotonic_s()
        attempt = Attempt(choice, self._target.name, chat, queued_at_s=clock.now_s())
        lease = await pool.lease(self.request.principal.organization_id, prefix)
        started_s = clock.monotonic_s()
        self._queue_s = max(self._queue_s, started_s - queued_s)
        attempt.started_at_s, attempt.replica_id = clock.now_s(), lease.member.endpoint.replica_id
        self._attempts.append(attempt)
        try:
            await self._relay(attempt, lease, chat, sink)
        except PlatformError as error:
            attempt.error_code = error.code
            raise
        finally:
            attempt.duration_s = clock.monotonic_s() - started_s
            pool.release(lease, prefix=prefix)

    async def _relay(self, attempt: Attempt, lease: Lease[Engine], chat: Chat, sink: Sink) -> None:
        """Call the engine and pass its events on until its answer is complete."""
        timeouts = self._target.timeouts
        response: Response | None = None

        def silent() -> None:
            if attempt.is_finished and response is not None:
                response.close()  # only the closing usage is missing: the answer is complete without it
            else:
                kind = "idle" if attempt.has_started else "first-byte"
                self._stop.press("timeout", TimedOut(f"The engine was silent for longer than the {kind} time-out."))

        silence = Deadline(asyncio.get_running_loop(), timeouts.first_byte_s, silent)
        silence.start()
        decoder = OpenAIStreamDecoder()
        repair = self._repair(chat)
        try:
            response = await lease.member.endpoint.open(
                chat,
                model=self._target.engine_model,
                attempt_id=attempt.id,
                slot=lease.slot,
                is_prefix_reusable=lease.is_prefix_reusable,
            )
            while data := await response.read():
                events = decoder.feed(data)
                if events:  # bytes that say nothing, such as keep-alive comments, are silence too
                    is_tail = attempt.is_finished  # which has one time-out in all, whatever else is said in it
                    if not is_tail:
                        silence.clear()
                    await self._take(attempt, events, repair, sink)
                    if not is_tail:
                        silence.start(TAIL_TIMEOUT_S if attempt.is_finished else timeouts.idle_s)
                if decoder.is_done:
                    response.finish()
                    break
            if repair is not None:
                await sink.take(attempt.choice, repair.finish())
        except ConnectionBroken as error:
            if not attempt.is_finished:
                raise EngineFailed(f"The engine broke off in the middle of its answer: {error}.") from error
        finally:
            silence.close()
            if response is not None:
                response.close()
            attempt.lying_report = decoder.lying_report
            if decoder.bad_lines_count or decoder.lying_reports_count:
                self._context.telemetry.bad_lines.inc(decoder.bad_lines_count)
                log.warning(
                    "upstream_misbehaved",
                    request_id=self.request.id,
                    attempt=attempt.id,
                    target=attempt.target,
                    bad_lines_count=decoder.bad_lines_count,
                    lying_reports_count=decoder.lying_reports_count,
                )
        if not attempt.is_finished:
            raise EngineFailed("The engine ended its answer without saying that it was complete.")

    async def _take(self, attempt: Attempt, events: list[Event], repair: ToolCallRepair | None, sink: Sink) -> None:
        failure: PlatformError | None = None
        for event in events:
            attempt.observe(event)
            if isinstance(event, Failed) and not attempt.is_finished:  # no failure undoes a fixed outcome
                failure = event.error
        if attempt.is_runaway:
            failure = EngineFailed("The engine went on far beyond the output cap it was given; it was cut off.")
        if failure is None and attempt.is_finished and self._is_complete():
            self._stop.disarm()  # the outcome is fixed: a client that leaves from here on is still `ok`
        if repair is not None:
            events = [out for event in events for out in repair.feed(event)]
        if self.request.is_stream:
            reservation = self._reservation
            assert reservation is not None, "a request is admitted before it is answered"
            if not reservation.is_durable and reservation.durable is not None:  # on the disk before any content
                await asyncio.shield(reservation.durable)
                reservation.is_durable = True
            self._mark_if_due(reservation)
        had_content = sink.has_content
        await sink.take(attempt.choice, events)
        if sink.has_content and not had_content:
            self._ttft_s = self._context.clock.monotonic_s() - self.request.received_monotonic_s
        if failure is not None:
            raise failure

    def _mark_if_due(self, reservation: Reservation) -> None:
        """Write how far a stream has come, every so often after its first content."""
        now_s = self._context.clock.monotonic_s()
        counted = sum([attempt.counted for attempt in self._attempts])
        if not reservation.marked_s:
            reservation.marked_s = now_s
        elif now_s >= reservation.marked_s + MARK_S or counted >= reservation.marked_tokens + MARK_TOKENS:
            reservation.marked_s, reservation.marked_tokens = now_s, counted
            self._context.cashier.mark(reservation, self._attempts)

    def _repair(self, chat: Chat) -> ToolCallRepair | None:
        """Our own engines' small models write tool calls as text; an upstream's parser is its own business."""
        if not self._target.is_own or not chat.tools or chat.tool_choice.mode == "none":
            return None
        return ToolCallRepair(
            chat.tools, chat.tool_choice, lambda: new_id("call_"), is_parallel=chat.is_parallel_tool_calls is not False
        )

    # -- steps 11 and 12: settle, last byte --------------------------------------------------------------------------

    async def _conclude(self, ending: Ending, sink: Sink) -> None:
        """Settle what was used, then write the end of the answer."""
        context, error = self._context, ending.error
        settlement: Settlement | None = None
        if error is None or self._leaves_record(error):
            settlement = self._settlement(ending, sink)
            settled = context.settler.settle(settlement)
            try:
                if ending.outcome != "rejected":
                    await settled
                    if settlement.notices:
                        context.cashier.on_notice()
                context.telemetry.settled(settlement)
            except LedgerUnavailable as unavailable:
                error = unavailable
                context.cashier.leave_open(self._reservation)
        else:
            context.telemetry.refused(error.code)
        if ending.outcome == "client_gone":
            return
        if not self.request.is_stream:
            sink.headers += context.cashier.remaining_headers(self.request)
        if error is not None:
            await sink.fail(error)
        elif settlement is not None:
            await sink.finish(settlement.record.usage)

    def _leaves_record(self, error: PlatformError) -> bool:
        """Whether a request that ended so has a usage record: once anything was held it has; else some refusals do."""
        if self._reservation is not None or self._attempts:
            return True
        if error.status == 429:
            return self._context.cashier.should_record_refusal(self.request.principal)
        return error.status != 400

    def _settlement(self, ending: Ending, sink: Sink | None = None) -> Settlement:
        """What the books are to have of this request; its money is settled in memory by this. Call once."""
        request, context, reservation = self.request, self._context, self._reservation
        received_ms = int(request.received_at_s * 1000)
        cost = self._cost(received_ms)
        rows = tuple([attempt.row(request.id, ending.outcome, cost) for attempt in self._attempts])
        usages = [row.usage for row in rows]
        usage = usages[0] if len(usages) == 1 else sum(usages, NO_USAGE)
        price = self._price()
        answer: StoredAnswer | None = None
        if self._keep is not None and sink is not None and ending.outcome == "ok":
            answer = self._keep(sink.render(usage), int(context.clock.now_s() * 1000))
        cost_nanos = request_cost_nanos(
            usages,
            price,
            outcome=ending.outcome,
            is_stream=request.is_stream,
            service_tier=request.service_tier,
        )
        was_void = not rows or is_void(ending.outcome, is_stream=request.is_stream)
        closed = context.cashier.close(reservation, cost_nanos, is_void=was_void)
        flags = [*closed.flags]
        if price is None:
            flags.append("unpriced")
        if [row for row in rows if row.report is not None]:
            flags.append("lying_report")
        record = UsageRow(
            request_id=request.id,
            client_request_id=request.client_request_id,
            organization_id=request.principal.organization_id,
            project_id=request.principal.project_id,
            key_id=request.principal.key_id,
            dialect=request.dialect,
            model=request.model,
            is_stream=request.is_stream,
            choices_count=request.payload.choices_count,
            outcome=ending.outcome,
            error_code=None if ending.error is None else ending.error.code,
            usage_source=weakest([row.usage_source for row in rows]),
            usage=usage,
            price_id=None if price is None else price.id,
            cost_nanos=None if price is None else closed.charge_nanos,
            received_at_ms=received_ms,
            queue_ms=int(self._queue_s * 1000),
            ttft_ms=None if self._ttft_s is None else math.ceil(self._ttft_s * 1000),
            duration_ms=math.ceil((context.clock.monotonic_s() - request.received_monotonic_s) * 1000),
            service_tier=request.service_tier,
            tags=" ".join(request.tags) or None,
            flags=" ".join(flags),
        )
        return Settlement(
            record,
            rows,
            reservation=None if reservation is None else reservation.row,
            resolution=closed.resolution,
            transfers=closed.transfers,
            lots=closed.lots,
            budgets=closed.budgets,
            has_marks=reservation is not None and reservation.has_marks,
            answer=answer,
            notices=closed.notices,
        )

    def _price(self) -> Price | None:
        """The price fixed at admission; of a request that wasn't admitted, the one it would have had: it owes nothing."""
        if self._reservation is not None:
            return self._reservation.price
        return self._context.cashier.price(self.request, self._target)

    def _cost(self, received_ms: int) -> Price | None:
        """What the upstream takes for the model; our own engines take nothing."""
        if self._target.is_own:
            return None
        return self._context.cashier.prices.current(self._target.name, received_ms, kind="cost")

    def _out_of_time(self) -> None:
        self._stop.press("timeout", TimedOut("The request ran into its total time-out."))

    def _is_complete(self) -> bool:
        """Whether every choice has read its engine's terminal event."""
        finished = sum(attempt.is_finished for attempt in self._attempts)
        return finished == self.request.payload.choices_count


def _outcome_of(error: PlatformError, *, has_attempts: bool) -> Outcome:
    """A refusal before any engine was asked is `rejected`; afterwards the error names what failed."""
    if isinstance(error, TimedOut):
        return "timeout"
    return "upstream_error" if has_attempts else "rejected"
