"""The doctor's instruments, held against real sockets, directories and files."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.doctor import probe
from headwater.doctor.checks import PortState

HOST = "127.0.0.1"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as server:
        yield server


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose admin socket this process serves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "admin.sock"))
        server.listen(1)
        yield tmp_path


def port_of(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    return port


def test_a_free_port_is_free() -> None:
    assert probe.port_state(HOST, 0, None) == (PortState.FREE, "")


def test_a_port_another_program_holds_is_taken(listener: socket.socket) -> None:
    state, reason = probe.port_state(HOST, port_of(listener), None)
    assert state is PortState.TAKEN
    assert reason == "Address already in use"


def test_a_port_our_platform_holds_is_ours(listener: socket.socket, admin: Path) -> None:
    pid = probe.platform_pid(admin)
    assert pid == os.getpid()
    assert probe.port_state(HOST, port_of(listener), pid)[0] is PortState.OURS


def test_a_port_another_process_holds_is_taken_though_our_platform_runs(admin: Path) -> None:
    listen = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    program = f"{listen}; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert probe.port_state(HOST, port, probe.platform_pid(admin))[0] is PortState.TAKEN
        other.communicate()


def test_an_address_that_is_not_this_machines_is_unusable() -> None:
    state, reason = probe.port_state("192.0.2.1", 8080, None)  # TEST-NET-1, RFC 5737
    assert state is PortState.UNUSABLE
    assert reason


def test_no_platform_runs_where_the_admin_socket_is_missing_or_dead(tmp_path: Path) -> None:
    assert probe.platform_pid(tmp_path) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "admin.sock"))
    assert probe.platform_pid(tmp_path) is None
    assert probe.platform_pid(Path("/" + "d" * 200)) is None


def test_directory_facts_look_at_the_closest_ancestor(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    found = probe.directory_facts(tmp_path)
    assert (found.exists, found.is_directory, found.is_writable, found.mode) == (True, True, True, 0o750)
    missing = probe.directory_facts(tmp_path / "a" / "b")
    assert (missing.exists, missing.nearest) == (False, tmp_path)
    (tmp_path / "file").touch()
    assert not probe.directory_facts(tmp_path / "file" / "data").is_directory
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert not probe.directory_facts(tmp_path / "dangling").is_directory


def test_syncs_are_timed_and_nothing_is_left_behind(tmp_path: Path) -> None:
    latencies_s = probe.sync_latencies_s(tmp_path, 5)
    assert len(latencies_s) == 5
    assert all(latency_s > 0 for latency_s in latencies_s)
    assert list(tmp_path.iterdir()) == []


def test_memory_and_files_are_read_from_the_system() -> None:
    available = probe.available_memory_bytes()
    assert available is None or available > 2**20
    limit = probe.open_files_limit()
    assert limit is None or limit > 0
