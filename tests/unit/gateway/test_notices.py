"""The notice of a threshold: its body, and what makes it one of a kind."""

import json

from headwater.gateway.notices import BUDGET_THRESHOLD, notice, receiver_id, receiver_of
from headwater.ledger.caps import Spent
from headwater.ledger.periods import BudgetTerms, period_at
from headwater.ledger.store import INSERT_NOTICE, Connection, Write
from headwater.ledger.writer import LedgerWriter
from tests.unit.gateway.conftest import WAIT_S

NOW_MS = 1_795_435_200_123  # 2026-11-23T12:00:00.123Z
TERMS = BudgetTerms("bud_1", "org_1", "tag", "search", 10**10, "custom", 7, NOW_MS, "Europe/Berlin", (80,))
RECEIVER = receiver_id("https://example.com/hook")


def spent(percent: int = 80, **changes: object) -> Spent:
    terms = TERMS._replace(**changes)  # type: ignore[arg-type]
    return Spent(terms, period_at(terms, NOW_MS), percent, 8_500_000_000)


def test_the_body_is_a_standard_webhooks_event_with_money_as_decimals() -> None:
    row = notice(spent(), RECEIVER, NOW_MS)
    assert json.loads(row.body) == {
        "type": BUDGET_THRESHOLD,
        "timestamp": "2026-11-23T12:00:00.123Z",
        "data": {
            "budget_id": "bud_1",
            "organization_id": "org_1",
            "scope": "tag",
            "scope_id": "search",
            "period": "7 days 2026-11-23",
            "percent": 80,
            "spent": "8.5",
            "limit": "10",
            "resets_at": "2026-11-29T23:00:00.000Z",
        },
    }
    assert (row.kind, row.created_at_ms, row.next_try_at_ms) == (BUDGET_THRESHOLD, NOW_MS, NOW_MS)
    assert (row.tries_count, row.delivered_at_ms, row.failure) == (0, None, None)
    assert row.id.startswith("evt_")


def test_a_budget_that_is_never_reset_says_so() -> None:
    body = json.loads(notice(spent(period="total", period_days=None), RECEIVER, NOW_MS).body)
    assert body["data"]["resets_at"] is None


def test_a_receiver_is_known_by_a_hash_of_its_address() -> None:
    assert receiver_of(notice(spent(), RECEIVER, NOW_MS)) == RECEIVER
    assert receiver_id("https://example.com/hook2") != RECEIVER
    assert "example" not in RECEIVER
    assert len(RECEIVER) == 16


def test_there_is_one_for_each_receiver_budget_period_limit_and_threshold(
    writer: LedgerWriter, reader: Connection
) -> None:
    other = receiver_id("https://example.org")
    one = notice(spent(), RECEIVER, NOW_MS)
    again = notice(spent(), RECEIVER, NOW_MS + 5)  # as a restart would see it once more
    others = [
        notice(spent(), other, NOW_MS),
        notice(spent(81), RECEIVER, NOW_MS),
        notice(spent(id="bud_2"), RECEIVER, NOW_MS),
        notice(spent(limit_nanos=10**11), RECEIVER, NOW_MS),
        notice(Spent(TERMS, period_at(TERMS, NOW_MS + 8 * 86_400_000), 80, 1), RECEIVER, NOW_MS),
    ]
    writer.start()
    writer.submit([Write(INSERT_NOTICE, row) for row in (one, again, *others)]).result(WAIT_S)
    found = {row[0] for row in reader.execute("SELECT id FROM notices")}
    assert found == {row.id for row in (one, *others)}
