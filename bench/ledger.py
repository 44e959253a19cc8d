"""What the ledger costs: a reservation in memory, settlements on a disk, empty and with millions of records.

Run: python -m bench.ledger [--quick] [--records 5000000] [--judge] [--out DIRECTORY] [--directory DIRECTORY]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import report
from bench.report import Figures, Goal, Row, at_most

PROJECT = Path(__file__).resolve().parent.parent
ROUNDS = 3
BYTES_PER_RECORD = 900
"""About, with its reservation, resolution, attempt and indexes."""
RATE_MIN = 2_000
SLOWER_MAX = 1.5
COMPARED = ("settle_per_s", "stream_per_s", "settle_reserve_cpu_p99_us", "start_ms", "usage_query_ms")
"""What must be about the same with millions of records as without."""
UNITS = {"_per_s": "1/s", "_us": "us", "_ms": "ms", "_mb": "MB", "_s": "s", "_count": "1", "_each": "1"}


def figures_of(*arguments: str) -> dict[str, float]:
    """Run one of the benchmark's programs and read the JSON object it prints."""
    command = [sys.executable, "-m", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "src")])}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout or "{}")
    return found


def rows_of(subject: str, scenario: str, figures: Mapping[str, float]) -> list[Row]:
    """One row for each figure; its unit stands at the end of its name."""
    return [
        {
            "subject": subject,
            "scenario": scenario,
            "metric": metric,
            "value": round(value, 4),
            "unit": next(unit for end, unit in UNITS.items() if metric.endswith(end)),
        }
        for metric, value in figures.items()
    ]


def bench_disk(directory: Path, records_count: int, seconds: float) -> tuple[list[Row], dict[str, float]]:
    """Both databases in turn, several rounds each; medians. Returns the rows, and what filling the larger one took."""
    began_s = time.monotonic()
    databases = {"empty": (directory / "empty.db", 0), "full": (directory / "full.db", records_count)}
    for database, count in databases.values():
        figures_of("bench.ledger_load", str(database), str(count))
    facts = {"load_s": round(time.monotonic() - began_s, 1)}
    found: dict[str, list[dict[str, float]]] = {subject: [] for subject in databases}
    for number in range(ROUNDS):
        for subject in databases if number % 2 == 0 else reversed(databases):
            database = databases[subject][0]
            found[subject].append(figures_of("bench.ledger_writer", str(database), "--seconds", str(seconds)))
    rows = []
    for subject, rounds in found.items():
        medians = {metric: statistics.median(one[metric] for one in rounds) for metric in rounds[0]}
        medians["database_mb"] = databases[subject][0].stat().st_size / 1e6
        rows += rows_of(subject, "disk", medians)
    return rows, facts


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """Every promise about the ledger's cost, judged by this run's rows."""
    figures = Figures(rows)

    def of(subject: str, scenario: str, metric: str) -> float | None:
        return figures.get(subject, scenario, metric)

    goals = [
        at_most("no I/O wait in a reservation or settlement", of("empty", "memory", "io_waits_count"), 0, ""),
        at_most("CPU of a reservation, p99 ≤ 50 µs", of("empty", "memory", "reserve_cpu_p99_us"), 50, "µs"),
    ]
    for kind in ("settle", "stream"):
        rate = of("empty", "disk", f"{kind}_per_s") or 0.0
        goals.append(Goal(f"{kind}: settlements ≥ {RATE_MIN:,}/s", f"{rate:,.0f} /s", rate >= RATE_MIN))
        goals.append(at_most(f"{kind}: fsyncs each ≤ 1/8", of("empty", "disk", f"{kind}_fsyncs_each"), 1 / 8, ""))
    for metric in COMPARED:
        empty, full = of("empty", "disk", metric), of("full", "disk", metric)
        over, under = (empty, full) if metric.endswith("_per_s") else (full, empty)
        ratio = over / under if over is not None and under else None
        goals.append(at_most(f"{metric}: within {SLOWER_MAX}× of the empty database", ratio, SLOWER_MAX, "×"))
    return goals


def main() -> int:
    """Run, write ledger.json and ledger.md, print the goals. 0 unless the run failed (or, with --judge, a goal)."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description="what the ledger costs")
    parser.add_argument("--quick", action="store_true", help="a tenth of the keys, 100,000 records, one second a cell")
    parser.add_argument("--records", type=int, default=5_000_000, help="settled requests in the larger database")
    parser.add_argument("--judge", action="store_true", help="exit 1 when a goal is not met")
    parser.add_argument("--out", type=Path, default=PROJECT / "bench/results", help="where ledger.json and .md go")
    parser.add_argument("--directory", type=Path, help="where the databases are made (default: a temporary directory)")
    options = parser.parse_args()
    records_count, seconds = (min(options.records, 100_000), 1.0) if options.quick else (options.records, 4.0)
    sizes = ("--keys", "100000", "--organizations", "1000", "--calls", "50000") if options.quick else ()
    meta = report.describe_machine(PROJECT, "python -m bench.ledger " + " ".join(sys.argv[1:]))
    began_s = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="hw-bench-", dir=options.directory))
    try:
        needed, free = 2 * records_count * BYTES_PER_RECORD, shutil.disk_usage(directory).free
        if free < needed:
            print(f"{directory} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed.", file=sys.stderr)
            return 2
        rows = rows_of("empty", "memory", figures_of("bench.ledger_book", *sizes))
        found, facts = bench_disk(directory, records_count, seconds)
    finally:
        shutil.rmtree(directory)
    rows += found
    meta |= {"records": records_count, **facts, "wall_s": round(time.monotonic() - began_s)}
    goals = goals_of(rows)
    report.Result(title="Ledger benchmark", meta=meta, rows=rows, goals=goals, subjects=("empty", "full")).write(
        options.out, "ledger"
    )
    return 1 if options.judge and not all(goal.is_met for goal in goals) else 0


if __name__ == "__main__":
    sys.exit(main())
