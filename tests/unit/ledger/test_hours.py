"""A span's sums are those of the requests that ended in it, to the millisecond, until its records are archived."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.ledger.batch import Batch
from headwater.ledger.hours import ARCHIVED_TO, MS_PER_HOUR, By, Cut, UsageSums, cut, read_usage
from headwater.ledger.store import PUT_STATE, Write, open_reader, open_writer
from headwater.ledger.writer import LedgerWriter
from headwater.usage import NO_USAGE
from tests.unit.ledger.conftest import WAIT_S
from tests.unit.ledger.settlements import settlement

H = MS_PER_HOUR
FIRST = 490_000
"""An hour of 2025."""
SPAN_HOURS = 30


@pytest.mark.parametrize(
    ("start", "end", "archived_to", "expected"),
    [
        (3 * H, 5 * H, 0, Cut(3, 5, ())),
        (3 * H, 5 * H, 9, Cut(3, 5, ())),
        (3 * H + 1, 5 * H, 0, Cut(4, 5, ((3 * H + 1, 4 * H),))),
        (3 * H + 1, 5 * H, 3, Cut(4, 5, ((3 * H + 1, 4 * H),))),
        (3 * H + 1, 5 * H, 4, Cut(4, 5, ())),  # the hour began before
        (3 * H, 5 * H + 1, 5, Cut(3, 5, ((5 * H, 5 * H + 1),))),
        (3 * H, 5 * H + 1, 6, Cut(3, 6, ())),  # the hour begins in it
        (3 * H + 1, 3 * H + 9, 0, Cut(4, 4, ((3 * H + 1, 3 * H + 9),))),
        (3 * H + 1, 3 * H + 9, 4, Cut(4, 4, ())),
        (3 * H, 3 * H + 9, 0, Cut(3, 3, ((3 * H, 3 * H + 9),))),
        (3 * H, 3 * H + 9, 4, Cut(3, 4, ())),
        (3 * H + 1, 4 * H + 1, 0, Cut(4, 4, ((3 * H + 1, 4 * H), (4 * H, 4 * H + 1)))),
        (5 * H, 5 * H, 0, Cut(5, 5, ())),
        (5 * H + 7, 3 * H, 0, Cut(6, 6, ())),
    ],
)
def test_where_a_span_is_cut(start: int, end: int, archived_to: int, expected: Cut) -> None:
    assert cut(start, end, archived_to) == expected


@given(borders=st.lists(st.integers(0, 8 * H), min_size=3, max_size=6), archived_to=st.integers(0, 9))
def test_every_hour_is_counted_once_by_spans_that_adjoin(borders: list[int], archived_to: int) -> None:
    borders = sorted(borders)
    whole, pieces = cut(borders[0], borders[-1], archived_to), 0
    hours: list[int] = []
    for start, end in pairwise(borders):
        part = cut(start, end, archived_to)
        hours += range(part.first_hour, part.until_hour)
        pieces += sum(until - from_ for from_, until in part.pieces)
    assert len(hours) == len(set(hours))
    archived = [hour for hour in range(whole.first_hour, whole.until_hour) if hour < archived_to]
    assert [hour for hour in hours if hour < archived_to] == archived
    kept = sum(H for hour in hours if hour >= archived_to) + pieces
    assert kept == max(0, borders[-1] - max(borders[0], archived_to * H))


@pytest.fixture(scope="module")
def filled(template: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, int | None]]]:
    """A database, and (when it ended, model, cost) of each request in it; one took three days, as after a crash."""
    path = tmp_path_factory.mktemp("hours") / "headwater.db"
    path.write_bytes(template)
    batch, known = Batch(), []
    for number in range(400):
        ended_ms = FIRST * H + number * 7 * 41_011 % (SPAN_HOURS * H)
        duration_ms = 3 * 86_400_000 if number == 11 else number * 977 % 900_000
        cost = None if number % 7 == 0 else number
        one = settlement(
            f"req_{number:05d}",
            received_at_ms=ended_ms - duration_ms,
            duration_ms=duration_ms,
            model="z" if number % 5 == 0 else "m",
            cost_nanos=cost,
            price_id=None if cost is None else "prc_1",
        )
        batch.settle(one)
        known.append((ended_ms, one.record.model, cost))
    writer = LedgerWriter(open_writer(path), on_fatal=lambda _: None)
    writer.start()
    writer.submit(batch.writes()).result(WAIT_S)
    writer.close()
    return path, known


def brute_force(
    known: list[tuple[int, str, int | None]], start_ms: int, end_ms: int
) -> dict[str | int, tuple[int, int, int]]:
    """(requests, unpriced, cost) by model of what ended in the span."""
    sums: dict[str | int, tuple[int, int, int]] = {}
    for ended_ms, model, cost in known:
        if start_ms <= ended_ms < end_ms:
            count, unpriced, total = sums.get(model, (0, 0, 0))
            sums[model] = (count + 1, unpriced + (cost is None), total + (cost or 0))
    return sums


def read(path: Path, start_ms: int, end_ms: int, *, by: By = "model", key_id: str | None = None) -> list[UsageSums]:
    reader = open_reader(path)
    found = read_usage(reader, by, start_ms=start_ms, end_ms=end_ms, key_id=key_id)
    reader.close()
    return found


OFFSETS = st.integers(-2 * H, (SPAN_HOURS + 2) * H) | st.integers(-1, SPAN_HOURS + 1).map(lambda hour: hour * H)


@given(start=OFFSETS, end=OFFSETS, key_id=st.sampled_from([None, "key_1", "key_2"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_are_those_of_the_requests_that_ended_in_the_span(
    filled: tuple[Path, list[tuple[int, str, int | None]]], start: int, end: int, key_id: str | None
) -> None:
    path, known = filled
    found = read(path, FIRST * H + start, FIRST * H + end, key_id=key_id)
    expected = {} if key_id == "key_2" else brute_force(known, FIRST * H + start, FIRST * H + end)
    assert {one.group: (one.requests_count, one.unpriced_count, one.cost_nanos) for one in found} == expected


def test_a_request_that_took_days_is_found_in_a_piece_of_the_hour_it_ended_in(
    filled: tuple[Path, list[tuple[int, str, int | None]]],
) -> None:
    path, known = filled
    ended_ms = known[11][0]
    assert ended_ms % H != 0
    [one] = [one for one in read(path, ended_ms, ended_ms + 1) if one.group == "m"]
    assert one.cost_nanos == 11


def test_days_and_keys_and_tokens(filled: tuple[Path, list[tuple[int, str, int | None]]]) -> None:
    path, known = filled
    everything = (FIRST * H, (FIRST + SPAN_HOURS) * H)
    assert [one.group for one in read(path, *everything, by="key")] == ["key_1"]
    days = read(path, *everything, by="day")
    assert [one.group for one in days] == [FIRST // 24, FIRST // 24 + 1]
    assert sum(one.requests_count for one in days) == len(known)
    [one] = read(path, *everything, by="key")
    assert (one.usage.uncached_input, one.usage.cache_read, one.usage.output, one.usage.reasoning) == (
        *(4_000, 2_000, 2_800, 800),
    )
    assert one.usage != NO_USAGE


def test_an_archived_hour_counts_where_it_begins(database: Path, writer: LedgerWriter) -> None:
    writer.start()
    batch = Batch()
    batch.settle(settlement("req_a", received_at_ms=FIRST * H + H // 2, duration_ms=0, cost_nanos=5))
    writer.submit([*batch.writes(), Write(PUT_STATE, (ARCHIVED_TO, FIRST + 1))]).result(WAIT_S)
    assert [one.cost_nanos for one in read(database, FIRST * H, FIRST * H + 1)] == [5]
    assert read(database, FIRST * H + 1, (FIRST + 1) * H) == []
    assert [one.cost_nanos for one in read(database, (FIRST - 1) * H + 1, (FIRST + 3) * H + 1)] == [5]
