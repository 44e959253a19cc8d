"""A receipt tells one request's whole story, and its arithmetic is the cost."""

from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal, localcontext
from pathlib import Path
from random import Random

import msgspec
import pytest

from headwater.ledger.receipt import Receipt, arithmetic, for_caller, read_receipt
from headwater.ledger.store import Connection, open_reader
from headwater.money import NANOS_PER_UNIT, Units, calls_cost_nanos, format_nanos
from headwater.usage import NO_USAGE, Usage
from tests.unit.ledger import books
from tests.unit.ledger.doctored import one
from tests.unit.ledger.settlements import PRICE, USAGE


@pytest.fixture
def connection(sound_books: Path) -> Iterator[Connection]:
    connection = open_reader(sound_books)
    yield connection
    connection.close()


def receipt_of(connection: Connection, sql: str) -> Receipt:
    (request_id,) = connection.execute(sql).fetchone()
    receipt = read_receipt(connection, request_id)
    assert receipt is not None
    return receipt


def nanos(amount: str | None) -> int:
    assert amount is not None
    return int(Decimal(amount) * NANOS_PER_UNIT)


def test_a_posted_request_tells_everything(template: bytes, tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    path.write_bytes(template)
    till = books.open_till(path)
    held = till.reserve("key_2", "org_2", price=PRICE, amount_nanos=40_000)
    till.now_ms += 70
    till.settle(held, USAGE)
    till.__exit__(None, None, None)
    connection = open_reader(path)
    receipt = read_receipt(connection, held.row.request_id)
    connection.close()
    assert receipt is not None
    assert (receipt.state, receipt.outcome) == ("settled", "ok")
    assert (receipt.organization, receipt.project, receipt.key) == ("2", "default", "key_2")
    assert receipt.usage == USAGE
    assert (receipt.price_id, receipt.currency, receipt.price_effective_at_ms) == ("prc_1", "USD", 1_000)
    assert [(line.what, line.units, line.price_per_million, line.amount) for line in receipt.arithmetic] == [
        ("input", 10, "0.1", "0.000001"),
        ("cached input", 5, "0.01", "0.00000005"),
        ("output", 5, "0.3", "0.0000015"),
        ("reasoning", 2, "0.3", "0.0000006"),
    ]
    assert (receipt.exact_sum, receipt.cost, receipt.charged, receipt.absorbed) == (
        *("0.00000315", "0.00000315", "0.00000315", "0"),
    )
    assert receipt.reservation is not None
    assert receipt.reservation.budgets == [("bud_key", "key", "key_2", "2026-11-06")]
    assert receipt.reservation.credit == [("grt_1", "0.00003"), ("grt_5", "0.00001")]
    assert receipt.resolution is not None
    assert (receipt.resolution.kind, receipt.resolution.charge) == ("post", "0.00000315")
    assert [(entry.kind, entry.account, entry.amount) for entry in receipt.entries] == [
        ("reserve", "wallet/org_2", "-0.00004"),
        ("reserve", "held/org_2", "0.00004"),
        ("post", "held/org_2", "-0.00004"),
        ("post", "revenue/m", "0.00000315"),
        ("post", "wallet/org_2", "0.00003685"),
    ]
    assert receipt.entries_sum == "0"
    assert receipt.explanation == ["Tokens are the engine's own count."]


def test_every_receipt_adds_up(connection: Connection) -> None:
    for (request_id,) in connection.execute("SELECT request_id FROM usage_records").fetchall():
        receipt = read_receipt(connection, request_id)
        assert receipt is not None
        assert receipt.entries_sum == "0"
        assert sum(nanos(entry.amount) for entry in receipt.entries) == 0
        if receipt.charged is None:
            assert receipt.arithmetic == []
            continue
        assert nanos(receipt.cost) == nanos(receipt.charged) + nanos(receipt.absorbed)
        with localcontext(prec=80):
            total = sum((Decimal(line.amount) for line in receipt.arithmetic), Decimal(0))
            assert nanos(receipt.cost) == int((total * NANOS_PER_UNIT).to_integral_value(ROUND_HALF_UP)), receipt


def test_the_lines_of_any_cost_add_up_to_it() -> None:
    random = Random(11)
    for number in range(300):
        calls = [books.usage_at(random) for _ in range(number % 3 + 1)]
        tier = ("standard", "batch")[number % 2]
        lines = arithmetic(calls, books.LONG, tier)
        with localcontext(prec=80):
            total = sum((Decimal(line.amount) for line in lines), Decimal(0)) * NANOS_PER_UNIT
        cost = calls_cost_nanos(calls, books.LONG, service_tier=tier, units=Units(requests=1))
        assert int(total.to_integral_value(ROUND_HALF_UP)) == cost


def test_the_lines_name_tier_call_and_multiplier() -> None:
    calls = [Usage(uncached_input=101, cache_write=4, cache_write_1h=3), Usage(output=2)]
    lines = [(line.what, line.units, line.price_per_million) for line in arithmetic(calls, books.LONG, "batch")]
    assert lines == [
        ("input of call 1 (input above 100 tokens), × 0.5 (batch)", 101, "0.4"),
        ("cache writes of call 1 (input above 100 tokens), × 0.5 (batch)", 1, "0.5"),
        ("cache writes for an hour of call 1 (input above 100 tokens), × 0.5 (batch)", 3, "0.5"),
        ("output of call 2, × 0.5 (batch)", 2, "0.9"),
        ("request, × 0.5 (batch)", 1, "2"),
    ]
    assert list(arithmetic([NO_USAGE], books.LONG, "standard")) == []


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("flags = 'absorbed'", "It cost more than was reserved for it"),
        ("flags LIKE 'late%'", "It ended after its reservation had expired."),
        ("flags = 'unpriced'", "No price was known"),
        ("outcome = 'rejected'", "Nothing was held for it"),
        ("outcome = 'upstream_error'", "its caller received nothing"),
        ("outcome = 'client_gone' AND output > 0", "what was produced until then is charged"),
        ("outcome = 'client_gone' AND output = 0", "It used nothing"),
    ],
)
def test_what_is_particular_is_said_in_words(connection: Connection, where: str, sentence: str) -> None:
    receipt = receipt_of(connection, f"SELECT request_id FROM usage_records WHERE {where} LIMIT 1")
    assert any(sentence in said for said in receipt.explanation), receipt.explanation


def test_credit_that_lapsed_with_a_request_is_among_its_entries(connection: Connection) -> None:
    receipt = receipt_of(
        connection, "SELECT r.request_id FROM reservations r JOIN transfers t ON t.part = r.id ORDER BY t.id LIMIT 1"
    )
    kinds = [entry.kind for entry in receipt.entries]
    assert kinds.count("grant_revoke") == 2
    assert receipt.entries_sum == "0"


def test_a_request_under_way_has_no_record_yet(connection: Connection) -> None:
    waiting = "SELECT request_id FROM reservations WHERE request_id NOT IN (SELECT request_id FROM usage_records)"
    receipt = receipt_of(connection, f"{waiting} AND id IN (SELECT reservation_id FROM resolutions)")
    assert (receipt.state, receipt.outcome, receipt.cost) == ("expired", None, None)
    receipt = receipt_of(connection, f"{waiting} AND id NOT IN (SELECT reservation_id FROM resolutions)")
    assert (receipt.state, receipt.usage, receipt.resolution) == ("open", None, None)
    assert receipt.reservation is not None


def test_an_unknown_request_has_none_and_the_connection_stays_usable(connection: Connection) -> None:
    assert read_receipt(connection, "req_none") is None
    assert read_receipt(connection, "' OR 1=1 --") is None
    assert not connection.in_transaction


def test_a_caller_sees_neither_replicas_nor_what_upstreams_take(connection: Connection, sound_books: Path) -> None:
    request_id = one(sound_books, "SELECT request_id FROM attempts WHERE cost_nanos > 0 LIMIT 1")
    whole = read_receipt(connection, request_id)
    assert whole is not None
    assert whole.attempts[0].upstream_cost is not None
    assert {"expense/acme/large", "payable/acme/large"} <= {entry.account for entry in whole.entries}
    shown = msgspec.json.encode(for_caller(whole)).decode()
    for secret in ("expense/", "payable/", f'"{whole.attempts[0].upstream_cost}"'):
        assert secret not in shown
    assert for_caller(whole).charged == whole.charged


def test_a_receipt_looks_everything_up_by_an_index(connection: Connection, sound_books: Path) -> None:
    request_id = one(sound_books, "SELECT request_id FROM attempts WHERE cost_nanos > 0 LIMIT 1")
    asked: list[str] = []
    connection.set_trace_callback(lambda sql: asked.append(sql) if sql.startswith("SELECT") else None)
    read_receipt(connection, request_id)
    connection.set_trace_callback(None)
    assert len(asked) > 6
    for sql in asked:
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        # `entries` is the view's own result: what it is made of is found by an index.
        assert not [step for step in steps if step.startswith("SCAN") and step != "SCAN entries"], (sql, steps)


def test_amounts_are_exact_strings(connection: Connection) -> None:
    receipt = receipt_of(connection, "SELECT request_id FROM usage_records WHERE cost_nanos > 0 LIMIT 1")
    assert receipt.charged == format_nanos(nanos(receipt.charged))
