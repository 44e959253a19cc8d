"""The book beside a reference that is too simple to be wrong, through any history Hypothesis can think of."""

from collections import Counter as Tally
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headwater.ledger.book import AlreadySettled, Book, Hold, KeyNotLoaded, Settled, Shortfall
from headwater.ledger.caps import Cap
from headwater.ledger.periods import BudgetTerms, PeriodKind, ScopeKind
from headwater.ledger.rows import TransferRow
from headwater.ledger.wallet import Lot
from tests.unit.ledger.reference_ledger import Budget, Grant, ReferenceLedger, Request
from tests.unit.ledger.test_periods import ms

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
KEYS = {  # key: (organization, project)
    "key_1": ("org_1", "prj_1"),
    "key_2": ("org_1", "prj_1"),
    "key_3": ("org_1", "prj_2"),
    "key_4": ("org_2", "prj_3"),
}
SCOPES: list[tuple[ScopeKind, str, str]] = [  # (kind, id, organization)
    ("organization", "org_1", "org_1"),
    ("organization", "org_2", "org_2"),
    ("project", "prj_1", "org_1"),
    ("project", "prj_2", "org_1"),
    *(("key", key, organization) for key, (organization, _) in KEYS.items()),
    *(("tag", tag, "org_1") for tag in ("night", "batch")),
]
ZONES = ["UTC", "Europe/Berlin", "America/Santiago", "Asia/Tokyo"]
STARTS = [  # each a little before something happens to the calendar
    ms(2026, 3, 28, 22),  # the clocks change in Berlin
    ms(2026, 10, 24, 21),
    ms(2026, 9, 6, 3, 30),  # Santiago skips midnight
    ms(2026, 4, 5, 2),
    ms(2026, 12, 31, 23, 30),
    ms(2026, 11, 22, 23),
]
STEPS_MS = [1, MINUTE_MS, 11 * MINUTE_MS, HOUR_MS, 7 * HOUR_MS, DAY_MS, 3 * DAY_MS, -1, -HOUR_MS, -DAY_MS, -2 * DAY_MS]
PERIOD_DAYS: dict[PeriodKind, int | str] = {"total": "total", "day": 1, "week": 7, "month": "month"}
AMOUNTS = st.integers(0, 120)
_BUDGETS = st.fixed_dictionaries(
    {
        "scope": st.sampled_from(SCOPES),
        "limit": st.sampled_from([0, 50, 100, 100, 200, 1_000]),
        "period": st.sampled_from(["total", "day", "day", "day", "week", "month", "custom"]),
        "days": st.integers(1, 3),
        "zone": st.sampled_from(ZONES),
        "anchor_days": st.integers(-5, 1),
    }
)
_GRANTS = st.fixed_dictionaries(
    {
        "organization": st.sampled_from(["org_1", "org_1", "org_2"]),
        "amount": st.integers(1, 200),
        "life_ms": st.none() | st.sampled_from([1, HOUR_MS, 7 * HOUR_MS, 2 * DAY_MS]),
    }
)


class Ledger(RuleBasedStateMachine):
    """Every rule does the same to both, and compares what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Book(keys_count_max=2)  # so small that keys come and go
        self.reference = ReferenceLedger()
        self.now_ms = 0
        self.terms: dict[str, BudgetTerms] = {}
        self.lots: dict[str, Lot] = {}
        self.requests: list[tuple[Hold, Request]] = []
        self.disk: Tally[tuple[str, ...]] = (
            Tally()
        )  # what settlements added to each cap's period and took from each lot
        self.accounts: Tally[str] = Tally()
        self.moved: set[tuple[str, str, int]] = set()
        self.totals: dict[tuple[str, object], int] = {}

    @initialize(
        start_ms=st.sampled_from(STARTS),
        budgets=st.lists(_BUDGETS, min_size=1, max_size=4),
        grants=st.lists(_GRANTS, min_size=1, max_size=4),
        is_prepaid=st.booleans(),
    )
    def begin(
        self, start_ms: int, budgets: list[dict[str, Any]], grants: list[dict[str, Any]], is_prepaid: bool
    ) -> None:
        self.now_ms = start_ms
        self._set_prepaid("org_1", is_prepaid)
        self._set_prepaid("org_2", not is_prepaid)
        for budget in budgets:
            self._make_budget(**budget)
        for grant in grants:
            self._grant(**grant)

    # -- what an operator does -------------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["budget", "budget", "grant", "grant", "grant", "limit", "limit", "archive", "pay"]),
        budget=_BUDGETS,
        grant=_GRANTS,
        pick=st.integers(0, 99),
        is_prepaid=st.booleans(),
    )
    def change_something(
        self, what: str, budget: dict[str, Any], grant: dict[str, Any], pick: int, is_prepaid: bool
    ) -> None:
        live = [name for name, one in self.reference.budgets.items() if not one.is_archived]
        match what:
            case "budget" if len(live) < 6:
                self._make_budget(**budget)
            case "grant" if len(self.lots) < 10:
                self._grant(**grant)
            case "limit" if live:
                self._change_limit(live[pick % len(live)], budget["limit"])
            case "archive" if live:
                name = live[pick % len(live)]
                self.reference.budgets[name].is_archived = True
                self.book.drop_budget(self.terms[name])
            case "pay":
                self._set_prepaid("org_1", is_prepaid)

    def _set_prepaid(self, organization: str, is_prepaid: bool) -> None:
        self.book.set_organization(organization, is_prepaid=is_prepaid)
        self.reference.is_prepaid[organization] = is_prepaid

    def _make_budget(
        self, scope: tuple[ScopeKind, str, str], limit: int, period: PeriodKind, days: int, zone: str, anchor_days: int
    ) -> None:
        kind, scope_id, organization = scope
        name, anchor_ms = f"bud_{len(self.terms)}", self.now_ms + anchor_days * DAY_MS
        period_days = days if period == "custom" else None
        terms = BudgetTerms(
            name, organization, kind, scope_id, limit, period, period_days, anchor_ms, zone, (50, 80, 100)
        )
        first = datetime.fromtimestamp(anchor_ms / 1000, ZoneInfo(zone)).toordinal() if period == "custom" else 1
        self.terms[name] = terms
        self.reference.budgets[name] = Budget((kind, scope_id), limit, PERIOD_DAYS.get(period, days), zone, first)
        self.book.set_budget(terms)

    def _change_limit(self, name: str, limit: int) -> None:
        self.terms[name] = self.terms[name]._replace(limit_nanos=limit)
        self.reference.budgets[name].limit = limit
        self.book.set_budget(self.terms[name])

    def _grant(self, organization: str, amount: int, life_ms: int | None) -> None:
        name = f"gnt_{len(self.lots)}"
        expires_ms = None if life_ms is None else self.now_ms + life_ms
        self.lots[name] = Lot(name, organization, amount, expires_ms)
        self.reference.grants[name] = Grant(organization, amount, expires_ms)
        self.book.add_lot(self.lots[name])
        self.disk[name,] += amount
        self._legs((f"grants/{organization}", -amount), (f"wallet/{organization}", amount))

    @precondition(lambda self: self.lots)
    @rule(pick=st.integers(0, 99))
    def revoke(self, pick: int) -> None:
        name, lot = list(self.lots.items())[pick % len(self.lots)]
        gone = self.book.revoke_lot(lot.organization_id, name)
        assert gone == self.reference.close(name)
        if gone:
            self._transfer(TransferRow("grant_revoke", name, 0, lot.organization_id, None, gone, None, self.now_ms))
            self.disk[name,] -= gone

    # -- what callers do -------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from(list(KEYS)), amount=AMOUNTS)
    def reserve_plainly(self, key: str, amount: int) -> None:
        self.reserve(key, [], amount)

    @rule(
        key=st.sampled_from(list(KEYS)),
        tags=st.lists(st.sampled_from(["night", "batch"]), min_size=1, max_size=3),
        amount=AMOUNTS,
    )
    def reserve(self, key: str, tags: list[str], amount: int) -> None:
        caller, scopes = self._caller(key, tags)
        expected = self.reference.reserve(caller["organization_id"], scopes, amount, self.now_ms)
        found = self._try(caller, amount)
        if isinstance(found, Shortfall):
            assert found.scope == expected
            assert amount > found.available_nanos >= 0 or found.scope == "wallet"
            assert found.resets_at_ms is None or found.terms is not None
            return
        assert isinstance(expected, Request), f"admitted, but {expected} is short"
        assert [(lot.grant_id, nanos) for lot, nanos in found.lots] == expected.held
        assert [counter.terms.id for counter in found.counters] == [name for name, _ in expected.periods]
        self.requests.append((found, expected))
        self._legs(("wallet/" + expected.organization, -amount), ("held/" + expected.organization, amount))

    @precondition(lambda self: any(one.state != "settled" for _, one in self.requests))
    @rule(pick=st.integers(0, 99), cost=AMOUNTS, is_exact=st.booleans())
    def settle(self, pick: int, cost: int, is_exact: bool) -> None:
        unsettled = [pair for pair in self.requests if pair[1].state != "settled"]
        hold, one = unsettled[pick % len(unsettled)]
        cost = one.amount if is_exact else cost
        was_late = one.state == "expired"
        lapsed_before = {name: grant.lapsed for name, grant in self.reference.grants.items()}
        self.reference.settle(one, cost, self.now_ms)
        settled = self.book.settle(hold, cost, self.now_ms)
        assert (settled.charge_nanos, settled.absorbed_nanos) == (one.charge, cost - one.charge)
        assert settled.is_late == was_late
        if not was_late:
            self._release_legs(one, one.charge)
        elif one.charge:
            self._legs(("wallet/" + one.organization, -one.charge), ("revenue", one.charge))
        self._moved(hold, settled, lapsed_before)
        assert {key[0] for key, _ in settled.budgets} == ({name for name, _ in one.periods} if one.charge else set())

    @precondition(lambda self: any(one.state == "open" for _, one in self.requests))
    @rule(pick=st.integers(0, 99))
    def expire(self, pick: int) -> None:
        open_ones = [pair for pair in self.requests if pair[1].state == "open"]
        hold, one = open_ones[pick % len(open_ones)]
        lapsed_before = {name: grant.lapsed for name, grant in self.reference.grants.items()}
        self.reference.release(one, 0, self.now_ms)
        one.paid = []
        settled = self.book.expire(hold, self.now_ms)
        assert (settled.charge_nanos, settled.absorbed_nanos, settled.budgets) == (0, 0, ())
        self._release_legs(one, 0)
        self._moved(hold, settled, lapsed_before)

    @precondition(lambda self: any(one.state == "settled" for _, one in self.requests))
    @rule(pick=st.integers(0, 99))
    def settle_again(self, pick: int) -> None:
        settled = [hold for hold, one in self.requests if one.state == "settled"]
        try:
            self.book.settle(settled[pick % len(settled)], 10, self.now_ms)
        except AlreadySettled:
            return
        raise AssertionError("settled twice")

    # -- what time does --------------------------------------------------------------------------------------------

    @rule(step_ms=st.sampled_from(STEPS_MS))
    def turn_the_clock(self, step_ms: int) -> None:
        self.now_ms += step_ms

    @rule()
    def sweep(self) -> None:
        due = {
            name: self.reference.close(name)
            for name, one in self.reference.grants.items()
            if not one.is_closed and one.is_over(self.now_ms)
        }
        lapsed = self.book.expire_lots(self.now_ms)
        assert {row.subject: row.amount_nanos for row in lapsed} == {name: gone for name, gone in due.items() if gone}
        for row in lapsed:
            assert (row.kind, row.part) == ("grant_expire", 0)
            self._transfer(row)
            self.disk[row.subject,] -= row.amount_nanos

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def every_cap_has_spent_and_holds_what_the_reference_says_and_no_more_than_its_limit(self) -> None:
        for key in KEYS:
            caller, scopes = self._caller(key, ["night", "batch"])
            del caller["tags"]
            expected = self.reference.over(scopes, self.now_ms)
            found = self.book.counters(**caller, tags=["night", "batch"])
            assert [counter.terms.id for counter in found] == [name for name, _ in expected]
            for counter, period in zip(found, expected, strict=True):
                assert counter.spent_nanos == self.reference.spent(period) == self.disk[period[0], counter.period.key]
                assert counter.held_nanos == self.reference.held(period)
                assert counter.period.ends_ms is None or self.now_ms < counter.period.ends_ms
        for period in {period for _, one in self.requests for period in one.periods}:
            total = self.reference.spent(period) + self.reference.held(period)
            # Only a limit that was lowered may lie below; what counts against it can then only become less.
            assert total <= max(self.reference.budgets[period[0]].limit, self.totals.get(period, 0))
            self.totals[period] = total

    @invariant()
    def of_every_grant_all_is_free_held_spent_or_lapsed(self) -> None:
        for name, lot in self.lots.items():
            grant = self.reference.grants[name]
            assert lot.free_nanos == self.reference.free(name) >= 0
            held = sum(n for _, one in self.requests if one.state == "open" for g, n in one.held if g == name)
            spent = sum(n for _, one in self.requests if one.state == "settled" for g, n in one.paid if g == name)
            assert lot.held_nanos == held
            assert self.disk[name,] == lot.free_nanos + held
            assert lot.free_nanos + held + spent + grant.lapsed == grant.amount

    @invariant()
    def the_books_balance(self) -> None:
        assert sum(self.accounts.values()) == 0
        for organization in ("org_1", "org_2"):
            own = [one for _, one in self.requests if one.state == "open" and one.organization == organization]
            assert self.accounts["held/" + organization] == sum(one.amount for one in own)
            free = sum(lot.free_nanos for lot in self.lots.values() if lot.organization_id == organization)
            assert self.accounts["wallet/" + organization] <= free
        open_ids = [hold.id for hold, one in self.requests if one.state == "open"]
        assert list(self.book.open_holds) == open_ids
        unended = [hold.id for hold, one in self.requests if one.state != "settled"]
        assert self.book.oldest_open() == min(unended, default=len(self.requests) + 1)

    # -- how ---------------------------------------------------------------------------------------------------------

    def _caller(self, key: str, tags: list[str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """The caller as the book and as the reference want it. A key that isn't in memory is loaded as from the disk."""
        organization, project = KEYS[key]
        caller: dict[str, Any] = {"organization_id": organization, "project_id": project, "key_id": key}
        caller |= {"tags": tags, "now_ms": self.now_ms}
        try:
            self.book.affordable_nanos(**caller)
        except KeyNotLoaded:
            self.book.load_key(key, list(self._caps_on_disk(key)), self.now_ms)
        named = [("tag", tag) for tag in dict.fromkeys(tags) if organization == "org_1"]
        return caller, [("organization", organization), ("project", project), ("key", key), *named]

    def _try(self, caller: dict[str, Any], amount: int) -> Hold | Shortfall:
        try:
            return self.book.reserve(**caller, amount_nanos=amount)
        except Shortfall as short:
            return short

    def _caps_on_disk(self, key: str) -> Iterator[Cap]:
        for name, terms in self.terms.items():
            if terms.scope_id == key and not self.reference.budgets[name].is_archived:
                cap = Cap(self.terms[name])
                cap.restore({row[1]: nanos for row, nanos in self.disk.items() if row[0] == name and len(row) == 2})
                yield cap

    def _moved(self, hold: Hold, settled: Settled, lapsed_before: dict[str, int]) -> None:
        """Write what a settlement changes to the disk."""
        for key, nanos in (*settled.budgets, *settled.lots):
            self.disk[key] += nanos
        lapsed = {name: grant.lapsed - lapsed_before[name] for name, grant in self.reference.grants.items()}
        assert {row.subject: row.amount_nanos for row in settled.transfers} == {
            n: gone for n, gone in lapsed.items() if gone
        }
        for row in settled.transfers:
            assert row.part == hold.id
            assert row.created_at_ms == self.now_ms
            self._transfer(row)

    def _transfer(self, row: TransferRow) -> None:
        identity = (row.subject, row.kind, row.part)
        assert identity not in self.moved
        self.moved.add(identity)
        assert row.amount_nanos > 0
        self._legs(
            (f"wallet/{row.organization_id}", -row.amount_nanos), (f"grants/{row.organization_id}", row.amount_nanos)
        )

    def _release_legs(self, one: Request, charge: int) -> None:
        self._legs(
            (f"held/{one.organization}", -one.amount),
            (f"wallet/{one.organization}", one.amount - charge),
            ("revenue", charge),
        )

    def _legs(self, *legs: tuple[str, int]) -> None:
        for account, nanos in legs:
            self.accounts[account] += nanos


Ledger.TestCase.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)
TestLedger = Ledger.TestCase


def test_the_calendar_of_the_machine_holds_what_it_is_for() -> None:
    """Within two days of each start the clocks change somewhere, or a month, week or year ends."""
    changes = []
    for start_ms in STARTS:
        moments = [datetime.fromtimestamp((start_ms + hour * HOUR_MS) / 1000, UTC) for hour in range(48)]
        offsets = {zone: {moment.astimezone(ZoneInfo(zone)).utcoffset() for moment in moments} for zone in ZONES}
        weeks = {moment.isocalendar()[1] for moment in moments}
        changes.append(
            any(len(found) > 1 for found in offsets.values()) or len(weeks) > 1 or len({m.month for m in moments}) > 1
        )
    assert changes == [True] * len(STARTS)
