"""The admin verbs over the real socket, and on the files when nobody runs."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from headwater.admin import budgets, grants, keys, limits, organizations, prices, projects
from headwater.admin import running as running_verbs
from headwater.admin.administration import Administration, Verb
from headwater.admin.books import Books
from headwater.admin.client import FileAdmin, SocketAdmin, build_administration, find_admin
from headwater.admin.keys import CreateKey, ListKeys, RevokeKey
from headwater.admin.ownership import SOCKET_NAME, Ownership
from headwater.admin.price_terms import PriceTerms
from headwater.admin.server import OnLoop, build_admin_app
from headwater.admin.verbs import VERBS
from headwater.clock import SystemClock
from headwater.errors import OperatorError
from headwater.gateway.server import HttpServer, bind_unix
from headwater.keys import hash_key
from headwater.ledger.periods import BudgetTerms
from headwater.settings.model import CostSettings, DeploymentSettings, PriceSettings, Settings, StoreSettings
from tests.unit.admin.conftest import MODELS, Clock, RunningPlatform

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


class OnlyOnThread(RunningPlatform):
    """Fails when it is told anything on another thread than the one it was made on."""

    def __init__(self, books: Books) -> None:
        super().__init__(books)
        self._thread = threading.get_ident()

    def _note(self, *told: Any) -> None:
        assert threading.get_ident() == self._thread
        super()._note(*told)


@pytest.fixture
async def platform(books: Books) -> OnlyOnThread:
    """Told on the event loop."""
    return OnlyOnThread(books)


@pytest.fixture
async def running(books: Books, clock: Clock, platform: OnlyOnThread) -> Administration:
    """The administration of a platform on this event loop."""
    live = OnLoop(platform, asyncio.get_running_loop())
    return Administration(books, clock=clock, model_names=MODELS, live=live)


@pytest.fixture
async def admin(serve: Serve, running: Administration) -> SocketAdmin:
    """The client of it."""
    return await serve(build_admin_app(running))


def settings(directory: Path) -> Settings:
    return Settings(
        store=StoreSettings(url=f"sqlite:///{directory}/headwater.db"),
        deployments=(DeploymentSettings(name="qwen", model="qwen2.5-coder-0.5b-instruct"),),
    )


async def test_keys_are_made_listed_and_revoked_over_the_socket(admin: SocketAdmin, platform: OnlyOnThread) -> None:
    def work() -> None:
        made = admin.call(keys.CREATE, CreateKey("laptop", ["qwen"], 60.0))
        assert made.key.startswith("hw-")
        assert admin.call(keys.LIST, ListKeys()) == [made.details]
        revoked = admin.call(keys.REVOKE, RevokeKey(made.details.id))
        assert revoked.revoked_at_ms is not None
        assert platform.told == [("forget_key", hash_key(made.key))]  # before the answer came

    await asyncio.to_thread(work)


async def test_every_verb_gives_the_same_over_the_socket_as_beside_it(
    admin: SocketAdmin, at_rest: Administration, platform: OnlyOnThread
) -> None:
    """What is shown through the socket is what the administration itself shows: nothing is lost on the way."""

    def work() -> None:
        acme = admin.call(organizations.CREATE, organizations.CreateOrganization("acme", is_prepaid=True))
        admin.call(organizations.UPDATE, organizations.UpdateOrganization("acme", is_prepaid=False, weight=2))
        assert at_rest.perform(organizations.SHOW, organizations.ShowOrganization("acme")).is_prepaid is False
        search = admin.call(projects.CREATE, projects.CreateProject("search", "acme", is_storage_allowed=False))
        admin.call(projects.UPDATE, projects.UpdateProject("search", name="find"))
        key = admin.call(keys.CREATE, CreateKey("ci", ["qwen"], 60.0, project="find")).details
        changed = admin.call(keys.UPDATE, keys.UpdateKey("ci", allowed_models=None, expires_at_ms=None))
        assert (changed.name, changed.allowed_models, changed.expires_at_ms) == ("ci", None, None)
        assert admin.call(keys.UPDATE, keys.UpdateKey("ci", name="cd", weight=3)).id == key.id
        budget = admin.call(budgets.CREATE, budgets.CreateBudget("25", "month", key="cd", thresholds=[50]))
        budget = admin.call(budgets.UPDATE, budgets.UpdateBudget(budget.id, thresholds=[]))
        assert (budget.thresholds, budget.limit_nanos) == ([], 25 * 10**9)
        limit = admin.call(limits.CREATE, limits.CreateLimit(limits.Numbers(tokens_per_day=9), key="cd"))
        limit = admin.call(limits.UPDATE, limits.UpdateLimit(limit.id, limits.Numbers(requests_per_minute=5)))
        assert (limit.tokens_per_day, limit.requests_per_minute, limit.concurrency_max) == (9, 5, None)
        platform.free_nanos = 4 * 10**9
        grant = admin.call(grants.CREATE, grants.CreateGrant("acme", "10"))
        grant = admin.call(grants.ARCHIVE, grants.ArchiveGrant(grant.id))
        assert grant.remaining_nanos == 6 * 10**9
        admin.call(grants.ADJUST, grants.Adjust("acme", "-1"))
        price = admin.call(
            prices.CREATE, prices.CreatePrice("qwen", PriceTerms(input="1", output="2", multipliers={"batch": "0.5"}))
        )
        assert price.price.multipliers == (("batch", 500_000),)
        assert admin.call(prices.IMPORT, prices.ImportPrices([msgspec.structs.replace(price.price, output=5)]))
        shown: list[tuple[Verb[Any, Any], Any]] = [
            (organizations.LIST, organizations.ListOrganizations()),
            (organizations.SHOW, organizations.ShowOrganization(acme.id)),
            (projects.LIST, projects.ListProjects()),
            (projects.SHOW, projects.ShowProject(search.id)),
            (keys.LIST, ListKeys()),
            (keys.SHOW, keys.ShowKey(key.id)),
            (budgets.LIST, budgets.ListBudgets()),
            (budgets.SHOW, budgets.ShowBudget(budget.id)),
            (limits.LIST, limits.ListLimits()),
            (limits.SHOW, limits.ShowLimit(limit.id)),
            (grants.LIST, grants.ListGrants()),
            (grants.SHOW, grants.ShowGrant(grant.id)),
            (prices.LIST, prices.ListPrices(with_all=True)),
            (prices.SHOW, prices.ShowPrice("qwen")),
        ]
        for verb, wish in shown:
            assert admin.call(verb, wish) == at_rest.perform(verb, wish), verb.name
            assert admin.call(verb, wish), verb.name
        admin.call(prices.ARCHIVE, prices.ArchivePrice("qwen"))
        admin.call(limits.ARCHIVE, limits.ArchiveLimit(limit.id))
        admin.call(budgets.ARCHIVE, budgets.ArchiveBudget(budget.id))
        admin.call(projects.ARCHIVE, projects.ArchiveProject("find"))
        admin.call(organizations.ARCHIVE, organizations.ArchiveOrganization("acme"))

    await asyncio.to_thread(work)
    told = {name for name, *_ in platform.told}
    assert told == {name for name in dir(OnLoop) if not name.startswith("_")}, "every message came, each on the loop"


def test_every_verb_has_one_name_and_a_wish_that_knows_its_fields() -> None:
    modules = (organizations, projects, keys, budgets, limits, grants, prices, running_verbs)
    verbs = [value for module in modules for value in vars(module).values() if isinstance(value, Verb)]
    assert len(verbs) == len(VERBS) == 40
    for verb in verbs:
        assert VERBS[verb.name] is verb
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.json.decode(b'{"surprise": 1}', type=verb.wish)
        noun, _, word = verb.name.partition(".")
        assert noun in {
            "organizations",
            "projects",
            "keys",
            "budgets",
            "limits",
            "grants",
            "prices",
            "replicas",
            "reload",
        }
        assert word in {"", "create", "list", "show", "update", "archive", "revoke", "adjust", "import", "restart"}


@pytest.mark.parametrize("key_id", ["key_none", "a b", "a/b", "../../x", "?", "é", "", "%2e", "a\nb"])
async def test_an_id_that_is_none_is_said_to_be_none(admin: SocketAdmin, key_id: str) -> None:
    with pytest.raises(OperatorError, match="no key"):
        await asyncio.to_thread(admin.call, keys.REVOKE, RevokeKey(key_id))


async def test_a_refusal_comes_back_as_the_same_three_answers(admin: SocketAdmin) -> None:
    with pytest.raises(OperatorError, match="no model 'gpt'") as refused:
        await asyncio.to_thread(admin.call, keys.CREATE, CreateKey("x", ["gpt"]))
    assert "Configured are" in refused.value.why
    assert "Check the name" in refused.value.now


async def test_the_socket_is_its_owners_alone(admin: SocketAdmin, short_path: Path) -> None:
    assert (short_path / SOCKET_NAME).stat().st_mode & 0o777 == 0o600


def post(path: Path, target: str, body: bytes) -> tuple[int, Any]:
    """Say anything to the socket."""
    connection = http.client.HTTPConnection("headwater", timeout=WAIT_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(path))
    connection.request("POST", target, body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


@pytest.mark.parametrize(
    ("target", "body", "words"),
    [
        ("/call/keys.create", b'{"name": "x", "colour": "red"}', "unknown field"),
        ("/call/keys.create", b"{}", "missing required field"),
        ("/call/keys.create", b"not json", "can't be read"),
        ("/call/keys.create", b'{"name": 1}', "can't be read"),
        ("/call/keys.list", b"", "can't be read"),
        ("/call/keys.paint", b"{}", "another version"),
        ("/call/", b"{}", None),
        ("/keys", b"{}", None),
    ],
)
async def test_a_wish_of_another_version_is_refused(
    admin: SocketAdmin, short_path: Path, at_rest: Administration, target: str, body: bytes, words: str | None
) -> None:
    status, content = await asyncio.to_thread(post, short_path / SOCKET_NAME, target, body)
    assert status == (400 if words is not None else 404)
    if words is not None:
        assert words in " ".join(json.loads(content).values())
    assert at_rest.perform(keys.LIST, ListKeys()) == []


async def test_what_fails_in_memory_is_not_confirmed(
    admin: SocketAdmin, platform: OnlyOnThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_terms: BudgetTerms) -> None:
        raise KeyError("org_none")

    monkeypatch.setattr(platform, "set_budget", fail)
    wish = budgets.CreateBudget("1", "day", organization="default")
    with pytest.raises(OperatorError, match="status 500"):
        await asyncio.to_thread(admin.call, budgets.CREATE, wish)
    monkeypatch.undo()
    await asyncio.to_thread(admin.call, budgets.CREATE, wish)  # and the next one is not in its way


@pytest.mark.parametrize(("status", "text"), [(500, "Internal Server Error"), (404, "Not Found"), (200, "hello")])
async def test_an_answer_that_is_not_ours_is_a_message_not_a_trace(serve: Serve, status: int, text: str) -> None:
    async def answer(_request: Request) -> Response:
        return PlainTextResponse(text, status)

    admin = await serve(Starlette(routes=[Route("/call/keys.list", answer, methods=["POST"])]))
    with pytest.raises(OperatorError, match=f"status {status}"):
        await asyncio.to_thread(admin.call, keys.LIST, ListKeys())


def test_a_platform_that_does_not_answer_is_a_message_not_a_trace(short_path: Path) -> None:
    with pytest.raises(OperatorError, match="can't be reached"):
        SocketAdmin(short_path / SOCKET_NAME).call(keys.LIST, ListKeys())


def test_without_a_running_platform_the_verbs_work_on_the_files(short_path: Path) -> None:
    admin = find_admin(settings(short_path))
    assert isinstance(admin, FileAdmin)
    made = admin.call(keys.CREATE, CreateKey("laptop", ["qwen"]))
    assert admin.call(keys.LIST, ListKeys()) == [made.details]
    assert admin.call(keys.REVOKE, RevokeKey(made.details.id)).revoked_at_ms is not None
    with pytest.raises(OperatorError):
        admin.call(keys.CREATE, CreateKey("x", ["gpt"]))
    assert len(admin.call(keys.LIST, ListKeys())) == 1  # and nothing was left locked
    grant = admin.call(grants.CREATE, grants.CreateGrant("default", "5"))
    assert admin.call(grants.ARCHIVE, grants.ArchiveGrant(grant.id)).remaining_nanos == 0
    budget = admin.call(budgets.CREATE, budgets.CreateBudget("1", "day", organization="default"))
    assert admin.call(budgets.LIST, budgets.ListBudgets()) == [budget]


def test_what_the_settings_say_is_what_the_administration_knows(books: Books) -> None:
    configured = Settings(
        deployments=(DeploymentSettings(name="qwen", model="m"),),
        prices=(PriceSettings(model="qwen", input="1", output="1"),),
        costs=(CostSettings(model="acme/large", input="1", output="1"),),
    )
    found = build_administration(configured, books, clock=SystemClock())
    assert (found.model_names, found.currency) == (["qwen"], "USD")
    assert found.priced_in_file == {("price", "qwen"), ("cost", "acme/large")}


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
            listed = thread.submit(admin.call, keys.LIST, ListKeys())
            assert not wait([listed], 0.1).done
            other.__exit__(None, None, None)
            assert listed.result(WAIT_S) == []


class Gate:
    """A verb that is under way until it is let go."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.verb = Verb("test.wait", ListKeys, type(None), self._work)

    def _work(self, _administration: Administration, _wish: ListKeys) -> None:
        self.has_begun.set()
        assert self.may_end.wait(WAIT_S)


def test_one_verb_is_done_at_a_time(at_rest: Administration) -> None:
    """What a verb has read (a free name, an open key) is still so when it writes."""
    gate = Gate()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(at_rest.perform, gate.verb, ListKeys())
        assert gate.has_begun.wait(WAIT_S)
        second = threads.submit(at_rest.perform, keys.LIST, ListKeys())
        assert not wait([second], 0.1).done
        gate.may_end.set()
        assert second.result(WAIT_S) == []
        first.result(WAIT_S)


async def test_verbs_that_wait_take_no_thread_from_requests(admin: SocketAdmin, running: Administration) -> None:
    """The default pool looks keys up as well; verbs waiting for each other must not fill it."""
    loop, gate = asyncio.get_running_loop(), Gate()
    loop.set_default_executor(ThreadPoolExecutor(2))
    with ThreadPoolExecutor(6) as callers:
        held = loop.run_in_executor(callers, running.perform, gate.verb, ListKeys())
        assert await loop.run_in_executor(callers, gate.has_begun.wait, WAIT_S)
        asked = [loop.run_in_executor(callers, admin.call, keys.LIST, ListKeys()) for _ in range(5)]
        try:
            done, _ = await asyncio.wait(asked, timeout=0.3)
            assert not done
            assert await asyncio.wait_for(asyncio.to_thread(int, "7"), 5.0) == 7
        finally:
            gate.may_end.set()
        assert await asyncio.gather(*asked) == [[]] * 5
        await held


async def test_verbs_from_many_sides_at_once_are_done_one_after_the_other(
    admin: SocketAdmin, at_rest: Administration
) -> None:
    """Without that two could both find a name free; the second would break a constraint instead of being told."""

    def create() -> str | None:
        try:
            admin.call(organizations.CREATE, organizations.CreateOrganization("acme"))
        except OperatorError as error:
            return error.what
        return None

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(12) as callers:
        told = await asyncio.gather(*(loop.run_in_executor(callers, create) for _ in range(12)))
    assert told.count(None) == 1
    assert all(what is None or "already" in what for what in told)
    assert len(at_rest.perform(organizations.LIST, organizations.ListOrganizations())) == 2
