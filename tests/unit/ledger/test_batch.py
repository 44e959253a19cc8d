"""However requests are put into batches, the cached sums are what the log adds up to."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.ledger import admin_store, store
from headwater.ledger.admin_store import GrantRow
from headwater.ledger.batch import MS_PER_HOUR, Batch, settlement_writes, transfer_accounts
from headwater.ledger.book import Book, Hold, Settled
from headwater.ledger.caps import Cap
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.rows import (
    Delta,
    MarkRow,
    NoticeRow,
    ReservationRow,
    ResolutionRow,
    Settlement,
    StoredAnswer,
    TransferKind,
    TransferRow,
)
from headwater.ledger.store import Connection, Rows, Write, open_reader, open_writer
from headwater.ledger.wallet import Lot
from headwater.ledger.writer import LedgerWriter
from headwater.usage import Usage
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.settlements import attempt, settlement

DAY_MS = 86_400_000
BEGAN_MS = 1_793_923_200_000
BUDGETS = (
    BudgetTerms("bud_org", "org_1", "organization", "org_1", 10**7, "day", None, BEGAN_MS, "UTC"),
    BudgetTerms("bud_key", "org_1", "key", "key_1", 10**6, "total", None, BEGAN_MS, "UTC"),
    BudgetTerms("bud_tag", "org_2", "tag", "t", 10**7, "day", None, BEGAN_MS, "Asia/Tokyo"),
)
GRANTS = (
    ("grt_1", "org_1", 30_000, BEGAN_MS + DAY_MS),
    ("grt_2", "org_1", 50_000, None),
    ("grt_3", "org_2", 20_000, BEGAN_MS + 2 * DAY_MS),
)
KEYS = (("key_1", "org_1", "prj_1"), ("key_2", "org_2", "prj_2"))
OPERATIONS = ("reserve", "settle", "expire", "mark", "sweep", "revoke", "adjust", "reject")


class Step(NamedTuple):
    """One thing that happens; a, b: what about it. then: whether the batch ends after it, and whether that is waited for."""

    what: str
    a: int
    b: int
    then: str


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(OPERATIONS),
        st.integers(0, 40_000),
        st.integers(0, 40),
        st.sampled_from(("", "", "cut", "commit")),
    ),
    max_size=50,
)


class Run:
    """Plays steps into the books of a fresh database. batch_type: what collects the rows."""

    def __init__(self, database: Path, batch_type: type[Batch] = Batch) -> None:
        self._writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
        self._writer.start()
        self._batch_type = batch_type
        self._batch = batch_type()
        self._book = Book()
        self._now_ms = BEGAN_MS
        self._under_way: list[tuple[Hold, ReservationRow]] = []
        self._count = 0
        self._prepare()

    def _prepare(self) -> None:
        self._book.set_organization("org_1", is_prepaid=False)
        self._book.set_organization("org_2", is_prepaid=False)
        key = ("key_2", "org_2", "prj_2", "k", b"2" * 32, "hw-2", None, 1_000, None, None, 1)
        writes = [
            Write(store.INSERT_ORGANIZATION, ("org_2", "second", 1_000)),
            Write(store.INSERT_PROJECT, ("prj_2", "org_2", "default", 1_000)),
            Write(store.INSERT_KEY, key),
            Write(store.INSERT_EPOCH, (1, "test", 1)),
        ]
        for terms in BUDGETS:
            writes.append(admin_store.budget_write(terms, BEGAN_MS))
            if terms.scope != "key":
                self._book.set_budget(terms)
        self._book.load_key("key_1", [Cap(BUDGETS[1])], BEGAN_MS)
        self._book.load_key("key_2", [], BEGAN_MS)
        self._write(writes)
        batch = Batch()
        grants = []
        for grant_id, organization_id, nanos, expires_at_ms in GRANTS:
            self._book.add_lot(Lot(grant_id, organization_id, nanos, expires_at_ms))
            row = GrantRow(grant_id, organization_id, nanos, expires_at_ms, None, BEGAN_MS, None, nanos)
            grants.append(Write(admin_store.INSERT_GRANT, tuple(row[:-1])))
            grants.append(Write(admin_store.INSERT_LOT, (grant_id, nanos)))
            batch.move([self._transfer("grant", grant_id, organization_id, nanos)])
        self._write([*grants, *batch.writes()])

    def play(self, steps: list[Step]) -> None:
        """All of it, on the disk at the end."""
        for step in steps:
            getattr(self, f"_{step.what}")(step.a, step.b)
            if step.then:
                done = self._writer.submit(self._batch.rows())
                self._batch = self._batch_type()
                if step.then == "commit":
                    done.result(WAIT_S)
        self._writer.submit(self._batch.rows()).result(WAIT_S)
        self._writer.close()

    def _write(self, writes: list[Write]) -> None:
        self._writer.submit(writes).result(WAIT_S)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _reserve(self, a: int, b: int) -> None:
        self._count += 1
        key_id, organization_id, project_id = KEYS[b % 2]
        tags = ("t",) if b % 3 else ()
        amount = a if b % 7 else 0
        hold = self._book.reserve(
            organization_id=organization_id,
            project_id=project_id,
            key_id=key_id,
            tags=tags,
            amount_nanos=amount,
            now_ms=self._now_ms,
        )
        row = ReservationRow(
            id=hold.id,
            request_id=f"req_{self._count:04}",
            epoch=1,
            organization_id=organization_id,
            project_id=project_id,
            key_id=key_id,
            model="m" if b % 5 else "n",
            price_id="prc_1",
            amount_nanos=amount,
            budgets=hold.budgets_json,
            lots=hold.lots_json,
            client_request_id=None,
            dialect="openai_chat",
            service_tier="standard",
            is_stream=True,
            choices_count=1,
            tags=" ".join(tags) or None,
            received_at_ms=self._now_ms,
            expires_at_ms=self._now_ms + 1,
        )
        self._batch.reserve(row)
        self._under_way.append((hold, row))

    def _settle(self, a: int, b: int) -> None:
        if not self._under_way:
            return
        hold, row = self._under_way.pop(b % len(self._under_way))
        settled = self._book.settle(hold, a, self._now_ms)
        transfers = list(settled.transfers)
        for kind, nanos, note in self._beside(settled):
            transfers.append(
                TransferRow(kind, row.request_id, 0, row.organization_id, row.model, nanos, note, self._now_ms)
            )
        usage = Usage(
            uncached_input=a, cache_write=b, cache_write_1h=b // 2, cache_read=b, output=a // 2, reasoning=b // 3
        )
        usage = Usage() if usage.reasoning > usage.output else usage
        made = settlement(
            row.request_id,
            attempts_count=0,
            organization_id=row.organization_id,
            project_id=row.project_id,
            key_id=row.key_id,
            model=row.model,
            outcome="ok" if b % 4 else "client_gone",
            usage=usage,
            price_id="prc_1" if b % 6 else None,
            cost_nanos=settled.charge_nanos if b % 6 else None,
            received_at_ms=row.received_at_ms,
            duration_ms=(a * 997) % (3 * MS_PER_HOUR),
        )
        calls = tuple(
            attempt(row.request_id, choice)._replace(
                target=f"up/{b % 2}", cost_id="prc_1", cost_nanos=(a // 3 if b % 3 else 0) or None
            )
            for choice in range(b % 3)
        )
        resolution = None if settled.is_late else ResolutionRow(row.id, "post", settled.charge_nanos, self._now_ms)
        self._batch.settle(
            Settlement(
                made.record,
                calls,
                row,
                resolution,
                tuple(transfers),
                settled.lots,
                settled.budgets,
                has_marks=bool(b % 2),
            )
        )

    @staticmethod
    def _beside(settled: Settled) -> list[tuple[TransferKind, int, str | None]]:
        found: list[tuple[TransferKind, int, str | None]] = []
        if settled.is_late and settled.charge_nanos:
            found.append(("late_post", settled.charge_nanos, settled.late_lots_json))
        if settled.absorbed_nanos:
            found.append(("absorb", settled.absorbed_nanos, None))
        return found

    def _expire(self, _a: int, b: int) -> None:
        still = [one for one in self._under_way if one[0].is_open]
        if still:
            hold, row = still[b % len(still)]
            settled = self._book.expire(hold, self._now_ms)
            self._batch.expire(row, ResolutionRow(row.id, "expire", 0, self._now_ms), settled.transfers, settled.lots)

    def _mark(self, _a: int, b: int) -> None:
        if self._under_way:
            self._batch.mark(MarkRow(self._under_way[b % len(self._under_way)][1].id, "[]", self._now_ms))

    def _sweep(self, a: int, _b: int) -> None:
        self._now_ms += a * 2_000
        lapsed = self._book.expire_lots(self._now_ms)
        self._batch.move(lapsed, [Delta((row.subject,), -row.amount_nanos) for row in lapsed])

    def _revoke(self, _a: int, b: int) -> None:
        grant_id, organization_id, _, _ = GRANTS[b % 3]
        free = self._book.revoke_lot(organization_id, grant_id)
        if free:
            moved = self._transfer("grant_revoke", grant_id, organization_id, free)
            self._batch.move([moved], [Delta((grant_id,), -free)])

    def _adjust(self, a: int, b: int) -> None:
        self._count += 1
        nanos = (a - 20_000) or 1
        self._batch.move([self._transfer("adjust", f"adj_{self._count}", KEYS[b % 2][1], nanos)])

    def _reject(self, a: int, b: int) -> None:
        self._count += 1
        made = settlement(
            f"req_{self._count:04}",
            attempts_count=0,
            outcome="rejected",
            usage=Usage(),
            price_id=None,
            cost_nanos=None,
            received_at_ms=self._now_ms,
            duration_ms=a * b,
        )
        self._batch.settle(made)

    def _transfer(self, kind: TransferKind, subject: str, organization_id: str, nanos: int) -> TransferRow:
        return TransferRow(kind, subject, 0, organization_id, None, nanos, None, self._now_ms)


# -- what the log adds up to, worked out apart from the product ---------------------------------------------------------


def recomputed(reader: Connection) -> dict[str, dict[Any, Any]]:
    """Every cached sum, from the rows of the log."""
    balances = dict(reader.execute("SELECT account, sum(amount_nanos) FROM entries GROUP BY account"))
    lots: defaultdict[str, int] = defaultdict(int)
    budgets: defaultdict[tuple[str, str], int] = defaultdict(int)
    for grant_id, amount in reader.execute("SELECT id, amount_nanos FROM grants"):
        lots[grant_id] = amount
    ended = "SELECT r.lots, r.budgets, s.charge_nanos FROM reservations r JOIN resolutions s ON s.reservation_id = r.id"
    for held_lots, held_budgets, charge in reader.execute(ended):
        left = charge
        for grant_id, nanos in json.loads(held_lots or "[]"):
            lots[grant_id] -= min(left, nanos)
            left -= min(left, nanos)
        for budget_id, period in json.loads(held_budgets or "[]"):
            budgets[budget_id, period] += charge
    for kind, subject, nanos, note in reader.execute("SELECT kind, subject, amount_nanos, note FROM transfers"):
        if kind in ("grant_expire", "grant_revoke"):
            lots[subject] -= nanos
        if kind == "late_post":
            for grant_id, taken in json.loads(note or "[]"):
                lots[grant_id] -= taken
            held = reader.execute("SELECT budgets FROM reservations WHERE request_id = ?", (subject,)).fetchone()[0]
            for budget_id, period in json.loads(held or "[]"):
                budgets[budget_id, period] += nanos
    hours: dict[tuple[Any, ...], list[int]] = {}
    for row in reader.execute(
        "SELECT (received_at_ms + duration_ms) / 3600000, key_id, model, organization_id, project_id, outcome = 'ok',"
        " cost_nanos IS NULL, uncached_input, cache_read, cache_write, output, reasoning, cache_write_1h,"
        " coalesce(cost_nanos, 0), (SELECT coalesce(sum(cost_nanos), 0) FROM attempts a"
        " WHERE a.request_id = u.request_id) FROM usage_records u"
    ):
        sums = hours.setdefault(row[:5], [0] * 11)
        for number, value in enumerate((1, *row[5:])):
            sums[number] += value
    return {
        "balances": _without_zeros(balances),
        "lots": dict(lots),
        "budgets": _without_zeros(budgets),
        "hours": {key: tuple(sums) for key, sums in hours.items()},
    }


def cached(reader: Connection) -> dict[str, dict[Any, Any]]:
    """Every cached sum as it is stored."""
    hours = reader.execute(
        "SELECT hour, key_id, model, organization_id, project_id, requests_count, ok_count, unpriced_count,"
        " uncached_input, cache_read, cache_write, output, reasoning, cache_write_1h, cost_nanos, upstream_cost_nanos"
        " FROM usage_hours"
    )
    return {
        "balances": _without_zeros(dict(reader.execute("SELECT account, balance_nanos FROM balances"))),
        "lots": dict(reader.execute("SELECT grant_id, remaining_nanos FROM grant_lots")),
        "budgets": _without_zeros({row[:2]: row[2] for row in reader.execute("SELECT * FROM budget_periods")}),
        "hours": {row[:5]: row[5:] for row in hours},
    }


def _without_zeros(sums: Any) -> dict[Any, int]:
    return {key: nanos for key, nanos in sums.items() if nanos}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches") / "headwater.db"


def fresh(template: bytes, path: Path) -> Path:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(template)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_the_sums_are_what_the_log_adds_up_to(template: bytes, scratch: Path, steps: list[Step]) -> None:
    Run(fresh(template, scratch)).play(steps)
    reader = open_reader(scratch)
    try:
        assert cached(reader) == recomputed(reader)
        assert reader.execute("SELECT coalesce(sum(balance_nanos), 0) FROM balances").fetchone() == (0,)
        held = reader.execute(
            "SELECT coalesce(sum(amount_nanos), 0) FROM reservations r"
            " WHERE NOT EXISTS (SELECT 1 FROM resolutions s WHERE s.reservation_id = r.id)"
        ).fetchone()
        stored = reader.execute("SELECT coalesce(sum(balance_nanos), 0) FROM balances WHERE account LIKE 'held/%'")
        assert stored.fetchone() == held
    finally:
        reader.close()


MANY = [
    *(Step("reserve", 20_000, number, "") for number in range(1, 13)),
    Step("mark", 0, 1, ""),
    *(Step("settle", 15_000, number, "") for number in range(1, 7)),
    Step("expire", 0, 0, ""),
    Step("settle", 15_000, 1, "cut"),
    Step("sweep", 40_000, 0, ""),
    Step("sweep", 40_000, 0, ""),
    Step("reject", 7, 7, ""),
    Step("adjust", 100, 1, ""),
]


@pytest.mark.parametrize("forgotten", [store.ADD_TO_BALANCE, store.ADD_TO_LOT, store.ADD_TO_BUDGET, store.ADD_TO_HOUR])
def test_a_batch_that_adds_a_sum_up_wrongly_is_caught(
    template: bytes, scratch: Path, forgotten: store.Statement
) -> None:
    class Forgetful(Batch):
        """Writes all but the last row of one cache."""

        def rows(self) -> list[Rows]:
            return [Rows(one.statement, one.rows[:-1]) if one.statement == forgotten else one for one in super().rows()]

    Run(fresh(template, scratch)).play(MANY)
    reader = open_reader(scratch)
    assert cached(reader) == recomputed(reader)
    assert all(cached(reader).values())  # something of each is in it
    reader.close()
    Run(fresh(template, scratch), Forgetful).play(MANY)
    reader = open_reader(scratch)
    assert cached(reader) != recomputed(reader)
    reader.close()


# -- rows ---------------------------------------------------------------------------------------------------------------


def test_each_sum_is_written_once_however_many_requests_a_batch_settles() -> None:
    batch = Batch()
    for number in range(100):
        batch.settle(settlement(f"req_{number}"))
    assert batch.settlements_count == 100
    counts = {one.statement.name: len(one.rows) for one in batch.rows()}
    assert counts == {"insert_usage": 100, "insert_attempt": 100, "add_to_hour": 1}


def test_nothing_is_written_of_sums_that_come_out_even() -> None:
    batch = Batch()
    batch.move([TransferRow("adjust", "adj_1", 0, "org_1", None, 5, None, 1)], [Delta(("grt_1",), 5)])
    batch.move([TransferRow("adjust", "adj_2", 0, "org_1", None, -5, None, 1)], [Delta(("grt_1",), -5)])
    assert {one.statement.name for one in batch.rows()} == {"insert_transfer"}


def test_an_empty_batch_writes_nothing() -> None:
    assert Batch().rows() == []
    assert Batch().writes() == []


def test_row_by_row_is_the_same() -> None:
    batch = Batch()
    batch.settle(settlement("req_1"))
    batch.set_state("open_from", 3)
    assert batch.writes() == [Write(one.statement, row) for one in batch.rows() for row in one.rows]
    assert batch.writes() == batch.writes()


def test_of_a_number_said_twice_the_last_counts() -> None:
    batch = Batch()
    batch.set_state("a", 1)
    batch.set_state("b", 2)
    batch.set_state("a", 3)
    (state,) = batch.rows()
    assert sorted(state.rows) == [("a", 3), ("b", 2)]


def test_a_settlement_carries_its_answer_its_notices_and_the_end_of_its_marks() -> None:
    row = NoticeRow("evt_1", "k", "s", "{}", 1, 0, 1, None, None)
    answer = StoredAnswer("prj_1", "/r", "k", b"h" * 32, "req_1", b"{}", 1, 2)
    held = ReservationRow(
        *(7, "req_1", 1, "org_1", "prj_1", "key_1", "m", "prc_1", 0, None, None, None, "openai_chat", "standard"),
        *(True, 1, None, 1, 2),
    )
    made = settlement("req_1")._replace(
        reservation=held, resolution=ResolutionRow(7, "void", 0, 9), answer=answer, notices=(row,), has_marks=True
    )
    written = {write.statement.name: write.row for write in settlement_writes(made)}
    assert written["put_answer"] == answer
    assert written["insert_notice"] == row
    assert written["delete_mark"] == (7,)
    assert written["insert_resolution"] == (7, "void", 0, 9)
    assert "add_to_balance" not in written  # nothing was held


@pytest.mark.parametrize(
    ("kind", "accounts"),
    [
        ("grant", ("grants/o", "wallet/o")),
        ("grant_expire", ("wallet/o", "grants/o")),
        ("grant_revoke", ("wallet/o", "grants/o")),
        ("adjust", ("adjustments/o", "wallet/o")),
        ("absorb", ("absorbed/o", "revenue/m")),
        ("late_post", ("wallet/o", "revenue/m")),
    ],
)
def test_each_kind_of_transfer_moves_between_its_accounts(kind: TransferKind, accounts: tuple[str, str]) -> None:
    assert transfer_accounts(TransferRow(kind, "s", 0, "o", "m", 5, None, 1)) == accounts
