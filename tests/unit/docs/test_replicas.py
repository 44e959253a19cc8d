"""`explanation/replicas.md` has every arrow of the replica's state machine, and no other."""

import itertools
import re

from headwater.controller import lifecycle
from headwater.controller.lifecycle import Replica, RestartPolicy, step
from headwater.replica import ReplicaState
from tests.unit.docs.pages import codes, read, rows

PAGE = read("explanation/replicas.md")
EVENTS: list[lifecycle.Event] = [
    lifecycle.StartRequested(),
    lifecycle.BecameReady(),
    lifecycle.CannotStart("no model"),
    lifecycle.StartTimedOut(180.0),
    lifecycle.Silent("no answer"),
    lifecycle.Answered(),
    lifecycle.Hung("nothing advanced"),
    lifecycle.DrainRequested("changed"),
    lifecycle.Drained(),
    lifecycle.Exited("killed", 100.0),
    lifecycle.BackoffElapsed(),
    lifecycle.StopRequested(),
]
POLICIES = (RestartPolicy(restarts_max=3, window_s=60.0), RestartPolicy(restarts_max=0, window_s=60.0))

Arrow = tuple[str, str, str, tuple[str, ...]]


def _arrows() -> set[Arrow]:
    """Every (state, event) that changes the state or commands something."""
    found: set[Arrow] = set()
    for policy, state, event, is_wanted in itertools.product(POLICIES, ReplicaState, EVENTS, (True, False)):
        after, commands = step(Replica(state=state, is_wanted=is_wanted), event, policy)
        if after.state is not state or commands:
            names = tuple(type(command).__name__ for command in commands)
            found.add((state.value, type(event).__name__, after.state.value, names))
    return found


def test_the_table_has_every_arrow_and_no_other() -> None:
    listed = [
        (codes(start)[0], codes(event)[0], codes(end)[0], tuple(codes(commands)))
        for start, event, end, commands, _why in rows(PAGE, "From")
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) == _arrows()


def test_every_arrow_is_explained() -> None:
    assert all(why.endswith(".") for *_, why in rows(PAGE, "From"))


def test_the_diagram_draws_the_same_arrows() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+): (\w+)$", PAGE, re.MULTILINE))
    assert drawn == {(start, end, event) for start, event, end, _ in _arrows()}


def test_every_event_and_every_state_is_there() -> None:
    assert {event for _, event, *_ in _arrows()} == {type(event).__name__ for event in EVENTS}
    assert {type(event) for event in EVENTS} == set(lifecycle.Event.__args__)
    assert {codes(row[0])[0] for row in rows(PAGE, "State")} == {state.value for state in ReplicaState}
