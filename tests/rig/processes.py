"""Programs as children of a test: started, awaited until ready, stopped by their own pid whatever the test does."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.rig.clients import Received, call
from tests.rig.truth import Attempt, Truth

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Return a port on loopback that nobody listened on a moment ago; prefer `:0` where a program says what it got."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(slots=True)
class Child:
    """A running program. ready: the JSON object of its first line."""

    process: asyncio.subprocess.Process
    ready: dict[str, Any]
    stderr_path: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self.stderr_path.read_text(errors="replace")

    async def order(self, order: Mapping[str, object], *, timeout_s: float = 10.0) -> dict[str, Any]:
        """Write one JSON line to its standard input and return the line it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(order) + b"\n")
        await self.process.stdin.drain()
        return await _json_line(self.process, timeout_s)

    async def stop(self, *, grace_s: float = 5.0) -> int:
        """Send SIGTERM, after grace_s SIGKILL; returns the exit status (negative: the signal)."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        return await self.process.wait()

    async def kill(self) -> None:
        """End it by SIGKILL, as a crash would."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def running(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, ready_timeout_s: float = 30.0, cwd: Path = ROOT
) -> AsyncIterator[Child]:
    """Run `python ARGV…` (`-m module …` or a file) until the block ends; its first line must be a JSON object.

    env: added to this process's. Raises RuntimeError with its standard error when it ends or stays silent instead.
    The child's standard input is a pipe that ends with this process: a program that watches it leaves no orphan.
    """
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        stderr_path = Path(folder) / "stderr"
        with stderr_path.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *argv,
                cwd=cwd,
                env=os.environ | {"PYTHONPATH": paths} | dict(env or {}),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        child = Child(process, {}, stderr_path)
        try:
            try:
                child.ready = await _json_line(process, ready_timeout_s)
            except (TimeoutError, EOFError, msgspec.DecodeError) as error:
                await child.stop()
                said = child.stderr()[-2000:]
                raise RuntimeError(f"{' '.join(argv)} did not get ready ({error!r}). It said: {said}") from error
            yield child
        finally:
            await child.stop()
            _close_pipes(process)


async def _json_line(process: asyncio.subprocess.Process, timeout_s: float) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(timeout_s):
        line = await process.stdout.readline()
    if not line:
        raise EOFError("it closed its standard output")
    return msgspec.json.decode(line, type=dict[str, Any])


def _close_pipes(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()


@dataclass(slots=True)
class FakeEngineHandle:
    """A running fake engine, seen from a test."""

    child: Child
    truth_path: Path
    api_key: str | None

    @property
    def base_url(self) -> str:
        """The OpenAI base URL; over a Unix socket its host means nothing."""
        url: str = self.child.ready["base_url"]
        return url

    @property
    def unix(self) -> str | None:
        """The path of its Unix socket, or None when it listens on TCP."""
        path: str | None = self.child.ready["unix"]
        return path

    def truth(self) -> Truth:
        """Read its log as it stands; it can be read after the engine died too."""
        return Truth.read(self.truth_path)

    async def wait_for(self, holds: Callable[[Truth], bool], *, timeout_s: float = 10.0) -> Truth:
        """Return the truth once it satisfies the condition. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            # A file of another process has no asyncio.Event.
            while not holds(truth := self.truth()):
                await asyncio.sleep(0.005)
        return truth

    async def closed(self, request_id: str, *, timeout_s: float = 10.0) -> Attempt:
        """Return the one attempt under that id once it is over; its last lines may trail the answer."""

        def is_closed(truth: Truth) -> bool:
            found = truth.by_request.get(request_id, [])
            return bool(found) and all(attempt.closed_at_ns is not None for attempt in found)

        return (await self.wait_for(is_closed, timeout_s=timeout_s)).only(request_id)

    async def settled(self, count: int, *, timeout_s: float = 10.0) -> Truth:
        """Return the truth once at least `count` attempts were received and all of them are closed."""
        return await self.wait_for(lambda truth: len(truth.attempts) >= count and truth.is_settled, timeout_s=timeout_s)

    async def set_knobs(self, **knobs: object) -> None:
        """Change the defaults; None takes a knob back. Raises ValueError for one that doesn't exist."""
        answer = await self._call("POST", "/knobs", knobs)
        if answer.status != 200:
            raise ValueError(answer.body.decode())

    async def reset_knobs(self) -> None:
        """Take all defaults back to the built-in ones."""
        await self._call("DELETE", "/knobs")

    async def step(self, tokens: int = 1, *, request_id: str | None = None) -> int:
        """Permit so many more tokens to the attempts with the knob `step`; returns how many attempts there are."""
        order: dict[str, object] = {"tokens": tokens} | ({} if request_id is None else {"request_id": request_id})
        attempts: int = (await self._call("POST", "/step", order)).json()["attempts"]
        return attempts

    async def slots(self) -> list[dict[str, Any]]:
        """Return the state of its slots."""
        return msgspec.json.decode((await self._call("GET", "/slots")).body, type=list[dict[str, Any]])

    async def _call(self, method: str, path: str, value: object = None) -> Received:
        return await call(self.base_url, method, path, value, unix=self.unix)


@asynccontextmanager
async def fake_engine(
    *,
    slots: int = 0,
    api_key: str | None = None,
    models: Sequence[str] = ("fake",),
    unix: bool = False,
    port: int = 0,
    truth_path: Path | None = None,
    **knobs: object,
) -> AsyncIterator[FakeEngineHandle]:
    """Run a fake engine until the block ends. truth_path: keep the log there; a later engine may go on with it."""
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        path = truth_path or Path(folder) / "truth.jsonl"
        listen = f"unix:{folder}/s" if unix else f"127.0.0.1:{port}"
        argv = ["-m", "tests.rig.fake_engine", "--stop-on-eof", "--listen", listen, "--truth", str(path)]
        argv += ["--slots", str(slots), "--models", ",".join(models)]
        argv += ["--default-knobs", msgspec.json.encode(knobs).decode()]
        if api_key is not None:
            argv += ["--api-key", api_key]
        async with running(argv) as child:
            yield FakeEngineHandle(child, path, api_key)
            # Its faults are asked for; an exception of its own is a bug of the rig, and no test may pass over one.
            assert not child.stderr(), f"The fake engine complained: {child.stderr()[-4000:]}"
