"""The HTTP server: uvicorn on a socket we opened, in a loop and with signals that are the platform's own."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from headwater.errors import OperatorError
from headwater.gateway.connections import BoundedProtocol, Bounds

BACKLOG = 4096
"""Linux's own bound (`net.core.somaxconn`): a shorter queue loses connections in a burst, which come again seconds later."""
KEEP_ALIVE_S = 75


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the platform drains engines and ledger too, in its own order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One listening socket and its server task."""

    def __init__(self, app: ASGIApp, listener: socket.socket, *, bounds: Bounds | None = None) -> None:
        """bounds: of its connections; None means the usual ones."""
        self._bounds = bounds or Bounds()
        config = uvicorn.Config(
            app,
            http=partial(BoundedProtocol, self._bounds),  # type: ignore[arg-type]  # it is called, and nothing else
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here depends on who a proxy says the client is
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server = _Server(config)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to accept; returns once it does."""
        self._task = asyncio.ensure_future(self._server.serve(sockets=[self._listener]))
        self._sweeper = asyncio.ensure_future(self._bounds.sweep())
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server ended before it started")
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        """Close the listener and every connection; the requests have been drained by then."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._task is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            await self._task


def bind_tcp(host: str, port: int) -> socket.socket:
    """A bound TCP socket, not listening yet. Raises OperatorError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))  # connections are refused until the server listens
    except OSError as error:
        listener.close()
        raise OperatorError(
            f"Can't listen on {host}:{port}.",
            why=f"{error.strerror}: another program may already use that port.",
            now="Stop it, or choose another address: `--set gateway.listen=127.0.0.1:PORT`.",
        ) from error
    listener.setblocking(False)
    return listener


def bind_unix(path: Path) -> socket.socket:
    """A bound Unix socket that only its owner may use; a leftover of a dead process is replaced.

    Raises OperatorError when something else than a socket is there, or the path is too long for one.
    """
    if path.is_socket():
        path.unlink()
    elif path.exists():
        raise OperatorError(
            f"The admin socket {path} can't be made.",
            why="Something that is no socket has that name.",
            now="Move it away, then start again.",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:  # 108 bytes is all that a Unix socket's address has room for
        listener.close()
        raise OperatorError(
            f"The admin socket {path} can't be made.",
            why=f"{error.strerror or error}.",
            now="Put the data directory at a shorter path: `--set store.url=sqlite:///PATH/headwater.db`.",
        ) from error
    path.chmod(0o600)
    listener.setblocking(False)
    return listener
