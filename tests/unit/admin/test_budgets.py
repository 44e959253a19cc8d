from datetime import UTC, datetime
from typing import Any

import pytest

from headwater.admin import budgets, keys
from headwater.admin.administration import Administration, Verb
from headwater.admin.budgets import ArchiveBudget, BudgetView, CreateBudget, ListBudgets, ShowBudget, UpdateBudget
from headwater.admin.organizations import OrganizationView
from headwater.admin.projects import ProjectView
from headwater.errors import OperatorError
from headwater.ledger import store
from headwater.ledger.batch import Batch
from headwater.ledger.rows import ReservationRow
from headwater.ledger.store import Write
from tests.unit.admin.conftest import Clock, RunningPlatform, changes_count, last_change

UNIT = 10**9


def create(administration: Administration, limit: str = "25", period: str = "month", **fields: object) -> BudgetView:
    if not fields.keys() & {"organization", "project", "key", "tag"}:
        fields["organization"] = "default"
    wish = CreateBudget(limit, period, **fields)  # type: ignore[arg-type]
    return administration.perform(budgets.CREATE, wish)


def update(administration: Administration, budget_id: str, **fields: object) -> BudgetView:
    return administration.perform(budgets.UPDATE, UpdateBudget(budget_id, **fields))  # type: ignore[arg-type]


def test_a_budget_caps_what_is_named(
    administration: Administration, live: RunningPlatform, acme: OrganizationView, search: ProjectView
) -> None:
    key = administration.perform(keys.CREATE, keys.CreateKey("ci", project="search")).details
    made = [
        create(administration, organization="acme"),
        create(administration, project="search"),
        create(administration, project="default", organization="acme"),
        create(administration, key="ci"),
        create(administration, tag="team:search", organization="acme"),
    ]
    assert [(one.scope, one.scope_name) for one in made] == [
        ("organization", "acme"),
        ("project", "search"),
        ("project", "default"),
        ("key", "ci"),
        ("tag", "team:search"),
    ]
    assert {one.organization_id for one in made} == {acme.id}
    assert (made[1].scope_id, made[3].scope_id, made[4].scope_id) == (search.id, key.id, "team:search")
    told = [terms for name, terms in live.told if name == "set_budget"]
    assert [terms.id for terms in told] == [one.id for one in made]
    assert [terms.scope_id for terms in told] == [one.scope_id for one in made]
    assert live.changes_seen == [changes_count(administration) - 4 + number for number in range(5)]
    noun, object_id, verb, detail = last_change(administration)
    assert (noun, object_id, verb) == ("budget", made[4].id, "create")
    assert (detail["limit_nanos"], detail["scope_id"], detail["thresholds"]) == (25 * UNIT, "team:search", [80, 100])
    assert administration.perform(budgets.LIST, ListBudgets("acme")) == made
    assert administration.perform(budgets.LIST, ListBudgets("default")) == []


def test_a_budget_shows_its_limit_and_when_it_starts_over(administration: Administration, clock: Clock) -> None:
    clock.now = datetime(2026, 11, 30, 20, 0, tzinfo=UTC).timestamp()
    view = create(administration, "25.50", time_zone="Asia/Shanghai")
    assert (view.limit_nanos, view.spent_nanos, view.held_nanos, view.remaining_nanos) == (
        25_500_000_000,
        0,
        0,
        25_500_000_000,
    )
    assert (view.currency, view.period_key, view.thresholds) == ("USD", "2026-12", [80, 100])  # it is December there
    assert view.resets_at_ms == datetime(2026, 12, 31, 16, 0, tzinfo=UTC).timestamp() * 1000
    total = create(administration, "1", "total")
    assert (total.period_key, total.resets_at_ms) == ("total", None)
    custom = create(administration, "1", "custom", period_days=14)
    assert (custom.period_days, custom.period_key) == (14, "14 days 2026-11-30")
    assert custom.resets_at_ms == datetime(2026, 12, 14, tzinfo=UTC).timestamp() * 1000


def reserve(administration: Administration, budget: BudgetView, amount_nanos: int) -> ReservationRow:
    """A request that holds this much under the budget, on the disk."""
    key = administration.perform(keys.CREATE, keys.CreateKey("k")).details
    row = ReservationRow(
        id=1,
        request_id="req_1",
        epoch=1,
        organization_id=key.organization_id,
        project_id=key.project_id,
        key_id=key.id,
        model="qwen",
        price_id=None,
        amount_nanos=amount_nanos,
        budgets=f'[["{budget.id}","{budget.period_key}"]]',
        lots=None,
        client_request_id=None,
        dialect="openai_chat",
        service_tier="standard",
        is_stream=True,
        choices_count=1,
        tags=None,
        received_at_ms=1_000_000,
        expires_at_ms=2_000_000,
    )
    batch = Batch()
    batch.reserve(row)
    administration.write([Write(store.INSERT_EPOCH, (1, "here", 0)), *batch.writes()])
    return row


def test_what_is_spent_and_held_is_shown_and_is_the_running_periods(administration: Administration) -> None:
    view, other = create(administration, "10"), create(administration, "10")
    reserve(administration, view, 3 * UNIT)
    spent = [(view.id, view.period_key, 4 * UNIT), (view.id, "1969-12", 9 * UNIT)]
    administration.write([Write(store.ADD_TO_BUDGET, row) for row in spent])
    shown = administration.perform(budgets.SHOW, ShowBudget(view.id))
    assert (shown.spent_nanos, shown.held_nanos, shown.remaining_nanos) == (4 * UNIT, 3 * UNIT, 3 * UNIT)
    assert administration.perform(budgets.SHOW, ShowBudget(other.id)) == other
    lowered = update(administration, view.id, limit="5")
    assert (lowered.limit_nanos, lowered.remaining_nanos) == (5 * UNIT, 0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"limit": "-1"}, "limit can't be '-1'"),
        ({"limit": "1e3"}, "limit can't be '1e3'"),
        ({"limit": "0.0000000001"}, "9 fractional digits"),
        ({"limit": "9223372037"}, "beyond"),
        ({"period": "year"}, "no period"),
        ({"period": "custom"}, "--days"),
        ({"period": "day", "period_days": 3}, "--days"),
        ({"period": "custom", "period_days": 0}, "1 to 3660"),
        ({"period": "custom", "period_days": 3661}, "1 to 3660"),
        ({"time_zone": "Asia/Shanghia"}, "Did you mean Asia/Shanghai"),
        ({"time_zone": "../etc/passwd"}, "no time zone"),
        ({"time_zone": "Asia"}, "no time zone"),
        ({"time_zone": ""}, "no time zone"),
        ({"time_zone": "a\0b"}, "no time zone"),
        ({"thresholds": [0]}, "1 to 100"),
        ({"thresholds": [101]}, "1 to 100"),
        ({"organization": "nobody"}, "no organization 'nobody'"),
        ({"project": "nothing"}, "no project 'nothing'"),
        ({"key": "key_none"}, "no key 'key_none'"),
        ({"project": "default", "tag": "x"}, "caps one thing"),
        ({"project": "default", "key": "x"}, "caps one thing"),
        ({"tag": "a b", "organization": "default"}, "can't be a tag"),
        ({"tag": "", "organization": "default"}, "can't be a tag"),
        ({"tag": "x" * 65, "organization": "default"}, "can't be a tag"),
        ({"tag": "a,b", "organization": "default"}, "can't be a tag"),
        ({"tag": "x"}, "belongs to an organization"),
        ({"organization": None}, "isn't said"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(
    administration: Administration, live: RunningPlatform, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(OperatorError, match=words):
        create(administration, **fields)  # type: ignore[arg-type]
    assert administration.perform(budgets.LIST, ListBudgets(with_archived=True)) == []
    assert live.told == []
    assert changes_count(administration) == 0


def test_a_revoked_key_and_an_archived_project_get_no_budget(
    administration: Administration, search: ProjectView
) -> None:
    administration.perform(keys.CREATE, keys.CreateKey("ci"))
    administration.perform(keys.REVOKE, keys.RevokeKey("ci"))
    with pytest.raises(OperatorError, match="is revoked"):
        create(administration, key="ci")


def test_a_changed_budget_is_changed_in_memory(administration: Administration, live: RunningPlatform) -> None:
    made = create(administration, "25")
    view = update(administration, made.id, limit="30", thresholds=[100, 50, 50])
    assert (view.limit_nanos, view.thresholds, view.period) == (30 * UNIT, [50, 100], "month")
    terms = live.told[-1][1]
    assert (terms.id, terms.limit_nanos, terms.thresholds, terms.scope_id) == (
        made.id,
        30 * UNIT,
        (50, 100),
        made.scope_id,
    )
    assert live.changes_seen == [1, 2]
    detail = {"limit_nanos": 30 * UNIT, "thresholds": [50, 100]}
    assert last_change(administration) == ("budget", made.id, "update", detail)
    update(administration, made.id, limit="30.0")
    assert changes_count(administration) == 2
    assert update(administration, made.id, thresholds=[]).thresholds == []


def test_an_archived_budget_caps_nothing_and_keeps_its_time(
    administration: Administration, live: RunningPlatform, clock: Clock
) -> None:
    made = create(administration)
    kept = create(administration)
    clock.now = 2_000.0
    view = administration.perform(budgets.ARCHIVE, ArchiveBudget(made.id))
    assert view.archived_at_ms == 2_000_000
    assert (live.told[-1][0], live.told[-1][1].id) == ("drop_budget", made.id)
    assert live.changes_seen[-1] == 3
    assert administration.perform(budgets.LIST, ListBudgets()) == [kept]
    assert len(administration.perform(budgets.LIST, ListBudgets(with_archived=True))) == 2
    clock.now = 3_000.0
    assert administration.perform(budgets.ARCHIVE, ArchiveBudget(made.id)).archived_at_ms == 2_000_000
    assert changes_count(administration) == 3
    with pytest.raises(OperatorError, match="is archived"):
        update(administration, made.id, limit="1")


def test_a_budget_that_is_not_there_is_said_to_be_that(administration: Administration) -> None:
    made = create(administration)
    verbs: list[tuple[Verb[Any, Any], Any]] = [
        (budgets.SHOW, ShowBudget("bud_none")),
        (budgets.UPDATE, UpdateBudget("bud_none")),
        (budgets.ARCHIVE, ArchiveBudget("bud_none")),
    ]
    for verb, wish in verbs:
        with pytest.raises(OperatorError, match="no budget 'bud_none'") as refused:
            administration.perform(verb, wish)
        assert made.id in refused.value.why


def test_the_book_of_the_next_start_has_the_same_terms(administration: Administration, live: RunningPlatform) -> None:
    made = create(administration, "25", "week", time_zone="Europe/Berlin", thresholds=[90])
    [loaded] = administration.read(store.read_budgets)
    assert loaded.terms == live.told[-1][1]
    assert loaded.terms.id == made.id
