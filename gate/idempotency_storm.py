"""T7: fifty twins under each idempotency key at once: one is served and charged, all others are told to wait or told the same.

Other bodies, streams, errors, kills, expired keys and a project that forbids storage come in between.
"""

import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gate.mixed_load import Caller, Plan, acknowledgement, is_whole
from gate.progress import Progress
from gate.rows import Row, Size, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.admin import administer
from tests.rig.auditor import Ack, audit
from tests.rig.clients import Client, Received
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.rig.tail import TruthTail, marked

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

NAME = "t7"
KEYS = {"full": 500, "short": 30}
KEYS_PER_DIRECTORY = 50
TWINS_PER_KEY, OTHERS_PER_KEY, STORMS_AT_ONCE = 50, 3, 2
MODEL, FAILING = "m:gap_ms=5,min_tokens=10,max_tokens=30", "m:tokens=9,cut_after=3"
KILLED_EVERY, EXPIRED_EVERY = 10, 7
"""Of so many keys one is interrupted by a kill; of so many that were answered one expires."""
TWINS = {"nothing_is_in_flight": "doubled", "answers_not_kept": "doubled"}
"""Broken builds and the metric that must notice."""
TWIN_KEYS = 2
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}


@dataclass(slots=True)
class Key:
    """One idempotency key. number: of its prompt's length; generation: of its answer, a new one after it has expired.

    executions_max: how often an engine may have worked on it: once, and once more for a kill that cut it off.
    """

    name: str
    number: int
    generation: int = 0
    executions_max: int = 1
    bodies: set[bytes] = field(default_factory=set)

    def body(self, model: str = MODEL, **fields: Any) -> dict[str, Any]:
        """Its request."""
        return chat_body(f"fake/{model}", stream=False, messages=marked(self.number), **fields)


class Storm:
    """A platform and its clients. complaints: what was not as it should be, under the metric it counts for."""

    def __init__(
        self, platform: Platform, engine: FakeEngineHandle, callers: Mapping[str, str], command: Sequence[str]
    ) -> None:
        """callers: API keys by their project: first, second, unkept (no answer may be stored)."""
        self.platform, self.engine = platform, engine
        self.complaints: list[tuple[str, str]] = []
        self.statuses: Counter[str] = Counter()
        self.replays_count = 0
        self._callers, self._command = callers, command
        self._tail = TruthTail(engine.truth_path)
        self._acks: list[Ack] = []
        self._kills_ns: list[int] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, *, twin: str | None = None) -> AsyncIterator[Self]:
        """A running platform, sound or a twin, until the block ends."""
        command = [] if twin is None else twins.wrapper(twin)
        with tempfile.TemporaryDirectory(prefix="hw-") as folder:
            async with fake_engine() as engine:
                text = config(
                    upstreams=[upstream("fake", engine.base_url, [MODEL, FAILING])], billing={"idempotency_hours": 1}
                )
                env = UNMEASURED | twins.ENVIRONMENT
                async with running_platform(text, Path(folder) / "p", wrapper=command, env=env) as platform:
                    callers = {"first": platform.key}
                    for name in ("second", "unkept"):
                        made = await administer(
                            platform, "projects.create", name=name, is_storage_allowed=name != "unkept"
                        )
                        key = await administer(platform, "keys.create", name=name, project=made["id"])
                        callers[name] = key["key"]
                    yield cls(platform, engine, callers, command)

    # -- one key -------------------------------------------------------------------------------------------------------

    async def storm(self, key: Key) -> None:
        """All twins at once; once it is being served, other bodies and a stream too; then everybody asks again."""
        twins_asking = [asyncio.create_task(self._ask(key, key.body())) for _ in range(TWINS_PER_KEY)]
        await self._tail.wait_begun(marked(key.number))
        others = [self._ask(key, key.body(max_tokens=400 + at)) for at in range(OTHERS_PER_KEY)]
        stream = self._ask(key, {**key.body(), "stream": True})
        *refused, streamed = await asyncio.gather(*others, stream)
        first = await asyncio.gather(*twins_asking)
        again = [await self._ask(key, key.body()) for got in first if got.status == 409][:3]
        for got in refused:
            self._expect(got, 422, "idempotency_key_reused", key)
        self._expect(streamed, 400, "unsupported_value", key)
        self._check_answers(key, [*first, *again], fresh_count=1)
        if any(got.status != 200 for got in again):
            self._complain("leaked", f"{key.name} is not answered afterwards: {[got.status for got in again]}")
        self._check_executions(key)

    async def fail_then_serve(self, key: Key) -> None:
        """An error frees the key: the same again runs again, and another body may have it then."""
        for _ in range(2):
            got = await self._ask(key, key.body(FAILING))
            if got.status != 502:
                self._complain("leaked", f"{key.name} after an error: {got.status} {got.body!r}")
        key.executions_max = 3
        self._check_answers(key, [await self._ask(key, key.body()), await self._ask(key, key.body())], fresh_count=1)
        self._check_executions(key)

    async def two_projects(self, key: Key) -> None:
        """Two projects' keys of one name are two keys."""
        other = Key(f"{key.name}-second", key.number)
        for caller in ("first", "second"):
            mine = key if caller == "first" else other
            answers = [await self._ask(mine, key.body(), caller=caller, name=key.name) for _ in range(2)]
            self._check_answers(mine, answers, fresh_count=1)
        key.executions_max = 2
        self._check_executions(key)

    async def unkept(self, key: Key) -> None:
        """A project that forbids storage: twins are still told to wait, but nothing is kept and every asking is served."""
        at_once = [asyncio.create_task(self._ask(key, key.body(), caller="unkept")) for _ in range(5)]
        first = await asyncio.gather(*at_once)
        again = await self._ask(key, key.body(), caller="unkept")
        fresh = [got for got in (*first, again) if got.status == 200]
        if len(fresh) != 2 or any("idempotent-replayed" in got.headers for got in fresh):
            self._complain("misstated", f"{key.name}, which isn't kept: {[got.status for got in (*first, again)]}")
        kept = self.platform.rows("SELECT 1 FROM idempotency_keys WHERE idempotency_key = ?", key.name)
        if kept:
            self._complain("leaked", f"{key.name} was kept where nothing may be")
        key.executions_max = 2
        self._check_executions(key)

    async def interrupted(self, key: Key, draw: random.Random) -> None:
        """A kill in the middle of a storm: afterwards it is served, once, unless it was before."""
        asking = [asyncio.create_task(self._ask(key, key.body())) for _ in range(TWINS_PER_KEY)]
        await self._tail.wait_begun(marked(key.number))
        await asyncio.sleep(draw.random() * 0.3)
        self._kills_ns.append(time.monotonic_ns())
        await self.platform.kill()
        before = await asyncio.gather(*asking)
        await self.platform.start(wrapper=self._command)
        again = [await self._ask(key, key.body()) for _ in range(3)]
        key.executions_max = 2
        told = [got for got in before if got.status == 200 and is_whole(got)]
        # Whether it had been settled before the kill decides whether it is served now.
        fresh = sum("idempotent-replayed" not in got.headers for got in (*told, *again))
        self._check_answers(key, [*told, *again], fresh_count=min(fresh, 1))
        self._check_executions(key)

    async def after_restart(self, keys: Sequence[Key], expired: Sequence[Key]) -> None:
        """Stopped and started again: every answer is still given, byte for byte; those that expired are served anew."""
        status = await self.platform.stop()
        if status:
            self._complain("misstated", f"the platform stopped with {status}")
        with contextlib.closing(sqlite.connect(str(self.platform.database))) as connection:
            for key in expired:
                update = "UPDATE idempotency_keys SET stored_at_ms = 1, expires_at_ms = 2 WHERE idempotency_key = ?"
                connection.execute(update, (key.name,))
            connection.commit()
        await self.platform.start(wrapper=self._command)
        for key in keys:
            if key not in expired:
                self._check_answers(key, [await self._ask(key, key.body())], fresh_count=0)
        for key in expired:
            key.generation, key.bodies = key.generation + 1, set()
            key.executions_max += 1
            self._check_answers(key, [await self._ask(key, key.body()) for _ in range(2)], fresh_count=1)
            self._check_executions(key)

    # -- asking and judging --------------------------------------------------------------------------------------------

    async def _ask(
        self, key: Key, body: Mapping[str, Any], *, caller: str = "first", name: str | None = None
    ) -> Received:
        called = f"{key.name}#{key.generation}"
        headers = {"idempotency-key": name or key.name, "x-request-id": called}
        got, api_key = Received(), self._callers[caller]
        try:
            async with await Client.chat(self.platform.base_url, body, api_key=api_key, headers=headers) as client:
                got = client.received
                await client.read_to_end(timeout_s=60.0)
        except OSError:
            pass  # the platform was killed before it answered
        self.statuses[str(got.status)] += 1
        self.replays_count += got.headers.get("idempotent-replayed") == "true"
        if got.status is not None and caller != "unkept":
            self._acks.append(acknowledgement(Plan(called, Caller(api_key), dict(body)), got))
        return got

    def _expect(self, got: Received, status: int, code: str, key: Key) -> None:
        if (got.status, (got.error or {}).get("code")) != (status, code):
            self._complain("misstated", f"{key.name}: {got.status} {got.body!r}, not {status} {code}")

    def _check_answers(self, key: Key, answers: Sequence[Received], *, fresh_count: int) -> None:
        """One answer is fresh, all others are it again, or 409 with the time after which to ask."""
        good = [got for got in answers if got.status == 200]
        fresh = [got for got in good if "idempotent-replayed" not in got.headers]
        if len(fresh) != fresh_count:
            self._complain("doubled", f"{key.name}: {len(fresh)} answers are fresh, not {fresh_count}")
        key.bodies |= {got.body for got in good}
        if len(key.bodies) != 1:
            self._complain("doubled", f"{key.name}: {len(key.bodies)} different answers")
        for got in answers:
            if got.status == 409:
                self._expect(got, 409, "idempotency_key_in_use", key)
                if not 1 <= int(got.headers.get("retry-after", "0")) <= 60:
                    self._complain("misstated", f"{key.name}: 409 without a time to come back: {got.headers}")
            elif got.status != 200:
                self._complain("misstated", f"{key.name}: {got.status} {got.body!r}")

    def _check_executions(self, key: Key) -> None:
        self._tail.look()
        length = len(marked(key.number)[0]["content"].split()) + 3
        executions = len(self._tail.begun.get(length, ()))
        if executions > key.executions_max:
            self._complain("doubled", f"{key.name}: the engine worked on it {executions} times")

    def _complain(self, metric: str, words: str) -> None:
        self.complaints.append((metric, words))

    async def audit(self) -> dict[str, int]:
        """What is wrong with the books when all is over."""
        await self.platform.idle()
        truth = await self.engine.settled(0)
        found = await asyncio.to_thread(
            audit, self.platform.database, truth, acks=self._acks, killed_at_ns=self._kills_ns
        )
        self.complaints += [("audit", str(finding)) for finding in found.findings]
        return found.metrics


async def storms(
    count: int, seed: int, progress: Progress, *, first: int = 0, twin: str | None = None
) -> dict[str, int | float]:
    """So many keys on one platform; returns the figures."""
    draw = random.Random(f"storms {seed} {first}")
    figures: dict[str, int | float] = dict.fromkeys(("lost", "doubled", "overdrawn", "leaked", "misstated"), 0)
    keys = [Key(f"key-{first + at}", at) for at in range(count)]
    async with Storm.open(twin=twin) as storm:
        answered: list[Key] = []
        places = asyncio.Semaphore(STORMS_AT_ONCE)

        async def one(key: Key) -> None:
            async with places:
                await storm.storm(key)
                answered.append(key)
                progress.advance()

        killed = [] if twin else [key for key in keys if key.number % KILLED_EVERY == KILLED_EVERY - 1]
        await asyncio.gather(*(one(key) for key in keys if key not in killed))
        if twin is None:
            for key in killed:
                await storm.interrupted(key, draw)
                answered.append(key)
                progress.advance()
            extra = [Key(f"key-{first}-{what}", count + at) for at, what in enumerate(("failing", "shared", "unkept"))]
            await storm.fail_then_serve(extra[0])
            await storm.two_projects(extra[1])
            await storm.unkept(extra[2])
            await storm.after_restart(answered, [key for key in answered if key.number % EXPIRED_EVERY == 0])
        for metric, value in (await storm.audit()).items():
            figures[metric] += value
        for metric, words in storm.complaints:
            if metric != "audit":
                figures[metric] += 1
            if twin is None:
                progress.say(words)
        figures |= {"keys": len(keys), "requests": storm.statuses.total(), "conflicts": storm.statuses["409"]}
        figures |= {"replays": storm.replays_count, "refused": storm.statuses["422"] + storm.statuses["400"]}
    return figures


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every key, fifty on each platform, then the twins."""
    step = KEYS_PER_DIRECTORY
    parts = {f"keys-{at}": min(step, KEYS[size] - at) for at in range(0, KEYS[size], step)}
    done = sum(count for name, count in parts.items() if state.is_done(name))
    done += TWIN_KEYS * sum(state.is_done(f"twin-{twin}") for twin in TWINS)
    progress.begin("keys", KEYS[size] + TWIN_KEYS * len(TWINS), done=done)
    for name, count in parts.items():
        if not state.is_done(name):
            state.save(name, await storms(count, seed, progress, first=int(name.removeprefix("keys-"))))
    for twin, metric in TWINS.items():
        if not state.is_done(f"twin-{twin}"):
            figures = await storms(TWIN_KEYS, seed, progress, twin=twin)
            state.save(f"twin-{twin}", {metric: figures[metric]})
    rows = rows_of(NAME, state.sums("keys-"))
    for twin, metric in TWINS.items():
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")[metric] > 0))
    return rows
