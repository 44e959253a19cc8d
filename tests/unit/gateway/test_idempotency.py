"""Idempotency keys on a real ledger: who is served, who is answered from what is kept, who is refused."""

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater.errors import IdempotencyKeyInUse, IdempotencyKeyReused, InvalidRequest, UnsupportedValue
from headwater.gateway.idempotency import KEY_CHARACTERS_MAX, Idempotency, Replay, Ticket
from headwater.ledger import admin_store, store
from headwater.ledger.batch import settlement_writes
from headwater.ledger.rows import StoredAnswer
from headwater.ledger.store import Connection, Write
from headwater.ledger.writer import LedgerWriter
from headwater.request import Principal
from headwater.settings.model import BillingSettings
from tests.unit.gateway.conftest import WAIT_S
from tests.unit.gateway.tills import PRINCIPAL, HandClock
from tests.unit.ledger.settlements import settlement

NOW_S = 1_795_435_200.0
NOW_MS = int(NOW_S * 1000)
ROUTE = "/v1/chat/completions"
BODY, OTHER_BODY, ANSWER = b'{"a":1}', b'{"a":2}', b'{"answer":42}'
HOUR_S = 3600


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW_S)


class Keys:
    """An `Idempotency`, and short ways to ask it."""

    def __init__(self, database: Path, writer: LedgerWriter, clock: HandClock) -> None:
        self.database, self.writer, self.clock = database, writer, clock
        self.settings = BillingSettings(idempotency_answer_bytes_max=100, idempotency_project_bytes_max=1_000)
        self.made = self.restarted()
        self._count = 0

    def restarted(self) -> Idempotency:
        """What a process that starts now has in memory."""
        return Idempotency(self.database, self.settings, clock=self.clock)

    async def begin(
        self,
        key: str = "k",
        *,
        body: bytes = BODY,
        route: str = ROUTE,
        principal: Principal = PRINCIPAL,
        is_stream: bool = False,
    ) -> Ticket | Replay:
        self._count += 1
        return await self.made.begin(
            key,
            route=route,
            principal=principal,
            body=body,
            request_id=f"req_{self._count:02}",
            is_stream=is_stream,
        )

    async def ticket(self, key: str = "k", **changes: Any) -> Ticket:
        begun = await self.begin(key, **changes)
        assert isinstance(begun, Ticket)
        return begun

    async def answer(self, ticket: Ticket, body: bytes = ANSWER) -> StoredAnswer | None:
        """The request is settled with this answer, and over."""
        kept = ticket.keep(body, int(self.clock.time_s * 1000))
        settled = settlement(ticket.request_id)._replace(answer=kept)
        await asyncio.wrap_future(self.writer.submit(settlement_writes(settled), settlements_count=1))
        self.made.release(ticket)
        return kept


@pytest.fixture
def keys(database: Path, writer: LedgerWriter, clock: HandClock) -> Keys:
    writer.start()
    return Keys(database, writer, clock)


async def test_the_second_time_the_first_answer_is_given_again(keys: Keys) -> None:
    ticket = await keys.ticket()
    await keys.answer(ticket)
    assert await keys.begin() == Replay(ANSWER, ticket.request_id)
    assert await keys.begin() == Replay(ANSWER, ticket.request_id)
    keys.made = keys.restarted()
    assert await keys.begin() == Replay(ANSWER, ticket.request_id)


async def test_the_answers_row_says_whose_it_is_and_until_when(keys: Keys, reader: Connection) -> None:
    ticket = await keys.ticket()
    await keys.answer(ticket)
    row = reader.execute("SELECT * FROM idempotency_keys").fetchone()
    assert row == (
        *("prj_1", ROUTE, "k", hashlib.sha256(BODY).digest(), "req_01", ANSWER),
        *(NOW_MS, NOW_MS + 24 * HOUR_S * 1000),
    )


async def test_with_another_body_it_is_refused_kept_or_under_way(keys: Keys) -> None:
    ticket = await keys.ticket()
    with pytest.raises(IdempotencyKeyReused, match="'k' was used for a request with another body") as under_way:
        await keys.begin(body=OTHER_BODY)
    await keys.answer(ticket)
    with pytest.raises(IdempotencyKeyReused) as kept:
        await keys.begin(body=OTHER_BODY)
    for error in (under_way.value, kept.value):
        assert (error.status, error.code, error.param) == (422, "idempotency_key_reused", "Idempotency-Key")
        assert error.should_retry is False
    assert isinstance(await keys.begin(), Replay)


async def test_while_the_first_is_served_the_key_is_taken(keys: Keys) -> None:
    ticket = await keys.ticket()
    with pytest.raises(IdempotencyKeyInUse, match="is being served") as taken:
        await keys.begin()
    assert (taken.value.status, taken.value.code) == (409, "idempotency_key_in_use")
    assert taken.value.retry_after_s == 1
    assert taken.value.should_retry is True
    keys.made.release(ticket)
    assert isinstance(await keys.begin(), Ticket)


async def test_of_many_at_once_one_is_served(keys: Keys) -> None:
    begun = await asyncio.gather(*(keys.begin() for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(one, Ticket) for one in begun) == 1
    assert sum(isinstance(one, IdempotencyKeyInUse) for one in begun) == 49


async def test_after_an_error_the_key_is_free_for_any_body(keys: Keys) -> None:
    ticket = await keys.ticket()
    keys.made.release(ticket)  # nothing was kept
    keys.made.release(ticket)  # once more does nothing
    assert isinstance(await keys.begin(body=OTHER_BODY), Ticket)


async def test_after_a_crash_the_key_is_free(keys: Keys) -> None:
    await keys.ticket()
    keys.made = keys.restarted()
    assert isinstance(await keys.begin(), Ticket)


async def test_a_lookup_that_fails_or_is_cancelled_frees_the_key(
    keys: Keys, monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    monkeypatch.setattr(keys.made, "_database", database.with_name("elsewhere.db"))
    with pytest.raises(store.DatabaseError):
        await keys.begin()
    monkeypatch.setattr(keys.made, "_database", database)
    has_begun, may_go_on = threading.Event(), threading.Event()
    real = keys.made._look

    def slowly(name: tuple[str, str, str]) -> StoredAnswer | None:
        has_begun.set()
        may_go_on.wait(WAIT_S)
        return real(name)

    monkeypatch.setattr(keys.made, "_look", slowly)
    task = asyncio.ensure_future(keys.begin())
    await asyncio.to_thread(has_begun.wait, WAIT_S)
    with pytest.raises(IdempotencyKeyInUse):
        await keys.begin()
    task.cancel()
    await asyncio.wait([task])
    may_go_on.set()
    assert isinstance(await keys.begin(), Ticket)


async def test_a_key_belongs_to_its_project_and_route(keys: Keys) -> None:
    keys.writer.submit([Write(store.INSERT_PROJECT, ("prj_2", "org_1", "second", 1))]).result(WAIT_S)
    await keys.answer(await keys.ticket())
    elsewhere = msgspec.structs.replace(PRINCIPAL, project_id="prj_2")
    assert isinstance(await keys.begin(principal=elsewhere), Ticket)
    assert isinstance(await keys.begin(route="/v1/other"), Ticket)
    assert isinstance(await keys.begin("K"), Ticket)
    same_project = msgspec.structs.replace(PRINCIPAL, key_id="key_9")
    assert isinstance(await keys.begin(principal=same_project), Replay)


async def test_after_its_time_the_answer_is_gone_and_the_key_may_be_used_again(
    keys: Keys, clock: HandClock, reader: Connection
) -> None:
    await keys.answer(await keys.ticket())
    clock.time_s += 24 * HOUR_S - 0.001
    assert isinstance(await keys.begin(), Replay)
    clock.time_s += 0.001
    ticket = await keys.ticket(body=OTHER_BODY)
    await keys.answer(ticket, b"new")
    assert await keys.begin(body=OTHER_BODY) == Replay(b"new", ticket.request_id)
    assert reader.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (1,)


async def test_a_stream_cant_have_a_key(keys: Keys) -> None:
    with pytest.raises(UnsupportedValue, match="Idempotency-Key can't be streamed") as refused:
        await keys.begin(is_stream=True)
    assert (refused.value.status, refused.value.param) == (400, "stream")
    assert isinstance(await keys.begin(), Ticket)


@pytest.mark.parametrize("key", ["", "x" * (KEY_CHARACTERS_MAX + 1), "ü", "a\nb", "a\x7f", "\x00"])
async def test_what_can_be_no_key_is_refused_with_its_length(keys: Keys, key: str) -> None:
    with pytest.raises(InvalidRequest, match=f"printable ASCII characters; it has {len(key)}") as refused:
        await keys.begin(key)
    assert refused.value.param == "Idempotency-Key"


@pytest.mark.parametrize("key", ["x", "x" * KEY_CHARACTERS_MAX, "a b", "~!@#"])
async def test_any_printable_text_is_a_key(keys: Keys, key: str) -> None:
    await keys.answer(await keys.ticket(key))
    assert isinstance(await keys.begin(key), Replay)


# -- what is kept ---------------------------------------------------------------------------------------------------------


async def test_an_answer_that_is_too_large_is_given_but_not_kept(keys: Keys) -> None:
    assert await keys.answer(await keys.ticket("small"), b"x" * 100) is not None
    assert await keys.answer(await keys.ticket("large"), b"x" * 101) is None
    assert isinstance(await keys.begin("large"), Ticket)


async def test_a_project_keeps_no_more_than_its_quota(keys: Keys, clock: HandClock) -> None:
    for number in range(10):
        assert await keys.answer(await keys.ticket(f"k{number}"), b"x" * 97) is not None
    assert await keys.answer(await keys.ticket("a"), b"x" * 31) is None
    assert await keys.answer(await keys.ticket("b"), b"x" * 30) is not None
    assert await keys.answer(await keys.ticket("c"), b"x") is None
    clock.time_s += 24 * HOUR_S  # what has expired makes room
    assert await keys.answer(await keys.ticket("c"), b"x" * 100) is not None


async def test_where_a_project_forbids_storage_nothing_is_kept(keys: Keys) -> None:
    keys.writer.submit([Write(admin_store.UPDATE_PROJECT, ("prj_1", "default", False))]).result(WAIT_S)
    ticket = await keys.ticket()
    with pytest.raises(IdempotencyKeyInUse):  # it is taken all the same while it is served
        await keys.begin()
    assert await keys.answer(ticket, b"") is None
    assert isinstance(await keys.begin(), Ticket)


async def test_a_settlement_that_fails_keeps_no_answer(keys: Keys, reader: Connection) -> None:
    ticket = await keys.ticket()
    kept = ticket.keep(ANSWER, NOW_MS)
    broken = settlement(ticket.request_id, outcome="fine")._replace(answer=kept)
    with pytest.raises(store.IntegrityError):
        await asyncio.wrap_future(keys.writer.submit(settlement_writes(broken)))
    assert reader.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (0,)
