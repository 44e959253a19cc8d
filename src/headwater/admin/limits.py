"""Rate limits as an operator handles them: how often, and how much, an organization, project, key or model may be asked."""

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from headwater.admin import finding
from headwater.admin.administration import Administration, Verb
from headwater.errors import OperatorError
from headwater.ids import LIMIT, new_id
from headwater.ledger import admin_store, limit_store
from headwater.ledger.limit_store import LIMITS, LimitRow, LimitScope
from headwater.ledger.store import Connection, Write
from headwater.settings.problems import did_you_mean

NUMBER_MAX: Final = 10**15
"""Beyond what anybody serves in a day; sums of so many stay far below 63 bits."""


class Numbers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a limit limits: UNSET leaves it as it is (in a new limit: not limited), None lifts it."""

    requests_per_minute: int | UnsetType | None = UNSET
    requests_per_hour: int | UnsetType | None = UNSET
    requests_per_day: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    tokens_per_hour: int | UnsetType | None = UNSET
    tokens_per_day: int | UnsetType | None = UNSET
    concurrency_max: int | UnsetType | None = UNSET


class CreateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for a limit. Of project and key at most one is set; names or ids. organization says where to look for a project.

    model: only requests to it count; with nothing else set, the model itself is limited, for everybody together.
    """

    numbers: Numbers
    organization: str | None = None
    project: str | None = None
    key: str | None = None
    model: str | None = None


class ListLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see every limit, or those of one organization; with_archived: also those that limit nothing any more."""

    organization: str | None = None
    with_archived: bool = False


class ShowLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see one."""

    id: str


class UpdateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to change one."""

    id: str
    numbers: Numbers


class ArchiveLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to lift one."""

    id: str


class LimitView(msgspec.Struct, frozen=True):
    """A limit as people see it. organization: None for a model's, which everybody shares. scope_name: of what is limited."""

    id: str
    organization_id: str | None
    organization: str | None
    scope: LimitScope
    scope_id: str
    scope_name: str
    model: str | None
    requests_per_minute: int | None
    requests_per_hour: int | None
    requests_per_day: int | None
    tokens_per_minute: int | None
    tokens_per_hour: int | None
    tokens_per_day: int | None
    concurrency_max: int | None
    created_at_ms: int
    archived_at_ms: int | None


def _create(administration: Administration, wish: CreateLimit) -> LimitView:
    """Limit it from now on; requests that were admitted before don't count."""
    organization_id, scope, scope_id = _scope(administration, wish)
    model = None if scope == "model" else wish.model
    none = [None] * len(LIMITS)
    row = LimitRow._make((new_id(LIMIT), organization_id, scope, scope_id, model, *none, administration.now_ms, None))
    row = _with(row, wish.numbers)
    detail = {name: value for name, value in row._asdict().items() if name not in ("id", "created_at_ms")}
    administration.write(
        [limit_store.insert_limit(row), administration.change("limit", row.id, "create", **_without_none(detail))]
    )
    if administration.live is not None:
        administration.live.set_limit(row)
    return _view_of(administration, row.id)


def _list(administration: Administration, wish: ListLimits) -> list[LimitView]:
    owner = None if wish.organization is None else finding.organization(administration, wish.organization)
    rows = administration.read(lambda reader: limit_store.read_limits(reader, with_archived=wish.with_archived))
    return _views(administration, [row for row in rows if owner is None or row.organization_id == owner.id])


def _show(administration: Administration, wish: ShowLimit) -> LimitView:
    return _view_of(administration, wish.id)


def _update(administration: Administration, wish: UpdateLimit) -> LimitView:
    """Limit otherwise from now on; what windows under way have used stays used."""
    found = _found(administration, wish.id)
    if found.archived_at_ms is not None:
        raise OperatorError(f"The limit {wish.id} is archived.", now="Create a new one.")
    changed = _with(found, wish.numbers)
    if changed != found:
        detail = {name: getattr(changed, name) for name in LIMITS if getattr(changed, name) != getattr(found, name)}
        administration.write(
            [limit_store.update_limit(changed), administration.change("limit", found.id, "update", **detail)]
        )
        if administration.live is not None:
            administration.live.set_limit(changed)
    return _view_of(administration, wish.id)


def _archive(administration: Administration, wish: ArchiveLimit) -> LimitView:
    """Lift it: nothing more is refused by it. Archiving twice keeps the first time."""
    found = _found(administration, wish.id)
    if found.archived_at_ms is None:
        administration.write(
            [
                Write(limit_store.ARCHIVE_LIMIT, (wish.id, administration.now_ms)),
                administration.change("limit", wish.id, "archive"),
            ]
        )
        if administration.live is not None:
            administration.live.drop_limit(found)
    return _view_of(administration, wish.id)


def _scope(administration: Administration, wish: CreateLimit) -> tuple[str | None, LimitScope, str]:
    """(organization id, scope, scope id) of what is to be limited."""
    if wish.model is not None and wish.model not in administration.model_names:
        raise OperatorError(
            f"There is no model {wish.model!r} to limit.{did_you_mean(wish.model, administration.model_names)}",
            why=f"Configured are: {finding.listed(administration.model_names) or 'none'}.",
            now="Check the name, or configure the model first.",
        )
    if wish.project is not None and wish.key is not None:
        raise OperatorError(
            "A limit is one thing's: an organization's, a project's, a key's or a model's.",
            now="Create one limit for each; a request is held to all that apply.",
        )
    if wish.project is not None:
        project = finding.active_project(administration, wish.project, wish.organization)
        return project.organization_id, "project", project.id
    if wish.key is not None:
        key = finding.key(administration, wish.key)
        if key.revoked_at_ms is not None:
            raise OperatorError(f"The key {key.id} ({key.name}) is revoked.", now="Choose another one.")
        return key.organization_id, "key", key.id
    if wish.organization is not None:
        owner = finding.active_organization(administration, wish.organization)
        return owner.id, "organization", owner.id
    if wish.model is not None:
        return None, "model", wish.model
    raise OperatorError(
        "What is to be limited isn't said.",
        now="Name an organization (--organization default), a project (--project), a key (--key) or a model (--model).",
    )


def _with(row: LimitRow, wished: Numbers) -> LimitRow:
    """The limit with these numbers in place of its own. Raises OperatorError for numbers that can't be."""
    given = {name: getattr(wished, name) for name in LIMITS}
    merged = {name: getattr(row, name) if value is UNSET else value for name, value in given.items()}
    numbers = _without_none(merged)
    if not numbers:
        raise OperatorError(
            "The limit would limit nothing.",
            now="Give at least one number, such as --tokens-per-minute 10000; `headwater limits archive` lifts a limit.",
        )
    for name, number in numbers.items():
        if not 1 <= number <= NUMBER_MAX:
            raise OperatorError(
                f"--{name.replace('_', '-')} is a whole number of at least 1 and at most {NUMBER_MAX}; given: {number}.",
                now="To shut a key out, revoke it.",
            )
    return LimitRow._make((*row[:5], *merged.values(), *row[12:]))


def _without_none(facts: dict[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in facts.items() if value is not None}


def _found(administration: Administration, limit_id: str) -> LimitRow:
    found = administration.read(lambda reader: limit_store.find_limit(reader, limit_id))
    if found is None:
        known = administration.read(limit_store.read_limits)
        raise OperatorError(
            f"There is no limit {limit_id!r}.",
            why=f"There are: {finding.listed(row.id for row in known) or 'none'}.",
            now="`headwater limits list` shows the ids.",
        )
    return found


def _view_of(administration: Administration, limit_id: str) -> LimitView:
    return _views(administration, [_found(administration, limit_id)])[0]


def _views(administration: Administration, rows: list[LimitRow]) -> list[LimitView]:
    now_ms = administration.now_ms

    def look(reader: Connection) -> list[LimitView]:
        owners = {row.id: row.name for row in admin_store.read_organizations(reader, now_ms)}
        projects = {row.id: row.name for row in admin_store.read_projects(reader)}
        return [
            LimitView(
                organization=None if row.organization_id is None else owners[row.organization_id],
                scope_name=_scope_name(reader, row, owners, projects),
                **row._asdict(),
            )
            for row in rows
        ]

    return administration.read(look)


def _scope_name(reader: Connection, row: LimitRow, owners: dict[str, str], projects: dict[str, str]) -> str:
    match row.scope:
        case "organization":
            return owners[row.scope_id]
        case "project":
            return projects[row.scope_id]
        case "key":
            return admin_store.find_keys(reader, row.scope_id)[0].name
        case "model":
            return row.scope_id


CREATE = Verb("limits.create", CreateLimit, LimitView, _create)
LIST = Verb("limits.list", ListLimits, list[LimitView], _list)
SHOW = Verb("limits.show", ShowLimit, LimitView, _show)
UPDATE = Verb("limits.update", UpdateLimit, LimitView, _update)
ARCHIVE = Verb("limits.archive", ArchiveLimit, LimitView, _archive)
VERBS = (CREATE, LIST, SHOW, UPDATE, ARCHIVE)
