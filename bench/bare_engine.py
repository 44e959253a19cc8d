"""The bare engine: the same child process the platform starts for a replica, here started by the benchmark alone."""

import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.load import Target
from headwater.engines.child import ChildSpec, ChildStatus


@dataclass(slots=True)
class BareEngine:
    """A running engine child. Closing its standard input ends it."""

    process: subprocess.Popen[bytes]
    target: Target
    status: ChildStatus

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_bare_engine(
    model: Path, directory: Path, *, slots: int, context_tokens: int, threads: int, batch_tokens: int | None
) -> BareEngine:
    """Load `model` and wait until it serves; batch_tokens None lets the child measure, as the platform would.

    directory: for the socket (its path must stay under 108 bytes) and the engine's log. Raises RuntimeError with the
    end of the log when the engine can't start.
    """
    status_read, status_write = os.pipe()
    log, key = directory / "bare-engine.log", secrets.token_urlsafe(32)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headwater.engines.child", "--status-fd", str(status_write)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(status_write,),
            start_new_session=True,
        )
    os.close(status_write)
    socket_path = str(directory / "bare.sock")
    spec = ChildSpec(
        parent_pid=os.getpid(),
        model_path=str(model),
        socket_path=socket_path,
        api_key=key,
        slots_count=slots,
        context_tokens=context_tokens,
        threads=threads,
        batch_tokens=batch_tokens,
        chat_template=None,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(spec) + b"\n")
    process.stdin.flush()
    with os.fdopen(status_read, "rb") as news:
        line = news.readline()
    status = msgspec.json.decode(line, type=ChildStatus) if line else None
    target = Target(0, "/v1/chat/completions", (f"authorization: Bearer {key}",), socket_path)
    engine = BareEngine(process, target, status or ChildStatus(state="gone"))
    if status is None or status.state != "ready":
        engine.stop()
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"the bare engine did not start ({engine.status.reason}):\n{tail}")
    return engine
