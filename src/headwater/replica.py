"""What the controller tells the gateway about replicas: where one answers, and how each one is doing."""

import enum
from pathlib import Path
from typing import NamedTuple


class ReplicaState(enum.StrEnum):
    """The life of one replica; `docs/explanation/replicas.md` draws the diagram."""

    STARTING = "starting"  # its process runs and loads the model
    READY = "ready"  # it answers; the gateway may use it
    BACKING_OFF = "backing_off"  # its process ended; the next start waits
    STOPPING = "stopping"  # its process was asked to end
    STOPPED = "stopped"  # ended as asked
    FAILED = "failed"  # ended too often, or can't start; a person has to look


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
