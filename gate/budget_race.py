"""T2: two hundred callers at once under three stacked caps, with room for exactly k: exactly k are served and charged.

Each request costs exactly what is held for it, so that k is exact. In every second round the platform is killed in the
middle; afterwards the remainder, and no more, is served.
"""

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gate.mixed_load import Caller as Owner
from gate.mixed_load import Plan, acknowledgement, is_whole
from gate.progress import Progress
from gate.rows import Figures, Row, Size, add, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.admin import administer
from tests.rig.auditor import Ack, audit
from tests.rig.clients import Client, Received
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

NAME = "t2"
ROUNDS = {"full": 50, "short": 5}
ROUNDS_PER_DIRECTORY = 10
CALLERS_COUNT = 200
MODELS = ("m:exact,gap_ms=1", "m:exact,gap_ms=8", "m:exact,gap_ms=25")
NANOS_PER_TOKEN = 1000
PRICES = [{"model": f"fake/{model}", "input": "0", "output": "1"} for model in MODELS]
"""Only output costs, and these models make as many tokens as they may: a request costs what is held for it."""
SCOPES = ("project", "organization", "key", "wallet")
SERVING_AGAIN_S = 10.0
SAMPLE_S = 0.02
TWINS = {"project_unchecked": "project", "check_then_act": "organization"}
"""Broken builds, and the scope that is tight where they are run."""
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}


class Round(NamedTuple):
    """One race. room_count: requests that the tight scope has room for; spare: how much more the others have."""

    name: str
    tight: str
    room_count: int
    spare_count: int
    tokens: int
    kill_after: int | None

    @property
    def cost_nanos(self) -> int:
        """What each request costs, and what is held for it."""
        return self.tokens * NANOS_PER_TOKEN


class Till(NamedTuple):
    """Who pays in a round: the organization with all it has to spend, and its key."""

    organization_id: str
    key: str
    limit_nanos: int


def plan(count: int, seed: int) -> list[Round]:
    """The rounds of a run; the tight scope takes turns, every second round has a kill."""
    draw = random.Random(f"races {seed}")
    rounds = []
    for at in range(count):
        room = draw.randint(20, 150)
        kill_after = draw.randint(1, room // 2) if at % 2 else None
        tight = SCOPES[at // 2 % len(SCOPES)] if count > len(SCOPES) * 2 else SCOPES[at % len(SCOPES)]
        rounds.append(Round(f"race-{at}", tight, room, draw.randint(1, 100), draw.randint(3, 12), kill_after))
    return rounds


class Race:
    """A platform on which rounds are run one after another. complaints: what was not as it should be."""

    def __init__(self, platform: Platform, engine: FakeEngineHandle, command: Sequence[str], seed: int) -> None:
        self.platform, self.engine = platform, engine
        self.complaints: list[str] = []
        self._command = command
        self._draw = random.Random(f"callers {seed}")
        self._acks: list[Ack] = []
        self._kills_ns: list[int] = []
        self._complete_count = 0

    async def run(self, one: Round) -> dict[str, int | float]:
        """One round; returns its figures."""
        till = await self._fund(one)
        samples: list[int] = []
        sampler = asyncio.create_task(self._sample(till, samples))
        self._complete_count, took_s = 0, 0.0
        try:
            callers = asyncio.create_task(self._call(one, till))
            if one.kill_after is None:
                answers = await callers
            else:
                wanted = one.kill_after
                with contextlib.suppress(TimeoutError):
                    await until(lambda: self._complete_count >= wanted or callers.done(), timeout_s=30)
                self._kills_ns.append(time.monotonic_ns())
                await self.platform.kill()
                first = await callers
                self._check_most(one, first)
                began_s = time.monotonic()
                await self.platform.start(wrapper=self._command)
                took_s = time.monotonic() - began_s
                answers = [*first, *await self._call(one, till)]
        finally:
            sampler.cancel()
            await asyncio.gather(sampler, return_exceptions=True)
        return self._judge(one, till, answers, samples, took_s)

    async def audit(self) -> dict[str, int | float]:
        """What is wrong with the books when all rounds are over."""
        await self.platform.idle()
        truth = await self.engine.settled(0)
        found = await asyncio.to_thread(
            audit, self.platform.database, truth, acks=self._acks, killed_at_ns=self._kills_ns
        )
        self.complaints += map(str, found.findings)
        return {**found.metrics}

    async def _fund(self, one: Round) -> Till:
        """An organization, a project and a key of its own, each with room for so many requests."""
        administered, name = self.platform, f"{one.name}-{self._draw.randrange(10**9)}"
        room = {scope: one.room_count + (0 if scope == one.tight else one.spare_count) for scope in SCOPES}
        is_prepaid = one.tight == "wallet"
        made = await administer(administered, "organizations.create", name=name, is_prepaid=is_prepaid)
        project = await administer(administered, "projects.create", name=name, organization=made["id"])
        key: dict[str, Any] = await administer(administered, "keys.create", name=name, project=project["id"])
        if is_prepaid:
            credit = decimal(room["wallet"] * one.cost_nanos)
            await administer(administered, "grants.create", organization=made["id"], amount=credit)
        for scope, whose in (
            ("organization", {"organization": made["id"]}),
            ("project", {"project": project["id"]}),
            ("key", {"key": key["details"]["id"]}),
        ):
            limit = decimal(room[scope] * one.cost_nanos)
            await administer(administered, "budgets.create", limit=limit, period="total", **whose)
        return Till(made["id"], key["key"], one.room_count * one.cost_nanos)

    async def _call(self, one: Round, till: Till) -> list[Received]:
        """All callers at once; half of them stream."""
        return list(await asyncio.gather(*(self._ask(one, till, at) for at in range(CALLERS_COUNT))))

    async def _ask(self, one: Round, till: Till, at: int) -> Received:
        model = MODELS[0] if one.kill_after is None else self._draw.choice(MODELS)
        body = chat_body(f"fake/{model}", stream=at % 2 == 0, max_tokens=one.tokens)
        got = Received()
        try:
            async with await Client.chat(self.platform.base_url, body, api_key=till.key) as client:
                got = client.received
                await client.read_to_end(timeout_s=60.0)
        except OSError:
            pass  # the platform was killed before it answered
        if got.status is not None:
            ack = acknowledgement(Plan("", Owner(till.key), body), got)
            self._acks.append(ack_without_key(ack))
            self._complete_count += ack.is_complete
        return got

    async def _sample(self, till: Till, samples: list[int]) -> None:
        """Look at the database again and again: what is spent and held of the round's money."""
        sql = (
            "SELECT coalesce(sum(coalesce(s.charge_nanos, r.amount_nanos)), 0) AS taken FROM reservations r"
            " LEFT JOIN resolutions s ON s.reservation_id = r.id WHERE r.organization_id = ?"
        )
        while True:
            samples.append((await asyncio.to_thread(self.platform.rows, sql, till.organization_id))[0]["taken"])
            await asyncio.sleep(SAMPLE_S)

    def _check_most(self, one: Round, answers: Sequence[Received]) -> None:
        served = sum(got.status == 200 and is_whole(got) for got in answers)
        if served > one.room_count:
            self.complaints.append(f"{one}: {served} were served before the kill")

    def _judge(
        self, one: Round, till: Till, answers: Sequence[Received], samples: Sequence[int], took_s: float
    ) -> dict[str, int | float]:
        rows = self.platform.rows(
            "SELECT count(*) AS n, coalesce(sum(cost_nanos), 0) AS nanos FROM usage_records"
            " WHERE organization_id = ? AND outcome = 'ok'",
            till.organization_id,
        )
        spent = self.platform.rows(
            "SELECT coalesce(sum(cost_nanos), 0) AS nanos FROM usage_records WHERE organization_id = ?",
            till.organization_id,
        )[0]["nanos"]
        served = rows[0]["n"]
        refused = [got for got in answers if got.status == 429]
        rude = [got for got in refused if not is_refused_for_good(got)]
        if one.kill_after is None:
            rude += [got for got in answers if got.status not in (200, 429)]
        over = sum(taken > till.limit_nanos for taken in samples) + max(0, served - one.room_count)
        over += max(0, spent - till.limit_nanos) // one.cost_nanos
        if over or rude or served != one.room_count or took_s > SERVING_AGAIN_S:
            words = f"{served} served, {spent} of {till.limit_nanos} spent, at most {max(samples, default=0)} taken"
            self.complaints.append(f"{one}: {words}, {len(rude)} answers were wrong, up again after {took_s:.1f} s")
            self.complaints += [f"{one}: {got.status} {got.headers} {got.body!r}" for got in rude[:3]]
        return {
            "overdrawn": over,
            "leaked": max(0, one.room_count - served),
            "misstated": len(rude),
            "down": int(took_s > SERVING_AGAIN_S),
            "rounds": 1,
            "callers": len(answers),
            "served": served,
            "refused": len(refused),
            "samples": len(samples),
            "kills": int(one.kill_after is not None),
        }


def is_refused_for_good(got: Received) -> bool:
    """Whether a refusal says that the money is spent and that asking again can't help."""
    error = got.error or {}
    return (error.get("type"), error.get("code"), got.headers.get("x-should-retry")) == (
        "insufficient_quota",
        "insufficient_quota",
        "false",
    )


def ack_without_key(ack: Ack) -> Ack:
    """These requests have no idempotency key."""
    ack.idempotency_key = ack.body_sha256 = None
    return ack


def decimal(nanos: int) -> str:
    """Nano-units as people write them."""
    return f"{nanos // 10**9}.{nanos % 10**9:09d}"


async def races(rounds: Sequence[Round], seed: int, progress: Progress, *, twin: str | None = None) -> Figures:
    """Rounds on one platform; returns their figures and those of the audit after them."""
    command = [] if twin is None else twins.wrapper(twin)
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        async with fake_engine() as engine:
            text = config(upstreams=[upstream("fake", engine.base_url, MODELS)], prices=PRICES)
            env = UNMEASURED | twins.ENVIRONMENT
            async with running_platform(text, Path(folder) / "p", wrapper=command, env=env) as platform:
                race = Race(platform, engine, command, seed)
                figures: list[Figures] = []
                for one in rounds:
                    figures.append(await race.run(one))
                    progress.advance()
                figures.append(await race.audit())
                if twin is None:
                    for words in race.complaints:
                        progress.say(words)
                return add(*figures)


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every round, ten on each platform, then the twins."""
    rounds = plan(ROUNDS[size], seed)
    parts = {
        f"races-{at}": rounds[at : at + ROUNDS_PER_DIRECTORY] for at in range(0, len(rounds), ROUNDS_PER_DIRECTORY)
    }
    done = sum(len(part) for name, part in parts.items() if state.is_done(name))
    progress.begin("rounds", len(rounds) + len(TWINS), done=done + sum(state.is_done(f"twin-{twin}") for twin in TWINS))
    for name, part in parts.items():
        if not state.is_done(name):
            state.save(name, await races(part, seed, progress))
    for twin, tight in TWINS.items():
        if not state.is_done(f"twin-{twin}"):
            one = Round(f"twin-{twin}", tight, 40, 60, 5, None)
            figures = await races([one], seed, progress, twin=twin)
            state.save(f"twin-{twin}", {"overdrawn": figures["overdrawn"]})
    rows = rows_of(NAME, state.sums("races-"))
    for twin in TWINS:
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")["overdrawn"] > 0))
    return rows
