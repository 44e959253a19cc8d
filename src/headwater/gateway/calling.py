"""Steps 7 and 8 for each choice of a request, then its call, and what is done when the call fails.

    for each target of the route: breaker ─▶ queue ─▶ replica and slot ─▶ call (`relay.py`)
                                     ▲                                      │ failed before any content
                                     └── the next target, or the last again ┘

What to do is decided by `scheduling/retries.py` and `scheduling/breaker.py`. Once content has come nothing is tried
again: the caller would read it twice. Each call is an attempt with a row of its own that says why it was made.
"""

import asyncio
import random
from functools import partial
from typing import NamedTuple

import msgspec

from headwater.errors import ContextLengthExceeded, EngineFailed, NoReplica, PlatformError, TimedOut, UpstreamDown
from headwater.gateway.admission import Sized, decide_output_cap
from headwater.gateway.attempt import Attempt
from headwater.gateway.engines import Engine
from headwater.gateway.pool import Lease
from headwater.gateway.relay import Call, Course, relay
from headwater.gateway.routing import Target
from headwater.gateway.sinks import Sink
from headwater.gateway.slots import prefix_chain
from headwater.gateway.telemetry import Telemetry
from headwater.ids import ATTEMPT, new_id
from headwater.request import Chat
from headwater.scheduling.breaker import ORDINARY
from headwater.scheduling.retries import BROKEN, COUNTS, SILENT, again, may_go_elsewhere

FIRST_CHOICE = "first choice"


class _Choice(NamedTuple):
    """One choice to be answered: its number, what is asked for it, and where its answer goes."""

    number: int
    chat: Chat
    sink: Sink


class Caller:
    """Makes the calls of one request."""

    __slots__ = ("_course", "_default_max", "_prefix", "_sized", "_target", "_targets", "_telemetry")

    def __init__(self, target: Target, course: Course, telemetry: Telemetry, *, output_default_max: int) -> None:
        """target: as resolved, a route or not. output_default_max: the output cap of a caller that states none."""
        self._target = target
        self._targets = target.targets or (target,)
        self._course = course
        self._telemetry = telemetry
        self._default_max = output_default_max
        self._prefix: tuple[int, ...] | None = None
        self._sized: Sized | None = None

    # -- at admission --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse now what no target could serve: raises the first one's refusal (NoReplica, Overloaded, UpstreamDown)."""
        refusal: PlatformError | None = None
        for target in self._targets:
            try:
                self._check(target)
            except PlatformError as error:
                refusal = refusal or error
            else:
                return
        assert refusal is not None, "there is at least one target"
        raise refusal

    def _check(self, target: Target) -> None:
        """Raises what speaks against asking this target. A replica that is coming is waited for by the last one only."""
        if not target.pool.members and target is not self._targets[-1]:
            raise NoReplica(f"No replica of {target.pool.name!r} is ready.", retry_after_s=30)
        if target.guard is not None:
            target.guard.refuse_if_open(self._course.clock.monotonic_s())
        places_count = self._course.request.payload.choices_count
        if not target.pool.has_room(places_count):
            target.pool.check(places_count, self._course.ask())

    async def size(self) -> Sized:
        """The payload with its output cap, as the first target that can hold it has it. Raises ContextLengthExceeded."""
        chat = self._course.request.payload
        refusal: PlatformError | None = None
        for target in self._targets:
            try:
                if len(self._targets) > 1:
                    self._check(target)
                return await decide_output_cap(chat, target, default_max=self._default_max)
            except ContextLengthExceeded as error:
                refusal = refusal or error
            except PlatformError as error:
                if target is self._targets[-1] or not may_go_elsewhere(error, has_content=False):
                    raise
        assert refusal is not None, "only a payload that is too long gets here"
        raise refusal

    # -- the calls -----------------------------------------------------------------------------------------------------

    async def answer(self, sized: Sized, sink: Sink) -> None:
        """Call for every choice; n choices are n calls, each with a place of its own; the first failure ends them all."""
        self._sized = sized
        chat = sized.chat
        if chat.choices_count == 1:
            await self._choice(_Choice(0, chat, sink))
            return
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(chat.choices_count):
                    group.create_task(self._choice(_Choice(number, chat.for_choice(number), sink)))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _choice(self, choice: _Choice) -> None:
        """Ask one target after the other until one answers."""
        if len(self._targets) == 1:
            await self._ask_last(self._target, choice, FIRST_CHOICE)
            return
        reason = FIRST_CHOICE
        failure: PlatformError | None = None
        for target in self._targets:
            is_last = target is self._targets[-1]
            try:
                self._check(target)
                fitted = await self._fitted(choice, target)
                if not is_last:
                    await self._try(target, fitted, reason)
                else:
                    await self._ask_last(target, fitted, reason)
            except PlatformError as error:
                failure = _to_tell(failure, error)
                is_too_long = isinstance(error, ContextLengthExceeded)
                if not is_too_long and not may_go_elsewhere(error, has_content=self._has_content(choice)):
                    raise
                if is_last:
                    raise failure from None
                self._abandon(choice, error)
                if target.guard is not None:
                    target.guard.failovers_count += 1
                reason = f"fallback: {error.code} of {target.name}"
            else:
                return

    async def _ask_last(self, target: Target, choice: _Choice, reason: str) -> None:
        """Ask the only target there is, or the last: again, where that can help and its budget allows it."""
        retries_count = 0
        guard, clock = target.guard, self._course.clock
        while True:
            try:
                await self._try(target, choice, reason)
            except PlatformError as error:
                if guard is None or not self._is_there_another_place(target, choice):
                    raise
                once_more = again(
                    error,
                    has_content=self._has_content(choice),
                    retries_count=retries_count,
                    retries_max=guard.retries_max,
                    draw=random.random(),  # noqa: S311 - jitter, no secret
                )
                if once_more is None or clock.monotonic_s() + once_more.pause_s >= self._course.request.deadline_s:
                    raise
                if guard.breaker.refusal_s(clock.monotonic_s() + once_more.pause_s) is not None:
                    raise
                if not guard.budget.take():
                    raise
                self._abandon(choice, error)
                retries_count += 1
                guard.retries_count += 1
                reason = f"retry {retries_count}: {error.code}"
                await asyncio.sleep(once_more.pause_s)
            else:
                return

    async def _try(self, target: Target, choice: _Choice, reason: str) -> None:
        """One call: wait for a place, make it, pass its answer on."""
        clock, course, pool, guard = self._course.clock, self._course, target.pool, target.guard
        queued_s = clock.monotonic_s()
        if guard is not None:
            guard.refuse_if_open(queued_s)
            if not reason.startswith("retry"):
                guard.budget.offered()
        attempt = Attempt(choice.number, target.name, choice.chat, queued_at_s=clock.now_s(), is_own=target.is_own)
        while reason is not FIRST_CHOICE and any(made.id > attempt.id for made in course.attempts):
            attempt.id = new_id(ATTEMPT)  # ids tell the order of calls, even of two within one millisecond
        prefix = self._prefix_of(target)
        # What others of this request have begun, or have failed at, is not thrown away for a full queue.
        lease = await pool.lease(course.ask(prefix, is_evictable=not course.attempts))
        started_s = clock.monotonic_s()
        try:
            permit = ORDINARY if guard is None else guard.enter(started_s)
        except UpstreamDown:
            pool.give_back(lease)
            raise
        course.queue_s = max(course.queue_s, started_s - queued_s)
        attempt.started_at_s, attempt.replica_id = clock.now_s(), lease.member.endpoint.replica_id
        attempt.reason = _reason(reason, lease, members_count=len(pool.members))
        course.attempts.append(attempt)
        # A probe has succeeded when content comes; its answer may go on for minutes.
        on_content = partial(guard.succeeded, permit, started_s) if guard is not None and permit.number else None
        progress = lease.member.progress
        progress.begin(started_s)
        try:
            await relay(Call(attempt, target, lease, choice.chat, choice.sink, on_content), course, self._telemetry)
            lease.member.failures_count = 0
            if guard is not None:
                guard.succeeded(permit, clock.monotonic_s())
        except PlatformError as error:
            _blame(error, attempt, lease)
            if guard is not None:
                guard.failed(permit, error, clock.monotonic_s())
            raise
        except BaseException:
            if guard is not None:
                guard.breaker.released(permit)
            raise
        finally:
            progress.in_flight_count -= 1
            ended_s = clock.monotonic_s()
            attempt.duration_s = ended_s - started_s
            if attempt.content_at_s is not None:
                self._telemetry.call_ended(target.name, attempt.counted, ended_s - attempt.content_at_s)
            pool.release(lease, prefix=prefix, input_tokens=attempt.read_tokens, output_tokens=attempt.counted)

    async def _fitted(self, choice: _Choice, target: Target) -> _Choice:
        """The choice as this target's context can hold it, never with a larger cap. Raises ContextLengthExceeded."""
        chat, sized = choice.chat, self._sized
        if target.context_tokens is None or sized is None or chat.output_tokens_max is None:
            return choice
        wish = chat if sized.is_stated else msgspec.structs.replace(chat, output_tokens_max=None)
        return choice._replace(chat=(await decide_output_cap(wish, target, default_max=chat.output_tokens_max)).chat)

    def _prefix_of(self, target: Target) -> tuple[int, ...]:
        """What may be warm in a slot of ours; an upstream's slots are its own."""
        if not target.is_own:
            return ()
        if self._prefix is None:
            self._prefix = prefix_chain(self._course.request.payload)
        return self._prefix

    def _attempts_at(self, choice: _Choice) -> list[Attempt]:
        return [attempt for attempt in self._course.attempts if attempt.choice == choice.number]

    def _has_content(self, choice: _Choice) -> bool:
        return any(attempt.counted for attempt in self._attempts_at(choice))

    def _abandon(self, choice: _Choice, error: PlatformError) -> None:
        """The request goes on without its last call, which has an outcome of its own then."""
        made = self._attempts_at(choice)
        if made:
            made[-1].abandon("timeout" if isinstance(error, TimedOut) else "upstream_error")

    def _is_there_another_place(self, target: Target, choice: _Choice) -> bool:
        """Whether trying again can help: an upstream has machines we don't see; a replica that failed has failed."""
        if not target.is_own:
            return True
        made = self._attempts_at(choice)
        return bool(made) and any(member_id != made[-1].replica_id for member_id in target.pool.members)


def _blame(error: PlatformError, attempt: Attempt, lease: Lease[Engine]) -> None:
    """Put down what failed, and on whom."""
    attempt.error_code = error.code
    if error.fault is None:
        error.fault = _fault_of(error, attempt)
    if error.fault in COUNTS:
        lease.member.failures_count += 1


def _fault_of(error: PlatformError, attempt: Attempt) -> str | None:
    """What an answer that broke off or fell silent says about its engine; a pause in the middle of one says nothing."""
    if isinstance(error, EngineFailed):
        return BROKEN
    return SILENT if isinstance(error, TimedOut) and not attempt.counted else None


def _to_tell(before: PlatformError | None, error: PlatformError) -> PlatformError:
    """Which failure the caller is told of: the last call's, else the last refusal's, with the soonest time to come back."""
    if before is None:
        return error
    is_less = isinstance(error, ContextLengthExceeded) or (before.fault is not None and error.fault is None)
    told = before if is_less else error
    waits_s = [one.retry_after_s for one in (before, error) if one.retry_after_s is not None]
    if told.retry_after_s is not None:
        told.retry_after_s = min(waits_s)
    return told


def _reason(reason: str, lease: Lease[Engine], *, members_count: int) -> str:
    """Why a call goes where it goes: why it is made, and of a first call on several replicas, why on this one."""
    if reason is not FIRST_CHOICE:
        return reason
    if why := lease.place.reason:
        return why
    return f"least loaded of {members_count} replicas" if members_count > 1 else reason
