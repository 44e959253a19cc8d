import re
import time

from headwater import ids


def test_an_id_says_what_it_names_and_has_32_hex_digits() -> None:
    for prefix in (ids.REQUEST, ids.ATTEMPT, ids.ORGANIZATION, ids.PROJECT, ids.KEY, ids.REPLICA, ids.PRICE):
        assert re.fullmatch(rf"{prefix}[0-9a-f]{{32}}", ids.new_id(prefix))


def test_ids_of_different_milliseconds_sort_by_time() -> None:
    made = []
    for _ in range(20):
        made.append(ids.new_id(ids.REQUEST))
        after_ms = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 <= after_ms:  # until the clock shows the next millisecond
            pass
    assert made == sorted(made)


def test_an_id_begins_with_its_milliseconds() -> None:
    before_ms = time.time_ns() // 1_000_000
    milliseconds = int(ids.new_id("x_")[2:14], 16)
    assert before_ms <= milliseconds <= time.time_ns() // 1_000_000


def test_ids_of_one_moment_differ() -> None:
    assert len({ids.new_id(ids.REQUEST) for _ in range(20_000)}) == 20_000
