"""The supervisor with real child programs: `sys.executable -m headwater.engines.child`, real model files and broken ones."""

import asyncio
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headwater.catalogue.resolve import resolve
from headwater.clock import SystemClock
from headwater.controller import probe
from headwater.controller.calibration import Calibration
from headwater.controller.liveness import Answer
from headwater.controller.plan import DeploymentPlan
from headwater.controller.supervisor import Supervisor
from headwater.errors import OperatorError
from headwater.replica import Progress, ReplicaEndpoint, ReplicaState, ReplicaStatus
from headwater.settings.model import ModelStoreSettings

ROOT = Path(__file__).parents[3]
WAIT_S = 60.0


class Gateway:
    """Notes what it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.endpoints: dict[str, ReplicaEndpoint] = {}
        self.progresses: dict[str, Progress] = {}
        self.withdrawn: list[str] = []
        self.states: list[ReplicaState] = []
        self._told = asyncio.Event()

    def announce(self, endpoint: ReplicaEndpoint) -> None:
        self.endpoints[endpoint.replica_id] = endpoint
        self.progresses.setdefault(endpoint.replica_id, Progress())

    def withdraw(self, deployment: str, replica_id: str) -> None:
        self.withdrawn.append(replica_id)
        self.endpoints.pop(replica_id, None)
        self.progresses.pop(replica_id, None)

    def retire(self, deployment: str, replica_id: str) -> None:
        self.endpoints.pop(replica_id, None)

    def progress(self, deployment: str, replica_id: str) -> Progress | None:
        return self.progresses.get(replica_id)

    def held_count(self, deployment: str, replica_id: str) -> int:
        progress = self.progresses.get(replica_id)
        return 0 if progress is None else progress.in_flight_count

    def report(self, deployment: str, statuses: list[ReplicaStatus]) -> None:
        self.states.append(statuses[0].state)
        self._told.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                self._told.clear()
                await self._told.wait()


def plan(model_path: Path, **changes: Any) -> DeploymentPlan:
    fields: dict[str, Any] = {
        "name": "tiny",
        "model_path": model_path,
        "model_digest": "digest",
        "chat_template": None,
        "replicas_count": 1,
        "slots_count": 2,
        "context_tokens": 256,
        "threads": 1,
        "batch_tokens": 32,
        "start_timeout_s": WAIT_S,
        "restarts": (3, 60.0),
    }
    return DeploymentPlan(**fields | changes)


@asynccontextmanager
async def supervised(
    directory: Path, gateway: Gateway, *plans: DeploymentPlan, calibration: Calibration | None = None
) -> AsyncIterator[Supervisor]:
    run = directory / "r"
    run.mkdir()
    supervisor = Supervisor(
        list(plans),
        run_directory=run,
        log_directory=directory / "logs",
        calibration=calibration or Calibration(directory / "calibration.json"),
        clock=SystemClock(),
        gateway=gateway,
    )
    supervisor.start()
    try:
        yield supervisor
    finally:
        async with asyncio.timeout(WAIT_S):
            await supervisor.stop()
    assert not list(run.iterdir()), "a socket was left"


@pytest.fixture
def broken_model(tmp_path: Path) -> Path:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(4096))
    return path


@pytest.fixture
def slow_model(tmp_path: Path) -> Path:
    """Opening it blocks for ever: an engine that never becomes ready."""
    path = tmp_path / "slow.gguf"
    os.mkfifo(path)
    return path


def pids(supervisor: Supervisor) -> list[int]:
    return [replica.pid for replica in supervisor.replicas if replica.pid is not None]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_file_that_is_no_model_fails_at_once_and_says_why(short_path: Path, broken_model: Path) -> None:
    gateway = Gateway()
    async with supervised(short_path, gateway, plan(broken_model)) as supervisor:
        await asyncio.wait_for(supervisor.settled(), WAIT_S)
        [replica] = supervisor.replicas
        assert replica.status.state is ReplicaState.FAILED
        assert "could not load the model" in replica.status.reason
        assert str(replica.log_path) in replica.status.reason
        assert replica.status.restarts_count == 0
        assert not gateway.endpoints
    assert gateway.states[:2] == [ReplicaState.STARTING, ReplicaState.FAILED]


async def test_stopping_in_the_very_moment_of_starting_ends_the_process_that_is_being_made(
    short_path: Path, slow_model: Path
) -> None:
    gateway = Gateway()
    async with supervised(short_path, gateway, plan(slow_model)) as supervisor:
        pass  # stopped before its task ran at all
    assert gateway.states == [ReplicaState.STARTING, ReplicaState.STOPPING, ReplicaState.STOPPED]
    assert not pids(supervisor)


async def test_stopping_in_the_middle_of_loading_ends_the_process(short_path: Path, slow_model: Path) -> None:
    async with supervised(short_path, Gateway(), plan(slow_model)) as supervisor:
        await _spawned(supervisor)
        [pid] = pids(supervisor)
        assert is_alive(pid)
    assert not is_alive(pid)


async def test_an_engine_that_never_gets_ready_is_ended_and_started_again_so_often_and_no_oftener(
    short_path: Path, slow_model: Path
) -> None:
    gateway = Gateway()
    slow = plan(slow_model, start_timeout_s=0.05, restarts=(1, 60.0))
    async with supervised(short_path, gateway, slow) as supervisor:
        await asyncio.wait_for(supervisor.settled(), WAIT_S)
        [replica] = supervisor.replicas
        assert replica.status.state is ReplicaState.FAILED
        assert replica.status.restarts_count == 1
        assert "ended 2 times within 60 s" in replica.status.reason
    starting, waiting, failed = ReplicaState.STARTING, ReplicaState.BACKING_OFF, ReplicaState.FAILED
    assert gateway.states[:4] == [starting, waiting, starting, failed]


async def test_a_start_that_can_not_even_be_tried_is_an_end_like_another(short_path: Path, slow_model: Path) -> None:
    (short_path / "logs").write_text("in the way of the log directory")
    gateway = Gateway()
    async with supervised(short_path, gateway, plan(slow_model, restarts=(0, 60.0))) as supervisor:
        await asyncio.wait_for(supervisor.settled(), WAIT_S)
        [replica] = supervisor.replicas
        assert replica.status.state is ReplicaState.FAILED
        assert "could not be started" in replica.status.reason


async def test_a_log_that_was_taken_away_does_not_hide_an_exit(short_path: Path, slow_model: Path) -> None:
    gateway = Gateway()
    async with supervised(short_path, gateway, plan(slow_model, restarts=(0, 60.0))) as supervisor:
        await _spawned(supervisor)
        [replica] = supervisor.replicas
        replica.log_path.unlink()
        os.kill(pids(supervisor)[0], signal.SIGKILL)
        await gateway.until(lambda: replica.status.state is ReplicaState.FAILED)
        assert "killed by signal 9" in replica.status.reason


PARENT = """
import asyncio, os, sys
from pathlib import Path
from tests.unit.controller.test_supervisor import Gateway, _spawned, pids, plan, supervised

async def main():
    async with supervised(Path(sys.argv[1]), Gateway(), plan(Path(sys.argv[2]))) as supervisor:
        await _spawned(supervisor)
        os.write(int(sys.argv[3]), f"{pids(supervisor)[0]}\\n".encode())
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_platform_that_is_killed_leaves_no_engine(short_path: Path, slow_model: Path) -> None:
    said, says = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(short_path), str(slow_model), str(says)],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={"PYTHONPATH": "src:.", "PATH": "/usr/bin"},
        pass_fds=(says,),
    )
    os.close(says)
    try:
        with os.fdopen(said) as line:
            pid = int(line.readline())
        gone = os.pidfd_open(pid)
        parent.kill()
        parent.wait(WAIT_S)
        _wait_for_end(gone)
    finally:
        parent.kill()
        parent.wait(WAIT_S)


def _wait_for_end(pidfd: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        assert select.select([pidfd], [], [], WAIT_S)[0], "the engine outlived its platform"
    finally:
        os.close(pidfd)


async def _spawned(supervisor: Supervisor) -> None:
    """Wait until every replica has its process."""
    async with asyncio.timeout(WAIT_S):
        for replica in supervisor.replicas:
            while replica.pid is None:
                await asyncio.sleep(0)


# -- with a real model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_model() -> Path:
    directory = os.environ.get("HEADWATER_MODELS__DIRECTORY", str(ROOT / "data/models"))
    try:
        return resolve("smollm2-135m-instruct", ModelStoreSettings(directory=directory)).path
    except OperatorError as error:
        pytest.fail(f"This test needs a model's weights: run `make models`. {error}")


def ask(endpoint: ReplicaEndpoint, api_key: str) -> int:
    """The status of one call on the replica's socket."""
    connection = http.client.HTTPConnection("engine", timeout=WAIT_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(endpoint.socket_path))
    try:
        body = '{"messages":[{"role":"user","content":"hi"}],"max_tokens":1}'
        connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {api_key}"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.model
async def test_an_engine_starts_answers_its_key_only_comes_back_after_a_kill_and_stops(
    short_path: Path, small_model: Path
) -> None:
    gateway = Gateway()
    calibration = Calibration(short_path / "calibration.json")
    measured = plan(small_model, batch_tokens=None)
    async with supervised(short_path, gateway, measured, calibration=calibration) as supervisor:
        await asyncio.wait_for(supervisor.settled(), WAIT_S)
        [replica] = supervisor.replicas
        assert replica.status.state is ReplicaState.READY
        assert (calibration.batch_tokens("digest", 1) or 0) >= 16
        first = gateway.endpoints[replica.id]
        assert await asyncio.to_thread(ask, first, first.api_key) == 200
        assert await asyncio.to_thread(ask, first, "another") == 401
        assert first.socket_path.stat().st_uid == os.getuid()

        [pid] = pids(supervisor)
        os.kill(pid, signal.SIGKILL)
        await gateway.until(lambda: replica.status.restarts_count == 1)
        await gateway.until(lambda: replica.status.state is ReplicaState.READY)
        assert gateway.withdrawn == [replica.id]
        second = gateway.endpoints[replica.id]
        assert second.api_key != first.api_key  # it is of one boot only
        assert await asyncio.to_thread(ask, second, second.api_key) == 200
        [pid] = pids(supervisor)
        assert second.api_key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert second.api_key.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert not is_alive(pid)
    assert gateway.states[-2:] == [ReplicaState.STOPPING, ReplicaState.STOPPED]
    assert not gateway.endpoints


@pytest.mark.model
async def test_a_real_engine_is_left_alone_while_it_works_or_rests_and_found_when_it_is_stopped(
    short_path: Path, small_model: Path
) -> None:
    gateway = Gateway()
    async with supervised(short_path, gateway, plan(small_model, hang_timeout_s=2.0)) as supervisor:
        await asyncio.wait_for(supervisor.settled(), WAIT_S)
        [replica] = supervisor.replicas
        [pid] = pids(supervisor)
        endpoint, progress = gateway.endpoints[replica.id], gateway.progresses[replica.id]

        # A call whose client reads nothing shows the gateway no event: the engine's own slots show that it moves.
        progress.begin(asyncio.get_running_loop().time())
        await asyncio.to_thread(write_long, endpoint)
        progress.in_flight_count -= 1
        asked = await probe.ask(endpoint.socket_path, endpoint.api_key, timeout_s=WAIT_S, mark=None)
        assert asked == (Answer.MOVING, None), "it has nothing to do"
        assert (replica.status.state, replica.pid) == (ReplicaState.READY, pid)

        os.kill(pid, signal.SIGSTOP)
        await gateway.until(lambda: replica.status.state is ReplicaState.SUSPECT)
        os.kill(pid, signal.SIGCONT)
        await gateway.until(lambda: replica.status.state is ReplicaState.READY)
        assert replica.pid == pid, "a lost answer ends nothing"

        os.kill(pid, signal.SIGSTOP)
        await gateway.until(lambda: replica.status.restarts_count == 1)
        assert "has not answered" in replica.status.reason
        assert not is_alive(pid)
        await gateway.until(lambda: replica.status.state is ReplicaState.READY)


def write_long(endpoint: ReplicaEndpoint) -> None:
    """One call that takes longer than the test's time-out for a hang."""
    connection = http.client.HTTPConnection("engine", timeout=WAIT_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(endpoint.socket_path))
    try:
        for _ in range(3):
            began_s = time.monotonic()
            body = '{"prompt":"one two three","n_predict":240,"ignore_eos":true}'
            connection.request("POST", "/completion", body, {"authorization": f"Bearer {endpoint.api_key}"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            if time.monotonic() - began_s > 3.0:
                return
    finally:
        connection.close()
