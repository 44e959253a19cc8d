"""How a CLI verb reaches the platform: through its socket while it runs, through its files while it doesn't."""

import contextlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote

import msgspec

from headwater.admin.administration import Administration, Live, Verb
from headwater.admin.books import Books, open_books
from headwater.admin.ownership import SOCKET_NAME, AlreadyOwned, Ownership
from headwater.admin.wire import Problem
from headwater.clock import Clock, SystemClock
from headwater.errors import OperatorError
from headwater.ledger.store import PriceKind
from headwater.settings.model import Settings

W = TypeVar("W", bound=msgspec.Struct)
A = TypeVar("A")
CALL_TIMEOUT_S = 30.0
LOCK_WAIT_S = 5.0
"""Another verb holds the lock for a moment; a platform that runs holds it for good, but answers on its socket."""


class Admin(Protocol):
    """The admin verbs, wherever they are carried out."""

    def call(self, verb: Verb[W, A], wish: W) -> A:
        """Do it; what it changes is in force when this returns. Raises OperatorError."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("headwater", timeout=CALL_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class SocketAdmin:
    """Verbs carried out by the running platform."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(self, verb: Verb[W, A], wish: W) -> A:
        """See Admin."""
        connection = _UnixConnection(self._path)
        try:
            connection.request("POST", f"/call/{quote(verb.name)}", msgspec.json.encode(wish))
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise OperatorError(
                f"The running platform can't be reached at {self._path}.",
                why=f"{error}. It may be starting or stopping.",
                now="Try again in a moment.",
            ) from error
        finally:
            connection.close()
        try:
            if response.status < 400:
                return msgspec.json.decode(content, type=verb.answer)
            problem = msgspec.json.decode(content, type=Problem)
        except msgspec.DecodeError as error:
            raise OperatorError(
                f"The running platform answered the admin request with status {response.status}.",
                why="It failed on the request, or is of another version.",
                now="Its log says what went wrong.",
            ) from error
        raise OperatorError(problem.what, why=problem.why, now=problem.now)


class FileAdmin:
    """Verbs carried out on the files of a platform that isn't running; each takes the lock for itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def call(self, verb: Verb[W, A], wish: W) -> A:
        """See Admin."""
        with self._opened() as administration:
            return administration.perform(verb, wish)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Administration]:
        clock = SystemClock()
        with Ownership(self._settings.store.data_directory, wait_s=LOCK_WAIT_S):
            books = open_books(self._settings.store.path, clock=clock, on_fatal=lambda _: None)
            with contextlib.closing(books):
                yield build_administration(self._settings, books, clock=clock)


def build_administration(settings: Settings, books: Books, *, clock: Clock, live: Live | None = None) -> Administration:
    """The administration of these books; live: the running platform, reached from any thread (`server.OnLoop`)."""
    return Administration(
        books,
        clock=clock,
        model_names=callable_names(settings),
        currency=settings.billing.currency,
        priced_in_file=priced_names(settings),
        live=live,
    )


def find_admin(settings: Settings) -> Admin:
    """The platform's socket when one runs on this data directory, else its files."""
    directory = settings.store.data_directory
    try:
        with Ownership(directory):
            return FileAdmin(settings)
    except AlreadyOwned:
        path = directory / SOCKET_NAME
        return SocketAdmin(path) if path.exists() else FileAdmin(settings)


def priced_names(settings: Settings) -> frozenset[tuple[PriceKind, str]]:
    """The prices and costs that belong to the configuration file."""
    priced: list[tuple[PriceKind, str]] = [("price", price.model) for price in settings.prices]
    priced += [("cost", cost.model) for cost in settings.costs]
    return frozenset(priced)


def callable_names(settings: Settings) -> list[str]:
    """Every name a caller can ask for, as configured."""
    own = [deployment.name for deployment in settings.deployments]
    own += [f"{upstream.name}/{model}" for upstream in settings.upstreams for model in upstream.models]
    return own + [route.name for route in settings.routes]
