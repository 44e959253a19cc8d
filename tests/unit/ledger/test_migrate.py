"""A new database is made, an old one is refused until it is upgraded, and an upgrade that is cut short changed nothing."""

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from alembic.script import ScriptDirectory

from headwater.errors import OperatorError
from headwater.ledger import migrate
from headwater.ledger.backup import manifest_path
from headwater.ledger.check import check_database
from headwater.ledger.migrate import HEAD, Upgraded, current_revision, ensure_schema, upgrade
from headwater.ledger.store import open_reader, open_writer
from tests.unit.ledger.faults import run_until
from tests.unit.ledger.old import BEGAN_MS, HOUR_MS, old_database

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def silent(_what: str, _done: int, _total: int) -> None:
    """Show no progress."""


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = open_reader(path)
    found = connection.execute(sql).fetchall()
    connection.close()
    return found


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of version 0.1.0; to be copied."""
    path = tmp_path_factory.mktemp("old") / "headwater.db"
    old_database(path, records_count=3_000)
    return path


@pytest.fixture
def old_copy(old: Path, tmp_path: Path) -> Path:
    path = tmp_path / "data" / "headwater.db"
    path.parent.mkdir()
    shutil.copy(old, path)
    return path


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


# -- an older schema ----------------------------------------------------------------------------------------------------


def test_an_older_schema_is_refused_unharmed_and_the_upgrade_is_named(old_copy: Path) -> None:
    before = old_copy.read_bytes()
    with pytest.raises(OperatorError, match=f"has schema 0001; this Headwater needs {HEAD}") as refused:
        ensure_schema(old_copy)
    assert "headwater db upgrade" in refused.value.now
    assert old_copy.read_bytes() == before


def test_an_upgrade_keeps_every_number_and_fills_the_hourly_sums(old_copy: Path) -> None:
    sums = (
        "SELECT (received_at_ms + duration_ms) / 3600000, key_id, model, count(*), sum(outcome = 'ok'),"
        " sum(cost_nanos IS NULL), sum(uncached_input), sum(cache_read), sum(cache_write), sum(output), sum(reasoning),"
        " coalesce(sum(cost_nanos), 0) FROM usage_records GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    names = "request_id, outcome, uncached_input, cache_read, output, price_id, cost_nanos, received_at_ms, duration_ms"
    records = rows(old_copy, f"SELECT {names} FROM usage_records ORDER BY 1")
    attempts = rows(old_copy, "SELECT id, request_id, output FROM attempts ORDER BY 1")
    expected = rows(old_copy, sums)
    assert len(records) == 3_000
    done = upgrade(old_copy, now=NOW, progress=silent)
    assert (done.from_revision, done.to_revision) == ("0001", HEAD)
    assert rows(old_copy, f"SELECT {names} FROM usage_records ORDER BY 1") == records
    assert rows(old_copy, "SELECT id, request_id, output FROM attempts ORDER BY 1") == attempts
    columns = (
        "hour, key_id, model, requests_count, ok_count, unpriced_count, uncached_input, cache_read, cache_write, output,"
        " reasoning, cost_nanos"
    )
    assert rows(old_copy, f"SELECT {columns} FROM usage_hours ORDER BY 1, 2, 3") == expected
    assert expected[0][0] == BEGAN_MS // HOUR_MS
    assert rows(old_copy, "SELECT effective_at_ms, kind, source FROM prices") == [(2000, "price", "config")]
    assert check_database(old_copy, is_whole=True, progress=silent).problems == []


def test_an_upgrade_makes_a_backup_first_and_says_where(old_copy: Path) -> None:
    told: list[str] = []
    done = upgrade(old_copy, now=NOW, progress=lambda what, _done, _total: told.append(what))
    assert done.backup == old_copy.parent / "backups" / f"headwater-20261123T120000Z-before-{HEAD}.db"
    assert done.backup is not None
    assert current_revision(done.backup) == "0001"
    assert manifest_path(done.backup).exists()
    assert rows(done.backup, "SELECT count(*) FROM usage_records") == [(3_000,)]
    assert told[0] == "Copying"
    assert told[-1] == f"Migrating 0001 to {HEAD}"


def test_an_upgrade_of_what_is_up_to_date_does_nothing(database: Path) -> None:
    before = database.read_bytes()
    assert upgrade(database, now=NOW, progress=silent) == Upgraded(HEAD, HEAD, None)
    assert database.read_bytes() == before
    assert not (database.parent / "backups").exists()


def test_an_upgrade_of_nothing_and_of_a_newer_one_is_refused(database: Path, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="There is no database"):
        upgrade(tmp_path / "none.db", now=NOW, progress=silent)
    connection = open_writer(database)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(OperatorError, match=r"9999.*knows up to"):
        upgrade(database, now=NOW, progress=silent)


def test_an_upgrade_without_room_for_it_begins_nothing(old_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=80 * 10**6 // 2))
    before = old_copy.read_bytes()
    with pytest.raises(OperatorError, match=r"The upgrade, with its backup, needs .* MB") as refused:
        upgrade(old_copy, now=NOW, progress=silent)
    assert "nothing was changed" in refused.value.now
    assert old_copy.read_bytes() == before
    assert not (old_copy.parent / "backups").exists()


@pytest.mark.parametrize("number", [1, 9, 40])
def test_a_migration_that_is_killed_leaves_the_old_schema_whole(old_copy: Path, number: int) -> None:
    records = rows(old_copy, "SELECT * FROM usage_records ORDER BY request_id")
    log = old_copy.with_name("headwater.db-wal")
    done = run_until("pwrite64", number, "-m", "headwater.ledger.migrate", str(old_copy), paths=(log,))
    assert done.returncode < 0, "it was to be killed"
    assert current_revision(old_copy) == "0001"
    assert rows(old_copy, "SELECT * FROM usage_records ORDER BY request_id") == records
    assert rows(old_copy, "PRAGMA integrity_check") == [("ok",)]
    upgrade(old_copy, now=NOW, progress=silent)
    assert current_revision(old_copy) == HEAD


def test_a_migration_that_the_disk_has_no_room_for_leaves_the_old_schema_whole(old_copy: Path) -> None:
    records = rows(old_copy, "SELECT * FROM usage_records ORDER BY request_id")
    program = (
        "from datetime import UTC, datetime; from pathlib import Path; from headwater.ledger.migrate import upgrade;"
        f"upgrade(Path({str(old_copy)!r}), now=datetime.now(UTC), progress=lambda *_: None)"
    )
    log = old_copy.with_name("headwater.db-wal")
    done = run_until("pwrite64", 9, "-c", program, what="error=ENOSPC", paths=(log,))
    assert "the database is as it was" in done.stderr
    assert "full" in done.stderr
    assert current_revision(old_copy) == "0001"
    assert rows(old_copy, "SELECT * FROM usage_records ORDER BY request_id") == records
    [backup] = (old_copy.parent / "backups").glob("*.db")
    assert current_revision(backup) == "0001"


# -- what a migration may hold ------------------------------------------------------------------------------------------


def migrations() -> list[ModuleType]:
    """The migrations, oldest first."""
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    return [script.module for script in reversed(list(scripts.walk_revisions()))]


def release_of(module: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in module.release.split("."))


def broken_rules(modules: list[Any]) -> list[str]:
    """What these migrations, oldest first, do against the rule of `docs/explanation/storage.md`."""
    wrong: list[str] = []
    known: dict[str, Any] = {}
    for module in modules:
        name = Path(module.__file__).name
        found = re.fullmatch(r"(\d{4})_(expand|contract)_[a-z0-9_]+\.py", name)
        if found is None or found[1] != module.revision:
            wrong.append(f"{name}: is to be called {module.revision}_expand_… or {module.revision}_contract_…")
            continue
        if known and release_of(module) < max(release_of(one) for one in known.values()):
            wrong.append(f"{name}: release {module.release} is before an earlier migration's")
        takes_away = re.search(r"\b(DROP|RENAME|drop_\w+|rename_\w+)\b", Path(module.__file__).read_text())
        if found[2] == "expand" and takes_away:
            wrong.append(f"{name}: an expand takes nothing away, and this has {takes_away[0]}")
        if found[2] == "contract":
            completed = known.get(getattr(module, "completes", ""))
            if completed is None:
                wrong.append(f"{name}: `completes` is to name the expand before it")
            elif release_of(module)[:2] <= release_of(completed)[:2]:
                wrong.append(
                    f"{name}: a contract comes a minor release after its expand, {completed.release}, at least"
                )
        known[module.revision] = module
    return wrong


def test_migrations_expand_before_they_contract() -> None:
    found = migrations()
    assert [module.revision for module in found] == [f"{number:04}" for number in range(1, len(found) + 1)]
    assert broken_rules(found) == []


@pytest.mark.parametrize(
    ("name", "text", "fields", "what"),
    [
        ("0003_expand_x.py", "ALTER TABLE a ADD COLUMN b", {}, None),
        ("0003_expand_x.py", "DROP TABLE a", {}, "takes nothing away"),
        ("0003_expand_x.py", "ALTER TABLE a RENAME TO b", {}, "takes nothing away"),
        ("0003_expand_x.py", "op.drop_column", {}, "takes nothing away"),
        ("0003_more.py", "", {}, "is to be called"),
        ("0004_expand_x.py", "", {}, "is to be called"),
        ("0003_expand_x.py", "", {"release": "0.1.9"}, "before an earlier"),
        ("0003_contract_x.py", "DROP TABLE a", {"completes": "0002"}, "a minor release after"),
        ("0003_contract_x.py", "DROP TABLE a", {"completes": "0002", "release": "0.2.9"}, "a minor release after"),
        ("0003_contract_x.py", "DROP TABLE a", {"release": "0.3.0"}, "is to name the expand"),
        ("0003_contract_x.py", "DROP TABLE a", {"completes": "0002", "release": "0.3.0"}, None),
    ],
)
def test_a_migration_against_the_rule_is_noticed(
    tmp_path: Path, name: str, text: str, fields: dict[str, str], what: str | None
) -> None:
    (tmp_path / name).write_text(text)
    twin = SimpleNamespace(**{"__file__": str(tmp_path / name), "revision": "0003", "release": "0.2.0", **fields})
    wrong = broken_rules([*migrations()[:2], twin])
    assert (what is None and not wrong) or (what is not None and what in wrong[0])
