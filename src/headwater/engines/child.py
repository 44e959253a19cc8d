"""One replica's process: hosts llama.cpp on a Unix socket for the controller that started it.

Protocol with the parent: a JSON line on standard input says what to serve (`ChildSpec`; the per-boot key is there, not
in argv), the same pipe stays open for as long as the parent lives; JSON lines on `--status-fd` say how it goes
(`ChildStatus`); the engine's own log goes to standard error, which the parent keeps in a file.

It can't outlive its parent: the kernel is asked to kill it when the parent dies, and it exits by itself when the pipe
closes. It can be killed by nobody's Ctrl-C but its parent's word: it leads its own session.
"""

import argparse
import contextlib
import ctypes
import http.client
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headwater.replica import STATE_FILES

PREFILL_BATCH_S_AIM, PREFILL_BATCH_S_MAX = 0.2, 0.4
"""What one prefill batch should take, and may. A newcomer waits for the batch under way and then for its own, others get a
token with each batch, and a client that left goes unnoticed for as long."""
BATCH_EFFICIENT = 24
"""Fewer tokens at once are read much slower, for each batch fetches all weights. More are read up to a tenth faster, and all
who come then wait longer: `docs/explanation/scheduling.md` has the figures."""
ATTENTION_PAIRS_MAX = 2**20
"""Without flash attention the scores of a batch's tokens against their context are held at once, 4 bytes for each pair and head."""
_BATCH_FIRST = BATCH_EFFICIENT
_BATCH_MIN, _BATCH_MAX, _BATCH_STEP = 16, 512, 8
_HEADROOM = 0.85
"""Batches are sized for this share of the limit: a busier machine is slower than the one that was measured."""
_MEASUREMENTS = 3
"""The fastest of so many is what the machine can do; the others met somebody else's work."""
STATE_KEPT_S = 120.0
"""A state saved longer ago is dropped; the gateway asks for none older than half of that."""
_STATE_SWEEP_S = 15.0
_PR_SET_PDEATHSIG = 1
EXIT_CANNOT_START = 3


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve. batch_tokens None: measure and choose. context_tokens is per request, that is per slot."""

    parent_pid: int
    model_path: str
    socket_path: str
    api_key: str
    slots_count: int
    context_tokens: int
    threads: int
    batch_tokens: int | None
    chat_template: str | None


class ChildStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of news. state: ready | cannot_start; token_s: what one prompt token took in the warm-up; batch_s: a batch."""

    state: str
    reason: str = ""
    batch_tokens: int = 0
    batch_s: float = 0.0
    token_s: float = 0.0
    load_s: float = 0.0


def choose_batch_tokens(token_s: float) -> int:
    """The batch for a machine that takes token_s seconds for one prompt token: as many as fit into PREFILL_BATCH_S_AIM, and at
    least BATCH_EFFICIENT as long as that stays within PREFILL_BATCH_S_MAX.
    """

    def fitting(limit_s: float) -> int:
        return int(limit_s * _HEADROOM / token_s) // _BATCH_STEP * _BATCH_STEP

    wanted = max(fitting(PREFILL_BATCH_S_AIM), min(BATCH_EFFICIENT, fitting(PREFILL_BATCH_S_MAX)))
    return max(_BATCH_MIN, min(_BATCH_MAX, wanted))


def wants_flash_attention(devices: Iterable[Mapping[str, Any]], batch_tokens: int, context_tokens: int) -> bool:
    """Whether llama.cpp may use it. devices: as `xllamacpp.get_device_info` lists them.

    It is for GPUs. On a CPU llama.cpp's reads one token at a time against the whole context, except in batches of 64 or more:
    answers behind a long prompt then take up to three times as long. So it is only left on for its memory.
    """
    return (
        any("GPU" in device["type"].name for device in devices) or batch_tokens * context_tokens > ATTENTION_PAIRS_MAX
    )


def engine_params(spec: ChildSpec, batch_tokens: int) -> Any:
    """llama.cpp's parameters for this spec. Its defaults would share an 8 GiB prompt cache between callers."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = spec.model_path
    params.n_ctx = spec.context_tokens * spec.slots_count
    params.n_parallel = spec.slots_count
    params.n_batch = params.n_ubatch = batch_tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = spec.threads
    params.n_threads_http = spec.slots_count + 4
    params.cache_ram_mib = 0
    params.slot_prompt_similarity = 0.0
    params.ui = False
    params.endpoint_slots = True
    params.offline = True
    params.hostnames = [spec.socket_path]
    params.api_keys = [spec.api_key]
    if not wants_flash_attention(xllamacpp.get_device_info(), batch_tokens, spec.context_tokens):
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if spec.chat_template is not None:
        params.chat_template = spec.chat_template
    if has_state_files():
        params.slot_save_path = "/proc/self/fd/"
    return params


def make_state_files() -> None:
    """Open the files for slots' states: in memory, without a name anybody else could open, gone with this process.

    Where that can't be done, states can't be saved, and the gateway goes without.
    """
    for number in STATE_FILES:
        made = os.memfd_create(f"slot-state-{number}")
        os.dup2(made, number, inheritable=False)
        os.close(made)


def has_state_files() -> bool:
    """Whether `make_state_files` was called and could make them all."""
    try:
        return all(
            Path(f"/proc/self/fd/{number}").readlink().name.startswith("memfd:slot-state-") for number in STATE_FILES
        )
    except OSError:
        return False


def drop_old_states(now_s: float) -> None:
    """Give back the memory of states saved more than STATE_KEPT_S before now_s (Unix time)."""
    for number in STATE_FILES:
        about = os.fstat(number)
        if about.st_size and now_s - about.st_mtime > STATE_KEPT_S:
            os.ftruncate(number, 0)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the engine's socket, for the warm-up."""

    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=600)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Timings(msgspec.Struct):
    prompt_n: int
    prompt_ms: float


class _Completion(msgspec.Struct):
    timings: _Timings


def prefill_token_s(spec: ChildSpec, tokens_count: int) -> float:
    """Seconds per prompt token: the fastest of a few prompts of tokens_count tokens that nothing has cached."""
    return min(_prefill_once(spec, tokens_count) for _ in range(_MEASUREMENTS))


def _prefill_once(spec: ChildSpec, tokens_count: int) -> float:
    connection = _UnixConnection(spec.socket_path)
    # Token ids, not text: any model has these, and the count is exact.
    body = msgspec.json.encode({"prompt": list(range(100, 100 + tokens_count)), "n_predict": 1, "cache_prompt": False})
    connection.request("POST", "/completion", body, {"authorization": f"Bearer {spec.api_key}"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"the warm-up was answered with {response.status}: {answer[:200]!r}")
    timings = msgspec.json.decode(answer, type=_Completion).timings
    return timings.prompt_ms / 1000 / timings.prompt_n


def _start(spec: ChildSpec, batch_tokens: int) -> Any:
    import xllamacpp

    Path(spec.socket_path).unlink(missing_ok=True)  # an earlier engine's, or our own first load's
    return xllamacpp.Server(engine_params(spec, batch_tokens))


def serve(spec: ChildSpec) -> tuple[Any, ChildStatus]:
    """Load the model, warm it up, and return the running server with the figures of its start.

    With batch_tokens unset the first load measures; when another batch size turns out right, the model (by then in
    the page cache) is loaded once more with it.
    """
    began_s = time.monotonic()
    batch_tokens = spec.batch_tokens or _BATCH_FIRST
    server = _start(spec, batch_tokens)
    token_s = prefill_token_s(spec, batch_tokens)
    if spec.batch_tokens is None and (chosen := choose_batch_tokens(token_s)) != batch_tokens:
        del server
        batch_tokens = chosen
        server = _start(spec, batch_tokens)
        token_s = prefill_token_s(spec, batch_tokens)
    return server, ChildStatus(
        state="ready",
        batch_tokens=batch_tokens,
        batch_s=round(token_s * batch_tokens, 4),
        token_s=round(token_s, 6),
        load_s=round(time.monotonic() - began_s, 3),
    )


def _die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; leave at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)


def _exit_when_closed(pipe: int) -> None:
    """The parent holds the other end and never writes again: end of file means that it is gone."""
    while os.read(pipe, 4096):
        pass
    os._exit(0)


def main() -> None:
    """Serve until the parent closes the pipe or ends the process."""
    parser = argparse.ArgumentParser(prog="headwater-engine")
    parser.add_argument("--status-fd", type=int, required=True)
    status_fd: int = parser.parse_args().status_fd

    def tell(status: ChildStatus) -> None:
        os.write(status_fd, msgspec.json.encode(status) + b"\n")

    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)  # one at a time: what follows the line must stay in the pipe for the watcher below
        if not byte:
            os._exit(0)
        line += byte
    spec = msgspec.json.decode(bytes(line), type=ChildSpec)
    _die_with_parent(spec.parent_pid)
    # If memory runs out, the kernel is to take the engine and leave the gateway, which can start another.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    threading.Thread(target=_exit_when_closed, args=(0,), daemon=True).start()
    try:
        make_state_files()
    except OSError as error:  # few descriptors are allowed, or no memory files
        print(f"slots' states can't be saved here: {error}", file=sys.stderr, flush=True)
    try:
        server, status = serve(spec)
    except ImportError as error:
        tell(ChildStatus(state="cannot_start", reason=f"the embedded engine isn't installed ({error})"))
        os._exit(EXIT_CANNOT_START)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"engine failed to start: {error}", file=sys.stderr, flush=True)
        tell(ChildStatus(state="cannot_start", reason=f"llama.cpp could not load the model ({error})"))
        os._exit(EXIT_CANNOT_START)
    tell(status)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while server is not None:
        time.sleep(_STATE_SWEEP_S)
        if has_state_files():
            drop_old_states(time.time())


if __name__ == "__main__":
    main()
