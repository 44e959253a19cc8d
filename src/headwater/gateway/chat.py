"""`POST /v1/chat/completions`: steps 1 to 5, then the life of the request with the sink the caller asked for."""

import asyncio
from typing import Any

import structlog

from headwater.clock import Clock
from headwater.dialects import openai_chat
from headwater.dialects.openai_chat_answer import AnswerCollector, AnswerHead, StreamWriter
from headwater.errors import PlatformError
from headwater.gateway.auth import Authenticator
from headwater.gateway.body import ClientLeft, Receive, read_body
from headwater.gateway.deadline import Deadline
from headwater.gateway.headers import read_headers, require_json
from headwater.gateway.http import Scope
from headwater.gateway.life import Life, LifeContext
from headwater.gateway.routing import ModelDirectory
from headwater.gateway.sinks import HeaderList, Send, StreamSink, WholeSink, send_error
from headwater.ids import REQUEST, new_id
from headwater.request import Request
from headwater.settings.model import GatewaySettings

log = structlog.get_logger()


class ChatCompletions:
    """The ASGI application of this one route."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        models: ModelDirectory,
        authenticator: Authenticator,
        context: LifeContext,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._models = models
        self._authenticator = authenticator
        self._context = context
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        received_s, received_monotonic_s = self._clock.now_s(), self._clock.monotonic_s()
        request_id = new_id(REQUEST)
        answer_headers: HeaderList = [(b"x-request-id", request_id.encode())]
        settings = self._settings
        try:
            headers = read_headers(scope)
            require_json(headers)
            principal = await self._authenticator.authenticate(headers)
            body = await read_body(
                receive, headers, bytes_max=settings.body_bytes_max, timeout_s=settings.idle_timeout_s
            )
            parsed = openai_chat.parse(body, settings)
            target = self._models.resolve(parsed.model, principal)
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
        )
        life = Life(request, target, self._context)
        head = AnswerHead(f"chatcmpl-{request_id[len(REQUEST) :]}", int(received_s), parsed.model)
        if not parsed.is_stream:
            await life.run(receive, WholeSink(send, AnswerCollector(head, parsed.chat.choices_count), answer_headers))
            return
        # A client that reads nothing for so long has left: its connection is cut, which the life notices as such.
        stall = Deadline(asyncio.get_running_loop(), settings.write_stall_timeout_s, _abort(scope))
        writer = StreamWriter(head, parsed.include_usage)
        try:
            await life.run(
                receive,
                StreamSink(send, writer, answer_headers, include_usage=parsed.include_usage, stall=stall),
            )
        finally:
            stall.close()


def _abort(scope: Scope) -> Any:
    """How to cut this request's connection; `server.py` puts its transport into the scope."""
    transport: asyncio.Transport = scope["state"]["transport"]
    return transport.abort
