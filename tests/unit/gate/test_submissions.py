"""The examiner notices each way in which a database can be wrong; the databases here are doctored."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gate.ledger_program import fill
from gate.submissions import Examiner, Found, Plan
from headwater.ledger.store import Connection, Statement, Write, open_writer

LAST = "id = (SELECT max(id) FROM attempts)"

BARE = ("DROP VIEW entries", "DROP TABLE balances", "DROP TABLE usage_hours")
"""Takes out what is derived from the log."""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Plan]:
    """A small ledger and what was submitted to it."""
    directory = tmp_path_factory.mktemp("ledger")
    plan = fill(directory, commits_count=6, seed=3)
    return (directory / "headwater.db").read_bytes(), plan


@pytest.fixture
def examine(ledger: tuple[bytes, Plan], tmp_path: Path) -> Callable[..., Found]:
    """Examines a copy that was doctored by these statements."""
    data, plan = ledger
    path = tmp_path / "headwater.db"

    def run(*statements: str, acknowledged: set[int] | None = None) -> Found:
        path.write_bytes(data)
        connection = open_writer(path)
        connection.execute("PRAGMA foreign_keys=OFF")
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)
        connection.close()
        return Examiner(plan).examine(path, set(range(len(plan.submissions))) if acknowledged is None else acknowledged)

    return run


def test_a_sound_ledger_is_clean(examine: Callable[..., Found]) -> None:
    assert examine() == Found()
    assert examine(acknowledged=set()) == Found(), "what nobody was told may be there, whole"


def test_a_missing_row_of_an_acknowledged_submission_is_a_loss(examine: Callable[..., Found]) -> None:
    found = examine(f"DELETE FROM attempts WHERE {LAST}")
    assert (len(found.lost), found.half) == (1, ())


def test_a_missing_row_of_any_other_is_half_a_submission(examine: Callable[..., Found]) -> None:
    found = examine(f"DELETE FROM attempts WHERE {LAST}", acknowledged=set())
    assert (found.lost, len(found.half)) == ((), 1)


def test_a_changed_value_is_a_loss_and_a_row_nobody_submitted(examine: Callable[..., Found]) -> None:
    found = examine(f"UPDATE attempts SET output = output + 1 WHERE {LAST}")
    assert (len(found.lost), found.doubled_count) == (1, 1)


def test_a_row_twice_is_doubled(examine: Callable[..., Found]) -> None:
    found = examine(
        *BARE,
        "CREATE TABLE copy AS SELECT * FROM attempts",  # without its primary key, which would forbid it
        "DROP TABLE attempts",
        "ALTER TABLE copy RENAME TO attempts",
        f"INSERT INTO attempts SELECT * FROM attempts WHERE {LAST}",
    )
    assert found == Found(doubled_count=1)


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("balances", "UPDATE balances SET balance_nanos = balance_nanos + 1 WHERE account LIKE 'held/%'"),
        ("usage_hours", "UPDATE usage_hours SET requests_count = requests_count - 1"),
        ("marks", "INSERT INTO marks SELECT reservation_id, '[]', 1 FROM resolutions LIMIT 1"),
    ],
)
def test_a_sum_that_does_not_agree_with_the_log_is_noticed(
    examine: Callable[..., Found], table: str, statement: str
) -> None:
    assert examine(statement).unequal == (table,)


def test_a_ledger_without_tables_has_lost_everything(examine: Callable[..., Found], ledger: tuple[bytes, Plan]) -> None:
    _, plan = ledger
    tables = {row.table for rows in plan.submissions for row in rows}
    found = examine(*BARE, *(f"DROP TABLE {table}" for table in tables), acknowledged={0, 1})
    assert found == Found(lost=(0, 1))


def test_damage_is_said_in_sqlites_words(ledger: tuple[bytes, Plan], tmp_path: Path) -> None:
    data, plan = ledger
    path = tmp_path / "headwater.db"
    path.write_bytes(data[:8192] + bytes(4096) + data[12288:])
    assert Examiner(plan).examine(path, ()).corrupt
    path.write_bytes(b"not a database at all" * 100)
    assert "DatabaseError" in Examiner(plan).examine(path, ()).corrupt


def test_of_a_table_that_is_changed_later_only_the_key_is_compared(tmp_path: Path) -> None:
    plan, path = Plan(), tmp_path / "small.db"
    insert = Statement("insert", 0, "INSERT INTO t (id, note) VALUES (?, ?)")
    plan.add([Write(insert, ("a", "first"))])
    plan.add([Write(Statement("change", 1, "UPDATE t SET note = ? WHERE id = ?"), ("second", "a"))])
    connection: Connection = open_writer(path)
    connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY, note TEXT)")
    connection.execute("INSERT INTO t VALUES ('a', 'second')")
    connection.close()
    assert Examiner(plan).examine(path, {0, 1}) == Found()


def test_a_plan_comes_back_from_its_file(ledger: tuple[bytes, Plan], tmp_path: Path) -> None:
    _, plan = ledger
    plan.write(tmp_path / "plan")
    assert Plan.read(tmp_path / "plan") == plan
