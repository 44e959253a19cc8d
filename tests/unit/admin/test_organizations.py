import pytest

from headwater.admin import keys, organizations, projects
from headwater.admin.administration import Administration
from headwater.admin.organizations import (
    ArchiveOrganization,
    CreateOrganization,
    ListOrganizations,
    OrganizationView,
    ShowOrganization,
    UpdateOrganization,
)
from headwater.admin.projects import ProjectView
from headwater.errors import OperatorError
from headwater.keys import hash_key
from tests.unit.admin.conftest import Clock, RunningPlatform, changes_count, last_change


def create(administration: Administration, name: str = "acme", **fields: object) -> OrganizationView:
    return administration.perform(organizations.CREATE, CreateOrganization(name, **fields))  # type: ignore[arg-type]


def update(administration: Administration, organization: str, **fields: object) -> OrganizationView:
    wish = UpdateOrganization(organization, **fields)  # type: ignore[arg-type]
    return administration.perform(organizations.UPDATE, wish)


def archive(administration: Administration, organization: str) -> OrganizationView:
    return administration.perform(organizations.ARCHIVE, ArchiveOrganization(organization))


def test_a_new_organization_has_a_project_and_the_platform_knows_it(
    administration: Administration, live: RunningPlatform
) -> None:
    view = create(administration, is_prepaid=True, currency="EUR")
    assert (view.name, view.is_prepaid, view.currency, view.created_at_ms) == ("acme", True, "EUR", 1_000_000)
    assert (view.wallet_nanos, view.held_nanos, view.credit_nanos, view.archived_at_ms) == (0, 0, 0, None)
    assert live.told == [("set_organization", view.id, True, "EUR")]
    assert live.changes_seen == [2]
    [project] = administration.perform(projects.LIST, projects.ListProjects("acme"))
    assert project.name == "default"
    assert administration.perform(organizations.SHOW, ShowOrganization("acme")) == view
    assert administration.perform(organizations.SHOW, ShowOrganization(view.id)) == view


def test_the_default_organization_is_in_the_list(administration: Administration) -> None:
    made = create(administration)
    default, second = administration.perform(organizations.LIST, ListOrganizations())
    assert (default.name, default.is_prepaid, default.currency) == ("default", False, "USD")
    assert second == made


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "org_" + "0" * 32])
def test_a_name_that_can_not_be_one_is_refused(administration: Administration, name: str) -> None:
    with pytest.raises(OperatorError, match="name"):
        create(administration, name)
    assert create(administration, "org_search").name == "org_search"  # looks like no id


@pytest.mark.parametrize("currency", ["", "usd", "DOLLAR", "US", "¥"])
def test_a_currency_has_three_capital_letters(administration: Administration, currency: str) -> None:
    with pytest.raises(OperatorError, match="not a currency"):
        create(administration, currency=currency)


def test_a_name_is_taken_once_even_by_an_archived_one(administration: Administration) -> None:
    made = create(administration)
    with pytest.raises(OperatorError, match="already") as refused:
        create(administration)
    assert made.id in refused.value.what
    archive(administration, "acme")
    with pytest.raises(OperatorError, match="archived"):
        create(administration)


def test_what_is_not_there_is_refused_with_what_is(administration: Administration, acme: OrganizationView) -> None:
    with pytest.raises(OperatorError, match="no organization 'acne'") as refused:
        administration.perform(organizations.SHOW, ShowOrganization("acne"))
    assert "default, acme" in refused.value.why


def test_the_way_of_paying_changes_in_memory_too(administration: Administration, live: RunningPlatform) -> None:
    made = create(administration, currency="EUR")
    changed = update(administration, "acme", is_prepaid=True)
    assert (changed.is_prepaid, changed.currency) == (True, "EUR")
    assert live.told[1:] == [("set_organization", made.id, True, "EUR")]
    assert live.changes_seen[1:] == [3]
    assert last_change(administration) == ("organization", made.id, "update", {"is_prepaid": True})
    update(administration, "acme", is_prepaid=True)
    assert changes_count(administration) == 3


def test_an_organization_can_be_renamed_but_not_the_default_one(
    administration: Administration, acme: OrganizationView
) -> None:
    assert update(administration, "acme", name="Acme Inc.").id == acme.id
    with pytest.raises(OperatorError, match="no organization 'acme'"):
        update(administration, "acme", name="x")
    with pytest.raises(OperatorError, match="already"):
        update(administration, "Acme Inc.", name="default")
    with pytest.raises(OperatorError, match="default organization can't be renamed"):
        update(administration, "default", name="ours")
    assert update(administration, "default", is_prepaid=True).is_prepaid


def test_an_archived_organization_opens_nothing_any_more(
    administration: Administration, search: ProjectView, live: RunningPlatform, clock: Clock
) -> None:
    mine = administration.perform(keys.CREATE, keys.CreateKey("mine"))
    made = [
        administration.perform(keys.CREATE, keys.CreateKey(name, organization="acme", project=project))
        for name, project in (("a", None), ("b", "search"), ("c", None))
    ]
    administration.perform(keys.REVOKE, keys.RevokeKey("c"))
    live.told.clear()
    clock.now = 2_000.0
    view = archive(administration, "acme")
    assert view.archived_at_ms == 2_000_000
    assert live.told == [("forget_key", hash_key(one.key)) for one in made[:2]]
    listed = {view.id: view.revoked_at_ms for view in administration.perform(keys.LIST, keys.ListKeys())}
    assert listed[mine.details.id] is None
    assert [listed[one.details.id] for one in made] == [2_000_000, 2_000_000, 1_000_000]
    owned = administration.perform(projects.LIST, projects.ListProjects("acme"))
    assert [project.archived_at_ms for project in owned] == [2_000_000] * 2
    with pytest.raises(OperatorError, match="is archived"):
        administration.perform(keys.CREATE, keys.CreateKey("d", organization="acme"))
    with pytest.raises(OperatorError, match="is archived"):
        update(administration, "acme", is_prepaid=True)
    count = changes_count(administration)
    clock.now = 3_000.0
    assert archive(administration, "acme").archived_at_ms == 2_000_000
    assert changes_count(administration) == count


def test_the_default_organization_is_never_archived(administration: Administration) -> None:
    key = administration.perform(keys.CREATE, keys.CreateKey("x"))
    with pytest.raises(OperatorError, match="default organization can't be archived"):
        archive(administration, "default")
    assert administration.perform(keys.SHOW, keys.ShowKey("x")) == key.details
