from pathlib import Path

import msgspec
import pytest

from headwater.ledger import store
from headwater.ledger.batch import settlement_writes
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.rows import KeyRow
from headwater.ledger.store import Connection, DatabaseError, PriceVersion, open_reader, open_writer
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.settlements import KEY, KEY_WRITE, PRICE, settlement


def pragma(connection: Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_sqlite_is_a_build_without_the_known_wal_corruption() -> None:
    assert tuple(int(part) for part in store.SQLITE_VERSION.split(".")) >= (3, 51, 3)


def test_the_writer_syncs_every_commit_and_checks_foreign_keys(database: Path) -> None:
    connection = open_writer(database)
    assert pragma(connection, "journal_mode") == "wal"
    assert pragma(connection, "synchronous") == 2  # FULL
    assert pragma(connection, "foreign_keys") == 1
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO organizations (id, name, created_at_ms) VALUES ('org_2', 'x', 1)",
        "UPDATE api_keys SET revoked_at_ms = NULL",
        "DELETE FROM usage_records",
        "CREATE TABLE t (a)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA query_only=OFF; ",
    ],
)
def test_a_reader_can_neither_write_nor_checkpoint(database: Path, reader: Connection, statement: str) -> None:
    writer = open_writer(database)
    writer.execute(
        "INSERT INTO organizations (id, name, created_at_ms) VALUES ('org_3', 'y', 1)"
    )  # something to checkpoint
    before = database.read_bytes()
    try:
        reader.execute(statement)
        reader.execute("INSERT INTO organizations (id, name, created_at_ms) VALUES ('org_2', 'x', 1)")
    except DatabaseError:
        pass
    else:
        pytest.fail("the reader wrote")
    assert database.read_bytes() == before
    assert writer.execute("SELECT id FROM organizations ORDER BY id").fetchall() == [("org_1",), ("org_3",)]
    writer.close()


@pytest.mark.parametrize("name", ["plain", "50% off", "a?b", "a#b", "a&mode=rw", "数据 è"])
def test_a_database_opens_whatever_its_directory_is_called(tmp_path: Path, template: bytes, name: str) -> None:
    path = tmp_path / name / "headwater.db"
    path.parent.mkdir()
    path.write_bytes(template)
    reader = open_reader(path)
    assert store.read_default_project(reader) == ("org_1", "prj_1")
    reader.close()
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["50% off", "a?b", "a#b"])
def test_a_database_is_migrated_whatever_its_directory_is_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "headwater.db"
    path.parent.mkdir()
    ensure_schema(path)
    ensure_schema(path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_reader_of_no_file_fails_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError):
        open_reader(tmp_path / "none.db").execute("SELECT * FROM organizations")
    assert not (tmp_path / "none.db").exists()


def test_a_settlement_is_stored_field_by_field(writer: LedgerWriter, reader: Connection) -> None:
    one = settlement("req_a", attempts_count=2, client_request_id="theirs", outcome="timeout", error_code="timeout")
    writer.start()
    writer.submit(settlement_writes(one)).result(WAIT_S)
    cursor = reader.execute("SELECT * FROM usage_records")
    names = [column[0] for column in cursor.description]
    row = dict(zip(names, cursor.fetchone(), strict=True))
    expected = one.record._asdict()
    expected |= msgspec.structs.asdict(expected.pop("usage"))
    assert row == expected
    cursor = reader.execute("SELECT * FROM attempts ORDER BY choice")
    names = [column[0] for column in cursor.description]
    for found, attempt in zip(cursor.fetchall(), one.attempts, strict=True):
        expected = attempt._asdict()
        expected |= msgspec.structs.asdict(expected.pop("usage"))
        assert dict(zip(names, found, strict=True)) == expected


def test_a_key_is_found_by_its_hash_and_comes_back_as_it_was(reader: Connection) -> None:
    assert store.read_key(reader, KEY.hash) == KEY
    assert store.read_key(reader, b"x" * 32) is None
    assert store.read_keys(reader) == [KEY]


def test_revoking_twice_keeps_the_first_time(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    for moment in (7_000, 8_000):
        writer.submit([store.Write(store.REVOKE_KEY, (moment, KEY.id))]).result(WAIT_S)
    assert store.read_key(reader, KEY.hash) == KEY._replace(revoked_at_ms=7_000)


@pytest.mark.parametrize("broken", [{"hash": b"short"}, {"hash": "h" * 32, "id": "key_2"}, {"id": "key_1"}], ids=str)
def test_a_key_must_have_a_hash_of_its_own(writer: LedgerWriter, broken: dict[str, object]) -> None:
    writer.start()
    row = KeyRow(**{**KEY._asdict(), "id": "key_2", "hash": b"2" * 32, **broken})
    assert isinstance(writer.submit([KEY_WRITE._replace(row=tuple(row))]).exception(WAIT_S), store.IntegrityError)


def test_a_price_comes_back_with_its_terms_and_its_date(writer: LedgerWriter, reader: Connection) -> None:
    newer = msgspec.structs.replace(PRICE, id="prc_2", output=1, cache_write_1h=7, multipliers=(("batch", 500_000),))
    writer.start()
    write = store.price_write(newer, 2_000, kind="cost", effective_at_ms=9_000, source="admin", is_withdrawn=True)
    writer.submit([write]).result(WAIT_S)
    assert store.read_prices(reader) == [
        PriceVersion(PRICE, 1_000, "price", 1_000, "config", is_withdrawn=False),
        PriceVersion(newer, 2_000, "cost", 9_000, "admin", is_withdrawn=True),
    ]
