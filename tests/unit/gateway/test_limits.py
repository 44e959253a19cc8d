"""The rate limiter beside a real store: what is reserved, what goes back, what callers are told, what a restart knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import AboveRateLimit, RateLimitExceeded
from headwater.gateway.admission import Sized
from headwater.gateway.engines import Engine
from headwater.gateway.limits import Held, RateLimiter, duration_text
from headwater.gateway.pool import Pool
from headwater.gateway.routing import Target, Timeouts
from headwater.gateway.telemetry import Telemetry
from headwater.ledger.limit_store import (
    SELECT_USED,
    SELECT_USED_BY_ALL,
    LimitRow,
    insert_limit,
    read_limits,
    update_limit,
)
from headwater.ledger.rows import AttemptRow
from headwater.ledger.store import INSERT_USAGE, Connection, Write, open_reader, usage_row
from headwater.ledger.writer import LedgerWriter
from headwater.request import Request
from headwater.usage import Outcome, Usage
from tests.unit.gateway.chats import CountingEngine, chat, target
from tests.unit.gateway.tills import HandClock, make_request, sized
from tests.unit.ledger.settlements import attempt, settlement

NOW_S = 1_795_392_000.0 + 43_200  # noon
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
NOTHING = (None, None, None, None, None, None, None)
PROMPT_BYTES = 16  # of a message without a byte of text, as `chat()` says


def row(limit_id: str = "lim_1", scope: str = "key", scope_id: str = "key_1", **fields: Any) -> LimitRow:
    owner = None if scope == "model" else "org_1"
    return LimitRow._make((limit_id, owner, scope, scope_id, None, *NOTHING, 1_000, None))._replace(**fields)


class Desk:
    """A limiter with limits, and a caller in front of it."""

    def __init__(self, writer: LedgerWriter, *rows: LimitRow) -> None:
        self.clock = HandClock(NOW_S)
        self.telemetry = Telemetry(writer)
        self.limiter = RateLimiter(telemetry=self.telemetry, clock=self.clock)
        self.headers: list[tuple[bytes, bytes]] = []
        self.engine = CountingEngine(None)
        for one in rows:
            self.limiter.set_limit(one)

    def request(self, **fields: Any) -> Request:
        return make_request("req_1", chat(), now_s=self.clock.time_s, **fields)

    async def ask(
        self, cap_tokens: int, *, is_stated: bool = True, counted: int | None = None, is_stream: bool = False, **of: Any
    ) -> tuple[Sized, Held]:
        self.headers = []
        self.engine = CountingEngine(counted)
        where = target(engine=self.engine, is_own=counted is not None)
        wish = sized(chat(**of), cap_tokens, is_stated=is_stated)
        fitted, held = await self.limiter.admit(self.request(is_stream=is_stream), where, wish, self.headers)
        assert held is not None
        return fitted, held

    def settle(self, held: Held, outcome: Outcome = "ok", **usage: int) -> None:
        rows = (attempt_of(**usage),) if outcome != "rejected" else ()
        self.limiter.settle(held, outcome, rows)

    def left(self, name: str = "tokens") -> str:
        found = dict(self.limiter.headers(self.request()))
        return found[b"x-ratelimit-remaining-" + name.encode()].decode()


def attempt_of(**usage: int) -> AttemptRow:
    return attempt("req_1")._replace(target="m", usage=Usage(**usage))


@pytest.fixture
def desk(writer: LedgerWriter) -> Callable[..., Desk]:
    return lambda *rows: Desk(writer, *rows)


MakeDesk = Callable[..., Desk]


async def test_a_caller_without_limits_is_not_touched(desk: MakeDesk) -> None:
    at = desk(row(scope_id="key_2", tokens_per_minute=1))
    wish = sized(chat(), 10)
    fitted, held = await at.limiter.admit(at.request(), target(), wish, at.headers)
    assert (fitted, held, at.headers) == (wish, None, [])
    assert at.limiter.headers(at.request()) == []


async def test_what_the_bound_of_bytes_lets_through_needs_no_counting(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=2000))
    _, held = await at.ask(10, counted=3)
    assert at.engine.asked_count == 0
    assert held.grant.tokens > 500
    at.settle(held, uncached_input=3, output=4)
    assert at.left() == "1993"


async def test_our_own_engine_is_asked_to_count_when_the_bound_does_not_fit(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    fitted, held = await at.ask(10, counted=7)
    assert at.engine.asked_count == 1
    assert held.grant.tokens == 17
    assert (fitted.input_tokens, fitted.is_counted) == (7, True)


async def test_an_engine_is_not_asked_about_what_can_not_fit_anyway(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    _, held = await at.ask(90, counted=7)
    for _ in range(3):
        with pytest.raises(RateLimitExceeded):
            await at.ask(90, counted=7)
        assert at.engine.asked_count == 0
    at.settle(held, "rejected")
    assert at.left() == "100"


async def test_of_an_upstream_the_tokens_of_a_prompt_are_learned(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    _, held = await at.ask(10)
    assert held.grant.tokens == PROMPT_BYTES + 10, "at first every byte is taken for a token"
    at.settle(held, uncached_input=5, output=10)
    for _ in range(5):
        _, held = await at.ask(10)
        assert held.grant.tokens == 15
        at.settle(held, uncached_input=5, output=10)
    assert at.left() == "10", "six requests of 15 tokens"


async def test_an_engine_that_can_not_be_asked_is_estimated(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    gone = Target("m", "m", Pool[Engine]("m", queued_max=1), Timeouts(1, 1, 1), 4096, is_own=True, created_at_s=0)
    _, held = await at.limiter.admit(at.request(), gone, sized(chat(), 10), at.headers)
    assert held is not None
    assert held.grant.tokens == PROMPT_BYTES + 10


async def test_an_estimate_alone_never_says_that_a_request_can_not_fit(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    fitted, held = await at.ask(20, text_bytes=300)
    assert held.grant.tokens == 100, "it takes the whole limit: 316 bytes may be 76 tokens"
    assert not fitted.is_counted
    at.settle(held, uncached_input=60, output=20)
    at.clock.time_s += 60
    with pytest.raises(AboveRateLimit):
        await at.ask(20, text_bytes=1200)


async def test_an_unstated_cap_shrinks_to_what_a_whole_limit_leaves(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    fitted, held = await at.ask(4096, is_stated=False, counted=7)
    assert fitted.chat.output_tokens_max == 93
    assert held.grant.tokens == 100
    assert (b"x-headwater-output-cap", b"93; reason=rate_limit") in at.headers
    at.settle(held, uncached_input=7, output=3)
    assert at.left() == "90"


async def test_choices_take_their_share_each(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    _, held = await at.ask(10, counted=7, choices_count=4)
    assert held.grant.tokens == 68
    fitted, _ = await desk(row(tokens_per_minute=100)).ask(4096, is_stated=False, counted=5, choices_count=4)
    assert fitted.chat.output_tokens_max == 20


async def test_a_request_above_the_whole_limit_is_told_not_to_come_back(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    with pytest.raises(AboveRateLimit) as caught:
        await at.ask(101)
    assert (caught.value.status, caught.value.code) == (429, "above_rate_limit")
    assert (caught.value.should_retry, caught.value.retry_after_s) == (False, None)
    assert "allows 100 tokens per minute" in caught.value.message


async def test_a_refusal_names_the_limit_and_the_time_at_which_it_starts_over(desk: MakeDesk) -> None:
    at = desk(row(requests_per_minute=1))
    at.clock.time_s = NOW_S + 12.4
    await at.ask(10)
    with pytest.raises(RateLimitExceeded) as caught:
        await at.ask(10)
    error = caught.value
    assert (error.type, error.code, error.retry_after_s) == ("rate_limit_error", "rate_limit_exceeded", 48)
    assert "of the key key_1 allows 1 requests per minute; 1 are used" in error.message
    assert "2026-11-23T12:01:00+00:00" in error.message
    assert dict(at.headers) == {
        b"x-ratelimit-limit-requests": b"1",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"48s",
    }
    counted = at.telemetry.rate_limit_refusals.labels("key", "requests")
    assert counted._value.get() == 1


async def test_requests_at_once_are_limited_and_a_settled_one_makes_room(desk: MakeDesk) -> None:
    at = desk(row(scope="organization", scope_id="org_1", concurrency_max=1))
    _, held = await at.ask(10)
    with pytest.raises(RateLimitExceeded, match="allows 1 requests at once") as caught:
        await at.ask(10)
    assert caught.value.retry_after_s == 1
    at.settle(held, output=1)
    await at.ask(10)


async def test_a_stream_is_told_how_it_stands_when_it_begins(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_hour=1000))
    await at.ask(10, is_stream=True)
    assert (b"x-ratelimit-reset-tokens", b"1h0m0s") in at.headers


async def test_what_was_refused_after_all_costs_nothing(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100, requests_per_minute=5))
    _, held = await at.ask(10, counted=7)
    at.settle(held, "rejected")
    assert (at.left("tokens"), at.left("requests")) == ("100", "5")


async def test_who_leaves_before_the_first_token_has_used_the_prompt(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    _, held = await at.ask(10, counted=7)
    at.settle(held, "client_gone")
    assert at.left() == "93"
    _, held = await at.ask(10, counted=7)
    at.limiter.settle(held, "client_gone", ())
    assert at.left() == "93", "it left in the queue: no engine read anything"


async def test_what_failed_has_used_what_its_record_says(desk: MakeDesk) -> None:
    at = desk(row(tokens_per_minute=100))
    _, held = await at.ask(10, counted=7)
    at.settle(held, "upstream_error")
    assert at.left() == "100"


async def test_a_changed_limit_holds_at_once_and_an_archived_one_stops(desk: MakeDesk) -> None:
    at = desk(row(requests_per_minute=1))
    await at.ask(10)
    at.limiter.set_limit(row(requests_per_minute=2))
    await at.ask(10)
    with pytest.raises(RateLimitExceeded):
        await at.ask(10)
    at.limiter.drop_limit(row(requests_per_minute=2))
    assert not at.limiter.limits


@pytest.mark.parametrize(
    ("left_ms", "text"),
    [(0, b"0s"), (-5, b"0s"), (1, b"1s"), (59_001, b"1m0s"), (360_000, b"6m0s"), (86_399_999, b"24h0m0s")],
)
def test_times_are_written_as_openai_does(left_ms: int, text: bytes) -> None:
    assert duration_text(left_ms) == text


# -- the store ---------------------------------------------------------------------------------------------------------


def used(received_at_ms: int, tokens: int, **fields: Any) -> Write:
    """The record of a request of key_1."""
    record = settlement(received_at_ms=received_at_ms, usage=Usage(uncached_input=tokens), **fields).record
    return Write(INSERT_USAGE, usage_row(record))


def test_a_restart_takes_over_what_windows_under_way_have_used(database: Path, writer: LedgerWriter) -> None:
    writer.start()
    now_ms = int(NOW_S * 1000) + 90_000
    minute_ms = now_ms // MINUTE_MS * MINUTE_MS
    limits = [
        row("lim_1", tokens_per_minute=100, tokens_per_hour=1000),
        row("lim_2", "organization", "org_1", requests_per_hour=10),
        row("lim_3", "organization", "org_1", model="other", requests_per_hour=10),
        row("lim_4", "model", "m", tokens_per_minute=500),
        row("lim_5", "project", "prj_1", requests_per_hour=10, created_at_ms=minute_ms),
        row("lim_6", "key", "key_9", tokens_per_hour=100),
        row("lim_7", tokens_per_minute=1, archived_at_ms=5),
    ]
    writer.submit([insert_limit(one) for one in limits]).result(20)
    writer.submit(
        [
            used(minute_ms + 1, 30),
            used(minute_ms, 9, outcome="client_gone"),
            used(minute_ms + 2, 7, outcome="rejected", error_code="overloaded"),
            used(minute_ms - 1, 500),
            used(minute_ms - HOUR_MS, 5000),
            used(minute_ms, 1, model="other"),
        ]
    ).result(20)
    clock = HandClock(now_ms / 1000)
    limiter = RateLimiter(telemetry=Telemetry(writer), clock=clock)
    reader = open_reader(database)
    limiter.load(reader)
    assert [one.id for one in read_limits(reader)] == [one.id for one in limits[:-1]]
    assert len(read_limits(reader, with_archived=True)) == len(limits)
    reader.close()

    def left(limit_id: str, what: Any, model: str = "m") -> list[int]:
        over = limiter.limits.find("org_1", "prj_1", "key_9" if limit_id == "lim_6" else "key_1", model)
        found = [limiter.limits.standing([limit], what, now_ms) for limit in over if limit.id == limit_id]
        return [one.maximum - one.remaining for one in found if one is not None]

    assert left("lim_1", "tokens") == [40]
    assert left("lim_2", "requests") == [4]
    assert left("lim_3", "requests", "other") == [1]
    assert left("lim_4", "tokens") == [39]
    assert left("lim_5", "requests") == [3], "what came before the limit doesn't count"
    assert left("lim_6", "tokens") == [0]


@pytest.mark.parametrize("text", [*SELECT_USED.values(), SELECT_USED_BY_ALL])
def test_what_windows_have_used_is_read_through_an_index_by_time(reader: Connection, text: str) -> None:
    given = ["key_1", 1, 2, None] if "?4" in text else [1, 2]
    plan = [line[3] for line in reader.execute(f"EXPLAIN QUERY PLAN {text}", given)]
    assert any(line.startswith("SEARCH usage_records USING INDEX") and "received_at_ms>?" in line for line in plan), (
        plan
    )


def test_the_database_refuses_what_can_not_be_a_limit(writer: LedgerWriter) -> None:
    writer.start()
    for broken in (
        row(),
        row(tokens_per_minute=0),
        row(tokens_per_minute=5, scope="tag"),
        row(scope="model", scope_id="m", tokens_per_minute=5, model="m"),
        row(tokens_per_minute=5, organization_id=None),
    ):
        with pytest.raises(Exception, match="CHECK constraint failed"):
            writer.submit([insert_limit(broken)]).result(20)


def test_an_updated_limit_is_read_as_it_is_now(database: Path, writer: LedgerWriter) -> None:
    writer.start()
    writer.submit([insert_limit(row(tokens_per_minute=5))]).result(20)
    writer.submit([update_limit(row(requests_per_day=7))]).result(20)
    reader = open_reader(database)
    assert read_limits(reader) == [row(requests_per_day=7)]
    reader.close()
