"""All SQL of administration, named and fixed: what an operator changes, and what is shown of it.

Statements are written through the one writer (`writer.py`) and rank after those of `store.py`; readers take any reading
connection. Money that an operator moves is written by `batch.Batch`, like all other money.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from headwater.ledger import store
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.rows import KeyRow
from headwater.ledger.store import Connection, Statement, Write


class OrganizationRow(NamedTuple):
    """One organization and what its accounts say. currency None: the platform's.

    wallet_nanos: below 0 is owed; what open requests hold (held_nanos) is out of it.
    credit_nanos: what is left of grants in force.
    """

    id: str
    name: str
    created_at_ms: int
    currency: str | None
    is_prepaid: bool
    archived_at_ms: int | None
    wallet_nanos: int
    held_nanos: int
    credit_nanos: int
    weight: int = 1


class ProjectRow(NamedTuple):
    """One project. is_storage_allowed: whether answers may be kept for idempotency keys."""

    id: str
    organization_id: str
    name: str
    created_at_ms: int
    is_storage_allowed: bool
    archived_at_ms: int | None


class BudgetRow(NamedTuple):
    """One budget: its terms and its life."""

    terms: BudgetTerms
    created_at_ms: int
    archived_at_ms: int | None


class GrantRow(NamedTuple):
    """One grant and what is left of it; what open requests hold of it is still in remaining_nanos."""

    id: str
    organization_id: str
    amount_nanos: int
    expires_at_ms: int | None
    note: str | None
    created_at_ms: int
    revoked_at_ms: int | None
    remaining_nanos: int


class ChangeRow(NamedTuple):
    """What an operator changed; detail: a JSON object."""

    at_ms: int
    noun: str
    object_id: str
    verb: str
    detail: str


BUDGET_COLUMNS = (*BudgetTerms._fields, "created_at_ms", "archived_at_ms")
_GRANT_COLUMNS = GrantRow._fields[:-1]


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 names are ours


UPDATE_ORGANIZATION = Statement(
    "update_organization", 100, "UPDATE organizations SET name = ?2, currency = ?3, is_prepaid = ?4 WHERE id = ?1"
)
# Archiving or revoking twice keeps the first time: the moment from which nothing was possible any more.
ARCHIVE_ORGANIZATION = Statement(
    "archive_organization",
    101,
    "UPDATE organizations SET archived_at_ms = ?2 WHERE id = ?1 AND archived_at_ms IS NULL",
)
UPDATE_PROJECT = Statement(
    "update_project", 102, "UPDATE projects SET name = ?2, is_storage_allowed = ?3 WHERE id = ?1"
)
ARCHIVE_PROJECT = Statement(
    "archive_project", 103, "UPDATE projects SET archived_at_ms = ?2 WHERE id = ?1 AND archived_at_ms IS NULL"
)
UPDATE_KEY = Statement(
    "update_key", 104, "UPDATE api_keys SET name = ?2, allowed_models = ?3, expires_at_ms = ?4 WHERE id = ?1"
)
INSERT_BUDGET = Statement("insert_budget", 105, _insert("budgets", BUDGET_COLUMNS))
UPDATE_BUDGET = Statement(
    "update_budget",
    106,
    "UPDATE budgets SET limit_nanos = ?2, thresholds = ?3 WHERE id = ?1 AND archived_at_ms IS NULL",
)
ARCHIVE_BUDGET = Statement(
    "archive_budget", 107, "UPDATE budgets SET archived_at_ms = ?2 WHERE id = ?1 AND archived_at_ms IS NULL"
)
INSERT_GRANT = Statement("insert_grant", 108, _insert("grants", _GRANT_COLUMNS))
INSERT_LOT = Statement("insert_lot", 109, _insert("grant_lots", ("grant_id", "remaining_nanos")))
UPDATE_GRANT = Statement("update_grant", 110, "UPDATE grants SET note = ?2 WHERE id = ?1")
REVOKE_GRANT = Statement(
    "revoke_grant", 111, "UPDATE grants SET revoked_at_ms = ?2 WHERE id = ?1 AND revoked_at_ms IS NULL"
)
INSERT_CHANGE = Statement("insert_change", 112, _insert("changes", ChangeRow._fields))

SELECT_ORGANIZATIONS = (
    "SELECT o.id, o.name, o.created_at_ms, o.currency, o.is_prepaid, o.archived_at_ms,"
    " coalesce((SELECT balance_nanos FROM balances WHERE account = 'wallet/' || o.id), 0),"
    " coalesce((SELECT balance_nanos FROM balances WHERE account = 'held/' || o.id), 0),"
    " coalesce((SELECT sum(l.remaining_nanos) FROM grants g JOIN grant_lots l ON l.grant_id = g.id"
    "  WHERE g.organization_id = o.id AND g.revoked_at_ms IS NULL"
    "  AND (g.expires_at_ms IS NULL OR g.expires_at_ms > ?1)), 0), o.weight"
    " FROM organizations o"
)
SELECT_ORGANIZATIONS_ALL = f"{SELECT_ORGANIZATIONS} ORDER BY o.id"
SELECT_ORGANIZATION = f"{SELECT_ORGANIZATIONS} WHERE o.id = ?2 OR o.name = ?2"
_PROJECTS = f"SELECT {', '.join(ProjectRow._fields)} FROM projects"  # noqa: S608
SELECT_PROJECTS_ALL = f"{_PROJECTS} ORDER BY id"
SELECT_PROJECTS = f"{_PROJECTS} WHERE id = ?1 OR name = ?1 ORDER BY id"
_KEYS = f"SELECT {', '.join(KeyRow._fields)} FROM api_keys"  # noqa: S608
SELECT_KEYS_FOUND = f"{_KEYS} WHERE id = ?1 OR name = ?1 ORDER BY id"
SELECT_KEYS_OF = f"{_KEYS} WHERE organization_id = ?1 AND (?2 IS NULL OR project_id = ?2) ORDER BY id"
SELECT_KEYS_NEWEST = f"{_KEYS} WHERE revoked_at_ms IS NULL ORDER BY id DESC LIMIT ?"
_BUDGETS = f"SELECT {', '.join(BUDGET_COLUMNS)} FROM budgets"  # noqa: S608
SELECT_BUDGETS_ALL = f"{_BUDGETS} ORDER BY id"
SELECT_BUDGET = f"{_BUDGETS} WHERE id = ?"
SELECT_SPENT = "SELECT spent_nanos FROM budget_periods WHERE budget_id = ? AND period = ?"
_GRANTS = (
    f"SELECT {', '.join(f'g.{name}' for name in _GRANT_COLUMNS)}, l.remaining_nanos"  # noqa: S608
    " FROM grants g JOIN grant_lots l ON l.grant_id = g.id"
)
SELECT_GRANTS_ALL = f"{_GRANTS} ORDER BY g.id"
SELECT_GRANT = f"{_GRANTS} WHERE g.id = ?"
SELECT_BALANCES = "SELECT account, balance_nanos FROM balances WHERE account IN (?, ?, ?)"
SELECT_CHANGES = f"SELECT {', '.join(ChangeRow._fields)} FROM changes ORDER BY id"  # noqa: S608


def budget_write(terms: BudgetTerms, created_at_ms: int) -> Write:
    """The row of a new budget."""
    return Write(INSERT_BUDGET, (*terms[:-1], json.dumps(terms.thresholds), created_at_ms, None))


def read_organizations(connection: Connection, now_ms: int) -> list[OrganizationRow]:
    """Every organization, oldest first. now_ms: a grant that has expired by then is no credit."""
    return [_organization(row) for row in connection.execute(SELECT_ORGANIZATIONS_ALL, (now_ms,))]


def find_organization(connection: Connection, text: str, now_ms: int) -> OrganizationRow | None:
    """The organization with this id or name."""
    row = connection.execute(SELECT_ORGANIZATION, (now_ms, text)).fetchone()
    return None if row is None else _organization(row)


def _organization(row: tuple[Any, ...]) -> OrganizationRow:
    return OrganizationRow(*row)._replace(is_prepaid=bool(row[4]))


def read_projects(connection: Connection) -> list[ProjectRow]:
    """Every project, oldest first."""
    return _projects(connection.execute(SELECT_PROJECTS_ALL))


def find_projects(connection: Connection, text: str) -> list[ProjectRow]:
    """The projects with this id or name; each organization has at most one of a name."""
    return _projects(connection.execute(SELECT_PROJECTS, (text,)))


def _projects(rows: Iterable[tuple[Any, ...]]) -> list[ProjectRow]:
    return [ProjectRow(*row)._replace(is_storage_allowed=bool(row[4])) for row in rows]


def find_keys(connection: Connection, text: str) -> list[KeyRow]:
    """The keys with this id or name, oldest first; names need not differ."""
    return [KeyRow(*row) for row in connection.execute(SELECT_KEYS_FOUND, (text,))]


def read_newest_keys(connection: Connection, count_max: int) -> list[KeyRow]:
    """The keys made last that aren't revoked, newest first."""
    return [KeyRow(*row) for row in connection.execute(SELECT_KEYS_NEWEST, (count_max,))]


def read_keys_of(connection: Connection, organization_id: str, project_id: str | None = None) -> list[KeyRow]:
    """The keys of an organization, or of one of its projects, oldest first."""
    return [KeyRow(*row) for row in connection.execute(SELECT_KEYS_OF, (organization_id, project_id))]


def read_budgets(connection: Connection) -> list[BudgetRow]:
    """Every budget, oldest first, archived ones too."""
    return [_budget(row) for row in connection.execute(SELECT_BUDGETS_ALL)]


def find_budget(connection: Connection, budget_id: str) -> BudgetRow | None:
    """The budget with this id."""
    row = connection.execute(SELECT_BUDGET, (budget_id,)).fetchone()
    return None if row is None else _budget(row)


def _budget(row: Any) -> BudgetRow:
    *terms, thresholds, created_at_ms, archived_at_ms = row
    return BudgetRow(BudgetTerms._make([*terms, tuple(json.loads(thresholds))]), created_at_ms, archived_at_ms)


def read_spent(connection: Connection, budget_id: str, period: str) -> int:
    """What a budget has spent in one of its periods."""
    row = connection.execute(SELECT_SPENT, (budget_id, period)).fetchone()
    return 0 if row is None else int(row[0])


def read_held(connection: Connection) -> Counter[tuple[str, str]]:
    """What open requests hold, by (budget id, period key) and by (grant id, "")."""
    held: Counter[tuple[str, str]] = Counter()
    open_from = store.read_state(connection, store.OPEN_FROM) or 0
    for reservation, _, is_expired in store.read_open_reservations(connection, open_from):
        if is_expired:
            continue
        for budget_id, period in json.loads(reservation.budgets or "[]"):
            held[budget_id, period] += reservation.amount_nanos
        for grant_id, nanos in json.loads(reservation.lots or "[]"):
            held[grant_id, ""] += nanos
    return held


def read_grants(connection: Connection) -> list[GrantRow]:
    """Every grant, oldest first, spent, expired and revoked ones too."""
    return [GrantRow(*row) for row in connection.execute(SELECT_GRANTS_ALL)]


def find_grant(connection: Connection, grant_id: str) -> GrantRow | None:
    """The grant with this id."""
    row = connection.execute(SELECT_GRANT, (grant_id,)).fetchone()
    return None if row is None else GrantRow(*row)


def read_balances(connection: Connection, accounts: tuple[str, str, str]) -> tuple[int, int, int]:
    """What three accounts hold at one moment, in nano-units; one that was never used holds nothing."""
    found = dict(connection.execute(SELECT_BALANCES, accounts).fetchall())
    first, second, third = (found.get(account, 0) for account in accounts)
    return first, second, third


def read_changes(connection: Connection) -> list[ChangeRow]:
    """Everything operators changed, oldest first."""
    return [ChangeRow(*row) for row in connection.execute(SELECT_CHANGES)]
