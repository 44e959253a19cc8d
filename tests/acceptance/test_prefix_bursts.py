"""Bursts with one long beginning on a real model: who reads it, who waits, what it costs; and never across organizations."""

import asyncio
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.acceptance.person import SMOL, Up, up
from tests.rig.clients import Client, Received

pytestmark = pytest.mark.model

CONFIG = f"""
[[deployments]]
name = "smol"
model = "{SMOL}"
slots = 4
context_tokens = 2048
threads = 1
batch_tokens = 40

[[prices]]
model = "smol"
input = "1.00"
cached_input = "0.10"
output = "2.00"
"""
WAIT_S = 240
BURST = 4
PROBES = 8
DISTANCE_MAX = 6 / 8
"""Eight samples each: a greater distance comes by chance less than once in a hundred times (Smirnov's exact distribution)."""
OPENING_TOKENS = 8
"""How every prompt begins in this model's chat template: a slot has that from its organization's request before."""
OWN_TOKENS = 24
"""A question and what the template puts after it."""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """SmolLM2 in four slots."""
    arguments = ["--listen", "127.0.0.1:0", "--no-first-question"]
    with up(tmp_path_factory.mktemp("bursts"), config=CONFIG, arguments=arguments) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def keys(platform: Up) -> dict[str, str]:
    """A key of each of two new organizations."""
    made = {}
    for name in ("victim", "prober"):
        assert platform.command("organizations", "create", name).returncode == 0
        done = platform.command("keys", "create", "--organization", name, "--json")
        made[name] = json.loads(done.stdout)["key"]
    return made


def rules(name: str, count: int) -> str:
    """A system prompt of about 25 tokens a rule; two names share nothing."""
    said = (
        f"Rule {n}: ship number {n * 7 % 97} may moor at quay {n % 9} only with paper {n % 13}." for n in range(count)
    )
    return f"{name} is the harbour you answer for. {' '.join(said)}"


def body(system: str, question: str) -> dict[str, Any]:
    return {
        "model": "smol",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 8,
        "temperature": 0,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
    }


async def ask(platform: Up, key: str, system: str, question: str) -> tuple[Received, float]:
    """The whole answer, and the seconds to its first content."""
    began_ns = asyncio.get_running_loop().time() * 1e9
    async with await Client.chat(platform.base_url, body(system, question), api_key=key) as client:
        got = await client.read_to_end(timeout_s=WAIT_S)
    assert (got.status, got.is_done_seen) == (200, True), got.error
    return got, (got.content_arrivals_ns[0] - began_ns) / 1e9


def cached(got: Received) -> int:
    assert got.usage is not None
    details: dict[str, int] = got.usage["prompt_tokens_details"]
    return details["cached_tokens"]


def total(got: Received) -> int:
    assert got.usage is not None
    count: int = got.usage["prompt_tokens"]
    return count


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference between the shares of both samples that are no greater than some value."""
    at = sorted([*one, *other])
    return max(abs(bisect_right(sorted(one), x) / len(one) - bisect_right(sorted(other), x) / len(other)) for x in at)


async def burst(platform: Up, key: str, system: str, count: int = BURST) -> list[tuple[Received, float]]:
    return await asyncio.gather(*(ask(platform, key, system, f"May ship {n} moor at quay 3?") for n in range(count)))


async def test_one_reads_and_the_others_are_charged_for_what_was_cached(platform: Up, keys: dict[str, str]) -> None:
    before = {
        what: platform.metric("headwater_gateway_prefix_sharing_total", pool="smol", what=what)
        for what in ("held", "saved", "restored", "failed")
    }
    answers = await burst(platform, keys["victim"], rules("Burst", 18), 2 * BURST)
    leaders = [got for got, _ in answers if cached(got) <= OPENING_TOKENS]
    followers = [got for got, _ in answers if cached(got) > OPENING_TOKENS]
    assert len(leaders) == 1, "the shared part is read once"
    assert all(cached(got) > total(got) - OWN_TOKENS for got in followers)
    for got in (*leaders, *followers):
        row = platform.row(got.headers["x-request-id"])
        assert (row["uncached_input"], row["cache_read"]) == (total(got) - cached(got), cached(got))
        assert row["cost_nanos"] == 1000 * row["uncached_input"] + 100 * row["cache_read"] + 2000 * row["output"]
    reasons = [
        platform.rows("SELECT reason FROM attempts WHERE request_id = ?", got.headers["x-request-id"])[0]["reason"]
        for got in followers
    ]
    assert any(reason.startswith("copied prefix of slot ") for reason in reasons), reasons
    after = {
        what: platform.metric("headwater_gateway_prefix_sharing_total", pool="smol", what=what) - before[what]
        for what in before
    }
    assert after["failed"] == 0
    assert after["saved"] == 1
    assert after["restored"] == len([reason for reason in reasons if reason.startswith("copied")]) >= BURST - 1
    assert after["held"] == 2 * BURST - 1


async def test_the_leaders_answer_is_what_it_would_have_been_alone(platform: Up, keys: dict[str, str]) -> None:
    system = rules("Twice", 18)
    answers = await burst(platform, keys["victim"], system)
    leading = next(got for got, _ in answers if cached(got) <= OPENING_TOKENS)
    question = next(n for n, (got, _) in enumerate(answers) if got is leading)
    alone, _ = await ask(platform, keys["prober"], system, f"May ship {question} moor at quay 3?")
    assert cached(alone) <= OPENING_TOKENS
    assert leading.text == alone.text


async def test_a_leader_that_leaves_is_followed_by_the_next(platform: Up, keys: dict[str, str]) -> None:
    system = rules("Left", 18)
    async with await Client.chat(
        platform.base_url, body(system, "May the ferry moor?"), api_key=keys["victim"]
    ) as first:
        others = asyncio.ensure_future(burst(platform, keys["victim"], system))
        held = platform.metric("headwater_gateway_prefix_sharing_total", pool="smol", what="held")
        async with asyncio.timeout(30):
            while platform.metric("headwater_gateway_prefix_sharing_total", pool="smol", what="held") < held + BURST:
                await asyncio.sleep(0.05)
        first.leave("rst")
        answers = await others
    assert len([got for got, _ in answers if cached(got) > total(got) - OWN_TOKENS]) >= BURST - 1


async def test_nothing_tells_another_organization_what_was_read_or_saved(
    platform: Up, keys: dict[str, str], figure: Callable[[str], None]
) -> None:
    """CacheProbe: cached tokens, and time to the first token, of prompts another organization has just sent, and fresh ones.

    The times are compared by Kolmogorov and Smirnov's two-sample statistic, which asks nothing of their distribution.
    """
    probes_s: list[float] = []
    fresh_s: list[float] = []
    own_s: list[float] = []
    for number in range(PROBES):
        system = rules(f"Secret {number}", 8)
        await burst(platform, keys["victim"], system, 2)  # read by one, saved, restored for the other
        own, one_s = await ask(platform, keys["victim"], system, "May the mail boat moor?")
        assert cached(own) > total(own) - OWN_TOKENS
        own_s.append(one_s)
        order = [(system, probes_s), (rules(f"Nobody's {number}", 8), fresh_s)]
        for prompt, times_s in order if number % 2 else order[::-1]:
            probe, one_s = await ask(platform, keys["prober"], prompt, "May the mail boat moor?")
            assert cached(probe) <= OPENING_TOKENS
            times_s.append(one_s)
    said = ", ".join(
        f"{name} {median(times_s) * 1e3:.0f} ms"
        for name, times_s in (("own", own_s), ("another's", probes_s), ("fresh", fresh_s))
    )
    figure(f"time to first token of a prompt that was sent before, median of {PROBES}: {said}")
    assert distance(own_s, fresh_s) > DISTANCE_MAX, "the probe sees a cache where there is one"
    assert distance(probes_s, fresh_s) <= DISTANCE_MAX


def test_states_are_in_memory_without_a_name(platform: Up, tmp_path: Path) -> None:
    """Nobody else can open what is saved, and nothing of it is left on a disk."""
    engine = Path(f"/proc/{platform.engine('smol')}/fd")
    states = [link.readlink().name for link in engine.iterdir() if "slot-state" in str(link.readlink())]
    assert len(states) == 4
    assert all(state.endswith("(deleted)") for state in states)
