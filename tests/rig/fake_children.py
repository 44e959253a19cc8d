"""The platform with fake engine processes: `python -m tests.rig.fake_children [TWIN] up …`, and a test's hands on them.

async with supervised(tmp_path, hang_timeout_s=1.0) as engines:
    await engines.act(replica, "hang")
    await engines.until_state(replica["id"], "backing_off")
"""

import asyncio
import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.clients import Received, call
from tests.rig.fake_child import acts_path, truth_path
from tests.rig.platform import Platform, config, running_platform
from tests.rig.truth import Truth
from tests.unit.catalogue.gguf_files import U32, build_gguf, with_metadata

SOUND = "sound"
POLL_S = 0.02
CONTEXT_TOKENS, MODEL_CONTEXT_TOKENS = 2048, 8192


def no_hang_detection() -> None:
    """Nothing is ever found to hang: calls and questions may stay unanswered for ever."""
    from headwater.controller import liveness
    from headwater.controller.liveness import Bounds, Look, Pulse, Verdict

    def judge(pulse: Pulse, look: Look, bounds: Bounds) -> tuple[Pulse, Verdict]:
        return pulse._replace(looked_s=look.now_s), Verdict.ALIVE

    liveness.judge = judge


def kill_the_slow() -> None:
    """A busy replica is ended when its oldest calls have run for the time-out, whatever advances."""
    from headwater.controller import liveness
    from headwater.controller.liveness import Bounds, Look, Pulse, Verdict

    def judge(pulse: Pulse, look: Look, bounds: Bounds) -> tuple[Pulse, Verdict]:
        is_busy = look.in_flight_count > 0
        since_s = pulse.sign_s if is_busy and pulse.is_busy else look.now_s
        verdict = Verdict.HUNG if look.now_s - since_s >= bounds.hang_timeout_s else Verdict.ALIVE
        return Pulse(since_s, look.now_s, 0, is_busy), verdict

    liveness.judge = judge


TWINS: dict[str, Callable[[], None]] = {
    SOUND: lambda: None,
    "no_hang_detection": no_hang_detection,
    "kill_the_slow": kill_the_slow,
}


def wrapper(twin: str = SOUND) -> list[str]:
    """The command to run the platform under, so that its engines are fake ones."""
    return [sys.executable, "-m", "tests.rig.fake_children", twin]


def main(argv: Sequence[str]) -> None:
    """Run the platform's command line (a `python -m headwater` is left out) with another program for its engines."""
    twin, *command = argv
    if "-m" in command and command.index("-m") == 1:
        command = command[3:]
    TWINS[twin]()
    import headwater.platform
    from headwater.cli.main import main as headwater_main

    engine_command = (sys.executable, "-m", "tests.rig.fake_child")
    sound = headwater.platform.Platform
    headwater.platform.Platform = functools.partial(sound, engine_command=engine_command)  # type: ignore[assignment,misc]
    sys.argv = ["headwater", *command]
    headwater_main()


# -- a test's hands ----------------------------------------------------------------------------------------------------


def write_model(directory: Path, name: str) -> Path:
    """A model file whose header is right, for a fake engine that never opens it."""
    path = directory / f"{name}.gguf"
    path.write_bytes(build_gguf(with_metadata(qwen2__context_length=(U32, MODEL_CONTEXT_TOKENS))))
    return path


def deployment(name: str, model: Path, **fields: object) -> dict[str, object]:
    """One `[[deployments]]` table with short times."""
    return {
        "name": name,
        "model": str(model),
        "slots": 4,
        "context_tokens": CONTEXT_TOKENS,
        "batch_tokens": 32,
        "threads": 1,
        "start_timeout_s": 3.0,
        "hang_timeout_s": 1.0,
        "restarts_max": 1000,
    } | fields


class Engines:
    """The engines of a running platform, seen from a test."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    async def replicas(self, name: str | None = None) -> list[dict[str, Any]]:
        """What the admin socket says of the replicas, as `headwater replicas list` does."""
        socket = str(self.platform.directory / "data" / "admin.sock")
        answer = await call("http://admin", "POST", "/call/replicas.list", {}, unix=socket)
        assert answer.status == 200, answer.body
        found = msgspec.json.decode(answer.body, type=list[dict[str, Any]])
        return [one for one in found if name in (None, one["deployment"])]

    async def until(
        self, holds: Callable[[list[dict[str, Any]]], bool], *, timeout_s: float = 10.0
    ) -> list[dict[str, Any]]:
        """The replicas once they satisfy the condition. Raises TimeoutError that says how they were."""
        seen: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(timeout_s):
                # What another process does has no asyncio.Event.
                while not holds(seen := await self.replicas()):
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise TimeoutError(f"the replicas are {seen}") from None
        return seen

    async def until_ready(self, name: str, count: int = 1, *, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """The replicas of a deployment once exactly so many are there, all ready."""

        def is_so(seen: list[dict[str, Any]]) -> bool:
            states = [one["state"] for one in seen if one["deployment"] == name]
            return states == ["ready"] * count

        found = await self.until(is_so, timeout_s=timeout_s)
        return [one for one in found if one["deployment"] == name]

    async def act(self, replica: dict[str, Any], act: str) -> None:
        """Let something happen to a replica that serves; an act that ends or stops it gives no answer."""
        with contextlib.suppress(OSError, EOFError, TimeoutError, AssertionError):
            await self._call(replica, "POST", "/act", {"act": act}, timeout_s=0.3)

    async def set_knobs(self, replica: dict[str, Any], **knobs: object) -> None:
        """What every request to this replica meets from now on."""
        answer = await self._call(replica, "POST", "/knobs", knobs)
        assert answer.status == 200, answer.body

    async def step(self, replica: dict[str, Any], tokens: int) -> None:
        """Permit so many more tokens to each request with the knob `step`."""
        await self._call(replica, "POST", "/step", {"tokens": tokens})

    def will(self, model: Path, *acts: str) -> None:
        """How the next starts of this model's engines go; the ones after them serve."""
        acts_path(model).write_bytes(msgspec.json.encode(acts))

    def truth(self, model: Path) -> Truth:
        """What its engines did."""
        return Truth.read(truth_path(model))

    async def ask(self, name: str, *, timeout_s: float = 10.0, **fields: Any) -> Received:
        """Send a small chat request."""
        return await self.platform.ask(chat_body(name, **fields), timeout_s=timeout_s)

    async def is_said_ready(self) -> bool:
        """What `/ready` says."""
        return (await call(self.platform.root_url, "GET", "/ready")).status == 200

    def pids(self) -> list[int]:
        """Every process that was started as a fake engine below this platform, zombies left out."""
        return children_of(self.platform.directory)

    async def _call(self, replica: dict[str, Any], method: str, path: str, value: object, **named: Any) -> Received:
        socket = self.platform.directory / "data" / "run" / f"{replica['id'][-12:]}.sock"
        return await call("http://engine", method, path, value, unix=str(socket), **named)


def children_of(directory: Path) -> list[int]:
    """The fake engines whose working directory is the platform's: wherever they are in the tree of processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if b"tests.rig.fake_child\0" in command and (entry / "cwd").readlink() == directory.resolve():
                found.append(int(entry.name))
    return found


@asynccontextmanager
async def supervised(
    directory: Path, text: Callable[[Path], str] | None = None, *, twin: str = SOUND, **fields: object
) -> AsyncIterator[Engines]:
    """A platform with the deployment `m` (model `m.gguf` in the directory) on fake engines, ready, until the block ends.

    text: makes another configuration out of the directory. fields: of the deployment. No engine may outlive it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model = write_model(directory, "m")
    text_of = text or (lambda _: config(deployments=[deployment("m", model, **fields)]))
    home = directory / "p"
    async with running_platform(
        text_of(directory), home, wrapper=wrapper(twin), env={"COVERAGE_PROCESS_CONFIG": ""} | twins.ENVIRONMENT
    ) as platform:
        yield Engines(platform)
    async with asyncio.timeout(5.0):
        while children_of(home):
            await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    main(sys.argv[1:])
