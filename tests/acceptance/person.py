"""`headwater up` as a person runs it: a process of its own in a directory of its own, seen through what it prints.

The machine is asked for the rest: `/proc` says which processes there are and what they work, the database what was recorded.
"""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headwater.catalogue.entries import find_entry
from headwater.catalogue.store import ModelStore
from headwater.ledger.store import open_reader
from headwater.settings.model import ModelStoreSettings

ROOT = Path(__file__).resolve().parents[2]
MODELS_DIRECTORY = Path(os.environ.get("HEADWATER_MODELS__DIRECTORY", ROOT / "data/models")).absolute()
QWEN, SMOL = "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"
READY_LINE = "Ctrl-C stops everything"
READY_TIMEOUT_S = 240.0
"""Two loads and a measurement on a machine that others use too."""
_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def weights(name: str) -> Path:
    """The file of a catalogue model; fails with advice when it isn't here, since an acceptance test never skips."""
    settings = ModelStoreSettings(directory=str(MODELS_DIRECTORY))
    holding = ModelStore(MODELS_DIRECTORY).holding(find_entry(name, settings))
    assert holding.state == "ready", f"{name} is {holding.state} in {MODELS_DIRECTORY}; `make models` fetches it"
    return holding.path


def until(
    is_so: Callable[[], object], *, timeout_s: float, what: str = "the condition", every_s: float = 0.02
) -> float:
    """Wait until something outside this process is so; returns the seconds it took. Raises AssertionError."""
    began_s = time.monotonic()
    while not is_so():
        assert time.monotonic() - began_s < timeout_s, f"{what} did not come about within {timeout_s:g} s"
        time.sleep(every_s)
    return time.monotonic() - began_s


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def cpu_s(pid: int) -> float:
    """Processor seconds a process has used, all its threads together; it counts in hundredths."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_S


def children(pid: int) -> list[int]:
    """Process ids of the living children."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and is_alive(int(entry.name)):
                found.append(int(entry.name))
    return found


@dataclass
class Up:
    """One `headwater up`. directory: where it was started, its data under it."""

    process: "subprocess.Popen[bytes]"
    directory: Path
    environ: dict[str, str]
    out_path: Path
    log_path: Path
    began_s: float
    terminal: int | None = None
    """Our end of its terminal, when it has one."""
    seen_engine_pids: set[int] = field(default_factory=set)

    @property
    def pid(self) -> int:
        """The platform's process id."""
        return self.process.pid

    @property
    def out(self) -> str:
        """What a person has seen so far on standard output (of a terminal: everything), without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.out_path.read_text(errors="replace")).replace("\r\n", "\n")

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def base_url(self) -> str:
        """The printed base URL."""
        found = re.search(r"answers at\s+(http://\S+/v1)", self.out)
        assert found is not None, f"no base URL was printed: {self.out}"
        return found[1]

    @property
    def api_key(self) -> str:
        """The printed first key."""
        found = re.search(r"API key\s+(hw-\w+)", self.out)
        assert found is not None, f"no key was printed: {self.out}"
        return found[1]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines with this event name."""
        found = []
        for line in self.log.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(line)
                if value.get("event") == name:
                    found.append(value)
        return found

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> float:
        """Wait until it says how to use it; returns the seconds since its start. Raises AssertionError with what it said."""
        until(
            lambda: READY_LINE in self.out or self.process.poll() is not None,
            timeout_s=timeout_s,
            what=f"a ready platform (it said {self.out!r})",
        )
        assert READY_LINE in self.out, f"it ended with {self.process.returncode}: {self.out}\n{self.log[-3000:]}"
        return time.monotonic() - self.began_s

    def wait_exit(self, timeout_s: float = 60.0) -> int:
        """Wait for its end; returns the exit status."""
        return self.process.wait(timeout_s)

    def engines(self) -> dict[str, list[int]]:
        """The engine processes by deployment: each has its log, named for its deployment, as standard output."""
        found: dict[str, list[int]] = {}
        for pid in children(self.pid):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                name = Path(f"/proc/{pid}/fd/1").readlink().name
                if name.endswith(".log"):
                    found.setdefault(name.removesuffix(".log").rpartition("-")[0], []).append(pid)
        self.seen_engine_pids.update(pid for pids in found.values() for pid in pids)
        return found

    def engine(self, deployment: str) -> int:
        """The one engine process of a deployment."""
        (pid,) = self.engines()[deployment]
        return pid

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an operator endpoint, such as `/ready`."""
        url = self.base_url.removesuffix("/v1") + path
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  our own base URL
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series of `/metrics`; 0 when it isn't there."""
        _, text = self.get("/metrics")
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.startswith(name + "{") and all(f'{key}="{text_}"' in series for key, text_ in labels.items()):
                return float(value)
            if series == name and not labels:
                return float(value)
        return 0.0

    def row(self, request_id: str, *, timeout_s: float = 5.0) -> dict[str, Any]:
        """The usage record of a request, waited for when the request was left. Raises AssertionError if none comes."""
        rows: list[dict[str, Any]] = []

        def is_there() -> bool:
            rows[:] = self.rows("SELECT * FROM usage_records WHERE request_id = ?", request_id)
            return bool(rows)

        until(is_there, timeout_s=timeout_s, what=f"a usage record of {request_id}")
        return rows[0]

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """What the database answers, read beside the running platform."""
        connection = open_reader(self.directory / "data" / "headwater.db")
        try:
            cursor = connection.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        finally:
            connection.close()

    def command(self, *arguments: str, environ: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Run another `headwater …` in the same directory."""
        return subprocess.run(
            [sys.executable, "-m", "headwater", *arguments],
            cwd=self.directory,
            env=self.environ | dict(environ or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def press_ctrl_c(self) -> None:
        """What a terminal does: the foreground process group gets SIGINT, the engines' own sessions don't."""
        assert self.terminal is not None
        os.write(self.terminal, b"\x03")

    def stop(self, *, timeout_s: float = 60.0) -> int:
        """End it politely, then by force; never leave it or an engine behind. Returns the exit status."""
        engine_pids = {pid for pids in self.engines().values() for pid in pids} | self.seen_engine_pids
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        leftovers = [pid for pid in engine_pids if is_alive(pid)]
        for pid in leftovers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self.process.returncode


def environ_for(models_directory: Path = MODELS_DIRECTORY, **extra: str) -> dict[str, str]:
    """This process's environment without settings of its own, and with the cached weights."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADWATER_")}
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": paths, "HEADWATER_MODELS__DIRECTORY": str(models_directory), "NO_COLOR": "1"} | extra


@contextlib.contextmanager
def up(
    directory: Path,
    *,
    config: str | None = None,
    arguments: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    on_terminal: bool = False,
    shell_prefix: str = "",
) -> Iterator[Up]:
    """Run `headwater up` in a directory until the block ends; nothing of it outlives the block.

    config: the text of its headwater.toml. on_terminal: give it a terminal, whose Ctrl-C is `press_ctrl_c`.
    shell_prefix: shell commands before it, such as `ulimit -v 1000;`.
    """
    directory.mkdir(exist_ok=True)
    if config is not None:
        (directory / "headwater.toml").write_text(config)
    given = dict(environ_for() if environ is None else environ)
    count = len(list(directory.glob("out-*")))
    out_path, log_path = directory / f"out-{count}", directory / f"log-{count}"
    argv = [sys.executable, "-m", "headwater", "up", *arguments]
    began_s = time.monotonic()
    if on_terminal:
        master, slave = pty.openpty()
        # A session leader that opens a terminal gets it as its own: from then on Ctrl-C goes to its foreground group.
        line = f'{shell_prefix} exec "$@" <{os.ttyname(slave)} >{os.ttyname(slave)} 2>&1'
        process = subprocess.Popen(["sh", "-c", line, "sh", *argv], cwd=directory, env=given, start_new_session=True)
        reader = threading.Thread(target=_copy, args=(master, out_path), daemon=True)
        out_path.touch()
        reader.start()
        one = Up(process, directory, given, out_path, log_path, began_s, terminal=master)
    else:
        with out_path.open("wb") as out, log_path.open("wb") as log:
            process = subprocess.Popen(
                ["sh", "-c", f'{shell_prefix} exec "$@"', "sh", *argv],
                cwd=directory,
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        one = Up(process, directory, given, out_path, log_path, began_s)
    try:
        yield one
    finally:
        one.stop()
        if on_terminal:
            os.close(slave)
            reader.join(10)
            os.close(master)


def _copy(master: int, path: Path) -> None:
    """Write down what appears on a terminal until nobody holds its other end."""
    with path.open("ab", buffering=0) as file:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: the last holder of the other end closed it
                return
            file.write(data)
