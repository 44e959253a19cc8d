"""`ledger verify` proves sound books and names the first row of doctored ones; every rule has a doctored twin."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.ledger import entries
from headwater.ledger.archive import Archiver
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.store import Connection, open_writer
from headwater.ledger.verify import CHUNK_COUNT, EXIT_DIFFERS, EXIT_OK, EXIT_UNREADABLE, main, verify
from headwater.ledger.verify_result import SHOWN_MAX, Findings, VerifyResult
from headwater.ledger.verify_sums import Sums
from headwater.ledger.writer import LedgerWriter
from headwater.usage import Usage
from tests.unit.ledger import books
from tests.unit.ledger.doctored import TWINS, Twin, doctor, one
from tests.unit.ledger.settlements import PRICE
from tests.unit.ledger.till import Till

LATER_MS = books.NOW_MS + 9 * books.DAY_MS
ROOT = Path(__file__).parents[3]


@pytest.fixture
def database(sound_books: Path) -> Path:
    return sound_books


def checked(database: Path, *, chunk_count: int = CHUNK_COUNT) -> VerifyResult:
    return verify(database, now_ms=LATER_MS, chunk_count=chunk_count)


# -- sound books ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_count", [1, 7, 5_000])
def test_sound_books_balance_in_chunks_of_any_size(database: Path, chunk_count: int) -> None:
    result = checked(database, chunk_count=chunk_count)
    assert result.is_ok, str(result)
    assert result.checked["resolutions"] > 200
    assert result.checked["open reservations"] == 2
    assert result.checked["hourly sums"] > 100
    assert "The books balance" in str(result)


def test_the_sound_books_hold_something_of_every_kind(database: Path) -> None:
    for sql in (
        "SELECT 1 FROM resolutions WHERE kind = 'post' AND charge_nanos = 0",
        "SELECT 1 FROM resolutions WHERE kind = 'void'",
        "SELECT 1 FROM resolutions WHERE kind = 'expire'",
        *(
            f"SELECT 1 FROM transfers WHERE kind = '{kind}'"
            for kind in ("grant", "grant_expire", "grant_revoke", "adjust", "absorb", "late_post")
        ),
        "SELECT 1 FROM transfers WHERE part > 0",
        "SELECT 1 FROM usage_records WHERE cost_nanos IS NULL",
        "SELECT 1 FROM usage_records WHERE outcome = 'rejected'",
        "SELECT 1 FROM usage_records WHERE service_tier = 'batch'",
        "SELECT 1 FROM attempts WHERE cost_nanos > 0",
        "SELECT 1 FROM reservations WHERE json_array_length(lots) = 2",
        "SELECT 1 FROM reservations WHERE json_array_length(budgets) = 2",
        "SELECT 1 FROM transfers WHERE kind = 'late_post' AND note IS NOT NULL",
    ):
        one(database, sql)


def test_books_after_a_crash_and_its_recovery_balance(template: bytes, tmp_path: Path) -> None:
    path = tmp_path / "crashed.db"
    path.write_bytes(template)
    books.crash(path)
    result = checked(path)
    assert result.is_ok, str(result)
    assert one(path, "SELECT count(*) FROM transfers WHERE kind = 'absorb'") == "1"


def test_an_empty_database_balances(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    ensure_schema(path)
    assert checked(path).is_ok


def test_a_limit_that_was_lowered_below_what_is_spent_is_a_note_and_no_difference(database: Path) -> None:
    [note] = checked(database).notes
    assert note.startswith("budget bud_org 2026-11: spent ")


# -- twins: doctored books -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_doctored_books_are_caught_and_the_row_is_named(database: Path, twin: Twin) -> None:
    named = one(database, twin.find_id)
    doctor(database, twin.statements)
    result = checked(database)
    assert not result.is_ok
    first = result.differences[0]
    assert (first.table, first.id, first.what) == (twin.table, named, twin.what)
    assert first.stored != first.recomputed


@pytest.mark.parametrize(
    "kind", ["wallet", "held", "grants", "adjustments", "absorbed", "revenue", "expense", "payable"]
)
def test_every_account_is_recomputed(database: Path, kind: str) -> None:
    account = one(database, f"SELECT max(account) FROM balances WHERE account LIKE '{kind}/%' AND balance_nanos <> 0")
    doctor(database, f"UPDATE balances SET balance_nanos = balance_nanos + 1 WHERE account = '{account}'")
    first, total = checked(database).differences
    assert (first.table, first.id) == ("balances", account)
    assert isinstance(first.stored, int)
    assert first.recomputed == first.stored - 1
    assert (total.id, total.stored, total.recomputed) == ("all", 1, 0)


@pytest.mark.parametrize("statement", entries.PROGRAM, ids=lambda statement: statement.split()[2])
def test_a_guard_that_is_away_is_a_difference(database: Path, statement: str) -> None:
    kind, name = statement.split()[1:3]
    doctor(database, f"DROP {kind} {name}" if kind == "VIEW" else "SELECT 1")
    if kind == "TRIGGER":
        connection = open_writer(database)
        connection.execute(f"DROP TRIGGER {name}")
        connection.close()
    [difference] = checked(database).differences
    assert (difference.table, difference.id, difference.stored) == ("sqlite_master", name, None)


def test_a_view_that_says_something_else_is_a_difference(database: Path) -> None:
    doctor(database, "DROP VIEW entries", "CREATE VIEW entries AS SELECT 1 AS subject")
    [difference] = checked(database).differences
    assert (difference.id, difference.stored) == ("entries", "CREATE VIEW entries AS SELECT 1 AS subject")


def test_a_request_charged_twice_is_caught_and_so_is_the_missing_unique_key(database: Path) -> None:
    doctor(
        database,
        "DROP VIEW entries",
        "CREATE TABLE copied AS SELECT * FROM resolutions",
        "DROP TABLE resolutions",
        "ALTER TABLE copied RENAME TO resolutions",
        "INSERT INTO resolutions SELECT 10000, reservation_id, kind, charge_nanos, resolved_at_ms FROM resolutions"
        " WHERE charge_nanos > 0 LIMIT 1",
        entries.PROGRAM[0],
    )
    found = [(one.table, one.id, one.what) for one in checked(database, chunk_count=5_000).differences]
    assert ("sqlite_master", "resolutions", "UNIQUE (reservation_id)") in found
    assert ("balances", "wallet/org_1", "balance_nanos") in found


def test_differences_beyond_those_shown_are_counted(database: Path) -> None:
    doctor(database, "UPDATE usage_records SET cost_nanos = cost_nanos + 1 WHERE cost_nanos > 0")
    result = checked(database)
    assert len(result.differences) == SHOWN_MAX < result.differences_count
    assert f"and {result.differences_count - 1:,} more" in str(result)
    assert str(result.differences[0]) in str(result)


# -- beside a platform that writes on --------------------------------------------------------------------------------------


class Busy:
    """Called as progress: writes on, as a platform would, between any two statements of the verification."""

    def __init__(self, till: Till) -> None:
        self.till = till
        self.writes_count = 0
        self._expired = [till.reserve("key_1", "org_1", price=PRICE, amount_nanos=5_000) for _ in range(2)]
        for held in self._expired:
            till.expire(held)
        self._open = till.reserve("key_2", "org_2", price=PRICE, amount_nanos=4_000)

    def __call__(self, done: int, _all: int) -> None:
        till, usage = self.till, Usage(uncached_input=20, output=9)
        self.writes_count += 1
        till.settle(self._open, usage)
        self._open = till.reserve("key_2", "org_2", price=PRICE, amount_nanos=4_000)
        till.adjust("org_1", 3)
        if self._expired:  # its hold had expired before the snapshot; its end comes after it
            till.settle(self._expired.pop(), usage)
        gone = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=4_000)
        till.expire(gone)
        till.remember_open()
        reader_lag = Checkpoint(till.database)()
        assert reader_lag == 0, "a read transaction is open between two statements"


class Checkpoint:
    """How many pages of the write-ahead log can't be checkpointed because somebody reads an older moment."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def __call__(self) -> int:
        connection = open_writer(self._database)
        is_busy, pages, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        connection.close()
        return int(is_busy or pages - done)


def busy_books(template: bytes, tmp_path: Path) -> Till:
    path = tmp_path / "busy.db"
    path.write_bytes(template)
    till = books.open_till(path)
    for _ in range(20):
        till.settle(till.reserve("key_1", "org_1", price=PRICE, amount_nanos=4_000), Usage(output=3))
    return till


def test_books_that_are_being_written_are_proved_as_of_one_moment(template: bytes, tmp_path: Path) -> None:
    till = busy_books(template, tmp_path)
    busy = Busy(till)
    result = verify(till.database, now_ms=till.now_ms, chunk_count=2, progress=busy)
    assert result.is_ok, str(result)
    assert busy.writes_count > 20
    assert verify(till.database, now_ms=LATER_MS).is_ok
    till.__exit__(None, None, None)


def test_sums_and_bounds_of_two_moments_would_not_agree(
    template: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: a verification whose snapshot isn't one transaction."""
    till = busy_books(template, tmp_path)
    take = Sums.take_stored

    def take_in_another_moment(sums: Sums) -> None:
        connection: Connection = sums._connection
        connection.execute("COMMIT")
        till.settle(till.reserve("key_1", "org_1", price=PRICE, amount_nanos=4_000), Usage(output=3))
        connection.execute("BEGIN")
        take(sums)

    monkeypatch.setattr(Sums, "take_stored", take_in_another_moment)
    result = verify(till.database, now_ms=till.now_ms)
    assert result.differences[0].table == "balances"
    till.__exit__(None, None, None)


def test_rows_archived_meanwhile_start_the_verification_again(database: Path) -> None:
    calls: list[int] = []

    def archive_once(done: int, _all: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            archive(database)

    result = verify(database, now_ms=LATER_MS, chunk_count=50, progress=archive_once)
    assert result.is_ok, str(result)
    assert result.checked["resolutions"] < 200


# -- archived books --------------------------------------------------------------------------------------------------------


class _Clock:
    def now_s(self) -> float:
        return books.NOW_MS / 1000


def archive(database: Path) -> None:
    """Move what is older than a day out of the log, with the product's own archiver."""
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    writer.start()
    archived = asyncio.run(Archiver(database, writer, database.parent / "archives", 1.0, _Clock()).run_once())
    writer.close()
    assert archived.requests_count > 50


def test_books_whose_oldest_rows_are_archived_are_recomputed_from_what_those_add_up_to(database: Path) -> None:
    before = checked(database)
    archive(database)
    result = checked(database)
    assert result.is_ok, str(result)
    assert result.checked["resolutions"] < before.checked["resolutions"]
    assert result.checked["sums"] == before.checked["sums"]


@pytest.mark.parametrize(
    ("kind", "table"), [("balance", "balances"), ("lot", "grant_lots"), ("budget", "budget_periods")]
)
def test_a_carried_sum_that_was_changed_is_caught(database: Path, kind: str, table: str) -> None:
    archive(database)
    doctor(
        database,
        "UPDATE carried_sums SET amount_nanos = amount_nanos + 1"
        f" WHERE kind = '{kind}' AND name = (SELECT max(name) FROM carried_sums WHERE kind = '{kind}')",
    )
    assert checked(database).differences[0].table == table


# -- as a program ----------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "headwater.ledger.verify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


def test_the_program_says_that_the_books_balance_and_exits_with_0(database: Path) -> None:
    done = run(str(database), "--nice", "5")
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert done.stdout.endswith("The books balance: every row and every sum is as the log says.\n")


def test_the_program_names_the_first_row_as_json_and_exits_with_1(database: Path) -> None:
    doctor(database, "UPDATE grant_lots SET remaining_nanos = remaining_nanos + 1 WHERE grant_id = 'grt_2'")
    done = run(str(database), "--json", "--chunk", "3")
    assert done.returncode == EXIT_DIFFERS
    found = json.loads(done.stdout)
    assert found["verdict"] == "differs"
    assert found["differences"][0]["id"] == "grt_2"


@pytest.mark.parametrize("content", [None, b"no database at all, but text"])
def test_what_can_not_be_read_exits_with_2(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.db"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path), "--json"]) == EXIT_UNREADABLE
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "unreadable"
    assert err.startswith("error: ")


def test_another_schema_exits_with_2(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(database, "UPDATE alembic_version SET version_num = '0001'")
    assert main([str(database)]) == EXIT_UNREADABLE
    assert "0001" in capsys.readouterr().err


def test_findings_keep_the_first() -> None:
    findings = Findings()
    for number in range(30):
        findings.add("t", number, "x", 1, 2)
    assert (findings.count, len(findings.first), findings.first[0].id) == (30, SHOWN_MAX, "0")
