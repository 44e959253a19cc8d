"""The circuit breaker of one upstream: after enough failures it is left alone for a while, then tried one call at a time. Pure.

    CLOSED ──failures──▶ OPEN ──its time is over──▶ HALF_OPEN ──the probe succeeds──▶ SLOW_START ──▶ CLOSED
                          ▲                            │                                 │
                          └─────── a failure: closed for longer than before ─────────────┘

It works for a single upstream too: while it is open a request is refused at once, with the time to come back, instead of
failing slowly. Time is an argument, in seconds on one monotonic clock; so is chance, drawn from [0, 1).
Source: M. Nygard, "Release It!" (circuit breaker); slow start as in Envoy's and HAProxy's load balancers.
"""

import enum
import math
from typing import Final, NamedTuple

WINDOW_S: Final = 10.0
"""Failures are also counted as a share of the calls that ended in this time or, at most, twice of it."""
RATE_CALLS_MIN: Final = 20
"""Of fewer calls a share says nothing."""
FAILED_SHARE: Final = 0.5
OPEN_S_MIN: Final = 1.0
OPEN_S_MAX: Final = 30.0
"""How long it stays open: doubled each time, with jitter, within these bounds."""
PROBE_S_MAX: Final = 60.0
"""A probe whose end nobody reported is forgotten after this time."""
SLOW_START_S: Final = 5.0
SHARE_FIRST: Final = 0.2
"""The share of calls let through when slow start begins; it grows to all of them over SLOW_START_S."""
COOL_DOWN_S_MAX: Final = 60.0
"""An upstream's wish to be left alone (`Retry-After`) is heeded for this long at most; then one probe asks again."""


class State(enum.IntEnum):
    """What a breaker lets through. The number is its metric's value."""

    CLOSED = 0  # everything
    SLOW_START = 1  # a growing share
    HALF_OPEN = 2  # one probe at a time
    OPEN = 3  # nothing


class Permit(NamedTuple):
    """Leave to make one call; to be given back to the breaker by `succeeded`, `failed` or `released`."""

    number: int = 0
    """Of a probe; 0: an ordinary call."""


ORDINARY: Final = Permit()


class Breaker:
    """The state of one upstream. One owner; nothing in it waits."""

    __slots__ = (
        "_before",
        "_credit",
        "_failures_max",
        "_now",
        "_open_s",
        "_opened_count",
        "_probe",
        "_probe_until_s",
        "_probes_count",
        "_row_count",
        "_slow_since_s",
        "_until_s",
        "_window_until_s",
        "state",
    )

    def __init__(self, failures_max: int) -> None:
        """failures_max: so many failures in a row open it; 0: it never opens."""
        self.state = State.CLOSED
        self._failures_max = failures_max
        self._row_count = 0
        self._now = [0, 0]  # ended, failed: of this window, and of the one before
        self._before = [0, 0]
        self._window_until_s = -math.inf
        self._until_s = 0.0
        self._open_s = 0.0
        self._opened_count = 0
        self._probe = 0
        self._probe_until_s = 0.0
        self._probes_count = 0
        self._slow_since_s = 0.0
        self._credit = 0.0

    @property
    def opened_count(self) -> int:
        """How often it has opened."""
        return self._opened_count

    def refusal_s(self, now_s: float) -> float | None:
        """Seconds until it is worth coming back when no call may be made now; None when one may."""
        if self.state is State.CLOSED or self.state is State.SLOW_START:
            return None
        if self.state is State.OPEN:
            return None if now_s >= self._until_s else self._until_s - now_s
        return None if not self._probe or now_s >= self._probe_until_s else OPEN_S_MIN

    def begin(self, now_s: float) -> Permit | None:
        """Leave to make one call now; None: not now."""
        if self.state is State.CLOSED:
            return ORDINARY
        if self.state is State.SLOW_START:
            return self._begin_slowly(now_s)
        if self.refusal_s(now_s) is not None:
            return None
        self.state = State.HALF_OPEN
        self._probes_count += 1
        self._probe, self._probe_until_s = self._probes_count, now_s + PROBE_S_MAX
        return Permit(self._probe)

    def succeeded(self, permit: Permit, now_s: float) -> None:
        """A call was answered."""
        self._row_count = 0
        self._count(now_s, is_failure=False)
        if permit.number and permit.number == self._probe and self.state is State.HALF_OPEN:
            self._probe = 0
            self.state, self._slow_since_s, self._credit = State.SLOW_START, now_s, 0.0

    def failed(self, permit: Permit, now_s: float, draw: float) -> None:
        """A call failed in a way that says something about the upstream. draw: from [0, 1), for the jitter."""
        if permit.number:
            if permit.number == self._probe and self.state is State.HALF_OPEN:
                self._open(now_s, draw)
            return
        self._row_count += 1
        self._count(now_s, is_failure=True)
        if self._failures_max and (
            self.state is State.SLOW_START or (self.state is State.CLOSED and self._is_too_much())
        ):
            self._open(now_s, draw)

    def released(self, permit: Permit) -> None:
        """A call ended without telling anything: its caller left, or the request was wrong."""
        if permit.number and permit.number == self._probe:
            self._probe = 0

    def cool_down(self, permit: Permit, now_s: float, wish_s: float) -> None:
        """The upstream asked to be left alone for so long: nothing is sent before that, then one probe."""
        self.released(permit)
        if self._failures_max:
            until_s = now_s + min(wish_s, COOL_DOWN_S_MAX)
            if self.state is not State.OPEN:
                self._opened_count += 1
                self.state, self._until_s = State.OPEN, until_s
            else:
                self._until_s = max(self._until_s, until_s)

    def _begin_slowly(self, now_s: float) -> Permit | None:
        share = SHARE_FIRST + (1 - SHARE_FIRST) * (now_s - self._slow_since_s) / SLOW_START_S
        if share >= 1:
            self._close()
            return ORDINARY
        self._credit += share
        if self._credit < 1:
            return None
        self._credit -= 1
        return ORDINARY

    def _close(self) -> None:
        self.state, self._open_s, self._row_count = State.CLOSED, 0.0, 0
        self._now, self._before = [0, 0], [0, 0]

    def _open(self, now_s: float, draw: float) -> None:
        longer_s = min(OPEN_S_MAX, max(OPEN_S_MIN, 2 * self._open_s))
        self._open_s = longer_s
        self._until_s = now_s + min(OPEN_S_MAX, max(OPEN_S_MIN, longer_s * (0.75 + 0.5 * draw)))
        self.state, self._probe = State.OPEN, 0
        self._opened_count += 1

    def _count(self, now_s: float, *, is_failure: bool) -> None:
        if now_s >= self._window_until_s:
            self._before = self._now if now_s < self._window_until_s + WINDOW_S else [0, 0]
            self._now, self._window_until_s = [0, 0], now_s + WINDOW_S
        self._now[0] += 1
        self._now[1] += is_failure

    def _is_too_much(self) -> bool:
        if self._row_count >= self._failures_max:
            return True
        ended, failed = self._now[0] + self._before[0], self._now[1] + self._before[1]
        return ended >= RATE_CALLS_MIN and failed >= FAILED_SHARE * ended
