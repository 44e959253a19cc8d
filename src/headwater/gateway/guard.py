"""What stands before one upstream or deployment: its circuit breaker and its budget of retries, told how each call ended.

The decisions are pure (`scheduling/breaker.py`, `scheduling/retries.py`); here they meet the clock, chance and the log.
"""

import random

import structlog

from headwater.errors import PlatformError, UpstreamDown
from headwater.scheduling.breaker import OPEN_S_MIN, Breaker, Permit, State
from headwater.scheduling.retries import BUSY, COUNTS, RetryBudget

log = structlog.get_logger()


class Guard:
    """One for all models of an upstream, and one for each deployment. Owned by the event loop's thread."""

    __slots__ = ("breaker", "budget", "failovers_count", "name", "retries_count", "retries_max")

    def __init__(self, name: str, *, failures_max: int, retries_max: int) -> None:
        """failures_max: in a row, then it is left alone; 0: never. retries_max: of one call."""
        self.name = name
        self.breaker = Breaker(failures_max)
        self.budget = RetryBudget()
        self.retries_max = retries_max
        self.retries_count = 0
        self.failovers_count = 0

    def refuse_if_open(self, now_s: float) -> None:
        """Raises UpstreamDown, with the time to come back, while nothing may be sent there."""
        if self.breaker.state is not State.CLOSED:
            refusal_s = self.breaker.refusal_s(now_s)
            if refusal_s is not None:
                raise self._down(refusal_s)

    def enter(self, now_s: float) -> Permit:
        """Leave to make one call. Raises UpstreamDown."""
        permit = self.breaker.begin(now_s)
        if permit is None:
            raise self._down(self.breaker.refusal_s(now_s) or OPEN_S_MIN)
        return permit

    def succeeded(self, permit: Permit, now_s: float) -> None:
        """The call was answered, or has begun to be."""
        was = self.breaker.state
        self.breaker.succeeded(permit, now_s)
        if was is State.HALF_OPEN and self.breaker.state is State.SLOW_START:
            log.info("breaker_closing", upstream=self.name)

    def failed(self, permit: Permit, error: PlatformError, now_s: float) -> None:
        """The call failed; whether that says anything about the upstream is in the error's `fault`."""
        opened_count = self.breaker.opened_count
        if error.fault in COUNTS:
            self.breaker.failed(permit, now_s, random.random())  # noqa: S311 - jitter, no secret
        elif error.fault == BUSY and error.retry_after_s is not None:
            self.breaker.cool_down(permit, now_s, error.retry_after_s)
        elif error.fault is not None:
            self.breaker.succeeded(permit, now_s)  # it answers
        else:
            self.breaker.released(permit)
        if self.breaker.opened_count > opened_count:
            open_s = self.breaker.refusal_s(now_s) or 0.0
            log.warning("breaker_opened", upstream=self.name, fault=error.fault, open_s=round(open_s, 3))

    def _down(self, retry_after_s: float) -> UpstreamDown:
        return UpstreamDown(
            f"{self.name!r} has failed too often of late, or asked to be left alone; it will be tried again soon.",
            retry_after_s=retry_after_s,
        )
