"""The doctor's judgements: facts in, a verdict out with what, why and what now. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from headwater.errors import OperatorError

PYTHON_MIN: Final = (3, 11)
SQLITE_MIN: Final = (3, 51, 3)  # older ones can corrupt a WAL that two connections write (fixed in 3.51.3)
ENGINE_OVERHEAD_BYTES: Final = (
    256 * 2**20
)  # a replica's process, compute buffers and server, beside weights and KV cache
MEMORY_SHARE_MAX: Final = 0.9  # above this share of what is available, the rest of the machine begins to swap
DISK_SPARE_BYTES: Final = 2**30  # for the database, logs and a second download
SOCKET_PATH_BYTES_MAX: Final = 107  # sockaddr_un.sun_path is 108 bytes with its closing zero
REPLICA_SOCKET_NAME: Final = "x" * 12 + ".sock"  # a replica's socket carries the last 12 digits of its id
SYNC_WARN_S: Final = 0.005
OPEN_FILES_PER_REQUEST: Final = 2  # the client's connection and the engine's
OPEN_FILES_BASE: Final = 128  # database, logs, libraries, listeners, engine pipes


class Verdict(StrEnum):
    """What a check found: fine, worth knowing, or in the way of a start."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check's outcome; why and now are empty where nothing is to be done."""

    name: str
    verdict: Verdict
    what: str
    why: str = ""
    now: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentNeed:
    """Memory one replica of a deployment takes.

    weights_bytes: the model file. kv_bytes: context_tokens × slots × bytes a token. is_estimate: one of the two is a
    guess, because the model file isn't here yet.
    """

    name: str
    weights_bytes: int
    kv_bytes: int
    is_estimate: bool
    replicas: int = 1

    @property
    def total_bytes(self) -> int:
        """What all its replicas take."""
        return self.replicas * (self.weights_bytes + self.kv_bytes + ENGINE_OVERHEAD_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryFacts:
    """A directory as found; nearest is the closest ancestor that exists (itself when it exists)."""

    path: Path
    nearest: Path
    is_directory: bool
    is_writable: bool
    mode: int

    @property
    def exists(self) -> bool:
        """Whether the directory itself is there."""
        return self.path == self.nearest


class PortState(StrEnum):
    """Who has the address of gateway.listen."""

    FREE = "free"
    OURS = "ours"
    TAKEN = "taken"
    UNUSABLE = "unusable"


def check_python(version: tuple[int, int, int]) -> Check:
    """Whether this Python can run Headwater."""
    text = ".".join(map(str, version))
    if version[:2] < PYTHON_MIN:
        return Check(
            name="python",
            verdict=Verdict.FAIL,
            what=f"Python is {text}.",
            why="Headwater needs 3.11 or newer.",
            now="Make the virtual environment with a newer Python.",
        )
    return Check(name="python", verdict=Verdict.OK, what=f"Python is {text}.")


def check_sqlite(version: str) -> Check:
    """Whether the SQLite library is one that keeps a write-ahead log whole."""
    if tuple(int(part) for part in version.split(".")) < SQLITE_MIN:
        return Check(
            name="sqlite",
            verdict=Verdict.FAIL,
            what=f"The SQLite library is {version}.",
            why="Before 3.51.3 two connections can corrupt the write-ahead log, and the books are in it.",
            now="Install the package's requirements again; pysqlite3 brings its own SQLite library.",
        )
    return Check(name="sqlite", verdict=Verdict.OK, what=f"The SQLite library is {version}.")


def check_port(listen: str, state: PortState, reason: str = "") -> Check:
    """Whether the gateway can listen; reason: the system's words when it can't."""
    if state is PortState.FREE:
        return Check(name="port", verdict=Verdict.OK, what=f"{listen} is free.")
    if state is PortState.OURS:
        return Check(name="port", verdict=Verdict.OK, what=f"{listen} is held by this platform, which is running.")
    what = f"{listen} is taken by another program." if state is PortState.TAKEN else f"{listen} can't be listened on."
    return Check(
        name="port",
        verdict=Verdict.FAIL,
        what=what,
        why=f"The gateway listens there (gateway.listen). The system says: {reason}.",
        now="Stop what holds it, or choose another: --set gateway.listen=127.0.0.1:8081.",
    )


def check_directory(name: str, key: str, facts: DirectoryFacts, *, is_private: bool) -> Check:
    """Whether a directory can be used; key: the setting that names it; is_private: only its owner should enter."""
    if not facts.is_directory:
        return Check(
            name=name,
            verdict=Verdict.FAIL,
            what=f"{facts.nearest} is not a directory.",
            why=f"{key} needs the directory {facts.path}.",
            now=f"Move the file away, or change {key}.",
        )
    if not facts.is_writable:
        return Check(
            name=name,
            verdict=Verdict.FAIL,
            what=f"{facts.nearest} can't be written by you.",
            why=f"{key} needs the directory {facts.path}.",
            now=f"Change its owner or permissions, or change {key}.",
        )
    if not facts.exists:
        return Check(name=name, verdict=Verdict.OK, what=f"{facts.path} will be made at the first start.")
    if is_private and facts.mode & 0o077:
        return Check(
            name=name,
            verdict=Verdict.WARN,
            what=f"{facts.path} is open to others (mode {facts.mode:04o}).",
            why="It holds hashes of keys, usage of everyone and the socket that administers the platform.",
            now=f"chmod 700 {facts.path}",
        )
    return Check(name=name, verdict=Verdict.OK, what=f"{facts.path} is there and writable.")


def check_disk(directory: Path, free_bytes: int, download_bytes: int | None) -> Check:
    """Whether the models still to fetch fit; download_bytes: None means unknown."""
    what = f"{human_bytes(free_bytes)} free at {directory}"
    if download_bytes is None:
        what += "; the size of the models still to fetch is unknown."
    elif download_bytes:
        what += f"; models still to fetch: {human_bytes(download_bytes)}."
    else:
        what += "; no model is left to fetch."
    needed = download_bytes or 0
    now = "Make room, or put models.directory on a larger disk."
    if free_bytes < needed:
        why = f"{human_bytes(needed - free_bytes)} are missing."
        return Check(name="disk", verdict=Verdict.FAIL, what=what, why=why, now=now)
    if free_bytes - needed < DISK_SPARE_BYTES:
        why = f"Less than {human_bytes(DISK_SPARE_BYTES)} would be left, and a full disk stops the ledger."
        return Check(name="disk", verdict=Verdict.WARN, what=what, why=why, now=now)
    return Check(name="disk", verdict=Verdict.OK, what=what)


def check_memory(needs: Sequence[DeploymentNeed], available_bytes: int | None, *, is_running: bool) -> Check:
    """Whether all replicas fit in memory; available_bytes: None means the system doesn't say.

    is_running: the platform is up, so what is available already lacks what its replicas took, and proves nothing.
    """
    needed = sum(need.total_bytes for need in needs)
    about = "about " if any(need.is_estimate for need in needs) else ""
    parts = ", ".join(f"{need.name} {human_bytes(need.total_bytes)}" for need in needs)
    what = f"The replicas need {about}{human_bytes(needed)} ({parts})" if needs else "No replica runs on this machine"
    if available_bytes is None:
        what += "; what is available can't be read on this system."
        return Check(name="memory", verdict=Verdict.WARN if needs else Verdict.OK, what=what)
    what += f"; {human_bytes(available_bytes)} are available."
    if is_running:
        return Check(
            name="memory", verdict=Verdict.OK, what=f"{what} The platform is running, so part of that is in use."
        )
    now = "Lower deployments[].context_tokens, slots or replicas, or choose a smaller model."
    if needed > available_bytes:
        why = f"{human_bytes(needed - available_bytes)} are missing; the system would kill a replica, or swap."
        verdict = Verdict.WARN if about else Verdict.FAIL  # a guess forbids no start
        return Check(name="memory", verdict=verdict, what=what, why=why, now=now)
    if needed > available_bytes * MEMORY_SHARE_MAX:
        why = "Little is left for the gateway and everything else."
        return Check(name="memory", verdict=Verdict.WARN, what=what, why=why, now=now)
    return Check(name="memory", verdict=Verdict.OK, what=what)


def check_socket_path(data_directory: Path) -> Check:
    """Whether the sockets' paths fit the system's limit; data_directory: absolute."""
    admin_bytes = len(bytes(data_directory / "admin.sock"))
    replica_bytes = len(bytes(data_directory / "run" / REPLICA_SOCKET_NAME))
    if admin_bytes > SOCKET_PATH_BYTES_MAX:
        return Check(
            name="sockets",
            verdict=Verdict.FAIL,
            what=f"The path of the admin socket in {data_directory} takes {admin_bytes} bytes.",
            why=f"The system's limit for a socket is {SOCKET_PATH_BYTES_MAX}.",
            now="Choose a data directory with a shorter path (store.url).",
        )
    if replica_bytes > SOCKET_PATH_BYTES_MAX:
        what = f"Replicas' sockets go to a temporary directory: under {data_directory} their paths would be too long."
        return Check(name="sockets", verdict=Verdict.OK, what=what)
    return Check(name="sockets", verdict=Verdict.OK, what=f"Socket paths take at most {replica_bytes} bytes.")


def check_sync(latencies_s: Sequence[float]) -> Check:
    """Whether the disk commits quickly; latencies_s: of single fdatasync calls, not empty."""
    p50_s, p99_s = percentile(latencies_s, 0.50), percentile(latencies_s, 0.99)
    what = f"The data directory's disk commits in {p50_s * 1e3:.2f} ms (p50), {p99_s * 1e3:.2f} ms (p99)."
    if p50_s > SYNC_WARN_S:
        return Check(
            name="commit",
            verdict=Verdict.WARN,
            what=what,
            why="Every answer waits for its settlement to be on disk; over 5 ms a single caller notices.",
            now="Put the data directory (store.url) on a local SSD.",
        )
    return Check(name="commit", verdict=Verdict.OK, what=what)


def check_open_files(limit: int | None, concurrent_requests_max: int) -> Check:
    """Whether the limit of open files allows the concurrent requests; limit: None means no limit."""
    needed = concurrent_requests_max * OPEN_FILES_PER_REQUEST + OPEN_FILES_BASE
    if limit is None:
        return Check(name="files", verdict=Verdict.OK, what="Open files are not limited.")
    if limit < needed:
        return Check(
            name="files",
            verdict=Verdict.WARN,
            what=f"At most {limit} files can be open.",
            why=f"gateway.concurrent_requests_max = {concurrent_requests_max} may need {needed}.",
            now=f"ulimit -n {needed}, or lower gateway.concurrent_requests_max.",
        )
    return Check(name="files", verdict=Verdict.OK, what=f"{limit} files can be open; {needed} may be needed.")


def could_not_check(name: str, error: OSError) -> Check:
    """Return the outcome of a check that the system did not let us make."""
    why = f"The system says: {error.strerror or error}."
    return Check(name=name, verdict=Verdict.WARN, what="This could not be checked.", why=why)


def check_model(deployment: str, error: OperatorError) -> Check:
    """Return what is wrong with a deployment's model, which stops its start."""
    what = f"The model of deployment {deployment} can't be served: {error.what}"
    return Check(name="model", verdict=Verdict.FAIL, what=what, why=error.why, now=error.now)


def check_context(deployment: str, context_tokens: int, model_context_tokens: int) -> list[Check]:
    """Return a warning when a deployment's context is longer than its model was made for, else nothing."""
    if context_tokens <= model_context_tokens:
        return []
    what = (
        f"Deployment {deployment} has context_tokens = {context_tokens}, its model was made for {model_context_tokens}."
    )
    why = "Beyond that its answers turn to nonsense, and the memory is reserved all the same."
    now = f"Set context_tokens = {model_context_tokens} or less."
    return [Check(name="context", verdict=Verdict.WARN, what=what, why=why, now=now)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of values, which must not be empty."""
    rank = math.ceil(round(share * len(values), 9))  # 0.99 × 100 is a little over 99 in binary
    return sorted(values)[max(rank, 1) - 1]


def human_bytes(count: int) -> str:
    """Return a size for people: `512 MiB`, `1.4 GiB`."""
    if count < 2**30:
        return f"{count / 2**20:.0f} MiB"
    return f"{count / 2**30:.1f} GiB"
