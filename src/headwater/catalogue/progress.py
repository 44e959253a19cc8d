"""What a pull says while it runs; a command line draws it, a log keeps it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advanced:
    """This much of the model is here. `done_bytes` may fall when a source has to start over."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class SourceTried:
    """Bytes are asked of this source from now on."""

    source: str


@dataclass(frozen=True, slots=True)
class SourceLeft:
    """A source was given up; the next one is tried."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another process is pulling the same model, and this one waits for it. process_id: None when it isn't known."""

    process_id: int | None


PullEvent = Advanced | SourceTried | SourceLeft | Waiting
Progress = Callable[[PullEvent], None]  # an exception it raises ends the pull, which can be resumed
