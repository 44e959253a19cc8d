"""The state machine of one replica. Pure: no clock, no process, no log.

Each arrow is explained in `docs/explanation/replicas.md`; a test checks that no order of events leaves a replica stuck.
"""

from dataclasses import dataclass, replace

from headwater.replica import ReplicaState

S = ReplicaState
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica's state and what the decisions about it depend on. restarts_at_s: when it was restarted, oldest first."""

    state: ReplicaState = ReplicaState.STOPPED
    reason: str = ""
    restarts_at_s: tuple[float, ...] = ()
    restarts_count: int = 0
    ended_for: str | None = None
    """Why the process is being ended against its will, while it is."""
    is_wanted: bool = True
    """Whether it is to be started again once it has been drained."""


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
class Silent:
    """It leaves questions unanswered; for now it gets no new calls."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """It answers again, or its calls advance."""


@dataclass(frozen=True, slots=True)
class Hung:
    """Nothing advanced for too long, or it sends garbage: only a new process will do."""

    reason: str


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """It is to end once its calls have ended. is_wanted: and to start again then."""

    reason: str
    is_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Drained:
    """Its calls have ended, or their time is over."""


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


Event = (
    StartRequested
    | BecameReady
    | CannotStart
    | StartTimedOut
    | Silent
    | Answered
    | Hung
    | DrainRequested
    | Drained
    | Exited
    | BackoffElapsed
    | StopRequested
)


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the engine process."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the gateway where it answers."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Tell the gateway to send it no new calls; those running go on."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the gateway that it is gone."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """End the process: politely, then by force."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process by force: it hears nothing any more."""


@dataclass(frozen=True, slots=True)
class WaitBackoff:
    """Come back with BackoffElapsed after this long."""

    delay_s: float


Command = Spawn | Announce | Retire | Withdraw | Terminate | Kill | WaitBackoff


def step(replica: Replica, event: Event, policy: RestartPolicy) -> tuple[Replica, list[Command]]:
    """Advance one replica. An event that means nothing in a state changes nothing: late news is normal."""
    match event:
        case StopRequested():
            return _stop(replica)
        case Exited():
            return _after_exit(replica, event, policy)
        case DrainRequested():
            return _drain(replica, event)
        case _:
            return _go_on(replica, event)


def _go_on(  # noqa: PLR0911 one return for each arrow of the diagram
    replica: Replica, event: Event
) -> tuple[Replica, list[Command]]:
    """Starting, being ready, being doubted."""
    match replica.state, event:
        case S.STOPPED | S.FAILED | S.BACKING_OFF, StartRequested():
            return _starting(replica, "loading the model"), [Spawn()]
        case S.STARTING, BecameReady():
            return replace(replica, state=S.READY, reason=""), [Announce()]
        case S.STARTING, CannotStart(reason):
            return replace(replica, state=S.FAILED, reason=reason, ended_for=None), [Terminate()]
        case S.STARTING, StartTimedOut(timeout_s):
            # It is ended; its exit then counts as one more failed start.
            return replace(replica, ended_for=f"not ready within {timeout_s:g} s"), [Kill()]
        case S.BACKING_OFF, BackoffElapsed():
            return replace(replica, state=S.STARTING, reason="loading the model again"), [Spawn()]
        case S.READY, Silent(reason):
            return replace(replica, state=S.SUSPECT, reason=reason), [Retire()]
        case S.SUSPECT, Answered() if replica.ended_for is None:
            return replace(replica, state=S.READY, reason=""), [Announce()]
        case S.READY | S.SUSPECT, Hung(reason) if replica.ended_for is None:
            commands: list[Command] = [Kill()] if replica.state is S.SUSPECT else [Retire(), Kill()]
            return replace(replica, state=S.SUSPECT, reason=f"being ended: {reason}", ended_for=reason), commands
        case S.DRAINING, Hung(reason):
            return replace(replica, reason=f"being ended: {reason}"), [Kill()]
        case S.DRAINING, Drained() if replica.is_wanted:
            return replica, [Terminate()]
        case S.DRAINING, Drained():
            return replace(replica, state=S.STOPPING), [Withdraw(), Terminate()]
        case _:
            return replica, []


def _stop(replica: Replica) -> tuple[Replica, list[Command]]:
    """The platform ends, or the replica is no longer wished for."""
    match replica.state:
        case S.READY | S.SUSPECT | S.DRAINING:
            return replace(replica, state=S.STOPPING, reason="asked to stop"), [Withdraw(), Terminate()]
        case S.STARTING:
            return replace(replica, state=S.STOPPING, reason="asked to stop"), [Terminate()]
        case S.BACKING_OFF | S.FAILED:
            return replace(replica, state=S.STOPPED, reason="asked to stop"), []
        case _:
            return replica, []


def _drain(replica: Replica, event: DrainRequested) -> tuple[Replica, list[Command]]:
    """It is to end, but whoever it serves is served to the end."""
    match replica.state:
        case S.READY | S.SUSPECT if replica.ended_for is None:
            return replace(replica, state=S.DRAINING, reason=event.reason, is_wanted=event.is_wanted), [Retire()]
        case S.DRAINING:
            return replace(replica, reason=event.reason, is_wanted=event.is_wanted), []
        case _ if event.is_wanted:
            return replica, []
        case _:
            return _stop(replica)


def _starting(replica: Replica, reason: str) -> Replica:
    return replace(replica, state=S.STARTING, reason=reason, restarts_at_s=(), ended_for=None, is_wanted=True)


def _after_exit(replica: Replica, exited: Exited, policy: RestartPolicy) -> tuple[Replica, list[Command]]:
    """Ended as asked; or restart after a growing wait, unless it has been restarted too often lately."""
    commands: list[Command] = []
    match replica.state:
        case S.STOPPING:
            return replace(replica, state=S.STOPPED), []
        case S.DRAINING if replica.is_wanted:
            return _starting(replica, "loading the model again, as asked"), [Withdraw(), Spawn()]
        case S.DRAINING:
            return replace(replica, state=S.STOPPED), [Withdraw()]
        case S.READY | S.SUSPECT:
            commands = [Withdraw()]
        case S.STARTING:
            pass
        case _:
            return replica, []
    why = exited.reason if replica.ended_for is None else replica.ended_for
    replica = replace(replica, ended_for=None)
    recent = tuple(at_s for at_s in replica.restarts_at_s if exited.at_s - at_s < policy.window_s)
    if len(recent) >= policy.restarts_max:
        reason = f"ended {len(recent) + 1} times within {policy.window_s:g} s; last: {why}"
        return replace(replica, state=S.FAILED, reason=reason, restarts_at_s=recent), commands
    delay_s = min(BACKOFF_FIRST_S * 2 ** len(recent), BACKOFF_MAX_S)
    after = replace(
        replica,
        state=S.BACKING_OFF,
        reason=f"restarting in {delay_s:g} s; it ended: {why}",
        restarts_at_s=(*recent, exited.at_s),
        restarts_count=replica.restarts_count + 1,
    )
    return after, [*commands, WaitBackoff(delay_s)]
