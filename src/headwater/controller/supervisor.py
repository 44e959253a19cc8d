"""Runs the replicas of the configured deployments: one task each, which performs what `lifecycle.step` decides.

A replica's task owns its state and its process; whoever wants something of it sends an event. News comes back from
three sides as events too: the child's status pipe, its exit, and timers.
"""

import asyncio
import contextlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import structlog

from headwater.clock import Clock
from headwater.controller import lifecycle
from headwater.controller.calibration import Calibration
from headwater.controller.lifecycle import Replica, RestartPolicy, step
from headwater.engines.child import ChildSpec, ChildStatus
from headwater.ids import REPLICA, new_id
from headwater.replica import ReplicaEndpoint, ReplicaState, ReplicaStatus

log = structlog.get_logger()

TERMINATE_GRACE_S = 5.0
LOG_BYTES_MAX = 8 * 2**20
LOG_KEPT_BYTES = 2**20
LOG_TAIL_LINES = 5
_ENGINE_ERROR = re.compile(r"[\d.]+ E (.+)")
"""A line of llama.cpp's log at its error level: the time since its start, the level, the message."""


class Gateway(Protocol):
    """What the controller tells of replicas; satisfied by the gateway's pools."""

    def announce(self, endpoint: ReplicaEndpoint) -> None:
        """A replica became ready."""

    def withdraw(self, deployment: str, replica_id: str) -> None:
        """A replica stopped being ready; calls running on it are on their own."""

    def report(self, deployment: str, statuses: list[ReplicaStatus]) -> None:
        """The states of all replicas of a deployment, after any of them changed."""


class DeploymentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment, resolved: its settings with the model's file found. context_tokens is per request."""

    name: str
    model_path: Path
    model_digest: str
    chat_template: str | None
    replicas_count: int
    slots_count: int
    context_tokens: int
    threads: int
    batch_tokens: int | None
    start_timeout_s: float
    restarts: tuple[int, float]
    """(restarts_max, window in seconds)."""


class ReplicaTask:
    """One replica: its state machine, its process, its log file. number: among the replicas of its deployment."""

    def __init__(
        self,
        plan: DeploymentPlan,
        number: int,
        *,
        run_directory: Path,
        log_directory: Path,
        calibration: Calibration,
        clock: Clock,
        on_change: Callable[["ReplicaTask"], None],
        gateway: Gateway,
    ) -> None:
        self.id = new_id(REPLICA)
        self.plan = plan
        self.replica = Replica()
        self.log_path = log_directory / f"{plan.name}-{number}.log"
        self._socket_path = run_directory / f"{self.id[-12:]}.sock"
        self._calibration = calibration
        self._clock = clock
        self._on_change = on_change
        self._gateway = gateway
        self._events: asyncio.Queue[lifecycle.Event] = asyncio.Queue()
        self._policy = RestartPolicy(*plan.restarts)
        self._process: asyncio.subprocess.Process | None = None
        self._has_spawned = asyncio.Event()
        self._api_key = ""
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._start_timer: asyncio.TimerHandle | None = None

    @property
    def status(self) -> ReplicaStatus:
        """How this replica is doing, for people and for `/ready`."""
        replica = self.replica
        return ReplicaStatus(self.id, self.plan.name, replica.state, replica.reason, replica.restarts_count)

    @property
    def pid(self) -> int | None:
        """The engine process, while there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def send(self, event: lifecycle.Event) -> None:
        """Put an event into the replica's inbox."""
        self._events.put_nowait(event)

    async def run(self) -> None:
        """Take events until the replica has stopped as asked."""
        try:
            while True:
                before = self.replica
                self.replica, commands = step(before, await self._events.get(), self._policy)
                for command in commands:
                    self._perform(command)
                if self.replica.state is not before.state:
                    self._changed(before.state)
                if self.replica.state is ReplicaState.STOPPED:
                    break
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            for task in self._side_tasks:
                task.cancel()
            await asyncio.gather(*self._side_tasks, return_exceptions=True)
            self._socket_path.unlink(missing_ok=True)

    def _changed(self, before: ReplicaState) -> None:
        state, reason = self.replica.state, self.replica.reason
        level = {ReplicaState.FAILED: log.error, ReplicaState.BACKING_OFF: log.warning}.get(state, log.info)
        level("replica_changed", replica=self.id, deployment=self.plan.name, was=before, now=state, reason=reason)
        self._on_change(self)

    def _perform(self, command: lifecycle.Command) -> None:
        match command:
            case lifecycle.Spawn():
                self._has_spawned.clear()
                self._spawn_side_task(self._start())
            case lifecycle.Announce():
                plan = self.plan
                self._gateway.announce(
                    ReplicaEndpoint(
                        self.id, plan.name, self._socket_path, self._api_key, plan.slots_count, plan.context_tokens
                    )
                )
            case lifecycle.Withdraw():
                self._gateway.withdraw(self.plan.name, self.id)
            case lifecycle.Terminate():
                self._spawn_side_task(self._terminate())
            case lifecycle.WaitBackoff(delay_s):
                asyncio.get_running_loop().call_later(delay_s, self.send, lifecycle.BackoffElapsed())

    def _spawn_side_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)

    async def _start(self) -> None:
        """Start the child and stay with it; however that ends, the replica hears that it is gone."""
        try:
            reason = await self._live()
        except (OSError, ValueError) as error:  # no process to be had, no file to log to, an unreadable status
            log.exception("engine_lost", replica=self.id, deployment=self.plan.name)
            reason = f"it could not be started or followed ({error})"
            if self.pid is not None:
                assert self._process is not None
                self._process.kill()
                await self._process.wait()
        finally:
            self._has_spawned.set()
        self._socket_path.unlink(missing_ok=True)
        self.send(lifecycle.Exited(reason, self._clock.monotonic_s()))

    async def _live(self) -> str:
        """Start the child, hand it its spec, pass on its news; returns how it ended."""
        plan = self.plan
        self._api_key = secrets.token_urlsafe(32)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        status_read, status_write = os.pipe()
        try:
            with _open_log(self.log_path) as log_file:
                self._process = process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "headwater.engines.child", "--status-fd", str(status_write)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log_file,
                    stderr=log_file,
                    pass_fds=(status_write,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(status_read)
            raise
        finally:
            os.close(status_write)
        self._has_spawned.set()
        batch_tokens = plan.batch_tokens or self._calibration.batch_tokens(plan.model_digest, plan.threads)
        spec = ChildSpec(
            parent_pid=os.getpid(),
            model_path=str(plan.model_path),
            socket_path=str(self._socket_path),
            api_key=self._api_key,
            slots_count=plan.slots_count,
            context_tokens=plan.context_tokens,
            threads=plan.threads,
            batch_tokens=batch_tokens,
            chat_template=plan.chat_template,
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        timer = asyncio.get_running_loop().call_later(
            plan.start_timeout_s, self.send, lifecycle.StartTimedOut(plan.start_timeout_s)
        )
        try:
            await self._read_statuses(status_read)
            code = await process.wait()
        finally:
            timer.cancel()
        return self._describe_exit(code)

    async def _read_statuses(self, fd: int) -> None:
        """Pass the child's status lines on as events, until it closes the pipe by ending."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        try:
            async for line in reader:
                status = msgspec.json.decode(line, type=ChildStatus)
                if status.state == "ready":
                    self._calibration.store(self.plan.model_digest, self.plan.threads, status.token_s)
                    log.info(
                        "engine_ready",
                        replica=self.id,
                        deployment=self.plan.name,
                        load_s=status.load_s,
                        batch_tokens=status.batch_tokens,
                        batch_s=status.batch_s,
                        threads=self.plan.threads,
                    )
                    self.send(lifecycle.BecameReady())
                else:
                    self.send(lifecycle.CannotStart(f"{status.reason}{self._log_tail(is_failed_start=True)}"))
        finally:
            transport.close()

    def _describe_exit(self, code: int) -> str:
        how = f"killed by signal {-code}" if code < 0 else f"exited with status {code}"
        return f"{how}{self._log_tail()}"

    def _log_tail(self, *, is_failed_start: bool = False) -> str:
        """Where the engine's log is and its last lines, for the reason a person reads.

        is_failed_start: its errors instead, if it logged any; the first one is the cause, and often not among the last lines.
        """
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"; its log can't be read ({error})"
        errors = list(dict.fromkeys(found[1].strip() for line in lines if (found := _ENGINE_ERROR.match(line))))
        telling = errors[:LOG_TAIL_LINES] if is_failed_start and errors else lines[-LOG_TAIL_LINES:]
        tail = " | ".join(line.strip() for line in telling)
        return f"; log {self.log_path}: {tail}" if tail else f"; log {self.log_path} is empty"

    async def _terminate(self) -> None:
        """SIGTERM, a grace, SIGKILL. The exit comes back as an event from `_start`."""
        await self._has_spawned.wait()  # a process that is just being made is ended too
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), TERMINATE_GRACE_S)
            except TimeoutError:
                process.kill()


class Supervisor:
    """All replicas of all deployments of this machine."""

    def __init__(
        self,
        plans: list[DeploymentPlan],
        *,
        run_directory: Path,
        log_directory: Path,
        calibration: Calibration,
        clock: Clock,
        gateway: Gateway,
    ) -> None:
        self._gateway = gateway
        self.replicas = [
            ReplicaTask(
                plan,
                number,
                run_directory=run_directory,
                log_directory=log_directory,
                calibration=calibration,
                clock=clock,
                on_change=self._changed,
                gateway=gateway,
            )
            for plan in plans
            for number in range(plan.replicas_count)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._something_changed = asyncio.Event()

    def start(self) -> None:
        """Start every replica; they report their way through the gateway's `report`."""
        for replica in self.replicas:
            self._tasks.append(asyncio.ensure_future(replica.run()))
            replica.send(lifecycle.StartRequested())

    async def stop(self) -> None:
        """End every engine process and wait until it is gone. Idempotent."""
        for replica in self.replicas:
            replica.send(lifecycle.StopRequested())
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    async def settled(self) -> None:
        """Wait until every replica is ready or failed."""
        while any(one.replica.state not in (ReplicaState.READY, ReplicaState.FAILED) for one in self.replicas):
            self._something_changed.clear()
            await self._something_changed.wait()

    def _changed(self, changed: ReplicaTask) -> None:
        self._something_changed.set()
        name = changed.plan.name
        self._gateway.report(name, [replica.status for replica in self.replicas if replica.plan.name == name])


def trim_log(path: Path) -> None:
    """Begin an over-long log anew while its engine writes to it; its last part is kept beside it, as `NAME.log.1`."""
    if not path.exists() or path.stat().st_size <= LOG_BYTES_MAX:
        return
    with path.open("rb") as log_file:
        log_file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
        path.with_suffix(".log.1").write_bytes(log_file.read(LOG_KEPT_BYTES))
    os.truncate(path, 0)  # the engine appends: what it writes next is the beginning


def _open_log(path: Path) -> BinaryIO:
    """The engine's log, appended to; an over-long one from earlier starts is begun anew."""
    is_over = path.exists() and path.stat().st_size > LOG_BYTES_MAX
    return path.open("wb" if is_over else "ab")
