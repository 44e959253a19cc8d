"""A book read from the disk decides as the one did that wrote it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from headwater.ledger import admin_store, store
from headwater.ledger.book import Book, Shortfall
from headwater.ledger.load_book import key_caps, load_book
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.rows import TransferRow
from headwater.ledger.store import Write, open_reader
from headwater.usage import Usage
from tests.unit.ledger.settlements import PRICE
from tests.unit.ledger.till import Till

DAY_MS = 86_400_000
BEGAN_MS = 1_793_923_200_000
PROJECT = BudgetTerms("bud_1", "org_1", "project", "prj_1", 10**6, "day", None, BEGAN_MS, "UTC")
KEY = BudgetTerms("bud_2", "org_1", "key", "key_1", 9 * 10**5, "month", None, BEGAN_MS, "Europe/Berlin")
SCOPES = {"organization_id": "org_1", "project_id": "prj_1", "key_id": "key_1"}


@pytest.fixture
def till(database: Path) -> Iterator[Till]:
    with Till(database, now_ms=BEGAN_MS) as made:
        made.organization("org_1", key_id="key_1", is_new=False)
        yield made


def read(till: Till) -> Book:
    """The book as the next start has it, the key's caps in it."""
    with contextlib.closing(open_reader(till.database)) as reader:
        book = load_book(reader, keys_count_max=10)
        book.load_key("key_1", key_caps(store.read_budgets(reader, "key_1")), till.now_ms)
    return book


def test_an_empty_ledger_begins_at_one(till: Till) -> None:
    book = read(till)
    assert book.oldest_open() == 1
    assert book.affordable_nanos(**SCOPES, now_ms=BEGAN_MS) is None
    assert book.currency("org_1") is None
    assert not book.is_prepaid("org_1")


def test_who_pays_beforehand_and_in_what_is_known(till: Till) -> None:
    till.write([Write(admin_store.UPDATE_ORGANIZATION, ("org_1", "default", "EUR", True))])
    book = read(till)
    assert book.is_prepaid("org_1")
    assert book.currency("org_1") == "EUR"
    with pytest.raises(Shortfall, match="wallet org_1"):
        book.reserve(**SCOPES, amount_nanos=0, now_ms=BEGAN_MS)


def test_caps_know_what_each_of_their_periods_has_spent(till: Till) -> None:
    till.budget(PROJECT)
    till.budget(KEY)
    for _ in range(3):
        held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**5)
        till.settle(held, Usage(output=100))  # 30,000 each
        till.now_ms += DAY_MS // 2
    assert till.now_ms == BEGAN_MS + 3 * DAY_MS // 2
    book = read(till)
    counters = {one.terms.id: one for one in book.counters(**SCOPES, now_ms=till.now_ms)}
    assert (counters["bud_1"].spent_nanos, counters["bud_2"].spent_nanos) == (30_000, 90_000)
    (yesterday, _) = book.counters(**SCOPES, now_ms=BEGAN_MS)
    assert yesterday.spent_nanos == 60_000
    assert counters["bud_1"].terms == PROJECT
    assert counters["bud_2"].terms == KEY


def test_budgets_of_keys_wait_until_the_key_is_used(till: Till) -> None:
    till.budget(KEY._replace(limit_nanos=0))
    with contextlib.closing(open_reader(till.database)) as reader:
        book = load_book(reader, keys_count_max=10)
        assert not book.is_loaded("key_1")
        assert [state.terms.id for state in store.read_budgets(reader)] == []
        assert [state.terms.id for state in store.read_budgets(reader, "key_1")] == ["bud_2"]
        assert store.read_budgets(reader, "key_2") == []


def test_archived_budgets_hold_no_more(till: Till) -> None:
    till.budget(PROJECT._replace(limit_nanos=0))
    till.budget(KEY._replace(limit_nanos=0))
    till.write([Write(admin_store.ARCHIVE_BUDGET, (terms.id, BEGAN_MS)) for terms in (PROJECT, KEY)])
    assert read(till).affordable_nanos(**SCOPES, now_ms=BEGAN_MS) is None


def test_tags_are_declared(till: Till) -> None:
    till.budget(PROJECT._replace(id="bud_t", scope="tag", scope_id="night"))
    book = read(till)
    assert book.declares("org_1", "night")
    assert not book.declares("org_1", "day")


def test_a_threshold_reached_before_is_not_announced_again(till: Till) -> None:
    terms = PROJECT._replace(limit_nanos=100_000, thresholds=(50, 80))
    till.write([admin_store.budget_write(terms, BEGAN_MS)])
    till.book.set_budget(terms)
    till.key("key_1")
    held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=100_000)
    till.settle(held, Usage(output=200))  # 60 percent
    book = read(till)
    (counter,) = book.counters(**SCOPES, now_ms=BEGAN_MS)
    assert counter.terms.thresholds == (50, 80)
    hold = book.reserve(**SCOPES, amount_nanos=30_000, now_ms=BEGAN_MS)
    assert [spent.percent for spent in book.settle(hold, 30_000, BEGAN_MS).thresholds] == [80]


def test_credit_is_what_is_left_of_it_the_soonest_expiring_first(till: Till) -> None:
    till.key("key_1")
    till.grant("grt_late", "org_1", 5_000)
    till.grant("grt_soon", "org_1", 70_000, expires_at_ms=BEGAN_MS + DAY_MS)
    till.grant("grt_gone", "org_1", 400)
    till.revoke("grt_gone", "org_1")
    till.grant("grt_half", "org_1", 400)
    till.write([Write(admin_store.REVOKE_GRANT, ("grt_half", BEGAN_MS))])
    held = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=50_000)
    till.settle(held, Usage(output=100))
    book = read(till)
    assert book.credit_nanos("org_1", BEGAN_MS) == 45_000
    assert (
        book.reserve(**SCOPES, amount_nanos=41_000, now_ms=BEGAN_MS).lots_json
        == '[["grt_soon",40000],["grt_late",1000]]'
    )


def test_credit_whose_time_was_over_while_nothing_ran_lapses_at_the_first_sweep(till: Till) -> None:
    till.grant("grt_1", "org_1", 5_000, expires_at_ms=BEGAN_MS + 10)
    till.now_ms += DAY_MS
    book = read(till)
    assert book.credit_nanos("org_1", till.now_ms) == 0
    assert book.expire_lots(till.now_ms) == [
        TransferRow("grant_expire", "grt_1", 0, "org_1", None, 5_000, None, till.now_ms)
    ]


def test_ids_go_on_above_every_reservation_there_was_archived_ones_too(till: Till) -> None:
    till.key("key_1")
    for _ in range(3):
        till.settle(till.reserve("key_1", "org_1", price=PRICE, amount_nanos=5))
    assert read(till).oldest_open() == 4
    till.remember_open()
    assert read(till).oldest_open() == 4
    till.write([Write(store.PUT_STATE, (store.OPEN_FROM, 9))])
    assert read(till).oldest_open() == 9
    with contextlib.closing(open_reader(till.database)) as reader:
        assert store.read_state(reader, store.OPEN_FROM) == 9
        assert store.read_state(reader, "unknown") is None


@pytest.mark.parametrize("seed", range(6))
def test_after_any_work_the_book_read_decides_as_the_one_that_wrote(till: Till, seed: int) -> None:
    random = Random(seed)
    till.budget(PROJECT)
    till.budget(KEY)
    for number in range(3):
        expires_at_ms = BEGAN_MS + random.randrange(3) * DAY_MS // 2 if number else None
        till.grant(f"grt_{number}", "org_1", random.randrange(1, 200_000), expires_at_ms=expires_at_ms)
    under_way = []
    for _ in range(40):
        match random.randrange(5):
            case 0 | 1:
                with contextlib.suppress(Shortfall):
                    under_way.append(till.reserve("key_1", "org_1", price=PRICE, amount_nanos=random.randrange(60_000)))
            case 2:
                till.now_ms += random.randrange(DAY_MS // 8)
                till.sweep_lots()
            case 3:
                still = [one for one in under_way if one.hold.is_open]
                if still:
                    till.expire(random.choice(still))
            case _:
                if under_way:
                    one = under_way.pop(random.randrange(len(under_way)))
                    till.settle(one, Usage(output=random.randrange(1, 150)))
    for one in under_way:
        till.settle(one, Usage(output=7))
    till.sweep_lots()
    book, before = read(till), till.book
    for at_ms in (till.now_ms, till.now_ms + DAY_MS // 2):
        assert book.affordable_nanos(**SCOPES, now_ms=at_ms) == before.affordable_nanos(**SCOPES, now_ms=at_ms)
        assert book.credit_nanos("org_1", at_ms) == before.credit_nanos("org_1", at_ms)
        assert book.tightest(**SCOPES, now_ms=at_ms) == before.tightest(**SCOPES, now_ms=at_ms)
    assert book.oldest_open() == before.oldest_open()
    amount = min(book.affordable_nanos(**SCOPES, now_ms=till.now_ms) or 0, 10**5)
    holds = [one.reserve(**SCOPES, amount_nanos=amount, now_ms=till.now_ms) for one in (book, before)]
    assert holds[0].lots_json == holds[1].lots_json
    assert holds[0].budgets_json == holds[1].budgets_json
