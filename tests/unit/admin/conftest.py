import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from headwater.admin import organizations, projects
from headwater.admin.administration import Administration
from headwater.admin.books import Books, open_books
from headwater.ledger.admin_store import read_changes
from headwater.ledger.limit_store import LimitRow
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.store import PriceVersion

MODELS = ["qwen", "acme/large", "acme/small"]


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1_000.0  # 1970-01-01T00:16:40Z

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a freshly migrated database."""
    path = tmp_path_factory.mktemp("empty") / "headwater.db"
    ensure_schema(path)
    return path.read_bytes()


@pytest.fixture
def books(short_path: Path, clock: Clock, empty: bytes) -> Iterator[Books]:
    (short_path / "headwater.db").write_bytes(empty)  # a migration of its own would cost half a second
    fatal: list[BaseException] = []
    books = open_books(short_path / "headwater.db", clock=clock, on_fatal=fatal.append)
    yield books
    books.close()
    assert not fatal


class RunningPlatform:
    """Stands where a running platform does: notes what it is told, and what was on the disk by then."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self.told: list[tuple[Any, ...]] = []
        self.changes_seen: list[int] = []
        self.free_nanos = 0

    def _note(self, *told: Any) -> None:
        count: int = self._books.read(lambda reader: reader.execute("SELECT count(*) FROM changes").fetchone()[0])
        self.changes_seen.append(count)
        self.told.append(told)

    def forget_key(self, key_hash: bytes) -> None:
        self._note("forget_key", key_hash)

    def forget_project(self, project_id: str) -> None:
        self._note("forget_project", project_id)

    def set_organization(self, organization_id: str, *, is_prepaid: bool, currency: str | None) -> None:
        self._note("set_organization", organization_id, is_prepaid, currency)

    def add_grant(self, grant_id: str, organization_id: str, amount_nanos: int, expires_at_ms: int | None) -> None:
        self._note("add_grant", grant_id, organization_id, amount_nanos, expires_at_ms)

    def revoke_grant(self, organization_id: str, grant_id: str) -> int:
        self._note("revoke_grant", organization_id, grant_id)
        return self.free_nanos

    def set_budget(self, terms: BudgetTerms) -> None:
        self._note("set_budget", terms)

    def drop_budget(self, terms: BudgetTerms) -> None:
        self._note("drop_budget", terms)

    def set_limit(self, limit: LimitRow) -> None:
        self._note("set_limit", limit)

    def drop_limit(self, limit: LimitRow) -> None:
        self._note("drop_limit", limit)

    def weigh_organization(self, organization_id: str, weight: int) -> None:
        self._note("weigh_organization", organization_id, weight)

    def weigh_key(self, key_id: str, weight: int) -> None:
        self._note("weigh_key", key_id, weight)

    def set_prices(self, versions: Sequence[PriceVersion]) -> None:
        self._note("set_prices", [version.price.id for version in versions])


@pytest.fixture
def live(books: Books) -> RunningPlatform:
    return RunningPlatform(books)


@pytest.fixture
def administration(books: Books, clock: Clock, live: RunningPlatform) -> Administration:
    """Of a running platform."""
    return Administration(
        books,
        clock=clock,
        model_names=MODELS,
        priced_in_file=[("price", "acme/small"), ("cost", "acme/small")],
        live=live,
    )


@pytest.fixture
def at_rest(books: Books, clock: Clock) -> Administration:
    """Of a platform that doesn't run."""
    return Administration(books, clock=clock, model_names=MODELS)


@pytest.fixture
def acme(at_rest: Administration) -> organizations.OrganizationView:
    """A second organization."""
    return at_rest.perform(organizations.CREATE, organizations.CreateOrganization("acme"))


@pytest.fixture
def search(at_rest: Administration, acme: organizations.OrganizationView) -> projects.ProjectView:
    """A project of it."""
    return at_rest.perform(projects.CREATE, projects.CreateProject("search", "acme"))


def last_change(administration: Administration) -> tuple[str, str, str, dict[str, Any]]:
    """(noun, object id, verb, detail) of the newest change."""
    row = administration.read(read_changes)[-1]
    return row.noun, row.object_id, row.verb, json.loads(row.detail)


def changes_count(administration: Administration) -> int:
    """How many changes there were."""
    return len(administration.read(read_changes))
