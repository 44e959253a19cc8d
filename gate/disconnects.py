"""T3: clients that leave, in every way and at any token, stop the work within a second and are charged for what was made.

Streaming or not, on every API there is (`APIS`). Afterwards nothing is left: no request, no place, no hold, no descriptor.
"""

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from gate.progress import Progress
from gate.rows import Figures, Row, Size, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import MESSAGES, chat_body
from tests.rig import twins
from tests.rig.admin import administer
from tests.rig.auditor import Ack, audit
from tests.rig.clients import Client, call
from tests.rig.fault_proxy import FaultProxy
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.rig.tail import TruthTail, marked

NAME = "t3"
LEAVERS = {"full": 1000, "short": 60}
LEAVERS_PER_DIRECTORY = 100
TWIN_LEAVERS = 8
CLIENTS_COUNT = 16
DECODE, FLOOD = "m:tokens=5000,gap_ms=10", "m:endless,big_chunk=3900000,gap_ms=20"
QUICK = "m:tokens=3"
MODELS = (DECODE, FLOOD, QUICK)
STALL_S, CANCEL_S = 0.5, 1.0
GONE_TIMEOUT_S, SLOW_S = 4.0, 0.02
TWINS = {"leavers_pay_nothing": "misstated", "nobody_watches": "leaked"}
"""Broken builds and the metric that must notice."""
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
How = Literal["fin", "rst", "half_close", "stall", "slow", "proxy_fin", "proxy_rst"]
STREAM_HOWS: tuple[How, ...] = ("fin", "rst", "half_close", "stall", "slow", "proxy_fin", "proxy_rst")
WHOLE_HOWS: tuple[How, ...] = ("fin", "rst", "half_close", "proxy_rst")
"""An answer in one piece leaves nothing to be read slowly."""
Body = Callable[[str, bool, list[dict[str, Any]], int], dict[str, Any]]


def chat(model: str, is_stream: bool, messages: list[dict[str, Any]], choices_count: int) -> dict[str, Any]:
    """A chat request."""
    more = {"n": choices_count} if choices_count > 1 else {}
    return chat_body(model, stream=is_stream, messages=messages, **more)


APIS: Mapping[str, Body] = {"/v1/chat/completions": chat}
"""Every API that makes an engine work, by its route, with what makes a request's body."""


class Leaver(NamedTuple):
    """One who leaves. number: of its prompt's length, by which its engine's calls are known; after: pieces of content."""

    number: int
    path: str
    is_stream: bool
    how: How
    upstream: str
    choices_count: int
    after: int

    @property
    def name(self) -> str:
        """Its own request id."""
        return f"leaver-{self.number}"


@dataclass(slots=True)
class Left:
    """How it went. left_ns: when it left (monotonic); within_s: how soon the engine must know."""

    leaver: Leaver
    left_ns: int
    within_s: float = CANCEL_S
    delivered_ns: list[int] = field(default_factory=list)


def plan(count: int, seed: int) -> list[Leaver]:
    """Who leaves and how; every way on every API in turn."""
    draw = random.Random(f"leavers {seed}")
    kinds = [(path, True, how) for path in APIS for how in STREAM_HOWS]
    kinds += [(path, False, how) for path in APIS for how in WHOLE_HOWS]
    leavers = []
    for number in range(count):
        path, is_stream, how = kinds[number % len(kinds)]
        # One answer's first chunk may fit into the kernel's buffers; two don't.
        choices = 2 if draw.random() < 0.15 or how == "stall" else 1
        leavers.append(
            Leaver(number, path, is_stream, how, draw.choice(["sure", "counting"]), choices, draw.randint(1, 40))
        )
    return leavers


class Crowd:
    """Plays leavers against one platform."""

    def __init__(self, platform: Platform, engine: FakeEngineHandle, key: str) -> None:
        self.platform, self.engine, self._key = platform, engine, key
        self._tail = TruthTail(engine.truth_path)

    async def leave(self, one: Leaver) -> Left:
        """Ask, leave as planned, return when that was."""
        address = self.platform.root_url.removeprefix("http://")
        if not one.how.startswith("proxy"):
            return await self._leave(one, self.platform.root_url)
        async with FaultProxy.between(address) as proxy:
            if one.is_stream:
                proxy.set(truncate_after=500 + 180 * one.after, truncate_mode=one.how.removeprefix("proxy_"))
            return await self._leave(one, f"http://{proxy.address}", proxy)

    async def _leave(self, one: Leaver, url: str, proxy: FaultProxy | None = None) -> Left:
        model = f"{one.upstream}/{FLOOD if one.how == 'stall' else DECODE}"
        messages = marked(one.number)
        body = msgspec.json.encode(APIS[one.path](model, one.is_stream, messages, one.choices_count))
        headers = {"x-request-id": one.name, "authorization": f"Bearer {self._key}"}
        async with await Client.connect(url, receive_bytes_max=4096) as client:
            await client.send("POST", one.path, body, headers)
            left = Left(one, 0)
            if not one.is_stream:
                await self._tail.wait_begun(messages, count=one.choices_count)
                await asyncio.sleep(one.after / 200)
            elif one.how == "slow":
                for wanted in range(one.after):
                    await client.read_tokens(wanted)
                    await asyncio.sleep(SLOW_S)
            elif one.how == "stall":
                await client.read_until(lambda got: got.status is not None)
            elif proxy is None:
                await client.read_tokens(one.after)
            else:
                await client.read_to_end()  # cut in the middle
            left.left_ns = time.monotonic_ns()
            if one.how == "stall":
                left.within_s += STALL_S
                await self._gone(one)
            elif proxy is not None:
                proxy.rst()
            else:
                client.leave("fin" if one.how == "slow" else one.how)  # type: ignore[arg-type]
                if one.how == "half_close":
                    await self._gone(one)
            left.delivered_ns = client.received.content_arrivals_ns
            return left

    async def fds_in_use(self) -> int:
        """How many descriptors the platform has once everything that it opens at its first requests is open."""
        for path, make in APIS.items():
            for is_stream in (True, False):
                body = make(f"sure/{QUICK}", is_stream, MESSAGES, 1)
                headers = {"authorization": f"Bearer {self._key}"}
                got = await call(self.platform.root_url, "POST", path, body, headers=headers)
                assert got.status == 200, got.body
        await self.platform.idle()
        return self.platform.fds_count()

    async def _gone(self, one: Leaver) -> None:
        """Stay connected until the platform has settled with this client."""
        with contextlib.suppress(TimeoutError):  # the judge will miss its record
            await until(lambda: self._record(one), timeout_s=GONE_TIMEOUT_S)

    def _record(self, one: Leaver) -> list[dict[str, Any]]:
        return self.platform.rows("SELECT 1 FROM usage_records WHERE client_request_id = ?", one.name)


@contextlib.asynccontextmanager
async def crowded_platform(*, twin: str | None) -> AsyncIterator[Crowd]:
    """A platform whose callers pay beforehand, sound or a twin, until the block ends."""
    command = [] if twin is None else twins.wrapper(twin)
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        async with fake_engine() as engine:
            counting = upstream("counting", engine.base_url, MODELS)
            sure = upstream("sure", engine.base_url, MODELS, running_counts="timings_per_token")
            gateway = {"write_stall_timeout_s": STALL_S, "drain_timeout_s": 0.5}
            text = config(upstreams=[counting, sure], gateway=gateway)
            env = UNMEASURED | twins.ENVIRONMENT
            async with running_platform(text, Path(folder) / "p", wrapper=command, env=env) as platform:
                await administer(platform, "organizations.create", name="acme", is_prepaid=True)
                await administer(platform, "grants.create", organization="acme", amount="100")
                await administer(platform, "budgets.create", organization="acme", limit="90", period="day")
                made = await administer(platform, "keys.create", name="acme key", organization="acme")
                yield Crowd(platform, engine, made["key"])


async def leave_all(
    leavers: Sequence[Leaver], progress: Progress, *, twin: str | None = None
) -> Mapping[str, int | float]:
    """Play them all on one platform and judge what is left."""
    figures: dict[str, int | float] = dict.fromkeys(("lost", "doubled", "overdrawn", "leaked", "misstated"), 0)
    complaints: list[str] = []
    async with crowded_platform(twin=twin) as crowd:
        platform, places = crowd.platform, asyncio.Semaphore(CLIENTS_COUNT)
        before = await crowd.fds_in_use()

        async def one(leaver: Leaver) -> Left:
            async with places:
                left = await crowd.leave(leaver)
                progress.advance()
                return left

        went = await asyncio.gather(*map(one, leavers))
        complaints += await _left_behind(platform, before)
        figures["leaked"] += len(complaints)
        stopped = await platform.stop()
        late, slowest_s, absent = _judge(crowd, went)
        complaints += late + absent
        figures["leaked"] += len(late)
        figures["lost"] += len(absent)
        found = audit(platform.database, await crowd.engine.settled(0), acks=_acks(platform, went))
        complaints += map(str, found.findings)
        for metric, value in found.metrics.items():
            figures[metric] += value
        figures["down"] = int(stopped != 0)
        if twin is None:
            for words in complaints:
                progress.say(words)
        figures |= {"leavers": len(went), "cancel_ms_max": round(slowest_s * 1000)}
        figures |= {how: sum(left.leaver.how == how for left in went) for how in STREAM_HOWS}
    return figures


async def _left_behind(platform: Platform, fds_before: int) -> list[str]:
    """What is still there of requests whose clients have gone."""
    said = []
    with contextlib.suppress(TimeoutError):
        await platform.idle(timeout_s=GONE_TIMEOUT_S)
    live = {name: value for name, value in (await platform.metrics()).items() if "live_requests" in name and value}
    said += [f"still live: {live}"] if live else []
    with contextlib.suppress(TimeoutError):
        await until(lambda: platform.fds_count() <= fds_before, timeout_s=3.0)
    fds = platform.fds_count()
    said += [f"{fds} descriptors, {fds_before} before"] if fds > fds_before else []
    sql = "SELECT count(*) AS n FROM reservations WHERE id NOT IN (SELECT reservation_id FROM resolutions)"
    holds = platform.rows(sql)[0]["n"]
    said += [f"{holds} reservations are open"] if holds else []
    return said


def _judge(crowd: Crowd, went: Sequence[Left]) -> tuple[list[str], float, list[str]]:
    """Whose engine heard of it late; the slowest in seconds (what stalls, less the time it may stall); who has no record."""
    calls = {attempt.request_id: attempt for attempt in crowd.engine.truth().attempts}
    late, absent, slowest_s = [], [], 0.0
    for left in went:
        records = crowd.platform.rows("SELECT * FROM usage_records WHERE client_request_id = ?", left.leaver.name)
        if len(records) != 1 or records[0]["outcome"] != "client_gone":
            absent.append(f"{left.leaver}: {[record['outcome'] for record in records]}")
            continue
        rows = crowd.platform.attempts(records[0]["request_id"])
        if len(rows) != left.leaver.choices_count:
            absent.append(f"{left.leaver}: {len(rows)} calls")
        for row in rows:
            attempt = calls.get(row["id"])
            if attempt is None:  # the client left before the call was on its way
                absent += [f"{left.leaver}: {row['output']} tokens of no engine"] if row["output"] else []
                continue
            took_s = ((attempt.aborted_at_ns or time.monotonic_ns()) - left.left_ns) / 1e9
            slowest_s = max(slowest_s, took_s - left.within_s + CANCEL_S)
            if took_s > left.within_s:
                late.append(f"{left.leaver}: the engine went on for {took_s:.2f} s")
    return late, slowest_s, absent


def _acks(platform: Platform, went: Sequence[Left]) -> list[Ack]:
    """What leavers were sent, for the auditor: they may not be billed for less."""
    ids = {row["client_request_id"]: row["request_id"] for row in platform.records()}
    return [
        Ack(request_id=ids[left.leaver.name], status=200, is_complete=False, delivered_ns=left.delivered_ns)
        for left in went
        if left.leaver.name in ids
    ]


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every leaver, a hundred on each platform, then the twins."""
    leavers, step = plan(LEAVERS[size], seed), LEAVERS_PER_DIRECTORY
    parts = {f"leavers-{at}": leavers[at : at + step] for at in range(0, len(leavers), step)}
    done = sum(len(part) for name, part in parts.items() if state.is_done(name))
    done += TWIN_LEAVERS * sum(state.is_done(f"twin-{twin}") for twin in TWINS)
    progress.begin("leavers", len(leavers) + TWIN_LEAVERS * len(TWINS), done=done)
    for name, part in parts.items():
        if not state.is_done(name):
            state.save(name, await leave_all(part, progress))
    quick = [one for one in plan(LEAVERS["full"], seed) if one.how in ("fin", "rst")][:TWIN_LEAVERS]

    async def twin_round(twin: str, metric: str) -> None:
        figures = await leave_all(quick, progress, twin=twin)
        state.save(f"twin-{twin}", {metric: figures[metric]})

    todo = {twin: metric for twin, metric in TWINS.items() if not state.is_done(f"twin-{twin}")}
    await asyncio.gather(*(twin_round(twin, metric) for twin, metric in todo.items()))
    rows = rows_of(NAME, _summed(state, list(parts)))
    for twin, metric in TWINS.items():
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")[metric] > 0))
    return rows


def _summed(state: State, names: Sequence[str]) -> Figures:
    """All rounds together; of the slowest cancellations the slowest."""
    slowest = max(state.figures(name)["cancel_ms_max"] for name in names)
    return {**state.sums("leavers-"), "cancel_ms_max": slowest}
