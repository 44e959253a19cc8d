"""The whole platform as a process: `python -m headwater up` in a directory of its own, on a free port.

    async with running_platform(config(upstreams=[upstream("fake", engine.base_url, MODELS)]), tmp_path) as platform:
        got = await ask(platform.base_url, body, api_key=platform.key)
        record = await platform.record(got.headers["x-request-id"])

What it says is read from outside only: its log, its database on a read-only connection, its metrics, its exit status.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tests.rig.clients import Received, ask, call
from tests.rig.processes import ROOT

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
CLI_TIMEOUT_S = 30.0
POLL_S = 0.005
T = TypeVar("T")
PRICE = {"input": "0.10", "cached_input": "0.01", "output": "0.30", "reasoning": "0.70"}
"""Per million tokens, each kind another, so that a mix-up of kinds shows in the cost."""

Table = Mapping[str, object]


async def until(look: Callable[[], T], *, timeout_s: float = 10.0) -> T:
    """Look again and again until what is seen is true, and return it. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        # What another process does has no asyncio.Event.
        while not (seen := look()):
            await asyncio.sleep(POLL_S)
    return seen


# -- the configuration file ------------------------------------------------------------------------------------------


def upstream(name: str, base_url: str, models: Iterable[str], **fields: object) -> dict[str, object]:
    """One `[[upstreams]]` table. models: their names at the fake engine, knobs and all (`m:cut_after=7`)."""
    return {"name": name, "base_url": base_url, "models": list(models), **fields}


def config(
    *,
    upstreams: Sequence[Table] = (),
    deployments: Sequence[Table] = (),
    prices: Sequence[Table] | None = None,
    gateway: Table | None = None,
    routes: Mapping[str, Sequence[str]] | None = None,
    **tables: Table,
) -> str:
    """A configuration file's text. prices: None gives every callable name but the routes' `PRICE`. routes: their targets."""
    if prices is None:
        names = [f"{table['name']}/{model}" for table in upstreams for model in _texts(table["models"])]
        names += [str(table["name"]) for table in deployments]
        prices = [{"model": name, **PRICE} for name in names]
    parts = [_table("[gateway]", {"listen": "127.0.0.1:0", **(gateway or {})})]
    parts += [_table(f"[{name}]", table) for name, table in tables.items()]
    made = [{"name": name, "targets": list(targets)} for name, targets in (routes or {}).items()]
    for name, rows in (("upstreams", upstreams), ("deployments", deployments), ("routes", made), ("prices", prices)):
        parts += [_table(f"[[{name}]]", row) for row in rows]
    return "\n".join(parts)


def _texts(value: object) -> list[str]:
    return msgspec.convert(value, list[str])


def _table(head: str, fields: Table) -> str:
    return "\n".join([head, *(f"{name} = {_toml(value)}" for name, value in fields.items()), ""])


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(str(name))} = {_toml(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return msgspec.json.encode(value).decode()  # strings, numbers and booleans are written alike in both


# -- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """What it printed, as JSON."""
        return msgspec.json.decode(self.stdout)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without any `HEADWATER_…` of its own, so that only the file and the arguments count.

    extra: added; an empty value takes the variable out.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    own |= {"PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1", "COLUMNS": "200"} | dict(extra or {})
    return {name: value for name, value in own.items() if value}


async def headwater(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None, check: bool = True) -> Ran:
    """Run one `headwater` command to its end. Raises AssertionError when it fails and `check` is on."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "headwater",
        *arguments,
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CLI_TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    ran = Ran(process.returncode, out.decode(), err.decode())
    assert not check or ran.status == 0, f"headwater {' '.join(arguments)} ended with {ran.status}: {ran.stderr}"
    return ran


# -- the running platform --------------------------------------------------------------------------------------------


class Platform:
    """A platform's directory and, between `start` and its end, its process. It can be started again on the same files."""

    def __init__(self, directory: Path, config_text: str) -> None:
        """directory: exists; the configuration file is written there."""
        self.directory = directory
        self.config_path = directory / "headwater.toml"
        self.config_path.write_text(config_text)
        self.stdout_path, self.log_path = directory / "stdout.txt", directory / "log.jsonl"
        self.key = ""
        self.key_id = ""
        self.base_url = ""
        self.env: dict[str, str] = {}
        """Added to the process's environment and to that of commands."""
        self._process: asyncio.subprocess.Process | None = None
        self._log_offset = 0

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.directory / "data" / "headwater.db"

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process. Raises AssertionError before the first start."""
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def root_url(self) -> str:
        """The address without `/v1`."""
        return self.base_url.removesuffix("/v1")

    # starting and ending

    async def start(self, *arguments: str, wait: bool = True, wrapper: Sequence[str] = ()) -> None:
        """Run `headwater up`; with `wait` return once `/ready` says 200. wrapper: a command to run it under."""
        argv = [*wrapper, sys.executable, "-m", "headwater", "up", "--config", str(self.config_path)]
        self._log_offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.stdout_path.open("ab") as out, self.log_path.open("ab") as err:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                "--no-first-question",
                *arguments,
                cwd=self.directory,
                env=environment(self.env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        if wait:
            await self.until_ready()

    async def until_ready(self) -> None:
        """Wait for the start and for `/ready` to say 200. Raises AssertionError when it ends instead."""
        started = await self.logged("platform_started", timeout_s=READY_TIMEOUT_S)
        self.base_url = started["base_url"]
        async with asyncio.timeout(READY_TIMEOUT_S):
            while (await call(self.root_url, "GET", "/ready")).status != 200:
                self._assert_running("get ready")
                await asyncio.sleep(POLL_S)

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    async def ended(self, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for its end; returns the exit status (negative: the signal)."""
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    async def stop(self) -> int:
        """Interrupt and wait; returns the exit status."""
        self.interrupt()
        return await self.ended()

    async def kill(self) -> None:
        """End it by SIGKILL, as a crash would."""
        self.process.kill()
        await self.process.wait()

    async def end(self) -> None:
        """See to it that no process is left, however the test went."""
        if self._process is None or self._process.returncode is not None:
            return
        self.interrupt()
        try:
            await self.ended(timeout_s=3.0)
        except TimeoutError:
            await self.kill()

    def _assert_running(self, what: str) -> None:
        status = self.process.returncode
        assert status is None, f"The platform ended with {status} and did not {what}. It said: {self.log_tail()}"

    # commands and keys

    async def cli(self, *arguments: str, check: bool = True) -> Ran:
        """Run a command with this platform's configuration file."""
        return await headwater(
            *arguments, "--config", str(self.config_path), cwd=self.directory, env=self.env, check=check
        )

    async def create_key(self, *arguments: str) -> dict[str, Any]:
        """Make a key through the CLI; `key` of the answer is the secret."""
        made: dict[str, Any] = (await self.cli("keys", "create", "--json", *arguments)).json()
        return made

    # asking

    async def ask(self, body: Mapping[str, Any], *, timeout_s: float = 30.0, **fields: Any) -> Received:
        """Send a chat request with this platform's key and read the answer to its end."""
        return await ask(self.base_url, body, api_key=fields.pop("api_key", self.key), timeout_s=timeout_s, **fields)

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Received:
        """GET a path below the root with this platform's key."""
        return await call(
            self.root_url, "GET", path, headers={"authorization": f"Bearer {self.key}", **(headers or {})}
        )

    async def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels as they stand in the text format."""
        text = (await call(self.root_url, "GET", "/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    async def idle(self, *, timeout_s: float = 10.0) -> None:
        """Wait until no request is being served and no place is taken."""

        def is_idle(metrics: Mapping[str, float]) -> bool:
            kinds = ("headwater_gateway_live_requests", "headwater_gateway_busy_slots", "headwater_gateway_queued")
            return not any(value for name, value in metrics.items() if name.partition("{")[0] in kinds)

        async with asyncio.timeout(timeout_s):
            while not is_idle(await self.metrics()):
                await asyncio.sleep(POLL_S)

    def fds_count(self) -> int:
        """How many file descriptors it holds."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    # its log

    def log_tail(self, characters_max: int = 3000) -> str:
        """The end of what this start wrote to standard error."""
        return self.log_path.read_bytes()[self._log_offset :].decode(errors="replace")[-characters_max:]

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log lines of this start (of one event), oldest first; a line that isn't JSON is left out."""
        lines: list[dict[str, Any]] = []
        for raw in self.log_path.read_bytes()[self._log_offset :].split(b"\n")[:-1]:
            try:
                lines.append(msgspec.json.decode(raw, type=dict[str, Any]))
            except msgspec.DecodeError:
                continue  # a library's warning, or words for a person
        return [line for line in lines if event in (None, line.get("event"))]

    async def logged(
        self, event: str, holds: Callable[[dict[str, Any]], bool] = lambda _: True, *, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        """The first line of that event that satisfies the condition, once it is there."""

        def look() -> list[dict[str, Any]]:
            found = [line for line in self.log(event) if holds(line)]
            if not found:
                self._assert_running(f"log {event}")
            return found

        return (await until(look, timeout_s=timeout_s))[0]

    # its database, read-only

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """The rows of a query, on a read-only connection of its own."""
        connection = sqlite.connect(f"file:{self.database}?mode=ro", uri=True, isolation_level=None)
        try:
            cursor = connection.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        finally:
            connection.close()

    def records(self) -> list[dict[str, Any]]:
        """Every usage record, oldest first."""
        return self.rows("SELECT * FROM usage_records ORDER BY request_id")

    def attempts(self, request_id: str) -> list[dict[str, Any]]:
        """The attempts of one request by choice, in the order they were made."""
        return self.rows("SELECT * FROM attempts WHERE request_id = ? ORDER BY choice, id", request_id)

    def find_record(self, request_id: str) -> dict[str, Any] | None:
        """The usage record of a request as the database stands now."""
        found = self.rows("SELECT * FROM usage_records WHERE request_id = ?", request_id)
        return found[0] if found else None

    async def record(self, request_id: str, *, timeout_s: float = 10.0) -> dict[str, Any]:
        """The usage record of a request once it is committed (the ones of refusals aren't waited for by the answer)."""
        found = await until(lambda: self.find_record(request_id), timeout_s=timeout_s)
        assert found is not None
        return found

    async def record_of(self, client_request_id: str, *, timeout_s: float = 10.0) -> dict[str, Any]:
        """The one record with the client's own request id: the way to find it for a client that left early."""
        sql = "SELECT * FROM usage_records WHERE client_request_id = ?"
        found = await until(lambda: self.rows(sql, client_request_id), timeout_s=timeout_s)
        assert len(found) == 1, f"{len(found)} records for {client_request_id}"
        return found[0]


@asynccontextmanager
async def running_platform(
    config_text: str,
    directory: Path,
    *arguments: str,
    wrapper: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Platform]:
    """A started platform with one key, ready to be asked, until the block ends. directory: made if it isn't there."""
    directory.mkdir(parents=True, exist_ok=True)
    platform = Platform(directory, config_text)
    platform.env = dict(env or {})
    made = await platform.create_key("--name", "test key")
    platform.key, platform.key_id = made["key"], made["id"]
    try:
        await platform.start(*arguments, wrapper=wrapper)
        yield platform
    finally:
        await platform.end()
