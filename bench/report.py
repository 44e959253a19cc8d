"""Rows, medians, goals and tables of the benchmarks. Pure but for `Result.write` and `describe_machine`."""

import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

UNITS = {
    "req_per_s": "1/s", "p50_ms": "ms", "p99_ms": "ms", "cpu_us_per_request": "us", "cpu_us_per_chunk": "us",
    "ttft_added_ms": "ms", "ttft_p50_ms": "ms", "ttft_p99_ms": "ms", "gap_p99_ms": "ms", "bunched_ratio": "1",
    "rss_mb": "MB", "pss_mb": "MB", "rss_after_load_mb": "MB", "ready_s": "s", "install_mb": "MB",
    "install_llamacpp_mb": "MB", "help_s": "s", "fdatasync_p50_ms": "ms", "fdatasync_p99_ms": "ms",
    "fsyncs_per_settlement": "1", "fsyncs_per_commit_strace": "1", "fsync_p50_ms": "ms", "fsync_p99_ms": "ms", "error_count": "1",
}  # fmt: skip


AGAINST_MIN = 0.95
"""What a figure of this tree must be, at least, of the same figure of an earlier commit."""


class Row(TypedDict):
    """One figure of the result."""

    subject: str
    scenario: str
    metric: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric of one subject in one round of one scenario."""

    subject: str
    scenario: str
    round: int
    metric: str
    value: float


def rows_of(samples: Iterable[Sample]) -> list[Row]:
    """The median over rounds of every metric (the sum for error_count), in the order they first came."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for s in samples:
        groups.setdefault((s.subject, s.scenario, s.metric), []).append(s.value)
    return [
        {
            "subject": subject,
            "scenario": scenario,
            "metric": metric,
            "value": round(sum(values) if metric == "error_count" else statistics.median(values), 4),
            "unit": UNITS[metric],
        }
        for (subject, scenario, metric), values in groups.items()
    ]


class Figures:
    """Rows by (subject, scenario, metric)."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.by_key = {(r["subject"], r["scenario"], r["metric"]): r["value"] for r in rows}

    def get(self, subject: str, scenario: str, metric: str) -> float | None:
        """The value, or None when this run did not measure it."""
        return self.by_key.get((subject, scenario, metric))


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise and what this run says of it. is_met is None when a part wasn't measured."""

    text: str
    value: str
    is_met: bool | None


def throughput_goals(fdatasync_p50_ms: float) -> tuple[float, float]:
    """How many times LiteLLM's and Portkey's req/s at c = 16 are asked for on this disk.

    20 and 2 up to 0.5 ms, 15 and 1.5 from 2.3 ms on, on a straight line between.
    """
    share = min(1.0, max(0.0, (fdatasync_p50_ms - 0.5) / (2.3 - 0.5)))
    return 20 - 5 * share, 2 - 0.5 * share


def at_most(text: str, value: float | None, bound: float, unit: str) -> Goal:
    """A goal that is met when `value` is no more than `bound`."""
    return Goal(
        text, "not measured" if value is None else f"{value:.4g} {unit}", None if value is None else value <= bound
    )


def ratio_goal(text: str, over: float | None, under: float | None, least: float) -> Goal:
    """A goal that is met when over / under is at least `least`."""
    if over is None or not under:
        return Goal(text, "not measured", None)
    return Goal(text, f"{over / under:.2f}×", over / under >= least)


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """Every promise about the gateway's cost, judged by this run's rows."""
    figures = Figures(rows)

    def of(subject: str, scenario: str, metric: str) -> float | None:
        return figures.get(subject, scenario, metric)

    disk = of("headwater", "nonstream-c16", "fdatasync_p50_ms")
    over_litellm, over_portkey = throughput_goals(disk if disk is not None else 0.0)
    c16 = {subject: of(subject, "nonstream-c16", "req_per_s") for subject in ("headwater", "litellm", "portkey")}
    fsyncs = of("headwater", "nonstream-c64", "fsyncs_per_settlement")
    goals = [
        ratio_goal(f"req/s at c=16 ≥ {over_litellm:.1f}× LiteLLM's", c16["headwater"], c16["litellm"], over_litellm),
        ratio_goal(f"req/s at c=16 ≥ {over_portkey:.2f}× Portkey's", c16["headwater"], c16["portkey"], over_portkey),
        at_most("fsyncs a settlement at c=64 ≤ 1/8", fsyncs, 1 / 8, ""),
    ]
    for scenario in ("nonstream-c1", "nonstream-c16", "nonstream-c64"):
        capped, free = (of(name, scenario, "req_per_s") for name in ("headwater-capped", "headwater"))
        goals.append(ratio_goal(f"{scenario}: req/s with budgets and credit ≥ 0.9 of those without", capped, free, 0.9))
    for scenario, added_max in (("stream-100", 30.0), ("stream-burst-100", 90.0)):
        chunk, theirs = of("headwater", scenario, "cpu_us_per_chunk"), of("litellm", scenario, "cpu_us_per_chunk")
        added = of("headwater", scenario, "ttft_added_ms")
        goals += [
            at_most(f"{scenario}: CPU a chunk ≤ 75 µs", chunk, 75, "µs"),
            ratio_goal(f"{scenario}: CPU a chunk ≤ 1/15 of LiteLLM's", theirs, chunk, 15),
            at_most(f"{scenario}: added TTFT p50 ≤ {added_max:.0f} ms", added, added_max, "ms"),
            at_most(f"{scenario}: bunched chunks 0 %", of("headwater", scenario, "bunched_ratio"), 0.0, ""),
        ]
    errors = [r["value"] for r in rows if r["subject"].startswith("headwater") and r["metric"] == "error_count"]
    goals += [
        at_most("resident, idle ≤ 110 MB", of("headwater", "idle", "rss_mb"), 110, "MB"),
        at_most("install with the embedded engine ≤ 230 MB", of("headwater", "idle", "install_llamacpp_mb"), 230, "MB"),
        at_most("install without it ≤ 120 MB", of("headwater", "idle", "install_mb"), 120, "MB"),
        at_most("headwater --help ≤ 0.5 s", of("headwater", "idle", "help_s"), 0.5, "s"),
        at_most("no wrong answer in any scenario", sum(errors) if errors else None, 0, "errors"),
    ]
    return goals


def paired_ratio(samples: Iterable[Sample], scenario: str, metric: str) -> float | None:
    """How many times `headwater-before`'s figure `headwater`'s is: the median over rounds, since machines drift."""
    found: dict[str, dict[int, float]] = {"headwater": {}, "headwater-before": {}}
    for sample in samples:
        if (sample.scenario, sample.metric) == (scenario, metric) and sample.subject in found:
            found[sample.subject][sample.round] = sample.value
    ours, before = found.values()
    ratios = [ours[round_] / before[round_] for round_ in ours.keys() & before.keys() if before[round_]]
    return statistics.median(ratios) if ratios else None


def against_goals(samples: Sequence[Sample]) -> list[Goal]:
    """This tree isn't below 0.95 of an earlier commit: as many requests a second, and no more CPU than that allows."""
    goals = []
    for scenario, metric, text in (
        *((f"nonstream-c{count}", "req_per_s", "req/s") for count in (1, 16, 64)),
        *((f"nonstream-c{count}", "cpu_us_per_request", "CPU a request") for count in (1, 16, 64)),
        *((scenario, "cpu_us_per_chunk", "CPU a chunk") for scenario in ("stream-100", "stream-burst-100")),
    ):
        ratio = paired_ratio(samples, scenario, metric)
        is_rate = metric == "req_per_s"
        bound = AGAINST_MIN if is_rate else 1 / AGAINST_MIN
        is_met = None if ratio is None else ratio >= bound if is_rate else ratio <= bound
        value = "not measured" if ratio is None else f"{ratio:.3f}"
        goals.append(Goal(f"{scenario}: {text} {'≥' if is_rate else '≤'} {bound:.3g} of before", value, is_met))
    wrong = sum(sample.value for sample in samples if sample.metric == "error_count")
    return [*goals, at_most("no wrong answer in any scenario", wrong, 0, "errors")]


def summary(goals: Sequence[Goal]) -> list[str]:
    """One line a goal: met, not met, or not measured."""
    word = {True: "met    ", False: "NOT MET", None: "-      "}
    return [f"{word[g.is_met]}  {g.text}: {g.value}" for g in goals]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that one benchmark leaves behind. samples: the single rounds behind the medians."""

    title: str
    meta: dict[str, object]
    rows: Sequence[Row]
    goals: Sequence[Goal]
    subjects: Sequence[str]
    samples: Sequence[Sample] = ()

    def markdown(self) -> str:
        """What was run, one line a scenario and metric, then the goals."""
        figures = Figures(self.rows)
        lines = [f"# {self.title}", "", *(f"- {name}: {value}" for name, value in self.meta.items()), ""]
        lines += ["| Scenario | Metric | " + " | ".join(self.subjects) + " |"]
        lines += ["| --- | --- |" + " ---: |" * len(self.subjects)]
        for scenario, metric in dict.fromkeys((r["scenario"], r["metric"]) for r in self.rows):
            cells = [figures.get(subject, scenario, metric) for subject in self.subjects]
            shown = ["" if v is None else f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.4g}" for v in cells]
            lines.append(f"| {scenario} | {metric} | " + " | ".join(shown) + " |")
        lines += ["", "## Goals", "", "| Goal | This run | |", "| --- | --- | --- |"]
        verdict = {True: "met", False: "**not met**", None: "not measured"}
        lines += [f"| {g.text} | {g.value} | {verdict[g.is_met]} |" for g in self.goals]
        return "\n".join(lines) + "\n"

    def write(self, directory: Path, name: str) -> None:
        """Write NAME.json and NAME.md into `directory`; print the table and one line a goal."""
        directory.mkdir(parents=True, exist_ok=True)
        content = {
            "meta": self.meta,
            "rows": self.rows,
            "goals": [asdict(g) for g in self.goals],
            "rounds": [asdict(s) for s in self.samples],
        }
        (directory / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        text = self.markdown()
        (directory / f"{name}.md").write_text(text)
        print(text)
        print("\n".join(summary(self.goals)))


def describe_machine(project: Path, command: str) -> dict[str, object]:
    """Date, commit, CPU, kernel, Python, load average and the command: the head of every result file."""

    def git(*argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=project, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", "src", "bench/*.py", "pyproject.toml")
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": (git("rev-parse", "--short=12", "HEAD") or "none") + (" with uncommitted changes" if changed else ""),
        "cpu": f"{len(models)} x {models[0] if models else platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_at_start": " ".join(Path("/proc/loadavg").read_text().split()[:3]),
        "command": command,
    }
