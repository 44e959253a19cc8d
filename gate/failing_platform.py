"""A platform that is made to fail again and again on the same files, and what each failure showed."""

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Self

from gate import full_disk
from gate.clients import Crowd, Told
from gate.injection import Call, Fault, injected
from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.auditor import METRICS, Ack, Finding, audit
from tests.rig.clients import Client
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

FAST, ENDLESS, FLOOD = "m:tokens=3", "m:tokens=100000,gap_ms=20", "m:endless,big_chunk=3000000"
STREAMS_COUNT, CALLERS_COUNT = 2, 8
WRITE_STALL_TIMEOUT_S, DRAIN_TIMEOUT_S = 2.0, 0.5
COMMITS_PER_CHECKPOINT, COMMITS_BEFORE, WRITES_PER_COMMIT = 64, 5, 16
"""The writer checkpoints after so many commits; a commit under light load is about so many writes."""
END_TIMEOUT_S = 60.0
CARRIED_ON_S = 1.0
UNKNOWN = "unknown"
"""The auditor's rule for work of the engine's that the ledger doesn't know."""
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
"""A measurement of coverage would itself be hit by the fault."""


class FailingPlatform:
    """One platform with its engine. complaints: what the last failure showed that it shouldn't, in words."""

    def __init__(self, platform: Platform, engine: FakeEngineHandle, command: Sequence[str], seed: int) -> None:
        """command: what it runs under; it has been started. Use `open`."""
        self.platform, self.engine = platform, engine
        self.complaints: list[str] = []
        self._command = command
        self._draw = random.Random(f"clients {seed}")
        self._acks: list[Ack] = []
        self._ends_ns: list[int] = []
        self._found: set[Finding] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, seed: int, *, twin: str | None = None) -> AsyncIterator[Self]:
        """A running platform in a directory of its own, sound or a twin, until the block ends."""
        command = [] if twin is None else twins.wrapper(twin)
        with tempfile.TemporaryDirectory(prefix="hw-") as folder:
            async with fake_engine() as engine:
                text = config(
                    upstreams=[upstream("fake", engine.base_url, [FAST, ENDLESS, FLOOD])],
                    gateway={"write_stall_timeout_s": WRITE_STALL_TIMEOUT_S, "drain_timeout_s": DRAIN_TIMEOUT_S},
                )
                env = UNMEASURED | twins.ENVIRONMENT
                async with running_platform(text, Path(folder) / "p", wrapper=command, env=env) as platform:
                    yield cls(platform, engine, command, seed)

    async def suffer(self, fault: Fault, *, is_held: bool = False, is_near_checkpoint: bool = False) -> dict[str, int]:
        """Load it, let the fault happen, judge its end, start it again on the healed disk, audit; returns figures.

        is_held: a client that reads nothing holds the end up for the write stall, so that `/ready` can be asked.
        is_near_checkpoint: the fault counts from a few commits before a checkpoint.
        """
        self.complaints.clear()
        crowd, log = Crowd(self.platform), self.platform.directory / "strace.txt"
        if is_near_checkpoint:
            fault = fault._replace(at=fault.at + await self._near_checkpoint(crowd, fault.call))
        async with (
            injected(self.platform.pid, self.platform.database, fault, log) as injection,
            self._holding(is_held=is_held),
        ):
            is_carried_on = await self._load(
                crowd, lambda: not fault.is_lasting and injection.is_checkpoint_hit, is_held=is_held
            )
        if not injection.hits():
            self.complaints.append(f"the fault never came: {fault.expression}")
        figures = await self._aftermath(crowd, held_count=int(is_held))
        is_checkpoint_hit = int(injection.is_checkpoint_hit)
        return figures | {"faults_in_checkpoints": is_checkpoint_hit, "carried_on": int(is_carried_on)}

    async def suffer_full_disk(self, namespace: Sequence[str]) -> dict[str, int]:
        """Move it to a disk with 256 KiB left, load it until that is full, judge; then as `suffer`."""
        self.complaints.clear()
        crowd, data = Crowd(self.platform), self.platform.database.parent
        await self.platform.stop()
        await self.platform.start(wrapper=[*full_disk.small_disk(namespace, data), *self._command])
        await self._load(crowd, lambda: False, is_held=False)
        full_disk.heal(data)
        return await self._aftermath(crowd, held_count=0) | {"full_disks": 1}

    async def _aftermath(self, crowd: Crowd, *, held_count: int) -> dict[str, int]:
        """Start it again, audit, ask once; returns the figures of this failure."""
        self._acks += [told.ack() for told in crowd.told if told.is_complete]
        # What was under way when the ledger failed, and when the process ended, has no record: its answer was refused.
        self._ends_ns += [told.at_ns for told in crowd.told if not told.is_complete][:1]
        self._ends_ns.append(time.monotonic_ns())
        unsaid_count = len(self.complaints)
        await self.engine.settled(0)
        await self.platform.start(wrapper=self._command)
        refused_count = len(crowd.told) - sum(told.is_complete for told in crowd.told) + held_count
        figures = self._audit(refused_count=refused_count)
        after = await Crowd(self.platform).ask(f"fake/{FAST}", is_stream=True)
        if after.is_complete:
            self._acks.append(after.ack())
        else:
            self.complaints.append(f"it doesn't serve after the restart: {after}")
        return figures | {
            "unsaid": unsaid_count,
            "down": int(not after.is_complete),
            "faults": 1,
            "requests": len(crowd.told),
            "acknowledged": sum(told.is_complete for told in crowd.told),
            "refused_in_words": sum(told.is_refused for told in crowd.told),
            "ready_said_so": int(any(status == 503 for status, _ in crowd.ready)),
        }

    async def _near_checkpoint(self, crowd: Crowd, call: Call) -> int:
        """Commit until the next checkpoint is a few commits away; returns about how many calls of that kind come before it."""
        commits_count = 0

        async def look() -> None:
            nonlocal commits_count
            metrics = await self.platform.metrics()
            commits_count = int(metrics["headwater_ledger_commits_total"])

        await look()
        while COMMITS_PER_CHECKPOINT - commits_count % COMMITS_PER_CHECKPOINT > COMMITS_BEFORE:
            await crowd.ask(f"fake/{FAST}", is_stream=False)
            await look()
        rest = COMMITS_PER_CHECKPOINT - commits_count % COMMITS_PER_CHECKPOINT
        return rest * WRITES_PER_COMMIT if call == "pwrite64" else 0

    @contextlib.asynccontextmanager
    async def _holding(self, *, is_held: bool) -> AsyncIterator[None]:
        if not is_held:
            yield
            return
        body = chat_body(f"fake/{FLOOD}", max_tokens=1_000_000)
        async with await Client.chat(
            self.platform.base_url, body, api_key=self.platform.key, receive_bytes_max=4096
        ) as client:
            await client.read_until(lambda got: got.status is not None)
            yield

    async def _load(self, crowd: Crowd, is_harmless: Callable[[], bool], *, is_held: bool) -> bool:
        """Keep clients busy until the platform has ended, and judge its end.

        is_harmless: whether what failed was no commit's. A single failure inside a checkpoint is none: SQLite keeps the
        log and copies it again, and the platform may go on. Then it is stopped here, and True returned.
        """
        process, is_over, is_carried_on = self.platform.process, asyncio.Event(), False
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(crowd.ask(f"fake/{ENDLESS}", is_stream=True)) for _ in range(STREAMS_COUNT)]
            for _ in range(CALLERS_COUNT):
                group.create_task(crowd.keep_asking(f"fake/{FAST}", self._draw, is_over.is_set))
            group.create_task(crowd.watch_ready())
            with contextlib.suppress(TimeoutError):  # what never ends is complained of below
                await until(lambda: process.returncode is not None or is_harmless(), timeout_s=END_TIMEOUT_S)
            is_carried_on = not await self._ends_within(CARRIED_ON_S) and is_harmless()
            is_over.set()
            if is_carried_on:
                self.platform.interrupt()
            if not await self._ends_within(END_TIMEOUT_S if is_carried_on else 0.0):
                self.complaints.append("it didn't end")
                await self.platform.kill()
        if not is_carried_on:
            self._judge_end(crowd, [stream.result() for stream in streams], is_held=is_held)
        return is_carried_on

    async def _ends_within(self, timeout_s: float) -> bool:
        try:
            await self.platform.ended(timeout_s=timeout_s)
        except TimeoutError:
            return False
        return True

    def _judge_end(self, crowd: Crowd, streams: Sequence[Told], *, is_held: bool) -> None:
        """Complain of everything that wasn't said: to clients, in the exit status, in the log's last lines, on `/ready`."""
        status = self.platform.process.returncode
        if status != 1:
            self.complaints.append(f"it ended with {status}")
        last = " ".join(self.platform.log_tail().strip().splitlines()[-3:])
        if "ledger could not be written" not in last or not ("disk I/O error" in last or "disk is full" in last):
            self.complaints.append(f"its last lines don't say why: {last[-500:]}")
        self.complaints += [f"an open stream ended otherwise: {told}" for told in streams if not told.is_refused]
        self.complaints += [f"an answer ended without a word: {told}" for told in crowd.told if told.is_silent]
        is_failed = [status == 503 and "the ledger failed" in said for status, said in crowd.ready]
        if True in is_failed and not all(is_failed[is_failed.index(True) :]):
            self.complaints.append("/ready said that the ledger failed, and then that all is well")
        if is_held and True not in is_failed:
            self.complaints.append(f"/ready never said that the ledger failed: {crowd.ready[-1:]}")

    def _audit(self, *, refused_count: int) -> dict[str, int]:
        """What is wrong with the books, by metric; counts only what is new since the last failure on these files.

        refused_count: how many requests were not given their answer's end. Work for these may have left no record.
        """
        figures = dict.fromkeys(("lost", "doubled", "overdrawn", "leaked", "misstated"), 0)
        found = audit(self.platform.database, self.engine.truth(), acks=self._acks, killed_at_ns=self._ends_ns)
        new = [finding for finding in found.findings if finding not in self._found]
        self._found.update(new)
        unknown = [finding for finding in new if finding.rule == UNKNOWN]
        if len(unknown) <= refused_count:
            new = [finding for finding in new if finding.rule != UNKNOWN]
        for finding in new:
            self.complaints.append(str(finding))
            figures[METRICS.get(finding.rule, "misstated")] += 1
        return figures
