"""Rows for tests of the ledger: an organization with a project and a key, and settlements of their requests."""

from typing import Any

from headwater.ids import ATTEMPT, REQUEST, new_id
from headwater.ledger import store
from headwater.ledger.rows import AttemptRow, KeyRow, Settlement, UsageRow
from headwater.ledger.store import Write
from headwater.money import Price
from headwater.usage import Usage

USAGE = Usage(uncached_input=10, cache_read=5, output=7, reasoning=2)
PRICE = Price(
    id="prc_1",
    model="m",
    currency="USD",
    uncached_input=100_000_000,
    cache_read=10_000_000,
    cache_write=100_000_000,
    output=300_000_000,
    reasoning=300_000_000,
)
KEY = KeyRow("key_1", "org_1", "prj_1", "laptop", b"h" * 32, "hw-abcde", None, 1_000, None, None)

ORGANIZATION = Write(store.INSERT_ORGANIZATION, ("org_1", "default", 1_000))
PROJECT = Write(store.INSERT_PROJECT, ("prj_1", "org_1", "default", 1_000))
KEY_WRITE = Write(store.INSERT_KEY, tuple(KEY))
PARENTS = [ORGANIZATION, PROJECT, KEY_WRITE, store.price_write(PRICE, 1_000)]


def settlement(request_id: str | None = None, *, attempts_count: int = 1, **changes: Any) -> Settlement:
    """A sound settlement, unless these fields of its record spoil it."""
    request_id = request_id or new_id(REQUEST)
    record = UsageRow(
        request_id=request_id,
        client_request_id=None,
        organization_id="org_1",
        project_id="prj_1",
        key_id="key_1",
        dialect="openai_chat",
        model="m",
        is_stream=True,
        choices_count=1,
        outcome="ok",
        error_code=None,
        usage_source="reported",
        usage=USAGE,
        price_id="prc_1",
        cost_nanos=42,
        received_at_ms=5_000,
        queue_ms=1,
        ttft_ms=20,
        duration_ms=30,
    )
    attempts = tuple(attempt(request_id, choice) for choice in range(attempts_count))
    return Settlement(record._replace(**changes), attempts)


def attempt(request_id: str, choice: int = 0) -> AttemptRow:
    """A sound attempt at a choice of a request."""
    return AttemptRow(
        id=new_id(ATTEMPT),
        request_id=request_id,
        choice=choice,
        target="m",
        replica_id="rep_1",
        outcome="ok",
        error_code=None,
        usage_source="reported",
        usage=USAGE,
        started_at_ms=5_001,
        duration_ms=29,
    )
