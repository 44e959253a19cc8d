import sys
from typing import Any
from zoneinfo import available_timezones

import pytest

from headwater.ledger.caps import PERIODS_KEPT, Cap, Counter, Stack
from headwater.ledger.periods import BudgetTerms, Period

DAY_MS = 86_400_000
TERMS = BudgetTerms("bud_1", "org_1", "project", "prj_1", 1_000, "day", None, 0, "UTC", (50, 80, 100))


def counter(spent_nanos: int = 0, **changes: Any) -> Counter:
    return Counter(TERMS._replace(**changes), Period("2026-11-23", 0, DAY_MS), spent_nanos)


def test_each_threshold_is_announced_once() -> None:
    one = counter()
    said = [[spent.percent for spent in one.spend(0, 100)] for _ in range(10)]
    assert said == [[], [], [], [], [50], [], [], [80], [], [100]]


def test_thresholds_that_one_charge_crosses_together_are_all_announced() -> None:
    one = counter()
    said = one.spend(0, 850)
    assert [(spent.percent, spent.spent_nanos, spent.period.key) for spent in said] == [
        (50, 850, "2026-11-23"),
        (80, 850, "2026-11-23"),
    ]
    assert not one.spend(0, 0)


def test_what_was_announced_before_a_restart_is_not_announced_again() -> None:
    one = counter(800)
    assert [spent.percent for spent in one.spend(0, 199)] == []
    assert [spent.percent for spent in one.spend(0, 1)] == [100]


def test_a_threshold_is_reached_exactly_not_rounded() -> None:
    one = counter(limit_nanos=3, thresholds=(33, 34, 66, 67))
    assert [spent.percent for spent in one.spend(0, 1)] == [33]
    assert [spent.percent for spent in one.spend(0, 1)] == [34, 66]
    assert [spent.percent for spent in one.spend(0, 1)] == [67]


def test_nothing_spent_reaches_no_threshold_even_of_a_limit_of_zero() -> None:
    one = counter(limit_nanos=0)
    assert one.announced_percent == 0
    assert not one.spend(0, 0)


def test_what_is_available_is_never_negative() -> None:
    one = counter(900)
    one.hold(50)
    assert (one.available_nanos, one.held_nanos) == (50, 50)
    one.change(TERMS._replace(limit_nanos=100))
    assert (one.available_nanos, one.left_nanos) == (0, -850)
    one.spend(50, 20)
    assert one.left_nanos == 100 - 920


def test_each_period_has_a_counter_of_its_own() -> None:
    cap = Cap(TERMS)
    today = cap.counter(0)
    today.spend(0, 700)
    tomorrow = cap.counter(DAY_MS)
    assert (today.period.key, tomorrow.period.key) == ("1970-01-01", "1970-01-02")
    assert (today.spent_nanos, tomorrow.spent_nanos) == (700, 0)


def test_a_clock_that_is_put_back_finds_the_counter_it_had() -> None:
    cap = Cap(TERMS)
    first = cap.counter(0)
    for day in range(1, PERIODS_KEPT):
        cap.counter(day * DAY_MS)
    assert cap.counter(DAY_MS - 1) is first


def test_only_the_latest_counters_are_kept_and_those_under_which_something_is_unsettled() -> None:
    cap = Cap(TERMS)
    for day in range(10):
        cap.counter(day * DAY_MS).unsettled_count = int(day == 3)
    kept = [one.period.key for one in cap._counters.values()]
    assert kept == ["1970-01-04", "1970-01-07", "1970-01-08", "1970-01-09", "1970-01-10"]


def test_a_clock_that_is_put_back_a_long_way_still_finds_what_was_spent() -> None:
    cap = Cap(TERMS)
    cap.counter(5 * DAY_MS).spend(0, 700)
    for day in (3, 1, 7, 8, 9, 10, 11):
        cap.counter(day * DAY_MS)
    assert cap.counter(5 * DAY_MS).spent_nanos == 700


def test_a_cap_goes_on_from_what_the_disk_knows() -> None:
    cap = Cap(TERMS)
    cap.restore({"1970-01-01": 400, "1969-12-31": 7})
    assert cap.counter(5).spent_nanos == 400
    assert cap.counter(DAY_MS).spent_nanos == 0
    assert cap.counter(-1).spent_nanos == 7  # the clock was put back over midnight
    assert cap.counter(5).spent_nanos == 400


def test_a_changed_limit_holds_for_every_period_that_is_kept() -> None:
    cap = Cap(TERMS)
    first, second = cap.counter(0), cap.counter(DAY_MS)
    cap.change(TERMS._replace(limit_nanos=5))
    assert first.available_nanos == second.available_nanos == 5
    assert cap.counter(2 * DAY_MS).available_nanos == 5


def test_no_file_is_read_to_find_a_period_however_many_zones_there_are() -> None:
    names = sorted(name for name in available_timezones() if name.startswith("America/"))[:40]
    caps = [Cap(TERMS._replace(time_zone=name)) for name in names]
    opened: list[object] = []
    is_on = True
    sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if is_on and event == "open" else None)
    for day in range(3):
        for cap in caps:
            cap.counter(day * DAY_MS)
    is_on = False
    assert opened == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_cap_is_idle_when_no_request_under_it_is_unsettled(count: int) -> None:
    cap = Cap(TERMS)
    cap.counter(0).unsettled_count = count
    cap.counter(DAY_MS)
    assert cap.is_idle == (count == 0)


def test_a_counter_names_itself_as_the_reservation_row_does() -> None:
    assert counter().json == '["bud_1","2026-11-23"]'


def test_counters_of_several_caps_follow_the_shortest_of_their_periods() -> None:
    day, month = Cap(TERMS), Cap(TERMS._replace(id="bud_2", period="month"))
    stack = Stack([day, month])
    stack.move(0)
    first = stack.counters
    assert [counter.key for counter in first] == [("bud_1", "1970-01-01"), ("bud_2", "1970-01")]
    assert stack.json == '[["bud_1","1970-01-01"],["bud_2","1970-01"]]'
    stack.move(DAY_MS - 1)
    assert stack.counters is first
    stack.move(DAY_MS)
    assert [counter.key for counter in stack.counters] == [("bud_1", "1970-01-02"), ("bud_2", "1970-01")]
    assert stack.counters[1] is first[1]
    stack.move(0)  # the clock is put back: its counter is the one that was there
    assert stack.counters == first


def test_who_keeps_counters_hears_when_an_old_one_is_let_go() -> None:
    cap, heard = Cap(TERMS), []
    cap.on_forget = lambda: heard.append(True)
    for day in range(PERIODS_KEPT + 1):
        assert not heard
        cap.counter(day * DAY_MS)
    assert heard == [True]


@pytest.mark.parametrize(
    ("limit_nanos", "thresholds"), [(1_000, (50, 80, 100)), (3, (1, 33, 100)), (0, (50,)), (999, (1,))]
)
def test_a_threshold_is_announced_by_the_very_charge_that_reaches_it(
    limit_nanos: int, thresholds: tuple[int, ...]
) -> None:
    one = counter(limit_nanos=limit_nanos, thresholds=thresholds)
    said: dict[int, int] = {}
    for spent_nanos in range(1, max(2, limit_nanos) + 1):
        said |= {spent.percent: spent_nanos for spent in one.spend(0, 1)}
    assert said == {percent: max(1, -(-limit_nanos * percent // 100)) for percent in thresholds}
