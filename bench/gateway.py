"""What a gateway costs: Headwater beside a bare upstream, LiteLLM's proxy and Portkey's gateway, in one run.

All subjects run at once, pinned to one core, and are loaded in turn, several rounds, in an order that rotates; load
and upstream share another core. Every figure is the median over rounds. See bench/README.md.

Run: python -m bench.gateway [--quick] [--judge] [--subjects bare,headwater,headwater-capped,litellm,portkey] [--out DIRECTORY]
     python -m bench.gateway --against COMMIT: this tree beside an earlier commit; results in against.json and .md
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from bench import peers, report
from bench.cells import CONNECTIONS, EXTRA_SCENARIO, SPREADS_S, Bench, Plan
from bench.process import Cores, choose_cores, free_port, start
from bench.subjects import BEFORE, NAMES, Name, Subject, launch

PROJECT = Path(__file__).resolve().parent.parent
FULL = Plan(rounds=5, warm_s=1.0, seconds=3.0, starts=3, with_install=True)
AGAINST = Plan(rounds=9, warm_s=1.0, seconds=3.0, starts=3, with_install=False)
QUICK = Plan(rounds=1, warm_s=0.7, seconds=2.0, starts=1, with_install=False)


def measure(plan: Plan, cores: Cores, names: list[Name], directory: Path) -> Bench:
    """Start everything, run every cell, stop everything (on errors and signals too)."""
    bench = Bench(plan, cores, directory)
    if plan.with_install:  # first, so that a project that can't be installed is known at once
        say("measuring installations")
        bench.installs(PROJECT, set(names))
    if "headwater" in names:
        bench.command_line()
    with contextlib.ExitStack() as running:
        port = free_port()
        upstream = start(
            [sys.executable, "-m", "bench.upstream", str(port)],
            log=directory / "upstream.log",
            core=cores.load,
            ready_url=f"http://127.0.0.1:{port}/",
            timeout_s=20,
            env=dict(os.environ) | {"PYTHONPATH": str(PROJECT)},
        )
        running.callback(upstream.stop)
        subjects: list[Subject] = []
        for name in names:
            subject = launch(name, directory, port, cores.subject)
            running.callback(subject.stop)
            subjects.append(subject)
            if subject.program:
                bench.add(name, "idle", 0, ready_s=subject.program.ready_s)
                say(f"{name}: ready in {subject.program.ready_s:.2f} s")
        time.sleep(2)  # what a program does just after it is ready is not idle
        for subject in subjects:
            bench.memory(subject, is_after_load=False)
        for round_ in range(1, plan.starts):
            for subject in subjects:
                if subject.program:
                    bench.restart(subject, port, round_)
        for subject in subjects:
            say(f"{subject.name}: warming up")
            bench.warm(subject)
        for round_ in range(plan.rounds):
            say(f"round {round_ + 1} of {plan.rounds}")
            run_round(bench, subjects[round_ % len(subjects) :] + subjects[: round_ % len(subjects)], round_)
        for subject in subjects:
            bench.strace_check(subject)
        time.sleep(2)
        for subject in subjects:
            bench.memory(subject, is_after_load=True)
    bench.disk_figures()
    return bench


def run_round(bench: Bench, subjects: list[Subject], round_: int) -> None:
    """Every scenario, every subject in turn."""
    for scenario in CONNECTIONS:
        for subject in subjects:
            bench.calls(subject, scenario, "instant", round_)
    for subject in subjects:
        if subject.name.startswith("headwater"):
            bench.calls(subject, EXTRA_SCENARIO, "instant20", round_)
    for scenario in SPREADS_S:
        ttfts_ms = {subject.name: bench.streams(subject, scenario, round_) for subject in subjects}
        floor_ms = ttfts_ms.get("bare")
        for name, ttft_ms in ttfts_ms.items():
            if name != "bare" and ttft_ms is not None and floor_ms is not None:
                bench.add(name, scenario, round_, ttft_added_ms=ttft_ms - floor_ms)


def say(text: str) -> None:
    """Progress, on the error stream."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def interrupt(_signal_number: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into the exception that stops every program on its way up."""
    raise KeyboardInterrupt


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gateway", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--quick", action="store_true", help="one short round, no installations: ≤ 3 minutes")
    parser.add_argument("--judge", action="store_true", help="exit 1 when a goal is not met")
    parser.add_argument("--subjects", default=",".join(NAMES), help="a subset, comma-separated")
    parser.add_argument("--against", metavar="COMMIT", help="only bare, this tree, and this tree as it was at COMMIT")
    parser.add_argument("--out", type=Path, default=PROJECT / "bench/results", help="where gateway.json and .md go")
    return parser.parse_args()


def main() -> int:
    """Run, write gateway.json and gateway.md, print the goals. 0 unless the run failed (or, with --judge, a goal)."""
    options = arguments()
    wanted = options.subjects.split(",")
    if unknown := set(wanted) - set(NAMES):
        print(f"no such subject: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    names = [name for name in NAMES if name in wanted]
    if options.against:
        peers.earlier(options.against)
        names = ["bare", "headwater", BEFORE]
    signal.signal(signal.SIGTERM, interrupt)
    began = time.monotonic()
    cores = choose_cores()
    if "litellm" in names:
        peers.litellm()
    if "portkey" in names:
        peers.portkey()
    meta = report.describe_machine(PROJECT, "python -m bench.gateway " + " ".join(sys.argv[1:]))
    say(f"load average {meta['load_average_at_start']}; a figure is worth something on a quiet machine only")
    os.sched_setaffinity(0, {cores.load})
    # Not in /tmp, which may be memory: the database must lie on a disk.
    peers.ENVIRONMENTS.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=peers.ENVIRONMENTS))
    plan = QUICK if options.quick else AGAINST if options.against else FULL
    bench = measure(plan, cores, names, directory)
    beside = f"LiteLLM {peers.LITELLM_VERSION}, Portkey gateway {peers.PORTKEY_VERSION}"
    meta |= {
        "peers": options.against or beside,
        "pinning": f"subject on core {cores.subject}, load and upstream on core {cores.load}",
        "rounds": f"{bench.plan.rounds} x {bench.plan.seconds:.0f} s a non-streaming cell; medians over rounds",
        "wall_s": round(time.monotonic() - began),
    }
    rows = report.rows_of(bench.samples)
    goals = report.against_goals(bench.samples) if options.against else report.goals_of(rows)
    report.Result(
        title="Gateway benchmark", meta=meta, rows=rows, goals=goals, subjects=names, samples=bench.samples
    ).write(options.out, "against" if options.against else "gateway")
    for problem in bench.problems:
        print(problem, file=sys.stderr)
    if bench.problems:
        print(f"some answers were wrong; the programs' logs are in {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 1 if options.judge and not all(g.is_met for g in goals) else 0


if __name__ == "__main__":
    sys.exit(main())
