"""supervision: whatever happens to an engine, its replica comes back or is marked failed with its reason, and no process is left.

One platform with one replica on fake engine processes (`tests/rig/fake_child.py`), and one fault a round: hung while idle
and while busy, killed, stopped, ended with status 0, garbage on its socket and on its status pipe, out of memory, each at
its start too; its socket's name taken; a model it can't load. Beside them two that must *not* be ended: a slow stream and
an endless one. At every step `/ready` is compared with the replica's state and with whether a request is answered.
"""

import asyncio
import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gate.progress import Progress
from gate.rows import Figures, Row, Size, add, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import chat_body
from tests.rig.clients import Client
from tests.rig.fake_children import SOUND, Engines, supervised

NAME = "supervision"
ROUNDS = {"full": 100, "short": 10}
ROUNDS_PER_PLATFORM = 20
DEPLOYMENT = "m"
HANG_TIMEOUT_S, START_TIMEOUT_S = 1.5, 2.0
FOUND_WITHIN_S = HANG_TIMEOUT_S + 1.0
"""The time-out, a tick, and what a shared machine takes to be asked."""
BACK_WITHIN_S = 15.0
FIELDS: dict[str, Any] = {
    "hang_timeout_s": HANG_TIMEOUT_S,
    "start_timeout_s": START_TIMEOUT_S,
    "restart_window_s": 0.2,
    "restarts_max": 1000,
}
SLOW = {"gap_ms": 500.0, "tokens": 9}
WAITING = {"step": True, "tokens": 4}


class Round:
    """One fault on one platform; complaints: what was not as promised, by metric."""

    def __init__(self, engines: Engines, model: Path) -> None:
        self.engines, self.model = engines, model
        self.complaints: list[tuple[str, str]] = []
        self.replica: dict[str, Any] = {}

    def complain(self, metric: str, says: str) -> None:
        """Something was not as promised."""
        self.complaints.append((metric, says))

    async def run(self, fault: Callable[["Round"], Awaitable[None]]) -> None:
        """From a ready replica over the fault to a ready one, with nothing left behind."""
        [self.replica] = await self.engines.until_ready(DEPLOYMENT, timeout_s=BACK_WITHIN_S)
        await fault(self)
        try:
            [self.replica] = await self.engines.until_ready(DEPLOYMENT, timeout_s=BACK_WITHIN_S)
        except TimeoutError as error:
            self.complain("down", f"it did not come back: {error}")
            return
        try:
            await self._knobs()
            await self.answered()
        except (AssertionError, OSError):
            changes = [
                f"{line['was']} → {line['now']}: {line['reason']}"
                for line in self.engines.platform.log("replica_changed")[-4:]
            ]
            self.complain("killed_alive", f"ready, and then its engine was gone: {'; '.join(changes)}")
            return
        if (count := len(self.engines.pids())) != 1:
            self.complain("orphans", f"{count} engine processes for 1 replica")

    async def lost(self, reason: str, *, within_s: float = FOUND_WITHIN_S) -> None:
        """Wait until the fault was found, `/ready` telling the truth all the while; then its reason is to be said."""
        before, began_s = self.replica["restarts_count"], time.monotonic()
        while (now := (await self.truthful()))["restarts_count"] == before and now["state"] != "failed":
            if time.monotonic() - began_s > within_s:
                self.complain("unfound", f"not found within {within_s:g} s; the replica is {now}")
                os.kill(self.replica["pid"], signal.SIGKILL)  # so that the rounds after it have an engine
                return
            await asyncio.sleep(0.02)
        if reason not in now["reason"] and now["state"] in ("backing_off", "failed"):
            self.complain("unsaid", f"{reason!r} is not in its reason: {now['reason']}")

    async def truthful(self) -> dict[str, Any]:
        """The replica; between two looks that agree, `/ready` has to say the same."""
        [before] = await self.engines.replicas(DEPLOYMENT)
        is_ready = await self.engines.is_said_ready()
        [after] = await self.engines.replicas(DEPLOYMENT)
        if before["state"] == after["state"] and is_ready != (after["state"] == "ready"):
            self.complain("lies", f"/ready says {is_ready} while the replica is {after['state']}")
        return after

    async def answered(self) -> None:
        """`/ready` says yes, and a request is answered."""
        got = await self.engines.ask(DEPLOYMENT, stream=False)
        if not await self.engines.is_said_ready() or got.finish_reason is None:
            self.complain("lies", f"ready, and a request is answered with {got.status} {got.error}")

    async def refused(self, reason: str) -> None:
        """It is marked failed, says why, and requests are refused at once; then a person starts it again."""
        found = await self.engines.until(lambda seen: seen[0]["state"] == "failed", timeout_s=BACK_WITHIN_S)
        if reason not in found[0]["reason"]:
            self.complain("unsaid", f"{reason!r} is not in its reason: {found[0]['reason']}")
        got = await self.engines.ask(DEPLOYMENT, stream=False)
        if await self.engines.is_said_ready() or got.status != 503:
            self.complain("lies", f"failed, and a request is answered with {got.status}")

    async def stream(self, **knobs: object) -> Client:
        """A stream under way, that meets these knobs."""
        await self.engines.set_knobs(self.replica, **knobs)
        platform = self.engines.platform
        return await Client.chat(platform.base_url, chat_body(DEPLOYMENT), api_key=platform.key)

    async def is_untouched(self) -> None:
        """The same process as before serves."""
        [now] = await self.engines.replicas(DEPLOYMENT)
        if (now["pid"], now["restarts_count"]) != (self.replica["pid"], self.replica["restarts_count"]):
            self.complain("killed_alive", f"an engine that worked was ended: {now['reason']}")

    async def _knobs(self) -> None:
        await self.engines.set_knobs(self.replica, gap_ms=None, tokens=None, step=None, stall_after=None, endless=None)


# -- the list ------------------------------------------------------------------------------------------------------------


async def hung_idle(one: Round) -> None:
    """Its loop stands still while nobody asks it anything."""
    await one.engines.act(one.replica, "hang")
    await one.lost("it has not answered")


async def hung_busy(one: Round) -> None:
    """Its loop stands still in the middle of a stream."""
    async with await one.stream(**WAITING) as client:
        await one.engines.step(one.replica, 2)
        await client.read_tokens(2)
        await one.engines.act(one.replica, "hang")
        await one.lost("nothing advanced")
        got = await client.read_to_end()
        if got.error is None or got.finish_reason is not None:
            one.complain("unsaid", "the stream on a hung engine did not end with an error")


async def standing_still(one: Round) -> None:
    """It answers every question, and its streams don't advance."""
    async with await one.stream(stall_after=2, tokens=9) as client:
        await client.read_tokens(2)
        await one.lost("nothing advanced")
        await client.read_to_end()


async def slow(one: Round) -> None:
    """A stream that takes three times the time-out and advances: nobody may end it."""
    async with await one.stream(**SLOW) as client:
        got = await client.read_to_end()
        if got.finish_reason != "stop":
            one.complain("killed_alive", f"a slow stream ended with {got.error}")
    await one.is_untouched()


async def endless(one: Round) -> None:
    """A stream without an end is the client's to leave; the engine is sound."""
    async with await one.stream(endless=True, gap_ms=20.0) as client:
        await client.read_tokens(60)
        await one.is_untouched()
        client.leave("rst")


async def left_alone(one: Round) -> None:
    """Nobody asks it anything for a while: it is as sound as before."""
    await asyncio.sleep(2 * HANG_TIMEOUT_S)
    await one.is_untouched()


async def killed(one: Round) -> None:
    """SIGKILL."""
    os.kill(one.replica["pid"], signal.SIGKILL)
    await one.lost("killed by signal 9")


async def stopped(one: Round) -> None:
    """SIGSTOP: it is there, and does nothing."""
    os.kill(one.replica["pid"], signal.SIGSTOP)
    await one.lost("it has not answered")


async def ended(one: Round) -> None:
    """It exits with status 0, as if all were well."""
    await one.engines.act(one.replica, "exit")
    await one.lost("exited with status 0")


async def out_of_memory(one: Round) -> None:
    """It takes memory until it is killed."""
    await one.engines.act(one.replica, "memory")
    await one.lost("killed by signal 9")


async def garbage_on_the_socket(one: Round) -> None:
    """It answers everything with random bytes."""
    await one.engines.act(one.replica, "garbage")
    await one.lost("it has not answered")


async def garbage_on_the_status_pipe(one: Round) -> None:
    """It says what nobody can read."""
    await one.engines.act(one.replica, "status_garbage")
    await one.lost("could not be started or followed")


def at_start(act: str, reason: str) -> Callable[[Round], Awaitable[None]]:
    """The first start after a kill goes so; the one after it serves."""

    async def fault(one: Round) -> None:
        one.engines.will(one.model, act)
        os.kill(one.replica["pid"], signal.SIGKILL)
        await one.lost("killed by signal 9")
        one.replica = (await one.engines.replicas(DEPLOYMENT))[0]
        await one.lost(reason, within_s=START_TIMEOUT_S + 5.0)

    return fault


def failing(act: str, reason: str) -> Callable[[Round], Awaitable[None]]:
    """Trying again can't help: it is marked failed, until a person says otherwise."""

    async def fault(one: Round) -> None:
        one.engines.will(one.model, act)
        os.kill(one.replica["pid"], signal.SIGKILL)
        await one.refused(reason)
        for path in (one.engines.platform.directory / "data" / "run").iterdir():
            with contextlib.suppress(NotADirectoryError):
                path.rmdir()
        restarted = await one.engines.platform.cli("replicas", "restart", DEPLOYMENT, "--json")
        if not restarted.json():
            one.complain("down", "the failed replica could not be started again")

    return fault


FAULTS: dict[str, Callable[[Round], Awaitable[None]]] = {
    "hung idle": hung_idle,
    "slow": slow,
    "left alone": left_alone,
    "hung busy": hung_busy,
    "killed": killed,
    "stopped": stopped,
    "standing still": standing_still,
    "garbage on the socket": garbage_on_the_socket,
    "socket taken": failing("taken", "its socket can't be made"),
    "hang at start": at_start("hang", f"not ready within {START_TIMEOUT_S:g} s"),
    "ended": ended,
    "endless": endless,
    "out of memory": out_of_memory,
    "garbage on the status pipe": garbage_on_the_status_pipe,
    "exit at start": at_start("exit", "exited with status 0"),
    "garbage at start": at_start("garbage", "could not be started or followed"),
    "endless garbage at start": at_start("endless", "could not be started or followed"),
    "out of memory at start": at_start("memory", "killed by signal 9"),
    "stopped at start": at_start("stop", f"not ready within {START_TIMEOUT_S:g} s"),
    "no model": failing("refuse", "the file is no model"),
}
TWIN_FAULTS = {"no_hang_detection": "hung idle", "kill_the_slow": "slow"}
METRICS = ("orphans", "lies", "unfound", "unsaid", "killed_alive", "down")


async def play(names: list[str], progress: Progress, *, twin: str = SOUND) -> Figures:
    """These faults, one after the other, on one platform; returns what was not as promised, by metric."""
    figures = dict.fromkeys(METRICS, 0)
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        directory = Path(folder)
        try:
            async with supervised(directory, twin=twin, **FIELDS) as engines:
                for name in names:
                    one = Round(engines, directory / "m.gguf")
                    await one.run(FAULTS[name])
                    for metric, says in one.complaints:
                        figures[metric] += 1
                        progress.say(f"{name}: {metric}: {says}")
                    progress.advance()
        except TimeoutError:
            figures["orphans"] += 1
            progress.say("an engine outlived its platform")
    return figures


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Run every round that `state` doesn't have yet; return the rows of all rounds."""
    draw = random.Random(f"{NAME} {seed}")
    names = list(FAULTS)
    rounds_count = ROUNDS[size]
    order = [name for _ in range(-(-rounds_count // len(names))) for name in draw.sample(names, len(names))]
    if size == "short":
        order = names  # the most telling ones come first
    order = order[:rounds_count]
    progress.begin("rounds", rounds_count + len(TWIN_FAULTS))
    for first in range(0, rounds_count, ROUNDS_PER_PLATFORM):
        batch = order[first : first + ROUNDS_PER_PLATFORM]
        if not state.is_done(f"rounds {first}"):
            state.save(f"rounds {first}", add(await play(batch, progress), {"rounds": len(batch)}))
    rows = rows_of(NAME, state.sums("rounds"), backend="fake")
    for twin, fault in TWIN_FAULTS.items():
        if not state.is_done(f"twin {twin}"):
            found = await play([fault], progress, twin=twin)
            state.save(f"twin {twin}", {"caught": int(sum(found.values()) > 0)})
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin {twin}")["caught"] == 1, backend="fake"))
    return rows
