"""Where a call goes after one that failed: a real queue and real relaying, towards engines that answer as told."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from headwater.clock import SystemClock
from headwater.errors import EngineFailed, NoReplica, PlatformError, UpstreamDown
from headwater.events import Event
from headwater.gateway.admission import Sized
from headwater.gateway.attempt import Attempt
from headwater.gateway.calling import Caller
from headwater.gateway.cashier import Cashier
from headwater.gateway.engines import Engine
from headwater.gateway.guard import Guard
from headwater.gateway.pool import Member, Pool
from headwater.gateway.relay import Course
from headwater.gateway.routing import Target, Timeouts, route_target
from headwater.gateway.sinks import Sink
from headwater.gateway.telemetry import Telemetry
from headwater.gateway.weights import Weights
from headwater.replica import ReplicaState, ReplicaStatus
from headwater.request import Chat, Principal, Request
from headwater.scheduling.breaker import State
from headwater.scheduling.retries import BUSY, CONNECT, SERVER
from tests.unit.gateway.chats import chat

ANSWER = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class Said:
    """A response whose body is known."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)
        self.is_closed = False

    async def read(self) -> bytes:
        return self._parts.pop(0) if self._parts else b""

    def finish(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True


class ToldEngine:
    """Fails with these errors, one for each call, then answers."""

    def __init__(self, replica_id: str | None = None, failures: Sequence[PlatformError] = ()) -> None:
        self.replica_id = replica_id
        self.failures = list(failures)
        self.calls_count = 0
        self.on_call: Callable[[], object] = lambda: None

    async def open(self, _chat: Chat, **_: Any) -> Any:
        self.calls_count += 1
        self.on_call()
        if self.failures:
            raise self.failures.pop(0)
        return Said(ANSWER)

    async def count_input_tokens(self, _chat: Chat) -> int | None:
        return None

    async def close(self) -> None:
        pass


class GatheringSink:
    """Keeps what it is given."""

    has_content = False

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def take(self, _choice: int, events: list[Event]) -> None:
        self.events += events


def target(
    name: str, *engines: ToldEngine, is_own: bool = False, failures_max: int = 0, retries_max: int = 1
) -> Target:
    """One with a budget for retries and a pool of these engines."""
    pool = Pool[Engine](name, queued_max=10)
    for engine in engines:
        member = Member[Engine](engine.replica_id or name, cast("Engine", engine), 1, is_slotted=is_own)
        pool.add_member(member)
    guard = Guard(name, failures_max=failures_max, retries_max=retries_max)
    for _ in range(20):
        guard.budget.offered()
    return Target(name, name, pool, Timeouts(1, 1, 10), 4096, is_own, 0, guard)


def failed(fault: str = SERVER, **fields: Any) -> PlatformError:
    return EngineFailed("x", fault=fault, **fields)


class Asked:
    """One request, and what became of it."""

    def __init__(self, resolved: Target) -> None:
        clock = SystemClock()
        now_s = clock.monotonic_s()
        request = Request(
            id="req_1",
            principal=Principal(organization_id="org_1", project_id="prj_1", key_id="key_1"),
            model=resolved.name,
            deadline_s=now_s + 10,
            is_stream=False,
            payload=chat(output_tokens_max=10),
            dialect="openai_chat",
            received_at_s=clock.now_s(),
            received_monotonic_s=now_s,
        )
        self.course = Course(
            request, cast("Cashier", None), clock, Weights()
        )  # nothing is marked of what isn't streamed
        self.sink = GatheringSink()
        self.caller = Caller(resolved, self.course, cast("Telemetry", NoTelemetry()), output_default_max=10)

    async def answer(self) -> list[Attempt]:
        """Make the calls, and return them."""
        with self.course.stop:
            sized = await self.caller.size()
            assert isinstance(sized, Sized)
            await self.caller.answer(sized, cast("Sink", self.sink))
        return self.course.attempts


class NoTelemetry:
    """Counts nothing; what is counted is another test's."""

    call_ended: Callable[..., None] = staticmethod(lambda *_: None)


async def test_an_upstream_is_asked_again_once_after_a_failure() -> None:
    engine = ToldEngine(failures=[failed(CONNECT)])
    made = await Asked(target("acme", engine)).answer()
    assert [attempt.reason for attempt in made] == ["first choice", "retry 1: engine_failed"]
    assert [attempt.row("req_1", "ok").outcome for attempt in made] == ["upstream_error", "ok"]
    assert made[0].id < made[1].id


async def test_twice_is_too_often() -> None:
    asked = Asked(target("acme", ToldEngine(failures=[failed(), failed()])))
    with pytest.raises(EngineFailed):
        await asked.answer()
    assert len(asked.course.attempts) == 2


async def test_without_a_budget_nothing_is_asked_again() -> None:
    acme = target("acme", ToldEngine(failures=[failed()]))
    assert acme.guard is not None
    while acme.guard.budget.take():
        pass
    asked = Asked(acme)
    with pytest.raises(EngineFailed):
        await asked.answer()
    assert len(asked.course.attempts) == 1


async def test_a_lone_replica_that_failed_is_not_asked_again() -> None:
    engine = ToldEngine("rep_1", [failed()])
    with pytest.raises(EngineFailed):
        await Asked(target("own", engine, is_own=True)).answer()
    assert engine.calls_count == 1


async def test_another_replica_is() -> None:
    dying, well = ToldEngine("rep_1", [failed()]), ToldEngine("rep_2")
    own = target("own", dying, well, is_own=True)
    dying.on_call = lambda: own.pool.remove_member("rep_1")  # its supervisor found it dead
    made = await Asked(own).answer()
    assert [(attempt.replica_id, attempt.reason) for attempt in made] == [
        ("rep_1", "least loaded of 2 replicas"),
        ("rep_2", "retry 1: engine_failed"),
    ]


async def test_a_route_goes_on_and_the_last_target_is_asked_again() -> None:
    first, last = ToldEngine(failures=[failed()]), ToldEngine(failures=[failed(CONNECT)])
    one, two = target("one", first), target("two", last)
    made = await Asked(route_target("both", [one, two])).answer()
    assert [(attempt.target, attempt.reason) for attempt in made] == [
        ("one", "first choice"),
        ("two", "fallback: engine_failed of one"),
        ("two", "retry 1: engine_failed"),
    ]
    assert one.guard is not None
    assert two.guard is not None
    assert (one.guard.failovers_count, two.guard.retries_count) == (1, 1)


async def test_an_open_breaker_refuses_at_once_and_costs_nothing() -> None:
    engine = ToldEngine(failures=[failed()] * 3)
    acme = target("acme", engine, failures_max=3, retries_max=0)
    for _ in range(3):
        with pytest.raises(EngineFailed):
            await Asked(acme).answer()
    asked = Asked(acme)
    with pytest.raises(UpstreamDown) as refused:
        asked.caller.check()
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 1.25
    with pytest.raises(UpstreamDown):
        await asked.answer()
    assert (engine.calls_count, asked.course.attempts) == (3, [])
    assert acme.pool.busy_count == 0, "no place is kept"


async def test_an_open_breaker_sends_a_route_on() -> None:
    down, well = target("down", ToldEngine(), failures_max=1), target("well", ToldEngine())
    assert down.guard is not None
    down.guard.failed(down.guard.enter(0.0), failed(BUSY, retry_after_s=30.0), SystemClock().monotonic_s())
    assert down.guard.breaker.state is State.OPEN
    asked = Asked(route_target("both", [down, well]))
    asked.caller.check()
    (only,) = await asked.answer()
    assert only.reason == "fallback: upstream_down of down"


async def test_a_target_whose_replica_is_only_coming_is_passed_over_and_the_last_one_is_waited_for() -> None:
    coming, well = target("coming", is_own=True), target("well", ToldEngine())
    coming.pool.report([ReplicaStatus("rep_1", "coming", ReplicaState.STARTING, "", 0)])
    asked = Asked(route_target("both", [coming, well]))
    asked.caller.check()
    (only,) = await asked.answer()
    assert (only.target, only.reason) == ("well", "fallback: no_replica of coming")
    Asked(route_target("both", [target("none", is_own=True), coming])).caller.check()


async def test_a_short_wish_to_wait_is_waited_for() -> None:
    acme = target("acme", ToldEngine(failures=[failed(BUSY, retry_after_s=0.05)]))
    made = await Asked(acme).answer()
    assert made[1].started_at_s - made[0].started_at_s >= 0.05


async def test_a_route_without_any_replica_refuses_as_its_first_target_does() -> None:
    none = [target("one", is_own=True), target("two", is_own=True)]
    for one in none:
        one.pool.report([ReplicaStatus("rep_1", one.name, ReplicaState.FAILED, "gone", 0)])
    with pytest.raises(NoReplica, match="'one'"):
        Asked(route_target("both", none)).caller.check()


async def test_a_replica_knows_what_runs_on_it() -> None:
    own = target("own", ToldEngine("rep_1", [failed()]), is_own=True)
    with pytest.raises(EngineFailed):
        await Asked(own).answer()
    (member,) = own.pool.members.values()
    assert member.progress.in_flight_count == 0
    assert member.progress.advanced_at_s > 0
