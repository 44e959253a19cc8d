"""Faults: every fault of an upstream, alone and with a fallback; outages; time-outs.

With a fallback, what fails before any content is answered by it within the first-byte time-out; after content nothing is
said twice. An outage costs at most a fifth more calls than are offered, and only its first requests are slow.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gate.progress import Progress
from gate.rows import Figures, Row, Size, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.auditor import audit
from tests.rig.clients import Received
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

NAME = "faults"
TOKENS = 8
SIDE_BY_SIDE = 10
FIRST_BYTE_S, IDLE_S = 0.8, 0.6
TIME_OUTS_S = {"connect": 2.0, "first_byte": 3.0, "idle": 2.5, "total": 4.0}
"""In the part about time-outs: long enough that a tenth of each is more than a commit takes."""
SLACK_S = 0.5
"""What two shared cores may add to an answer that waits for no time-out."""
WITHIN = 0.1
"""A time-out comes at its time, give or take this part of it and, for a machine shared with others, LATE_S."""
LATE_S = 0.1
REPEATS = {"full": 10, "short": 1}
SCALE = {"full": 1.0, "short": 0.5}
"""Of TIME_OUTS_S."""
OUTAGE_S = {"full": 60.0, "short": 3.0}
REQUESTS_PER_S = 20
CALLS_MAX = 1.2
QUICK_S = 0.3
"""A request that is refused or fails at once takes less."""
PROBES_MAX = 8
"""Probes in an outage of a minute, each of which a caller waits for; they come at growing intervals."""
TWINS = {
    "fails_over_after_content": "matrix",
    "breaker_never_opens": "outage-silent",
    "retries_without_budget": "outage-unbroken",
}
"""Broken builds and the round that must notice."""
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
When = Literal["before", "after", "harmless"]


class Fault(NamedTuple):
    """What the first upstream does, whether before content, after it or to nobody's harm, and the time it takes."""

    name: str
    knobs: str
    when: When
    takes_s: float = 0.0

    @property
    def model(self) -> str:
        """Its name at the fake engine."""
        return f"m:tokens={TOKENS},{self.knobs}"

    @property
    def route(self) -> str:
        """The name of the route that has a fallback for it."""
        return f"with-fallback-{self.name}"


FAULTS = (
    Fault("cut", "cut_after=0", "before"),
    Fault("cut-after-3", "cut_after=3", "after"),
    Fault("closed", "close_immediately", "before"),
    Fault("stall", "stall_after=0", "before", IDLE_S),
    Fault("stall-after-3", "stall_after=3", "after", IDLE_S),
    Fault("silence", "silent", "before", FIRST_BYTE_S),
    Fault("bad-line", "bad_json_after=0", "harmless"),
    Fault("bad-line-after-3", "bad_json_after=3", "harmless"),
    Fault("garbage", "garbage", "before"),
    Fault("429", "status=429,retry_after=30", "before"),
    Fault("500", "status=500", "before"),
    Fault("error-in-200", "error_in_200_after=0", "before"),
    Fault("error-in-200-after-3", "error_in_200_after=3", "after"),
    Fault("slow", "slow_headers_ms=300", "harmless", 0.3),
    Fault("slow-tokens", "gap_ms=30", "harmless", TOKENS * 0.03),
)


@dataclass(slots=True)
class Told:
    """What one request was answered, and when."""

    got: Received
    asked_s: float
    took_s: float


async def ask(platform: Platform, model: str, *, is_stream: bool) -> Told:
    """Ask and time it."""
    asked_s = time.monotonic()
    got = await platform.ask(chat_body(model, stream=is_stream))
    return Told(got, asked_s, time.monotonic() - asked_s)


# -- the matrix --------------------------------------------------------------------------------------------------------


def matrix_config(engine: FakeEngineHandle) -> str:
    """Each fault alone, and as the first target of a route. The breaker is out of it: each request meets its fault."""
    return config(
        upstreams=[
            upstream("first", engine.base_url, [fault.model for fault in FAULTS], failures_max=0, retries_max=0),
            upstream("second", engine.base_url, [f"m:tokens={TOKENS}"]),
        ],
        routes={fault.route: [f"first/{fault.model}", f"second/m:tokens={TOKENS}"] for fault in FAULTS},
        gateway={"first_byte_timeout_s": FIRST_BYTE_S, "idle_timeout_s": IDLE_S},
    )


async def matrix(repeats: int, progress: Progress, *, twin: str | None = None) -> Figures:
    """Every fault, streamed and not, with one upstream and with two, so many times."""
    asked = [
        (fault, has_fallback, is_stream)
        for _ in range(repeats)
        for fault in FAULTS
        for has_fallback in (False, True)
        for is_stream in (False, True)
    ]
    wrapper = twins.wrapper(twin) if twin else ()
    env = twins.ENVIRONMENT | UNMEASURED if twin else UNMEASURED
    places = asyncio.Semaphore(SIDE_BY_SIDE)
    complaints: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hw-") as directory:
        async with (
            fake_engine() as engine,
            running_platform(matrix_config(engine), Path(directory) / "p", wrapper=wrapper, env=env) as platform,
        ):

            async def one(fault: Fault, has_fallback: bool, is_stream: bool) -> None:
                async with places:
                    model = fault.route if has_fallback else f"first/{fault.model}"
                    told = await ask(platform, model, is_stream=is_stream)
                    record = await platform.record(told.got.headers["x-request-id"])
                    calls_count = len(platform.attempts(record["request_id"]))
                    says = judge(fault, told, calls_count, has_fallback=has_fallback, is_stream=is_stream)
                    complaints.extend(f"{model}, {'streamed' if is_stream else 'whole'}: {words}" for words in says)
                    progress.advance()

            await asyncio.gather(*(one(*case) for case in asked))
            await platform.idle()
            found = audit(platform.database, await engine.settled(0))
    complaints += map(str, found.findings)
    if twin is None:
        for words in complaints:
            progress.say(words)
    return {"requests": len(asked), "beyond": len(complaints) - len(found.findings), **found.metrics}


def judge(fault: Fault, told: Told, calls_count: int, *, has_fallback: bool, is_stream: bool) -> Iterator[str]:
    """What is wrong with an answer."""
    got = told.got
    is_served = fault.when == "harmless" or (fault.when == "before" and has_fallback)
    calls_expected = 2 if fault.when == "before" and has_fallback else 1
    if (got.status == 200 and got.error is None) != is_served:
        yield f"answered {got.status}, {got.error}"
    if calls_count != calls_expected:
        yield f"{calls_count} calls"
    if is_stream:
        content = TOKENS if is_served else 3 if fault.when == "after" else 0
        if got.content_count != content:
            yield f"{got.content_count} pieces of content, not {content}"
    if told.took_s > fault.takes_s * (1 + WITHIN) + SLACK_S:
        yield f"took {told.took_s:.2f} s"


# -- outages -----------------------------------------------------------------------------------------------------------


class Outage(NamedTuple):
    """What an upstream does for a while; has_breaker: without, the budget of retries alone must bound the calls."""

    knobs: Mapping[str, object]
    has_breaker: bool = True


OUTAGES = {
    "500": Outage({"status": 500}),
    "closed": Outage({"close_immediately": True}),
    "silent": Outage({"silent": True}),
    "unbroken": Outage({"status": 500}, has_breaker=False),
}


async def outage(name: str, lasts_s: float, progress: Progress, *, twin: str | None = None) -> Figures:
    """Requests come all the while; the only upstream stops answering, and answers again."""
    kind, model = OUTAGES[name], f"m:tokens={TOKENS}"
    breaker = {} if kind.has_breaker else {"failures_max": 0}
    text = config(upstreams=[upstream("one", "{}", [model], **breaker)], gateway={"first_byte_timeout_s": FIRST_BYTE_S})
    wrapper = twins.wrapper(twin) if twin else ()
    env = twins.ENVIRONMENT | UNMEASURED if twin else UNMEASURED
    with tempfile.TemporaryDirectory(prefix="hw-") as directory:
        async with (
            fake_engine() as engine,
            running_platform(
                text.replace('"{}"', f'"{engine.base_url}"'), Path(directory) / "p", wrapper=wrapper, env=env
            ) as platform,
        ):
            before = await offer(platform, f"one/{model}", 1.0)
            calls_before = len(engine.truth().attempts)
            await engine.set_knobs(**kind.knobs)
            down = await offer(platform, f"one/{model}", lasts_s)
            calls_count = len(engine.truth().attempts) - calls_before
            await engine.reset_knobs()
            ended_s = time.monotonic()
            while (told := await ask(platform, f"one/{model}", is_stream=False)).got.status != 200:
                after_s = float(told.got.headers.get("retry-after", "1"))
                if time.monotonic() - ended_s > 2 * lasts_s + 40:
                    break
                await asyncio.sleep(min(after_s, 1.0))  # many clients; one of them comes back each second
            recovered_s = time.monotonic() - ended_s
            await platform.idle()
            found = audit(platform.database, await engine.settled(0))
    began_s = down[0].asked_s
    slow = [told for told in down if told.took_s > QUICK_S]
    later = [told for told in slow if told.asked_s > began_s + 2 * FIRST_BYTE_S]
    is_slow_kind = "silent" in kind.knobs
    complaints = [f"{told.got.status} before the outage" for told in before if told.got.status != 200]
    if calls_count > CALLS_MAX * len(down):
        complaints.append(f"{calls_count} calls for {len(down)} requests")
    if kind.has_breaker and len(later) > (PROBES_MAX if is_slow_kind else 0.01 * len(down)):
        complaints.append(f"{len(later)} requests were slow after the first ones")
    if told.got.status != 200:
        complaints.append(f"it had not recovered after {recovered_s:.0f} s")
    complaints += [
        f"503 with Retry-After {told.got.headers.get('retry-after')}"
        for told in down
        if told.got.status == 503 and not 1 <= float(told.got.headers.get("retry-after", "0")) <= 38
    ]
    if twin is None:
        for words in [*complaints, *map(str, found.findings)]:
            progress.say(f"{name}: {words}")
    return {
        "requests": len(before) + len(down),
        f"offered_{name}": len(down),
        f"calls_{name}": calls_count,
        f"slow_{name}": len(slow),
        f"recovered_ms_{name}": round(1000 * recovered_s),
        "beyond": len(complaints),
        **found.metrics,
    }


async def offer(platform: Platform, model: str, lasts_s: float) -> list[Told]:
    """Send a request so often, whatever becomes of those before; every second one streamed."""
    count, began_s = int(lasts_s * REQUESTS_PER_S), time.monotonic()

    async def one(number: int) -> Told:
        await asyncio.sleep(began_s + number / REQUESTS_PER_S - time.monotonic())
        return await ask(platform, model, is_stream=number % 2 == 0)

    return await asyncio.gather(*(one(number) for number in range(count)))


# -- time-outs ---------------------------------------------------------------------------------------------------------


@contextmanager
def black_hole() -> Iterator[str]:
    """An address that takes no connection and refuses none: its backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


async def time_outs(repeats: int, scale: float, progress: Progress) -> Figures:
    """Each time-out by itself, streamed and not."""
    silent, stalling, steady = "m:silent", "m:tokens=9,stall_after=2", "m:tokens=5000,gap_ms=20"
    off = {"failures_max": 0, "retries_max": 0}
    limit_s = {name: scale * seconds for name, seconds in TIME_OUTS_S.items()}
    wanted_s = {
        "hole/m": limit_s["connect"],
        f"quick/{silent}": limit_s["first_byte"],
        f"quick/{stalling}": limit_s["idle"],
        f"steady/{steady}": limit_s["total"],
    }
    complaints, worst = [], 0.0
    with black_hole() as hole, tempfile.TemporaryDirectory(prefix="hw-") as directory:
        async with fake_engine() as engine:
            text = config(
                upstreams=[
                    upstream("hole", hole, ["m"], connect_timeout_s=limit_s["connect"], **off),
                    upstream(
                        "quick",
                        engine.base_url,
                        [silent, stalling],
                        first_byte_timeout_s=limit_s["first_byte"],
                        idle_timeout_s=limit_s["idle"],
                        **off,
                    ),
                    upstream("steady", engine.base_url, [steady], total_timeout_s=limit_s["total"], **off),
                ]
            )
            async with running_platform(text, Path(directory) / "p", env=UNMEASURED) as platform:
                for _ in range(repeats):
                    cases = [(model, is_stream) for model in wanted_s for is_stream in (False, True)]
                    all_told = await asyncio.gather(
                        *(ask(platform, model, is_stream=is_stream) for model, is_stream in cases)
                    )
                    for (model, _), told in zip(cases, all_told, strict=True):
                        off_s = told.took_s - wanted_s[model]
                        worst = max(worst, abs(off_s) / wanted_s[model])
                        if not -WITHIN * wanted_s[model] <= off_s <= WITHIN * wanted_s[model] + LATE_S:
                            complaints.append(f"{model}: {told.took_s:.2f} s instead of {wanted_s[model]} s")
                        if told.got.error is None or told.got.error["code"] != "timeout":
                            complaints.append(f"{model}: {told.got.error}")
                        progress.advance()
                await platform.idle()
                found = audit(platform.database, await engine.settled(0))
    for words in [*complaints, *map(str, found.findings)]:
        progress.say(words)
    return {
        "requests": repeats * 2 * len(wanted_s),
        "time_out_off_percent_max": round(100 * worst, 1),
        "beyond": len(complaints),
        **found.metrics,
    }


# -- all of it ---------------------------------------------------------------------------------------------------------


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:  # noqa: ARG001 nothing is drawn
    """The matrix, the time-outs, each outage, then the twins."""
    repeats, lasts_s = REPEATS[size], OUTAGE_S[size]
    matrices_count = repeats + sum(caught_by == "matrix" for caught_by in TWINS.values())
    progress.begin("requests", matrices_count * len(FAULTS) * 4 + repeats * 8 + len(TWINS))
    if not state.is_done("round-matrix"):
        state.save("round-matrix", await matrix(repeats, progress))
    if not state.is_done("round-timeouts"):
        state.save("round-timeouts", await time_outs(repeats, SCALE[size], progress))
    todo = [name for name in OUTAGES if not state.is_done(f"round-outage-{name}")]
    saved = await asyncio.gather(*(outage(name, lasts_s, progress) for name in todo))
    for name, figures in zip(todo, saved, strict=True):
        state.save(f"round-outage-{name}", figures)

    async def twin_round(twin: str, caught_by: str) -> None:
        state.save(f"twin-{twin}", await _twin_round(twin, caught_by, progress))
        progress.advance()

    left = {twin: caught_by for twin, caught_by in TWINS.items() if not state.is_done(f"twin-{twin}")}
    await asyncio.gather(*(twin_round(twin, caught_by) for twin, caught_by in left.items()))
    rows = rows_of(NAME, state.sums("round-"))
    for twin in TWINS:
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")["beyond"] > 0))
    return rows


async def _twin_round(twin: str, caught_by: str, progress: Progress) -> Figures:
    if caught_by == "matrix":
        figures = await matrix(1, progress, twin=twin)
    else:
        figures = await outage(caught_by.removeprefix("outage-"), OUTAGE_S["short"], progress, twin=twin)
    return {"beyond": figures["beyond"]}
