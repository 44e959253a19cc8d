"""The life of a request, from the moment it is authenticated, complete and resolved; `docs/explanation/request.md` numbers it.

admit ─▶ queue ─▶ replica and slot ─▶ encode ─▶ relay events, counting ─▶ settle ─▶ last byte

One `Life` serves one request, whatever its dialect and however many choices it has. Its outcome is fixed once; its
settlement is made once, before anything that says the answer is complete.
"""

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple

import structlog

from headwater.clock import Clock
from headwater.errors import Draining, LedgerUnavailable, Overloaded, PlatformError, TimedOut
from headwater.gateway.attempt import Attempt
from headwater.gateway.calling import Caller
from headwater.gateway.cashier import Cashier, Reservation
from headwater.gateway.deadline import Deadline
from headwater.gateway.limits import Held, RateLimiter
from headwater.gateway.relay import Course
from headwater.gateway.routing import Target
from headwater.gateway.settle import Settler
from headwater.gateway.sinks import Sink
from headwater.gateway.stop import LiveRequests, Stopped, Watch
from headwater.gateway.telemetry import Telemetry
from headwater.gateway.weights import Weights
from headwater.ledger.charge import is_void, request_cost_nanos
from headwater.ledger.rows import Settlement, StoredAnswer, UsageRow
from headwater.money import Price
from headwater.request import Request
from headwater.usage import NO_USAGE, Outcome, weakest

log = structlog.get_logger()


class LifeContext(NamedTuple):
    """What every life needs of the gateway. live: the stop buttons of all requests being served."""

    clock: Clock
    cashier: Cashier
    limits: RateLimiter
    settler: Settler
    telemetry: Telemetry
    weights: Weights
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
        self._held: Held | None = None
        self._target = target
        self._context = context
        self._course = Course(request, context.cashier, context.clock, context.weights)
        self._stop = self._course.stop
        self._attempts = self._course.attempts

    async def run(self, watch: Watch, sink: Sink) -> None:
        """Serve the request to its last byte; whatever happens, it is settled. watch: the connection of its client."""
        self._context.live.add(self._stop)
        try:
            await self._conclude(await self._end(watch, sink), sink)
        finally:
            self._context.live.discard(self._stop)

    async def _end(self, watch: Watch, sink: Sink) -> Ending:
        """Answer the request under its stop button and time-out, and say how that ended."""
        context, stop = self._context, self._stop
        left_s = self.request.deadline_s - context.clock.monotonic_s()
        total = Deadline(asyncio.get_running_loop(), max(0.0, left_s), self._out_of_time)
        total.start()
        try:
            with stop:
                watch(self._left)
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
            watch(None)
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
        caller = Caller(target, self._course, context.telemetry, output_default_max=context.output_default_max)
        caller.check()
        sized = await caller.size()
        if context.limits.limits:
            sized, self._held = await context.limits.admit(request, target, sized, sink.headers)
        wanted = sized.chat.output_tokens_max
        sized, self._reservation = await context.cashier.reserve(request, target, sized)
        chat = sized.chat
        if chat.output_tokens_max != wanted:
            sink.headers.append((b"x-headwater-output-cap", b"%d; reason=budget" % (chat.output_tokens_max or 0)))
        if request.is_stream:
            sink.headers += context.cashier.remaining_headers(request)
        self._course.reservation = self._reservation
        # Steps 7 to 10: queue, replica and slot, encode, relay.
        await caller.answer(sized, sink)

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
        if self._held is not None:
            self._held.grant.give_back()  # of what ended without a record
            if not self.request.is_stream:
                sink.headers += context.limits.headers(self.request)
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
        rows = tuple(
            [attempt.row(request.id, ending.outcome, self._cost(attempt, received_ms)) for attempt in self._attempts]
        )
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
        if self._held is not None:
            context.limits.settle(self._held, ending.outcome, rows)
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
            queue_ms=int(self._course.queue_s * 1000),
            ttft_ms=None if (ttft_s := self._course.ttft_s) is None else math.ceil(ttft_s * 1000),
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

    def _cost(self, attempt: Attempt, received_ms: int) -> Price | None:
        """What the upstream that was called takes for the model; our own engines take nothing."""
        if attempt.is_own:
            return None
        return self._context.cashier.prices.current(attempt.target, received_ms, kind="cost")

    def _left(self) -> None:
        self._stop.press("client_gone", None)

    def _out_of_time(self) -> None:
        self._stop.press("timeout", TimedOut("The request ran into its total time-out."))


def _outcome_of(error: PlatformError, *, has_attempts: bool) -> Outcome:
    """A refusal before any engine was asked is `rejected`; afterwards the error names what failed."""
    if isinstance(error, TimedOut):
        return "timeout"
    return "upstream_error" if has_attempts else "rejected"
