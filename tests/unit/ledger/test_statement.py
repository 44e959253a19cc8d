"""A statement's opening balance and movements are its closing balance, which is what the books say."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headwater.ledger.archive import Archiver
from headwater.ledger.statement import By, Line, Organization, Statement, find_organization, read_statement
from headwater.ledger.store import Connection, open_reader, open_writer
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger import books
from tests.unit.ledger.doctored import doctor, one
from tests.unit.ledger.settlements import PRICE, USAGE
from tests.unit.ledger.till import Till

ONE, TWO = Organization("org_1", "default", None), Organization("org_2", "2", None)
NOVEMBER_MS = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000)
DECEMBER_MS = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp() * 1000)
DAYS = range(books.BEGAN_MS, books.NOW_MS + books.DAY_MS, books.DAY_MS)


@pytest.fixture
def database(sound_books: Path) -> Path:
    return sound_books


@pytest.fixture
def connection(database: Path) -> Iterator[Connection]:
    connection = open_reader(database)
    yield connection
    connection.close()


def november(connection: Connection, organization: Organization, by: By = "model") -> Statement:
    return read_statement(connection, organization, start_ms=NOVEMBER_MS, end_ms=DECEMBER_MS, by=by)


def moved(statement: Statement) -> int:
    return (
        statement.grants_nanos
        + statement.adjustments_nanos
        - statement.lapsed_nanos
        - statement.charges_nanos
        - statement.late_nanos
    )


@pytest.mark.parametrize("organization", [ONE, TWO])
@pytest.mark.parametrize("by", ["project", "key", "model"])
def test_opening_and_movements_are_closing_and_closing_is_the_balance(
    connection: Connection, database: Path, organization: Organization, by: By
) -> None:
    statement = november(connection, organization, by)
    assert statement.opening_nanos == 0
    assert statement.closing_nanos == statement.opening_nanos + moved(statement)
    balance = f"SELECT sum(balance_nanos) FROM balances WHERE account IN ('wallet/{organization.id}', 'held/{organization.id}')"
    assert str(statement.closing_nanos) == one(database, balance)
    assert statement.unproved_nanos == 0
    assert sum(line.amount_nanos for line in statement.lines) == statement.charges_nanos + statement.late_nanos


def test_every_movement_is_what_the_rows_say(connection: Connection, database: Path) -> None:
    statement = november(connection, TWO)

    def of(kinds: str) -> str:
        return f"SELECT sum(amount_nanos) FROM transfers WHERE organization_id = 'org_2' AND kind IN ({kinds})"

    assert str(statement.grants_nanos) == one(database, of("'grant'"))
    assert str(statement.lapsed_nanos) == one(database, of("'grant_expire', 'grant_revoke'"))
    assert str(statement.late_nanos) == one(database, of("'late_post'"))
    assert str(statement.absorbed_nanos) == one(database, of("'absorb'"))
    assert str(statement.held_nanos) == one(database, "SELECT balance_nanos FROM balances WHERE account = 'held/org_2'")
    assert november(connection, ONE).adjustments_nanos == int(
        one(database, "SELECT sum(amount_nanos) FROM transfers WHERE kind = 'adjust'")
    )


def test_days_follow_on_each_other_and_add_up_to_the_month(connection: Connection) -> None:
    for organization in (ONE, TWO):
        whole = november(connection, organization)
        balance = charges = requests = 0
        for day_ms in DAYS:
            day = read_statement(connection, organization, start_ms=day_ms, end_ms=day_ms + books.DAY_MS, chunk_count=9)
            assert day.opening_nanos == balance
            assert day.unproved_nanos == 0
            balance = day.closing_nanos
            charges += day.charges_nanos
            requests += sum(line.requests_count for line in day.lines)
        assert (balance, charges) == (whole.closing_nanos, whole.charges_nanos)
        assert requests == sum(line.requests_count for line in whole.lines)


def test_a_months_lines_have_requests_tokens_and_amount_and_the_dearest_is_first(
    template: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "small.db"
    path.write_bytes(template)
    till = books.open_till(path)
    for _ in range(3):
        till.settle(till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6), USAGE)
    till.settle(till.reserve("key_1", "org_1", model="free", price=None, amount_nanos=0), USAGE)
    till.__exit__(None, None, None)
    connection = open_reader(path)
    dear = Line("m", "m", 3, 0, 45, 15, 21, 9_450)
    free = Line("free", "free", 1, 1, 15, 5, 7, 0)
    assert november(connection, ONE).lines == [dear, free]
    [line] = november(connection, ONE, "key").lines
    assert (line.group, line.name, line.requests_count, line.amount_nanos) == ("key_1", "laptop", 4, 9_450)
    [line] = november(connection, ONE, "project").lines
    assert (line.group, line.name) == ("prj_1", "default")
    connection.close()


def test_a_charge_counts_in_the_month_in_which_it_was_made(template: bytes, tmp_path: Path) -> None:
    path = tmp_path / "border.db"
    path.write_bytes(template)
    with Till(path, now_ms=DECEMBER_MS - 1) as till:
        till.organization("org_1", key_id="key_1", is_new=False)
        till.key("key_1")
        before = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6)
        across = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**6)
        till.settle(before, USAGE)
        till.now_ms = DECEMBER_MS
        till.settle(across, USAGE)
    connection = open_reader(path)
    assert november(connection, ONE).charges_nanos == 3_150
    december = read_statement(connection, ONE, start_ms=DECEMBER_MS, end_ms=DECEMBER_MS + 31 * books.DAY_MS)
    assert (december.opening_nanos, december.charges_nanos, december.closing_nanos) == (-3_150, 3_150, -6_300)
    connection.close()


def test_a_changed_balance_shows_in_the_statement(connection: Connection, database: Path) -> None:
    doctor(database, "UPDATE balances SET balance_nanos = balance_nanos + 7 WHERE account = 'wallet/org_2'")
    assert november(connection, TWO).unproved_nanos == 7
    assert november(connection, ONE).unproved_nanos == 0


class _Clock:
    def now_s(self) -> float:
        return books.NOW_MS / 1000


def archive(database: Path) -> None:
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    writer.start()
    archived = asyncio.run(Archiver(database, writer, database.parent / "archives", 1.0, _Clock()).run_once())
    writer.close()
    assert archived.requests_count > 50


@pytest.mark.parametrize("organization", [ONE, TWO])
def test_a_statement_is_the_same_when_requests_are_archived(
    connection: Connection, database: Path, organization: Organization
) -> None:
    spans = [(NOVEMBER_MS, DECEMBER_MS), *((day_ms, day_ms + books.DAY_MS) for day_ms in DAYS)]

    def amounts(statement: Statement) -> tuple[int, ...]:
        return (
            *(statement.opening_nanos, statement.closing_nanos, statement.grants_nanos, statement.lapsed_nanos),
            *(statement.charges_nanos + statement.late_nanos, statement.unproved_nanos),
        )

    def read() -> list[Statement]:
        return [read_statement(connection, organization, start_ms=start, end_ms=end) for start, end in spans]

    before = read()
    archive(database)
    after = read()
    assert [amounts(statement) for statement in after] == [amounts(statement) for statement in before]
    assert after[0].is_archived
    assert not before[0].is_archived
    priced = [[line for line in statement.lines if line.amount_nanos] for statement in (before[0], after[0])]
    assert [(line.group, line.amount_nanos) for line in priced[0]] == [
        (line.group, line.amount_nanos) for line in priced[1]
    ]


def test_an_organization_is_found_by_name_or_id(connection: Connection) -> None:
    assert find_organization(connection, "default") == ONE
    assert find_organization(connection, "org_2") == TWO
    assert find_organization(connection, "nobody") is None


def test_no_statement_scans_a_table_for_each_row(connection: Connection) -> None:
    plans: list[str] = []
    connection.set_trace_callback(lambda sql: plans.append(sql) if sql.startswith("SELECT") else None)
    november(connection, ONE)
    connection.set_trace_callback(None)
    for sql in plans:
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        scanned = [step for step in steps if step.startswith("SCAN") and "CONSTANT" not in step]
        assert all(step.split()[1] in ("carried_sums", "archives") for step in scanned), (sql, steps)
