"""What receivers of webhooks are told: made with the change it tells of, and written in the same transaction. Pure.

A notice is one row for each receiver, so that each has its own tries. The body's shape is that of Standard Webhooks.
"""

import hashlib
from datetime import UTC, datetime

import msgspec

from headwater.ids import EVENT, new_id
from headwater.ledger.caps import Spent
from headwater.ledger.rows import NoticeRow
from headwater.money import format_nanos

BUDGET_THRESHOLD = "budget.threshold_reached"


class _BudgetData(msgspec.Struct):
    """What the event is about; money in whole units of the organization's currency, as decimal strings."""

    budget_id: str
    organization_id: str
    scope: str
    scope_id: str
    period: str
    percent: int
    spent: str
    limit: str
    resets_at: str | None


class _Event(msgspec.Struct):
    type: str
    timestamp: str
    data: _BudgetData


def receiver_id(url: str) -> str:
    """By which a receiver's notices are told from others': its address, which may be a secret, can't be read from it."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def receiver_of(row: NoticeRow) -> str:
    """The id of the receiver a notice is for."""
    return row.subject.partition(" ")[0]


def notice(spent: Spent, receiver: str, now_ms: int) -> NoticeRow:
    """The notice for one receiver that a budget's spending has reached a threshold: one for each period and limit."""
    terms = spent.terms
    ends_ms = spent.period.ends_ms
    data = _BudgetData(
        budget_id=terms.id,
        organization_id=terms.organization_id,
        scope=terms.scope,
        scope_id=terms.scope_id,
        period=spent.period.key,
        percent=spent.percent,
        spent=format_nanos(spent.spent_nanos),
        limit=format_nanos(terms.limit_nanos),
        resets_at=None if ends_ms is None else _iso(ends_ms),
    )
    return NoticeRow(
        id=new_id(EVENT),
        kind=BUDGET_THRESHOLD,
        subject=f"{receiver} {terms.id} {spent.period.key} {terms.limit_nanos} {spent.percent}",
        body=msgspec.json.encode(_Event(BUDGET_THRESHOLD, _iso(now_ms), data)).decode(),
        created_at_ms=now_ms,
        tries_count=0,
        next_try_at_ms=now_ms,
        delivered_at_ms=None,
        failure=None,
    )


def _iso(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
