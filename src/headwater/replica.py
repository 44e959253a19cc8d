"""What the controller tells the gateway about replicas: where one answers, and how each one is doing."""

import enum
from pathlib import Path
from typing import NamedTuple

STATE_FILES = (200, 201, 202, 203)
"""Descriptors of the files in memory that a replica's engine can save a slot's state to; as text, their names in requests."""


class ReplicaState(enum.StrEnum):
    """The life of one replica; `docs/explanation/replicas.md` draws the diagram."""

    STARTING = "starting"  # its process runs and loads the model
    READY = "ready"  # it answers; the gateway may use it
    SUSPECT = "suspect"  # it doesn't answer, or is being ended for hanging: no new calls
    DRAINING = "draining"  # no new calls; it ends when its running ones have
    BACKING_OFF = "backing_off"  # its process ended; the next start waits
    STOPPING = "stopping"  # its process was asked to end
    STOPPED = "stopped"  # ended as asked
    FAILED = "failed"  # ended too often, or can't start; a person has to look

    @property
    def is_coming(self) -> bool:
        """Whether a replica in this state may be ready again by itself: whoever waits for one waits on."""
        return self in (ReplicaState.STARTING, ReplicaState.BACKING_OFF, ReplicaState.SUSPECT)


class Progress:
    """What a replica's calls show of its being alive: the gateway writes it, the controller reads it. One event loop.

    in_flight_count: calls running on the replica. advanced_at_s: when one of them last showed an event (content, or
    progress of its prefill), or when the first of them began; on the event loop's clock, 0 before any.
    """

    __slots__ = ("advanced_at_s", "in_flight_count")

    def __init__(self) -> None:
        self.in_flight_count = 0
        self.advanced_at_s = 0.0

    def begin(self, now_s: float) -> None:
        """A call begins. It is no sign of life beside others: a hung engine may be sent calls for ever."""
        if not self.in_flight_count:
            self.advanced_at_s = now_s
        self.in_flight_count += 1


class ReplicaEndpoint(NamedTuple):
    """Where a ready replica answers. api_key is of this boot only and never leaves the machine."""

    replica_id: str
    deployment: str
    socket_path: Path
    api_key: str
    slots_count: int
    context_tokens: int


class ReplicaStatus(NamedTuple):
    """How one replica is doing; reason says why when it isn't ready."""

    replica_id: str
    deployment: str
    state: ReplicaState
    reason: str
    restarts_count: int
