import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.controller.lifecycle import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    Announce,
    Answered,
    BackoffElapsed,
    BecameReady,
    CannotStart,
    Command,
    Drained,
    DrainRequested,
    Event,
    Exited,
    Hung,
    Kill,
    Replica,
    RestartPolicy,
    Retire,
    Silent,
    Spawn,
    StartRequested,
    StartTimedOut,
    StopRequested,
    Terminate,
    WaitBackoff,
    Withdraw,
    step,
)
from headwater.replica import ReplicaState

POLICY = RestartPolicy(restarts_max=3, window_s=60.0)
STATES = {state: Replica(state=state, is_wanted=False) for state in ReplicaState}
"""As a replica stands that is not to be started again once it has been drained."""
EVENTS: list[Event] = [
    StartRequested(),
    BecameReady(),
    CannotStart("no model"),
    StartTimedOut(180.0),
    Silent("no answer"),
    Answered(),
    Hung("no call advanced"),
    DrainRequested("not wished for"),
    Drained(),
    Exited("killed by signal 9", 100.0),
    BackoffElapsed(),
    StopRequested(),
]
S = ReplicaState
ARROWS: dict[tuple[ReplicaState, type], tuple[ReplicaState, list[Command]]] = {
    (S.STOPPED, StartRequested): (S.STARTING, [Spawn()]),
    (S.FAILED, StartRequested): (S.STARTING, [Spawn()]),
    (S.STARTING, BecameReady): (S.READY, [Announce()]),
    (S.STARTING, CannotStart): (S.FAILED, [Terminate()]),
    (S.BACKING_OFF, StartRequested): (S.STARTING, [Spawn()]),
    (S.STARTING, StartTimedOut): (S.STARTING, [Kill()]),
    (S.READY, Silent): (S.SUSPECT, [Retire()]),
    (S.SUSPECT, Answered): (S.READY, [Announce()]),
    (S.READY, Hung): (S.SUSPECT, [Retire(), Kill()]),
    (S.SUSPECT, Hung): (S.SUSPECT, [Kill()]),
    (S.SUSPECT, Exited): (S.BACKING_OFF, [Withdraw(), WaitBackoff(BACKOFF_FIRST_S)]),
    (S.SUSPECT, StopRequested): (S.STOPPING, [Withdraw(), Terminate()]),
    (S.SUSPECT, DrainRequested): (S.DRAINING, [Retire()]),
    (S.READY, DrainRequested): (S.DRAINING, [Retire()]),
    (S.STARTING, DrainRequested): (S.STOPPING, [Terminate()]),
    (S.BACKING_OFF, DrainRequested): (S.STOPPED, []),
    (S.FAILED, DrainRequested): (S.STOPPED, []),
    (S.DRAINING, DrainRequested): (S.DRAINING, []),
    (S.DRAINING, Hung): (S.DRAINING, [Kill()]),
    (S.DRAINING, Drained): (S.STOPPING, [Withdraw(), Terminate()]),
    (S.DRAINING, Exited): (S.STOPPED, [Withdraw()]),
    (S.DRAINING, StopRequested): (S.STOPPING, [Withdraw(), Terminate()]),
    (S.STARTING, Exited): (S.BACKING_OFF, [WaitBackoff(BACKOFF_FIRST_S)]),
    (S.READY, Exited): (S.BACKING_OFF, [Withdraw(), WaitBackoff(BACKOFF_FIRST_S)]),
    (S.BACKING_OFF, BackoffElapsed): (S.STARTING, [Spawn()]),
    (S.STARTING, StopRequested): (S.STOPPING, [Terminate()]),
    (S.READY, StopRequested): (S.STOPPING, [Withdraw(), Terminate()]),
    (S.BACKING_OFF, StopRequested): (S.STOPPED, []),
    (S.FAILED, StopRequested): (S.STOPPED, []),
    (S.STOPPING, Exited): (S.STOPPED, []),
}


@pytest.mark.parametrize(
    ("state", "event"),
    list(itertools.product(S, EVENTS)),
    ids=lambda value: value.value if isinstance(value, S) else type(value).__name__,
)
def test_every_arrow_of_the_diagram_and_no_other(state: ReplicaState, event: Event) -> None:
    before = STATES[state]
    after, commands = step(before, event, POLICY)
    expected = ARROWS.get((state, type(event)))
    if expected is None:  # late news is normal and changes nothing
        assert (after, commands) == (before, [])
    else:
        assert (after.state, commands) == expected


@pytest.mark.parametrize("event", [CannotStart("no model"), Exited("signal 9", 100.0)])
def test_the_reason_says_what_happened(event: Event) -> None:
    after, _ = step(STATES[S.STARTING], event, POLICY)
    said = {CannotStart: "no model", Exited: "signal 9"}[type(event)]
    assert said in after.reason


def test_a_missed_start_is_the_reason_and_not_the_signal_that_ended_it() -> None:
    waiting, _ = step(STATES[S.STARTING], StartTimedOut(180.0), POLICY)
    after, _ = step(waiting, Exited("signal 15", 100.0), POLICY)
    assert "not ready within 180 s" in after.reason
    assert "signal 15" not in after.reason
    assert after.ended_for is None


def test_the_wait_before_a_restart_doubles_up_to_a_bound() -> None:
    replica, waits = STATES[S.STARTING], []
    for _ in range(10):
        replica, [wait] = step(replica, Exited("x", 0.0), RestartPolicy(100, 60.0))
        assert isinstance(wait, WaitBackoff)
        waits.append(wait.delay_s)
        replica, _ = step(replica, BackoffElapsed(), POLICY)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert BACKOFF_MAX_S == 30


def test_one_exit_too_many_within_the_window_fails_it_and_an_old_one_is_forgotten() -> None:
    replica = STATES[S.STARTING]
    for at_s in (0.0, 10.0, 20.0):
        replica, _ = step(replica, Exited("x", at_s), POLICY)
        assert replica.state is S.BACKING_OFF
        replica, _ = step(replica, BackoffElapsed(), POLICY)
    failed, commands = step(replica, Exited("the last", 59.9), POLICY)
    assert (failed.state, commands) == (S.FAILED, [])
    assert "4 times within 60 s" in failed.reason
    assert "the last" in failed.reason
    restarted, _ = step(replica, Exited("x", 60.0), POLICY)
    assert restarted.state is S.BACKING_OFF
    assert restarted.restarts_count == 4


def test_a_replica_that_may_not_restart_fails_at_its_first_exit_and_is_withdrawn() -> None:
    after, commands = step(STATES[S.READY], Exited("x", 0.0), RestartPolicy(0, 60.0))
    assert (after.state, commands) == (S.FAILED, [Withdraw()])


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.integers(0, 5), st.floats(1, 100))
def test_there_are_never_more_restarts_in_any_window_than_allowed(
    gaps_s: list[float], restarts_max: int, window_s: float
) -> None:
    policy = RestartPolicy(restarts_max, window_s)
    replica, now_s, restarts_at_s = STATES[S.STARTING], 0.0, list[float]()
    for gap_s in gaps_s:
        now_s += gap_s
        replica, _ = step(replica, Exited("x", now_s), policy)
        if replica.state is S.FAILED:
            break
        restarts_at_s.append(now_s)
        replica, _ = step(replica, BackoffElapsed(), policy)
    for at_s in restarts_at_s:
        assert sum(at_s <= other < at_s + window_s for other in restarts_at_s) <= max(restarts_max, 0)


def test_what_it_was_ended_for_is_the_reason_and_not_the_signal() -> None:
    hung, _ = step(STATES[S.READY], Hung("nothing advanced for 60 s"), POLICY)
    assert hung.reason == "being ended: nothing advanced for 60 s"
    assert step(hung, Answered(), POLICY) == (hung, []), "it is being killed: too late"
    assert step(hung, Hung("again"), POLICY) == (hung, [])
    after, _ = step(hung, Exited("killed by signal 9", 100.0), POLICY)
    assert "nothing advanced for 60 s" in after.reason
    assert "signal 9" not in after.reason


def test_a_ready_one_that_is_to_restart_ends_its_calls_first_and_starts_with_a_clean_record() -> None:
    ready = Replica(state=S.READY, restarts_at_s=(1.0, 2.0), restarts_count=2)
    draining, commands = step(ready, DrainRequested("asked to restart", is_wanted=True), POLICY)
    assert (draining.state, commands) == (S.DRAINING, [Retire()])
    ending, commands = step(draining, Drained(), POLICY)
    assert (ending.state, commands) == (S.DRAINING, [Terminate()])
    starting, commands = step(ending, Exited("exited with status 0", 3.0), POLICY)
    assert (starting.state, commands, starting.restarts_at_s) == (S.STARTING, [Withdraw(), Spawn()], ())


@pytest.mark.parametrize("state", [S.STARTING, S.BACKING_OFF, S.FAILED, S.STOPPED, S.STOPPING])
def test_one_that_serves_nobody_has_nothing_to_end_before_a_restart(state: ReplicaState) -> None:
    assert step(STATES[state], DrainRequested("asked to restart", is_wanted=True), POLICY) == (STATES[state], [])


class World:
    """The side the machine acts on: at most one process, one timer, one announcement; it answers in any order."""

    def __init__(self) -> None:
        self.replica = Replica()
        self.has_process = self.has_timer = self.is_announced = self.is_known = False

    def send(self, event: Event) -> None:
        self.replica, commands = step(self.replica, event, POLICY)
        for command in commands:
            match command:
                case Spawn():
                    assert self.replica.state is S.STARTING
                    self.has_process, self.has_timer = True, False
                case Announce():
                    assert not self.is_announced, "announced twice"
                    self.is_announced = self.is_known = True
                case Retire():
                    assert self.is_known, "retired without being announced"
                    self.is_announced = False
                case Withdraw():
                    assert self.is_known, "withdrawn without being announced"
                    self.is_announced = self.is_known = False
                case WaitBackoff():
                    assert not self.has_timer, "two timers"
                    self.has_timer = True
        assert self.is_announced == (self.replica.state is S.READY)

    def possible(self) -> list[Event]:
        """What may come next from the world, beside the wishes of people."""
        events: list[Event] = []
        if self.has_process:
            events += [BecameReady(), CannotStart("x"), StartTimedOut(1.0), Exited("x", 0.0)]
            events += [Silent("x"), Answered(), Hung("x"), Drained()]
            events += [DrainRequested("x", is_wanted=True), StartRequested()]
        if self.has_timer:
            events.append(BackoffElapsed())
        return events

    def happen(self, event: Event) -> None:
        if isinstance(event, Exited):
            self.has_process = False
        if isinstance(event, BackoffElapsed):
            self.has_timer = False
        self.send(event)


@given(st.data())
def test_no_order_of_events_leaves_a_replica_stuck(data: st.DataObject) -> None:
    world = World()
    world.send(StartRequested())
    for _ in range(data.draw(st.integers(0, 30))):
        possible = world.possible()
        if not possible:
            break
        event = data.draw(st.sampled_from(possible))
        # the clock goes on far enough that no restart is ever one too many, or stands still so that they add up
        if isinstance(event, Exited):
            event = Exited("x", data.draw(st.sampled_from([0.0, 1e9])))
        world.happen(event)
        state = world.replica.state
        # something is always to come, or a person has to look
        assert state is S.FAILED or world.possible(), state
        # a replica that waits for its process has one, a replica that waits for its timer has that
        assert state not in (S.STARTING, S.READY, S.SUSPECT, S.DRAINING, S.STOPPING) or world.has_process, state
        assert state is not S.BACKING_OFF or world.has_timer
    ends: list[Event] = [StopRequested(), DrainRequested("x")]
    world.send(data.draw(st.sampled_from(ends)))
    if world.replica.state is S.DRAINING:
        world.send(Drained())
    while world.replica.state is not S.STOPPED:
        assert world.replica.state is S.STOPPING
        assert world.has_process, "it waits for the exit of a process that is not there"
        world.happen(Exited("as asked", 0.0))
    assert not world.is_announced
