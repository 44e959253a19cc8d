"""`headwater db …`, run as a person runs it, on files of a platform that doesn't run; `test_upgrade.py` has one that does."""

import gzip
import json
import subprocess
import time
from pathlib import Path

import pytest

from headwater.admin.ownership import Ownership
from headwater.ledger.migrate import HEAD, current_revision, ensure_schema
from headwater.ledger.store import open_reader, open_writer
from tests.unit.cli.test_config import headwater
from tests.unit.ledger.old import BEGAN_MS, old_database


def db(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return headwater("db", *arguments, cwd=cwd)


def database(cwd: Path) -> Path:
    return cwd / "data" / "headwater.db"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A directory with the data of version 0.1.0."""
    database(tmp_path).parent.mkdir()
    old_database(database(tmp_path), records_count=50)
    return tmp_path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A directory with an empty database."""
    database(tmp_path).parent.mkdir()
    ensure_schema(database(tmp_path))
    return tmp_path


def failed(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr


# -- upgrade -------------------------------------------------------------------------------------------------------------


def test_an_upgrade_says_what_it_did_and_where_the_backup_is(old: Path) -> None:
    done = db(old, "upgrade")
    assert done.returncode == 0, done.stderr
    assert f"went from schema 0001 to {HEAD}" in done.stdout
    [backup] = (old / "data" / "backups").glob(f"*-before-{HEAD}.db")
    assert str(backup.relative_to(old)) in done.stdout
    assert current_revision(database(old)) == HEAD
    again = db(old, "upgrade")
    assert again.returncode == 0
    assert "nothing was done" in again.stdout


def test_an_upgrade_as_json(old: Path) -> None:
    told = json.loads(db(old, "upgrade", "--json").stdout)
    assert (told["from_schema"], told["to_schema"]) == ("0001", HEAD)
    assert (old / told["backup"]).exists()
    assert json.loads(db(old, "upgrade", "--json").stdout) == {"from_schema": HEAD, "to_schema": HEAD, "backup": None}


def test_every_other_command_names_the_upgrade(old: Path) -> None:
    failed(headwater("keys", "list", cwd=old), "has schema 0001", "headwater db upgrade")
    failed(db(old, "archive", "--older-than", "30d"), "has schema 0001", "headwater db upgrade")
    failed(db(old, "archive", "--older-than", "30d", "--dry-run"), "has schema 0001", "headwater db upgrade")


def test_while_a_platform_runs_nothing_is_upgraded_restored_or_archived(old: Path) -> None:
    made = db(old, "backup", "--json")
    with Ownership(old / "data"):
        failed(db(old, "upgrade"), "is in use")
        failed(db(old, "restore", json.loads(made.stdout)["path"]), "is in use")
    assert db(old, "upgrade").returncode == 0
    with Ownership(old / "data"):
        failed(db(old, "archive", "--older-than", "30d"), "is in use")
        assert db(old, "archive", "--older-than", "30d", "--dry-run").returncode == 0
        assert db(old, "backup").returncode == 0
        checked = db(old, "check")
        assert checked.returncode == 0
        assert "each table" in checked.stdout


@pytest.mark.parametrize("words", [["upgrade"], ["check"], ["backup"], ["archive", "--older-than", "30d"]])
def test_where_there_is_no_database_it_says_so_and_makes_none(tmp_path: Path, words: list[str]) -> None:
    failed(db(tmp_path, *words), "There is no database", "headwater up")
    assert not database(tmp_path).exists()


@pytest.mark.parametrize("words", [["upgrade"], ["check"], ["backup"], ["archive", "--older-than", "30d"]])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, words: list[str]) -> None:
    database(tmp_path).parent.mkdir()
    database(tmp_path).write_bytes(b"Dear diary\n" * 500)
    failed(db(tmp_path, *words), "can't be read as a database")


# -- check ---------------------------------------------------------------------------------------------------------------


def test_a_check_of_a_sound_database(new: Path) -> None:
    done = db(new, "check")
    assert done.returncode == 0, done.stderr
    assert "The database is sound." in done.stdout
    assert "the whole file" in done.stdout
    assert "usage_records" in done.stdout


def test_a_check_finds_an_old_schema_and_exits_with_1(old: Path) -> None:
    done = db(old, "check", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["revision"] == "0001"
    assert "headwater db upgrade" in told["problems"][0]
    assert told["rows"]["usage_records"] == 50
    assert told["oldest_record_at"].startswith("2026-09-0")


def test_a_check_finds_damage_and_exits_with_1(new: Path) -> None:
    with database(new).open("r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xff" * 4096)
    done = db(new, "check")
    assert done.returncode == 1
    assert "fail" in done.stdout
    assert "Traceback" not in done.stderr


# -- backup and restore --------------------------------------------------------------------------------------------------


def test_a_backup_is_made_and_restored(new: Path) -> None:
    made = headwater("keys", "create", "--name", "kept", cwd=new)
    assert made.returncode == 0, made.stderr
    done = db(new, "backup")
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert path.startswith("data/backups/headwater-2")
    assert path.endswith("Z.db")
    assert "Keep both" in done.stderr
    assert headwater("keys", "create", "--name", "lost", cwd=new).returncode == 0
    restored = db(new, "restore", path)
    assert restored.returncode == 0, restored.stderr
    assert "Now: headwater up" in restored.stdout
    assert "data/backups/replaced-" in restored.stdout
    keys = json.loads(headwater("keys", "list", "--json", cwd=new).stdout)
    assert [key["name"] for key in keys] == ["kept"]


def test_a_backup_goes_where_it_is_told(new: Path) -> None:
    told = json.loads(db(new, "backup", "--to", "mine.db", "--json").stdout)
    assert (told["path"], told["schema"]) == ("mine.db", HEAD)
    assert {path.name for path in new.glob("mine*")} == {"mine.db", "mine.db.json"}
    (new / "elsewhere").mkdir()
    told = json.loads(db(new, "backup", "--to", "elsewhere", "--json").stdout)
    assert (new / told["path"]).parent == new / "elsewhere"
    failed(db(new, "backup", "--to", "mine.db"), "exists already")


def test_an_older_backup_is_restored_and_the_upgrade_named(old: Path) -> None:
    told = json.loads(db(old, "backup", "--json").stdout)
    db(old, "upgrade")
    done = db(old, "restore", told["path"])
    assert "Now: headwater db upgrade" in done.stdout
    as_json = json.loads(db(old, "restore", told["path"], "--json").stdout)
    assert as_json["schema"] == "0001"
    assert (old / as_json["aside"] / "headwater.db").exists()


def test_a_truncated_backup_is_refused_with_force_too(new: Path) -> None:
    told = json.loads(db(new, "backup", "--json").stdout)
    path = new / told["path"]
    path.write_bytes(path.read_bytes()[:-4096])
    failed(db(new, "restore", told["path"]), "is not what its manifest says", "cut or changed")
    failed(db(new, "restore", told["path"], "--force"), "is not what its manifest says")
    path.with_name(f"{path.name}.json").unlink()
    failed(db(new, "restore", told["path"]), "has no manifest", "--force")
    failed(db(new, "restore", told["path"], "--force"), "is not a sound database")


# -- archive -------------------------------------------------------------------------------------------------------------


def test_records_move_to_a_file_and_the_usage_stays(old: Path) -> None:
    assert db(old, "upgrade").returncode == 0
    reader = open_reader(database(old))
    expected = {row[0] for row in reader.execute("SELECT request_id FROM usage_records")}
    reader.close()
    usage = ("usage", "--start", "2026-09-01", "--end", "2026-10-01", "--json")
    before = json.loads(headwater(*usage, cwd=old).stdout)
    age_days = int((time.time() * 1000 - BEGAN_MS) / 86_400_000) - 1
    planned = json.loads(db(old, "archive", "--older-than", f"{age_days}d", "--dry-run", "--json").stdout)
    assert planned["requests_count"] == 50
    assert planned["first_received_at"].startswith("2026-09-0")
    told = json.loads(db(old, "archive", "--older-than", f"{age_days}d", "--json").stdout)
    assert (told["requests_count"], told["format"]) == (50, "jsonl")
    [file] = told["files"]
    lines = gzip.decompress((old / "data" / "archives" / file).read_bytes()).splitlines()
    assert {json.loads(line)["request_id"] for line in lines} == expected
    assert sum(one["requests_count"] for one in before) == 50
    assert json.loads(headwater(*usage, cwd=old).stdout) == before
    assert db(old, "check").returncode == 0
    again = db(old, "archive", "--older-than", f"{age_days}d")
    assert again.stdout.startswith("0 requests moved to 0 files")


def test_an_age_has_to_be_said_and_to_be_a_day_at_least(new: Path) -> None:
    failed(db(new, "archive"), "How old is old?", "--older-than 90d")
    failed(db(new, "archive", "--older-than", "23h"), "a day at least")
    failed(db(new, "archive", "--older-than", "a while"), "is not a span of time")
    assert db(new, "archive", "--set", "store.archive_after_days=30").returncode == 0
    assert db(new, "archive", "--older-than", "90d", "--format", "parquet").returncode == 2


def test_archiving_frees_pages_that_are_used_again(old: Path) -> None:
    assert db(old, "upgrade").returncode == 0
    writer = open_writer(database(old))
    writer.close()
    assert db(old, "archive", "--older-than", "1d").returncode == 0
    told = json.loads(db(old, "check", "--json").stdout)
    assert told["rows"]["usage_records"] == 0
    assert told["archived_records_count"] == 50
