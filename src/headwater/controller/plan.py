"""What the controller is told to run: one plan for each deployment, and whether another plan needs another process."""

from pathlib import Path

import msgspec


class DeploymentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment, resolved: its settings with the model's file found. context_tokens is per request.

    memory_bytes: about what a replica takes, 0 when nobody knows.
    """

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
    hang_timeout_s: float = 60.0
    memory_bytes: int = 0


def is_same_engine(old: DeploymentPlan, new: DeploymentPlan) -> bool:
    """Whether a process that was started for `old` also serves `new`: what differs is said to nobody but the controller."""
    return old == msgspec.structs.replace(
        new,
        replicas_count=old.replicas_count,
        start_timeout_s=old.start_timeout_s,
        restarts=old.restarts,
        hang_timeout_s=old.hang_timeout_s,
        memory_bytes=old.memory_bytes,
    )


def memory_available_bytes() -> int | None:
    """What the machine can still give without swapping; None where it doesn't say. Source: proc_meminfo(5)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
