"""The gate's command line: run rigs one after another, write a result file for each, judge it.

Run: python -m gate [t4 t9 …] [--size full|short] [--seed N] [--fresh]
"""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

import msgspec
from rich.console import Console

from gate import machine
from gate.progress import Bar, Lines, Progress
from gate.rigs import RIGS, load
from gate.rows import Size, missed, sentence
from gate.state import State
from headwater.cli.output import print_error
from headwater.errors import OperatorError

HERE = Path(__file__).resolve().parent
SEED = 1
IMPOSSIBLE, INTERRUPTED = 2, 130


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gate", description="Long runs that must hold before a release: nothing lost, nothing doubled."
    )
    parser.add_argument("tests", nargs="*", metavar="TEST", help=f"which (default: all of {', '.join(RIGS)})")
    parser.add_argument("--size", choices=("full", "short"), default="full")
    parser.add_argument("--seed", type=int, default=SEED, help=f"draws everything that is drawn (default {SEED})")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run has done")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="DIRECTORY")
    parser.add_argument("--state", type=Path, default=HERE / "state", metavar="DIRECTORY", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if unknown := [name for name in options.tests if name not in RIGS]:
        parser.error(f"there is no test {', '.join(unknown)}; there are {', '.join(RIGS)}")
    return options


def run_one(test: str, size: Size, state: State, results: Path) -> list[str]:
    """Run one rig to its end, write its result, print its sentence; returns the goals it missed."""
    with contextlib.ExitStack() as stack:
        console = Console(stderr=True, highlight=False)
        progress: Progress = stack.enter_context(Bar(test, console)) if console.is_terminal else Lines(test)
        if state.is_resumed:
            progress.say("goes on where the last run stopped; --fresh starts over")
        rows = asyncio.run(load(test).run(size, state.seed, state, progress))
    duration_s = round(state.elapsed_s, 1)
    result = {
        "test": test,
        "size": size,
        "seeds": state.seeds,
        "machine": machine.describe(),
        "started_at": state.started_at,
        "duration_s": duration_s,
        "rows": rows,
    }
    results.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(result), indent=1)
    # A short run must not take the place of a full one's result.
    name = f"{test}.json" if size == "full" else f"{test}.short.json"
    (results / name).write_bytes(encoded + b"\n")
    state.discard()
    faults = missed(rows)
    for fault in faults:
        print(f"MISSED {fault}")
    print(sentence(test, rows, duration_s), flush=True)
    return faults


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rigs: 0 when every goal is met, 1 when one is missed, 2 when it can't run here, 130 when interrupted."""
    options = arguments(argv)
    tests: list[str] = list(dict.fromkeys(options.tests)) or list(RIGS)
    faults: list[str] = []
    for test in tests:
        state = State.open(options.state, test, options.size, options.seed, is_fresh=options.fresh)
        try:
            faults += run_one(test, options.size, state, options.results)
        except OperatorError as error:
            print_error(error)
            return IMPOSSIBLE
        except KeyboardInterrupt:
            print(f"Stopped. The same command goes on with {test} where it stopped.", file=sys.stderr)
            return INTERRUPTED
    if len(tests) > 1:
        print(f"{len(tests)} tests: {f'{len(faults)} goals missed' if faults else 'every goal met'}.")
    return 1 if faults else 0
