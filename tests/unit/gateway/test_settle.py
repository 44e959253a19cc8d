import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from headwater.errors import LedgerUnavailable
from headwater.gateway.settle import LAZY_S, Settler
from headwater.ledger import store
from headwater.ledger.book import Settled
from headwater.ledger.rows import MarkRow, ReservationRow, ResolutionRow, TransferRow
from headwater.ledger.store import Connection, Rows, Write, open_writer
from headwater.ledger.writer import LedgerWriter
from tests.unit.gateway.conftest import WAIT_S
from tests.unit.gateway.fake_time import run
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


# -- reservations, and what else is written --------------------------------------------------------------------------


def reservation(number: int) -> ReservationRow:
    return ReservationRow(
        id=number,
        request_id=f"req_{number:02}",
        epoch=1,
        organization_id="org_1",
        project_id="prj_1",
        key_id="key_1",
        model="m",
        price_id="prc_1",
        amount_nanos=1_000,
        budgets=None,
        lots=None,
        client_request_id=None,
        dialect="openai_chat",
        service_tier="standard",
        is_stream=True,
        choices_count=1,
        tags=None,
        received_at_ms=5_000,
        expires_at_ms=6_000,
    )


class HandWriter:
    """Takes submissions and says that they are on the disk when told to: what the settler does about time needs no disk."""

    def __init__(self) -> None:
        self.submitted: list[tuple[float, list[str]]] = []
        self._under_way: list[Future[None]] = []

    def submit(self, writes: Sequence[Write | Rows], *, settlements_count: int = 0) -> "Future[None]":
        """When, and whose reservations and records."""
        ids = []
        for one in writes:
            rows = one.rows if isinstance(one, Rows) else [one.row]
            at = {"insert_reservation": 1, "insert_usage": 0, "put_state": 0}.get(one.statement.name)
            ids += [] if at is None else [str(row[at]) for row in rows]
        self.submitted.append((round(asyncio.get_running_loop().time() - 1000, 6), ids))
        self._under_way.append(Future())
        return self._under_way[-1]

    def commit(self) -> None:
        self._under_way.pop(0).set_result(None)


def hand_settler() -> tuple[HandWriter, Settler]:
    writer = HandWriter()
    return writer, Settler(cast("LedgerWriter", writer))


def test_a_reservation_nobody_waits_for_goes_alone_after_a_quarter_of_a_second() -> None:
    async def work() -> None:
        writer, settler = hand_settler()
        settler.reserve_with_next(reservation(1))
        await asyncio.sleep(0.1)
        settler.reserve_with_next(reservation(2))
        await asyncio.sleep(0.14)
        assert writer.submitted == []
        await asyncio.sleep(1)
        assert writer.submitted == [(LAZY_S, ["req_01", "req_02"])]

    assert LAZY_S == 0.25
    run(work())


def test_it_goes_with_the_next_submission_and_then_not_again() -> None:
    async def work() -> None:
        writer, settler = hand_settler()
        settler.reserve_with_next(reservation(1))
        await asyncio.sleep(0.1)
        settler.settle(settlement("req_00"))
        await asyncio.sleep(0)
        assert writer.submitted == [(0.1, ["req_01", "req_00"])]
        writer.commit()
        await asyncio.sleep(1)
        assert len(writer.submitted) == 1
        settler.reserve_with_next(reservation(2))  # a new one has its own quarter of a second
        await asyncio.sleep(1)
        assert writer.submitted[1:] == [(1.1 + LAZY_S, ["req_02"])]

    run(work())


def test_the_quarter_of_a_second_of_one_that_has_gone_is_not_the_next_ones() -> None:
    async def work() -> None:
        writer, settler = hand_settler()
        settler.reserve_with_next(reservation(1))
        await asyncio.sleep(0.1)
        settler.settle(settlement("req_00"))
        await asyncio.sleep(0)
        writer.commit()
        await asyncio.sleep(0.1)
        settler.reserve_with_next(reservation(2))
        await asyncio.sleep(1)
        assert writer.submitted[1:] == [(0.2 + LAZY_S, ["req_02"])]

    run(work())


def test_a_streams_reservation_goes_at_once() -> None:
    async def work() -> None:
        writer, settler = hand_settler()
        done = settler.reserve(reservation(1))
        await asyncio.sleep(0)
        assert writer.submitted == [(0, ["req_01"])]
        assert not done.done()
        writer.commit()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert done.done()

    run(work())


def test_while_one_is_under_way_nothing_is_submitted_however_long_it_takes() -> None:
    async def work() -> None:
        writer, settler = hand_settler()
        settler.settle(settlement("req_00"))
        await asyncio.sleep(0.1)
        settler.reserve_with_next(reservation(1))
        await asyncio.sleep(1)  # its quarter of a second is over
        settler.reserve_with_next(reservation(2))
        assert len(writer.submitted) == 1
        writer.commit()
        await asyncio.sleep(0.01)
        assert [ids for _, ids in writer.submitted] == [["req_00"], ["req_01", "req_02"]]

    run(work())


def test_what_isnt_urgent_does_not_follow_a_commit_at_once() -> None:
    async def work() -> None:
        writer, settler = hand_settler()
        settler.settle(settlement("req_00"))
        await asyncio.sleep(0.1)
        settler.remember("open_from", 7)
        await asyncio.sleep(0.1)
        writer.commit()
        await asyncio.sleep(0.1)
        assert len(writer.submitted) == 1
        await asyncio.sleep(0.1)
        assert writer.submitted[1:] == [(0.1 + LAZY_S, ["open_from"])]

    run(work())


def test_everything_is_written_in_the_order_it_was_decided() -> None:
    async def work() -> None:
        writer, settler = hand_settler()
        order = []
        for number in range(1, 40):
            order.append(f"req_{number:02}")
            (settler.reserve if number % 3 else settler.reserve_with_next)(reservation(number))
            if number % 5 == 0:
                await asyncio.sleep(0.06)
            if number % 7 == 0 and writer._under_way:
                writer.commit()
        await asyncio.sleep(1)
        while writer._under_way:
            writer.commit()
            await asyncio.sleep(1)
        assert [one for _, ids in writer.submitted for one in ids] == order

    run(work())


async def test_reservations_marks_expiries_and_lapses_are_written(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    writer.submit(
        [
            Write(store.INSERT_EPOCH, (1, "test", 1)),
        ]
    ).result(WAIT_S)
    settler = Settler(writer)
    await asyncio.wait_for(settler.reserve(reservation(1)), WAIT_S)
    settler.reserve_with_next(reservation(2))
    settler.mark("req_01", MarkRow(1, "[]", 5))
    nothing = Settled(0, 0, (), (), (), ())
    await asyncio.wait_for(settler.expire(reservation(2), ResolutionRow(2, "expire", 0, 9), nothing), WAIT_S)
    settler.lapse([TransferRow("grant_expire", "grt_1", 0, "org_1", None, 5, None, 9)])
    settler.remember("open_from", 3)
    settler.remember("open_from", 4)
    await asyncio.wait_for(settler.settle(settlement("req_00")), WAIT_S)

    def rows(text: str) -> list[tuple[object, ...]]:
        return list(reader.execute(text))

    assert rows("SELECT id FROM reservations ORDER BY id") == [(1,), (2,)]
    assert rows("SELECT reservation_id FROM marks") == [(1,)]
    assert rows("SELECT reservation_id, kind FROM resolutions") == [(2, "expire")]
    assert rows("SELECT kind, subject, amount_nanos FROM transfers") == [("grant_expire", "grt_1", 5)]
    assert rows("SELECT name, value FROM ledger_state") == [("open_from", 4)]
    assert dict(reader.execute("SELECT account, balance_nanos FROM balances WHERE account LIKE '%org_1'")) == {
        "held/org_1": 1_000,
        "wallet/org_1": -1_005,
        "grants/org_1": 5,
    }


async def test_a_reservation_that_cant_be_written_fails_alone_and_its_settlement_with_it(
    writer: LedgerWriter, reader: Connection
) -> None:
    writer.start()
    writer.submit([Write(store.INSERT_EPOCH, (1, "test", 1))]).result(WAIT_S)
    settler = Settler(writer)
    twice, held = reservation(1)._replace(request_id="req_twice"), reservation(1)
    with capture_logs() as logs:
        good = settler.reserve(held)
        bad = settler.reserve(twice)  # the same id: refused
        ended = settlement("req_01")._replace(reservation=held, resolution=ResolutionRow(1, "post", 42, 9))
        again = settlement("req_02")._replace(reservation=held, resolution=ResolutionRow(1, "post", 1, 9))
        done = [settler.settle(ended), settler.settle(again)]
        results = await asyncio.wait_for(asyncio.gather(good, bad, *done, return_exceptions=True), WAIT_S)
    assert [type(one) for one in results] == [type(None), LedgerUnavailable, type(None), LedgerUnavailable]
    assert records(reader) == ["req_01"]
    assert [line["request_id"] for line in logs if line["event"] == "settlement_failed"] == ["req_twice", "req_02"]
    balances = dict(reader.execute("SELECT account, balance_nanos FROM balances WHERE account LIKE '%org_1'"))
    assert balances == {"held/org_1": 0, "wallet/org_1": -42}


async def test_flush_also_writes_what_nobody_waits_for(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    writer.submit([Write(store.INSERT_EPOCH, (1, "test", 1))]).result(WAIT_S)
    settler = Settler(writer)
    settler.reserve_with_next(reservation(1))
    settler.remember("open_from", 1)
    await settler.flush()
    await asyncio.to_thread(writer.close)
    assert reader.execute("SELECT count(*) FROM reservations").fetchone() == (1,)
