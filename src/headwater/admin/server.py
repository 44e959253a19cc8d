"""The admin socket of a running platform: HTTP on `admin.sock`, which only its owner's user can open (0600)."""

import asyncio
from collections.abc import Callable

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headwater.admin.keys import KeyAdmin
from headwater.admin.wire import CreatedKeyView, CreateKey, Problem, key_view
from headwater.errors import OperatorError


def build_admin_app(keys: KeyAdmin, *, forget_key: Callable[[bytes], None]) -> Starlette:
    """The application behind the socket. forget_key is called on the event loop, before a revocation is confirmed."""

    async def create_key(request: Request) -> Response:
        wish = msgspec.json.decode(await request.body(), type=CreateKey)
        made = await asyncio.to_thread(
            keys.create, wish.name, allowed_models=wish.allowed_models, expires_in_s=wish.expires_in_s
        )
        return _json(CreatedKeyView(made.secret, key_view(made.row)), 201)

    async def list_keys(_request: Request) -> Response:
        return _json([key_view(row) for row in await asyncio.to_thread(keys.list)])

    async def revoke_key(request: Request) -> Response:
        row = await asyncio.to_thread(keys.revoke, request.path_params["key_id"])
        forget_key(row.hash)
        return _json(key_view(row))

    return Starlette(
        routes=[
            Route("/keys", create_key, methods=["POST"]),
            Route("/keys", list_keys, methods=["GET"]),
            Route("/keys/{key_id}/revoke", revoke_key, methods=["POST"]),
        ],
        exception_handlers={OperatorError: _problem, msgspec.DecodeError: _bad_wish},
    )


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OperatorError)
    return _json(Problem(error.what, error.why, error.now), 400)


async def _bad_wish(_request: Request, error: Exception) -> Response:
    return _json(Problem("The admin request can't be read.", str(error), "Use the CLI of the same version."), 400)
