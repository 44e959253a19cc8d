"""One examination: measure, judge, list. Changes nothing on the machine (a temporary file is written and removed)."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from headwater.doctor import probe
from headwater.doctor.checks import (
    Check,
    DeploymentNeed,
    check_directory,
    check_disk,
    check_memory,
    check_open_files,
    check_port,
    check_python,
    check_socket_path,
    check_sqlite,
    check_sync,
    could_not_check,
)
from headwater.settings import Settings


def examine(settings: Settings, *, needs: Sequence[DeploymentNeed], download_bytes: int | None) -> list[Check]:
    """Return every check's outcome, in the order a person reads them.

    needs: the memory of each deployment's replicas. download_bytes: models still to fetch; None means unknown.
    """
    data = settings.store.data_directory.absolute()
    models = Path(settings.models.directory)
    owner_pid = probe.platform_pid(data)
    gateway = settings.gateway

    def directory(name: str, key: str, path: Path, *, is_private: bool) -> Check:
        return check_directory(name, key, probe.directory_facts(path), is_private=is_private)

    steps: list[tuple[str, Callable[[], Check]]] = [
        ("python", lambda: check_python(sys.version_info[:3])),
        ("sqlite", lambda: check_sqlite(_sqlite_version())),
        ("port", lambda: check_port(gateway.listen, *probe.port_state(gateway.host, gateway.port, owner_pid))),
        ("data", lambda: directory("data", "store.url", data, is_private=True)),
        ("models", lambda: directory("models", "models.directory", models, is_private=False)),
        ("disk", lambda: check_disk(models, probe.free_bytes(models), download_bytes)),
        ("memory", lambda: check_memory(needs, probe.available_memory_bytes(), is_running=owner_pid is not None)),
        ("sockets", lambda: check_socket_path(data)),
        ("commit", lambda: check_sync(probe.sync_latencies_s(data))),
        ("files", lambda: check_open_files(probe.open_files_limit(), gateway.concurrent_requests_max)),
    ]
    return [_made(name, step) for name, step in steps]


def _made(name: str, step: Callable[[], Check]) -> Check:
    try:
        return step()
    except OSError as error:  # one thing that can't be measured hides no other
        return could_not_check(name, error)


def _sqlite_version() -> str:
    import pysqlite3.dbapi2

    return str(pysqlite3.dbapi2.sqlite_version)
