"""Rate limits: fifty callers at once, over window after window: never above a limit, and all of it usable.

Keys of 100 tokens and of 60 requests a minute are asked again and again, at both sides of every edge most of all. What a
window held is summed up from the usage records, by the moment each request was received.
"""

import asyncio
import random
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gate.progress import Progress
from gate.rows import Figures, Row, Size, add, rows_of, twin_row
from gate.state import State
from tests.integration.bodies import chat_body
from tests.rig import limit_twins, twins
from tests.rig.admin import administer
from tests.rig.clients import Client, Received
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import fake_engine

NAME = "limits"
WINDOW_S = {"full": 60.0, "short": 2.0}
EDGES_COUNT = {"full": 5, "short": 2}
CALLERS_COUNT = 50
BURSTS = (0.004, 0.2, 0.45, 0.7, 0.996)
"""When in each window everybody asks, as a part of it: right after its beginning, right before its end, and between."""
MODEL = "m:exact"
TOKENS, REQUESTS = 100, 60
PROMPT, PROMPT_TOKENS = "one two three four five six seven", 10  # 3 for the message and one for each word
OUTPUT_TOKENS = 10
USABLE_SHARE = 0.95
SLACK_S = 1.0
TWINS = {"reads_then_writes": 0, "counts_refused": 0, "slides_its_reset": 1}
"""Broken limiters, each with the number of edges it takes to show."""
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(\d+)s")


class Caller(NamedTuple):
    """A limited key. unit: what of its limit one of its requests takes; None: they differ."""

    name: str
    key: str
    key_id: str
    limit: int
    of: str
    unit: int | None


class Answer(NamedTuple):
    """One answer, and between which moments it was asked for and given (Unix time)."""

    caller: Caller
    got: Received
    asked_s: float
    told_s: float
    is_above: bool


def duration_s(text: str) -> int:
    """Seconds of `1s`, `6m0s`, `1h0m0s`. Raises AttributeError for anything else."""
    hours, minutes, seconds = _DURATION.fullmatch(text).groups()  # type: ignore[union-attr]
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds)


def states_time(given_s: float, answer: Answer, window_s: float) -> bool:
    """Whether a time until a window's end is right to a second: that of the window of asking, or of answering."""
    ends_s = {moment // window_s * window_s + window_s for moment in (answer.asked_s, answer.told_s)}
    return any(end - answer.told_s - SLACK_S <= given_s <= end - answer.asked_s + SLACK_S for end in ends_s)


def wrong(answer: Answer, window_s: float) -> str | None:
    """What is not as it should be with an answer; None for a sound one."""
    got, headers = answer.got, answer.got.headers
    kind = answer.caller.of
    for name in ("limit", "remaining", "reset"):
        if f"x-ratelimit-{name}-{kind}" not in headers:
            return f"no x-ratelimit-{name}-{kind}"
    if int(headers[f"x-ratelimit-limit-{kind}"]) != answer.caller.limit:
        return "another limit"
    if not 0 <= int(headers[f"x-ratelimit-remaining-{kind}"]) <= answer.caller.limit:
        return "an impossible remainder"
    if not states_time(duration_s(headers[f"x-ratelimit-reset-{kind}"]), answer, window_s):
        return "a wrong x-ratelimit-reset"
    code = (got.error or {}).get("code")
    if answer.is_above:
        is_final = (got.status, code, headers.get("x-should-retry")) == (429, "above_rate_limit", "false")
        return None if is_final and "retry-after" not in headers else "a request above the limit isn't told so"
    if got.status == 200:
        return None
    if (got.status, code) != (429, "rate_limit_exceeded"):
        return "neither an answer nor a refusal"
    return None if states_time(int(headers["retry-after"]), answer, window_s) else "a wrong Retry-After"


class Rush:
    """Keys, and all that was asked with them."""

    def __init__(self, platform: Platform, window_s: float, seed: int) -> None:
        self.platform, self.window_s = platform, window_s
        self.answers: list[Answer] = []
        self._draw = random.Random(f"limits {seed}")

    async def prepare(self) -> list[Caller]:
        """A key for tokens, one for requests, and one for requests of any size under a limit of tokens."""
        return [
            await self._caller("tokens", TOKENS, "tokens", PROMPT_TOKENS + OUTPUT_TOKENS),
            await self._caller("requests", REQUESTS, "requests", 1),
            await self._caller("mixed", 3 * TOKENS, "tokens", None),
        ]

    async def _caller(self, name: str, limit: int, of: str, unit: int | None) -> Caller:
        made: dict[str, Any] = await administer(self.platform, "keys.create", name=name)
        key_id = made["details"]["id"]
        await administer(self.platform, "limits.create", key=key_id, numbers={f"{of}_per_minute": limit})
        return Caller(name, made["key"], key_id, limit, of, unit)

    async def run(self, callers: Sequence[Caller], edges_count: int) -> int:
        """Ask through so many whole windows and one more; returns the number of the first whole one."""
        first = int(time.time() // self.window_s) + 1
        for index in range(first, first + edges_count + 1):
            for part in BURSTS:
                await asyncio.sleep(max(0.0, (index + part) * self.window_s - time.time()))
                await asyncio.gather(*(self._burst(caller) for caller in callers))
        return first

    async def _burst(self, caller: Caller) -> None:
        """One request that is larger than the whole limit, then fifty at once."""
        if caller.of == "tokens":
            await self._ask(caller, 10 * caller.limit)
        await asyncio.gather(*(self._ask(caller, self._size(caller)) for _ in range(CALLERS_COUNT)))

    def _size(self, caller: Caller) -> int:
        return OUTPUT_TOKENS if caller.unit is not None else self._draw.randint(1, 80)

    async def _ask(self, caller: Caller, output_tokens: int) -> None:
        is_stream = self._draw.random() < 0.5
        body = chat_body(f"fake/{MODEL}", stream=is_stream, max_tokens=output_tokens)
        body = {**body, "messages": [{"role": "user", "content": PROMPT}]}
        asked_s = time.time()
        async with await Client.chat(self.platform.base_url, body, api_key=caller.key) as client:
            got = await client.read_to_end(timeout_s=30.0)
        self.answers.append(Answer(caller, got, asked_s, time.time(), output_tokens > caller.limit))

    def used(self, caller: Caller) -> Mapping[int, int]:
        """What each window used, from the usage records."""
        tokens = "sum(uncached_input + cache_read + cache_write + output)"
        rows = self.platform.rows(
            f"SELECT received_at_ms / {int(self.window_s * 1000)} AS at, {tokens} AS tokens, count(*) AS requests"
            " FROM usage_records WHERE key_id = ? AND outcome <> 'rejected' GROUP BY 1",
            caller.key_id,
        )
        return {row["at"]: row[caller.of] for row in rows}


def judge(
    rush: Rush, callers: Sequence[Caller], first: int, edges_count: int
) -> tuple[dict[str, int | float], list[str]]:
    """The figures of a rush, and words for each that is wrong."""
    said: list[str] = []
    over = unused = 0
    least = 1.0
    for caller in callers:
        used = rush.used(caller)
        over += sum(amount > caller.limit for amount in used.values())
        if caller.unit is None:
            continue
        usable = caller.limit // caller.unit * caller.unit
        for index in range(first, first + edges_count + 1):
            share = used.get(index, 0) / usable
            least = min(least, share)
            unused += share < USABLE_SHARE
        said.append(f"{caller.name}: {[used.get(index, 0) for index in range(first, first + edges_count + 1)]}")
    complaints = [(answer, words) for answer in rush.answers if (words := wrong(answer, rush.window_s)) is not None]
    said += [
        f"{words}: {answer.got.status} {answer.got.headers} {answer.got.body!r}" for answer, words in complaints[:5]
    ]
    return {
        "overdrawn": over,
        "beyond": unused,
        "misstated": len(complaints),
        "edges": edges_count,
        "requests": len(rush.answers),
        "served": sum(answer.got.status == 200 for answer in rush.answers),
        "refused": sum(answer.got.status == 429 for answer in rush.answers),
        "least_used_percent": round(100 * least, 1),
    }, said


async def rush_on(
    window_s: float, edges_count: int, seed: int, progress: Progress, *, limiter: str = "sound"
) -> Figures:
    """Start a platform with that limiter, ask through the windows, and say what came of it."""
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        async with fake_engine() as engine:
            text = config(upstreams=[upstream("fake", engine.base_url, [MODEL], concurrency_max=200)])
            command = limit_twins.wrapper(int(window_s * 1000), limiter)
            env = UNMEASURED | twins.ENVIRONMENT
            async with running_platform(text, Path(folder) / "p", wrapper=command, env=env) as platform:
                rush = Rush(platform, window_s, seed)
                callers = await rush.prepare()
                first = await rush.run(callers, edges_count)
                await platform.idle()
                figures, said = judge(rush, callers, first, edges_count)
                if limiter == "sound" and (figures["overdrawn"] or figures["beyond"] or figures["misstated"]):
                    for words in said:
                        progress.say(words)
                return figures


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """The sound limiter over all edges; the broken ones over short windows."""
    progress.begin("rounds", 1 + len(TWINS), done=state.is_done("rush") + sum(map(state.is_done, TWINS)))
    if not state.is_done("rush"):
        state.save("rush", await rush_on(WINDOW_S[size], EDGES_COUNT[size], seed, progress))
        progress.advance()
    for twin, edges_count in TWINS.items():
        if not state.is_done(twin):
            figures = await rush_on(WINDOW_S["short"], edges_count, seed, progress, limiter=twin)
            state.save(twin, {name: figures[name] for name in ("overdrawn", "beyond")})
            progress.advance()
    rows = rows_of(NAME, add(state.figures("rush")))
    for twin in TWINS:
        figures = state.figures(twin)
        rows.append(twin_row(NAME, twin, is_caught=bool(figures["overdrawn"] or figures["beyond"])))
    return rows
