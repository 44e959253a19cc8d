"""Archiving changes where rows are and no sum: after every transaction the books balance, wherever a run is cut short."""

import asyncio
import contextlib
import gzip
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.errors import OperatorError
from headwater.ledger import archive
from headwater.ledger.archive import Archived, Archiver, Plan, cutoff_ms, plan
from headwater.ledger.archive_file import read_lines
from headwater.ledger.hours import By, read_usage
from headwater.ledger.store import IntegrityError, Write, open_reader, open_writer
from headwater.ledger.verify import verify
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger import books
from tests.unit.ledger.books import BEGAN_MS, DAY_MS, HOUR_MS
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.faults import ENVIRONMENT, ROOT, run_until
from tests.unit.ledger.till import Till

LONG_AGO_MS = BEGAN_MS + 20 * DAY_MS
BYS: tuple[By, ...] = ("model", "key", "day")


class Clock:
    """Stands still."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def now_s(self) -> float:
        return self.now_ms / 1000


class CutShort(Exception):
    """The process ends here, as far as the archiver can tell."""


class Cutting:
    """A writer that takes so many submissions of the archiver's and then no more; `after` is called after each."""

    def __init__(self, writer: LedgerWriter, allowed: int, after: Any = lambda: None) -> None:
        self._writer = writer
        self._allowed = allowed
        self._after = after

    def submit(self, writes: Sequence[Write]) -> "Future[None]":
        if self._allowed == 0:
            raise CutShort
        self._allowed -= 1
        done = self._writer.submit(writes)
        done.result(WAIT_S)
        self._after()
        return done


@pytest.fixture(scope="module")
def sound(template: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of books with settlements of all kinds, over three days."""
    path = tmp_path_factory.mktemp("sound") / "headwater.db"
    path.write_bytes(template)
    books.build(path, requests_count=150)
    return path.read_bytes()


@pytest.fixture
def database(sound: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "headwater.db"
    path.write_bytes(sound)
    return path


@pytest.fixture
def writer(database: Path) -> Any:
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    writer.start()
    yield writer
    writer.close()


def make(database: Path, writer: Any, *, now_ms: int = LONG_AGO_MS, **given: Any) -> Archiver:
    directory = database.parent / "archives"
    return Archiver(database, writer, directory, given.pop("after_days", 1.0), Clock(now_ms), **given)


def rows(database: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    reader = open_reader(database)
    found = reader.execute(sql, values).fetchall()
    reader.close()
    return found


def number(database: Path, sql: str) -> Any:
    return rows(database, sql)[0][0]


def assert_balanced(database: Path) -> None:
    result = verify(database, now_ms=LONG_AGO_MS)
    assert result.is_ok, str(result)


def lines(directory: Path) -> list[dict[str, Any]]:
    """The requests of every listed file."""
    return [line for path in sorted(directory.glob("usage-*.jsonl.gz")) for line in read_lines(path)]


def requests(database: Path) -> set[str]:
    """Every request that the log knows."""
    return {
        row[0]
        for row in rows(database, "SELECT request_id FROM usage_records UNION SELECT request_id FROM reservations")
    }


def usage(database: Path) -> list[Any]:
    """What reports say of the whole time, and of days, hours and keys in it."""
    reader = open_reader(database)
    spans = [(0, LONG_AGO_MS), (BEGAN_MS + 5 * HOUR_MS, BEGAN_MS + 31 * HOUR_MS), (BEGAN_MS, BEGAN_MS + DAY_MS)]
    found = [
        read_usage(reader, by, start_ms=start, end_ms=end, key_id=key_id)
        for by in BYS
        for start, end in spans
        for key_id in (None, "key_1")
    ]
    reader.close()
    return found


# -- what leaves, and what stays -----------------------------------------------------------------------------------------


async def test_what_is_old_moves_to_a_file_and_every_sum_stays(database: Path, writer: LedgerWriter) -> None:
    assert_balanced(database)
    before, sums_before = requests(database), usage(database)
    caches = [
        rows(database, f"SELECT * FROM {table}")
        for table in ("balances", "grant_lots", "budget_periods", "usage_hours")
    ]
    done = await make(database, writer, now_ms=BEGAN_MS + 3 * DAY_MS).run_once()
    moved = {line["request_id"] for line in lines(database.parent / "archives")}
    assert done.requests_count == len(moved) > 80
    assert len(done.files) == 1
    left = requests(database)
    assert left.isdisjoint(moved)
    assert left | moved == before
    assert number(database, f"SELECT count(*) FROM usage_records WHERE received_at_ms < {BEGAN_MS + DAY_MS}") == 0
    assert_balanced(database)
    assert usage(database) == sums_before
    assert caches == [
        rows(database, f"SELECT * FROM {table}")
        for table in ("balances", "grant_lots", "budget_periods", "usage_hours")
    ]


async def test_a_file_holds_every_row_as_the_tables_had_it(database: Path, writer: LedgerWriter) -> None:
    tables = {}
    reader = open_reader(database)
    for name in ("usage_records", "attempts", "reservations", "resolutions", "transfers"):
        cursor = reader.execute(f"SELECT * FROM {name}")
        columns = [column[0] for column in cursor.description]
        tables[name] = [dict(zip(columns, row, strict=True)) for row in cursor]
    reader.close()
    done = await make(database, writer).run_once()
    found = lines(database.parent / "archives")
    assert [line["record"] for line in found if line["record"]] != []
    for line in found:
        assert set(line) == {"request_id", "record", "attempts", "reservation", "resolution", "transfers"}
        assert line["record"] is None or line["record"] in tables["usage_records"]
        assert line["attempts"] == [row for row in tables["attempts"] if row["request_id"] == line["request_id"]]
        assert line["reservation"] is None or line["reservation"] in tables["reservations"]
        assert line["resolution"] is None or line["resolution"] in tables["resolutions"]
        beside = [
            row
            for row in tables["transfers"]
            if row["subject"] == line["request_id"] and row["kind"] in ("absorb", "late_post")
        ]
        assert line["transfers"] == beside
    kinds = Counter(row["kind"] for line in found for row in (line["resolution"], *line["transfers"]) if row)
    assert set(kinds) == {"post", "void", "expire", "absorb", "late_post"}
    [(file, sha256, reservations_to, count)] = rows(
        database, "SELECT file, sha256, reservations_to, records_count FROM archives"
    )
    assert (file,) == done.files
    assert hashlib.sha256((database.parent / "archives" / file).read_bytes()).digest() == sha256
    assert count == done.requests_count == len(found)
    assert reservations_to == max(line["reservation"]["id"] for line in found if line["reservation"])
    assert file.startswith("usage-20261105T230000Z-20261108T")


async def test_reservations_leave_as_a_prefix_that_an_open_one_ends(database: Path, writer: LedgerWriter) -> None:
    first_open = number(
        database, "SELECT min(id) FROM reservations WHERE id NOT IN (SELECT reservation_id FROM resolutions)"
    )
    await make(database, writer).run_once()
    assert number(database, "SELECT min(id) FROM reservations") <= first_open
    assert number(database, "SELECT max(reservations_to) FROM archives") < first_open
    assert number(database, f"SELECT count(*) FROM reservations WHERE id >= {first_open}") > 0


async def test_the_newest_resolution_and_transfer_stay_so_that_ids_go_on(database: Path, writer: LedgerWriter) -> None:
    newest = [number(database, f"SELECT max(id) FROM {table}") for table in ("resolutions", "transfers")]
    await make(database, writer).run_once()
    assert [number(database, f"SELECT max(id) FROM {table}") for table in ("resolutions", "transfers")] == newest


async def test_what_is_younger_stays(database: Path, writer: LedgerWriter) -> None:
    now_ms = BEGAN_MS + 2 * DAY_MS + 17 * 60_000
    await make(database, writer, now_ms=now_ms).run_once()
    cutoff = cutoff_ms(now_ms, 1)
    assert cutoff == BEGAN_MS + DAY_MS
    for line in lines(database.parent / "archives"):
        if line["record"]:
            assert line["record"]["received_at_ms"] + line["record"]["duration_ms"] < cutoff
        if line["resolution"]:
            assert line["resolution"]["resolved_at_ms"] < cutoff
    assert number(database, "SELECT value FROM ledger_state WHERE name = 'archived_hours_to'") == cutoff // HOUR_MS


async def test_nothing_old_makes_no_file(database: Path, writer: LedgerWriter) -> None:
    assert await make(database, writer, now_ms=BEGAN_MS).run_once() == Archived()
    assert not list((database.parent / "archives").glob("*"))


async def test_without_an_age_nothing_is_archived(database: Path, writer: LedgerWriter) -> None:
    assert (await make(database, writer, after_days=None).run_once()).requests_count == 0
    assert not (database.parent / "archives").exists()


def test_less_than_a_day_is_refused(database: Path) -> None:
    with pytest.raises(ValueError, match="less than a day"):
        make(database, None, after_days=0.5)


async def test_a_plan_says_what_would_move_and_moves_nothing(database: Path, writer: LedgerWriter) -> None:
    before = requests(database)
    planned = await plan(database, 1.0, LONG_AGO_MS)
    assert requests(database) == before
    assert not (database.parent / "archives").exists()
    done = await make(database, writer).run_once()
    received = [
        (line["record"] or line["reservation"])["received_at_ms"] for line in lines(database.parent / "archives")
    ]
    assert planned == Plan(done.requests_count, min(received), max(received))
    assert await plan(database, 1.0, LONG_AGO_MS) == Plan(0, None, None)


async def test_files_have_a_bound_and_each_request_is_in_one(database: Path, writer: LedgerWriter) -> None:
    done = await make(database, writer, requests_max=40, chunk_count=7).run_once()
    assert len(done.files) == len(set(done.files)) == -(-done.requests_count // 40)
    found = [line["request_id"] for line in lines(database.parent / "archives")]
    assert len(found) == len(set(found)) == done.requests_count
    assert [row[0] for row in rows(database, "SELECT records_count FROM archives ORDER BY id")][:2] == [40, 40]
    assert_balanced(database)


async def test_a_second_run_later_goes_on_where_the_first_ended(database: Path, writer: LedgerWriter) -> None:
    before = usage(database)
    first = await make(database, writer, now_ms=BEGAN_MS + 2 * DAY_MS).run_once()
    second = await make(database, writer, now_ms=BEGAN_MS + 3 * DAY_MS).run_once()
    assert first.requests_count > 40 < second.requests_count
    assert set(first.files).isdisjoint(second.files)
    assert len(lines(database.parent / "archives")) == first.requests_count + second.requests_count
    assert_balanced(database)
    assert usage(database) == before


async def test_settlements_after_an_archiving_settle(database: Path, writer: LedgerWriter) -> None:
    await make(database, writer).run_once()
    writer.close()
    till = Till(database, now_ms=LONG_AGO_MS, epoch=2)
    with till:
        till.recover()
    assert_balanced(database)


# -- cut short -----------------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_wherever_runs_are_cut_short_the_books_balance_and_no_request_is_lost_or_doubled(
    sound: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    database = tmp_path_factory.mktemp("cut") / "headwater.db"
    database.write_bytes(sound)
    everything, sums = requests(database), usage(database)
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    writer.start()
    sizes = {
        "requests_max": data.draw(st.integers(20, 200), "requests_max"),
        "chunk_count": data.draw(st.integers(5, 90), "chunk_count"),
    }
    now_ms = BEGAN_MS + DAY_MS
    try:
        for allowed in [*data.draw(st.lists(st.integers(0, 6), max_size=4), "submissions"), 1_000]:
            now_ms += data.draw(st.integers(0, 2 * DAY_MS), "time passes")
            archiver = make(
                database, Cutting(writer, allowed, lambda: assert_balanced(database)), now_ms=now_ms, **sizes
            )
            with contextlib.suppress(CutShort):
                asyncio.run(archiver.run_once())
            assert_balanced(database)
            assert usage(database) == sums
        found = [line["request_id"] for line in lines(database.parent / "archives")]
        left = requests(database)
        assert len(found) == len(set(found))
        assert left.isdisjoint(found)
        assert left | set(found) == everything
        assert number(database, "SELECT coalesce(sum(records_count), 0) FROM archives") == len(found)
    finally:
        writer.close()


async def test_a_file_that_nothing_left_the_log_for_is_set_aside(database: Path, writer: LedgerWriter) -> None:
    with pytest.raises(CutShort):
        await make(database, Cutting(writer, 0)).run_once()
    directory = database.parent / "archives"
    [orphan] = directory.glob("usage-*.jsonl.gz")
    done = await make(database, writer).run_once()
    assert (directory / f"{orphan.name}.unlisted").exists()
    assert done.files == (orphan.name,), "the same requests, written again"
    assert_balanced(database)


async def test_a_file_that_is_gone_or_changed_before_its_requests_left_is_said(
    database: Path, writer: LedgerWriter
) -> None:
    with pytest.raises(CutShort):
        await make(database, Cutting(writer, 1), chunk_count=30).run_once()
    [path] = (database.parent / "archives").glob("usage-*.jsonl.gz")
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    before = requests(database)
    with pytest.raises(OperatorError, match="is not the file that was archived"):
        await make(database, writer).run_once()
    path.unlink()
    with pytest.raises(OperatorError, match="No such file"):
        await make(database, writer).run_once()
    assert requests(database) == before
    path.write_bytes(content)
    await make(database, writer).run_once()
    assert_balanced(database)


async def test_a_chunk_can_not_be_taken_twice(database: Path, writer: LedgerWriter) -> None:
    taken: list[Sequence[Write]] = []

    class Recording:
        def submit(self, writes: Sequence[Write]) -> "Future[None]":
            taken.append(writes)
            return writer.submit(writes)

    await make(database, Recording(), chunk_count=30).run_once()
    sums = rows(database, "SELECT * FROM carried_sums")
    for writes in taken:
        assert isinstance(writer.submit(writes).exception(WAIT_S), IntegrityError)
    assert rows(database, "SELECT * FROM carried_sums") == sums
    assert_balanced(database)


PROGRAM = (
    "import asyncio, resource, sys; from pathlib import Path\n"
    "from headwater.ledger.archive import Archiver; from headwater.ledger.store import open_writer\n"
    "from headwater.ledger.writer import LedgerWriter; from tests.unit.ledger.test_archive import Clock, LONG_AGO_MS\n"
    "database = Path(sys.argv[1])\n"
    "writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None); writer.start()\n"
    "if len(sys.argv) > 2: resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
    "async def main():\n"
    "    archiver = Archiver(database, writer, database.parent / 'archives', 1.0, Clock(LONG_AGO_MS), chunk_count=5)\n"
    "    print(await archiver.run_once())\n"
    "try: asyncio.run(main())\n"
    "finally: writer.close()\n"
)


@pytest.mark.parametrize("sync", [1, 4, 11])
def test_a_process_that_is_killed_between_transactions_loses_nothing(database: Path, sync: int) -> None:
    everything = requests(database)
    done = run_until("fsync", sync, "-c", PROGRAM, str(database), paths=(database.with_name("headwater.db-wal"),))
    assert done.returncode < 0, done.stdout + done.stderr
    assert_balanced(database)
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    writer.start()
    asyncio.run(make(database, writer).run_once())
    writer.close()
    assert_balanced(database)
    found = [line["request_id"] for line in lines(database.parent / "archives")]
    assert len(found) == len(set(found)) > 100
    assert set(found) | requests(database) == everything
    assert requests(database).isdisjoint(found)


def test_a_disk_without_room_leaves_the_log_as_it_is(database: Path) -> None:
    before = requests(database)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(database), "3000"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Old usage records could not be archived. OSError: [Errno 27] File too large" in done.stderr
    assert requests(database) == before
    assert not list((database.parent / "archives").glob("*")), "no half of a file is left"
    assert_balanced(database)


# -- twins ---------------------------------------------------------------------------------------------------------------


class TestTwins:
    """Archivers that are wrong in one way: the balance notices."""

    @pytest.mark.parametrize("kind", ["balance", "lot", "budget"])
    async def test_sums_that_are_not_carried(
        self, database: Path, writer: LedgerWriter, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        real = archive._chunk_writes

        def without(*given: Any) -> list[Write]:
            return [
                write for write in real(*given) if write.statement is not archive.ADD_TO_CARRIED or write.row[0] != kind
            ]

        monkeypatch.setattr(archive, "_chunk_writes", without)
        await make(database, writer).run_once()
        assert not verify(database, now_ms=LONG_AGO_MS).is_ok

    async def test_transfers_that_are_left_behind(
        self, database: Path, writer: LedgerWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(archive.DELETES, "transfers", ())
        await make(database, writer).run_once()
        assert not verify(database, now_ms=LONG_AGO_MS).is_ok

    async def test_rows_and_sums_in_two_transactions(self, database: Path, writer: LedgerWriter) -> None:
        class InTwo:
            def submit(self, writes: Sequence[Write]) -> "Future[None]":
                writer.submit([write for write in writes if write.statement is not archive.ADD_TO_CARRIED]).result(
                    WAIT_S
                )
                if verify(database, now_ms=LONG_AGO_MS).is_ok:
                    pytest.fail("the gap between the two was not noticed")
                return writer.submit([write for write in writes if write.statement is archive.ADD_TO_CARRIED])

        await make(database, InTwo()).run_once()
        assert_balanced(database)


# -- what a reader of files finds ----------------------------------------------------------------------------------------


def test_a_line_is_documented() -> None:
    page = (ROOT / "docs" / "how-to" / "keep-the-log-small.md").read_text()
    for field in ("request_id", "record", "attempts", "reservation", "resolution", "transfers"):
        assert f"| `{field}` |" in page, field


async def test_a_file_is_what_gunzip_and_any_json_reader_read(database: Path, writer: LedgerWriter) -> None:
    done = await make(database, writer).run_once()
    content = gzip.decompress((database.parent / "archives" / done.files[0]).read_bytes()).decode()
    assert [json.loads(line)["request_id"] for line in content.splitlines()]
