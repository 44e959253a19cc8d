"""Runs the replicas of the configured deployments, and changes them when the configuration does."""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path

import structlog

from headwater.clock import Clock
from headwater.controller import lifecycle
from headwater.controller.calibration import Calibration
from headwater.controller.plan import DeploymentPlan, is_same_engine, memory_available_bytes
from headwater.controller.replica_task import CHILD_COMMAND, Gateway, ReplicaTask
from headwater.replica import ReplicaState, ReplicaStatus

log = structlog.get_logger()

S = ReplicaState
_SETTLED = (ReplicaState.READY, ReplicaState.FAILED)


class Supervisor:
    """All replicas of all deployments of this machine."""

    def __init__(
        self,
        plans: Sequence[DeploymentPlan],
        *,
        run_directory: Path,
        log_directory: Path,
        calibration: Calibration,
        clock: Clock,
        gateway: Gateway,
        command: Sequence[str] = CHILD_COMMAND,
    ) -> None:
        """command: the program of the engines' processes; another one only in tests."""
        self._run_directory = run_directory
        self._log_directory = log_directory
        self._calibration = calibration
        self._clock = clock
        self._gateway = gateway
        self._command = command
        self._plans = {plan.name: plan for plan in plans}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changing: dict[str, asyncio.Task[None]] = {}
        self._something_changed = asyncio.Event()
        self.replicas: list[ReplicaTask] = []
        for plan in plans:
            for _ in range(plan.replicas_count):
                self._add(plan)

    @property
    def statuses(self) -> list[ReplicaStatus]:
        """How every replica is doing."""
        return [replica.status for replica in self.replicas]

    def start(self) -> None:
        """Start every replica; they report their way through the gateway's `report`."""
        for replica in self.replicas:
            self._start(replica)

    async def stop(self) -> None:
        """End every engine process and wait until it is gone. Idempotent."""
        for change in self._changing.values():
            change.cancel()
        await asyncio.gather(*self._changing.values(), return_exceptions=True)
        for replica in self.replicas:
            replica.send(lifecycle.StopRequested())
        await asyncio.gather(*self._tasks.values())

    async def settled(self) -> None:
        """Wait until every replica is ready or failed."""
        await self._until_settled(self.replicas)

    # -- what people and the gateway ask for ---------------------------------------------------------------------------

    def apply(self, plans: Sequence[DeploymentPlan], *, drain_timeout_s: float) -> None:
        """Make these plans true: returns at once, `settled` and the states say how it goes.

        A failed replica is given another try, as a changed one is. New replicas are started before old ones are drained
        where memory allows it. Whatever a replica serves goes on for at most drain_timeout_s once it is drained.
        """
        wished = {plan.name: plan for plan in plans}
        for name in self._plans.keys() - wished.keys():
            self._stop_changing(name)
            for replica in self._of(name):
                self._drain(replica, "no longer configured", drain_timeout_s)
        for name, plan in wished.items():
            self._stop_changing(name)
            there = self._of(name)
            same = [one for one in there if is_same_engine(one.plan, plan) and one.replica.state is not S.FAILED]
            for replica in same:
                replica.plan = plan
            if len(same) == len(there):
                self._count(plan, there, drain_timeout_s)
            else:
                self._changing[name] = asyncio.ensure_future(self._replace(plan, same, drain_timeout_s))
        self._plans = wished

    def restart(self, replica_id: str, *, drain_timeout_s: float) -> ReplicaStatus | None:
        """Start a failed or waiting replica now; let another one's calls end first. None: there is no such replica."""
        replica = self._find(replica_id)
        if replica is None:
            return None
        replica.drain_timeout_s = drain_timeout_s
        replica.send(lifecycle.StartRequested())
        replica.send(lifecycle.DrainRequested("asked to restart", is_wanted=True))
        return replica.status

    # -- how a plan becomes true ---------------------------------------------------------------------------------------

    def _count(self, plan: DeploymentPlan, there: list[ReplicaTask], drain_timeout_s: float) -> None:
        """Start what is missing, drain what is too many, those first that don't answer."""
        for _ in range(plan.replicas_count - len(there)):
            self._start(self._add(plan))
        by_use = sorted(there, key=lambda one: one.replica.state is not ReplicaState.READY)
        for replica in by_use[plan.replicas_count :]:
            self._drain(replica, "fewer replicas are configured", drain_timeout_s)

    async def _replace(self, plan: DeploymentPlan, same: list[ReplicaTask], drain_timeout_s: float) -> None:
        """Put replicas of this plan in the place of others, one after the other; the old ones stay if a new one fails."""
        old = [replica for replica in self._of(plan.name) if replica not in same]
        for _ in range(plan.replicas_count - len(same)):
            if old and not _has_room(plan):
                out = old.pop(0)
                self._drain(out, "its deployment was changed", drain_timeout_s)
                await asyncio.wait((self._tasks[out.id],))
            new = self._add(plan)
            self._start(new)
            await self._until_settled([new])
            if new.replica.state is ReplicaState.FAILED:
                log.error("deployment_change_failed", deployment=plan.name, reason=new.replica.reason)
                return
            if old:
                self._drain(old.pop(0), "its deployment was changed", drain_timeout_s)
        for replica in old:
            self._drain(replica, "its deployment was changed", drain_timeout_s)
        self._count(plan, self._of(plan.name), drain_timeout_s)

    def _stop_changing(self, name: str) -> None:
        change = self._changing.pop(name, None)
        if change is not None:
            change.cancel()

    def _add(self, plan: DeploymentPlan) -> ReplicaTask:
        taken = {replica.number for replica in self.replicas if replica.plan.name == plan.name}
        replica = ReplicaTask(
            plan,
            next(number for number in itertools.count() if number not in taken),
            run_directory=self._run_directory,
            log_directory=self._log_directory,
            calibration=self._calibration,
            clock=self._clock,
            on_change=self._changed,
            gateway=self._gateway,
            command=self._command,
        )
        self.replicas.append(replica)
        return replica

    def _start(self, replica: ReplicaTask) -> None:
        self._tasks[replica.id] = asyncio.ensure_future(replica.run())
        replica.send(lifecycle.StartRequested())

    def _drain(self, replica: ReplicaTask, reason: str, timeout_s: float) -> None:
        replica.drain_timeout_s = timeout_s
        replica.send(lifecycle.DrainRequested(reason))
        replica.is_leaving = True

    def _of(self, name: str) -> list[ReplicaTask]:
        """The replicas of a deployment that are to stay."""
        return [one for one in self.replicas if one.plan.name == name and not one.is_leaving]

    def _find(self, replica_id: str) -> ReplicaTask | None:
        return next((replica for replica in self.replicas if replica.id == replica_id), None)

    async def _until_settled(self, replicas: list[ReplicaTask]) -> None:
        while any(one.replica.state not in _SETTLED and not one.is_leaving for one in replicas):
            self._something_changed.clear()
            await self._something_changed.wait()

    def _changed(self, changed: ReplicaTask) -> None:
        name = changed.plan.name
        if changed.is_leaving and changed.replica.state is ReplicaState.STOPPED:
            self.replicas.remove(changed)
        self._gateway.report(name, [replica.status for replica in self.replicas if replica.plan.name == name])
        self._something_changed.set()


def _has_room(plan: DeploymentPlan) -> bool:
    """Whether one more replica fits into memory beside all that runs; where nobody can say, it is tried."""
    available = memory_available_bytes()
    return available is None or plan.memory_bytes <= available
