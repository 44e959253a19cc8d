"""What a crash left open is resolved at the next start, once, however often that start is itself cut short."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater.ledger import recovery, store
from headwater.ledger.load_book import load_book
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.recovery import Recovered, recover
from headwater.ledger.rows import Mark
from headwater.ledger.store import Connection, open_reader, open_writer
from headwater.ledger.verify import verify
from headwater.ledger.writer import LedgerFailed, LedgerWriter
from headwater.money import STANDARD, calls_cost_nanos
from headwater.usage import Usage, UsageSource
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.settlements import PRICE
from tests.unit.ledger.till import Held, Till

CHUNK_COUNT = 20
"""Resolved in one transaction here, so that a few requests take several."""
DAY_MS = 86_400_000
BEGAN_MS = 1_793_923_200_000
CAP = BudgetTerms("bud_1", "org_1", "project", "prj_1", 10**12, "day", None, BEGAN_MS, "UTC")
USED = Usage(uncached_input=50, cache_read=10, output=40, reasoning=5)
USED_NANOS = calls_cost_nanos([USED], PRICE, service_tier=STANDARD)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "CHUNK_COUNT", CHUNK_COUNT)


@pytest.fixture
def till(database: Path) -> Iterator[Till]:
    with Till(database, now_ms=BEGAN_MS) as made:
        made.organization("org_1", key_id="key_1", is_new=False)
        made.key("key_1")
        yield made


def mark(till: Till, held: Held, *usages: Usage, source: UsageSource = "counted") -> None:
    marks = [
        Mark(f"att_{held.row.id}_{choice}", choice, "m", "rep_1", source, usage, till.now_ms)
        for choice, usage in enumerate(usages)
    ]
    till.mark(held, msgspec.json.encode(marks).decode())


def recovered(till: Till) -> Recovered:
    with contextlib.closing(open_reader(till.database)) as reader:
        return recover(reader, till._writer, now_ms=till.now_ms)


def rows(till: Till, text: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(open_reader(till.database)) as reader:
        return list(reader.execute(text))


def everything(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with contextlib.closing(open_reader(database)) as reader:
        tables = [row[0] for row in reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: sorted(reader.execute(f"SELECT * FROM {table}"), key=str) for table in tables}


def assert_sound(till: Till) -> None:
    found = verify(till.database, now_ms=till.now_ms)
    assert found.is_ok, "\n".join(str(one) for one in found.differences)


RECORD = (
    "SELECT outcome, error_code, usage_source, uncached_input, cache_read, output, reasoning, price_id, cost_nanos,"
    " received_at_ms, queue_ms, ttft_ms, duration_ms, flags FROM usage_records"
)


def test_nothing_open_is_nothing_to_do(till: Till) -> None:
    assert recovered(till) == Recovered(0, 0, 0)
    assert rows(till, "SELECT * FROM usage_records") == []


def test_a_stream_is_charged_up_to_its_last_mark(till: Till) -> None:
    till.budget(CAP)
    held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6, client_request_id="theirs")
    mark(till, held, Usage(uncached_input=50, output=1))
    till.now_ms += 1_000
    mark(till, held, USED)
    till.now_ms += 60_000
    assert recovered(till) == Recovered(1, 0, USED_NANOS)
    tokens_and_cost = (50, 10, 40, 5, "prc_1", USED_NANOS)
    times = (BEGAN_MS, 0, None, 61_000)
    assert rows(till, RECORD) == [
        ("upstream_error", "gateway_restarted", "counted", *tokens_and_cost, *times, "recovered")
    ]
    assert rows(till, "SELECT kind, charge_nanos, resolved_at_ms FROM resolutions") == [
        ("post", USED_NANOS, till.now_ms)
    ]
    assert rows(till, "SELECT id, choice, outcome, error_code, output, started_at_ms, duration_ms FROM attempts") == [
        (f"att_{held.row.id}_0", 0, "upstream_error", "gateway_restarted", 40, BEGAN_MS + 1_000, 60_000)
    ]
    assert rows(till, "SELECT spent_nanos FROM budget_periods") == [(USED_NANOS,)]
    assert rows(till, "SELECT * FROM marks") == []
    assert rows(till, "SELECT client_request_id FROM usage_records") == [("theirs",)]
    assert_sound(till)


def test_all_choices_of_a_stream_are_charged_and_the_weakest_source_is_said(till: Till) -> None:
    held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6, choices_count=2)
    mark(till, held, USED, USED, source="estimated")
    assert recovered(till).charged_nanos == 2 * USED_NANOS
    assert rows(till, "SELECT output, usage_source, choices_count FROM usage_records") == [(80, "estimated", 2)]
    assert_sound(till)


def test_what_told_its_caller_nothing_is_voided(till: Till) -> None:
    till.budget(CAP)
    without_mark = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6)
    whole = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6, is_stream=False)
    mark(till, whole, USED)  # which nobody writes; the caller was told nothing all the same
    assert recovered(till) == Recovered(0, 2, 0)
    assert rows(till, "SELECT reservation_id, kind, charge_nanos FROM resolutions ORDER BY 1") == [
        (without_mark.row.id, "void", 0),
        (whole.row.id, "void", 0),
    ]
    assert rows(till, "SELECT cost_nanos, output, usage_source, flags FROM usage_records") == [
        (0, 0, "counted", "recovered"),
        (0, 0, "counted", "recovered"),
    ]
    assert rows(till, "SELECT * FROM budget_periods") == []
    assert rows(till, "SELECT * FROM marks") == []
    assert rows(till, "SELECT DISTINCT balance_nanos FROM balances") == [(0,)]
    assert_sound(till)


def test_a_stream_that_was_marked_before_its_first_token_costs_nothing(till: Till) -> None:
    held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6)
    mark(till, held, Usage())
    assert recovered(till) == Recovered(1, 0, 0)
    assert rows(till, "SELECT kind, charge_nanos FROM resolutions") == [("post", 0)]
    assert_sound(till)


def test_without_a_price_there_is_no_cost(till: Till) -> None:
    held = till.reserve("key_1", "org_1", model="free", price=None, amount_nanos=0)
    mark(till, held, USED)
    assert recovered(till).charged_nanos == 0
    assert rows(till, "SELECT price_id, cost_nanos, output, flags FROM usage_records") == [
        (None, None, 40, "recovered unpriced")
    ]
    assert_sound(till)


def test_the_price_is_the_one_it_was_admitted_at_and_the_tier_its_own(till: Till) -> None:
    cheap = msgspec.structs.replace(PRICE, id="prc_9", multipliers=(("batch", 500_000),))
    till.write([store.price_write(cheap, BEGAN_MS)])
    held = till.reserve("key_1", "org_1", price=cheap, amount_nanos=10**6, service_tier="batch")
    till.write([store.price_write(msgspec.structs.replace(PRICE, id="prc_99", output=1), BEGAN_MS)])
    mark(till, held, USED)
    recovered(till)
    wanted = calls_cost_nanos([USED], cheap, service_tier="batch")
    assert rows(till, "SELECT cost_nanos, service_tier FROM usage_records") == [(wanted, "batch")]
    assert 0 < wanted < USED_NANOS
    assert_sound(till)


def test_what_an_upstream_took_for_a_stream_that_was_cut_is_on_its_attempt(till: Till) -> None:
    cost = msgspec.structs.replace(PRICE, id="prc_cost", model="acme/large", output=10**9, request=4_000_000)
    price = msgspec.structs.replace(PRICE, id="prc_large", model="acme/large")
    till.write([store.price_write(cost, BEGAN_MS, kind="cost"), store.price_write(price, BEGAN_MS)])
    held = till.reserve("key_1", "org_1", model="acme/large", price=price, amount_nanos=10**6)
    marks = [
        Mark("att_theirs", 0, "acme/large", None, "counted", USED, till.now_ms),
        Mark("att_unused", 1, "acme/large", None, "counted", Usage(), till.now_ms),
        Mark("att_own", 2, "acme/large", "rep_1", "counted", USED, till.now_ms),
    ]
    till.mark(held, msgspec.json.encode(marks).decode())
    recovered(till)
    taken = 50 * 100 + 10 * 10 + 35 * 1_000 + 5 * 300 + 4  # uncached, cached, output, reasoning, the request
    assert rows(till, "SELECT id, cost_id, cost_nanos FROM attempts ORDER BY id") == [
        ("att_own", None, None),
        ("att_theirs", "prc_cost", taken),
        ("att_unused", "prc_cost", 0),
    ]
    assert rows(till, "SELECT balance_nanos FROM balances WHERE account = 'payable/acme/large'") == [(-taken,)]
    assert_sound(till)


def test_more_than_was_held_is_ours(till: Till) -> None:
    held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=7)
    mark(till, held, USED)
    assert recovered(till).charged_nanos == 7
    assert rows(till, "SELECT kind, subject, amount_nanos FROM transfers") == [
        ("absorb", held.row.request_id, USED_NANOS - 7)
    ]
    assert rows(till, "SELECT cost_nanos, flags FROM usage_records") == [(7, "absorbed recovered")]
    assert_sound(till)


@pytest.mark.parametrize("over", ["expired", "revoked", "in force"])
def test_credit_it_was_held_from_is_spent_and_the_rest_lapses_if_that_is_over(till: Till, over: str) -> None:
    till.grant("grt_1", "org_1", 10_000, expires_at_ms=BEGAN_MS + DAY_MS)
    till.grant("grt_2", "org_1", 40_000)
    held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=30_000)
    lots = '[["grt_1",10000],["grt_2",20000]]'
    assert held.row.lots == lots
    mark(till, held, USED)
    if over == "revoked":
        till.revoke("grt_2", "org_1")
    if over == "expired":
        till.now_ms += 2 * DAY_MS
    recovered(till)
    after = dict(rows(till, "SELECT grant_id, remaining_nanos FROM grant_lots"))
    of_second = USED_NANOS - 10_000
    assert of_second > 0
    lapsed = rows(till, "SELECT kind, subject, part, amount_nanos FROM transfers WHERE kind <> 'grant' AND part > 0")
    if over == "revoked":
        assert lapsed == [("grant_revoke", "grt_2", held.row.id, 20_000 - of_second)]
        assert after == {"grt_1": 0, "grt_2": 0}
    else:  # all that was held of the first is spent, so nothing comes back to it
        assert lapsed == []
        assert after == {"grt_1": 0, "grt_2": 40_000 - of_second}
    assert_sound(till)


def test_credit_of_what_is_voided_lapses_too_if_its_time_is_over(till: Till) -> None:
    till.grant("grt_1", "org_1", 10_000, expires_at_ms=BEGAN_MS + DAY_MS)
    held = [till.reserve("key_1", "org_1", price=PRICE, amount_nanos=4_000, is_stream=False) for _ in range(3)]
    till.now_ms += 2 * DAY_MS
    recovered(till)
    assert rows(till, "SELECT kind, part, amount_nanos FROM transfers WHERE kind = 'grant_expire' ORDER BY part") == [
        ("grant_expire", held[0].row.id, 4_000),
        ("grant_expire", held[1].row.id, 4_000),
        ("grant_expire", held[2].row.id, 2_000),
    ]
    assert rows(till, "SELECT remaining_nanos FROM grant_lots") == [(0,)]
    assert_sound(till)


def test_what_was_settled_is_left_alone(till: Till) -> None:
    till.settle(till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6), USED)
    assert recovered(till) == Recovered(0, 0, 0)
    assert len(rows(till, "SELECT * FROM usage_records")) == 1


def test_what_had_expired_under_its_request_gets_its_record_and_is_borne_by_us(till: Till) -> None:
    expired = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6)
    mark(till, expired, USED)
    till.expire(expired)
    for _ in range(2):  # the second time there is nothing left to do
        assert recovered(till) == Recovered(0, 0, 0)
        assert rows(till, "SELECT cost_nanos, flags FROM usage_records") == [(0, "late absorbed recovered")]
        assert rows(till, "SELECT kind, amount_nanos FROM transfers") == [("absorb", USED_NANOS)]
        assert rows(till, "SELECT kind FROM resolutions") == [("expire",)]
    assert_sound(till)


def test_only_what_may_be_open_is_looked_at(till: Till) -> None:
    first = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=5)
    till.settle(first)
    till.remember_open()
    assert rows(till, "SELECT value FROM ledger_state WHERE name = 'open_from'") == [(2,)]
    till.reserve("key_1", "org_1", price=PRICE, amount_nanos=5)
    assert recovered(till) == Recovered(0, 1, 0)
    assert rows(till, "SELECT value FROM ledger_state WHERE name = 'open_from'") == [(3,)]
    with contextlib.closing(open_reader(till.database)) as reader:
        plan = list(reader.execute(f"EXPLAIN QUERY PLAN {store.SELECT_OPEN_RESERVATIONS}", (3,)))
    assert any("SEARCH r USING INTEGER PRIMARY KEY (rowid>?)" in row[3] for row in plan), plan


def many(till: Till, count: int) -> None:
    """Requests under way, of every kind."""
    till.budget(CAP)
    till.grant("grt_1", "org_1", 400_000, expires_at_ms=BEGAN_MS + DAY_MS)
    for number in range(count):
        amount = (3, 10_000, 10**6)[number % 3]
        held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=amount, is_stream=number % 4 != 0)
        if number % 2:
            mark(till, held, USED)
    till.now_ms += 2 * DAY_MS


def test_many_are_resolved_in_several_transactions_and_a_second_time_changes_nothing(till: Till) -> None:
    count = 2 * CHUNK_COUNT + 5
    many(till, count)
    commits_count = till._writer.commits_count
    found = recovered(till)
    assert found.posted_count + found.voided_count == count
    assert found.posted_count > 0 < found.voided_count
    assert till._writer.commits_count - commits_count <= 4
    assert len(rows(till, "SELECT * FROM usage_records")) == count
    assert_sound(till)
    before = everything(till.database)
    assert recovered(till) == Recovered(0, 0, 0)
    assert everything(till.database) == before


class Cut(Exception):
    """The process died here."""


class FragileWriter:
    """The real writer, until it has taken so many submissions."""

    def __init__(self, writer: LedgerWriter, submissions_count: int) -> None:
        self._writer = writer
        self._left = submissions_count

    def submit(self, *given: Any, **named: Any) -> "Future[None]":
        if not self._left:
            raise Cut
        self._left -= 1
        done = self._writer.submit(*given, **named)
        done.result(WAIT_S)
        return done


@pytest.mark.parametrize("cut_after", [0, 1, 2, 3])
def test_a_recovery_that_was_cut_short_is_finished_by_the_next(till: Till, cut_after: int) -> None:
    many(till, 2 * CHUNK_COUNT + 5)
    with contextlib.closing(open_reader(till.database)) as reader:
        with pytest.raises(Cut):
            recover(reader, FragileWriter(till._writer, cut_after), now_ms=till.now_ms)  # type: ignore[arg-type]
        open_before = store.read_open_reservations(reader, 0)
    assert len(open_before) == max(0, 2 * CHUNK_COUNT + 5 - cut_after * CHUNK_COUNT)
    found = recovered(till)
    assert found.posted_count + found.voided_count == len(open_before)
    assert len(rows(till, "SELECT * FROM usage_records")) == 2 * CHUNK_COUNT + 5
    assert rows(till, "SELECT value FROM ledger_state") == [(2 * CHUNK_COUNT + 6,)]
    assert rows(till, "SELECT balance_nanos FROM balances WHERE account LIKE 'held/%'") == [(0,)]
    assert_sound(till)


DYING = """
import os, sys
from pathlib import Path
from headwater.ledger import recovery
from headwater.ledger.store import open_reader, open_writer
from headwater.ledger.writer import LedgerWriter

database, now_ms, left = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
writer.start()

class Dying:
    def submit(self, *given, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return writer.submit(*given, **named)

recovery.CHUNK_COUNT = 20
recovery.recover(open_reader(database), Dying(), now_ms=now_ms)
writer.close()
"""


@pytest.mark.parametrize("deaths", [(1, 2, 99), (0, 1, 1, 1, 99)])
def test_a_process_killed_in_the_middle_of_recovery_leaves_work_that_the_next_one_does(
    database: Path, deaths: tuple[int, ...]
) -> None:
    with Till(database, now_ms=BEGAN_MS) as till:
        till.organization("org_1", key_id="key_1", is_new=False)
        till.key("key_1")
        many(till, 2 * CHUNK_COUNT + 20)
        now_ms = till.now_ms
    codes = []
    for submissions_count in deaths:
        argv = [sys.executable, "-c", DYING, str(database), str(now_ms), str(submissions_count)]
        codes.append(subprocess.run(argv, check=False, timeout=60).returncode)
    assert codes == [*([-9] * (len(deaths) - 1)), 0]
    found = verify(database, now_ms=now_ms)
    assert found.is_ok, "\n".join(str(one) for one in found.differences)
    with contextlib.closing(open_reader(database)) as reader:
        assert store.read_open_reservations(reader, 0) == []
        counts = reader.execute("SELECT count(*), count(DISTINCT request_id) FROM usage_records").fetchone()
        assert counts == (2 * CHUNK_COUNT + 20, 2 * CHUNK_COUNT + 20)


def test_a_ledger_that_fails_meanwhile_fails_the_recovery(till: Till, reader: Connection) -> None:
    till.reserve("key_1", "org_1", price=PRICE, amount_nanos=5)
    gone = LedgerWriter(open_writer(till.database), on_fatal=lambda _: None)
    gone.start()
    gone.close()
    with pytest.raises(LedgerFailed):
        recover(reader, gone, now_ms=till.now_ms)


def test_a_book_read_afterwards_holds_nothing_and_goes_on_counting(till: Till) -> None:
    many(till, 12)
    recovered(till)
    with contextlib.closing(open_reader(till.database)) as reader:
        book = load_book(reader, keys_count_max=10)
    assert book.oldest_open() == 13
    assert book.open_holds == {}
    spent = rows(till, "SELECT sum(spent_nanos) FROM budget_periods")[0][0]
    book.load_key("key_1", [], till.now_ms)
    scopes = {"organization_id": "org_1", "project_id": "prj_1", "key_id": "key_1"}
    assert book.affordable_nanos(**scopes, now_ms=BEGAN_MS) == CAP.limit_nanos - spent
