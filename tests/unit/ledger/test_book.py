"""The book's rules one by one; `test_book_machine.py` tries them in any order."""

import json
from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from headwater.ledger.book import IDLE_MS, AlreadySettled, Book, Hold, KeyNotLoaded, Settled, Shortfall
from headwater.ledger.caps import Cap
from headwater.ledger.periods import BudgetTerms, PeriodKind, ScopeKind, period_at
from headwater.ledger.wallet import Lot
from headwater.money import NANOS_MAX
from tests.unit.ledger.test_periods import ms

NOW_MS = 1_795_000_000_000
DAY_MS = 86_400_000


def budget(
    scope: ScopeKind = "organization",
    scope_id: str = "org_1",
    limit_nanos: int = 100,
    period: PeriodKind = "total",
    **changes: Any,
) -> BudgetTerms:
    terms = BudgetTerms(f"bud_{scope}", "org_1", scope, scope_id, limit_nanos, period, None, 0, "UTC")
    return terms._replace(**changes)


FOUR = (
    budget(),
    budget("project", "prj_1"),
    budget("key", "key_1"),
    budget("tag", "night"),
)


def book(*budgets: BudgetTerms, is_prepaid: bool = False, lots: Sequence[Lot] = (), **options: Any) -> Book:
    """A book with one organization, whose key is loaded."""
    one = Book(**options)
    one.set_organization("org_1", is_prepaid=is_prepaid)
    one.load_key("key_1", [], NOW_MS)
    for terms in budgets:
        one.set_budget(terms)
    for lot in lots:
        one.add_lot(lot)
    return one


def grant(nanos: int, grant_id: str = "gnt_1", expires_at_ms: int | None = None) -> Lot:
    return Lot(grant_id, "org_1", nanos, expires_at_ms)


def reserve(one: Book, amount_nanos: int, now_ms: int = NOW_MS, **changes: Any) -> Hold:
    caller: dict[str, Any] = {"organization_id": "org_1", "project_id": "prj_1", "key_id": "key_1", **changes}
    return one.reserve(**caller, amount_nanos=amount_nanos, now_ms=now_ms)


def affordable(one: Book, now_ms: int = NOW_MS, **changes: Any) -> int | None:
    caller: dict[str, Any] = {"organization_id": "org_1", "project_id": "prj_1", "key_id": "key_1", **changes}
    return one.affordable_nanos(**caller, now_ms=now_ms)


def counted(one: Book, now_ms: int = NOW_MS, **changes: Any) -> list[tuple[str, int, int]]:
    """(budget, spent, held) of every cap over the caller."""
    caller: dict[str, Any] = {"organization_id": "org_1", "project_id": "prj_1", "key_id": "key_1", **changes}
    return [(c.terms.id, c.spent_nanos, c.held_nanos) for c in one.counters(**caller, now_ms=now_ms)]


class TestReserving:
    def test_an_amount_is_held_under_every_scope_at_once(self) -> None:
        one = book(*FOUR)
        hold = reserve(one, 60, tags=["night"])
        assert counted(one, tags=["night"]) == [(terms.id, 0, 60) for terms in FOUR]
        assert json.loads(hold.budgets_json or "") == [[terms.id, "total"] for terms in FOUR]
        assert hold.lots_json is None

    @pytest.mark.parametrize("tight", FOUR, ids=lambda terms: terms.scope)
    def test_when_one_scope_has_too_little_nothing_is_held_under_any(self, tight: BudgetTerms) -> None:
        lot = grant(1_000)
        one = book(*(terms._replace(limit_nanos=59) if terms is tight else terms for terms in FOUR), lots=[lot])
        with pytest.raises(Shortfall):
            reserve(one, 60, tags=["night"])
        assert counted(one, tags=["night"]) == [(terms.id, 0, 0) for terms in FOUR]
        assert (lot.free_nanos, lot.held_nanos) == (1_000, 0)
        assert not one.open_holds
        assert reserve(one, 59, tags=["night"]).id == 1

    @pytest.mark.parametrize("tight", FOUR, ids=lambda terms: terms.scope)
    def test_a_shortfall_names_the_scope_what_it_has_left_and_when_it_starts_anew(self, tight: BudgetTerms) -> None:
        small = tight._replace(limit_nanos=50, period="day", time_zone="Europe/Berlin")
        one = book(*(small if terms is tight else terms for terms in FOUR))
        reserve(one, 20, tags=["night"])
        with pytest.raises(Shortfall) as caught:
            reserve(one, 31, tags=["night"])
        said = caught.value
        assert (said.scope, said.scope_id, said.needed_nanos, said.available_nanos) == (
            small.scope,
            small.scope_id,
            31,
            30,
        )
        assert said.terms == small
        assert said.resets_at_ms == period_at(small, NOW_MS).ends_ms

    def test_a_budget_without_periods_never_starts_anew(self) -> None:
        with pytest.raises(Shortfall) as caught:
            reserve(book(budget()), 101)
        assert caught.value.resets_at_ms is None

    def test_several_budgets_of_one_scope_all_hold(self) -> None:
        one = book(budget(id="bud_day", period="day", limit_nanos=10), budget(id="bud_all", limit_nanos=15))
        one.settle(reserve(one, 10), 10, NOW_MS)
        with pytest.raises(Shortfall, match="1 needed, 0 available"):
            reserve(one, 1)
        with pytest.raises(Shortfall, match="6 needed, 5 available"):
            reserve(one, 6, NOW_MS + DAY_MS)
        assert reserve(one, 5, NOW_MS + DAY_MS).is_open

    def test_a_budget_caps_only_its_own_scope(self) -> None:
        one = book(*FOUR)
        one.load_key("key_2", [], NOW_MS)
        one.set_organization("org_2", is_prepaid=False)
        assert affordable(one) == 100
        reserve(one, 100)
        assert affordable(one, key_id="key_2", project_id="prj_2") == 0  # the organization's
        assert affordable(one, organization_id="org_2", project_id="prj_2", key_id="key_2") is None

    def test_a_tag_belongs_to_its_organization(self) -> None:
        one = book(budget("tag", "night", 10))
        one.set_organization("org_2", is_prepaid=False)
        assert one.declares("org_1", "night")
        assert not one.declares("org_2", "night")
        assert not one.declares("org_1", "day")
        assert reserve(one, 11, organization_id="org_2", tags=["night"]).budgets_json is None
        assert reserve(one, 11, tags=["day"]).budgets_json is None

    def test_a_tag_that_is_named_twice_counts_once(self) -> None:
        one = book(budget("tag", "night", 100))
        hold = reserve(one, 60, tags=["night", "night"])
        assert counted(one, tags=["night"]) == [("bud_tag", 0, 60)]
        assert one.settle(hold, 60, NOW_MS).budgets == ((("bud_tag", "total"), 60),)
        assert counted(one, tags=["night"]) == [("bud_tag", 60, 0)]

    def test_any_number_of_callers_gets_exactly_what_there_is(self) -> None:
        one = book(*FOUR)
        admitted = 0
        for _ in range(200):
            try:
                reserve(one, 7, tags=["night"])
            except Shortfall:
                continue
            admitted += 1
        assert admitted == 100 // 7

    def test_nothing_is_held_of_an_amount_of_zero(self) -> None:
        one = book(budget(limit_nanos=0))
        hold = reserve(one, 0)
        assert one.settle(hold, 0, NOW_MS) == Settled(0, 0, (), (), (), ())
        assert counted(one) == [("bud_organization", 0, 0)]

    def test_what_an_amount_of_zero_costs_after_all_is_ours_to_bear(self) -> None:
        one = book(*FOUR)
        settled = one.settle(reserve(one, 0), 9, NOW_MS)
        assert (settled.charge_nanos, settled.absorbed_nanos, settled.budgets) == (0, 9, ())

    def test_sums_reach_63_bits_and_no_further(self) -> None:
        one = book(budget(limit_nanos=NANOS_MAX))
        reserve(one, NANOS_MAX - 1)
        with pytest.raises(Shortfall):
            reserve(one, 2)
        hold = reserve(one, 1)
        one.settle(hold, 1, NOW_MS)
        with pytest.raises(Shortfall):
            reserve(one, 1)

    def test_ids_ascend_in_the_order_of_admission(self) -> None:
        one = book(budget(limit_nanos=2), next_id=7)
        first = reserve(one, 1)
        with pytest.raises(Shortfall):
            reserve(one, 2)
        second = reserve(one, 1)
        assert (first.id, second.id) == (7, 8)
        assert one.oldest_open() == 7
        one.settle(first, 1, NOW_MS)
        assert one.oldest_open() == 8
        one.settle(second, 1, NOW_MS)
        assert one.oldest_open() == 9

    def test_the_tightest_bound_is_named(self) -> None:
        one = book(*FOUR, is_prepaid=True, lots=[grant(1_000)])
        caller: dict[str, Any] = {"organization_id": "org_1", "project_id": "prj_1", "key_id": "key_1"}
        one.set_budget(FOUR[1]._replace(limit_nanos=30))
        assert one.tightest(**caller, now_ms=NOW_MS) == ("project", 30)
        one.set_budget(FOUR[1]._replace(limit_nanos=3_000))
        for terms in FOUR:
            one.set_budget(terms._replace(limit_nanos=3_000))
        assert one.tightest(**caller, now_ms=NOW_MS) == ("wallet", 1_000)
        assert book().tightest(**caller, now_ms=NOW_MS) is None


class TestSettling:
    def test_the_charge_is_spent_and_the_rest_given_back(self) -> None:
        one = book(*FOUR)
        settled = one.settle(reserve(one, 60, tags=["night"]), 42, NOW_MS)
        assert (settled.charge_nanos, settled.absorbed_nanos, settled.is_late) == (42, 0, False)
        assert settled.budgets == tuple(((terms.id, "total"), 42) for terms in FOUR)
        assert counted(one, tags=["night"]) == [(terms.id, 42, 0) for terms in FOUR]
        assert affordable(one) == 58

    def test_a_cost_above_the_reservation_is_charged_up_to_it_and_the_rest_absorbed(self) -> None:
        one = book(budget())
        settled = one.settle(reserve(one, 60), 75, NOW_MS)
        assert (settled.charge_nanos, settled.absorbed_nanos) == (60, 15)
        assert counted(one) == [("bud_organization", 60, 0)]

    def test_a_hold_is_settled_once(self) -> None:
        one = book(budget())
        hold = reserve(one, 60)
        one.settle(hold, 60, NOW_MS)
        with pytest.raises(AlreadySettled):
            one.settle(hold, 60, NOW_MS)
        assert counted(one) == [("bud_organization", 60, 0)]

    def test_thresholds_are_told_by_the_settlement_that_reaches_them(self) -> None:
        one = book(budget(thresholds=(50, 100)), budget("project", "prj_1", 50, thresholds=(100,)))
        first, second = reserve(one, 25), reserve(one, 25)
        assert one.settle(first, 25, NOW_MS).thresholds == ()
        told = one.settle(second, 25, NOW_MS).thresholds
        assert [(spent.terms.scope, spent.percent, spent.spent_nanos) for spent in told] == [
            ("organization", 50, 50),
            ("project", 100, 50),
        ]


class TestAfterExpiry:
    def test_an_expired_hold_gives_back_everything(self) -> None:
        lot = grant(100)
        one = book(*FOUR, lots=[lot])
        hold = reserve(one, 60)
        assert one.expire(hold, NOW_MS) == Settled(0, 0, (), (), (), ())
        assert counted(one) == [(terms.id, 0, 0) for terms in FOUR[:3]]
        assert (lot.free_nanos, lot.held_nanos) == (100, 0)
        assert not one.open_holds

    def test_an_expired_request_has_not_ended_before_it_is_settled(self) -> None:
        """What is below `oldest_open` is never looked at again, and this one has no usage record yet."""
        one = book()
        first, second = reserve(one, 60), reserve(one, 60)
        one.expire(first, NOW_MS)
        one.settle(second, 60, NOW_MS)
        assert one.oldest_open() == first.id
        one.settle(first, 60, NOW_MS)
        assert one.oldest_open() == second.id + 1

    def test_a_hold_expires_once(self) -> None:
        one = book()
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        with pytest.raises(KeyError):
            one.expire(hold, NOW_MS)

    def test_a_late_settlement_posts_while_every_cap_and_the_credit_allow_it(self) -> None:
        lot = grant(100)
        one = book(*FOUR, is_prepaid=True, lots=[lot])
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        settled = one.settle(hold, 42, NOW_MS)
        assert (settled.charge_nanos, settled.absorbed_nanos, settled.is_late) == (42, 0, True)
        assert settled.budgets == tuple(((terms.id, "total"), 42) for terms in FOUR[:3])
        assert settled.lots == ((("gnt_1",), -42),)
        assert json.loads(settled.late_lots_json or "") == [["gnt_1", 42]]
        assert counted(one) == [(terms.id, 42, 0) for terms in FOUR[:3]]
        assert (lot.free_nanos, lot.held_nanos) == (58, 0)

    @pytest.mark.parametrize("tight", FOUR[:3], ids=lambda terms: terms.scope)
    def test_a_late_settlement_is_absorbed_when_a_cap_has_been_spent_meanwhile(self, tight: BudgetTerms) -> None:
        one = book(tight)
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        one.settle(reserve(one, 59), 59, NOW_MS)
        settled = one.settle(hold, 42, NOW_MS)
        assert settled == Settled(0, 42, (), (), (), (), is_late=True)
        assert counted(one) == [(tight.id, 59, 0)]

    def test_a_late_settlement_is_absorbed_when_the_credit_is_held_by_others(self) -> None:
        one = book(is_prepaid=True, lots=[grant(100)])
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        reserve(one, 70)
        assert one.settle(hold, 42, NOW_MS).absorbed_nanos == 42

    def test_a_late_settlement_of_who_pays_afterwards_takes_what_credit_there_is(self) -> None:
        one = book(lots=[grant(30)])
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        settled = one.settle(hold, 42, NOW_MS)
        assert (settled.charge_nanos, settled.lots) == (42, ((("gnt_1",), -30),))

    def test_a_late_settlement_never_charges_more_than_was_reserved(self) -> None:
        one = book(budget())
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        settled = one.settle(hold, 75, NOW_MS)
        assert (settled.charge_nanos, settled.absorbed_nanos) == (60, 15)

    def test_a_late_settlement_counts_in_the_period_of_its_reservation(self) -> None:
        one = book(budget(period="day"))
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        today = period_at(budget(period="day"), NOW_MS).key
        assert one.settle(hold, 42, NOW_MS + DAY_MS).budgets == ((("bud_organization", today), 42),)
        assert counted(one, NOW_MS + DAY_MS) == [("bud_organization", 0, 0)]

    def test_a_late_settlement_comes_once(self) -> None:
        one = book(budget())
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        one.settle(hold, 42, NOW_MS)
        with pytest.raises(AlreadySettled):
            one.settle(hold, 42, NOW_MS)

    def test_nothing_is_moved_late_for_a_cost_of_zero(self) -> None:
        one = book(budget(), is_prepaid=True, lots=[grant(60)])
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        assert one.settle(hold, 0, NOW_MS) == Settled(0, 0, (), (), (), (), is_late=True)


class TestPeriods:
    def test_a_hold_keeps_its_period_across_midnight(self) -> None:
        terms = budget(period="day", time_zone="America/Santiago")
        one = book(terms)
        before, after = ms(2026, 9, 6, 4) - 1, ms(2026, 9, 6, 4)  # the clocks skip from 23:59:59 to 01:00
        hold = reserve(one, 60, before)
        assert json.loads(hold.budgets_json or "") == [["bud_organization", "2026-09-05"]]
        assert affordable(one, after) == 100
        assert one.settle(hold, 50, after).budgets == ((("bud_organization", "2026-09-05"), 50),)
        assert counted(one, after) == [("bud_organization", 0, 0)]
        assert counted(one, before) == [("bud_organization", 50, 0)]

    def test_a_clock_that_is_put_back_over_midnight_finds_what_was_spent_and_held(self) -> None:
        one = book(budget(period="day"))
        reserve(one, 30, NOW_MS)
        one.settle(reserve(one, 60, NOW_MS), 60, NOW_MS)
        assert affordable(one, NOW_MS + DAY_MS) == 100
        assert affordable(one, NOW_MS) == 10

    def test_periods_follow_each_budgets_own_time_zone(self) -> None:
        one = book(
            budget(id="bud_a", period="day", time_zone="Asia/Tokyo"),
            budget(id="bud_b", period="day", time_zone="America/Los_Angeles"),
        )
        hold = reserve(one, 1, ms(2026, 11, 23, 12))
        assert json.loads(hold.budgets_json or "") == [["bud_a", "2026-11-23"], ["bud_b", "2026-11-23"]]
        hold = reserve(one, 1, ms(2026, 11, 23, 7))
        assert json.loads(hold.budgets_json or "") == [["bud_a", "2026-11-23"], ["bud_b", "2026-11-22"]]
        assert ZoneInfo("Asia/Tokyo").key == "Asia/Tokyo"

    def test_a_budget_goes_on_from_what_its_periods_had_spent(self) -> None:
        one = book()
        terms = budget(period="day")
        today, tomorrow = (period_at(terms, NOW_MS + days * DAY_MS).key for days in (0, 1))
        one.set_budget(terms, restored={today: 90, tomorrow: 5})
        assert affordable(one) == 10
        assert affordable(one, NOW_MS + DAY_MS) == 95
        assert affordable(one) == 10


class TestBudgetsThatChange:
    def test_a_budget_counts_what_is_reserved_after_it_was_made(self) -> None:
        one = book()
        hold = reserve(one, 60)
        one.set_budget(budget())
        assert affordable(one) == 100
        assert one.settle(hold, 60, NOW_MS).budgets == ()
        assert affordable(one) == 100

    def test_a_limit_below_what_is_spent_admits_nothing_and_takes_nothing_back(self) -> None:
        one = book(budget())
        open_hold = reserve(one, 30)
        one.settle(reserve(one, 60), 60, NOW_MS)
        one.set_budget(budget(limit_nanos=50))
        assert affordable(one) == 0
        with pytest.raises(Shortfall):
            reserve(one, 1)
        assert one.settle(open_hold, 30, NOW_MS).charge_nanos == 30
        assert counted(one) == [("bud_organization", 90, 0)]
        one.set_budget(budget(limit_nanos=95))
        assert affordable(one) == 5

    @pytest.mark.parametrize("terms", FOUR, ids=lambda terms: terms.scope)
    def test_what_is_held_under_an_archived_budget_settles_there(self, terms: BudgetTerms) -> None:
        one = book(terms)
        hold = reserve(one, 60, tags=["night"])
        one.drop_budget(terms)
        assert affordable(one, tags=["night"]) is None
        assert reserve(one, 1_000, tags=["night"]).budgets_json is None
        assert one.settle(hold, 42, NOW_MS).budgets == (((terms.id, "total"), 42),)
        one.drop_budget(terms)  # twice is once

    def test_a_tag_is_declared_as_long_as_it_has_a_budget(self) -> None:
        one = book(budget("tag", "night"))
        one.drop_budget(budget("tag", "night"))
        assert not one.declares("org_1", "night")


class TestCredit:
    def test_who_pays_beforehand_needs_credit_for_the_worst_case(self) -> None:
        one = book(is_prepaid=True, lots=[grant(60)])
        with pytest.raises(Shortfall) as caught:
            reserve(one, 61)
        said = caught.value
        assert (said.scope, said.scope_id, said.needed_nanos, said.available_nanos) == ("wallet", "org_1", 61, 60)
        assert (said.terms, said.resets_at_ms) == (None, None)
        reserve(one, 60)
        assert affordable(one) == 0

    def test_who_pays_beforehand_and_has_nothing_gets_nothing_not_even_what_is_free(self) -> None:
        one = book(is_prepaid=True)
        with pytest.raises(Shortfall):
            reserve(one, 0)
        one.add_lot(grant(1))
        assert reserve(one, 0).lots_json is None

    def test_who_pays_afterwards_uses_credit_first_and_owes_the_rest(self) -> None:
        one = book(lots=[grant(60)])
        assert affordable(one) is None
        hold = reserve(one, 100)
        assert json.loads(hold.lots_json or "") == [["gnt_1", 60]]
        assert one.settle(hold, 80, NOW_MS).lots == ((("gnt_1",), -60),)
        assert reserve(one, 10_000).lots_json is None

    def test_the_way_of_paying_may_change(self) -> None:
        one = book()
        one.set_organization("org_1", is_prepaid=True)
        assert one.is_prepaid("org_1")
        with pytest.raises(Shortfall):
            reserve(one, 1)
        one.set_organization("org_1", is_prepaid=False)
        assert reserve(one, 1).is_open

    def test_the_charge_is_taken_in_the_order_it_was_held_and_the_rest_goes_back_to_its_lots(self) -> None:
        first, second = grant(30, "gnt_a", NOW_MS + 5), grant(50, "gnt_b")
        one = book(lots=[second, first])
        hold = reserve(one, 70)
        assert json.loads(hold.lots_json or "") == [["gnt_a", 30], ["gnt_b", 40]]
        settled = one.settle(hold, 45, NOW_MS)
        assert settled.lots == ((("gnt_a",), -30), (("gnt_b",), -15))
        assert settled.transfers == ()
        assert (first.free_nanos, second.free_nanos, first.held_nanos, second.held_nanos) == (0, 35, 0, 0)

    def test_what_is_held_when_its_grant_expires_stays_spendable_by_its_hold(self) -> None:
        lot = grant(100, expires_at_ms=NOW_MS + 5)
        one = book(is_prepaid=True, lots=[lot])
        hold = reserve(one, 60)
        [lapsed] = one.expire_lots(NOW_MS + 5)
        assert (lapsed.kind, lapsed.subject, lapsed.part, lapsed.amount_nanos) == ("grant_expire", "gnt_1", 0, 40)
        with pytest.raises(Shortfall):
            reserve(one, 1, NOW_MS + 5)
        settled = one.settle(hold, 60, NOW_MS + 10)
        assert (settled.charge_nanos, settled.transfers) == (60, ())

    def test_what_comes_back_to_an_expired_grant_lapses_at_once(self) -> None:
        lot = grant(100, expires_at_ms=NOW_MS + 5)
        one = book(is_prepaid=True, lots=[lot])
        hold = reserve(one, 60)
        one.expire_lots(NOW_MS + 5)
        settled = one.settle(hold, 45, NOW_MS + 10)
        [lapsed] = settled.transfers
        assert (lapsed.kind, lapsed.part, lapsed.amount_nanos) == ("grant_expire", hold.id, 15)
        assert settled.lots == ((("gnt_1",), -60),)
        assert (lot.free_nanos, lot.held_nanos) == (0, 0)

    def test_what_comes_back_before_the_sweep_lapses_too_and_the_sweep_finds_the_rest(self) -> None:
        lot = grant(100, expires_at_ms=NOW_MS + 5)
        one = book(is_prepaid=True, lots=[lot])
        settled = one.settle(reserve(one, 60), 45, NOW_MS + 5)
        assert [row.amount_nanos for row in settled.transfers] == [15]
        assert [row.amount_nanos for row in one.expire_lots(NOW_MS + 6)] == [40]
        assert one.expire_lots(NOW_MS + 7) == []

    def test_nothing_lapses_of_a_grant_that_is_all_held_or_spent(self) -> None:
        one = book(lots=[grant(60, expires_at_ms=NOW_MS + 5), grant(10, "gnt_2", NOW_MS + 5)])
        one.settle(reserve(one, 60), 60, NOW_MS)
        reserve(one, 10)
        assert one.expire_lots(NOW_MS + 5) == []

    def test_credit_that_has_lapsed_does_not_come_back_with_the_clock(self) -> None:
        lot = grant(100, expires_at_ms=NOW_MS + 5)
        one = book(is_prepaid=True, lots=[lot])
        hold = reserve(one, 60)
        one.expire_lots(NOW_MS + 5)
        settled = one.settle(hold, 0, NOW_MS - 5)
        assert [(row.part, row.amount_nanos) for row in settled.transfers] == [(hold.id, 60)]
        assert affordable(one, NOW_MS - 5) == 0

    def test_revoking_takes_back_what_nobody_holds(self) -> None:
        lot = grant(100)
        one = book(is_prepaid=True, lots=[lot])
        hold = reserve(one, 60)
        assert one.revoke_lot("org_1", "gnt_1") == 40
        assert one.revoke_lot("org_1", "gnt_1") == 0
        with pytest.raises(Shortfall):
            reserve(one, 1)
        settled = one.settle(hold, 45, NOW_MS)
        assert settled.charge_nanos == 45
        assert [(row.kind, row.part, row.amount_nanos) for row in settled.transfers] == [("grant_revoke", hold.id, 15)]

    def test_a_revoked_grant_does_not_lapse_a_second_time_when_it_expires(self) -> None:
        one = book(lots=[grant(100, expires_at_ms=NOW_MS + 5)])
        assert one.revoke_lot("org_1", "gnt_1") == 100
        assert one.expire_lots(NOW_MS + 5) == []

    def test_revoking_what_is_not_there_takes_nothing(self) -> None:
        one = book(lots=[grant(60)])
        assert one.revoke_lot("org_1", "gnt_nobody") == 0
        one.settle(reserve(one, 60), 60, NOW_MS)
        assert one.revoke_lot("org_1", "gnt_1") == 0  # all spent

    def test_a_grant_that_is_used_up_leaves_memory(self) -> None:
        one = book(is_prepaid=True)
        for number in range(50):
            one.add_lot(grant(10, f"gnt_{number:02}", NOW_MS + 5 if number % 2 else None))
            one.settle(reserve(one, 10), 10, NOW_MS)
        assert one._wallets["org_1"].lots == []
        assert one.expire_lots(NOW_MS + 5) == []
        assert not one._expiring


class TestKeys:
    def test_a_key_that_is_not_loaded_is_not_served(self) -> None:
        one = book()
        assert not one.is_loaded("key_2")
        with pytest.raises(KeyNotLoaded):
            reserve(one, 1, key_id="key_2")
        with pytest.raises(KeyNotLoaded):
            affordable(one, key_id="key_2")
        one.load_key("key_2", [Cap(budget("key", "key_2", 10))], NOW_MS)
        assert one.is_loaded("key_2")
        assert affordable(one, key_id="key_2") == 10

    def test_loading_a_key_again_does_not_overwrite_what_memory_knows(self) -> None:
        one = book(budget("key", "key_1"))
        one.settle(reserve(one, 60), 60, NOW_MS)
        one.load_key("key_1", [Cap(budget("key", "key_1"))], NOW_MS)  # as the disk was before
        assert affordable(one) == 40

    def test_a_budget_of_a_key_that_is_not_loaded_waits_for_the_disk(self) -> None:
        one = book()
        terms = budget("key", "key_2", 10)
        one.set_budget(terms)
        one.drop_budget(terms)
        one.load_key("key_2", [], NOW_MS)
        assert affordable(one, key_id="key_2") is None

    @staticmethod
    def _crowd(one: Book, now_ms: int) -> None:
        for number in range(20):
            one.load_key(f"key_x{number}", [], now_ms)

    def test_keys_beyond_the_bound_leave_memory(self) -> None:
        one = book(keys_count_max=5)
        self._crowd(one, NOW_MS)
        assert not one.is_loaded("key_1")
        assert one.is_loaded("key_x19")
        assert len(one._keys) == len(one._key_used_ms) == 5

    def test_a_key_under_whose_cap_something_is_held_stays(self) -> None:
        one = book(budget("key", "key_1"), keys_count_max=5)
        hold = reserve(one, 60)
        self._crowd(one, NOW_MS + IDLE_MS)
        assert affordable(one, NOW_MS + IDLE_MS) == 40
        one.settle(hold, 60, NOW_MS + IDLE_MS)

    def test_a_key_whose_hold_has_expired_stays_until_its_settlement_came(self) -> None:
        """Its late settlement must find the counter that later reservations count in."""
        one = book(budget("key", "key_1"), keys_count_max=5)
        hold = reserve(one, 60)
        one.expire(hold, NOW_MS)
        self._crowd(one, NOW_MS + IDLE_MS)
        assert one.is_loaded("key_1")
        one.settle(hold, 60, NOW_MS + IDLE_MS)
        self._crowd(one, NOW_MS + 2 * IDLE_MS - 1)
        assert affordable(one, NOW_MS + IDLE_MS) == 40

    def test_a_key_that_has_just_spent_stays_until_that_is_on_the_disk(self) -> None:
        """Its request may have begun long ago: what counts is when it was settled."""
        one = book(budget("key", "key_1"), keys_count_max=5)
        hold = reserve(one, 60)
        later = NOW_MS + 2 * IDLE_MS
        one.settle(hold, 60, later)
        self._crowd(one, later + IDLE_MS - 1)
        assert one.is_loaded("key_1")
        for number in range(20):  # now its spending has been on the disk for long
            one.load_key(f"key_y{number}", [], later + IDLE_MS)
        assert not one.is_loaded("key_1")
