"""Rate limits: never above a limit in any window, nothing counted of what is refused, true times of return."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headwater.scheduling import rate_limits
from headwater.scheduling.rate_limits import DAY_MS, HOUR_MS, MINUTE_MS, Cap, Grant, Limit, RateLimits, Refusal
from tests.rig.limit_twins import CountsRefused, ReadsThenWrites, SlidesItsReset
from tests.unit.scheduling.limit_model import Asked, NaiveLimits

KEY = Limit("lim_1", "key", "key_1", None, (Cap("tokens", MINUTE_MS, 100), Cap("requests", MINUTE_MS, 6)))
ORGANIZATION = Limit("lim_2", "organization", "org_1", None, (Cap("requests", HOUR_MS, 10),), 3)
OF_MODEL = Limit("lim_3", "organization", "org_1", "m", (Cap("tokens", DAY_MS, 500),))
MODEL = Limit("lim_4", "model", "m", None, (Cap("requests", MINUTE_MS, 5),))
NOW_MS = 1_795_392_000_000  # midnight


def with_limits(*limits: Limit) -> RateLimits:
    made = RateLimits()
    for limit in limits:
        made.put(limit, NOW_MS)
    return made


def ask(limits: RateLimits, tokens: int, now_ms: int = NOW_MS, *, received_ms: int | None = None) -> Grant | Refusal:
    over = limits.find("org_1", "prj_1", "key_1", "m")
    return limits.admit(over, tokens=tokens, received_ms=now_ms if received_ms is None else received_ms, now_ms=now_ms)


def admitted(limits: RateLimits, tokens: int, now_ms: int = NOW_MS, *, received_ms: int | None = None) -> Grant:
    decided = ask(limits, tokens, now_ms, received_ms=received_ms)
    assert isinstance(decided, Grant), decided
    return decided


def refused(limits: RateLimits, tokens: int, now_ms: int = NOW_MS, *, received_ms: int | None = None) -> Refusal:
    decided = ask(limits, tokens, now_ms, received_ms=received_ms)
    assert isinstance(decided, Refusal)
    return decided


def test_a_caller_without_limits_finds_none() -> None:
    assert not RateLimits()
    limits = with_limits(KEY, MODEL)
    assert limits
    assert limits.find("org_1", "prj_1", "key_2", "other") == []
    assert limits.find("org_1", "prj_1", "key_1", "m") == [KEY, MODEL]


def test_a_limit_for_one_model_counts_only_requests_to_it() -> None:
    limits = with_limits(OF_MODEL)
    assert limits.find("org_1", "prj_1", "key_1", "m") == [OF_MODEL]
    assert limits.find("org_1", "prj_1", "key_1", "other") == []


def test_tokens_are_reserved_before_they_are_used_and_what_is_not_used_goes_back() -> None:
    limits = with_limits(KEY)
    first = admitted(limits, 60)
    assert refused(limits, 60).what == "tokens"
    first.settle(40)
    second = admitted(limits, 60)
    assert refused(limits, 1).used == 100
    second.settle(60)
    assert refused(limits, 1).used == 100


def test_a_grant_ends_once() -> None:
    limits = with_limits(KEY)
    grant = admitted(limits, 60)
    grant.settle(10)
    grant.settle(0)
    grant.give_back()
    assert refused(limits, 91).used == 10


def test_what_used_more_than_it_held_counts_in_full() -> None:
    limits = with_limits(KEY)
    admitted(limits, 10).settle(150)
    assert refused(limits, 1).used == 150


def test_a_refused_request_counts_nowhere() -> None:
    limits = with_limits(KEY, ORGANIZATION)
    for _ in range(20):
        assert refused(limits, 101).retry_at_ms is None
    for _ in range(3):
        admitted(limits, 1)
    for _ in range(20):
        assert refused(limits, 1).what == "concurrency"
    standing = limits.standing([KEY], "requests", NOW_MS)
    assert standing is not None
    assert standing.remaining == 3


def test_what_is_given_back_counts_nowhere() -> None:
    limits = with_limits(KEY, ORGANIZATION)
    for _ in range(20):
        admitted(limits, 100).give_back()
    admitted(limits, 100)


def test_a_request_above_a_whole_limit_is_never_to_come_back() -> None:
    refusal = refused(with_limits(KEY), 101)
    assert (refusal.what, refusal.maximum, refusal.needed, refusal.retry_at_ms) == ("tokens", 100, 101, None)


def test_of_several_limits_the_one_that_holds_longest_is_told() -> None:
    limits = with_limits(ORGANIZATION._replace(concurrency_max=None), MODEL)
    for number in range(10):
        admitted(limits, 0, NOW_MS + number // 5 * MINUTE_MS)
    refusal = refused(limits, 0, NOW_MS + MINUTE_MS)
    assert (refusal.limit.id, refusal.retry_at_ms) == ("lim_2", NOW_MS + HOUR_MS)


def test_windows_are_fixed_and_start_over_at_their_edge() -> None:
    limits = with_limits(KEY)
    late_ms = NOW_MS + MINUTE_MS - 1
    admitted(limits, 100, late_ms).settle(100)
    refusal = refused(limits, 1, late_ms)
    assert refusal.retry_at_ms == NOW_MS + MINUTE_MS
    admitted(limits, 100, refusal.retry_at_ms)


def test_a_refund_goes_into_the_window_of_the_reservation() -> None:
    limits = with_limits(KEY)
    first = admitted(limits, 100, NOW_MS)
    next_ms = NOW_MS + MINUTE_MS
    admitted(limits, 100, next_ms)
    first.settle(0)
    assert refused(limits, 1, next_ms).used == 100
    third = admitted(limits, 100, next_ms + MINUTE_MS)
    assert refused(limits, 1, next_ms + MINUTE_MS).used == 100
    third.settle(0)


def test_a_request_counts_in_the_window_in_which_it_was_received() -> None:
    limits = with_limits(KEY)
    edge_ms = NOW_MS + MINUTE_MS
    admitted(limits, 100, edge_ms, received_ms=edge_ms - 1)
    assert refused(limits, 1, edge_ms, received_ms=edge_ms - 1).retry_at_ms == edge_ms
    admitted(limits, 100, edge_ms)
    assert isinstance(ask(limits, 1, edge_ms + MINUTE_MS, received_ms=edge_ms - 1), Grant), "too slow: it counts now"


def test_a_clock_that_is_put_back_by_hours_does_not_shut_anybody_out() -> None:
    limits = with_limits(KEY)
    admitted(limits, 100, NOW_MS)
    admitted(limits, 100, NOW_MS - 3 * HOUR_MS)
    assert refused(limits, 1, NOW_MS - 3 * HOUR_MS).retry_at_ms == NOW_MS - 3 * HOUR_MS + MINUTE_MS


def test_a_changed_limit_keeps_what_was_used_and_a_lifted_one_stops() -> None:
    limits = with_limits(KEY)
    admitted(limits, 90)
    more = KEY._replace(caps=(Cap("tokens", MINUTE_MS, 120), Cap("tokens", DAY_MS, 1000)))
    limits.put(more, NOW_MS)
    assert refused(limits, 31).used == 90
    grant = admitted(limits, 30)
    limits.drop(more)
    assert not limits
    assert limits.find("org_1", "prj_1", "key_1", "m") == []
    grant.settle(1)
    limits.drop(more)


def test_what_windows_had_used_before_a_restart_is_taken_over() -> None:
    limits = with_limits(KEY)
    limits.restore(KEY, KEY.caps[0], requests=5, tokens=70, now_ms=NOW_MS)
    assert refused(limits, 31).used == 70
    admitted(limits, 30)
    assert refused(limits, 0).what == "requests"


def test_the_tightest_limit_is_the_one_with_the_least_left_and_then_the_longest() -> None:
    day = Limit("lim_5", "project", "prj_1", None, (Cap("tokens", DAY_MS, 100), Cap("requests", DAY_MS, 50)))
    limits = with_limits(KEY, day)
    over = limits.find("org_1", "prj_1", "key_1", "m")
    assert limits.standing(over, "tokens", NOW_MS) == (100, 100, NOW_MS + DAY_MS)
    assert limits.standing(over, "requests", NOW_MS) == (6, 6, NOW_MS + MINUTE_MS)
    admitted(limits, 30).settle(20)
    assert limits.standing(over, "tokens", NOW_MS + MINUTE_MS) == (100, 80, NOW_MS + DAY_MS)
    assert limits.standing([MODEL], "tokens", NOW_MS) is None


def test_nothing_is_kept_of_what_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "KEPT_MIN", 8)
    limits = RateLimits()
    for number in range(1000):
        key = Limit(f"lim_{number}", "key", f"key_{number}", None, (Cap("tokens", MINUTE_MS, 100),))
        limits.put(key, NOW_MS)
        decided = limits.admit([key], tokens=1, received_ms=NOW_MS, now_ms=NOW_MS + number * MINUTE_MS)
        assert isinstance(decided, Grant)
        decided.settle(1)
        assert limits.uses_count <= 16


def test_a_limit_with_requests_in_flight_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "KEPT_MIN", 1)
    one = Limit("lim_1", "key", "key_1", None, (), 1)
    limits = with_limits(one)
    grant = admitted(limits, 0)
    for number in range(20):
        other = Limit(f"lim_x{number}", "key", f"key_x{number}", None, (Cap("tokens", MINUTE_MS, 1),))
        limits.put(other, NOW_MS)
        limits.admit([other], tokens=1, received_ms=NOW_MS, now_ms=NOW_MS + number * HOUR_MS)
    assert refused(limits, 0, NOW_MS + DAY_MS).what == "concurrency"
    grant.settle(0)
    admitted(limits, 0, NOW_MS + DAY_MS)


class AgainstTheNaiveOnes(RuleBasedStateMachine):
    """Any history of requests, settlements, refusals and time decides as the naive limits would."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = with_limits(KEY, ORGANIZATION, OF_MODEL, MODEL)
        self.naive = NaiveLimits()
        self.now_ms = NOW_MS
        self.open: list[tuple[Grant, Asked]] = []

    @rule(tokens=st.integers(0, 110), age_ms=st.sampled_from([0, 0, 1, 30_000, 61_000, 200_000]), key=st.integers(1, 2))
    def ask(self, tokens: int, age_ms: int, key: int) -> None:
        over = self.limits.find("org_1", "prj_1", f"key_{key}", "m")
        received_ms = self.now_ms - age_ms
        fits = self.naive.fits(over, tokens, received_ms, self.now_ms)
        decided = self.limits.admit(over, tokens=tokens, received_ms=received_ms, now_ms=self.now_ms)
        assert isinstance(decided, Grant) == fits
        if isinstance(decided, Grant):
            asked = Asked(over, tokens, received_ms, self.now_ms)
            self.naive.asked.append(asked)
            self.open.append((decided, asked))
        elif decided.retry_at_ms is not None and decided.what != "concurrency":
            at_ms = max(decided.retry_at_ms, self.now_ms)
            mine = [decided.limit._replace(concurrency_max=None)]
            mine = [limit._replace(caps=tuple(c for c in limit.caps if c.what == decided.what)) for limit in mine]
            needed = {"tokens": tokens, "requests": 1}[decided.what]
            used = self.naive.used(decided.limit, decided.what, decided.window_ms, at_ms // decided.window_ms)
            assert used + needed <= decided.maximum or at_ms == self.now_ms

    @rule(which=st.integers(0, 100), used=st.integers(0, 110))
    def settle(self, which: int, used: int) -> None:
        if self.open:
            grant, asked = self.open.pop(which % len(self.open))
            asked.tokens, asked.is_open = min(used, asked.tokens), False
            grant.settle(asked.tokens)

    @rule(which=st.integers(0, 100))
    def give_back(self, which: int) -> None:
        if self.open:
            grant, asked = self.open.pop(which % len(self.open))
            asked.counts = asked.is_open = False
            grant.give_back()

    @rule(step_ms=st.sampled_from([1, 999, 20_000, MINUTE_MS, 2 * MINUTE_MS, HOUR_MS]))
    def time_passes(self, step_ms: int) -> None:
        self.now_ms += step_ms

    @invariant()
    def no_window_is_above_its_limit(self) -> None:
        for limit in (KEY, ORGANIZATION, OF_MODEL, MODEL):
            for what, window_ms, maximum in limit.caps:
                present = self.now_ms // window_ms
                for index in range(present - 1, present + 1):
                    assert self.naive.used(limit, what, window_ms, index) <= maximum


TestAgainstTheNaiveOnes = AgainstTheNaiveOnes.TestCase
TestAgainstTheNaiveOnes.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("twin", [CountsRefused, ReadsThenWrites, SlidesItsReset])
def test_a_broken_limiter_is_told_from_the_naive_one(twin: type[RateLimits]) -> None:
    """The history that the gate's rig makes: 50 at once, at several moments of several windows."""
    limits, naive = twin(), NaiveLimits()
    limits.put(KEY, NOW_MS)
    wrong = 0
    for step in range(20):
        now_ms = NOW_MS + step * 25_000
        open_now: list[tuple[Grant, Asked]] = []
        for number in range(50):
            tokens = (70, 50, 20, 10)[number % 4]
            fits = naive.fits([KEY], tokens, now_ms, now_ms)
            decided = limits.admit([KEY], tokens=tokens, received_ms=now_ms, now_ms=now_ms)
            wrong += isinstance(decided, Grant) != fits
            if fits:
                asked = Asked([KEY], tokens, now_ms, now_ms)
                naive.asked.append(asked)
                if isinstance(decided, Grant):
                    open_now.append((decided, asked))
        for grant, asked in open_now:
            grant.settle(asked.tokens)
    assert wrong
