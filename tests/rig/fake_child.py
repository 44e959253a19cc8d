"""An engine process for tests: speaks the protocol of `headwater.engines.child`, and fails as it is told.

    python -m tests.rig.fake_child --status-fd N        started by the platform; `tests/rig/fake_children.py` makes it do so

How a start goes is the next word of the list beside the model's file (`MODEL.acts`, `ACTS` below; none left: it serves).
Once it serves it is the fake engine on the socket of its spec, with `POST /act` for what happens to it then. Requests
can't bring knobs, as llama.cpp has no model's name to bring them in; `POST /knobs` sets them for all.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from headwater.engines.child import ChildSpec, ChildStatus
from tests.rig.answer import JSON
from tests.rig.fake_engine import FakeEngine
from tests.rig.http1 import Connection, HttpRequest
from tests.rig.truth import TruthLog

_PR_SET_PDEATHSIG = 1
MEMORY_BYTES = 64 * 2**20


def acts_path(model: Path) -> Path:
    """Where the acts of the engines that serve this model are listed."""
    return model.with_suffix(".acts")


def truth_path(model: Path) -> Path:
    """Where they write down what they did."""
    return model.with_suffix(".truth.jsonl")


def _next_act(model: Path) -> str:
    path = acts_path(model)
    acts: list[str] = msgspec.json.decode(path.read_bytes()) if path.exists() else []
    if not acts:
        return "serve"
    path.write_bytes(msgspec.json.encode(acts[1:]))
    return acts[0]


def _out_of_memory() -> NoReturn:
    """Take memory up to a limit, then end as the kernel ends who takes too much."""
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MEMORY_BYTES, used_bytes + MEMORY_BYTES))
    taken = []
    with contextlib.suppress(MemoryError):
        while True:
            taken.append(bytearray(2**20))
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")


def _for_ever() -> None:
    while True:
        time.sleep(3600)


def _garbage_status(fd: int) -> None:
    os.write(fd, b"\x00\xffwhat is this\n")
    _for_ever()


def _endless_status(fd: int) -> None:
    while True:
        os.write(fd, b"x" * 4096)


ACTS: dict[str, Callable[[int], object]] = {
    "serve": lambda _: None,
    "exit": lambda _: os._exit(0),
    "hang": lambda _: _for_ever(),
    "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "garbage": _garbage_status,
    "endless": _endless_status,
    "memory": lambda _: _out_of_memory(),
    "refuse": lambda fd: _refuse(fd, "the file is no model"),
    "taken": lambda _: None,
}
"""How a start can go. taken: something else has the socket's name."""


def _refuse(fd: int, reason: str) -> NoReturn:
    _tell(fd, ChildStatus(state="cannot_start", reason=reason))
    os._exit(3)


def _tell(fd: int, status: ChildStatus) -> None:
    os.write(fd, msgspec.json.encode(status) + b"\n")


class Child(FakeEngine):
    """The fake engine, and what happens to it while it serves: `POST /act` with `{"act": …}`, or `{"tell": TEXT}`."""

    def __init__(self, *arguments: Any, status_fd: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._status_fd = status_fd
        self._is_garbage = False

    def handle(self, request: HttpRequest, conn: Connection) -> Coroutine[Any, Any, None]:
        """Return the coroutine that answers one request."""
        if request.path == "/act":
            return self._act(msgspec.json.decode(request.body, type=dict[str, str]), conn)
        if self._is_garbage:
            return conn.answer(200, os.urandom(200), JSON)
        if request.path in ("/apply-template", "/tokenize"):
            return conn.answer(200, _count(request.path, request.body), JSON)
        return super().handle(request, conn)

    async def _act(self, order: dict[str, str], conn: Connection) -> None:
        match order["act"]:
            case "exit":
                os._exit(0)
            case "hang":  # its one loop stands still: connections are taken by the kernel, and never answered
                _for_ever()
            case "memory":
                _out_of_memory()
            case "garbage":
                self._is_garbage = True
            case "status_garbage":
                os.write(self._status_fd, os.urandom(64).replace(b"\n", b"?") + b"\n")
        await conn.answer(200, b"{}", JSON)


def _count(path: str, body: bytes) -> bytes:
    """llama.cpp's two answers for counting a prompt: its text, and one number for each of its words."""
    asked: dict[str, Any] = msgspec.json.decode(body)
    if path == "/tokenize":
        return msgspec.json.encode({"tokens": [1 for _ in str(asked["content"]).split()]})
    return msgspec.json.encode({"prompt": " ".join(str(message["content"]) for message in asked["messages"])})


def _die_with_parent(parent_pid: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def _exit_when_closed() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def _read_spec() -> ChildSpec:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(0)
        line += byte
    return msgspec.json.decode(bytes(line), type=ChildSpec)


async def _serve(spec: ChildSpec, status_fd: int) -> None:
    log = TruthLog(truth_path(Path(spec.model_path)))
    engine = Child(log, slots_count=spec.slots_count, api_key=spec.api_key, knobs={}, models=["m"], status_fd=status_fd)
    loop = asyncio.get_running_loop()
    try:
        await loop.create_unix_server(lambda: Connection(engine.handle, engine.connections), spec.socket_path)
    except OSError as error:
        _refuse(status_fd, f"its socket can't be made ({error})")
    loop.add_signal_handler(signal.SIGTERM, lambda: os._exit(0))
    _tell(status_fd, ChildStatus(state="ready", batch_tokens=32, batch_s=0.01, token_s=0.0003, load_s=0.1))
    await asyncio.Event().wait()


def main() -> None:
    """Start as the next act says, then serve."""
    status_fd = int(sys.argv[sys.argv.index("--status-fd") + 1])
    spec = _read_spec()
    _die_with_parent(spec.parent_pid)
    threading.Thread(target=_exit_when_closed, daemon=True).start()
    act = _next_act(Path(spec.model_path))
    ACTS[act](status_fd)
    if act == "taken":
        Path(spec.socket_path).mkdir()
    asyncio.run(_serve(spec, status_fd))


if __name__ == "__main__":
    main()
