"""Whether a replica is alive, judged by what advances: tokens, prefill progress, answers. Pure: no clock, no process, no log.

Slow is not dead: whatever advances, however slowly, is left alone. Dead is not slow: an engine whose HTTP side answers
while its work stands still is found, and so is one that was stopped or that nobody asks anything.
"""

import enum
from typing import NamedTuple

HANG_BATCHES = 8
"""A replica may be silent for at least so many of its prefill batches: it reports progress after each."""
MISSES_MAX = 3
"""Questions in a row that it may leave unanswered before it gets no new calls."""
ASKS_PER_TIMEOUT, ASK_INTERVAL_MAX_S = 6, 5.0
TICKS_PER_TIMEOUT, TICK_MAX_S = 20, 1.0
LATE_TICKS = 3
"""A look this late means that the platform stood still, not the replica: what it missed is not held against it."""


class Bounds(NamedTuple):
    """How a replica is watched, in seconds: looked at every tick_s, asked after ask_interval_s without a sign of life."""

    hang_timeout_s: float
    tick_s: float
    ask_interval_s: float


def bounds_of(hang_timeout_s: float, batch_s: float) -> Bounds:
    """The bounds for this time-out; batch_s: what one prefill batch of the replica takes, 0 when not known."""
    timeout_s = max(hang_timeout_s, HANG_BATCHES * batch_s)
    return Bounds(
        timeout_s,
        min(TICK_MAX_S, timeout_s / TICKS_PER_TIMEOUT),
        min(ASK_INTERVAL_MAX_S, timeout_s / ASKS_PER_TIMEOUT),
    )


class Answer(enum.Enum):
    """What came of asking a replica for its slots."""

    MISSED = enum.auto()  # no answer in time, or none that can be read
    MOVING = enum.auto()  # it has nothing to do, or has come further since it was asked last
    STILL = enum.auto()  # it answers, has work, and has not come further


class Look(NamedTuple):
    """What is seen of a replica at one moment. answer: of a question that ended since the last look, None without one."""

    now_s: float
    in_flight_count: int
    advanced_at_s: float
    answer: Answer | None = None


class Pulse(NamedTuple):
    """What is remembered of a replica. sign_s: its last sign of life; looked_s: the last look."""

    sign_s: float
    looked_s: float
    missed_count: int = 0
    is_busy: bool = False


class Verdict(enum.Enum):
    """What is to be done."""

    ALIVE = enum.auto()  # nothing; a suspect one gets calls again
    WAIT = enum.auto()  # nothing yet
    SUSPECT = enum.auto()  # no new calls for now
    HUNG = enum.auto()  # end it


def judge(pulse: Pulse, look: Look, bounds: Bounds) -> tuple[Pulse, Verdict]:
    """Look once more. While calls run on it, an answer counts only if it shows that they come further."""
    now_s, is_busy = look.now_s, look.in_flight_count > 0
    sign_s, missed_count = max(pulse.sign_s, look.advanced_at_s), pulse.missed_count
    if now_s - pulse.looked_s > LATE_TICKS * bounds.tick_s:
        sign_s = now_s
    if is_busy and not pulse.is_busy and look.advanced_at_s < pulse.looked_s:
        sign_s = now_s  # its calls began since the last look, whatever it had been silent about before
    if look.answer is Answer.MOVING or (look.answer is Answer.STILL and not is_busy):
        sign_s = now_s
    if look.advanced_at_s > pulse.sign_s or look.answer in (Answer.MOVING, Answer.STILL):
        missed_count = 0
    elif look.answer is Answer.MISSED:
        missed_count += 1
    after = Pulse(sign_s, now_s, missed_count, is_busy)
    is_silent = now_s - sign_s >= bounds.hang_timeout_s
    if is_silent and (is_busy or missed_count >= MISSES_MAX):
        return after, Verdict.HUNG
    if missed_count >= MISSES_MAX:
        return after, Verdict.SUSPECT
    return after, Verdict.ALIVE if missed_count == 0 else Verdict.WAIT


def is_question_due(pulse: Pulse, asked_s: float, bounds: Bounds) -> bool:
    """Whether to ask it now: it has shown nothing for an interval, and was last asked at least that long ago."""
    return pulse.looked_s - max(pulse.sign_s, asked_s) >= bounds.ask_interval_s


def describe(pulse: Pulse, in_flight_count: int) -> str:
    """What is wrong with it, for the reason that a person reads."""
    silent_s = pulse.looked_s - pulse.sign_s
    if in_flight_count:
        calls = "1 call" if in_flight_count == 1 else f"{in_flight_count} calls"
        return f"nothing advanced for {silent_s:.3g} s while {calls} ran on it"
    return f"it has not answered for {silent_s:.3g} s"
