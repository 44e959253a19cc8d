"""What a burst of requests with one long beginning waits for its first token: through Headwater beside the bare engine.

Both engines are the same child process with the same model, threads, slots and batch size; both are loaded, one is busy at
a time. A pair is one run of each, one right after the other, in alternating order. Three loads: `warm`, a burst whose
beginning one request has read before; `cold`, a burst that nobody came before; `mixed`, as many at once, no two alike.

The ratio of the mixed load is near 1, and what else uses the machine's memory moves either side by a tenth and more, from one
second to the next as from one minute to the next. So it is taken over many pairs of short runs, and its standard error is told.

Run: python -m bench.prefix [--quick] [--pairs 3] [--mixed-pairs 40] [--threads N] [--out DIRECTORY]. Exit 1 when a goal is not met.
"""

import argparse
import asyncio
import contextlib
import gc
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import peers, report
from bench.bare_engine import start_bare_engine
from bench.engine import END_TOKENS, PROJECT, Side, pull
from bench.load import Listener, Target, quantile, read_stream
from bench.process import cpu_s, free_port, start
from bench.subjects import PATH, headwater_key

MODEL = "smollm2-135m-instruct"
SLOTS = 8
CONTEXT_TOKENS = 1280
OUTPUT_TOKENS = 24
BURST = 8
RULES = 34
"""So many rules make a system prompt of about 940 tokens."""
MIXED_RULES, MIXED_OUTPUT_TOKENS = 1, 8
"""The mixed load: prompts of about 70 tokens."""
FOLLOWERS_SHARE_MAX = 1 / 5
MIXED_RATIO_MIN = 0.97
QUESTIONS = (
    "the ferry",
    "a tug",
    "the mail boat",
    "a whaler",
    "the pilot",
    "a barge",
    "the dredger",
    "a yacht",
    "a trawler",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one side: each call's TTFT of the burst, its output tokens a second, and its CPU, engine and gateway."""

    ttfts_s: tuple[float, ...]
    tokens_per_s: float
    cpu_s: float


def system_prompt(name: str, rules_count: int) -> str:
    """A text that begins with `name`, so that no two names share anything."""
    rules = " ".join(
        f"Rule {i}: ship number {i * 7 % 97} may moor at quay {i % 9} only after the master has shown paper {i % 13}."
        for i in range(rules_count)
    )
    return f"{name} is the harbour you answer for. {rules}"


def chat(system: str, question: str, seed: int, *, output_tokens: int = OUTPUT_TOKENS) -> dict[str, object]:
    """A chat whose answer runs to the cap."""
    return {
        "model": "bench",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": output_tokens,
        "temperature": 0.7,
        "logit_bias": dict.fromkeys(END_TOKENS, -100),
        "seed": seed,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": f"May {question} moor at quay {seed % 9}?"},
        ],
    }


async def ask(side: Side, body: dict[str, object]) -> float:
    """One streamed chat, checked; its TTFT in seconds. Raises RuntimeError when it failed or is shorter than the cap."""
    request = side.target.request(body)
    listener = await side.target.connect(lambda: Listener(request))
    async with asyncio.timeout(400):
        await listener.done
    sample = read_stream(listener.reads, listener.sent_s)
    if sample.problem or sample.completion_tokens != body["max_tokens"]:
        raise RuntimeError(f"{side.name} failed: {sample.problem or f'{sample.completion_tokens} tokens'}")
    return sample.arrivals_s[0]


async def measure(side: Side, load: str, trial: int) -> Run:
    """One run: a burst of BURST requests; for `warm` a request with the same beginning is answered before."""
    gc.collect()
    shared = system_prompt(f"Port {trial} of {load}", RULES)
    if load == "warm":
        await ask(side, chat(shared, "the first ship", trial))
    output_tokens = MIXED_OUTPUT_TOKENS if load == "mixed" else OUTPUT_TOKENS
    bodies = [
        chat(
            shared if load != "mixed" else system_prompt(f"Port {trial}.{call}", MIXED_RULES),
            QUESTIONS[call % len(QUESTIONS)],
            1000 * trial + call,
            output_tokens=output_tokens,
        )
        for call in range(BURST)
    ]
    start_s, cpu_before_s = time.perf_counter(), cpu_s(side.pid)
    ttfts_s = await asyncio.gather(*(ask(side, body) for body in bodies))
    wall_s = time.perf_counter() - start_s
    return Run(tuple(ttfts_s), output_tokens * BURST / wall_s, cpu_s(side.pid) - cpu_before_s)


def followers(load: str, run: Run) -> Sequence[float]:
    """The TTFTs of those who came after somebody with the same beginning: in a cold burst all but the first answered."""
    return run.ttfts_s if load == "warm" else sorted(run.ttfts_s)[1:]


def measure_pairs(sides: tuple[Side, Side], load: str, pairs: int, first_trial: int) -> list[dict[str, Run]]:
    """`pairs` pairs, the order alternating."""
    found: list[dict[str, Run]] = []
    for number in range(pairs):
        order = sides if number % 2 == 0 else sides[::-1]
        found.append({side.name: uvloop.run(measure(side, load, first_trial + number)) for side in order})
        one = {name: round(quantile(followers(load, run), 0.5), 2) for name, run in found[-1].items()}
        rates = {name: round(run.tokens_per_s, 2) for name, run in found[-1].items()}
        print(
            f"{load} {number + 1}/{pairs}: followers' TTFT p50 s {one}, tokens/s {rates}", file=sys.stderr, flush=True
        )
    return found


def geometric_mean(ratios: Sequence[float]) -> tuple[float, float | None]:
    """Of ratios, and its standard error (None of a single one). Twice as fast counts alike for either side: 2 and 1/2 make 1."""
    mean = statistics.geometric_mean(ratios)
    if len(ratios) == 1:
        return mean, None
    return mean, mean * statistics.stdev(math.log(ratio) for ratio in ratios) / math.sqrt(len(ratios))


def rows_of(load: str, pairs: Sequence[dict[str, Run]]) -> list[report.Row]:
    """Both sides' medians; the median, least and greatest ratio of a pair, and the geometric mean with its standard error."""
    rows: list[report.Row] = []

    def add(subject: str, metric: str, value: float, unit: str) -> None:
        rows.append(report.Row(subject=subject, scenario=load, metric=metric, value=round(value, 4), unit=unit))

    for name in ("bare", "headwater"):
        ttfts_s = [ttft for pair in pairs for ttft in followers(load, pair[name])]
        add(name, "followers_ttft_p50_ms", quantile(ttfts_s, 0.5) * 1e3, "ms")
        add(name, "followers_ttft_max_ms", max(ttfts_s) * 1e3, "ms")
        add(name, "tokens_per_s", statistics.median(pair[name].tokens_per_s for pair in pairs), "1/s")
        add(name, "cpu_s", statistics.median(pair[name].cpu_s for pair in pairs), "s")
    shares = [quantile(followers(load, p["headwater"]), 0.5) / quantile(followers(load, p["bare"]), 0.5) for p in pairs]
    ratios = [pair["headwater"].tokens_per_s / pair["bare"].tokens_per_s for pair in pairs]
    for metric, values in (("followers_ttft_share", shares), ("tokens_per_s_ratio", ratios)):
        add("headwater", metric, statistics.median(values), "1")
        add("headwater", f"{metric}_min", min(values), "1")
        add("headwater", f"{metric}_max", max(values), "1")
    mean, error = geometric_mean(ratios)
    add("headwater", "tokens_per_s_ratio_mean", mean, "1")
    if error is not None:
        add("headwater", "tokens_per_s_ratio_error", error, "1")
    add("headwater", "pair_count", len(pairs), "1")
    return rows


def bench(directory: Path, options: argparse.Namespace) -> tuple[list[report.Row], dict[str, object]]:
    """Start both sides, measure every load, stop both."""
    port = free_port()
    config = directory / "bench.toml"
    base = [
        f'[gateway]\nlisten = "127.0.0.1:{port}"',
        f'[store]\nurl = "sqlite:///{directory / "headwater.db"}"',
        f'[models]\ndirectory = "{options.model_directory.absolute()}"',
    ]
    config.write_text("\n".join(base) + "\n")
    path = pull(MODEL, config)
    with contextlib.ExitStack() as running:
        # The socket's path has to be short, so not beside the rest.
        short = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="hw-bench-")))
        engine = start_bare_engine(
            path, short, slots=SLOTS, context_tokens=CONTEXT_TOKENS, threads=options.threads, batch_tokens=None
        )
        running.callback(engine.stop)
        batch_tokens = engine.status.batch_tokens  # measured by the child; both sides use it
        deployment = [
            f'[[deployments]]\nname = "bench"\nmodel = "{MODEL}"',
            f"slots = {SLOTS}\ncontext_tokens = {CONTEXT_TOKENS}",
            f"threads = {options.threads}\nbatch_tokens = {batch_tokens}",
            '[[prices]]\nmodel = "bench"\ninput = "0.10"\ncached_input = "0.01"\noutput = "0.30"',
        ]
        config.write_text("\n".join(base + deployment) + "\n")
        program = start(
            [sys.executable, "-m", "headwater", "up", "--config", str(config), "--no-first-question"],
            log=directory / "headwater.log",
            core=None,
            ready_url=f"http://127.0.0.1:{port}/ready",
            timeout_s=240,
        )
        running.callback(program.stop)
        key = headwater_key(config)
        sides = (
            Side("headwater", Target(port, PATH, (f"authorization: Bearer {key}",)), "bench", program.pid),
            Side("bare", engine.target, "bench", engine.process.pid),
        )
        rows: list[report.Row] = []
        for number, load in enumerate(options.loads.split(",")):
            pairs = options.mixed_pairs if load == "mixed" else options.pairs
            rows += rows_of(load, measure_pairs(sides, load, pairs, 1000 * (number + 1)))
    return rows, {"n_batch": batch_tokens}


def goals_of(rows: Sequence[report.Row]) -> list[report.Goal]:
    """Followers of a prefix that was read wait a fifth at most; whoever shares nothing loses nothing."""
    figures = report.Figures(rows)
    goals = []
    share = figures.get("headwater", "warm", "followers_ttft_share")
    if share is not None:
        text = "warm: followers' TTFT p50 ≤ 1/5 of the bare engine's"
        goals.append(report.Goal(text, f"1/{1 / share:.1f}", share <= FOLLOWERS_SHARE_MAX))
    ratio = figures.get("headwater", "mixed", "tokens_per_s_ratio_mean")
    if ratio is not None:
        text = f"mixed: mean ratio of tokens/s ≥ {MIXED_RATIO_MIN}"
        goals.append(report.Goal(text, f"{ratio:.3f}", ratio >= MIXED_RATIO_MIN))
    return goals


def sentence(rows: Sequence[report.Row]) -> str:
    """The figures in one sentence."""
    figures = report.Figures(rows)
    parts = []
    for load in ("warm", "cold"):
        share = figures.get("headwater", load, "followers_ttft_share")
        ours, bare = (figures.get(name, load, "followers_ttft_p50_ms") for name in ("headwater", "bare"))
        if share is not None and ours is not None and bare is not None:
            parts.append(
                f"followers of a {load} prefix waited {ours / 1e3:.2f} s for their first token instead of"
                f" {bare / 1e3:.1f} s (1/{1 / share:.1f})"
            )
    ratio, error = (figures.get("headwater", "mixed", f"tokens_per_s_ratio_{name}") for name in ("mean", "error"))
    if ratio is not None:
        spread = "" if error is None else f" ± {error:.3f}"
        parts.append(f"with nothing shared throughput was {ratio:.3f}{spread} of the bare engine's")
    return f"{SLOTS} slots, {BURST} at once: " + "; ".join(parts) + "."


def main() -> int:
    """Run, write prefix.json and prefix.md, print the goals and the sentence. 0 when every goal is met."""
    parser = argparse.ArgumentParser(prog="python -m bench.prefix", description="bursts with one beginning")
    parser.add_argument("--quick", action="store_true", help="one pair of each")
    parser.add_argument("--loads", default="warm,cold,mixed", help="comma-separated")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of each load with bursts")
    parser.add_argument("--mixed-pairs", type=int, default=40, help="pairs of the mixed load, whose ratio is near 1")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="threads of each engine")
    parser.add_argument("--model-directory", type=Path, default=PROJECT / "data/models", help="where models are kept")
    parser.add_argument("--out", type=Path, default=PROJECT / "bench/results", help="where prefix.json and .md go")
    options = parser.parse_args()
    if options.quick:
        options.pairs = options.mixed_pairs = 1
    meta = report.describe_machine(PROJECT, "python -m bench.prefix " + " ".join(sys.argv[1:]))
    meta |= {"model": MODEL, "threads": options.threads, "slots": SLOTS, "burst": BURST, "output_tokens": OUTPUT_TOKENS}
    peers.ENVIRONMENTS.mkdir(exist_ok=True)
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=peers.ENVIRONMENTS))
    rows, facts = bench(directory, options)
    shutil.rmtree(directory)
    meta |= facts | {"wall_s": round(time.monotonic() - began)}
    goals = goals_of(rows)
    report.Result(title="Prefix benchmark", meta=meta, rows=rows, goals=goals, subjects=("bare", "headwater")).write(
        options.out, "prefix"
    )
    print(sentence(rows))
    return 0 if all(goal.is_met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
