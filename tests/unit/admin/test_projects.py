import pytest

from headwater.admin import keys, projects
from headwater.admin.administration import Administration
from headwater.admin.organizations import OrganizationView
from headwater.admin.projects import (
    ArchiveProject,
    CreateProject,
    ListProjects,
    ProjectView,
    ShowProject,
    UpdateProject,
)
from headwater.errors import OperatorError
from headwater.keys import hash_key
from tests.unit.admin.conftest import Clock, RunningPlatform, changes_count, last_change


def create(administration: Administration, name: str = "chat", **fields: object) -> ProjectView:
    return administration.perform(projects.CREATE, CreateProject(name, **fields))  # type: ignore[arg-type]


def update(administration: Administration, project: str, **fields: object) -> ProjectView:
    return administration.perform(projects.UPDATE, UpdateProject(project, **fields))  # type: ignore[arg-type]


def test_a_project_belongs_to_the_organization_that_is_named(
    administration: Administration, acme: OrganizationView
) -> None:
    ours = create(administration)
    theirs = create(administration, organization="acme", is_storage_allowed=False)
    assert (ours.organization, ours.is_storage_allowed, ours.archived_at_ms) == ("default", True, None)
    assert (theirs.organization_id, theirs.is_storage_allowed) == (acme.id, False)
    assert last_change(administration)[3]["is_storage_allowed"] is False
    assert administration.perform(projects.SHOW, ShowProject("chat", "acme")) == theirs
    assert administration.perform(projects.SHOW, ShowProject(ours.id)) == ours
    assert [one.name for one in administration.perform(projects.LIST, ListProjects("acme"))] == ["default", "chat"]
    assert len(administration.perform(projects.LIST, ListProjects())) == 4


@pytest.mark.parametrize("name", ["", "x" * 101, "a\tb", "prj_" + "0" * 32])
def test_a_name_that_can_not_be_one_is_refused(administration: Administration, name: str) -> None:
    with pytest.raises(OperatorError, match="name"):
        create(administration, name)


def test_a_name_is_taken_once_in_each_organization(administration: Administration, acme: OrganizationView) -> None:
    create(administration)
    create(administration, organization="acme")
    with pytest.raises(OperatorError, match="organization 'acme' has a project 'chat' already"):
        create(administration, organization="acme")


def test_what_is_changed_is_forgotten_in_memory(administration: Administration, live: RunningPlatform) -> None:
    made = create(administration)
    changed = update(administration, "chat", is_storage_allowed=False)
    assert (changed.id, changed.is_storage_allowed, changed.name) == (made.id, False, "chat")
    assert live.told == [("forget_project", made.id)]
    assert live.changes_seen == [2]
    assert update(administration, "chat", name="talk").is_storage_allowed is False
    assert last_change(administration) == ("project", made.id, "update", {"name": "talk"})
    update(administration, "talk", name="talk", is_storage_allowed=False)
    assert changes_count(administration) == 3


def test_a_project_can_not_take_another_ones_name(administration: Administration) -> None:
    create(administration, "a")
    create(administration, "b")
    with pytest.raises(OperatorError, match="already"):
        update(administration, "a", name="b")
    with pytest.raises(OperatorError, match="can't be renamed"):
        update(administration, "default", name="c")


def test_an_archived_project_has_no_working_key(
    administration: Administration, live: RunningPlatform, clock: Clock
) -> None:
    made = create(administration)
    inside = administration.perform(keys.CREATE, keys.CreateKey("in", project="chat"))
    outside = administration.perform(keys.CREATE, keys.CreateKey("out"))
    clock.now = 2_000.0
    archived = administration.perform(projects.ARCHIVE, ArchiveProject("chat"))
    assert archived.archived_at_ms == 2_000_000
    assert live.told == [("forget_key", hash_key(inside.key)), ("forget_project", made.id)]
    assert administration.perform(keys.SHOW, keys.ShowKey("in")).revoked_at_ms == 2_000_000
    assert administration.perform(keys.SHOW, keys.ShowKey("out")) == outside.details
    assert last_change(administration) == ("project", made.id, "archive", {"keys": [inside.details.id]})
    clock.now = 3_000.0
    assert administration.perform(projects.ARCHIVE, ArchiveProject("chat")) == archived
    with pytest.raises(OperatorError, match="is archived"):
        update(administration, "chat", name="x")
    with pytest.raises(OperatorError, match="It is archived"):
        create(administration)


def test_the_default_project_is_never_archived(administration: Administration, acme: OrganizationView) -> None:
    with pytest.raises(OperatorError, match="can't be archived"):
        administration.perform(projects.ARCHIVE, ArchiveProject("default", "default"))
    assert administration.perform(projects.ARCHIVE, ArchiveProject("default", "acme")).archived_at_ms is not None
