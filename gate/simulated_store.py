"""The real disk under the simulation: the product's settler, writer, recovery and loading, over real SQLite files.

The event loop turns only where the simulation commits, so a seed runs the same way each time. A crash copies the files
as they lie, unclosed, sometimes with a last commit that is torn in the middle; the next start goes on with the copies.
"""

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Any, cast

from gate.simulated_disk import Broken, Contents, MakeBook, Ticket, first_part
from gate.simulated_world import EPOCH_MS, KEYS, ORGANIZATIONS, PRICE, PROJECTS, World
from headwater.errors import LedgerUnavailable
from headwater.gateway.settle import Settler
from headwater.ledger import admin_store, store
from headwater.ledger.batch import Batch
from headwater.ledger.book import Book
from headwater.ledger.load_book import load_book
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.recovery import recover
from headwater.ledger.rows import (
    Delta,
    KeyRow,
    MarkRow,
    ReservationRow,
    ResolutionRow,
    TransferKind,
    TransferRow,
)
from headwater.ledger.store import BudgetState, Connection, DatabaseError, Write, open_reader, open_writer
from headwater.ledger.verify import verify
from headwater.ledger.writer import LedgerWriter

TORN_SHARE = 0.4
"""Of the crashes with something under way, how many tear its commit in the middle of the write-ahead log."""
WAL = "-wal"


def write_template(path: Path) -> None:
    """An empty database with the callers and the price that every world has."""
    ensure_schema(path)
    writes = [Write(store.INSERT_ORGANIZATION, (one, one, EPOCH_MS)) for one in ORGANIZATIONS]
    writes += [Write(store.INSERT_PROJECT, (one, owner, one, EPOCH_MS)) for one, owner in PROJECTS.items()]
    for number, (key_id, project_id) in enumerate(KEYS.items()):
        row = KeyRow(
            key_id, PROJECTS[project_id], project_id, key_id, bytes([number] * 32), "", None, EPOCH_MS, None, None
        )
        writes.append(Write(store.INSERT_KEY, tuple(row)))
    writes.append(store.price_write(PRICE, EPOCH_MS, effective_at_ms=0))
    writer = LedgerWriter(open_writer(path), on_fatal=lambda _: None)
    writer.start()
    writer.submit(writes).result()
    writer.close()


class _Failing:
    """A connection whose next commit fails when it is told to."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.is_failing = False

    def execute(self, sql: str, *row: Any) -> Any:
        if self.is_failing and sql == "COMMIT":
            raise DatabaseError("disk I/O error")
        return self._connection.execute(sql, *row)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class StoreLog:
    """A log that is the product's; see `simulated_disk.Log`."""

    def __init__(self, world: World, template: Path, directory: Path) -> None:
        """directory: empty; all files of this seed go there. template: from `write_template`."""
        self._world = world
        self._directory = directory
        self._starts_count = 0
        self._waiting: list[tuple[str, tuple[Any, ...], Ticket]] = []
        self._path = directory / "0.db"
        shutil.copyfile(template, self._path)

    # -- the interface -------------------------------------------------------------------------------------------------

    def put(self, write: str, *what: object) -> Ticket:
        """Hand over."""
        ticket = Ticket()
        self._waiting.append((write, what, ticket))
        return ticket

    def decide(self, terms: BudgetTerms, *, is_archived: bool = False) -> None:
        """Change a budget, as the administration does."""
        row: tuple[object, ...] = (terms.id, EPOCH_MS) if is_archived else (terms.id, terms.limit_nanos, "[]")
        statement = admin_store.ARCHIVE_BUDGET if is_archived else admin_store.UPDATE_BUDGET
        change = admin_store.ChangeRow(EPOCH_MS, "budget", terms.id, "archive" if is_archived else "update", "{}")
        self._writer.submit([Write(statement, row), Write(admin_store.INSERT_CHANGE, change)]).result()

    async def start(self, make: MakeBook) -> Book:
        """Write what the world begins with, and load it."""
        del make
        self._open()
        batch, writes = Batch(), list[Write]()
        for organization_id, is_prepaid in self._world.is_prepaid.items():
            row = (organization_id, organization_id, None, is_prepaid)
            writes.append(Write(admin_store.UPDATE_ORGANIZATION, row))
        writes += [admin_store.budget_write(terms, EPOCH_MS) for terms in self._world.budgets]
        for grant in self._world.grants:
            given = (grant.id, grant.organization_id, grant.amount_nanos, grant.expires_at_ms, None, EPOCH_MS, None)
            writes.append(Write(admin_store.INSERT_GRANT, given))
            writes.append(Write(admin_store.INSERT_LOT, (grant.id, grant.amount_nanos)))
            batch.move([_transfer("grant", grant.id, grant.organization_id, grant.amount_nanos)])
        self._writer.submit([*writes, *batch.writes()]).result()
        return self._recovered(EPOCH_MS)

    async def commit(self) -> list[Ticket]:
        """Give everything that waits to the settler, and wait for the disk."""
        return await self._write(len(self._waiting))

    async def fail(self) -> list[Ticket]:
        """Let the commit fail; everybody must be told. Then the writer is gone."""
        self._connection.is_failing = True
        written = list(self._waiting)
        await self._hand_over(written, is_failure_expected=True)
        self._writer.close()
        self._open()  # what the simulation wants to have reached the disk in spite of the failure is written with this
        return [ticket for _, _, ticket in written]

    async def die(self, share: float, now_ms: int, make: MakeBook) -> tuple[Contents, Book]:
        """Write a part; copy the files, perhaps with a torn commit of the rest; go on with the copies."""
        del make
        await self._write(first_part(share, len(self._waiting)))
        copy = self._directory / f"{self._starts_count}.db"
        self._copy(copy)
        rest, self._waiting = self._waiting, []
        if rest and share * 10 % 1 < TORN_SHARE and all(write != "revoke" for write, _, _ in rest):
            await self._hand_over(rest)
            self._tear(copy, share)
        self._writer.close()
        self._path = copy
        with contextlib.closing(open_reader(copy)) as reader:
            before = _read(reader, self._world)
        self._open()
        return before, self._recovered(now_ms)

    def contents(self) -> Contents:
        """Everything, read from the database."""
        with contextlib.closing(open_reader(self._path)) as reader:
            return _read(reader, self._world)

    def read_key(self, key_id: str) -> list[BudgetState]:
        """As the cashier reads them."""
        with contextlib.closing(open_reader(self._path)) as reader:
            return store.read_budgets(reader, key_id)

    async def close(self, now_ms: int) -> None:
        """Let the product prove its books."""
        self._writer.close()
        result = verify(self._path, now_ms=now_ms)
        if not result.is_ok:
            raise Broken("misstated", f"the product's own check: {result.differences}")

    # -- how -------------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._starts_count += 1
        self._connection = _Failing(open_writer(self._path))
        self._connection.execute("PRAGMA synchronous=OFF")  # the files are copied, the machine doesn't lose power
        self._writer = LedgerWriter(cast("Connection", self._connection), on_fatal=lambda _: None)
        self._writer.start()
        self._settler = Settler(self._writer)

    def _recovered(self, now_ms: int) -> Book:
        """A start as `platform.py` has it: epoch, recovery, book."""
        with contextlib.closing(open_reader(self._path)) as reader:
            epoch = store.read_next_epoch(reader)
            self._writer.submit([Write(store.INSERT_EPOCH, (epoch, "gw_1", now_ms))]).result()
            recover(reader, self._writer, now_ms=now_ms)
            return load_book(reader, keys_count_max=self._world.keys_count_max)

    async def _write(self, count: int) -> list[Ticket]:
        written, self._waiting = self._waiting[:count], self._waiting[count:]
        await self._hand_over(written)
        return [ticket for _, _, ticket in written]

    async def _hand_over(
        self, items: list[tuple[str, tuple[Any, ...], Ticket]], *, is_failure_expected: bool = False
    ) -> None:
        """Through the settler, in order; a revocation, which the administration writes itself, in its place."""
        waits: list[asyncio.Future[None]] = []
        for write, what, _ in items:
            if write == "revoke":
                await self._settled(waits, is_failure_expected=is_failure_expected)
                self._revoke(*what, is_failure_expected=is_failure_expected)
            else:
                waits += self._settle(write, *what)
        await self._settled(waits, is_failure_expected=is_failure_expected)

    def _settle(self, write: str, *what: Any) -> list["asyncio.Future[None]"]:
        settler = self._settler
        match write:
            case "reserve":
                row: ReservationRow = what[0]
                if row.is_stream:  # whose first content waits for it
                    return [settler.reserve(row)]
                settler.reserve_with_next(row)
            case "settle":
                return [settler.settle(what[0])]
            case "expire":
                return [settler.expire(*what)]
            case "mark":
                settler.mark("req", what[0])
            case "lapse":
                settler.lapse(what[0])
            case "remember":
                settler.remember(store.OPEN_FROM, what[0])
        return []

    async def _settled(self, waits: list["asyncio.Future[None]"], *, is_failure_expected: bool) -> None:
        await self._settler.flush()
        await asyncio.sleep(0)  # the settler's turn, should nobody wait for what it has
        barrier = self._writer.submit([])
        with contextlib.suppress(Exception):
            await asyncio.wrap_future(barrier)
        for wait in waits:
            error = wait.exception()
            if is_failure_expected != isinstance(error, LedgerUnavailable):
                raise Broken("unsaid" if is_failure_expected else "lost", f"a settlement ended with {error!r}")
        waits.clear()

    def _revoke(self, grant_id: str, transfers: list[TransferRow], *, is_failure_expected: bool) -> None:
        batch = Batch()
        batch.move(transfers, [Delta((grant_id,), -row.amount_nanos) for row in transfers])
        done = self._writer.submit([Write(admin_store.REVOKE_GRANT, (grant_id, EPOCH_MS)), *batch.rows()])
        if is_failure_expected == (done.exception() is None):
            raise Broken("unsaid", f"a revocation ended with {done.exception()!r}")

    def _copy(self, to: Path) -> None:
        for suffix in ("", WAL):
            source = self._path.with_name(self._path.name + suffix)
            if source.exists():
                shutil.copyfile(source, to.with_name(to.name + suffix))

    def _tear(self, copy: Path, share: float) -> None:
        """Let the copy have a first part of what the last commit wrote, unless the log began anew meanwhile."""
        before, now = (path.with_name(path.name + WAL) for path in (copy, self._path))
        size, size_now = before.stat().st_size if before.exists() else 0, now.stat().st_size
        if size < size_now and copy.read_bytes() == self._path.read_bytes():
            before.write_bytes(now.read_bytes()[: size + int((size_now - size) * (share * 100 % 1))])


def _transfer(kind: TransferKind, subject: str, organization_id: str, nanos: int) -> TransferRow:
    return TransferRow(kind, subject, 0, organization_id, None, nanos, None, EPOCH_MS)


def _read(reader: Connection, world: World) -> Contents:
    """Everything of the log, as the audit wants it. Raises Broken if SQLite calls the file damaged."""
    found = Contents(world)
    for row in _rows(reader, "reservations", ReservationRow._fields):
        held = ReservationRow(*row)
        found.reservations[held.id] = held
    for row in _rows(reader, "resolutions", ResolutionRow._fields):
        resolution = ResolutionRow(*row)
        found.resolutions[resolution.reservation_id] = resolution
    for row in _rows(reader, "transfers", TransferRow._fields):
        transfer = TransferRow(*row)
        found.transfers[transfer.subject, transfer.kind, transfer.part] = transfer
    for row in _rows(reader, "marks", MarkRow._fields):
        found.marks[row[0]] = MarkRow(*row)
    found.charged = dict(_rows(reader, "usage_records", ("request_id", "cost_nanos")))
    found.lots = {grant.id: 0 for grant in world.grants} | dict(
        _rows(reader, "grant_lots", ("grant_id", "remaining_nanos"))
    )
    found.spent.update(
        {row[:2]: row[2] for row in _rows(reader, "budget_periods", ("budget_id", "period", "spent_nanos"))}
    )
    found.revoked = {row[0] for row in _rows(reader, "grants", ("id", "revoked_at_ms")) if row[1] is not None}
    found.open_from = store.read_state(reader, store.OPEN_FROM) or 0
    return found


def _rows(reader: Connection, table: str, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return list(reader.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1"))
