"""What the gateway costs a real model: tokens/s and TTFT through Headwater beside the bare engine.

Both engines are the same child process with the same model, threads, slots and batch size; both are loaded, one is busy
at a time. A pair is one run of each, one right after the other, in alternating order; the result is the median of the
pairs' ratios. See bench/README.md.

Run: python -m bench.engine [--quick] [--models NAME,…] [--pairs 7] [--threads N] [--judge] [--out DIRECTORY]
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import peers, report
from bench.bare_engine import start_bare_engine
from bench.load import Listener, StreamSample, Target, quantile, read_stream
from bench.process import cpu_s, free_port, start
from bench.subjects import PATH, headwater_key

PROJECT = Path(__file__).resolve().parent.parent
MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")
OUTPUT_TOKENS = 64
END_TOKENS = ("0", "2", "151643", "151645")
"""How SmolLM2 and Qwen end an answer; forbidden, so that every answer runs to its cap, in both subjects alike."""
SLOTS = 8
CONTEXT_TOKENS = 1024
SEQUENTIAL_CALLS = 3  # calls one after another in a run at c = 1
RATIO_MIN = 0.97
TOPICS = ("a lighthouse", "a railway", "an orchard", "a harbour", "a mountain", "a library", "a desert", "a river")


@dataclass(frozen=True, slots=True)
class Side:
    """One way to the model: through Headwater, or the engine itself. pid: the process whose tree does the work."""

    name: str
    target: Target
    model: str
    pid: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one side: output tokens a second over the whole run, CPU for each, and each call's TTFT."""

    tokens_per_s: float
    cpu_s_per_token: float
    ttfts_s: tuple[float, ...]


class EndedEarlyError(Exception):
    """The model stopped before the cap, so this run's figure can't be compared; another prompt is to be tried."""


def prompt(model: str, call: int, trial: int) -> dict[str, object]:
    """A chat whose answer runs to the cap. The first words differ, so that no slot can reuse another call's prefix."""
    topic = TOPICS[call % len(TOPICS)]
    text = f"Story {trial}.{call}: write a long story of at least a thousand words about {topic} and the people there."
    return {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0.7,
        "logit_bias": dict.fromkeys(END_TOKENS, -100),
        "seed": 1000 * trial + call,
        "messages": [{"role": "user", "content": text}],
    }


async def ask(side: Side, call: int, trial: int) -> StreamSample:
    """One streamed chat, checked: RuntimeError when it failed, EndedEarlyError when it is shorter than the cap."""
    request = side.target.request(prompt(side.model, call, trial))
    listener = await side.target.connect(lambda: Listener(request))
    async with asyncio.timeout(300):
        await listener.done
    sample = read_stream(listener.reads, listener.sent_s)
    if sample.problem:
        raise RuntimeError(f"{side.name} failed: {sample.problem}")
    if sample.completion_tokens != OUTPUT_TOKENS or sample.finish_reason != "length":
        raise EndedEarlyError
    return sample


async def measure(side: Side, concurrency: int, trial: int) -> Run:
    """One run: at c = 1 a few calls one after another, else `concurrency` at once."""
    gc.collect()
    start_s, cpu_before_s = time.perf_counter(), cpu_s(side.pid)
    if concurrency == 1:
        samples = [await ask(side, call, trial) for call in range(SEQUENTIAL_CALLS)]
    else:
        answers = await asyncio.gather(*(ask(side, call, trial) for call in range(concurrency)), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        samples = [answer for answer in answers if isinstance(answer, StreamSample)]
    wall_s = time.perf_counter() - start_s
    tokens = OUTPUT_TOKENS * len(samples)
    cpu_s_per_token = (cpu_s(side.pid) - cpu_before_s) / tokens
    return Run(tokens / wall_s, cpu_s_per_token, tuple(s.arrivals_s[0] for s in samples))


def measure_pairs(sides: tuple[Side, Side], concurrency: int, pairs: int, first_trial: int) -> list[dict[str, Run]]:
    """`pairs` comparable pairs, the order alternating. A pair with an answer that ended early is thrown away.

    Trials are numbered from `first_trial`; a number used before would find its prompts in the engines' caches.
    """
    found: list[dict[str, Run]] = []
    for trial in range(first_trial, first_trial + 4 * pairs):
        order = sides if len(found) % 2 == 0 else sides[::-1]
        try:
            found.append({side.name: uvloop.run(measure(side, concurrency, trial)) for side in order})
        except EndedEarlyError:
            continue
        if len(found) == pairs:
            return found
    raise RuntimeError(f"only {len(found)} of {pairs} pairs ran to {OUTPUT_TOKENS} tokens at c={concurrency}")


def rows_of(model: str, concurrency: int, pairs: Sequence[dict[str, Run]]) -> list[report.Row]:
    """Medians of both sides, and the median, least and greatest ratio of a pair."""
    scenario, rows = f"{model}-c{concurrency}", []

    def add(subject: str, metric: str, value: float, unit: str) -> None:
        rows.append(report.Row(subject=subject, scenario=scenario, metric=metric, value=round(value, 4), unit=unit))

    for name in ("bare", "headwater"):
        add(name, "tokens_per_s", statistics.median(p[name].tokens_per_s for p in pairs), "1/s")
        add(name, "cpu_ms_per_token", statistics.median(p[name].cpu_s_per_token for p in pairs) * 1e3, "ms")
        add(name, "ttft_p50_ms", quantile([t for p in pairs for t in p[name].ttfts_s], 0.5) * 1e3, "ms")
    ratios = [p["headwater"].tokens_per_s / p["bare"].tokens_per_s for p in pairs]
    add("headwater", "tokens_per_s_ratio", statistics.median(ratios), "1")
    add("headwater", "tokens_per_s_ratio_min", min(ratios), "1")
    add("headwater", "tokens_per_s_ratio_max", max(ratios), "1")
    added = [quantile(p["headwater"].ttfts_s, 0.5) - quantile(p["bare"].ttfts_s, 0.5) for p in pairs]
    add("headwater", "ttft_added_ms", statistics.median(added) * 1e3, "ms")
    add("headwater", "pair_count", len(pairs), "1")
    return rows


def pull(model: str, config: Path) -> Path:
    """The model's file, fetched by name if it isn't here. The progress bar is the CLI's own."""
    argv = [sys.executable, "-m", "headwater", "models", "pull", model, "--config", str(config), "--json"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`headwater models pull {model}` failed ({done.returncode})")
    return Path(json.loads(done.stdout)["path"])


def bench_model(model: str, directory: Path, options: argparse.Namespace) -> tuple[list[report.Row], dict[str, object]]:
    """Start both sides for one model, measure at c = 1 and c = 8, stop both."""
    port = free_port()
    config = directory / "bench.toml"
    base = [
        f'[gateway]\nlisten = "127.0.0.1:{port}"',
        f'[store]\nurl = "sqlite:///{directory / "headwater.db"}"',
        f'[models]\ndirectory = "{options.model_directory.absolute()}"',
    ]
    config.write_text("\n".join(base) + "\n")
    path = pull(model, config)
    with contextlib.ExitStack() as running:
        # The socket's path has to be short, so not beside the rest.
        short = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="hw-bench-")))
        engine = start_bare_engine(
            path,
            short,
            slots=SLOTS,
            context_tokens=CONTEXT_TOKENS,
            threads=options.threads,
            batch_tokens=options.batch_tokens,
        )
        running.callback(engine.stop)
        batch_tokens = engine.status.batch_tokens  # measured by the child unless given; both sides use it
        deployment = [
            f'[[deployments]]\nname = "bench"\nmodel = "{model}"',
            f"slots = {SLOTS}\ncontext_tokens = {CONTEXT_TOKENS}",
            f"threads = {options.threads}\nbatch_tokens = {batch_tokens}",
            '[[prices]]\nmodel = "bench"\ninput = "0.10"\noutput = "0.30"',
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
        measure_pairs(sides, SLOTS, 1, first_trial=1)  # warms every slot of both; thrown away
        for concurrency in (1, SLOTS):
            print(f"{model}: c={concurrency}, {options.pairs} pairs …", file=sys.stderr, flush=True)
            pairs = measure_pairs(sides, concurrency, options.pairs, first_trial=1000 * concurrency)
            rows += rows_of(model, concurrency, pairs)
    return rows, {f"{model} n_batch": batch_tokens}


def goals_of(rows: Sequence[report.Row]) -> list[report.Goal]:
    """The promise: at c = 8 the median pair keeps 97 % of the bare engine's tokens a second."""
    figures = report.Figures(rows)
    goals = []
    for scenario in dict.fromkeys(r["scenario"] for r in rows):
        ratio = figures.get("headwater", scenario, "tokens_per_s_ratio")
        if ratio is not None and scenario.endswith(f"-c{SLOTS}"):
            low, high = (figures.get("headwater", scenario, f"tokens_per_s_ratio_{end}") for end in ("min", "max"))
            text = f"{scenario}: median ratio of tokens/s ≥ {RATIO_MIN}"
            goals.append(report.Goal(text, f"{ratio:.3f} (pairs from {low:.3f} to {high:.3f})", ratio >= RATIO_MIN))
    return goals


def main() -> int:
    """Run, write engine.json and engine.md, print the goals. 0 unless the run failed (or, with --judge, a goal)."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine", description="tokens/s and TTFT beside the bare engine"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest model only, 5 pairs")
    parser.add_argument("--models", default=",".join(MODELS), help="catalogue names, comma-separated")
    parser.add_argument("--pairs", type=int, default=7, help="comparable pairs a scenario, at least 5 for a judgement")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="threads of each engine")
    parser.add_argument("--batch-tokens", type=int, help="n_batch of both engines; unset: measured once, used for both")
    parser.add_argument("--model-directory", type=Path, default=PROJECT / "data/models", help="where models are kept")
    parser.add_argument("--judge", action="store_true", help="exit 1 when a goal is not met")
    parser.add_argument("--out", type=Path, default=PROJECT / "bench/results", help="where engine.json and .md go")
    options = parser.parse_args()
    models = options.models.split(",")
    if options.quick:
        models, options.pairs = models[:1], 5
    meta = report.describe_machine(PROJECT, "python -m bench.engine " + " ".join(sys.argv[1:]))
    meta |= {"threads": options.threads, "slots": SLOTS, "output_tokens": OUTPUT_TOKENS}
    peers.ENVIRONMENTS.mkdir(exist_ok=True)
    began, rows = time.monotonic(), []
    for model in models:
        directory = Path(tempfile.mkdtemp(prefix="run-", dir=peers.ENVIRONMENTS))
        found, facts = bench_model(model, directory, options)
        rows += found
        meta |= facts
        shutil.rmtree(directory)
    meta["wall_s"] = round(time.monotonic() - began)
    goals = goals_of(rows)
    report.Result(title="Engine benchmark", meta=meta, rows=rows, goals=goals, subjects=("bare", "headwater")).write(
        options.out, "engine"
    )
    return 1 if options.judge and not all(g.is_met for g in goals) else 0


if __name__ == "__main__":
    sys.exit(main())
