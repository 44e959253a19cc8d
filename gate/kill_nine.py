"""T1: a platform that is killed at any moment, again and again, loses nothing it acknowledged and charges nothing twice.

A mixed load runs, the platform's process is killed by SIGKILL while it serves, starts or stops, and started again on the
same files; clients send again what was not answered. The engine lives on and keeps its truth; the auditor compares.
"""

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

from gate.mixed_load import GATEWAY, MODELS, Caller, Journal, Load
from gate.progress import Progress
from gate.rows import Figures, Row, Size, rows_of, twin_row
from gate.state import State
from tests.rig import twins
from tests.rig.admin import administer
from tests.rig.auditor import Audit, Finding, audit, read_acks
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

NAME = "t1"
KILLS = {"full": 300, "short": 8}
KILLS_PER_DIRECTORY = 25
"""The books of a directory grow with each kill, and so does the audit of them."""
REQUESTS_PER_KILL = {"full": 100, "short": 50}
AUDIT_EVERY_KILLS = {"full": 5, "short": 4}
LANES = 2
CLIENTS_COUNT, STREAMS_COUNT = 12, 2
IN_A_STOP, AT_A_MARK, IN_A_START = (1,), (2, 4), (3,)
"""Of every five kills, those that hit the platform while it stops, once a stream is marked, and again while it starts."""
START_S, STOP_S, MARK_WITHIN_S = 1.3, 0.6, 2.0
READY_TIMEOUT_S, LOAD_TIMEOUT_S = 10.0, 60.0
TWINS = {
    "acknowledge_long_before_commit": "lost",
    "no_recovery": "leaked",
    "answers_not_kept": "doubled",
}
"""Broken builds and the metric that must notice."""
TWIN_KILLS = 2
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
"""A process that is killed can't write down its coverage; measuring it would only slow it."""


class KilledPlatform:
    """One platform with its engine and its clients. complaints: what an audit found, in words."""

    def __init__(
        self, platform: Platform, engine: FakeEngineHandle, load: Load, command: Sequence[str], journal_path: Path
    ) -> None:
        """command: what the platform runs under. Use `open`."""
        self.platform, self.engine, self.load = platform, engine, load
        self.complaints: list[str] = []
        self.kills_ns: list[int] = []
        self._command, self._journal_path = command, journal_path
        self._grants: list[str] = []
        self._found: set[Finding] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, name: str, seed: int, *, twin: str | None = None) -> AsyncIterator[Self]:
        """A running platform with organizations, credit and budgets, sound or a twin, until the block ends."""
        command = [] if twin is None else twins.wrapper(twin)
        with tempfile.TemporaryDirectory(prefix="hw-") as folder:
            async with fake_engine() as engine:
                text = config(upstreams=[upstream("fake", engine.base_url, MODELS)], gateway=GATEWAY)
                text += f'[[costs]]\nmodel = "fake/{MODELS[0]}"\ninput = "0.05"\noutput = "0.07"\nrequest = "9"\n'
                env = UNMEASURED | twins.ENVIRONMENT
                async with running_platform(text, Path(folder) / "p", wrapper=command, env=env) as platform:
                    journal_path = Path(folder) / "acks.jsonl"
                    with contextlib.closing(Journal(journal_path)) as journal:
                        callers = await set_up(platform)
                        load = Load(journal, random.Random(f"{name} {seed}"), callers, name)
                        yield cls(platform, engine, load, command, journal_path)

    async def suffer(self, number: int, requests_count: int) -> None:
        """The number-th kill: at some moment after about so many requests have begun; the platform is down afterwards."""
        draw, load = self.load.draw, self.load
        load.base_url = self.platform.base_url
        grant = await administer(
            self.platform,
            "grants.create",
            organization="acme",
            amount="0.02",
            expires_at_ms=int(time.time() * 1000) + draw.randint(300, 4000),
        )
        self._grants.append(grant["id"])
        is_dead, aim, began = (
            asyncio.Event(),
            draw.randint(requests_count // 2, requests_count * 3 // 2),
            load.begun_count,
        )
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS_COUNT):
                group.create_task(load.keep_asking(is_dead.is_set))
            for _ in range(STREAMS_COUNT):
                group.create_task(load.keep_streaming(is_dead.is_set))
            await until(lambda: load.begun_count >= began + aim, timeout_s=LOAD_TIMEOUT_S)
            await asyncio.sleep(draw.random() * 0.05)
            if number % 5 in AT_A_MARK:
                with contextlib.suppress(TimeoutError):  # those streams may have had no time
                    await until(lambda: self.platform.rows("SELECT 1 FROM marks"), timeout_s=MARK_WITHIN_S)
            if number % 5 in IN_A_STOP:
                self.platform.interrupt()
                await asyncio.sleep(draw.random() * STOP_S)
            await self._kill()
            is_dead.set()
        if number % 5 in IN_A_START:
            await self.platform.start(wait=False, wrapper=self._command)
            await asyncio.sleep(draw.random() * START_S)
            await self._kill()

    async def start(self) -> dict[str, int | float]:
        """Start it again; it must serve soon."""
        began_s = time.monotonic()
        await self.platform.start(wrapper=self._command)
        took_s = time.monotonic() - began_s
        self.load.base_url = self.platform.base_url
        return {"down": int(took_s > READY_TIMEOUT_S)}

    async def audit(self) -> dict[str, int | float]:
        """What is wrong with the books, by metric, while nothing is being served; counts only what is new."""
        truth = await self.engine.settled(0)
        acks = read_acks(self._journal_path)
        found = await asyncio.to_thread(audit, self.platform.database, truth, acks=acks, killed_at_ns=self.kills_ns)
        return self._new(found) | {"audits": 1}

    def _new(self, found: Audit) -> dict[str, int | float]:
        new = Audit([one for one in found.findings if one not in self._found])
        self._found.update(new.findings)
        self.complaints += [str(one) for one in new.findings]
        known = {row["id"] for row in self.platform.rows("SELECT id FROM grants")}
        lost = [grant_id for grant_id in self._grants if grant_id not in known]
        self._grants = [grant_id for grant_id in self._grants if grant_id in known]
        self.complaints += [f"the grant {grant_id} was confirmed and is not there" for grant_id in lost]
        metrics: dict[str, int | float] = {**new.metrics}
        return metrics | {"lost": metrics["lost"] + len(lost)}

    async def verified(self) -> dict[str, int | float]:
        """Whether the product's own verification agrees that all is well."""
        ran = await self.platform.cli("ledger", "verify", check=False)
        if ran.status:
            self.complaints.append(f"`headwater ledger verify` ended with {ran.status}: {ran.stdout} {ran.stderr}")
        return {"misstated": int(ran.status != 0)}

    async def _kill(self) -> None:
        """End the platform's process alone; it may have ended by itself while it was stopping."""
        self.kills_ns.append(time.monotonic_ns())
        if self.platform.process.returncode is None:
            await self.platform.kill()


async def set_up(platform: Platform) -> list[Caller]:
    """A prepaid organization with caps of every scope, one of them tight, and the default one, which pays afterwards."""
    await administer(platform, "organizations.create", name="acme", is_prepaid=True)
    await administer(platform, "grants.create", organization="acme", amount="100")
    callers = [Caller(platform.key)]
    for name in ("search", "tight"):
        project = await administer(platform, "projects.create", name=name, organization="acme")
        key: dict[str, Any] = await administer(platform, "keys.create", name=f"{name} key", project=project["id"])
        limit = "0.006" if name == "tight" else "50"
        for scope in ({"project": project["id"]}, {"key": key["details"]["id"]}):
            await administer(platform, "budgets.create", limit=limit, period="day", **scope)
        callers.append(Caller(key["key"]))
    await administer(platform, "budgets.create", organization="acme", limit="90", period="month")
    await administer(platform, "budgets.create", organization="acme", limit="40", period="total", tag="night")
    prepaid = callers[1]
    return [*callers, prepaid, Caller(prepaid.key, {"x-headwater-tags": "night"})]


async def one_directory(
    name: str, seed: int, size: Size, kills_count: int, progress: Progress, *, twin: str | None = None
) -> Figures:
    """So many kills on the same files; returns the figures of all of them."""
    figures: dict[str, int | float] = dict.fromkeys(("lost", "doubled", "overdrawn", "leaked", "misstated", "down"), 0)

    def add(more: Figures) -> None:
        for metric, value in more.items():
            figures[metric] = figures.get(metric, 0) + value

    async with KilledPlatform.open(name, seed, twin=twin) as killed:
        for number in range(1, kills_count + 1):
            await killed.suffer(number, REQUESTS_PER_KILL[size])
            add(await killed.start())
            if number % AUDIT_EVERY_KILLS[size] == 0 or twin is not None:
                add(await killed.audit())
            progress.advance()
        load = killed.load
        await load.drain()
        await killed.platform.idle()
        killed.complaints += load.complaints
        add({"misstated": len(load.complaints), "down": int(await killed.platform.stop() != 0)})
        add(await killed.audit())
        if twin is None:
            add(await killed.verified())
            for words in killed.complaints:
                progress.say(f"{name}: {words}")
        recovered = killed.platform.rows(
            "SELECT count(*) AS n, sum(output > 0) AS m FROM usage_records WHERE flags LIKE '%recovered%'"
        )
        add(
            {
                "kills": len(killed.kills_ns),
                "requests": load.begun_count,
                "acknowledged": sum(ack.is_complete for ack in load.journal.acks),
                "refused": load.refused_count,
                "replayed": load.replayed_count,
                "recovered": recovered[0]["n"],
                "recovered_with_tokens": recovered[0]["m"] or 0,
            }
        )
    return figures


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every kill, in directories of their own, then the twins."""
    parts = {
        f"kills-{at}": min(KILLS_PER_DIRECTORY, KILLS[size] - at) for at in range(0, KILLS[size], KILLS_PER_DIRECTORY)
    }
    waiting = [name for name in reversed(parts) if not state.is_done(name)]
    total = KILLS[size] + TWIN_KILLS * len(TWINS)
    done = sum(kills for name, kills in parts.items() if name not in waiting)
    todo = [name for name in TWINS if not state.is_done(f"twin-{name}")]
    progress.begin("kills", total, done=done + TWIN_KILLS * (len(TWINS) - len(todo)))

    async def lane() -> None:
        while waiting:
            name = waiting.pop()
            state.save(name, await one_directory(name, seed, size, parts[name], progress))
        while todo:
            twin = todo.pop()
            figures = await one_directory(f"twin-{twin}", seed, size, TWIN_KILLS, progress, twin=twin)
            state.save(f"twin-{twin}", {TWINS[twin]: figures[TWINS[twin]]})

    async with asyncio.TaskGroup() as group:
        for _ in range(LANES):
            group.create_task(lane())
    rows = rows_of(NAME, state.sums("kills-"))
    for twin, metric in TWINS.items():
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")[metric] > 0))
    return rows
