"""The fault proxy, between the fake engine and a plain client: each fault, and that without one it changes nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.rig.clients import Client, ask
from tests.rig.fault_proxy import GARBAGE, FaultProxy
from tests.rig.oracle import expected
from tests.rig.processes import FakeEngineHandle, running

from .conftest import chat_body

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(engine: FakeEngineHandle) -> AsyncIterator[FaultProxy]:
    """A healthy proxy in front of the fake engine."""
    async with FaultProxy.between(engine.child.ready["address"]) as made:
        yield made


async def test_without_faults_nothing_changes(proxy: FaultProxy) -> None:
    body = chat_body("m:tokens=50")
    answers = await asyncio.gather(*(ask(proxy.base_url, body, request_id=f"plain-{n}") for n in range(20)))
    assert [got.text for got in answers] == [expected(f"plain-{n}", body).text for n in range(20)]
    assert all(got.ended == "complete" and got.is_done_seen for got in answers)
    assert proxy.accepted_count == 20


@pytest.mark.parametrize(("mode", "ending"), [("fin", "eof"), ("rst", "reset")])
async def test_truncating_passes_so_many_bytes_and_no_more(proxy: FaultProxy, mode: str, ending: str) -> None:
    proxy.set_next(truncate_after=500, truncate_mode=mode)
    got = await ask(proxy.base_url, chat_body("m:tokens=50"))
    assert (sum(len(data) for _, data in got.arrivals), got.ended) == (500, ending)
    assert (await ask(proxy.base_url, chat_body())).ended == "complete"  # only the next connection had the fault


async def test_a_stall_holds_everything_until_it_is_healed(proxy: FaultProxy) -> None:
    body = chat_body("m:tokens=30,gap_ms=2")
    async with await Client.chat(proxy.base_url, body, request_id="stall") as client:
        await client.read_tokens(3)
        proxy.set(stall="down")
        with pytest.raises(TimeoutError):
            await client.read_to_end(timeout_s=0.3)
        proxy.set()
        assert (await client.read_to_end()).text == expected("stall", body).text


async def test_a_stall_up_keeps_the_request_from_the_engine(proxy: FaultProxy, engine: FakeEngineHandle) -> None:
    proxy.set(stall="up")
    async with await Client.chat(proxy.base_url, chat_body(), request_id="held") as client:
        with pytest.raises(TimeoutError):
            await client.read_to_end(timeout_s=0.2)
        assert "held" not in engine.truth().by_request
        proxy.set()
        assert (await client.read_to_end()).ended == "complete"


async def test_a_reset_reaches_both_sides(proxy: FaultProxy, engine: FakeEngineHandle) -> None:
    async with await Client.chat(proxy.base_url, chat_body("m:endless,gap_ms=5"), request_id="reset") as client:
        await client.read_tokens(2)
        assert proxy.rst() == 1
        assert (await client.read_to_end()).ended == "reset"
    attempt = (await engine.wait_for(lambda truth: truth.only("reset").is_aborted)).only("reset")
    assert attempt.abort_how == "reset"


async def test_half_closing_towards_either_side(proxy: FaultProxy, engine: FakeEngineHandle) -> None:
    async with await Client.chat(proxy.base_url, chat_body("m:endless,gap_ms=5"), request_id="half-up") as client:
        await client.read_tokens(2)
        proxy.half_close("upstream")
        attempt = (await engine.wait_for(lambda truth: truth.only("half-up").is_aborted)).only("half-up")
        assert attempt.abort_how == "eof"
    async with await Client.chat(proxy.base_url, chat_body("m:endless,gap_ms=5"), request_id="half-down") as client:
        await client.read_tokens(2)
        proxy.half_close("client")
        assert (await client.read_to_end()).ended == "eof"


async def test_a_client_that_leaves_is_passed_on(proxy: FaultProxy, engine: FakeEngineHandle) -> None:
    for how, seen in (("fin", "eof"), ("rst", "reset")):
        async with await Client.chat(proxy.base_url, chat_body("m:endless,gap_ms=5"), request_id=how) as client:
            await client.read_tokens(2)
            client.leave(how)  # type: ignore[arg-type]
            attempt = (await engine.wait_for(lambda truth, how=how: truth.only(how).is_aborted)).only(how)  # type: ignore[misc]
        assert attempt.abort_how == seen


async def test_delay_drip_and_garbage(proxy: FaultProxy) -> None:
    clock = asyncio.get_running_loop()
    proxy.set(delay_ms=60)
    started_s = clock.time()
    assert (await ask(proxy.base_url, chat_body("m:tokens=1"))).ended == "complete"
    assert clock.time() - started_s >= 0.12  # up and down
    proxy.set(drip=True)
    body = chat_body("m:tokens=3")
    dripped = [await ask(proxy.base_url, body, request_id=f"drip-{n}") for n in range(20)]
    assert [got.text for got in dripped] == [expected(f"drip-{n}", body).text for n in range(20)]
    assert any(len(got.arrivals) > 3 * len(got.events) for got in dripped)  # the kernel joins bytes for a late reader
    proxy.set(garbage_after=0)
    async with await Client.connect(proxy.base_url) as client:
        await client.send("GET", "/health")
        loop = asyncio.get_running_loop()
        assert (await loop.sock_recv(client.sock, 64)) == GARBAGE


async def test_refusing_and_accepting_again_at_the_same_address(proxy: FaultProxy) -> None:
    before = proxy.address
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await ask(proxy.base_url, chat_body())
    await proxy.accept()
    assert (await ask(proxy.base_url, chat_body())).status == 200
    assert proxy.address == before


async def test_as_a_program_it_takes_orders(engine: FakeEngineHandle) -> None:
    argv = ["-m", "tests.rig.fault_proxy", "--upstream", engine.child.ready["address"]]
    async with running(argv) as child:
        base_url = f"http://{child.ready['address']}/v1"
        assert (await ask(base_url, chat_body())).ended == "complete"
        assert "error" not in await child.order({"set": {"truncate_after": 100}})
        assert (await ask(base_url, chat_body())).ended == "eof"
        assert (await child.order({"set": {}, "refuse": True}))["is_refusing"] is True
        with pytest.raises(ConnectionRefusedError):
            await ask(base_url, chat_body())
        assert "error" in await child.order({"set": {"no_such": 1}})
        assert "error" in await child.order({"no_such": 1})
        assert (await child.order({"accept": True}))["accepted"] == 2
        assert child.process.stdin is not None
        child.process.stdin.close()
        async with asyncio.timeout(5):
            assert await child.process.wait() == 0
