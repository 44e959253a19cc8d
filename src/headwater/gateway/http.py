"""The HTTP faces beside a request's life: who is alive, what can be called, what a key has used, metrics, errors."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from headwater.dialects.openai_chat_answer import error_body
from headwater.errors import MethodNotAllowed, NotFound, PlatformError
from headwater.gateway.auth import Authenticator
from headwater.gateway.body import Receive
from headwater.gateway.headers import read_headers
from headwater.gateway.sinks import HeaderList, Send, send_error
from headwater.gateway.telemetry import Telemetry
from headwater.ids import REQUEST, new_id
from headwater.request import Principal

Scope = MutableMapping[str, Any]


class Answer(NamedTuple):
    """A whole answer of a small endpoint."""

    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"


class Endpoint:
    """A small GET endpoint as an ASGI application: a request id always, errors in the one shape.

    With an authenticator the handler is called with the principal, without one with None: every endpoint says which.
    """

    def __init__(
        self,
        handler: Callable[[Scope, Principal | None], Awaitable[Answer]],
        *,
        authenticator: Authenticator | None,
        telemetry: Telemetry,
    ) -> None:
        self._handler = handler
        self._authenticator = authenticator
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 GETs have no body
        """Answer one request."""
        headers: HeaderList = [(b"x-request-id", new_id(REQUEST).encode())]
        try:
            principal = None
            if self._authenticator is not None:
                principal = await self._authenticator.authenticate(read_headers(scope))
            answer = await self._handler(scope, principal)
        except PlatformError as error:
            self._telemetry.refused(error.code)
            await send_error(send, error, headers)
            return
        head = [*headers, (b"content-type", answer.content_type), (b"content-length", b"%d" % len(answer.body))]
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        await send({"type": "http.response.body", "body": answer.body, "more_body": False})


class DirectRoute:
    """One route ahead of the router: the router's middlewares would wrap the `send` of every chunk of a stream twice."""

    def __init__(self, router: ASGIApp, *, method: str, path: str, endpoint: ASGIApp) -> None:
        self._router = router
        self._method = method
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call to the endpoint if it is exactly for it, else to the router."""
        is_direct = scope["type"] == "http" and scope["path"] == self._path and scope["method"] == self._method
        await (self._endpoint if is_direct else self._router)(scope, receive, send)


async def router_error(request: Request, error: Exception) -> Response:
    """The router's own 404 and 405 in the one shape."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path[:200]
    known: PlatformError
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        known = MethodNotAllowed(f"{path} does not take {method}; it takes {allowed}.")
    else:
        known = NotFound(f"There is nothing at {path}. The API begins at /v1, such as /v1/chat/completions.")
    headers = {**(error.headers or {}), "x-request-id": new_id(REQUEST)}
    return Response(error_body(known), known.status, headers, media_type="application/json")


async def internal_error(_request: Request, _error: Exception) -> Response:
    """What nobody foresaw, in the one shape and without its detail; the server logs it with its trace."""
    known = PlatformError("The platform failed on this request; the cause is in its log.")
    headers = {"x-request-id": new_id(REQUEST)}
    return Response(error_body(known), known.status, headers, media_type="application/json")
