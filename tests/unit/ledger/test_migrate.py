from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headwater.errors import OperatorError
from headwater.ledger.migrate import HEAD, current_revision, ensure_schema
from headwater.ledger.store import open_writer

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite


def make(path: Path, *statements: str) -> bytes:
    """A database of another program; returns its bytes."""
    connection = sqlite.connect(str(path), isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return path.read_bytes()


def test_a_new_database_gets_the_newest_schema(tmp_path: Path) -> None:
    path = tmp_path / "headwater.db"
    assert current_revision(path) is None
    ensure_schema(path)
    assert current_revision(path) == HEAD


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "headwater.db"
    path.touch()
    assert current_revision(path) is None
    ensure_schema(path)
    assert current_revision(path) == HEAD


def test_a_database_of_this_schema_is_left_alone(database: Path) -> None:
    before = database.read_bytes()
    ensure_schema(database)
    assert database.read_bytes() == before


def test_a_newer_schema_is_refused_unharmed(database: Path) -> None:
    connection = open_writer(database)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = database.read_bytes()
    with pytest.raises(OperatorError, match=r"9999.*knows up to") as refused:
        ensure_schema(database)
    assert "newer version" in refused.value.why
    assert database.read_bytes() == before


@pytest.mark.parametrize("content", [b"Dear diary\n" * 500, b"x", b"SQLite format 3\0" + b"\xff" * 8000, b"\0" * 5000])
def test_a_file_that_is_no_database_is_refused_unharmed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "headwater.db"
    path.write_bytes(content)
    with pytest.raises(OperatorError, match="can't be read as a database"):
        ensure_schema(path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["headwater.db"]


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "headwater.db"
    path.mkdir()
    with pytest.raises(OperatorError, match="can't be read as a database"):
        ensure_schema(path)


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE photos (id INTEGER)"],
        # another program that is migrated by Alembic too
        *(
            [
                "CREATE TABLE photos (id INTEGER)",
                "CREATE TABLE alembic_version (version_num TEXT)",
                f"INSERT INTO alembic_version VALUES ('{revision}')",
            ]
            for revision in (HEAD, "ae1027a6acf", "0000")
        ),
        ["CREATE TABLE usage_records (id INTEGER)"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE usage_records (id INTEGER)"],
    ],
    ids=lambda statements: " ".join(statements)[:60],
)
def test_another_programs_database_is_refused_unharmed(tmp_path: Path, statements: list[str]) -> None:
    path = tmp_path / "headwater.db"
    before = make(path, *statements)
    with pytest.raises(OperatorError, match="not a database of Headwater's"):
        ensure_schema(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["headwater.db"]


def test_a_failed_migration_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "headwater.db"
    with pytest.raises(OperatorError, match="failed; the database is as it was") as refused:
        ensure_schema(path)
    assert "unable to open database file" in refused.value.why
