"""Nobody can reach what is another's: every route of the API that names an object, for every kind of stranger.

The matrix is made from the route list itself, so that a new route fails the test until it says what its id names.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headwater.clock import SystemClock
from headwater.gateway.app import Gateway
from headwater.ledger.book import Book
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.store import open_writer
from headwater.ledger.writer import LedgerWriter
from headwater.settings import load
from tests.integration.bodies import chat_body
from tests.rig.clients import Received, ask, call
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODEL = "m:tokens=3"
NOBODYS = {"request_id": "req_01900000000000000000000000000000", "model": "no-such-model"}
Owned = Callable[["World"], str]


@dataclass
class World:
    """A running platform with a request of the key `mine`, and strangers' keys beside it."""

    platform: Platform
    keys: Mapping[str, str]
    request_id: str


# For each route with an id: what names an object of `mine`; None: its ids are the platform's own, the same for everybody.
ID_ROUTES: dict[str, Owned | None] = {
    "/v1/usage/{request_id}": lambda world: world.request_id,
    "/v1/models/{model:path}": None,
}
# Routes without an id answer about their caller, or about the process.
PLAIN_ROUTES = {"/v1/chat/completions", "/v1/models", "/v1/usage", "/health", "/ready", "/metrics"}
STRANGERS = ("other organization", "other project", "revoked", "anonymous")
CHANNELS: tuple[Callable[[str], dict[str, str]], ...] = (
    lambda key: {"authorization": f"Bearer {key}"},
    lambda key: {"x-api-key": key},
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_path: Path) -> AsyncIterator[World]:
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [MODEL])])
        async with running_platform(text, module_path / "p") as platform:

            async def cli(*arguments: str) -> Any:
                return (await platform.cli(*arguments, "--json")).json()

            await cli("organizations", "create", "theirs")
            await cli("projects", "create", "another")
            keys = {"mine": platform.key}
            keys["other project"] = (await cli("keys", "create", "--project", "another"))["key"]
            keys["other organization"] = (await cli("keys", "create", "--organization", "theirs"))["key"]
            revoked = await cli("keys", "create", "--name", "revoked")
            await cli("keys", "revoke", revoked["id"])
            keys["revoked"] = revoked["key"]
            got = await platform.ask(chat_body(f"fake/{MODEL}", stream=False))
            yield World(platform, keys, got.headers["x-request-id"])


def as_if(got: Received, asked_for: str) -> tuple[int | None, bytes]:
    """Status and body, whatever id was asked for."""
    return got.status, got.body.replace(asked_for.encode(), b"ID")


async def test_every_route_has_its_place_in_the_matrix(tmp_path: Path) -> None:
    database = tmp_path / "headwater.db"
    ensure_schema(database)
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    settings = load(config_path=None, environ={}).settings
    gateway = Gateway(settings, writer=writer, database=database, book=Book(), epoch=1, clock=SystemClock())
    paths = {str(getattr(route, "path", route)) for route in gateway.router.routes}
    assert paths == set(ID_ROUTES) | PLAIN_ROUTES, "say for the new route what its id names, or that it has none"
    assert {path for path in paths if "{" in path} == set(ID_ROUTES)
    await gateway.close()
    writer.close()


@pytest.mark.parametrize("channel", CHANNELS, ids=["bearer", "x-api-key"])
@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("path", [path for path, owned in ID_ROUTES.items() if owned is not None])
async def test_what_is_anothers_is_as_if_it_did_not_exist(
    world: World, path: str, stranger: str, channel: Callable[[str], dict[str, str]]
) -> None:
    owned = ID_ROUTES[path]
    assert owned is not None
    name = path[path.index("{") + 1 : path.index("}")]
    mine, nobodys = owned(world), NOBODYS[name]
    key = world.keys.get(stranger)
    headers = {} if key is None else channel(key)

    def at(object_id: str, with_headers: dict[str, str]) -> Awaitable[Received]:
        return call(world.platform.base_url, "GET", path.replace("{" + name + "}", object_id), headers=with_headers)

    theirs = await at(mine, headers)
    assert theirs.status in (401, 404)
    assert as_if(theirs, mine) == as_if(await at(nobodys, headers), nobodys)
    assert (await at(mine, channel(world.keys["mine"]))).status == 200  # it is there, for its owner


async def test_a_stranger_with_the_same_idempotency_key_gets_its_own_answer(world: World) -> None:
    body = chat_body(f"fake/{MODEL}", stream=False)
    base_url, given = world.platform.base_url, {"idempotency-key": "the-same"}
    mine = await ask(base_url, body, api_key=world.keys["mine"], headers=given)
    again = await ask(base_url, body, api_key=world.keys["mine"], headers=given)
    assert (again.body, again.headers.get("idempotent-replayed")) == (mine.body, "true")
    for stranger in ("other project", "other organization"):
        got = await ask(base_url, body, api_key=world.keys[stranger], headers=given)
        assert (got.status, "idempotent-replayed" in got.headers) == (200, False)
        assert got.body != mine.body


async def test_a_key_sees_its_own_use_only(world: World) -> None:
    for stranger in ("other project", "other organization"):
        headers = {"authorization": f"Bearer {world.keys[stranger]}"}
        usage = (await call(world.platform.base_url, "GET", "/v1/usage", headers=headers)).json()
        ids = [record["request_id"] for record in world.platform.records() if record["key_id"] == usage["key_id"]]
        assert usage["requests_count"] == len(ids)
        assert world.request_id not in ids
