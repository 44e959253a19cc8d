"""The cells of the gateway benchmark: one subject in one scenario once, and the samples taken from it."""

import contextlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import disk, load, peers, upstream
from bench.process import Cores, memory_mb, pinned, read_url
from bench.report import Sample
from bench.subjects import Subject, launch

STREAM_COUNT = 100
CONNECTIONS = {"nonstream-c1": 1, "nonstream-c16": 16, "nonstream-c64": 64}
EXTRA_SCENARIO = "nonstream-c16-20chunks"  # Headwater only: its upstream stream in 20 chunks, not one; not judged
SPREADS_S = {"stream-100": 1.0, "stream-burst-100": 0.0}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    rounds: int
    warm_s: float
    seconds: float
    starts: int
    with_install: bool


class Bench:
    """One run: the subjects while they live, and the samples taken from them."""

    def __init__(self, plan: Plan, cores: Cores, directory: Path) -> None:
        self.plan, self.cores, self.directory = plan, cores, directory
        self.samples: list[Sample] = []
        self.problems: list[str] = []
        self.disk_times_s: dict[tuple[str, str], list[float]] = {}

    def add(self, subject: str, scenario: str, round_: int, **metrics: float) -> None:
        self.samples += [Sample(subject, scenario, round_, metric, value) for metric, value in metrics.items()]

    def add_errors(self, subject: str, scenario: str, round_: int, count: int, first: str) -> None:
        """Note wrong answers: they are figures too, and the first is kept to be shown."""
        self.add(subject, scenario, round_, error_count=count)
        if count:
            self.problems.append(f"{subject} {scenario}: {count} wrong answers, the first: {first}")

    # ---- one cell: one subject in one scenario once ----

    def calls(self, subject: Subject, scenario: str, model: str, round_: int) -> None:
        """A closed loop of callers that don't stream."""
        with self.books(subject, scenario, round_):
            result = uvloop.run(
                load.run_calls(
                    subject.target,
                    subject.model_prefix + model,
                    upstream.INSTANT_TEXT,
                    connections=CONNECTIONS.get(scenario, 16),
                    warm_s=self.plan.warm_s,
                    seconds=self.plan.seconds,
                    cpu_s=subject.cpu_s,
                )
            )
        self.add_errors(subject.name, scenario, round_, result.error_count, result.first_error)
        if not result.latencies_s:
            return
        count = len(result.latencies_s)
        self.add(
            subject.name,
            scenario,
            round_,
            req_per_s=count / result.wall_s,
            p50_ms=load.quantile(result.latencies_s, 0.5) * 1e3,
            p99_ms=load.quantile(result.latencies_s, 0.99) * 1e3,
            **({"cpu_us_per_request": result.cpu_s / count * 1e6} if subject.program else {}),
        )

    def streams(self, subject: Subject, scenario: str, round_: int) -> float | None:
        """A wave of streams. Returns its median TTFT in ms, None when no stream brought text."""
        with self.books(subject, scenario, round_):
            result = uvloop.run(
                load.run_streams(
                    subject.target,
                    subject.model_prefix + "stream",
                    upstream.STREAM_TEXT,
                    streams=STREAM_COUNT,
                    spread_s=SPREADS_S[scenario],
                    timeout_s=90,
                    cpu_s=subject.cpu_s,
                )
            )
        self.add_errors(subject.name, scenario, round_, result.error_count, result.first_error)
        if not result.ttfts_s:
            return None
        ttft_p50_ms = load.quantile(result.ttfts_s, 0.5) * 1e3
        self.add(
            subject.name,
            scenario,
            round_,
            ttft_p50_ms=ttft_p50_ms,
            ttft_p99_ms=load.quantile(result.ttfts_s, 0.99) * 1e3,
            gap_p99_ms=load.quantile(result.gaps_s, 0.99) * 1e3,
            bunched_ratio=result.bunched_ratio,
            **({"cpu_us_per_chunk": result.cpu_s / result.chunk_count * 1e6} if subject.program else {}),
        )
        return ttft_p50_ms

    @contextlib.contextmanager
    def books(self, subject: Subject, scenario: str, round_: int) -> Iterator[None]:
        """Around a cell of Headwater: the disk's fdatasync before and after, commits and settlements between."""
        if subject.metrics_url is None:
            yield
            return
        self.probe_disk(scenario)
        before = ledger_counts(subject.metrics_url)
        yield
        after = ledger_counts(subject.metrics_url)
        self.probe_disk(scenario)
        commits, settlements = after[0] - before[0], after[1] - before[1]
        if settlements:
            self.add(subject.name, scenario, round_, fsyncs_per_settlement=commits / settlements)

    def probe_disk(self, scenario: str) -> None:
        """Time both ways to make a write durable; SQLite's build decides which it uses."""
        for name, sync in (("fdatasync", os.fdatasync), ("fsync", os.fsync)):
            times = self.disk_times_s.setdefault((scenario, name), [])
            times += disk.sync_times_s(sync, self.directory)

    # ---- what is measured once a run ----

    def warm(self, subject: Subject) -> None:
        """Let every subject compile, connect and fill its caches before anything is measured."""
        model = subject.model_prefix
        answers = load.run_calls(
            subject.target,
            model + "instant",
            upstream.INSTANT_TEXT,
            connections=16,
            warm_s=0.0,
            seconds=2.0,
            cpu_s=subject.cpu_s,
        )
        calls = uvloop.run(answers)
        streams = uvloop.run(
            load.run_streams(
                subject.target,
                model + "stream",
                upstream.STREAM_TEXT,
                streams=10,
                spread_s=0.1,
                timeout_s=60,
                cpu_s=subject.cpu_s,
            )
        )
        if first_error := calls.first_error or streams.first_error:
            self.problems.append(f"{subject.name} while warming up: {first_error}")

    def memory(self, subject: Subject, *, is_after_load: bool) -> None:
        """Resident memory while nothing is asked of it."""
        if subject.program:
            rss, pss = memory_mb(subject.program.pid)
            self.add(
                subject.name,
                "idle",
                0,
                **({"rss_after_load_mb": rss} if is_after_load else {"rss_mb": rss, "pss_mb": pss}),
            )

    def restart(self, subject: Subject, upstream_port: int, round_: int) -> None:
        """Start the subject once more beside the idle one, for its time to ready, and stop it."""
        again = launch(subject.name, self.directory / f"again-{round_}", upstream_port, self.cores.subject)
        try:
            assert again.program is not None
            self.add(subject.name, "idle", round_, ready_s=again.program.ready_s)
        finally:
            again.stop()

    def command_line(self) -> None:
        """The time of `headwater --help`, with warm file caches."""
        script = Path(sys.executable).with_name("headwater")
        argv = [str(script)] if script.exists() else [sys.executable, "-m", "headwater"]
        times = []
        with pinned(self.cores.subject):
            for _ in range(6):
                start = time.perf_counter()
                subprocess.run([*argv, "--help"], stdout=subprocess.DEVNULL, check=True)
                times.append(time.perf_counter() - start)
        self.add("headwater", "idle", 0, help_s=statistics.median(times[1:]))

    def installs(self, project: Path, names: set[str]) -> None:
        """Disk used by fresh installations of Headwater, and by the peers' environments."""
        if "headwater" in names:
            for extra, metric in (("", "install_mb"), ("llamacpp", "install_llamacpp_mb")):
                self.add("headwater", "idle", 0, **{metric: disk.install_mb(project, extra, self.directory / metric)})
                shutil.rmtree(self.directory / metric)
        if "litellm" in names:
            self.add("litellm", "idle", 0, install_mb=disk.size_mb(peers.site_packages(peers.litellm())))
        if "portkey" in names:
            self.add("portkey", "idle", 0, install_mb=disk.size_mb(peers.portkey() / "node_modules"))

    def disk_figures(self) -> None:
        """What the disk did around Headwater's cells, per scenario."""
        for (scenario, name), times in self.disk_times_s.items():
            p50_ms, p99_ms = load.quantile(times, 0.5) * 1e3, load.quantile(times, 0.99) * 1e3
            self.add("headwater", scenario, 0, **{f"{name}_p50_ms": p50_ms, f"{name}_p99_ms": p99_ms})

    def strace_check(self, subject: Subject) -> None:
        """Count fsync and fdatasync calls from outside, a commit by /metrics: about 1, checkpoints on top.

        Its own cell at c = 64, after the others: the tracer slows the subject several times over.
        """
        if subject.metrics_url is None or subject.program is None or not shutil.which("strace"):
            return
        report = self.directory / "strace.txt"
        argv = ["strace", "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", str(report), "-p", str(subject.program.pid)]
        tracer = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        attached = tracer.stderr.readline()
        if "attached" not in attached:
            tracer.kill()
            tracer.wait()
            print(f"no cross-check with strace: {attached.strip() or 'it did not attach'}")
            return
        before = ledger_counts(subject.metrics_url)
        answers = load.run_calls(
            subject.target,
            subject.model_prefix + "instant",
            upstream.INSTANT_TEXT,
            connections=64,
            warm_s=0.0,
            seconds=2.0,
            cpu_s=subject.cpu_s,
        )
        uvloop.run(answers)
        after = ledger_counts(subject.metrics_url)
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=20)
        calls = sum(int(line.split()[3]) for line in report.read_text().splitlines() if line.endswith("sync"))
        if after[0] > before[0]:
            self.add(subject.name, "nonstream-c64", 0, fsyncs_per_commit_strace=calls / (after[0] - before[0]))


def ledger_counts(metrics_url: str) -> tuple[float, float]:
    """(commits, settlements) of Headwater's ledger since it started; each commit is one fsync."""
    text = read_url(metrics_url)

    def counter(name: str) -> float:
        values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        if not values:
            raise RuntimeError(f"{metrics_url} has no {name}")
        return sum(float(value) for value in values)

    return counter("headwater_ledger_commits_total"), counter("headwater_ledger_settlements_total")
