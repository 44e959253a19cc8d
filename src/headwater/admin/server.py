"""The admin socket of a running platform: HTTP on `admin.sock`, which only its owner's user can open (0600).

`POST /call/VERB` with the verb's wish as JSON is answered with its answer (200) or with the problem (400).
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headwater.admin.administration import Administration, Live
from headwater.admin.verbs import VERBS
from headwater.admin.wire import Problem
from headwater.errors import OperatorError
from headwater.ledger.limit_store import LimitRow
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.store import PriceVersion

T = TypeVar("T")
LOOP_TIMEOUT_S = 20.0


def build_admin_app(administration: Administration) -> Starlette:
    """The application behind the socket."""
    one_at_a_time = asyncio.Lock()  # as the administration is; those that wait here take no thread from anybody

    async def call(request: Request) -> Response:
        verb = VERBS.get(request.path_params["verb"])
        if verb is None:
            raise OperatorError(
                f"The running platform can't do {request.path_params['verb']!r}.",
                why="It is of another version than this command.",
                now="Use the CLI of the same version, or start the platform again with this one.",
            )
        wish = msgspec.json.decode(await request.body(), type=verb.wish)
        async with one_at_a_time:
            # A verb waits for the disk, and for this loop when memory must learn of a change: never on the loop itself.
            return _json(await asyncio.to_thread(administration.perform, verb, wish))

    return Starlette(
        routes=[Route("/call/{verb}", call, methods=["POST"])],
        exception_handlers={OperatorError: _problem, msgspec.DecodeError: _bad_wish},
    )


class OnLoop:
    """A `Live` that any thread can use: each call runs on the event loop, and returns when it has."""

    def __init__(self, live: Live, loop: asyncio.AbstractEventLoop) -> None:
        self._live = live
        self._loop = loop

    def forget_key(self, key_hash: bytes) -> None:
        """See Live."""
        self._run(lambda: self._live.forget_key(key_hash))

    def forget_project(self, project_id: str) -> None:
        """See Live."""
        self._run(lambda: self._live.forget_project(project_id))

    def set_organization(self, organization_id: str, *, is_prepaid: bool, currency: str | None) -> None:
        """See Live."""
        self._run(lambda: self._live.set_organization(organization_id, is_prepaid=is_prepaid, currency=currency))

    def add_grant(self, grant_id: str, organization_id: str, amount_nanos: int, expires_at_ms: int | None) -> None:
        """See Live."""
        self._run(lambda: self._live.add_grant(grant_id, organization_id, amount_nanos, expires_at_ms))

    def revoke_grant(self, organization_id: str, grant_id: str) -> int:
        """See Live."""
        return self._run(lambda: self._live.revoke_grant(organization_id, grant_id))

    def set_budget(self, terms: BudgetTerms) -> None:
        """See Live."""
        self._run(lambda: self._live.set_budget(terms))

    def drop_budget(self, terms: BudgetTerms) -> None:
        """See Live."""
        self._run(lambda: self._live.drop_budget(terms))

    def set_limit(self, limit: LimitRow) -> None:
        """See Live."""
        self._run(lambda: self._live.set_limit(limit))

    def drop_limit(self, limit: LimitRow) -> None:
        """See Live."""
        self._run(lambda: self._live.drop_limit(limit))

    def weigh_organization(self, organization_id: str, weight: int) -> None:
        """See Live."""
        self._run(lambda: self._live.weigh_organization(organization_id, weight))

    def weigh_key(self, key_id: str, weight: int) -> None:
        """See Live."""
        self._run(lambda: self._live.weigh_key(key_id, weight))

    def set_prices(self, versions: Sequence[PriceVersion]) -> None:
        """See Live."""
        self._run(lambda: self._live.set_prices(versions))

    def _run(self, tell: Callable[[], T]) -> T:
        told: Future[T] = Future()

        def on_loop() -> None:
            try:
                told.set_result(tell())
            except Exception as error:  # noqa: BLE001 it belongs to the thread that waits
                told.set_exception(error)

        self._loop.call_soon_threadsafe(on_loop)
        return told.result(LOOP_TIMEOUT_S)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OperatorError)
    return _json(Problem(error.what, error.why, error.now), 400)


async def _bad_wish(_request: Request, error: Exception) -> Response:
    return _json(Problem("The admin request can't be read.", str(error), "Use the CLI of the same version."), 400)
