"""The spans of time over which a budget counts: from its terms and a moment to the key of the period it falls into. Pure.

A period is named once, at admission, and the name stays with the hold and its settlement, across midnight and across a
change of the clocks. Weeks start on Monday. Local days are the days of the budget's time zone, 23 or 25 hours long when
the clocks change.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

MS_MIN, MS_MAX = -(2**63), 2**63 - 1
"""Moments before and after all others."""

PeriodKind = Literal["total", "day", "week", "month", "custom"]
ScopeKind = Literal["organization", "project", "key", "tag"]


class BudgetTerms(NamedTuple):
    """A cap: at most limit_nanos may be spent by a scope in each period.

    scope_id: the id of the organization, project or key; for a tag its word. period_days: of a custom period, whose
    first began on the local day of anchor_ms. thresholds: percentages announced when spending crosses them, ascending.
    """

    id: str
    organization_id: str
    scope: ScopeKind
    scope_id: str
    limit_nanos: int
    period: PeriodKind
    period_days: int | None
    anchor_ms: int
    time_zone: str
    thresholds: tuple[int, ...] = ()


class Period(NamedTuple):
    """One period: [starts_ms, ends_ms), ends_ms None for the one that never ends. key: its name in the books."""

    key: str
    starts_ms: int
    ends_ms: int | None

    def holds(self, now_ms: int) -> bool:
        """Whether the moment falls into it."""
        return self.starts_ms <= now_ms and (self.ends_ms is None or now_ms < self.ends_ms)


def period_at(terms: BudgetTerms, now_ms: int) -> Period:
    """The period of a budget into which a moment falls; in a custom budget the first one also holds what came before it."""
    if terms.period == "total":
        return Period("total", 0, None)
    zone = ZoneInfo(terms.time_zone)
    today = _local_day(now_ms, zone)
    match terms.period:
        case "day":
            first, after, key = today, today + timedelta(days=1), today.isoformat()
        case "week":
            first = today - timedelta(days=today.weekday())
            after, key = first + timedelta(days=7), f"week {first.isoformat()}"
        case "month":
            first = today.replace(day=1)
            after, key = (first + timedelta(days=31)).replace(day=1), f"{first:%Y-%m}"
        case "custom":
            days = terms.period_days or 1
            anchor = _local_day(terms.anchor_ms, zone)
            first = anchor + timedelta(days=max(0, (today - anchor).days) // days * days)
            after, key = first + timedelta(days=days), f"{days} days {first.isoformat()}"
    return Period(key, _midnight_ms(first, zone), _midnight_ms(after, zone))


def _local_day(moment_ms: int, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).astimezone(zone).date()


def _midnight_ms(day: date, zone: ZoneInfo) -> int:
    # Where the clocks skip midnight the day begins at the first moment there is, which is what the conversion gives.
    return int(datetime.combine(day, time(), zone).timestamp() * 1000)
