"""How a CLI verb reaches the platform: through its socket while it runs, through its files while it doesn't."""

import http.client
import socket
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar
from urllib.parse import quote

import msgspec

from headwater.admin.books import open_books
from headwater.admin.keys import KeyAdmin
from headwater.admin.ownership import SOCKET_NAME, AlreadyOwned, Ownership
from headwater.admin.wire import CreatedKeyView, CreateKey, KeyView, Problem, key_view
from headwater.clock import SystemClock
from headwater.errors import OperatorError
from headwater.settings.model import Settings

T = TypeVar("T")
CALL_TIMEOUT_S = 30.0
LOCK_WAIT_S = 5.0
"""Another verb holds the lock for a moment; a platform that runs holds it for good, but answers on its socket."""


class Admin(Protocol):
    """The admin verbs, wherever they are carried out."""

    def create_key(self, wish: CreateKey) -> CreatedKeyView:
        """Make a key."""

    def list_keys(self) -> list[KeyView]:
        """Every key."""

    def revoke_key(self, key_id: str) -> KeyView:
        """Revoke a key, effective when this returns."""


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

    def create_key(self, wish: CreateKey) -> CreatedKeyView:
        """See Admin."""
        return self._call("POST", "/keys", CreatedKeyView, msgspec.json.encode(wish))

    def list_keys(self) -> list[KeyView]:
        """See Admin."""
        return self._call("GET", "/keys", list[KeyView])

    def revoke_key(self, key_id: str) -> KeyView:
        """See Admin."""
        return self._call("POST", f"/keys/{quote(key_id, safe='')}/revoke", KeyView)

    def _call(self, method: str, path: str, answer: type[T], body: bytes | None = None) -> T:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path, body)
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
                return msgspec.json.decode(content, type=answer)
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

    def create_key(self, wish: CreateKey) -> CreatedKeyView:
        """See Admin."""
        with _OpenedKeys(self._settings) as keys:
            made = keys.create(wish.name, allowed_models=wish.allowed_models, expires_in_s=wish.expires_in_s)
            return CreatedKeyView(made.secret, key_view(made.row))

    def list_keys(self) -> list[KeyView]:
        """See Admin."""
        with _OpenedKeys(self._settings) as keys:
            return [key_view(row) for row in keys.list()]

    def revoke_key(self, key_id: str) -> KeyView:
        """See Admin."""
        with _OpenedKeys(self._settings) as keys:
            return key_view(keys.revoke(key_id))


class _OpenedKeys:
    """The books of a platform that isn't running, opened for one verb."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ownership = Ownership(settings.store.data_directory, wait_s=LOCK_WAIT_S)

    def __enter__(self) -> KeyAdmin:
        self._ownership.__enter__()
        try:
            self._books = open_books(self._settings.store.path, clock=SystemClock(), on_fatal=lambda _: None)
        except BaseException:
            self._ownership.__exit__(None, None, None)
            raise
        return KeyAdmin(self._books, clock=SystemClock(), model_names=callable_names(self._settings))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._books.close()
        self._ownership.__exit__(kind, error, trace)


def find_admin(settings: Settings) -> Admin:
    """The platform's socket when one runs on this data directory, else its files."""
    directory = settings.store.data_directory
    try:
        with Ownership(directory):
            return FileAdmin(settings)
    except AlreadyOwned:
        path = directory / SOCKET_NAME
        return SocketAdmin(path) if path.exists() else FileAdmin(settings)


def callable_names(settings: Settings) -> list[str]:
    """Every name a caller can ask for, as configured."""
    own = [deployment.name for deployment in settings.deployments]
    return own + [f"{upstream.name}/{model}" for upstream in settings.upstreams for model in upstream.models]
