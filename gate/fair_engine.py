"""The real engine: one organization sends fifty long prompts at once, another asks something short every two seconds.

What a batch takes is measured in the same run, under the flood: the figure of the engine's start is that of an empty context,
and the deeper a prompt is read, the longer a batch of it takes. While others read, a token is made with each batch, so it is
the gap between two tokens of the flood's answers.
"""

import asyncio
import itertools
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gate.fair_goals import Goal, at_most, told
from gate.fair_world import percentile
from tests.rig import twins
from tests.rig.admin import administer
from tests.rig.clients import Client
from tests.rig.platform import Platform, config, running_platform
from tests.rig.processes import ROOT

MODEL = "smollm2-135m-instruct"
NAME_HERE = "small"
SLOTS_COUNT = 4
PROMPTS_COUNT, PROMPT_WORDS, LONG_OUTPUT_TOKENS = 50, 300, 16
EVERY_S, SHORT_OUTPUT_TOKENS = 2.0, 4
"""Beside the flood a token takes a batch: a longer answer than this isn't over before the next call is due."""
ALONE_COUNT = 9
START_TIMEOUT_S, ANSWER_TIMEOUT_S = 120.0, 900.0


def long_prompt(number: int) -> str:
    """About 400 tokens that nobody has read yet."""
    return f"Report {number}. " + " ".join(f"Room {at * 7 % 13 + number} is {at}." for at in range(PROMPT_WORDS // 5))


async def token_times_s(platform: Platform, key: str, text: str, *, output_tokens: int) -> list[float]:
    """Seconds from asking to each content; the answer is read to its end."""
    body = {
        "model": NAME_HERE,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
    }
    begun_s = time.monotonic()
    async with await Client.chat(platform.base_url, body, api_key=key) as client:
        got = await client.read_to_end(timeout_s=ANSWER_TIMEOUT_S)
    assert got.status == 200, got.body
    return [arrival_ns / 1e9 - begun_s for arrival_ns in got.content_arrivals_ns]


async def run(*, prompts_count: int = PROMPTS_COUNT, twin: str | None = None) -> list[Goal]:
    """B's first tokens beside A's flood, against B alone."""
    models = os.environ.get("HEADWATER_MODELS__DIRECTORY", str(ROOT / "data" / "models"))
    deployment = {"name": NAME_HERE, "model": MODEL, "slots": SLOTS_COUNT, "context_tokens": 1280}
    command = [] if twin is None else twins.wrapper(twin)
    with TemporaryDirectory(prefix="hw-") as folder:
        text = config(
            deployments=[deployment],
            gateway={"first_byte_timeout_s": ANSWER_TIMEOUT_S, "total_timeout_s": 2 * ANSWER_TIMEOUT_S},
            models={"directory": str(Path(models).absolute())},
        )
        async with running_platform(text, Path(folder) / "p", wrapper=command, env=twins.ENVIRONMENT) as platform:
            ready = await platform.logged("engine_ready", timeout_s=START_TIMEOUT_S)
            keys = {}
            for name in ("flood", "quiet"):
                await administer(platform, "organizations.create", name=name)
                made: dict[str, Any] = await administer(platform, "keys.create", name=name, organization=name)
                keys[name] = made["key"]

            async def quiet(text: str) -> float:
                times_s = await token_times_s(platform, keys["quiet"], text, output_tokens=SHORT_OUTPUT_TOKENS)
                return times_s[0]

            async def long(number: int) -> list[float]:
                prompt = long_prompt(number)
                return await token_times_s(platform, keys["flood"], prompt, output_tokens=LONG_OUTPUT_TOKENS)

            for at in range(SLOTS_COUNT):  # each slot's first call reads the template's beginning, the others reuse it
                await quiet(f"Count to {at}.")
            alone = [await quiet(f"Say {at}.") for at in range(ALONE_COUNT)]
            begun_s = time.monotonic()
            flood = asyncio.gather(*(long(number) for number in range(prompts_count)))
            beside: list[float] = []
            while not flood.done():
                due_s = begun_s + EVERY_S * (len(beside) + 1)
                await asyncio.wait([flood], timeout=max(0.0, due_s - time.monotonic()))
                if not flood.done():
                    beside.append(await quiet(f"Tell me {len(beside)}."))
            answers = await flood
    batches_s = [after_s - before_s for times_s in answers for before_s, after_s in itertools.pairwise(times_s)]
    alone_s, batch_s = percentile(alone, 0.5), percentile(batches_s, 0.5)
    goal = at_most("engine_ttft_p95_s", percentile(beside, 0.95), 2 * alone_s + 2 * batch_s, " s")._replace(twin=twin)
    if twin is not None:
        return [goal]
    return [
        goal,
        told("engine_ttft_p50_s", percentile(beside, 0.5), " s"),
        told("engine_ttft_alone_s", alone_s, " s"),
        told("engine_batch_s", batch_s, " s"),
        told("engine_batch_tokens", ready["batch_tokens"]),
        told("engine_calls_beside", len(beside)),
    ]
