"""Verbs that only a running platform can carry out: what its replicas do, starting one again, a changed configuration."""

from typing import Protocol

import msgspec

from headwater.admin.administration import Administration, Verb
from headwater.errors import ConfigError, OperatorError


class ReplicaView(msgspec.Struct, frozen=True):
    """A replica as people see it. reason: why it isn't ready; empty when it is. pid: None without a process."""

    id: str
    deployment: str
    state: str
    reason: str
    restarts_count: int
    pid: int | None


class ListReplicas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see every replica."""


class RestartReplica(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to start a replica again, by its id; or, by the name of a deployment, all of its replicas that are not ready."""

    replica: str


class Reload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to read the configuration anew and make it true."""


class Reloaded(msgspec.Struct, frozen=True):
    """What changed, and what differs but needs a new start and stayed as it was."""

    changed: list[str]
    kept: list[str]


class Operations(Protocol):
    """The running platform, reached from any thread but its own."""

    def replicas(self) -> list[ReplicaView]:
        """Every replica there is."""

    def restart(self, replica_id: str) -> None:
        """Start a failed one now; let the calls of another end first."""

    def reload(self, administration: Administration) -> Reloaded:
        """Read the configuration and make it true, or raise OperatorError and change nothing."""


def _list(administration: Administration, _wish: ListReplicas) -> list[ReplicaView]:
    return _operations(administration).replicas()


def _restart(administration: Administration, wish: RestartReplica) -> list[ReplicaView]:
    operations = _operations(administration)
    there = operations.replicas()
    found = [one for one in there if one.id == wish.replica]
    found = found or [one for one in there if one.deployment == wish.replica and one.state != "ready"]
    if not found:
        is_name = any(one.deployment == wish.replica for one in there)
        raise OperatorError(
            f"Nothing to restart under {wish.replica!r}.",
            why="Every replica of that deployment is ready."
            if is_name
            else "No replica and no deployment is called so.",
            now="`headwater replicas list` shows their ids; a ready one is restarted by its id.",
        )
    for one in found:
        operations.restart(one.id)
    chosen = {one.id for one in found}
    return [one for one in operations.replicas() if one.id in chosen]


def _reload(administration: Administration, _wish: Reload) -> Reloaded:
    return _operations(administration).reload(administration)


def _operations(administration: Administration) -> Operations:
    if administration.operations is None:
        raise OperatorError(
            "No platform runs on this data directory.",
            why="Only a running one has replicas, and a configuration in force.",
            now="Start it: `headwater up`. It reads the configuration then.",
        )
    return administration.operations


def refused(error: OperatorError) -> OperatorError:
    """The same problem, said of a reload: a start speaks of what it did not start."""
    why = error.why if isinstance(error, ConfigError) and error.why else f"{error.what} {error.why}".rstrip()
    return OperatorError("The changed configuration was refused; nothing was changed.", why=why, now=error.now)


LIST = Verb("replicas.list", ListReplicas, list[ReplicaView], _list)
RESTART = Verb("replicas.restart", RestartReplica, list[ReplicaView], _restart)
RELOAD = Verb("reload", Reload, Reloaded, _reload)
VERBS = (LIST, RESTART, RELOAD)
