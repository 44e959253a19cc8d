"""Budgets as an operator handles them: at most so much, by an organization, project, key or tag, in each period."""

import json
import re
from collections import Counter
from typing import Final, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec
from msgspec import UNSET, UnsetType

from headwater.admin import finding
from headwater.admin.administration import Administration, Verb
from headwater.admin.checks import amount_nanos
from headwater.errors import OperatorError
from headwater.ids import BUDGET, new_id
from headwater.ledger import admin_store
from headwater.ledger.admin_store import BudgetRow
from headwater.ledger.periods import BudgetTerms, PeriodKind, ScopeKind, period_at
from headwater.ledger.store import Connection, Write
from headwater.settings.problems import did_you_mean

THRESHOLDS_DEFAULT: Final = (80, 100)
PERIOD_DAYS_MAX: Final = 3660
_TAG = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class CreateBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for a budget. limit: decimal string of the organization's currency; period_days: of a custom period.

    Of project, key and tag at most one is set, else the organization is capped; names or ids. organization says where
    to look for a project's name, and is the tag's.
    """

    limit: str
    period: PeriodKind
    organization: str | None = None
    project: str | None = None
    key: str | None = None
    tag: str | None = None
    period_days: int | None = None
    time_zone: str = "UTC"
    thresholds: list[int] = msgspec.field(default_factory=lambda: [*THRESHOLDS_DEFAULT])


class ListBudgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see every budget, or those of one organization; with_archived: also those that cap nothing any more."""

    organization: str | None = None
    with_archived: bool = False


class ShowBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see one."""

    id: str


class UpdateBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to change one; what isn't set stays."""

    id: str
    limit: str | UnsetType = UNSET
    thresholds: list[int] | UnsetType = UNSET


class ArchiveBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to lift one."""

    id: str


class BudgetView(msgspec.Struct, frozen=True):
    """A budget as people see it, with what the period that runs has spent and what open requests hold.

    scope_name: the name of what is capped. Amounts are nano-units of currency. resets_at_ms None: the period never ends.
    """

    id: str
    organization_id: str
    organization: str
    scope: ScopeKind
    scope_id: str
    scope_name: str
    currency: str
    limit_nanos: int
    spent_nanos: int
    held_nanos: int
    remaining_nanos: int
    period: PeriodKind
    period_days: int | None
    period_key: str
    time_zone: str
    starts_at_ms: int
    resets_at_ms: int | None
    thresholds: list[int]
    created_at_ms: int
    archived_at_ms: int | None


def _create(administration: Administration, wish: CreateBudget) -> BudgetView:
    """Cap what is spent from now on; requests that were admitted before don't count."""
    organization_id, scope, scope_id = _scope(administration, wish)
    now_ms = administration.now_ms
    if wish.period not in get_args(PeriodKind):
        raise OperatorError(f"{wish.period!r} is no period.", now=f"Choose one of {', '.join(get_args(PeriodKind))}.")
    if (wish.period == "custom") != (wish.period_days is not None):
        raise OperatorError(
            "A custom period has a number of days, and no other period has one.",
            now="Say --per custom --days 14, or leave --days out.",
        )
    if wish.period_days is not None and not 1 <= wish.period_days <= PERIOD_DAYS_MAX:
        raise OperatorError(f"A custom period has 1 to {PERIOD_DAYS_MAX} days; given: {wish.period_days}.")
    check_zone(wish.time_zone)
    terms = BudgetTerms(
        id=new_id(BUDGET),
        organization_id=organization_id,
        scope=scope,
        scope_id=scope_id,
        limit_nanos=amount_nanos("A limit", wish.limit),
        period=wish.period,
        period_days=wish.period_days,
        anchor_ms=now_ms,
        time_zone=wish.time_zone,
        thresholds=_thresholds(wish.thresholds),
    )
    detail = {name: value for name, value in terms._asdict().items() if name != "id"}
    administration.write(
        [
            admin_store.budget_write(terms, now_ms),
            administration.change("budget", terms.id, "create", **detail),
        ]
    )
    if administration.live is not None:
        administration.live.set_budget(terms)
    return _view_of(administration, terms.id)


def _list(administration: Administration, wish: ListBudgets) -> list[BudgetView]:
    owner = None if wish.organization is None else finding.organization(administration, wish.organization)
    rows = [
        row
        for row in administration.read(admin_store.read_budgets)
        if (owner is None or row.terms.organization_id == owner.id)
        and (wish.with_archived or row.archived_at_ms is None)
    ]
    return _views(administration, rows)


def _show(administration: Administration, wish: ShowBudget) -> BudgetView:
    return _view_of(administration, wish.id)


def _update(administration: Administration, wish: UpdateBudget) -> BudgetView:
    """Another limit or other thresholds from now on; what was spent stays spent, also above a limit that was lowered."""
    found = _found(administration, wish.id)
    if found.archived_at_ms is not None:
        raise OperatorError(f"The budget {wish.id} is archived.", now="Create a new one.")
    terms = found.terms
    if wish.limit is not UNSET:
        terms = terms._replace(limit_nanos=amount_nanos("A limit", wish.limit))
    if wish.thresholds is not UNSET:
        terms = terms._replace(thresholds=_thresholds(wish.thresholds))
    if terms != found.terms:
        detail = {
            name: getattr(terms, name)
            for name in ("limit_nanos", "thresholds")
            if getattr(terms, name) != getattr(found.terms, name)
        }
        administration.write(
            [
                Write(admin_store.UPDATE_BUDGET, (terms.id, terms.limit_nanos, json.dumps(terms.thresholds))),
                administration.change("budget", terms.id, "update", **detail),
            ]
        )
        if administration.live is not None:
            administration.live.set_budget(terms)
    return _view_of(administration, wish.id)


def _archive(administration: Administration, wish: ArchiveBudget) -> BudgetView:
    """Lift it: nothing more is held under it. Archiving twice keeps the first time."""
    found = _found(administration, wish.id)
    if found.archived_at_ms is None:
        administration.write(
            [
                Write(admin_store.ARCHIVE_BUDGET, (wish.id, administration.now_ms)),
                administration.change("budget", wish.id, "archive"),
            ]
        )
        if administration.live is not None:
            administration.live.drop_budget(found.terms)
    return _view_of(administration, wish.id)


def check_zone(name: str) -> None:
    """Refuse what is no time zone on this machine. Raises OperatorError."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        known = available_timezones()
        if not known:
            raise OperatorError(
                f"The time zone {name!r} can't be looked up.",
                why="This machine has no files of time zones.",
                now="Install them (`pip install tzdata`, or the system's tzdata package).",
            ) from error
        raise OperatorError(
            f"There is no time zone {name[:80]!r}.{did_you_mean(name, known)}",
            now="Give a name of the IANA list, such as Asia/Shanghai, Europe/Berlin or UTC.",
        ) from error


def _scope(administration: Administration, wish: CreateBudget) -> tuple[str, ScopeKind, str]:
    """(organization id, scope, scope id) of what is to be capped."""
    if sum(one is not None for one in (wish.project, wish.key, wish.tag)) > 1:
        raise OperatorError(
            "A budget caps one thing: an organization, a project, a key or a tag.",
            now="Create one budget for each; a request is held under all that apply.",
        )
    if wish.project is not None:
        project = finding.active_project(administration, wish.project, wish.organization)
        return project.organization_id, "project", project.id
    if wish.key is not None:
        key = finding.key(administration, wish.key)
        if key.revoked_at_ms is not None:
            raise OperatorError(f"The key {key.id} ({key.name}) is revoked.", now="Choose another one.")
        return key.organization_id, "key", key.id
    if wish.organization is None:
        raise OperatorError(
            "What the budget caps isn't said." if wish.tag is None else f"Whose tag {wish.tag!r} is isn't said.",
            why="A tag belongs to an organization." if wish.tag is not None else "",
            now="Name an organization (--organization default), a project (--project), a key (--key), or a tag with "
            "its organization (--tag, --organization).",
        )
    owner = finding.active_organization(administration, wish.organization)
    if wish.tag is None:
        return owner.id, "organization", owner.id
    if not _TAG.fullmatch(wish.tag):
        raise OperatorError(
            f"{wish.tag[:80]!r} can't be a tag.",
            now="A tag has 1 to 64 letters, digits, `.`, `_`, `:` or `-`, as the header x-headwater-tags takes it.",
        )
    return owner.id, "tag", wish.tag


def _thresholds(percents: list[int]) -> tuple[int, ...]:
    if not all(1 <= percent <= 100 for percent in percents):
        raise OperatorError(
            f"Thresholds are percentages of the limit, 1 to 100; given: {finding.listed(map(str, percents))}."
        )
    return tuple(sorted(set(percents)))


def _found(administration: Administration, budget_id: str) -> BudgetRow:
    found = administration.read(lambda reader: admin_store.find_budget(reader, budget_id))
    if found is None:
        known = administration.read(admin_store.read_budgets)
        shown = finding.listed(row.terms.id for row in known if row.archived_at_ms is None)
        raise OperatorError(
            f"There is no budget {budget_id!r}.",
            why=f"There are: {shown or 'none'}.",
            now="`headwater budgets list` shows the ids.",
        )
    return found


def _view_of(administration: Administration, budget_id: str) -> BudgetView:
    return _views(administration, [_found(administration, budget_id)])[0]


def _views(administration: Administration, rows: list[BudgetRow]) -> list[BudgetView]:
    now_ms = administration.now_ms

    def look(reader: Connection) -> list[BudgetView]:
        owners = {row.id: row for row in admin_store.read_organizations(reader, now_ms)}
        names = {row.id: row.name for row in admin_store.read_projects(reader)}
        held = admin_store.read_held(reader)
        views = []
        for row in rows:
            owner = owners[row.terms.organization_id]
            currency = owner.currency or administration.currency
            views.append(
                _view(reader, row, now_ms, owner.name, _scope_name(reader, row, owner.name, names), currency, held)
            )
        return views

    return administration.read(look)


def _scope_name(reader: Connection, row: BudgetRow, organization: str, projects: dict[str, str]) -> str:
    match row.terms.scope:
        case "organization":
            return organization
        case "project":
            return projects[row.terms.scope_id]
        case "key":
            return admin_store.find_keys(reader, row.terms.scope_id)[0].name
        case "tag":
            return row.terms.scope_id


def _view(
    reader: Connection,
    row: BudgetRow,
    now_ms: int,
    organization: str,
    scope_name: str,
    currency: str,
    held: Counter[tuple[str, str]],
) -> BudgetView:
    terms = row.terms
    period = period_at(terms, now_ms)
    spent_nanos = admin_store.read_spent(reader, terms.id, period.key)
    held_nanos = held[terms.id, period.key]
    return BudgetView(
        id=terms.id,
        organization_id=terms.organization_id,
        organization=organization,
        scope=terms.scope,
        scope_id=terms.scope_id,
        scope_name=scope_name,
        currency=currency,
        limit_nanos=terms.limit_nanos,
        spent_nanos=spent_nanos,
        held_nanos=held_nanos,
        remaining_nanos=max(0, terms.limit_nanos - spent_nanos - held_nanos),
        period=terms.period,
        period_days=terms.period_days,
        period_key=period.key,
        time_zone=terms.time_zone,
        starts_at_ms=period.starts_ms,
        resets_at_ms=period.ends_ms,
        thresholds=[*terms.thresholds],
        created_at_ms=row.created_at_ms,
        archived_at_ms=row.archived_at_ms,
    )


CREATE = Verb("budgets.create", CreateBudget, BudgetView, _create)
LIST = Verb("budgets.list", ListBudgets, list[BudgetView], _list)
SHOW = Verb("budgets.show", ShowBudget, BudgetView, _show)
UPDATE = Verb("budgets.update", UpdateBudget, BudgetView, _update)
ARCHIVE = Verb("budgets.archive", ArchiveBudget, BudgetView, _archive)
VERBS = (CREATE, LIST, SHOW, UPDATE, ARCHIVE)
