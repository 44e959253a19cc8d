"""From what a person typed, a name or an id, to the organization, project or key it means; or an error that lists them."""

from collections.abc import Iterable

from headwater.admin.administration import Administration
from headwater.errors import OperatorError
from headwater.ledger import admin_store
from headwater.ledger.admin_store import OrganizationRow, ProjectRow
from headwater.ledger.rows import KeyRow

LISTED_MAX = 20


def listed(names: Iterable[str]) -> str:
    """Names for an error: the first few, and how many more."""
    found = list(names)
    more = f" and {len(found) - LISTED_MAX} more" if len(found) > LISTED_MAX else ""
    return ", ".join(found[:LISTED_MAX]) + more


def organization(administration: Administration, text: str | None) -> OrganizationRow:
    """The organization of this name or id, archived or not; None: the default one. Raises OperatorError."""
    now_ms = administration.now_ms
    wanted = administration.books.organization_id if text is None else text
    found = administration.read(lambda reader: admin_store.find_organization(reader, wanted, now_ms))
    if found is not None:
        return found
    known = administration.read(lambda reader: admin_store.read_organizations(reader, now_ms))
    raise OperatorError(
        f"There is no organization {wanted!r}.",
        why=f"There are: {listed(row.name for row in known if row.archived_at_ms is None)}.",
        now="`headwater organizations list` shows them with their ids.",
    )


def active_organization(administration: Administration, text: str | None) -> OrganizationRow:
    """The same, unless it is archived. Raises OperatorError."""
    found = organization(administration, text)
    if found.archived_at_ms is not None:
        raise OperatorError(f"The organization {found.name!r} ({found.id}) is archived.", now="Choose another one.")
    return found


def project(administration: Administration, text: str, organization_text: str | None = None) -> ProjectRow:
    """The project of this name or id; organization_text: where to look for a name that several have. Raises OperatorError."""
    owner = None if organization_text is None else organization(administration, organization_text)
    found = administration.read(lambda reader: admin_store.find_projects(reader, text))
    found = [row for row in found if owner is None or row.organization_id == owner.id]
    if len(found) > 1:
        active = [row for row in found if row.archived_at_ms is None]
        found = active if len(active) == 1 else found
    if len(found) == 1:
        return found[0]
    now_ms = administration.now_ms
    names = {row.id: row.name for row in administration.read(lambda r: admin_store.read_organizations(r, now_ms))}
    if found:
        raise OperatorError(
            f"There are {len(found)} projects {text!r}.",
            why=f"They are: {listed(f'{row.id} of {names[row.organization_id]!r}' for row in found)}.",
            now="Say which by its id, or name its organization with --organization.",
        )
    known = [
        row
        for row in administration.read(admin_store.read_projects)
        if row.archived_at_ms is None and (owner is None or row.organization_id == owner.id)
    ]
    of = "" if owner is None else f" in organization {owner.name!r}"
    shown = listed(f"{row.name} (of {names[row.organization_id]})" for row in known) or "none"
    raise OperatorError(
        f"There is no project {text!r}{of}.",
        why=f"There are: {shown}.",
        now="`headwater projects list` shows them with their ids.",
    )


def active_project(administration: Administration, text: str, organization_text: str | None = None) -> ProjectRow:
    """The same, unless it is archived. Raises OperatorError."""
    found = project(administration, text, organization_text)
    if found.archived_at_ms is not None:
        raise OperatorError(f"The project {found.name!r} ({found.id}) is archived.", now="Choose another one.")
    return found


def key(administration: Administration, text: str) -> KeyRow:
    """The key of this id or name; of several with one name the one that is not revoked. Raises OperatorError."""
    found = administration.read(lambda reader: admin_store.find_keys(reader, text))
    if len(found) > 1:
        active = [row for row in found if row.revoked_at_ms is None]
        found = active if len(active) == 1 else found
    if len(found) == 1:
        return found[0]
    if found:
        raise OperatorError(
            f"There are {len(found)} keys {text!r}.",
            why=f"They are: {listed(f'{row.id} (begins with {row.hint}…)' for row in found)}.",
            now="Say which by its id.",
        )
    newest = administration.read(lambda reader: admin_store.read_newest_keys(reader, LISTED_MAX))
    raise OperatorError(
        f"There is no key {text!r}.",
        why=f"The newest are: {listed(f'{row.id} ({row.name})' for row in newest) or 'none'}.",
        now="`headwater keys list` shows the ids.",
    )
