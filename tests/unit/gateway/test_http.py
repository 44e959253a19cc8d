import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from headwater.errors import UnsupportedValue
from headwater.gateway.http import Answer, Endpoint, Scope, internal_error, router_error
from headwater.gateway.telemetry import Telemetry
from headwater.ledger.writer import LedgerWriter
from headwater.request import Principal


async def good(_scope: Scope, _principal: Principal | None) -> Answer:
    return Answer(b'{"ok":true}')


async def refused(_scope: Scope, _principal: Principal | None) -> Answer:
    raise UnsupportedValue("no", param="x")


async def broken(_scope: Scope, _principal: Principal | None) -> Answer:
    raise RuntimeError("the password is hunter2")


@pytest.fixture
def app(writer: LedgerWriter) -> Starlette:
    telemetry = Telemetry(writer)
    handlers = {"/good": good, "/refused": refused, "/broken": broken}
    return Starlette(
        routes=[
            Route(path, Endpoint(handler, authenticator=None, telemetry=telemetry), methods=["GET"])
            for path, handler in handlers.items()
        ],
        exception_handlers={HTTPException: router_error, Exception: internal_error},
    )


async def call(app: Starlette, path: str, method: str = "GET") -> tuple[int, dict[bytes, bytes], Any]:
    """(status, headers, decoded body) of one request, at the ASGI interface."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "root_path": "",
        "scheme": "http",
        "server": ("x", 80),
        "http_version": "1.1",
    }
    try:
        await app(scope, receive, send)
    except RuntimeError:  # handed on to the server, which logs it with its trace
        assert path == "/broken"
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body)


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/refused", "GET", 400, "unsupported_value"),
        ("/nowhere", "GET", 404, "not_found"),
        ("/good", "DELETE", 405, "method_not_allowed"),
        ("/broken", "GET", 500, "internal_error"),
    ],
)
async def test_every_error_has_the_one_shape_and_a_request_id(
    app: Starlette, path: str, method: str, status: int, code: str
) -> None:
    got, headers, body = await call(app, path, method)
    assert got == status
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    assert headers[b"x-request-id"].startswith(b"req_")
    assert "hunter2" not in str(body)


async def test_a_good_answer_has_a_request_id_too(app: Starlette) -> None:
    status, headers, body = await call(app, "/good")
    assert (status, body) == (200, {"ok": True})
    assert headers[b"x-request-id"].startswith(b"req_")
