"""A client that leaves is noticed within 50 ms in every phase and in every way, and the log says which."""

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Literal

import msgspec
import pytest
import pytest_asyncio

from tests.rig.clients import Client
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.rig.truth import Attempt, Phase, Truth

from .conftest import chat_body

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOW = {"fin": "eof", "half_close": "eof", "rst": "reset"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_slot() -> AsyncIterator[FakeEngineHandle]:
    """A fake engine with one slot, so that a second request waits."""
    async with fake_engine(slots=1) as handle:
        yield handle


def arrived_in(phase: Phase, attempt: Attempt) -> bool:
    """Whether the attempt has been seen as far as the phase needs (decode is seen by the client's tokens)."""
    return phase == "queued" or attempt.started_at_ns is not None


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["fin", "rst", "half_close"])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
async def test_leaving_is_noticed_in_50_ms(
    one_slot: FakeEngineHandle, phase: Phase, how: Literal["fin", "rst", "half_close"], stream: bool
) -> None:
    engine, name = one_slot, f"{phase}-{how}-{stream}"
    knobs = {"queued": "tokens=1", "prefill": "prefill_ms=60000", "decode": "endless,gap_ms=5"}[phase]
    async with AsyncExitStack() as stack:
        if phase == "queued":
            blocker = await Client.chat(engine.base_url, chat_body("m:silent"), request_id=f"{name}-blocker")
            await stack.enter_async_context(blocker)
            await engine.wait_for(lambda truth: is_started(truth, f"{name}-blocker"))
        client = await Client.chat(engine.base_url, chat_body(f"m:{knobs}", stream=stream), request_id=name)
        await stack.enter_async_context(client)
        await engine.wait_for(lambda truth: name in truth.by_request and arrived_in(phase, truth.only(name)))
        if phase == "decode" and stream:
            await client.read_tokens(2)
        elif phase == "decode":
            await engine_decodes(engine, name)
        left_ns = time.monotonic_ns()
        client.leave(how)
        attempt = await engine.closed(name)
    assert (attempt.abort_phase, attempt.abort_how, attempt.is_finished) == (phase, HOW[how], False)
    assert attempt.aborted_at_ns is not None
    assert 0 <= attempt.aborted_at_ns - left_ns < 50e6
    assert (attempt.tokens_sent >= 2) == (phase == "decode")
    assert attempt.tokens_sent == len(attempt.token_times_ns)


def is_started(truth: Truth, name: str) -> bool:
    """Whether that request has its slot."""
    return name in truth.by_request and truth.only(name).started_at_ns is not None


async def engine_decodes(engine: FakeEngineHandle, name: str) -> None:
    """Wait until the engine's slot says that this request has made two tokens."""
    for _ in range(1000):
        if any(slot.get("request_id") == name and slot["n_decoded"] >= 2 for slot in await engine.slots()):
            return
    raise AssertionError(f"{name} never got to decode")


async def test_a_client_that_stops_reading_holds_the_engine_back(one_slot: FakeEngineHandle) -> None:
    body = chat_body("m:endless,big_chunk=1000")
    async with await Client.chat(one_slot.base_url, body, request_id="stalled", receive_bytes_max=4096) as client:
        await client.read_tokens(5)
        made = -1
        while made != (made := (await one_slot.slots())[0]["n_decoded"]):
            # Not a wait for time to pass but for the count to stand still between two looks some turns apart.
            for _ in range(50):
                await one_slot.slots()
        client.leave("rst")
        attempt = await one_slot.closed("stalled")
    assert attempt.tokens_sent == made


async def test_a_client_that_reads_slowly_gets_everything(one_slot: FakeEngineHandle) -> None:
    body = chat_body("m:tokens=40")
    async with await Client.chat(one_slot.base_url, body, request_id="slow", receive_bytes_max=2048) as client:
        got = await client.read_slowly(bytes_each=512, pause_s=0.001)
    assert (got.ended, got.content_count) == ("complete", 40)


async def test_a_request_and_its_fin_read_in_one_go_are_still_one_aborted_attempt(one_slot: FakeEngineHandle) -> None:
    clients = [await Client.connect(one_slot.base_url) for _ in range(20)]
    os.kill(one_slot.child.pid, signal.SIGSTOP)  # so that it finds request and FIN together when it goes on
    try:
        for number, client in enumerate(clients):
            body = msgspec.json.encode(chat_body("m:prefill_ms=9000"))
            await client.send("POST", "/v1/chat/completions", body, {"x-request-id": f"at-once-{number}"})
            client.leave("fin")
    finally:
        os.kill(one_slot.child.pid, signal.SIGCONT)
    for number, client in enumerate(clients):
        assert (await one_slot.closed(f"at-once-{number}")).is_aborted
        client.close()


async def test_sigterm_closes_every_attempt_in_the_log() -> None:
    async with fake_engine() as engine:
        async with await Client.chat(engine.base_url, chat_body("m:silent"), request_id="open"):
            await engine.wait_for(lambda truth: is_started(truth, "open"))
            assert await engine.child.stop() == 0
        attempt = engine.truth().only("open")
        assert (attempt.abort_how, engine.truth().is_settled) == ("shutdown", True)
