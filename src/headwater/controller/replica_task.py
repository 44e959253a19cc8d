"""One replica as a task: it performs what `lifecycle.step` decides, and owns the replica's state and its process.

Whoever wants something of a replica sends it an event. News comes back as events too: from the child's status pipe, its
exit, the watch over its progress, and timers.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from headwater.clock import Clock
from headwater.controller import lifecycle
from headwater.controller.calibration import Calibration
from headwater.controller.engine_log import log_tail, open_log
from headwater.controller.lifecycle import Replica, RestartPolicy, step
from headwater.controller.liveness import bounds_of
from headwater.controller.plan import DeploymentPlan
from headwater.controller.watch import watch
from headwater.engines.child import ChildSpec, ChildStatus
from headwater.ids import REPLICA, new_id
from headwater.replica import Progress, ReplicaEndpoint, ReplicaState, ReplicaStatus

log = structlog.get_logger()

CHILD_COMMAND = (sys.executable, "-m", "headwater.engines.child")
"""Started with `--status-fd N`; the protocol is in `engines/child.py`."""
TERMINATE_GRACE_S = 5.0
HELD_POLL_S = 0.05
"""How often a draining replica's calls are counted."""


class Gateway(Protocol):
    """What the controller tells of replicas, and asks about them; satisfied by the gateway's pools."""

    def announce(self, endpoint: ReplicaEndpoint) -> None:
        """A replica is ready, or is trusted again."""

    def retire(self, deployment: str, replica_id: str) -> None:
        """A replica is to get no new calls; those running on it go on."""

    def withdraw(self, deployment: str, replica_id: str) -> None:
        """A replica is gone; calls running on it fail by themselves."""

    def progress(self, deployment: str, replica_id: str) -> Progress | None:
        """What its calls show of its being alive; None for one that isn't announced."""

    def held_count(self, deployment: str, replica_id: str) -> int:
        """Calls that hold a place on it, or that only it can still serve."""

    def report(self, deployment: str, statuses: list[ReplicaStatus]) -> None:
        """The states of all replicas of a deployment, after any of them changed."""


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
        command: Sequence[str] = CHILD_COMMAND,
    ) -> None:
        """command: the program of the engine's process; another one only in tests."""
        self.id = new_id(REPLICA)
        self.plan = plan
        self.number = number
        self.replica = Replica()
        self.is_leaving = False
        """Whether it was told to end for good."""
        self.drain_timeout_s = 0.0
        """How long calls may go on once it is draining; whoever asks for that sets it."""
        self.log_path = log_directory / f"{plan.name}-{number}.log"
        self._socket_path = run_directory / f"{self.id[-12:]}.sock"
        self._calibration = calibration
        self._clock = clock
        self._on_change = on_change
        self._gateway = gateway
        self._command = command
        self._events: asyncio.Queue[lifecycle.Event] = asyncio.Queue()
        self._process: asyncio.subprocess.Process | None = None
        self._run: asyncio.Task[None] | None = None
        self._has_spawned = asyncio.Event()
        self._api_key = ""
        self._batch_s = 0.0
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._backoff: asyncio.TimerHandle | None = None

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
                self.replica, commands = step(before, await self._events.get(), RestartPolicy(*self.plan.restarts))
                for command in commands:
                    self._perform(command)
                if self.replica.state is not before.state:
                    self._changed(before.state)
                if self.replica.state is ReplicaState.STOPPED:
                    break
        finally:
            self._cancel_backoff()
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            for task in self._side_tasks:
                task.cancel()
            await asyncio.gather(*self._side_tasks, return_exceptions=True)
            self._unlink_socket()

    def _changed(self, before: ReplicaState) -> None:
        state, reason = self.replica.state, self.replica.reason
        warned = (ReplicaState.BACKING_OFF, ReplicaState.SUSPECT)
        level = log.error if state is ReplicaState.FAILED else log.warning if state in warned else log.info
        level("replica_changed", replica=self.id, deployment=self.plan.name, was=before, now=state, reason=reason)
        if state is ReplicaState.DRAINING:
            self._spawn_side_task(self._drain())
        self._on_change(self)

    def _perform(self, command: lifecycle.Command) -> None:
        match command:
            case lifecycle.Spawn():
                self._has_spawned.clear()
                self._cancel_backoff()
                self._run = self._spawn_side_task(self._start(self._run))
            case lifecycle.Announce():
                plan = self.plan
                self._gateway.announce(
                    ReplicaEndpoint(
                        self.id, plan.name, self._socket_path, self._api_key, plan.slots_count, plan.context_tokens
                    )
                )
                if self._watching is None:
                    self._watching = self._spawn_side_task(self._watch())
            case lifecycle.Retire():
                self._gateway.retire(self.plan.name, self.id)
            case lifecycle.Withdraw():
                self._gateway.withdraw(self.plan.name, self.id)
            case lifecycle.Terminate():
                self._spawn_side_task(self._end(grace_s=TERMINATE_GRACE_S))
            case lifecycle.Kill():
                self._spawn_side_task(self._end(grace_s=0.0))
            case lifecycle.WaitBackoff(delay_s):
                loop = asyncio.get_running_loop()
                self._backoff = loop.call_later(delay_s, self.send, lifecycle.BackoffElapsed())

    def _spawn_side_task(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)
        return task

    def _cancel_backoff(self) -> None:
        if self._backoff is not None:
            self._backoff.cancel()
            self._backoff = None

    # -- the process ---------------------------------------------------------------------------------------------------

    async def _start(self, earlier: "asyncio.Task[None] | None") -> None:
        """Start the child and stay with it; however that ends, the replica hears that it is gone.

        earlier: the same for the process before, which is waited for: it may still be ending.
        """
        if earlier is not None:
            await asyncio.wait((earlier,))
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
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        self._unlink_socket()
        if self._run is asyncio.current_task():  # else another start is waiting, and this end is no news
            self.send(lifecycle.Exited(reason, self._clock.monotonic_s()))

    async def _live(self) -> str:
        """Start the child, hand it its spec, pass on its news; returns how it ended."""
        plan = self.plan
        self._api_key = secrets.token_urlsafe(32)
        status_read, status_write = os.pipe()
        try:
            with open_log(self.log_path) as log_file:
                self._process = process = await asyncio.create_subprocess_exec(
                    *(*self._command, "--status-fd", str(status_write)),
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
        return _describe_exit(code) + log_tail(self.log_path)

    async def _read_statuses(self, fd: int) -> None:
        """Pass the child's status lines on as events, until it closes the pipe by ending. Raises ValueError for garbage."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        try:
            async for line in reader:
                status = msgspec.json.decode(line, type=ChildStatus)
                if status.state == "ready":
                    self._batch_s = status.batch_s
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
                elif status.state == "cannot_start":
                    reason = f"{status.reason}{log_tail(self.log_path, is_failed_start=True)}"
                    self.send(lifecycle.CannotStart(reason))
                else:
                    raise ValueError(f"it said that it is {status.state[:40]!r}")
        finally:
            transport.close()

    async def _watch(self) -> None:
        await watch(
            bounds_of(self.plan.hang_timeout_s, self._batch_s),
            socket_path=self._socket_path,
            api_key=self._api_key,
            progress=lambda: self._gateway.progress(self.plan.name, self.id),
            send=self.send,
        )

    async def _drain(self) -> None:
        """Wait until no call needs this replica any more, or their time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.drain_timeout_s):
                # Calls are counted on the hot path, where nobody is told of each.
                while self._gateway.held_count(self.plan.name, self.id):  # noqa: ASYNC110
                    await asyncio.sleep(HELD_POLL_S)
        self.send(lifecycle.Drained())

    async def _end(self, *, grace_s: float) -> None:
        """SIGTERM, a grace, SIGKILL, which ends a stopped process too. The exit comes back as an event from `_start`."""
        await self._has_spawned.wait()  # a process that is just being made is ended too
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if grace_s:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), grace_s)
                    return
            process.kill()

    def _unlink_socket(self) -> None:
        with contextlib.suppress(OSError):  # something else that took its name is the next start's to complain of
            self._socket_path.unlink(missing_ok=True)


def _describe_exit(code: int) -> str:
    """How a process ended, in words. code: its exit status, or a negative signal number."""
    if code >= 0:
        return f"exited with status {code}"
    said = f"killed by signal {-code}"
    return f"{said} (by a person, or by the kernel for want of memory)" if -code == signal.SIGKILL else said
