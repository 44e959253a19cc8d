"""The admin verbs over the real socket, and on the files when nobody runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from headwater.admin.client import FileAdmin, SocketAdmin, find_admin
from headwater.admin.keys import KeyAdmin
from headwater.admin.ownership import SOCKET_NAME, Ownership
from headwater.admin.server import build_admin_app
from headwater.admin.wire import CreateKey
from headwater.errors import OperatorError
from headwater.gateway.server import HttpServer, bind_unix
from headwater.keys import hash_key
from headwater.settings.model import DeploymentSettings, Settings, StoreSettings

WAIT_S = 20.0
Serve = Callable[[Starlette], Awaitable[SocketAdmin]]


@pytest.fixture
async def serve(short_path: Path) -> AsyncIterator[Serve]:
    """Puts an application behind the real socket and returns the client of it."""
    servers: list[HttpServer] = []

    async def start(app: Starlette) -> SocketAdmin:
        path = short_path / SOCKET_NAME
        servers.append(HttpServer(app, bind_unix(path)))
        await servers[-1].start()
        return SocketAdmin(path)

    yield start
    for server in servers:
        await server.stop()


def settings(directory: Path) -> Settings:
    return Settings(
        store=StoreSettings(url=f"sqlite:///{directory}/headwater.db"),
        deployments=(DeploymentSettings(name="qwen", model="qwen2.5-coder-0.5b-instruct"),),
    )


async def test_keys_are_made_listed_and_revoked_over_the_socket(serve: Serve, keys: KeyAdmin) -> None:
    forgotten: list[bytes] = []
    admin = await serve(build_admin_app(keys, forget_key=forgotten.append))

    def work() -> None:
        made = admin.create_key(CreateKey("laptop", ["qwen"], 60.0))
        assert made.key.startswith("hw-")
        assert admin.list_keys() == [made.details]
        revoked = admin.revoke_key(made.details.id)
        assert revoked.revoked_at_ms is not None
        assert forgotten == [hash_key(made.key)]  # before the answer came

    await asyncio.to_thread(work)


@pytest.mark.parametrize("key_id", ["key_none", "a b", "a/b", "../../x", "?", "é", "", "%2e", "a\nb"])
async def test_an_id_that_is_none_is_said_to_be_none(serve: Serve, keys: KeyAdmin, key_id: str) -> None:
    admin = await serve(build_admin_app(keys, forget_key=lambda _: None))
    with pytest.raises(OperatorError):
        await asyncio.to_thread(admin.revoke_key, key_id)


async def test_a_refusal_comes_back_as_the_same_three_answers(serve: Serve, keys: KeyAdmin) -> None:
    admin = await serve(build_admin_app(keys, forget_key=lambda _: None))
    with pytest.raises(OperatorError, match="no model 'gpt'") as refused:
        await asyncio.to_thread(admin.create_key, CreateKey("x", ["gpt"]))
    assert "Configured are" in refused.value.why
    assert "Check the name" in refused.value.now


async def test_the_socket_is_its_owners_alone(serve: Serve, keys: KeyAdmin, short_path: Path) -> None:
    await serve(build_admin_app(keys, forget_key=lambda _: None))
    assert (short_path / SOCKET_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("status", "text"), [(500, "Internal Server Error"), (404, "Not Found"), (200, "hello")])
async def test_an_answer_that_is_not_ours_is_a_message_not_a_trace(serve: Serve, status: int, text: str) -> None:
    async def answer(_request: Request) -> Response:
        return PlainTextResponse(text, status)

    admin = await serve(Starlette(routes=[Route("/keys", answer)]))
    with pytest.raises(OperatorError, match=f"status {status}"):
        await asyncio.to_thread(admin.list_keys)


def test_a_platform_that_does_not_answer_is_a_message_not_a_trace(short_path: Path) -> None:
    with pytest.raises(OperatorError, match="can't be reached"):
        SocketAdmin(short_path / SOCKET_NAME).list_keys()


def test_without_a_running_platform_the_verbs_work_on_the_files(short_path: Path) -> None:
    admin = find_admin(settings(short_path))
    assert isinstance(admin, FileAdmin)
    made = admin.create_key(CreateKey("laptop", ["qwen"]))
    assert admin.list_keys() == [made.details]
    assert admin.revoke_key(made.details.id).revoked_at_ms is not None
    with pytest.raises(OperatorError):
        admin.create_key(CreateKey("x", ["gpt"]))
    assert len(admin.list_keys()) == 1  # and nothing was left locked


def test_a_running_platform_is_asked_and_its_files_are_left_alone(short_path: Path) -> None:
    bind_unix(short_path / SOCKET_NAME).close()
    with Ownership(short_path):
        admin: Any = find_admin(settings(short_path))
    assert isinstance(admin, SocketAdmin)


def test_a_verb_waits_for_another_verb_to_let_go(short_path: Path) -> None:
    """The other holds the lock but has no socket, so it is no platform."""
    other = Ownership(short_path)
    with other:
        admin = find_admin(settings(short_path))
        assert isinstance(admin, FileAdmin)
        with ThreadPoolExecutor(1) as thread:
            listed = thread.submit(admin.list_keys)
            assert not wait([listed], 0.1).done
            other.__exit__(None, None, None)
            assert listed.result(WAIT_S) == []
