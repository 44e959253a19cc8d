from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headwater.ledger.periods import BudgetTerms, Period, PeriodKind, period_at

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
# Clocks that change at night, by half an hour, across midnight; a zone that skipped a whole day; one that never changes.
ZONES = (
    *("UTC", "Europe/Berlin", "America/Santiago", "America/Havana", "Asia/Beirut", "Australia/Lord_Howe"),
    *("Pacific/Apia", "Asia/Kathmandu", "America/Nuuk", "Pacific/Kiritimati"),
)


def terms(period: PeriodKind, time_zone: str = "UTC", **changes: Any) -> BudgetTerms:
    days = 1 if period == "custom" else None
    plain = BudgetTerms("bud_1", "org_1", "organization", "org_1", 100, period, days, 0, time_zone)
    return plain._replace(**changes)


def ms(*moment: int, zone: str = "UTC", fold: int = 0) -> int:
    """The moment when a clock in that zone shows this date and time."""
    year, month, day, hour, minute, second = (*moment, 0, 0, 0)[:6]
    local = datetime(year, month, day, hour, minute, second, fold=fold, tzinfo=ZoneInfo(zone))
    return int(local.timestamp() * 1000)


def test_a_total_has_one_period_without_end() -> None:
    assert period_at(terms("total"), 0) == period_at(terms("total"), ms(2999, 1, 1)) == Period("total", 0, None)
    assert Period("total", 0, None).holds(2**62)


def test_a_day_is_the_local_day() -> None:
    tokyo = terms("day", "Asia/Tokyo")
    period = period_at(tokyo, ms(2026, 11, 22, 15, 0))  # 00:00 of the 23rd there
    assert period == Period("2026-11-23", ms(2026, 11, 22, 15), ms(2026, 11, 23, 15))
    assert period_at(tokyo, ms(2026, 11, 22, 15) - 1).key == "2026-11-22"


@pytest.mark.parametrize("day", range(23, 30))
def test_a_week_starts_on_monday(day: int) -> None:
    monday = datetime(2026, 11, 23, tzinfo=UTC)
    assert monday.strftime("%A") == "Monday"
    period = period_at(terms("week"), ms(2026, 11, day, 23, 59, 59))
    assert period == Period("week 2026-11-23", ms(2026, 11, 23), ms(2026, 11, 30))


def test_a_week_may_begin_in_the_year_before() -> None:
    assert period_at(terms("week"), ms(2027, 1, 1)).key == "week 2026-12-28"


@pytest.mark.parametrize(
    ("moment", "key", "begins", "ends"),
    [
        ((2026, 1, 31, 23, 59), "2026-01", (2026, 1, 1), (2026, 2, 1)),
        ((2026, 2, 1), "2026-02", (2026, 2, 1), (2026, 3, 1)),
        ((2028, 2, 29), "2028-02", (2028, 2, 1), (2028, 3, 1)),
        ((2026, 12, 31, 23, 59), "2026-12", (2026, 12, 1), (2027, 1, 1)),
    ],
)
def test_a_month_ends_with_its_last_day(
    moment: tuple[int, ...], key: str, begins: tuple[int, ...], ends: tuple[int, ...]
) -> None:
    assert period_at(terms("month"), ms(*moment)) == Period(key, ms(*begins), ms(*ends))


def test_a_custom_period_counts_days_from_its_anchor() -> None:
    ten_days = terms("custom", period_days=10, anchor_ms=ms(2026, 3, 20, 17, 30))
    first = Period("10 days 2026-03-20", ms(2026, 3, 20), ms(2026, 3, 30))
    assert period_at(ten_days, ms(2026, 3, 20)) == first
    assert period_at(ten_days, ms(2026, 3, 30) - 1) == first
    assert period_at(ten_days, ms(2026, 3, 30)) == Period("10 days 2026-03-30", ms(2026, 3, 30), ms(2026, 4, 9))


def test_what_came_before_the_anchor_counts_in_the_first_custom_period() -> None:
    ten_days = terms("custom", period_days=10, anchor_ms=ms(2026, 3, 20))
    assert period_at(ten_days, ms(2025, 1, 1)).key == "10 days 2026-03-20"


def test_a_custom_period_keeps_to_local_midnights_when_the_clocks_change() -> None:
    week = terms("custom", "Europe/Berlin", period_days=7, anchor_ms=ms(2026, 3, 25, 12, zone="Europe/Berlin"))
    period = period_at(week, ms(2026, 3, 29, 12, zone="Europe/Berlin"))
    assert period.ends_ms == ms(2026, 4, 1, zone="Europe/Berlin")
    assert period.ends_ms - period.starts_ms == 7 * DAY_MS - HOUR_MS


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", (2026, 3, 29), 23),
        ("Europe/Berlin", (2026, 10, 25), 25),
        ("Europe/Berlin", (2026, 3, 30), 24),
        ("America/Santiago", (2026, 9, 6), 23),  # its midnight is skipped: the day begins at 01:00
        ("America/Santiago", (2026, 4, 4), 25),  # 23:00 to midnight comes twice
        ("America/Havana", (2026, 11, 1), 25),  # midnight to 01:00 comes twice
        ("Australia/Lord_Howe", (2026, 10, 4), 23.5),
    ],
)
def test_a_local_day_has_the_hours_that_its_clocks_give_it(zone: str, day: tuple[int, int, int], hours: float) -> None:
    period = period_at(terms("day", zone), ms(*day, 12, zone=zone))
    assert period.ends_ms is not None
    assert (period.ends_ms - period.starts_ms) / HOUR_MS == hours
    assert period.key == datetime(*day, tzinfo=UTC).date().isoformat()


def test_where_midnight_is_skipped_the_day_begins_at_the_first_moment_there_is() -> None:
    santiago = terms("day", "America/Santiago")
    last = ms(2026, 9, 6, 4) - 1  # 23:59:59.999 of the 5th, at -04:00
    assert period_at(santiago, last).key == "2026-09-05"
    assert period_at(santiago, last).ends_ms == last + 1 == period_at(santiago, last + 1).starts_ms
    assert period_at(santiago, last + 1).key == "2026-09-06"


def test_both_times_that_the_clock_shows_the_same_hour_fall_into_one_day() -> None:
    havana = terms("day", "America/Havana")
    first, second = (ms(2026, 11, 1, 0, 30, zone="America/Havana", fold=fold) for fold in (0, 1))
    assert second - first == HOUR_MS
    assert period_at(havana, first) == period_at(havana, second)


_moments = st.integers(ms(2012, 1, 2), ms(2080, 1, 1))


@given(
    _moments, st.sampled_from(ZONES), st.sampled_from(["day", "week", "month", "custom"]), st.integers(1, 400), _moments
)
@example(ms(2026, 9, 6, 4), "America/Santiago", "day", 1, ms(2012, 1, 2))
def test_periods_follow_each_other_without_gap_or_overlap(
    moment: int, zone: str, kind: PeriodKind, days: int, anchor: int
) -> None:
    budget = terms(kind, zone, period_days=days if kind == "custom" else None, anchor_ms=min(anchor, moment))
    period = period_at(budget, moment)
    assert period.ends_ms is not None
    assert period.starts_ms <= moment < period.ends_ms
    assert period.holds(moment)
    assert not period.holds(period.ends_ms)
    assert not period.holds(period.starts_ms - 1)
    assert period_at(budget, period.starts_ms) == period == period_at(budget, period.ends_ms - 1)
    after = period_at(budget, period.ends_ms)
    assert after.starts_ms == period.ends_ms
    assert after.key != period.key


@given(_moments, st.sampled_from(ZONES))
def test_a_period_begins_and_ends_at_local_midnight_or_where_there_is_none_soon_after(moment: int, zone: str) -> None:
    period = period_at(terms("month", zone), moment)
    for border_ms in (period.starts_ms, period.ends_ms):
        assert border_ms is not None
        local = datetime.fromtimestamp(border_ms / 1000, ZoneInfo(zone))
        assert local.day == 1
        assert local - local.replace(hour=0, minute=0) <= timedelta(hours=1)
