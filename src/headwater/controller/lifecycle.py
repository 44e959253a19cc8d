"""The state machine of one replica. Pure: no clock, no process, no log.

Each arrow is explained in `docs/explanation/replicas.md`; a test checks that no order of events leaves a replica stuck.
"""

from dataclasses import dataclass, replace

from headwater.replica import ReplicaState

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica's state and what the decisions about it depend on. restarts_at_s: when it was restarted, oldest first."""

    state: ReplicaState = ReplicaState.STOPPED
    reason: str = ""
    restarts_at_s: tuple[float, ...] = ()
    restarts_count: int = 0
    timed_out_s: float | None = None
    """The start time-out that was missed, while the process is being ended for it."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At most `restarts_max` restarts within `window_s`; one more and the replica is failed."""

    restarts_max: int
    window_s: float


@dataclass(frozen=True, slots=True)
class StartRequested:
    """Somebody wants this replica to run."""


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The engine reported that the model is loaded and warm."""


@dataclass(frozen=True, slots=True)
class CannotStart:
    """Trying again can't help: the file is no model, the engine isn't installed."""

    reason: str


@dataclass(frozen=True, slots=True)
class StartTimedOut:
    """It took longer than `start_timeout_s` to become ready."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone, and the last it said."""

    reason: str
    at_s: float


@dataclass(frozen=True, slots=True)
class BackoffElapsed:
    """The wait before the next start is over."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants this replica to end."""


Event = StartRequested | BecameReady | CannotStart | StartTimedOut | Exited | BackoffElapsed | StopRequested


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the engine process."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the gateway where it answers."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the gateway that it no longer does."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """End the process: politely, then by force."""


@dataclass(frozen=True, slots=True)
class WaitBackoff:
    """Come back with BackoffElapsed after this long."""

    delay_s: float


Command = Spawn | Announce | Withdraw | Terminate | WaitBackoff


def step(  # noqa: PLR0911 one return for each arrow of the diagram
    replica: Replica, event: Event, policy: RestartPolicy
) -> tuple[Replica, list[Command]]:
    """Advance one replica. An event that means nothing in a state changes nothing: late news is normal."""
    match replica.state, event:
        case ReplicaState.STOPPED | ReplicaState.FAILED, StartRequested():
            return replace(replica, state=ReplicaState.STARTING, reason="loading the model", restarts_at_s=()), [
                Spawn()
            ]
        case ReplicaState.STARTING, BecameReady():
            return replace(replica, state=ReplicaState.READY, reason=""), [Announce()]
        case ReplicaState.STARTING, CannotStart(reason):
            return replace(replica, state=ReplicaState.FAILED, reason=reason, timed_out_s=None), [Terminate()]
        case ReplicaState.STARTING, StartTimedOut(timeout_s):
            # It is ended; its exit then counts as one more failed start.
            return replace(replica, timed_out_s=timeout_s), [Terminate()]
        case ReplicaState.STARTING, Exited() as exited:
            return _after_exit(replica, exited, policy, [])
        case ReplicaState.READY, Exited() as exited:
            return _after_exit(replica, exited, policy, [Withdraw()])
        case ReplicaState.BACKING_OFF, BackoffElapsed():
            return replace(replica, state=ReplicaState.STARTING, reason="loading the model again"), [Spawn()]
        case ReplicaState.READY, StopRequested():
            return replace(replica, state=ReplicaState.STOPPING, reason="asked to stop"), [Withdraw(), Terminate()]
        case ReplicaState.STARTING, StopRequested():
            return replace(replica, state=ReplicaState.STOPPING, reason="asked to stop"), [Terminate()]
        case ReplicaState.BACKING_OFF | ReplicaState.FAILED, StopRequested():
            return replace(replica, state=ReplicaState.STOPPED, reason="asked to stop"), []
        case ReplicaState.STOPPING, Exited():
            return replace(replica, state=ReplicaState.STOPPED), []
        case _:
            return replica, []


def _after_exit(
    replica: Replica, exited: Exited, policy: RestartPolicy, commands: list[Command]
) -> tuple[Replica, list[Command]]:
    """Restart after a growing wait, unless it has been restarted too often lately."""
    why = exited.reason if replica.timed_out_s is None else f"not ready within {replica.timed_out_s:g} s"
    replica = replace(replica, timed_out_s=None)
    recent = tuple(at_s for at_s in replica.restarts_at_s if exited.at_s - at_s < policy.window_s)
    if len(recent) >= policy.restarts_max:
        reason = f"ended {len(recent) + 1} times within {policy.window_s:g} s; last: {why}"
        return replace(replica, state=ReplicaState.FAILED, reason=reason, restarts_at_s=recent), commands
    delay_s = min(BACKOFF_FIRST_S * 2 ** len(recent), BACKOFF_MAX_S)
    after = replace(
        replica,
        state=ReplicaState.BACKING_OFF,
        reason=f"restarting in {delay_s:g} s; it ended: {why}",
        restarts_at_s=(*recent, exited.at_s),
        restarts_count=replica.restarts_count + 1,
    )
    return after, [*commands, WaitBackoff(delay_s)]
