"""Organizations as an operator handles them: who pays, in what currency, before or after use."""

import msgspec
from msgspec import UNSET, UnsetType

from headwater.admin import finding
from headwater.admin.administration import Administration, Verb
from headwater.admin.checks import check_currency, check_name, check_weight
from headwater.errors import OperatorError
from headwater.ids import ORGANIZATION, PROJECT, new_id
from headwater.ledger import admin_store, limit_store, store
from headwater.ledger.admin_store import OrganizationRow
from headwater.ledger.store import Write

DEFAULT_PROJECT = "default"


class CreateOrganization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for an organization. currency: ISO 4217; None: the platform's. weight: its share beside others that wait."""

    name: str
    is_prepaid: bool = False
    currency: str | None = None
    weight: int = 1


class ListOrganizations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see every organization."""


class ShowOrganization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see one, by name or id."""

    organization: str


class UpdateOrganization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to change one, by name or id; what isn't set stays."""

    organization: str
    name: str | UnsetType = UNSET
    is_prepaid: bool | UnsetType = UNSET
    weight: int | UnsetType = UNSET


class ArchiveOrganization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to archive one, by name or id."""

    organization: str


class OrganizationView(msgspec.Struct, frozen=True):
    """An organization as people see it. Amounts are nano-units of its currency, as `OrganizationRow` has them."""

    id: str
    name: str
    currency: str
    is_prepaid: bool
    wallet_nanos: int
    held_nanos: int
    credit_nanos: int
    created_at_ms: int
    archived_at_ms: int | None
    weight: int


def organization_view(administration: Administration, row: OrganizationRow) -> OrganizationView:
    """The presentable form of a row."""
    return OrganizationView(
        id=row.id,
        name=row.name,
        currency=row.currency or administration.currency,
        is_prepaid=row.is_prepaid,
        wallet_nanos=row.wallet_nanos,
        held_nanos=row.held_nanos,
        credit_nanos=row.credit_nanos,
        created_at_ms=row.created_at_ms,
        archived_at_ms=row.archived_at_ms,
        weight=row.weight,
    )


def _create(administration: Administration, wish: CreateOrganization) -> OrganizationView:
    """Make an organization with a project for the keys that name none."""
    name = _free_name(administration, wish.name)
    if wish.currency is not None:
        check_currency(wish.currency)
    check_weight("An organization", wish.weight)
    organization_id, project_id = new_id(ORGANIZATION), new_id(PROJECT)
    now_ms = administration.now_ms
    administration.write(
        [
            Write(store.INSERT_ORGANIZATION, (organization_id, name, now_ms)),
            Write(admin_store.UPDATE_ORGANIZATION, (organization_id, name, wish.currency, wish.is_prepaid)),
            Write(limit_store.SET_ORGANIZATION_WEIGHT, (organization_id, wish.weight)),
            Write(store.INSERT_PROJECT, (project_id, organization_id, DEFAULT_PROJECT, now_ms)),
            administration.change(
                "organization",
                organization_id,
                "create",
                name=name,
                is_prepaid=wish.is_prepaid,
                currency=wish.currency,
                weight=wish.weight,
            ),
            administration.change(
                "project", project_id, "create", name=DEFAULT_PROJECT, organization_id=organization_id
            ),
        ]
    )
    if administration.live is not None:
        administration.live.set_organization(organization_id, is_prepaid=wish.is_prepaid, currency=wish.currency)
        if wish.weight != 1:
            administration.live.weigh_organization(organization_id, wish.weight)
    return _view_of(administration, organization_id)


def _list(administration: Administration, _wish: ListOrganizations) -> list[OrganizationView]:
    now_ms = administration.now_ms
    rows = administration.read(lambda reader: admin_store.read_organizations(reader, now_ms))
    return [organization_view(administration, row) for row in rows]


def _show(administration: Administration, wish: ShowOrganization) -> OrganizationView:
    return organization_view(administration, finding.organization(administration, wish.organization))


def _update(administration: Administration, wish: UpdateOrganization) -> OrganizationView:
    found = finding.active_organization(administration, wish.organization)
    name, is_prepaid, weight = found.name, found.is_prepaid, found.weight
    detail: dict[str, object] = {}
    if wish.name is not UNSET and wish.name != name:
        _refuse_default(administration, found, "renamed")
        name = detail["name"] = _free_name(administration, wish.name)
    if wish.is_prepaid is not UNSET and wish.is_prepaid != is_prepaid:
        is_prepaid = detail["is_prepaid"] = wish.is_prepaid
    if wish.weight is not UNSET and wish.weight != weight:
        weight = detail["weight"] = check_weight("An organization", wish.weight)
    if detail:
        administration.write(
            [
                Write(admin_store.UPDATE_ORGANIZATION, (found.id, name, found.currency, is_prepaid)),
                Write(limit_store.SET_ORGANIZATION_WEIGHT, (found.id, weight)),
                administration.change("organization", found.id, "update", **detail),
            ]
        )
        if "is_prepaid" in detail and administration.live is not None:
            administration.live.set_organization(found.id, is_prepaid=is_prepaid, currency=found.currency)
        if "weight" in detail and administration.live is not None:
            administration.live.weigh_organization(found.id, weight)
    return _view_of(administration, found.id)


def _archive(administration: Administration, wish: ArchiveOrganization) -> OrganizationView:
    """Archive it with its projects and keys. What they used stays in the books."""
    found = finding.organization(administration, wish.organization)
    _refuse_default(administration, found, "archived")
    if found.archived_at_ms is None:
        now_ms = administration.now_ms
        keys = administration.read(lambda reader: admin_store.read_keys_of(reader, found.id))
        open_keys = [key for key in keys if key.revoked_at_ms is None]
        projects = [
            row
            for row in administration.read(admin_store.read_projects)
            if row.organization_id == found.id and row.archived_at_ms is None
        ]
        administration.write(
            [
                Write(admin_store.ARCHIVE_ORGANIZATION, (found.id, now_ms)),
                *(Write(admin_store.ARCHIVE_PROJECT, (row.id, now_ms)) for row in projects),
                *(Write(store.REVOKE_KEY, (now_ms, key.id)) for key in open_keys),
                administration.change(
                    "organization",
                    found.id,
                    "archive",
                    projects=[row.id for row in projects],
                    keys=[key.id for key in open_keys],
                ),
            ]
        )
        if administration.live is not None:
            for key in open_keys:
                administration.live.forget_key(key.hash)
    return _view_of(administration, found.id)


def _view_of(administration: Administration, organization_id: str) -> OrganizationView:
    return organization_view(administration, finding.organization(administration, organization_id))


def _free_name(administration: Administration, name: str) -> str:
    check_name("An organization", name, id_prefix=ORGANIZATION)
    now_ms = administration.now_ms
    taken = administration.read(lambda reader: admin_store.find_organization(reader, name, now_ms))
    if taken is not None:
        state = "archived, but its statements still bear the name" if taken.archived_at_ms else "in use"
        raise OperatorError(
            f"There is an organization {name!r} already ({taken.id}).",
            why=f"It is {state}.",
            now="Choose another name.",
        )
    return name


def _refuse_default(administration: Administration, found: OrganizationRow, done: str) -> None:
    if found.id == administration.books.organization_id:
        raise OperatorError(
            f"The default organization can't be {done}.",
            why="New projects and keys belong to it unless told otherwise.",
            now="Create an organization of the name you want.",
        )


CREATE = Verb("organizations.create", CreateOrganization, OrganizationView, _create)
LIST = Verb("organizations.list", ListOrganizations, list[OrganizationView], _list)
SHOW = Verb("organizations.show", ShowOrganization, OrganizationView, _show)
UPDATE = Verb("organizations.update", UpdateOrganization, OrganizationView, _update)
ARCHIVE = Verb("organizations.archive", ArchiveOrganization, OrganizationView, _archive)
VERBS = (CREATE, LIST, SHOW, UPDATE, ARCHIVE)
