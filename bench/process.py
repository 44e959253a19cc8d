"""Start, pin, watch and stop the programs under test (Linux: /proc, sched_setaffinity, process CPU clocks)."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the subject, another for load and upstream."""

    subject: int
    load: int


def choose_cores() -> Cores:
    """The first two cores this process may use. Raises RuntimeError when there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("the benchmark needs two cores: one for the subject, one for load and upstream")
    return Cores(cores[0], cores[1])


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Pin this process to one core; what is started inside inherits it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A TCP port of 127.0.0.1 nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def process_tree(pid: int) -> list[int]:
    """`pid` and all its living descendants."""
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
    return pids


def cpu_s(pid: int) -> float:
    """CPU seconds used by all threads of `pid` and its living descendants, since each began.

    Reads the processes' CPU clocks (clock_getcpuclockid(3)): the sum in /proc/PID/stat, but in nanoseconds, not ticks.
    """
    total = 0.0
    for each in process_tree(pid):
        with contextlib.suppress(OSError):  # it ended between the listing and the reading
            total += time.clock_gettime((~each << 3) | 2)
    return total


def memory_mb(pid: int) -> tuple[float, float]:
    """(RSS, PSS) of `pid` and its descendants in MB (10^6 bytes); RSS counts pages they share once for each."""
    rss = pss = 0
    for each in process_tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in {"Rss", "Pss"}:
                    kib = int(rest.split()[0])
                    rss, pss = rss + (kib if name == "Rss" else 0), pss + (kib if name == "Pss" else 0)
    return rss * 1024 / 1e6, pss * 1024 / 1e6


@dataclass(slots=True)
class Program:
    """A running program and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    ready_s: float = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_end(self) -> str:
        """The last lines it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    def stop(self, grace_s: float = 15.0) -> None:
        """SIGINT, then SIGKILL to its own session after `grace_s`."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(
    argv: Sequence[str],
    *,
    log: Path,
    core: int | None,
    ready_url: str,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
) -> Program:
    """Start `argv` in a session of its own, pinned to `core` (None: nowhere), and wait until `ready_url` answers 200.

    ready_s runs from just before the spawn to that answer, looked for every 5 ms. Raises RuntimeError with the end of
    the program's log when it exits or isn't ready in `timeout_s`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output, contextlib.nullcontext() if core is None else pinned(core):
        began = time.perf_counter()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
        )
    program = Program(process, log)
    while not is_ok(ready_url):
        waited_s = time.perf_counter() - began
        if process.poll() is not None or waited_s > timeout_s:
            program.stop(1)
            what = f"ended with {process.returncode}" if waited_s <= timeout_s else f"not ready in {timeout_s:.0f} s"
            raise RuntimeError(f"{argv[0]} {what}; the end of {log}:\n{program.log_end()}")
        time.sleep(0.005)
    program.ready_s = time.perf_counter() - began
    return program


def is_ok(url: str) -> bool:
    """Whether a GET of `url` answers 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy: it is on loopback
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def read_url(url: str) -> str:
    """The body of a GET of `url` on loopback."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        text: str = response.read().decode()
        return text
