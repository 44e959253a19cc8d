"""`POST /v1/chat/completions`: steps 1 to 5, then the life of the request with the sink the caller asked for."""

import asyncio

import structlog

from headwater.clock import Clock
from headwater.dialects import openai_chat
from headwater.dialects.openai_chat_answer import AnswerCollector, AnswerHead, StreamWriter
from headwater.errors import InvalidRequest, Overloaded, PlatformError
from headwater.gateway.attempt import BYTES_PER_TOKEN_ESTIMATED
from headwater.gateway.auth import Authenticator
from headwater.gateway.body import ClientLeft, LargeBodies, Receive, read_body
from headwater.gateway.connections import ADMITTED, BoundedProtocol
from headwater.gateway.deadline import Deadline
from headwater.gateway.headers import TAGS_HEADER, read_headers, read_tags, require_json
from headwater.gateway.http import Scope
from headwater.gateway.idempotency import Idempotency, Replay, Ticket
from headwater.gateway.life import Life, LifeContext
from headwater.gateway.overload import Overload
from headwater.gateway.routing import ModelDirectory, Target
from headwater.gateway.sinks import HeaderList, Send, StreamSink, WholeSink, send_body, send_error
from headwater.ids import REQUEST, new_id
from headwater.request import Principal, Request
from headwater.scheduling.bands import PRICED_TIERS, Band
from headwater.scheduling.fair_queue import Ask
from headwater.scheduling.shedding import LEVEL_MAX
from headwater.settings.model import GatewaySettings

log = structlog.get_logger()

ROUTE = "/v1/chat/completions"


class ChatCompletions:
    """The ASGI application of this one route."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        models: ModelDirectory,
        authenticator: Authenticator,
        context: LifeContext,
        idempotency: Idempotency,
        overload: Overload,
        clock: Clock,
    ) -> None:
        self._overload = overload
        self._large_bodies = LargeBodies()
        self._idempotency = idempotency
        self._settings = settings
        self._models = models
        self._authenticator = authenticator
        self._context = context
        self._clock = clock

    def apply(self, settings: GatewaySettings, context: LifeContext) -> None:
        """Take these limits from the next request on."""
        self._settings, self._context = settings, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        received_s, received_monotonic_s = self._clock.now_s(), self._clock.monotonic_s()
        request_id = new_id(REQUEST)
        answer_headers: HeaderList = [(b"x-request-id", request_id.encode())]
        settings = self._settings
        connection: BoundedProtocol = scope["state"]["connection"]
        ticket: Ticket | None = None
        try:
            headers = read_headers(scope)
            require_json(headers)
            principal = await self._authenticator.authenticate(headers)
            self._require_room(principal)
            body = await read_body(
                receive,
                headers,
                bytes_max=settings.body_bytes_max,
                timeout_s=settings.idle_timeout_s,
                large=self._large_bodies,
                is_here=connection.has_body,
            )
            parsed = openai_chat.parse(body, settings)
            tags = self._declared_tags(read_tags(headers), principal)
            target = self._models.resolve(parsed.model, principal)
            self._require_place(principal, target, parsed, received_monotonic_s, scope)
            if headers.idempotency_key is not None:
                begun = await self._idempotency.begin(
                    headers.idempotency_key,
                    route=ROUTE,
                    principal=principal,
                    body=body,
                    request_id=request_id,
                    is_stream=parsed.is_stream,
                )
                if isinstance(begun, Replay):
                    await self._replay(begun, send, answer_headers)
                    return
                ticket = begun
        except ClientLeft:
            return
        except PlatformError as error:
            self._context.telemetry.refused(error.code)
            await send_error(send, error, answer_headers)
            return
        except Exception:  # such as a store that can't be read: the gate stays shut
            log.exception("request_failed", request_id=request_id)
            await send_error(
                send, PlatformError("The platform failed on this request; the cause is in its log."), answer_headers
            )
            return
        if parsed.ignored:
            answer_headers.append((b"x-headwater-ignored", ", ".join(parsed.ignored).encode()))
        request = Request(
            id=request_id,
            principal=principal,
            model=parsed.model,
            deadline_s=received_monotonic_s + target.timeouts.total_s,
            is_stream=parsed.is_stream,
            payload=parsed.chat,
            dialect=openai_chat.NAME,
            received_at_s=received_s,
            received_monotonic_s=received_monotonic_s,
            client_request_id=headers.client_request_id,
            tags=tags,
            service_tier=PRICED_TIERS[parsed.band],
            band=parsed.band,
        )
        life = Life(request, target, self._context, keep=None if ticket is None else ticket.keep)
        head = AnswerHead(f"chatcmpl-{request_id[len(REQUEST) :]}", int(received_s), parsed.model, parsed.service_tier)
        if not parsed.is_stream:
            collector = AnswerCollector(head, parsed.chat.choices_count)
            try:
                await life.run(connection.watch, WholeSink(send, collector, answer_headers))
            finally:
                if ticket is not None:
                    self._idempotency.release(ticket)
            return
        # A client that reads nothing for so long has left: its connection is cut, which the life notices as such.
        stall = Deadline(asyncio.get_running_loop(), settings.write_stall_timeout_s, connection.abort)
        writer = StreamWriter(head, parsed.include_usage)
        try:
            await life.run(
                connection.watch,
                StreamSink(send, writer, answer_headers, include_usage=parsed.include_usage, stall=stall),
            )
        finally:
            stall.close()

    # What the life would refuse is refused here for a third of the price: a flood is mostly refusals. The first of a key in
    # a minute goes on, is refused by its life and leaves a record; the others are counted.

    def _require_room(self, principal: Principal) -> None:
        """Refuse over the bound on requests being served, and when all are shed, before the body is read. Raises Overloaded."""
        if self._overload.level >= LEVEL_MAX:
            self._overload.admit(Band.INTERACTIVE)
        live_count, concurrent_max = len(self._context.live), self._context.concurrent_max
        if live_count >= concurrent_max and not self._context.cashier.should_record_refusal(principal):
            raise Overloaded(
                f"{live_count} requests are being served; at most {concurrent_max} may be.", retry_after_s=1
            )

    def _require_place(
        self,
        principal: Principal,
        target: Target,
        parsed: openai_chat.Parsed,
        received_monotonic_s: float,
        scope: Scope,
    ) -> None:
        """Refuse what the overload guards or the queue refuse. Raises Overloaded, NoReplica."""
        if self._overload.level and ADMITTED not in scope["state"]:
            self._overload.admit(parsed.band)
        if target.pool.free_count or target.targets:  # each target of a route is asked in its turn
            return
        ask = Ask(
            principal.organization_id,
            principal.key_id,
            parsed.band,
            deadline_s=received_monotonic_s + target.timeouts.total_s,
            input_tokens=parsed.chat.text_bytes // BYTES_PER_TOKEN_ESTIMATED,
        )
        try:
            target.pool.check(parsed.chat.choices_count, ask)
        except PlatformError:
            if not self._context.cashier.should_record_refusal(principal):
                raise

    def _declared_tags(self, tags: tuple[str, ...], principal: Principal) -> tuple[str, ...]:
        """The tags, if each has a budget in the caller's organization: a mistyped one would escape its cap."""
        for tag in tags:
            if not self._context.cashier.book.declares(principal.organization_id, tag):
                raise InvalidRequest(
                    f"{TAGS_HEADER}: the tag {tag!r} is not declared in this organization; a budget for it declares it.",
                    param=TAGS_HEADER,
                )
        return tags

    async def _replay(self, replay: Replay, send: Send, headers: HeaderList) -> None:
        """Give an answer again: nothing runs, nothing is charged."""
        self._context.telemetry.replays.inc()
        log.info("request_replayed", request_id=replay.request_id)
        again = [(b"idempotent-replayed", b"true"), (b"x-headwater-original-request-id", replay.request_id.encode())]
        await send_body(send, 200, replay.body, [*headers, *again])
