"""Time, passed as an argument: pure code is given `now`, shells ask a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """What the platform asks of time; tests pass one they can turn."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch, for records; may jump."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that never goes back, for durations."""


class SystemClock:
    """The machine's own clocks."""

    now_s = staticmethod(time.time)
    monotonic_s = staticmethod(time.monotonic)
