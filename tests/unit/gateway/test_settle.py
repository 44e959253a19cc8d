import asyncio
from pathlib import Path

import pytest

from headwater.errors import LedgerUnavailable
from headwater.gateway.settle import Settler
from headwater.ledger.store import Connection, open_writer
from headwater.ledger.writer import LedgerWriter
from tests.unit.gateway.conftest import WAIT_S
from tests.unit.ledger.settlements import settlement


def records(reader: Connection) -> list[str]:
    return [row[0] for row in reader.execute("SELECT request_id FROM usage_records ORDER BY request_id")]


async def test_the_settlements_of_one_turn_are_one_commit(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    settler = Settler(writer)
    done = [settler.settle(settlement(f"req_{number:02}")) for number in range(50)]
    await asyncio.wait_for(asyncio.gather(*done), WAIT_S)
    assert (writer.commits_count, writer.settlements_count) == (1, 50)
    assert len(records(reader)) == 50


async def test_what_is_settled_during_a_commit_goes_with_the_next_one(writer: LedgerWriter, database: Path) -> None:
    blocker = open_writer(database)
    blocker.execute("BEGIN IMMEDIATE")
    writer.start()
    settler = Settler(writer)
    first = settler.settle(settlement())
    await asyncio.sleep(0)
    others = []
    for _ in range(20):  # each in a turn of its own
        others.append(settler.settle(settlement()))
        await asyncio.sleep(0)
    assert not first.done()
    blocker.execute("ROLLBACK")
    blocker.close()
    await asyncio.wait_for(asyncio.gather(first, *others), WAIT_S)
    assert (writer.commits_count, writer.settlements_count) == (2, 21)


async def test_a_lone_settlement_is_durable_when_its_future_resolves(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    settler = Settler(writer)
    for number in range(5):
        await asyncio.wait_for(settler.settle(settlement(f"req_{number}")), WAIT_S)
        assert len(records(reader)) == number + 1
    assert writer.commits_count == 5


async def test_one_broken_settlement_fails_alone(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    settler = Settler(writer)
    done = [
        settler.settle(settlement("req_a")),
        settler.settle(settlement("req_b", outcome="fine")),
        settler.settle(settlement("req_a")),
        settler.settle(settlement("req_c")),
    ]
    results = await asyncio.wait_for(asyncio.gather(*done, return_exceptions=True), WAIT_S)
    assert [type(result) for result in results] == [type(None), LedgerUnavailable, LedgerUnavailable, type(None)]
    assert records(reader) == ["req_a", "req_c"]
    assert writer.settlements_count == 2
    lone = settler.settle(settlement("req_c"))
    with pytest.raises(LedgerUnavailable, match="req_c"):
        await asyncio.wait_for(lone, WAIT_S)


async def test_a_request_that_is_cancelled_settles_all_the_same(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    settler = Settler(writer)

    async def conclude() -> None:
        await asyncio.shield(settler.settle(settlement("req_a")))

    task = asyncio.ensure_future(conclude())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await asyncio.wait_for(settler.flush(), WAIT_S)
    assert records(reader) == ["req_a"]


async def test_even_a_future_that_was_cancelled_unshielded_is_written(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    settler = Settler(writer)
    settler.settle(settlement("req_a")).cancel()
    await asyncio.wait_for(settler.settle(settlement("req_b")), WAIT_S)
    assert records(reader) == ["req_a", "req_b"]


async def test_flush_waits_for_all_that_was_handed_over(writer: LedgerWriter, reader: Connection) -> None:
    settler = Settler(writer)
    await settler.flush()  # nothing: at once
    writer.start()
    for number in range(30):
        settler.settle(settlement(f"req_{number:02}", outcome="fine" if number == 7 else "ok"))
    await asyncio.wait_for(settler.flush(), WAIT_S)
    assert len(records(reader)) == 29


async def test_when_the_ledger_is_gone_every_settlement_says_so(writer: LedgerWriter) -> None:
    writer.start()
    writer.close()
    settler = Settler(writer)
    results = await asyncio.wait_for(
        asyncio.gather(*(settler.settle(settlement()) for _ in range(3)), return_exceptions=True), WAIT_S
    )
    assert [type(result) for result in results] == [LedgerUnavailable] * 3
    assert all("could not be recorded" in str(result) for result in results)
