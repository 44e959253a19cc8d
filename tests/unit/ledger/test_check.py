"""`db check` tells what a database is, and every kind of damage is named."""

import shutil
from pathlib import Path

import pytest

from headwater.ledger.check import check_database
from headwater.ledger.migrate import HEAD, UnreadableDatabase
from headwater.ledger.schema import metadata
from headwater.ledger.store import open_reader, open_writer
from tests.unit.ledger import books
from tests.unit.ledger.old import old_database


def silent(_what: str, _done: int, _total: int) -> None:
    """Show no progress."""


@pytest.fixture(scope="module")
def sound(template: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "headwater.db"
    path.write_bytes(template)
    books.build(path, requests_count=60)
    return path.read_bytes()


@pytest.fixture
def filled(sound: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "headwater.db"
    path.write_bytes(sound)
    return path


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_sound_database_has_no_problems_and_its_sizes_are_told(filled: Path, is_whole: bool) -> None:
    told: list[str] = []
    before = filled.read_bytes()
    found = check_database(filled, is_whole=is_whole, progress=lambda what, _done, _all: told.append(what))
    assert found.problems == []
    assert (found.revision, found.is_whole) == (HEAD, is_whole)
    assert found.database_bytes == len(before)
    assert set(found.rows) == {*metadata.tables, "alembic_version"}
    assert found.rows["usage_records"] == 67
    assert found.rows["budgets"] == 3
    assert found.oldest_record_at_ms == books.BEGAN_MS - books.HOUR_MS
    assert found.free_bytes > 0
    assert any("usage_records" in what for what in told)
    assert filled.read_bytes() == before


def test_the_log_and_pages_that_can_be_used_again_are_told(filled: Path) -> None:
    writer = open_writer(filled)
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("DELETE FROM usage_hours")
    writer.execute("DELETE FROM attempts")
    found = check_database(filled, is_whole=False, progress=silent)
    writer.close()
    assert found.log_bytes > 10_000
    assert found.reusable_bytes > 4_096
    assert found.rows["attempts"] == 0


def test_what_was_archived_is_told(filled: Path) -> None:
    writer = open_writer(filled)
    writer.execute("INSERT INTO archives VALUES (1, 'a', x'00', 0, 7, 0, 0, 0), (2, 'b', x'00', 0, 5, 0, 0, 0)")
    writer.close()
    assert check_database(filled, is_whole=True, progress=silent).archived_records_count == 12


def test_another_schema_is_a_problem(tmp_path: Path, filled: Path) -> None:
    old = tmp_path / "old.db"
    old_database(old, records_count=5)
    found = check_database(old, is_whole=True, progress=silent)
    assert found.problems == [f"The schema is 0001, this program's is {HEAD}: run `headwater db upgrade`."]
    assert (found.rows["usage_records"], found.archived_records_count) == (5, 0)
    writer = open_writer(filled)
    writer.execute("UPDATE alembic_version SET version_num = '9999'")
    writer.close()
    assert "newer version" in check_database(filled, is_whole=True, progress=silent).problems[0]


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_row_that_refers_to_nothing_is_a_problem(filled: Path, is_whole: bool) -> None:
    writer = open_writer(filled)
    writer.execute("PRAGMA foreign_keys=OFF")
    writer.execute("DELETE FROM prices WHERE id = 'prc_2'")
    writer.close()
    problems = check_database(filled, is_whole=is_whole, progress=silent).problems
    assert "usage_records: a row refers to a row of prices that isn't there." in problems
    assert "reservations: a row refers to a row of prices that isn't there." in problems


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("table", ["usage_records", "reservations", "attempts", "usage_hours"])
def test_damaged_pages_of_a_table_are_a_problem_and_the_check_goes_on(filled: Path, table: str, is_whole: bool) -> None:
    reader = open_reader(filled)
    page = reader.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    reader.close()
    with filled.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    found = check_database(filled, is_whole=is_whole, progress=silent)
    assert found.problems
    assert table == "usage_hours" or found.rows[table] is None  # its rows can be counted in an index
    assert found.rows["organizations"] == 2


def test_an_index_that_lacks_a_row_is_a_problem(filled: Path) -> None:
    writer = open_writer(filled)
    for statement in (
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = sql || ' WHERE 1 = 0' WHERE name = 'ix_attempts_request_id'",
        "PRAGMA writable_schema=RESET",
        "REINDEX ix_attempts_request_id",
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = replace(sql, ' WHERE 1 = 0', '') WHERE name = 'ix_attempts_request_id'",
    ):
        writer.execute(statement)
    writer.close()
    for is_whole in (True, False):
        problems = check_database(filled, is_whole=is_whole, progress=silent).problems
        assert any("missing from index ix_attempts_request_id" in problem for problem in problems), problems


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "headwater.db"
    path.write_bytes(b"Dear diary\n" * 500)
    with pytest.raises(UnreadableDatabase):
        check_database(path, is_whole=True, progress=silent)


def test_it_reads_where_nothing_can_be_written(filled: Path) -> None:
    writer = open_writer(filled)
    writer.execute("BEGIN IMMEDIATE")  # as the platform does again and again
    assert check_database(filled, is_whole=False, progress=silent).problems == []
    writer.execute("ROLLBACK")
    writer.close()
    assert shutil.disk_usage(filled.parent).free > 0
