"""Backups are whole or not there, of one moment, and don't get in the writer's way; a restore never loses the old database."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from headwater.errors import OperatorError
from headwater.ledger.backup import Backup, Manifest, backup_path, make_backup, manifest_path
from headwater.ledger.batch import settlement_writes
from headwater.ledger.durable import sha256_of
from headwater.ledger.migrate import HEAD, current_revision, ensure_schema
from headwater.ledger.restore import Restored, restore
from headwater.ledger.store import Connection, open_reader, open_writer
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.faults import count_calls, run_until
from tests.unit.ledger.old import old_database
from tests.unit.ledger.settlements import settlement

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LOG_BYTES_MAX = 64 * 2**20


def silent(_what: str, _done: int, _total: int) -> None:
    """Show no progress."""


def fill(database: Path, prefix: str, count: int) -> None:
    """Settle so many requests more."""
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    writer.start()
    writes = [write for n in range(count) for write in settlement_writes(settlement(f"req_{prefix}{n:06d}"))]
    writer.submit(writes).result(WAIT_S)
    writer.close()


def record_ids(database: Path) -> list[str]:
    reader = open_reader(database)
    found = [row[0] for row in reader.execute("SELECT request_id FROM usage_records ORDER BY 1")]
    reader.close()
    return found


def take(database: Path) -> Backup:
    return make_backup(database, backup_path(database, NOW), now=NOW, progress=silent)


def put_back(backup: Path, database: Path, *, is_bare_allowed: bool = False) -> Restored:
    return restore(backup, database, is_bare_allowed=is_bare_allowed, now=NOW, progress=silent)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# -- backup --------------------------------------------------------------------------------------------------------------


def test_a_backup_is_a_database_with_a_manifest_that_only_its_user_may_read(database: Path) -> None:
    fill(database, "a", 500)
    made = take(database)
    assert made.path == database.parent / "backups" / "headwater-20261123T120000Z.db"
    assert names(made.path.parent) == {made.path.name, f"{made.path.name}.json"}
    assert [path.stat().st_mode & 0o777 for path in (made.path, manifest_path(made.path), made.path.parent)] == [
        *(0o600, 0o600, 0o700)
    ]
    manifest = msgspec.json.decode(manifest_path(made.path).read_bytes(), type=Manifest)
    assert manifest == made.manifest
    assert (manifest.schema, manifest.created_at) == (HEAD, "2026-11-23T12:00:00+00:00")
    assert (manifest.bytes, manifest.sha256) == (made.path.stat().st_size, sha256_of(made.path).hex())
    assert manifest.max_ids == {
        "reservations": None,
        "resolutions": None,
        "transfers": None,
        "usage_records": "req_a000499",
    }
    assert record_ids(made.path) == record_ids(database)


def test_what_is_in_the_log_only_is_in_the_backup_too(database: Path) -> None:
    writer = open_writer(database)
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("INSERT INTO organizations (id, name, created_at_ms) VALUES ('org_2', 'late', 1)")
    made = take(database)
    reader = open_reader(made.path)
    assert reader.execute("SELECT id FROM organizations ORDER BY id").fetchall() == [("org_1",), ("org_2",)]
    reader.close()
    writer.close()


def test_a_backup_of_an_older_schema_can_be_made(tmp_path: Path) -> None:
    path = tmp_path / "headwater.db"
    old_database(path, records_count=10)
    assert take(path).manifest.max_ids == {"usage_records": "req_000009"}


def test_a_backup_replaces_nothing(database: Path) -> None:
    made = take(database)
    with pytest.raises(OperatorError, match="exists already"):
        take(database)
    assert made.path.exists()


def test_a_backup_of_a_damaged_database_fails_and_leaves_nothing(database: Path) -> None:
    fill(database, "a", 500)
    damage(database)
    with pytest.raises(OperatorError, match="is damaged") as refused:
        take(database)
    assert "headwater db check" in refused.value.now
    assert names(database.parent / "backups") == set()


def test_a_backup_without_room_fails_before_it_begins(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=10**6))
    with pytest.raises(OperatorError, match=r"The backup needs .* MB of disk space"):
        take(database)
    assert names(database.parent / "backups") == set()


def damage(database: Path) -> None:
    """Overwrite pages in the middle, as a disk that lies would."""
    with database.open("r+b") as file:
        file.seek(database.stat().st_size // 2)
        file.write(b"\xff" * 8192)


class TestBesideAWriter:
    """A big database is copied while settlements go on."""

    @pytest.fixture
    def big(self, database: Path) -> Path:
        fill(database, "a", 40_000)
        return database

    @pytest.fixture
    def busy(self, big: Path) -> Iterator[Callable[[], list[str]]]:
        """A writer that settles one request after another; call it to end that, and to get what it settled, in its order."""
        connection = open_writer(big)
        writer = LedgerWriter(connection, on_fatal=lambda _: None)
        writer.start()
        ended, settled = threading.Event(), list[str]()

        def work() -> None:
            while not ended.is_set():
                request_id = f"req_b{len(settled):06d}"
                writer.submit(settlement_writes(settlement(request_id))).result(WAIT_S)
                settled.append(request_id)

        thread = threading.Thread(target=work)
        thread.start()

        def end() -> list[str]:
            ended.set()
            thread.join(WAIT_S)
            return settled

        while len(settled) < 10:
            assert thread.is_alive()
        yield end
        end()
        writer.close()

    def test_the_copy_is_one_moment_and_the_writer_goes_on(self, big: Path, busy: Callable[[], list[str]]) -> None:
        during: list[int] = []
        reader = open_reader(big)
        before = count(reader)

        def watch(what: str, _done: int, _total: int) -> None:
            if what == "Copying":
                during.append(count(reader))

        made = make_backup(big, backup_path(big, NOW), now=NOW, progress=watch)
        after = count(reader)
        reader.close()
        settled = busy()
        assert after > during[-1] > before, "requests were settled while pages were copied"
        kept = [request_id for request_id in record_ids(made.path) if request_id.startswith("req_b")]
        assert kept == settled[: len(kept)], "everything up to one moment, and nothing after it"
        assert before <= 40_000 + len(kept) <= during[-1] + 1
        copy = open_reader(made.path)
        assert count(copy) == count(copy, "attempts"), "no request is in it by half"
        copy.close()

    def test_the_log_is_begun_anew_after_the_copy(self, big: Path, busy: Callable[[], list[str]]) -> None:
        take(big)
        log = big.with_name("headwater.db-wal")
        settled_at_end = len(busy())
        size = log.stat().st_size
        assert size < LOG_BYTES_MAX
        writer = LedgerWriter(open_writer(big), on_fatal=lambda _: None)
        writer.start()
        for number in range(settled_at_end, settled_at_end + 1_000):
            writer.submit(settlement_writes(settlement(f"req_b{number:06d}"))).result(WAIT_S)
        grown = log.stat().st_size
        writer.close()
        assert grown <= max(size, 8 * 2**20), "pages of the log are used again"


def count(connection: Connection, table: str = "usage_records") -> int:
    found: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return found


PROGRAM = (
    "import sys; from datetime import UTC, datetime; from pathlib import Path\n"
    "from headwater.ledger.backup import make_backup; from headwater.ledger.restore import restore\n"
    "now = datetime(2026, 11, 23, 12, tzinfo=UTC)\n"
    "told = lambda *_: None\n"
    "what, first, second = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])\n"
    "if what == 'backup': make_backup(first, second, now=now, progress=told)\n"
    "else: restore(first, second, is_bare_allowed=False, now=now, progress=told)\n"
)


@pytest.mark.parametrize(
    ("call", "number"), [("pwrite64", 5), ("pwrite64", 60), ("fsync", 1), ("fsync", 2), ("rename", 1), ("rename", 2)]
)
def test_a_backup_that_is_killed_is_not_there_and_the_next_one_is(database: Path, call: str, number: int) -> None:
    fill(database, "a", 2_000)
    to = database.parent / "backups" / "b.db"
    done = run_until(call, number, "-c", PROGRAM, "backup", str(database), str(to))
    assert done.returncode < 0, "it was to be killed"
    assert not to.exists(), "a backup is there when it is whole"
    with pytest.raises(OperatorError):
        put_back(to, database)
    assert current_revision(database) == HEAD
    made = make_backup(database, to, now=NOW, progress=silent)
    assert names(to.parent) == {"b.db", "b.db.json"}, "leftovers are gone"
    assert record_ids(made.path) == record_ids(database)


def test_leftovers_of_other_backups_are_swept_and_those_being_written_stay(database: Path) -> None:
    directory = database.parent / "backups"
    directory.mkdir()
    (directory / ".headwater-1.db.partial").write_bytes(b"left")
    (directory / "mine.partial").write_bytes(b"not a leftover")
    with (directory / ".headwater-2.db.partial").open("wb") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        take(database)
        assert names(directory) == {
            *(".headwater-2.db.partial", "mine.partial"),
            *("headwater-20261123T120000Z.db", "headwater-20261123T120000Z.db.json"),
        }


# -- restore -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def backup(database: Path) -> Path:
    """A backup of a database with three requests; the database has three more by now."""
    fill(database, "a", 3)
    made = take(database)
    fill(database, "b", 3)
    return made.path


A_IDS = [f"req_a{number:06d}" for number in range(3)]
B_IDS = [f"req_b{number:06d}" for number in range(3)]


def test_a_restore_brings_the_backup_back_and_keeps_what_was_there(database: Path, backup: Path) -> None:
    done = put_back(backup, database)
    assert done == Restored(HEAD, database.parent / "backups" / "replaced-20261123T120000Z")
    assert record_ids(database) == A_IDS
    assert database.stat().st_mode & 0o777 == 0o600
    assert done.aside is not None
    assert record_ids(done.aside / "headwater.db") == [*A_IDS, *B_IDS]
    assert backup.exists()
    fill(database, "c", 2)  # and it can be written


def test_what_was_in_the_log_only_is_kept_and_not_replayed_into_the_backup(database: Path, backup: Path) -> None:
    """A platform that was killed leaves its log; the log of one database must never meet another."""
    killed = database.with_name("killed.db")
    shutil.copy(database, killed)
    writer = open_writer(killed)
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("INSERT INTO organizations (id, name, created_at_ms) VALUES ('org_2', 'late', 1)")
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(f"{killed}{suffix}", f"{database}{suffix}")
    writer.close()
    assert database.with_name("headwater.db-wal").stat().st_size > 0
    done = put_back(backup, database)
    reader = open_reader(database)
    assert reader.execute("SELECT id FROM organizations").fetchall() == [("org_1",)]
    assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    reader.close()
    assert done.aside is not None
    kept = open_reader(done.aside / "headwater.db")
    assert kept.execute("SELECT id FROM organizations ORDER BY id").fetchall() == [("org_1",), ("org_2",)]
    kept.close()


def test_a_damaged_database_is_replaced_and_kept_with_its_log(database: Path, backup: Path) -> None:
    log = database.with_name("headwater.db-wal")
    database.write_bytes(b"\0" * 5_000)
    log.write_bytes(b"x" * 100)
    done = put_back(backup, database)
    assert record_ids(database) == A_IDS
    assert done.aside is not None
    assert (done.aside / "headwater.db").read_bytes() == b"\0" * 5_000
    assert (done.aside / "headwater.db-wal").read_bytes() == b"x" * 100


def test_a_restore_into_an_empty_directory(backup: Path, tmp_path: Path) -> None:
    other = tmp_path / "new" / "headwater.db"
    assert put_back(backup, other) == Restored(HEAD, None)
    assert record_ids(other) == A_IDS


def test_two_restores_in_a_second_keep_both(database: Path, backup: Path) -> None:
    assert {put_back(backup, database).aside, put_back(backup, database).aside} == {
        database.parent / "backups" / "replaced-20261123T120000Z",
        database.parent / "backups" / "replaced-20261123T120000Z-2",
    }


def test_an_older_backup_is_restored_and_wants_an_upgrade(database: Path, tmp_path: Path) -> None:
    old = tmp_path / "old" / "headwater.db"
    old.parent.mkdir()
    old_database(old, records_count=10)
    made = take(old)
    assert put_back(made.path, database).revision == "0001"
    with pytest.raises(OperatorError, match="headwater db upgrade"):
        ensure_schema(database)


def _cut(backup: Path) -> None:
    os.truncate(backup, backup.stat().st_size - 4096)


def _grow(backup: Path) -> None:
    with backup.open("ab") as file:
        file.write(b"\0" * 4096)


def _change_one_bit(backup: Path) -> None:
    content = bytearray(backup.read_bytes())
    content[len(content) // 2] ^= 1
    backup.write_bytes(content)


def _lose_manifest(backup: Path) -> None:
    manifest_path(backup).unlink()


def _garble_manifest(backup: Path) -> None:
    manifest_path(backup).write_text("{")


def _write_to(backup: Path) -> None:
    writer = open_writer(backup)
    writer.execute("INSERT INTO organizations (id, name, created_at_ms) VALUES ('org_9', 'x', 1)")
    shutil.copy(f"{backup}-wal", f"{backup}-kept")
    writer.close()
    Path(f"{backup}-kept").rename(f"{backup}-wal")


def _newer(backup: Path) -> None:
    writer = open_writer(backup)
    writer.execute("UPDATE alembic_version SET version_num = '9999'")
    writer.close()
    _agree(backup)


def _damaged(backup: Path) -> None:
    damage(backup)
    _agree(backup)


def _foreign(backup: Path) -> None:
    backup.unlink()
    writer = open_writer(backup)
    writer.execute("CREATE TABLE photos (id)")
    writer.close()
    _agree(backup)


def _no_database(backup: Path) -> None:
    backup.write_bytes(b"Dear diary\n" * 900)
    _agree(backup)


def _agree(backup: Path) -> None:
    """Let the manifest say what the backup is by now, so that only looking inside can tell."""
    path = manifest_path(backup)
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps(manifest | {"bytes": backup.stat().st_size, "sha256": sha256_of(backup).hex()}))


def _gone(backup: Path) -> None:
    backup.unlink()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_cut, "is not what its manifest says"),
        (_grow, "is not what its manifest says"),
        (_change_one_bit, "is not what its manifest says"),
        (_lose_manifest, "has no manifest"),
        (_garble_manifest, "can't be read"),
        (_write_to, "has a write-ahead log beside it"),
        (_newer, "knows up to"),
        (_damaged, "is not a sound database"),
        (_foreign, "not a database of Headwater's"),
        (_no_database, "is not a sound database"),
        (_gone, "There is no backup"),
    ],
)
def test_a_backup_that_cannot_be_trusted_is_refused_and_nothing_is_touched(
    database: Path, backup: Path, spoil: Callable[[Path], None], what: str
) -> None:
    fill(backup, "more", 300) if spoil is _damaged else None
    spoil(backup)
    before, others = database.read_bytes(), names(database.parent)
    with pytest.raises(OperatorError, match=what):
        put_back(backup, database)
    assert database.read_bytes() == before
    assert names(database.parent) - {"headwater.db-wal", "headwater.db-shm"} == others, (
        "a reader's own files don't count"
    )
    assert not list((database.parent / "backups").glob("replaced-*"))


def test_with_force_a_sound_copy_needs_no_manifest(database: Path, backup: Path) -> None:
    _lose_manifest(backup)
    put_back(backup, database, is_bare_allowed=True)
    assert record_ids(database) == A_IDS


def test_with_force_a_manifest_that_is_there_counts(database: Path, backup: Path) -> None:
    _change_one_bit(backup)
    with pytest.raises(OperatorError, match="is not what its manifest says"):
        put_back(backup, database, is_bare_allowed=True)


def test_another_programs_database_is_never_replaced(backup: Path, tmp_path: Path) -> None:
    other = tmp_path / "photos" / "headwater.db"
    other.parent.mkdir()
    writer = open_writer(other)
    writer.execute("CREATE TABLE photos (id)")
    writer.close()
    before = other.read_bytes()
    with pytest.raises(OperatorError, match="not a database of Headwater's"):
        put_back(backup, other)
    assert other.read_bytes() == before


def test_a_restore_that_is_killed_at_any_step_leaves_the_old_or_the_new_database_whole(
    database: Path, backup: Path, tmp_path: Path
) -> None:
    """Each file operation that changes a name, and each sync, is once the last."""
    seen: set[bool] = set()
    arguments = ("-c", PROGRAM, "restore", str(backup), str(database))
    template = tmp_path / "template.db"
    shutil.copy(database, template)
    for call in ("link", "unlink", "rename", "fsync"):
        for number in range(1, 1 + count_calls(call, *arguments, log=tmp_path / "calls")):
            for suffix in ("-wal", "-shm"):
                database.with_name(f"headwater.db{suffix}").unlink(missing_ok=True)
            shutil.copy(template, database)
            done = run_until(call, number, *arguments)
            assert done.returncode < 0, (call, number)
            ids = record_ids(database)
            assert ids in (A_IDS, [*A_IDS, *B_IDS]), (call, number)
            seen.add(ids == A_IDS)
            for aside in (database.parent / "backups").glob("replaced-*"):
                if (aside / "headwater.db").exists():
                    assert record_ids(aside / "headwater.db") in (A_IDS, [*A_IDS, *B_IDS])
            put_back(backup, database)
            assert record_ids(database) == A_IDS
            assert not list(database.parent.glob(".*partial"))
    assert seen == {True, False}


def test_a_restore_that_takes_the_old_name_away_first_would_be_noticed(database: Path, backup: Path) -> None:
    """The twin: the old database is moved aside instead of getting a second name."""
    twin = f"import os; os.link = os.rename\n{PROGRAM}"
    arguments = ("-c", twin, "restore", str(backup), str(database))
    for number in range(1, 8):
        assert run_until("fsync", number, *arguments).returncode < 0
        if not database.exists():
            return
    pytest.fail("whenever it was killed, there was a database")
