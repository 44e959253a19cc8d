"""The cashier on a real ledger: what it holds, whom it refuses and how, and what the books have afterwards."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from headwater.errors import InsufficientQuota, PermissionDenied
from headwater.gateway.admission import Sized
from headwater.gateway.attempt import Attempt
from headwater.gateway.cashier import (
    EXPIRY_GRACE_S,
    OUTPUT_FLOOR_TOKENS,
    REFUSAL_RECORD_S,
    REFUSALS_KEPT,
    Cashier,
    Closed,
    Reservation,
)
from headwater.gateway.notices import receiver_of
from headwater.gateway.relay import Course
from headwater.gateway.routing import Target
from headwater.gateway.weights import Weights
from headwater.ledger import admin_store, store
from headwater.ledger.admin_store import GrantRow
from headwater.ledger.batch import Batch
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.rows import NoticeRow, Settlement, TransferRow
from headwater.ledger.store import Connection, Write
from headwater.ledger.verify import verify
from headwater.ledger.writer import LedgerWriter
from headwater.money import worst_case_nanos
from headwater.request import Chat, Principal
from headwater.usage import NO_USAGE, Usage
from tests.unit.gateway.chats import CountingEngine, chat, target
from tests.unit.gateway.conftest import WAIT_S
from tests.unit.gateway.tills import PRINCIPAL, HandClock, make_cashier, make_request, sized
from tests.unit.ledger.settlements import PRICE, attempt, settlement

NOW_S = 1_795_435_200.0  # 2026-11-23T12:00Z, a Monday
NOW_MS = int(NOW_S * 1000)
SOON_MS = NOW_MS + 30_000
"""Before the holds of the target `chats.target` expire."""
PAYLOAD = chat(text_bytes=100)
INPUT_BOUND = 100 + 16 + 512
INPUT_TOKEN_NANOS, OUTPUT_TOKEN_NANOS = 100, 300
TERMS = BudgetTerms("bud_1", "org_1", "project", "prj_1", 10**12, "month", None, 1_000, "UTC", (50, 80))


class Till:
    """A cashier, its database, and short ways to ask it."""

    def __init__(self, database: Path, writer: LedgerWriter, clock: HandClock) -> None:
        self.database, self.writer, self.clock = database, writer, clock
        self.cashier: Cashier
        self._count = 0

    def open(self, *budgets: BudgetTerms, **options: Any) -> Cashier:
        """Make the cashier, these budgets in its books."""
        if budgets:
            self.write([admin_store.budget_write(terms, 1_000) for terms in budgets])
        self.cashier = make_cashier(self.database, self.writer, self.clock, **options)
        return self.cashier

    def write(self, writes: list[Write]) -> None:
        self.writer.submit(writes).result(WAIT_S)

    def grant(self, grant_id: str, nanos: int, *, expires_at_ms: int | None = None) -> None:
        """Credit on the disk; before `open`."""
        row = GrantRow(grant_id, "org_1", nanos, expires_at_ms, None, 1_000, None, nanos)
        batch = Batch()
        batch.move([TransferRow("grant", grant_id, 0, "org_1", None, nanos, None, 1_000)])
        rows = [Write(admin_store.INSERT_GRANT, tuple(row[:-1])), Write(admin_store.INSERT_LOT, (grant_id, nanos))]
        self.write([*rows, *batch.writes()])

    def prepay(self, currency: str | None = None, *, is_prepaid: bool = True) -> None:
        self.write([Write(admin_store.UPDATE_ORGANIZATION, ("org_1", "default", currency, is_prepaid))])

    async def reserve(
        self,
        cap: int = 1_000,
        *,
        is_stated: bool = True,
        is_stream: bool = True,
        payload: Chat = PAYLOAD,
        at: Target | None = None,
        tags: tuple[str, ...] = (),
        **changes: Any,
    ) -> tuple[Sized, Reservation]:
        self._count += 1
        request = make_request(
            f"req_{self._count:04}", payload, now_s=self.clock.time_s, is_stream=is_stream, tags=tags
        )
        request = msgspec.structs.replace(request, **changes)
        return await self.cashier.reserve(request, at or target(is_own=False), sized(payload, cap, is_stated=is_stated))

    async def settle(self, held: Reservation, cost_nanos: int | None, *, is_void: bool = False) -> Closed:
        """End a request and see that on the disk."""
        closed = self.cashier.close(held, cost_nanos, is_void=is_void)
        row = held.row
        usage = Usage(uncached_input=(cost_nanos or 0) // INPUT_TOKEN_NANOS)
        made = settlement(
            row.request_id,
            attempts_count=0,
            usage=usage,
            price_id=row.price_id,
            cost_nanos=None if row.price_id is None else closed.charge_nanos,
            received_at_ms=row.received_at_ms,
            is_stream=row.is_stream,
            flags=" ".join(closed.flags),
            tags=row.tags,
        )
        made = made._replace(
            attempts=(attempt(row.request_id)._replace(usage=usage),) if cost_nanos else (),
            reservation=row,
            resolution=closed.resolution,
            transfers=closed.transfers,
            lots=closed.lots,
            budgets=closed.budgets,
            has_marks=held.has_marks,
            notices=closed.notices,
        )
        await self.written(made)
        return closed

    async def written(self, made: Settlement) -> None:
        await asyncio.wait_for(self.cashier._settler.settle(made), WAIT_S)

    async def sweep(self) -> None:
        """One round of housekeeping, on the disk."""
        self.cashier.sweep()
        await self.settled()

    async def settled(self) -> None:
        """Everything handed over so far is on the disk: what comes after it is."""
        after = settlement(f"req_after_{self._next()}", attempts_count=0, price_id=None, cost_nanos=None)
        await self.written(after._replace(record=after.record._replace(usage=NO_USAGE)))

    def assert_sound(self) -> None:
        """Every sum and row is as the log says."""
        found = verify(self.database, now_ms=int(self.clock.time_s * 1000))
        assert found.is_ok, "\n".join(str(one) for one in found.differences)

    def _next(self) -> int:
        self._count += 1
        return self._count


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW_S)


@pytest.fixture
def till(database: Path, writer: LedgerWriter, clock: HandClock) -> Till:
    writer.start()
    return Till(database, writer, clock)


def rows(reader: Connection, text: str) -> list[tuple[Any, ...]]:
    return list(reader.execute(text))


def balance(reader: Connection, account: str) -> int:
    found = reader.execute("SELECT balance_nanos FROM balances WHERE account = ?", (account,)).fetchone()
    return 0 if found is None else int(found[0])


def worst(cap: int, input_tokens: int = INPUT_BOUND) -> int:
    return input_tokens * INPUT_TOKEN_NANOS + cap * OUTPUT_TOKEN_NANOS


async def refused(asking: Awaitable[object]) -> InsufficientQuota:
    with pytest.raises(InsufficientQuota) as caught:
        await asking
    return caught.value


# -- what is held ------------------------------------------------------------------------------------------------------


async def test_the_worst_case_is_held_in_memory_and_on_the_disk(till: Till, reader: Connection) -> None:
    cashier = till.open(TERMS)
    _, held = await till.reserve(1_000, tags=("a", "b"), service_tier="priority", client_request_id="theirs")
    assert held.durable is not None
    await asyncio.wait_for(held.durable, WAIT_S)
    assert (
        held.row.amount_nanos == worst(1_000) == worst_case_nanos(PRICE, input_tokens=INPUT_BOUND, output_tokens=1_000)
    )
    (counter,) = await cashier.caps_of(PRINCIPAL)
    assert (counter.held_nanos, counter.spent_nanos) == (worst(1_000), 0)
    (stored,) = rows(reader, "SELECT * FROM reservations")
    assert stored == tuple(held.row)
    assert json.loads(held.row.budgets or "") == [["bud_1", "2026-11"]]
    assert (held.row.tags, held.row.service_tier, held.row.client_request_id) == ("a b", "priority", "theirs")
    assert held.row.expires_at_ms == NOW_MS + 1_000 + int(EXPIRY_GRACE_S * 1000)
    assert balance(reader, "held/org_1") == -balance(reader, "wallet/org_1") == worst(1_000)


async def test_each_choice_is_held_for(till: Till) -> None:
    till.open()
    _, held = await till.reserve(100, payload=msgspec.structs.replace(PAYLOAD, choices_count=3))
    assert held.row.amount_nanos == 3 * worst(100)


async def test_no_number_of_callers_at_once_overdraws_a_cap(till: Till) -> None:
    one = worst(100)
    cashier = till.open(
        TERMS._replace(limit_nanos=7 * one + one - 1),
        TERMS._replace(id="bud_k", scope="key", scope_id="key_1", limit_nanos=20 * one),
        TERMS._replace(id="bud_o", scope="organization", scope_id="org_1", limit_nanos=9 * one),
    )
    asked = await asyncio.gather(
        *(till.reserve(100, at=target(engine=CountingEngine(INPUT_BOUND))) for _ in range(200)), return_exceptions=True
    )
    held = [one[1] for one in asked if not isinstance(one, BaseException)]
    assert len(held) == 7
    assert all(isinstance(one, InsufficientQuota) for one in asked if isinstance(one, BaseException))
    assert {counter.held_nanos for counter in await cashier.caps_of(PRINCIPAL)} == {7 * one}


# -- a cap the caller didn't state -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "expected"), [(0, 700), (299, 700), (300, 701)])
async def test_an_unstated_cap_shrinks_to_exactly_what_can_be_paid(till: Till, room: int, expected: int) -> None:
    till.open(TERMS._replace(limit_nanos=worst(700) + room))
    shrunk, held = await till.reserve(4_096, is_stated=False)
    assert shrunk.chat.output_tokens_max == expected
    assert held.row.amount_nanos == worst(expected)


async def test_an_unstated_cap_shrinks_to_its_floor_and_no_further(till: Till, reader: Connection) -> None:
    assert OUTPUT_FLOOR_TOKENS == 256
    till.open(TERMS._replace(limit_nanos=worst(256)))
    shrunk, held = await till.reserve(4_096, is_stated=False)
    assert shrunk.chat.output_tokens_max == 256
    await till.settle(held, 100)  # so that one token too few can be paid
    error = await refused(till.reserve(4_096, is_stated=False))
    assert f"up to {_units(worst(4_096))}" in error.message


async def test_a_stated_cap_never_shrinks(till: Till) -> None:
    till.open(TERMS._replace(limit_nanos=worst(999)))
    error = await refused(till.reserve(1_000, is_stated=True))
    assert _units(worst(1_000)) in error.message


async def test_what_several_scopes_leave_together_is_what_a_cap_shrinks_to(till: Till) -> None:
    till.open(
        TERMS._replace(limit_nanos=worst(2_000)),
        TERMS._replace(id="bud_k", scope="key", scope_id="key_1", limit_nanos=worst(300)),
    )
    shrunk, _ = await till.reserve(4_096, is_stated=False)
    assert shrunk.chat.output_tokens_max == 300


async def test_a_cap_shrinks_too_when_counting_fits_one_scope_but_not_the_next(till: Till) -> None:
    # Bytes don't fit the organization's cap, the counted prompt does, but not the key's: that must not be a refusal.
    till.open(
        TERMS._replace(id="bud_o", scope="organization", scope_id="org_1", limit_nanos=worst(1_000, 10)),
        TERMS._replace(id="bud_k", scope="key", scope_id="key_1", limit_nanos=worst(400, 10)),
    )
    shrunk, held = await till.reserve(1_000, is_stated=False, at=target(engine=CountingEngine(10)))
    assert (shrunk.chat.output_tokens_max, shrunk.input_tokens, shrunk.is_counted) == (400, 10, True)
    assert held.row.amount_nanos == worst(400, 10)


# -- the engine is asked to count --------------------------------------------------------------------------------------


async def test_an_engine_of_ours_is_asked_to_count_before_anybody_is_refused(till: Till) -> None:
    till.open(TERMS._replace(limit_nanos=worst(1_000, 10)))
    engine = CountingEngine(10)
    counted, held = await till.reserve(1_000, at=target(engine=engine))
    assert engine.asked_count == 1
    assert (counted.input_tokens, counted.is_counted) == (10, True)
    assert held.row.amount_nanos == worst(1_000, 10)


async def test_it_is_not_asked_when_bytes_settle_it_or_it_has_counted_already(till: Till) -> None:
    till.open(TERMS._replace(limit_nanos=worst(1_000)))
    engine = CountingEngine(10)
    _, held = await till.reserve(1_000, at=target(engine=engine))
    assert engine.asked_count == 0
    request = make_request("req_x", PAYLOAD, now_s=NOW_S)
    await refused(till.cashier.reserve(request, target(engine=engine), sized(PAYLOAD, 1_000)._replace(is_counted=True)))
    await refused(till.reserve(1_000, at=target(engine=engine, is_own=False)))
    assert engine.asked_count == 0
    assert held.hold.is_open


async def test_a_count_above_the_bound_from_bytes_is_not_believed(till: Till) -> None:
    till.open(TERMS._replace(limit_nanos=worst(500)))
    shrunk, held = await till.reserve(1_000, is_stated=False, at=target(engine=CountingEngine(100_000)))
    assert shrunk.input_tokens == INPUT_BOUND
    assert held.row.amount_nanos == worst(500)


@pytest.mark.parametrize("is_stated", [True, False])
async def test_it_is_not_asked_when_no_count_could_help(till: Till, *, is_stated: bool) -> None:
    least = 1_000 if is_stated else OUTPUT_FLOOR_TOKENS
    terms = TERMS._replace(limit_nanos=worst(least, 0) - 1)
    cashier = till.open(terms)
    engine = CountingEngine(1)
    await refused(till.reserve(1_000, is_stated=is_stated, at=target(engine=engine)))
    assert engine.asked_count == 0
    cashier.set_budget(terms._replace(limit_nanos=worst(least, 1)))
    await till.reserve(1_000, is_stated=is_stated, at=target(engine=engine))
    assert engine.asked_count == 1


async def test_an_engine_that_cant_count_leaves_the_bound(till: Till) -> None:
    till.open(TERMS._replace(limit_nanos=worst(999)))
    engine = CountingEngine(None)
    await refused(till.reserve(1_000, at=target(engine=engine)))
    assert engine.asked_count == 1


async def test_a_refusal_says_what_the_counted_prompt_needs(till: Till) -> None:
    till.open(TERMS._replace(limit_nanos=worst(999, 10)))
    error = await refused(till.reserve(1_000, at=target(engine=CountingEngine(10))))
    assert f"up to {_units(worst(1_000, 10))}." in error.message


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named", "reset"),
    [
        ({}, "project prj_1 (0.0003 per month)", "reset at 2026-12-01T00:00:00+00:00"),
        ({"scope": "organization", "scope_id": "org_1"}, "organization org_1 (0.0003 per month)", "2026-12-01"),
        ({"scope": "key", "scope_id": "key_1", "period": "day"}, "key key_1 (0.0003 per day)", "2026-11-24T00:00:00"),
        ({"scope": "tag", "scope_id": "night", "period": "week"}, "tag 'night' (0.0003 per week)", "2026-11-30T00:00"),
        ({"period": "total"}, "project prj_1 (0.0003 in all)", "It is never reset."),
        ({"period": "custom", "period_days": 10, "anchor_ms": NOW_MS}, "(0.0003 per 10 days)", "at 2026-12-03T00:00"),
        ({"period": "day", "time_zone": "Asia/Tokyo"}, "per day", "reset at 2026-11-23T15:00:00+00:00"),
    ],
)
async def test_a_refusal_names_scope_limit_remaining_needed_and_reset(
    till: Till, changes: dict[str, Any], named: str, reset: str
) -> None:
    till.open(TERMS._replace(limit_nanos=300_000, **changes))
    _, held = await till.reserve(500, tags=("night",))
    await till.settle(held, 62_900)
    error = await refused(till.reserve(1_000, tags=("night",)))
    assert error.message.startswith("The budget of the ")
    assert named in error.message
    assert " has 0.0002371 left; this request may cost up to 0.0003628." in error.message
    assert reset in error.message


async def test_a_refusal_is_a_429_that_no_client_should_repeat(till: Till) -> None:
    till.open(TERMS._replace(limit_nanos=0))
    error = await refused(till.reserve())
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert error.should_retry is False
    assert error.retry_after_s is None


async def test_without_credit_the_refusal_names_the_organizations_credit(till: Till) -> None:
    till.prepay()
    till.grant("grt_1", 1_000)
    till.open()
    error = await refused(till.reserve(100))
    assert error.message.startswith("The organization's credit is 0.000001; this request may cost up to 0.0000928.")
    assert "headwater grants create" in error.message


async def test_a_refused_request_holds_nothing_anywhere(till: Till, reader: Connection) -> None:
    cashier = till.open(
        TERMS._replace(id="bud_o", scope="organization", scope_id="org_1"), TERMS._replace(limit_nanos=0)
    )
    await refused(till.reserve())
    assert [counter.held_nanos for counter in await cashier.caps_of(PRINCIPAL)] == [0, 0]
    await till.settled()
    assert rows(reader, "SELECT * FROM reservations") == []


async def test_of_a_keys_refusals_one_a_minute_leaves_a_record(till: Till, clock: HandClock) -> None:
    cashier = till.open()
    other = msgspec.structs.replace(PRINCIPAL, key_id="key_2")
    assert [cashier.should_record_refusal(PRINCIPAL) for _ in range(3)] == [True, False, False]
    assert cashier.should_record_refusal(other)
    clock.time_s += REFUSAL_RECORD_S - 0.1
    assert not cashier.should_record_refusal(PRINCIPAL)
    clock.time_s += 0.1
    assert cashier.should_record_refusal(PRINCIPAL)
    assert not cashier.should_record_refusal(PRINCIPAL)


async def test_the_memory_of_refusals_is_bounded(till: Till) -> None:
    cashier = till.open()
    for number in range(REFUSALS_KEPT + 10):
        cashier.should_record_refusal(Principal(organization_id="o", project_id="p", key_id=f"key_{number}"))
    assert len(cashier._refused_s) == REFUSALS_KEPT


# -- no price ----------------------------------------------------------------------------------------------------------


async def test_a_model_without_a_price_is_served_and_held_for_with_nothing(till: Till, reader: Connection) -> None:
    till.open(TERMS._replace(limit_nanos=0))
    _, held = await till.reserve(at=target("free", is_own=False), model="free")
    assert (held.price, held.row.price_id, held.row.amount_nanos) == (None, None, 0)
    closed = await till.settle(held, None)
    assert (closed.charge_nanos, closed.flags) == (0, ())
    assert rows(reader, "SELECT kind, charge_nanos FROM resolutions") == [("post", 0)]


async def test_where_only_priced_models_are_served_it_is_refused(till: Till, reader: Connection) -> None:
    till.open(is_unpriced_refused=True)
    with pytest.raises(PermissionDenied, match="'free' has no price") as caught:
        await till.reserve(at=target("free", is_own=False), model="free")
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "model_unpriced", "model")
    await till.reserve()  # one with a price is served
    await till.settled()
    assert len(rows(reader, "SELECT * FROM reservations")) == 1


@pytest.mark.parametrize(("currency", "is_priced"), [(None, True), ("USD", True), ("EUR", False)])
async def test_a_price_in_another_currency_is_none(till: Till, currency: str | None, *, is_priced: bool) -> None:
    till.prepay(currency, is_prepaid=False)
    till.open()
    _, held = await till.reserve()
    assert (held.price is not None) is is_priced
    assert (held.row.amount_nanos > 0) is is_priced


async def test_the_price_is_that_of_the_moment_it_was_admitted_at(till: Till, clock: HandClock) -> None:
    dearer = msgspec.structs.replace(PRICE, id="prc_2", output=600_000_000)
    till.write([store.price_write(dearer, 2_000, effective_at_ms=NOW_MS + 1_000)])
    till.open()
    _, before = await till.reserve()
    clock.time_s += 1
    _, after = await till.reserve()
    assert (before.row.price_id, after.row.price_id) == ("prc_1", "prc_2")


# -- budgets of keys are read when the key is first used ---------------------------------------------------------------


async def test_a_keys_budget_counts_from_its_first_request(till: Till) -> None:
    till.open(TERMS._replace(id="bud_k", scope="key", scope_id="key_1", limit_nanos=worst(100)))
    assert not till.cashier.book.is_loaded("key_1")
    assert till.cashier.remaining_headers(make_request("req_x", PAYLOAD, now_s=NOW_S)) == []
    _, held = await till.reserve(100)
    assert json.loads(held.row.budgets or "") == [["bud_k", "2026-11"]]
    await refused(till.reserve(100))


async def test_a_budget_made_while_a_keys_budgets_are_read_holds(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    made = TERMS._replace(id="bud_late", scope="key", scope_id="key_1", limit_nanos=worst(50))
    cashier = till.open()
    has_read, may_go_on, reads = threading.Event(), threading.Event(), []
    real = cashier._read_key_budgets

    def read_slowly(key_id: str) -> list[store.BudgetState]:
        found = real(key_id)
        reads.append(found)
        if len(reads) == 1:
            has_read.set()
            may_go_on.wait(WAIT_S)
        return found

    monkeypatch.setattr(cashier, "_read_key_budgets", read_slowly)
    asking = asyncio.ensure_future(till.reserve(100))
    await asyncio.to_thread(has_read.wait, WAIT_S)  # the reader has seen no budget
    till.write([admin_store.budget_write(made, NOW_MS)])
    cashier.set_budget(made)
    may_go_on.set()
    error = await refused(asking)
    assert "key key_1" in error.message
    assert [len(found) for found in reads] == [0, 1]


async def test_a_budget_archived_while_a_keys_budgets_are_read_does_not_hold(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = TERMS._replace(id="bud_gone", scope="key", scope_id="key_1", limit_nanos=0)
    cashier = till.open(gone)
    real, reads = cashier._read_key_budgets, []
    loop = asyncio.get_running_loop()

    def read_slowly(key_id: str) -> list[store.BudgetState]:
        found = real(key_id)
        reads.append(found)
        if len(reads) == 1:
            asyncio.run_coroutine_threadsafe(archive(), loop).result(WAIT_S)
        return found

    async def archive() -> None:
        till.write([Write(admin_store.ARCHIVE_BUDGET, ("bud_gone", NOW_MS))])
        cashier.drop_budget(gone)

    monkeypatch.setattr(cashier, "_read_key_budgets", read_slowly)
    _, held = await till.reserve(100)
    assert held.row.budgets is None
    assert len(reads) == 2


# -- settling ----------------------------------------------------------------------------------------------------------


async def test_what_was_used_is_charged_and_the_rest_goes_back(till: Till, reader: Connection) -> None:
    cashier = till.open(TERMS)
    _, held = await till.reserve(1_000)
    closed = await till.settle(held, 5_000)
    assert (closed.charge_nanos, closed.flags) == (5_000, ())
    (counter,) = await cashier.caps_of(PRINCIPAL)
    assert (counter.held_nanos, counter.spent_nanos) == (0, 5_000)
    assert rows(reader, "SELECT reservation_id, kind, charge_nanos, resolved_at_ms FROM resolutions") == [
        (1, "post", 5_000, NOW_MS)
    ]
    assert (balance(reader, "held/org_1"), balance(reader, "wallet/org_1"), balance(reader, "revenue/m")) == (
        *(0, -5_000),
        5_000,
    )
    assert rows(reader, "SELECT * FROM budget_periods") == [("bud_1", "2026-11", 5_000)]
    till.assert_sound()


async def test_what_wasnt_delivered_is_voided(till: Till, reader: Connection) -> None:
    till.open(TERMS)
    _, held = await till.reserve()
    await till.settle(held, 0, is_void=True)
    assert rows(reader, "SELECT kind, charge_nanos FROM resolutions") == [("void", 0)]
    assert rows(reader, "SELECT * FROM budget_periods") == []
    assert balance(reader, "wallet/org_1") == 0
    till.assert_sound()


async def test_cost_above_what_was_held_is_ours(till: Till, reader: Connection) -> None:
    cashier = till.open(TERMS)
    _, held = await till.reserve(10)
    with capture_logs() as logs:
        closed = await till.settle(held, worst(10) + 7_000)
    assert (closed.charge_nanos, closed.flags) == (worst(10), ("absorbed",))
    assert rows(reader, "SELECT kind, subject, amount_nanos FROM transfers") == [("absorb", "req_0001", 7_000)]
    assert (balance(reader, "absorbed/org_1"), balance(reader, "revenue/m")) == (-7_000, worst(10) + 7_000)
    assert cashier._telemetry.registry.get_sample_value("headwater_gateway_absorbed_units_total") == 7e-6
    assert [line["absorbed_nanos"] for line in logs if line["event"] == "charge_absorbed"] == [7_000]
    (counter,) = await cashier.caps_of(PRINCIPAL)
    assert counter.spent_nanos == worst(10)
    till.assert_sound()


async def test_a_request_without_a_reservation_ends_with_nothing(till: Till) -> None:
    closed = till.open().close(None, None, is_void=True)
    assert closed == Closed(0)


async def test_a_thresholds_notice_is_written_with_the_settlement_once_for_each_receiver(
    till: Till, reader: Connection
) -> None:
    cashier = till.open(TERMS._replace(limit_nanos=100 * worst(10)), receivers=("aaaa", "bbbb"))
    held = [(await till.reserve(10))[1] for _ in range(90)]
    with capture_logs() as logs:
        for one in held:
            await till.settle(one, one.row.amount_nanos)
    said = [(line["percent"], line["scope"], line["scope_id"]) for line in logs if line["event"] == "budget_threshold"]
    assert said == [(50, "project", "prj_1"), (80, "project", "prj_1")]
    found = [NoticeRow(*row) for row in rows(reader, "SELECT * FROM notices ORDER BY rowid")]
    assert [(receiver_of(row), json.loads(row.body)["data"]["percent"]) for row in found] == [
        ("aaaa", 50),
        ("bbbb", 50),
        ("aaaa", 80),
        ("bbbb", 80),
    ]
    counted = cashier._telemetry.registry.get_sample_value(
        "headwater_gateway_budget_thresholds_total", {"scope": "project"}
    )
    assert counted == 2


async def test_under_a_raised_limit_a_threshold_is_announced_again(till: Till) -> None:
    one = worst(10)
    terms = TERMS._replace(limit_nanos=10 * one)
    cashier = till.open(terms)

    async def spend(times: int) -> list[int]:
        with capture_logs() as logs:
            for _ in range(times):
                _, held = await till.reserve(10)
                await till.settle(held, one)
        return [line["percent"] for line in logs if line["event"] == "budget_threshold"]

    assert await spend(8) == [50, 80]
    cashier.set_budget(terms._replace(limit_nanos=20 * one))  # of which 40 percent are spent
    assert await spend(1) == []
    assert await spend(7) == [50, 80]
    cashier.set_budget(terms._replace(limit_nanos=17 * one))  # 94 percent: nothing that wasn't said
    assert await spend(1) == []


async def test_under_a_lowered_limit_what_it_reaches_is_announced_with_the_next_charge(till: Till) -> None:
    one = worst(10)
    terms = TERMS._replace(limit_nanos=100 * one)
    cashier = till.open(terms)
    _, held = await till.reserve(10)
    await till.settle(held, one)
    cashier.set_budget(terms._replace(limit_nanos=2 * one))
    _, held = await till.reserve(10)
    with capture_logs() as logs:
        await till.settle(held, 100)
    assert [line["percent"] for line in logs if line["event"] == "budget_threshold"] == [50]


async def test_without_receivers_a_threshold_is_logged_all_the_same(till: Till, reader: Connection) -> None:
    till.open(TERMS._replace(limit_nanos=worst(10)))
    _, held = await till.reserve(10)
    with capture_logs() as logs:
        await till.settle(held, worst(10))
    assert [line["percent"] for line in logs if line["event"] == "budget_threshold"] == [50, 80]
    assert rows(reader, "SELECT * FROM notices") == []


async def test_a_stream_is_marked_and_its_mark_goes_with_the_settlement(
    till: Till, reader: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.gateway.settle.LAZY_S", 3_600.0)
    cashier = till.open()
    _, held = await till.reserve()
    under_way = Attempt(0, "m", PAYLOAD, queued_at_s=NOW_S)
    mark = cashier.mark(held, [under_way])
    assert rows(reader, "SELECT * FROM marks") == []  # it goes with what comes next …
    await asyncio.wait_for(cashier.marked(mark), WAIT_S)  # … or now, for who waits
    await cashier.marked(mark)
    ((reservation_id, text, marked_at_ms),) = rows(reader, "SELECT * FROM marks")
    assert (reservation_id, marked_at_ms) == (held.row.id, NOW_MS)
    assert json.loads(text)[0]["id"] == under_way.id
    await till.settle(held, 500)
    assert rows(reader, "SELECT * FROM marks") == []


async def test_a_stream_waits_at_a_mark_until_the_one_before_is_on_the_disk(
    till: Till, reader: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.gateway.settle.LAZY_S", 3_600.0)  # nothing goes to the disk that nobody hurries
    cashier = till.open()
    _, held = await till.reserve()
    course = Course(make_request("req_x", PAYLOAD, now_s=NOW_S, is_stream=True), cashier, till.clock, Weights())
    course.reservation = held
    await course.before_content(1.0)  # the first content: no mark yet
    await course.before_content(2.5)
    assert rows(reader, "SELECT * FROM marks") == []
    await asyncio.wait_for(course.before_content(4.0), WAIT_S)
    assert len(rows(reader, "SELECT * FROM marks")) == 1
    await till.settle(held, 500)


# -- order on the disk -------------------------------------------------------------------------------------------------


async def test_what_made_room_is_on_the_disk_no_later_than_what_took_it(
    till: Till, reader: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[dict[str, list[tuple[Any, ...]]]] = []
    real = till.writer.submit

    def submit(writes: Any, *, settlements_count: int = 0) -> Any:
        submitted.append({one.statement.name: list(getattr(one, "rows", [one[1]])) for one in writes})
        return real(writes, settlements_count=settlements_count)

    till.open(TERMS._replace(limit_nanos=3 * worst(10)))
    monkeypatch.setattr(till.writer, "submit", submit)

    async def caller(number: int) -> None:
        for _ in range(20):
            try:
                _, held = await till.reserve(10, is_stream=bool(number % 2))
            except InsufficientQuota:
                await asyncio.sleep(0)
                continue
            for _ in range(number % 3):
                await asyncio.sleep(0)
            await till.settle(held, 100 * number)

    await asyncio.wait_for(asyncio.gather(*(caller(number) for number in range(12))), WAIT_S)
    opened: set[int] = set()
    seen: list[int] = []
    for batch in submitted:
        for row in batch.get("insert_reservation", []):
            seen.append(row[0])
            opened.add(row[0])
        opened -= {row[0] for row in batch.get("insert_resolution", [])}
        assert len(opened) <= 3, "a reservation was written before the settlement that made room for it"
    assert seen == sorted(seen)
    assert len(seen) > 20
    assert not opened


# -- housekeeping ------------------------------------------------------------------------------------------------------


async def test_a_reservation_nobody_settles_expires(till: Till, reader: Connection, clock: HandClock) -> None:
    cashier = till.open(TERMS._replace(limit_nanos=worst(10)))
    _, held = await till.reserve(10)
    clock.time_s += EXPIRY_GRACE_S + 0.999
    await till.sweep()
    assert rows(reader, "SELECT * FROM resolutions") == []
    clock.time_s += 0.001
    with capture_logs() as logs:
        await till.sweep()
        await till.sweep()
    assert rows(reader, "SELECT reservation_id, kind, charge_nanos FROM resolutions") == [(held.row.id, "expire", 0)]
    assert [(line["event"], line["request_id"]) for line in logs] == [("reservation_expired", "req_0001")]
    assert balance(reader, "held/org_1") == balance(reader, "wallet/org_1") == 0
    (counter,) = await cashier.caps_of(PRINCIPAL)
    assert counter.held_nanos == 0
    await till.reserve(10)  # there is room again


async def test_a_settlement_after_expiry_is_posted_where_the_caps_still_allow_it(
    till: Till, reader: Connection, clock: HandClock
) -> None:
    till.grant("grt_1", 3_000)
    cashier = till.open(TERMS)
    _, held = await till.reserve(10)
    clock.time_s += 3600
    await till.sweep()
    closed = await till.settle(held, 5_000)
    assert (closed.charge_nanos, closed.resolution, closed.flags) == (5_000, None, ("late",))
    assert rows(reader, "SELECT kind, subject, amount_nanos, note FROM transfers WHERE kind = 'late_post'") == [
        ("late_post", "req_0001", 5_000, '[["grt_1",3000]]')
    ]
    assert rows(reader, "SELECT kind FROM resolutions") == [("expire",)]
    assert rows(reader, "SELECT * FROM grant_lots") == [("grt_1", 0)]
    assert rows(reader, "SELECT spent_nanos FROM budget_periods") == [(5_000,)]
    (counter,) = await cashier.caps_of(PRINCIPAL)
    assert (counter.held_nanos, counter.spent_nanos) == (0, 5_000)
    till.assert_sound()


async def test_a_late_settlement_that_nobody_can_pay_is_ours(till: Till, reader: Connection, clock: HandClock) -> None:
    till.open(TERMS._replace(limit_nanos=worst(10)))
    _, held = await till.reserve(10)
    clock.time_s += 3600
    await till.sweep()
    _, other = await till.reserve(10)  # takes the room meanwhile
    closed = await till.settle(held, 5_000)
    assert (closed.charge_nanos, closed.flags) == (0, ("late", "absorbed"))
    await till.settle(other, worst(10))
    assert rows(reader, "SELECT kind, amount_nanos FROM transfers") == [("absorb", 5_000)]
    assert rows(reader, "SELECT spent_nanos FROM budget_periods") == [(worst(10),)]
    assert rows(reader, "SELECT cost_nanos, flags FROM usage_records WHERE request_id = 'req_0001'") == [
        (0, "late absorbed")
    ]
    till.assert_sound()


async def test_credit_lapses_when_its_time_is_over_and_what_is_held_stays_spendable(
    till: Till, reader: Connection, clock: HandClock
) -> None:
    amount = 10 * worst(10)
    till.grant("grt_1", amount, expires_at_ms=SOON_MS)
    till.prepay()
    cashier = till.open()
    _, held = await till.reserve(10)
    clock.time_s = SOON_MS / 1000 - 1
    await till.sweep()
    assert cashier.credit_nanos("org_1") == amount - worst(10)
    clock.time_s = SOON_MS / 1000
    await till.sweep()
    await till.sweep()
    assert cashier.credit_nanos("org_1") == 0
    assert rows(reader, "SELECT kind, part, amount_nanos FROM transfers WHERE kind <> 'grant'") == [
        ("grant_expire", 0, amount - worst(10))
    ]
    assert rows(reader, "SELECT remaining_nanos FROM grant_lots") == [(worst(10),)]
    await refused(till.reserve(10))
    await till.settle(held, 1_000)
    assert rows(reader, "SELECT kind, part, amount_nanos FROM transfers WHERE part > 0") == [
        ("grant_expire", held.row.id, worst(10) - 1_000)
    ]
    assert rows(reader, "SELECT remaining_nanos FROM grant_lots") == [(0,)]
    assert balance(reader, "wallet/org_1") == 0
    till.assert_sound()


async def test_a_hold_that_expires_gives_back_credit_or_lets_it_lapse(
    till: Till, reader: Connection, clock: HandClock
) -> None:
    till.grant("grt_1", worst(10), expires_at_ms=SOON_MS)
    till.grant("grt_2", worst(20))
    till.open()
    await till.reserve(30)  # holds of both
    clock.time_s += 3600
    await till.sweep()
    assert rows(reader, "SELECT grant_id, remaining_nanos FROM grant_lots") == [("grt_1", 0), ("grt_2", worst(20))]
    assert till.cashier.book.credit_nanos("org_1", int(clock.time_s * 1000)) == worst(20)
    till.assert_sound()


async def test_below_which_id_everything_is_resolved_is_remembered(till: Till, reader: Connection) -> None:
    till.open()
    held = [(await till.reserve(10))[1] for _ in range(4)]
    await till.settle(held[0], 100)
    await till.settle(held[2], 100)
    await till.sweep()
    assert rows(reader, "SELECT * FROM ledger_state") == [("open_from", 2)]
    await till.settle(held[1], 100)
    await till.settle(held[3], 100)
    await till.sweep()
    assert rows(reader, "SELECT * FROM ledger_state") == [("open_from", 5)]


async def test_housekeeping_goes_on_by_itself(
    till: Till, reader: Connection, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.gateway.cashier.SWEEP_S", 0.001)
    cashier = till.open()
    _, held = await till.reserve(10)
    clock.time_s += 3600
    house = asyncio.ensure_future(cashier.keep_house())
    await until(lambda: not held.hold.is_open)
    house.cancel()
    await asyncio.wait([house])
    await till.settled()
    assert rows(reader, "SELECT kind FROM resolutions") == [("expire",)]


# -- what a caller can see ---------------------------------------------------------------------------------------------


async def test_the_headers_have_what_is_left_under_the_tightest_cap(till: Till) -> None:
    cashier = till.open(
        TERMS._replace(limit_nanos=10**9),
        TERMS._replace(id="bud_k", scope="key", scope_id="key_1", limit_nanos=5 * 10**8),
    )
    request = make_request("req_x", PAYLOAD, now_s=NOW_S)
    await till.reserve(10)
    left = 5 * 10**8 - worst(10)
    assert cashier.remaining_headers(request) == [
        (b"x-headwater-budget-remaining", _units(left).encode()),
        (b"x-headwater-budget-scope", b"key"),
    ]


async def test_credit_is_a_cap_too_where_requests_are_paid_beforehand(till: Till) -> None:
    till.prepay()
    till.grant("grt_1", 10**9)
    cashier = till.open()
    request = make_request("req_x", PAYLOAD, now_s=NOW_S)
    await cashier.caps_of(PRINCIPAL)
    assert cashier.remaining_headers(request)[1] == (b"x-headwater-budget-scope", b"wallet")
    assert cashier.credit_nanos("org_1") == 10**9


async def test_who_has_no_cap_sees_no_header_and_no_credit(till: Till) -> None:
    cashier = till.open()
    await till.reserve()
    assert cashier.remaining_headers(make_request("req_x", PAYLOAD, now_s=NOW_S)) == []
    assert cashier.credit_nanos("org_1") is None
    assert await cashier.caps_of(PRINCIPAL) == []


def _units(nanos: int) -> str:
    """Nano-units as a decimal of whole units, worked out apart from the product's own."""
    return f"{nanos / 1e9:.9f}".rstrip("0")


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another task does; bounded."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.001)
