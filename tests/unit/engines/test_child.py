import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xllamacpp
from hypothesis import given
from hypothesis import strategies as st

from headwater.engines.child import (
    BATCH_EFFICIENT,
    EXIT_CANNOT_START,
    PREFILL_BATCH_S_AIM,
    PREFILL_BATCH_S_MAX,
    ChildSpec,
    ChildStatus,
    choose_batch_tokens,
    engine_params,
    wants_flash_attention,
)

WAIT_S = 20.0
CHILD = "headwater.engines.child"


def spec(directory: Path, **changes: Any) -> ChildSpec:
    fields: dict[str, Any] = {
        "parent_pid": os.getpid(),
        "model_path": str(directory / "model.gguf"),
        "socket_path": str(directory / "e.sock"),
        "api_key": "per-boot-key",
        "slots_count": 3,
        "context_tokens": 512,
        "threads": 1,
        "batch_tokens": 32,
        "chat_template": None,
    }
    return ChildSpec(**fields | changes)


class Child:
    """The real program, its standard input and its status pipe."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self.statuses = os.fdopen(read, "rb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", CHILD, "--status-fd", str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(write,),
        )
        os.close(write)

    def tell(self, said: ChildSpec) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(said) + b"\n")
        self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        self.statuses.close()
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()


@given(st.floats(1e-6, 10))
def test_a_measured_batch_stays_within_its_time_where_any_batch_can(token_s: float) -> None:
    batch = choose_batch_tokens(token_s)
    assert batch % 8 == 0
    assert 16 <= batch <= 512
    assert batch == 16 or batch * token_s <= PREFILL_BATCH_S_MAX
    assert batch <= BATCH_EFFICIENT or batch * token_s <= PREFILL_BATCH_S_AIM


def test_a_batch_is_short_but_not_of_too_few_tokens() -> None:
    assert choose_batch_tokens(0.0005) == 336  # 0.17 s: what fits
    assert choose_batch_tokens(0.008) == BATCH_EFFICIENT  # 0.19 s; fewer would take less, and read slower
    assert choose_batch_tokens(0.012) == BATCH_EFFICIENT  # 0.29 s, within the bound
    assert choose_batch_tokens(0.018) == 16  # the bound holds before all


@given(st.floats(1e-6, 10), st.floats(1e-6, 10))
def test_a_slower_machine_gets_no_larger_batches(one: float, other: float) -> None:
    faster, slower = sorted((one, other))
    assert choose_batch_tokens(faster) >= choose_batch_tokens(slower)


def test_the_engine_is_told_to_share_nothing_between_callers(tmp_path: Path) -> None:
    params = engine_params(spec(tmp_path, chat_template="{{ messages }}"), 64)
    assert params.cache_ram_mib == 0  # its prompt cache is one for all callers
    assert params.slot_prompt_similarity == 0.0  # slots are the gateway's to choose
    assert params.n_parallel == 3
    assert params.n_ctx == 3 * 512  # context_tokens are for each request
    assert params.n_batch == params.n_ubatch == 64
    assert list(params.api_keys) == ["per-boot-key"]
    assert list(params.hostnames) == [str(tmp_path / "e.sock")]
    assert params.chat_template == "{{ messages }}"
    assert params.n_threads_http > 3  # a busy slot holds one thread; questions need another


CPU, GPU = (
    {"type": getattr(xllamacpp.ggml_backend_dev_type, f"GGML_BACKEND_DEVICE_TYPE_{name}")} for name in ("CPU", "GPU")
)


def test_flash_attention_is_for_gpus_and_for_what_would_not_fit_otherwise(tmp_path: Path) -> None:
    assert not wants_flash_attention([CPU], 24, 4096)
    assert not wants_flash_attention([CPU], 512, 2048)
    assert wants_flash_attention([CPU], 512, 4096)  # the scores would take 8 MB a head
    assert wants_flash_attention([CPU, GPU], 24, 4096)
    params = engine_params(spec(tmp_path), 32)
    assert params.flash_attn_type == xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED


STATES = """
import os, sys, time
from headwater.engines.child import STATE_KEPT_S, drop_old_states, has_state_files, make_state_files
from headwater.replica import STATE_FILES

assert not has_state_files()
make_state_files()
assert has_state_files()
for number in STATE_FILES:
    with open(f"/proc/self/fd/{number}", "wb") as file:  # by name, as the engine does
        file.write(b"a state")
os.utime(f"/proc/self/fd/{STATE_FILES[0]}", (0, 0))
drop_old_states(STATE_KEPT_S + 1)
print([os.fstat(number).st_size for number in STATE_FILES])
drop_old_states(time.time() + STATE_KEPT_S + 1)
print([os.fstat(number).st_size for number in STATE_FILES])
"""


def test_states_are_files_in_memory_that_are_emptied_when_they_are_old() -> None:
    done = subprocess.run([sys.executable, "-c", STATES], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.split("\n")[:2] == ["[0, 7, 7, 7]", "[0, 0, 0, 0]"], done.stderr


def test_a_file_that_is_no_model_is_reported_and_not_tried_again(child: Child, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\x00" * 4096)
    child.tell(spec(tmp_path))
    status = msgspec.json.decode(child.statuses.readline(), type=ChildStatus)
    assert status.state == "cannot_start"
    assert "could not load the model" in status.reason
    assert child.process.wait(WAIT_S) == EXIT_CANNOT_START


def test_a_parent_that_hangs_up_before_it_says_what_to_serve_ends_it(child: Child) -> None:
    child.hang_up()
    assert child.process.wait(WAIT_S) == 0


def test_a_child_whose_parent_is_another_process_leaves(child: Child, tmp_path: Path) -> None:
    child.tell(spec(tmp_path, parent_pid=1))
    assert child.process.wait(WAIT_S) == 1
    assert child.statuses.readline() == b""


def test_the_key_is_in_no_argument_and_no_environment_variable(child: Child, tmp_path: Path) -> None:
    # the spec, which has the key, goes through the pipe; what the kernel shows of the process is fixed before
    seen = Path(f"/proc/{child.process.pid}/cmdline").read_bytes() + Path("/proc/self/environ").read_bytes()
    assert b"per-boot-key" not in seen


PARENT = """
import subprocess, sys, os
read, write = os.pipe()
child = subprocess.Popen([sys.executable, "-m", "headwater.engines.child", "--status-fd", str(write)],
                         stdin=subprocess.PIPE, pass_fds=(write, HOLD))
child.stdin.write(sys.argv[1].replace("PARENT", str(os.getpid())).encode() + b"\\n")
child.stdin.flush()
os.close(write)
print(child.pid, flush=True)
os.read(0, 1)
"""


def test_a_parent_killed_in_the_middle_of_loading_leaves_no_child(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")  # opening it for reading blocks: the child stays in the middle of its start
    said = json.dumps(msgspec.to_builtins(spec(tmp_path))).replace(
        f'"parent_pid": {os.getpid()}', '"parent_pid": PARENT'
    )
    held_read, held_write = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.replace("HOLD", str(held_write)), said],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(held_write,),
    )
    os.close(held_write)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(WAIT_S)
        # Both held the writing end of this pipe; it reads as closed once neither is left.
        assert select.select([held_read], [], [], WAIT_S)[0]
        assert os.read(held_read, 1) == b""
        assert not Path(f"/proc/{pid}/cmdline").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    finally:
        os.close(held_read)
        parent.kill()
        parent.wait(WAIT_S)
        for pipe in (parent.stdin, parent.stdout):
            assert pipe is not None
            pipe.close()
