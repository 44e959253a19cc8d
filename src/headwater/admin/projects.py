"""Projects as an operator handles them: where an organization's use and budgets are grouped."""

import msgspec
from msgspec import UNSET, UnsetType

from headwater.admin import finding
from headwater.admin.administration import Administration, Verb
from headwater.admin.checks import check_name
from headwater.errors import OperatorError
from headwater.ids import PROJECT, new_id
from headwater.ledger import admin_store, store
from headwater.ledger.admin_store import OrganizationRow, ProjectRow
from headwater.ledger.store import Write


class CreateProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for a project. organization: name or id; None: the default one."""

    name: str
    organization: str | None = None
    is_storage_allowed: bool = True


class ListProjects(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see every project, or those of one organization."""

    organization: str | None = None


class ShowProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see one, by name or id; organization: where to look for a name that several have."""

    project: str
    organization: str | None = None


class UpdateProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to change one, found as `ShowProject` does; what isn't set stays."""

    project: str
    organization: str | None = None
    name: str | UnsetType = UNSET
    is_storage_allowed: bool | UnsetType = UNSET


class ArchiveProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to archive one, found as `ShowProject` does."""

    project: str
    organization: str | None = None


class ProjectView(msgspec.Struct, frozen=True):
    """A project as people see it. organization: its name. is_storage_allowed: whether answers may be kept."""

    id: str
    name: str
    organization_id: str
    organization: str
    is_storage_allowed: bool
    created_at_ms: int
    archived_at_ms: int | None


def _create(administration: Administration, wish: CreateProject) -> ProjectView:
    owner = finding.active_organization(administration, wish.organization)
    name = _free_name(administration, owner, wish.name)
    project_id, now_ms = new_id(PROJECT), administration.now_ms
    administration.write(
        [
            Write(store.INSERT_PROJECT, (project_id, owner.id, name, now_ms)),
            Write(admin_store.UPDATE_PROJECT, (project_id, name, wish.is_storage_allowed)),
            administration.change(
                "project",
                project_id,
                "create",
                name=name,
                organization_id=owner.id,
                is_storage_allowed=wish.is_storage_allowed,
            ),
        ]
    )
    return _view_of(administration, project_id)


def _list(administration: Administration, wish: ListProjects) -> list[ProjectView]:
    owner = None if wish.organization is None else finding.organization(administration, wish.organization)
    rows = administration.read(admin_store.read_projects)
    names = organization_names(administration)
    return [_view(row, names) for row in rows if owner is None or row.organization_id == owner.id]


def _show(administration: Administration, wish: ShowProject) -> ProjectView:
    return _view_of(administration, finding.project(administration, wish.project, wish.organization).id)


def _update(administration: Administration, wish: UpdateProject) -> ProjectView:
    found = finding.active_project(administration, wish.project, wish.organization)
    name, is_storage_allowed = found.name, found.is_storage_allowed
    detail: dict[str, object] = {}
    if wish.name is not UNSET and wish.name != name:
        _refuse_default(administration, found, "renamed")
        owner = finding.organization(administration, found.organization_id)
        name = detail["name"] = _free_name(administration, owner, wish.name)
    if wish.is_storage_allowed is not UNSET and wish.is_storage_allowed != is_storage_allowed:
        is_storage_allowed = detail["is_storage_allowed"] = wish.is_storage_allowed
    if detail:
        administration.write(
            [
                Write(admin_store.UPDATE_PROJECT, (found.id, name, is_storage_allowed)),
                administration.change("project", found.id, "update", **detail),
            ]
        )
        if administration.live is not None:
            administration.live.forget_project(found.id)
    return _view_of(administration, found.id)


def _archive(administration: Administration, wish: ArchiveProject) -> ProjectView:
    """Archive it with its keys. What they used stays in the books."""
    found = finding.project(administration, wish.project, wish.organization)
    _refuse_default(administration, found, "archived")
    if found.archived_at_ms is None:
        now_ms = administration.now_ms
        keys = administration.read(lambda reader: admin_store.read_keys_of(reader, found.organization_id, found.id))
        open_keys = [key for key in keys if key.revoked_at_ms is None]
        administration.write(
            [
                Write(admin_store.ARCHIVE_PROJECT, (found.id, now_ms)),
                *(Write(store.REVOKE_KEY, (now_ms, key.id)) for key in open_keys),
                administration.change("project", found.id, "archive", keys=[key.id for key in open_keys]),
            ]
        )
        if administration.live is not None:
            for key in open_keys:
                administration.live.forget_key(key.hash)
            administration.live.forget_project(found.id)
    return _view_of(administration, found.id)


def organization_names(administration: Administration) -> dict[str, str]:
    """The name of every organization by its id."""
    now_ms = administration.now_ms
    rows = administration.read(lambda reader: admin_store.read_organizations(reader, now_ms))
    return {row.id: row.name for row in rows}


def _view_of(administration: Administration, project_id: str) -> ProjectView:
    row = finding.project(administration, project_id)
    return _view(row, organization_names(administration))


def _view(row: ProjectRow, names: dict[str, str]) -> ProjectView:
    return ProjectView(
        id=row.id,
        name=row.name,
        organization_id=row.organization_id,
        organization=names[row.organization_id],
        is_storage_allowed=row.is_storage_allowed,
        created_at_ms=row.created_at_ms,
        archived_at_ms=row.archived_at_ms,
    )


def _free_name(administration: Administration, owner: OrganizationRow, name: str) -> str:
    check_name("A project", name, id_prefix=PROJECT)
    for taken in administration.read(lambda reader: admin_store.find_projects(reader, name)):
        if taken.organization_id == owner.id:
            state = "archived, but its usage still bears the name" if taken.archived_at_ms else "in use"
            raise OperatorError(
                f"The organization {owner.name!r} has a project {name!r} already ({taken.id}).",
                why=f"It is {state}.",
                now="Choose another name.",
            )
    return name


def _refuse_default(administration: Administration, found: ProjectRow, done: str) -> None:
    if found.id == administration.books.project_id:
        raise OperatorError(
            f"The default project of the default organization can't be {done}.",
            why="New keys belong to it unless told otherwise.",
            now="Create a project of the name you want.",
        )


CREATE = Verb("projects.create", CreateProject, ProjectView, _create)
LIST = Verb("projects.list", ListProjects, list[ProjectView], _list)
SHOW = Verb("projects.show", ShowProject, ProjectView, _show)
UPDATE = Verb("projects.update", UpdateProject, ProjectView, _update)
ARCHIVE = Verb("projects.archive", ArchiveProject, ProjectView, _archive)
VERBS = (CREATE, LIST, SHOW, UPDATE, ARCHIVE)
