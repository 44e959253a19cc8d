"""The platform with windows of another length than a minute, sound or with a broken limiter: what the rig of limits runs.

python -m tests.rig.limit_twins WINDOW_MS NAME up …           as `headwater up …`
platform.start(wrapper=wrapper(WINDOW_MS, NAME), …)           the same for the rig's platform
"""

import sys
from collections.abc import Iterable

from headwater.scheduling.rate_limits import Grant, Limit, RateLimits, Refusal


class CountsRefused(RateLimits):
    """What is refused is counted all the same."""

    def admit(self, limits: Iterable[Limit], *, tokens: int, received_ms: int, now_ms: int) -> Grant | Refusal:
        """See RateLimits."""
        over = list(limits)
        decided = super().admit(over, tokens=tokens, received_ms=received_ms, now_ms=now_ms)
        if isinstance(decided, Refusal):
            for limit in over:
                for window in self._use(limit, now_ms).windows.values():
                    window.add(window.index_of(received_ms, now_ms), 1, tokens)
        return decided


class ReadsThenWrites(RateLimits):
    """Nothing is held: tokens are counted when they have been used."""

    def admit(self, limits: Iterable[Limit], *, tokens: int, received_ms: int, now_ms: int) -> Grant | Refusal:
        """See RateLimits."""
        decided = super().admit(limits, tokens=tokens, received_ms=received_ms, now_ms=now_ms)
        if isinstance(decided, Grant):
            for window, index in decided._windows:
                window.add(index, 0, -tokens)
            decided.tokens = 0
        return decided


class SlidesItsReset(RateLimits):
    """A window lasts its length from its last request on, so that it is never over for who goes on asking."""

    def __init__(self) -> None:
        super().__init__()
        self._shift_ms: dict[str, int] = {}
        self._last_ms: dict[str, int] = {}

    def admit(self, limits: Iterable[Limit], *, tokens: int, received_ms: int, now_ms: int) -> Grant | Refusal:
        """See RateLimits."""
        over = list(limits)
        name, length_ms = over[0].id, min(cap.window_ms for limit in over for cap in limit.caps)
        since_ms = now_ms - self._last_ms.get(name, 0)
        if since_ms >= length_ms:
            self._shift_ms[name] = now_ms % length_ms
        else:
            self._shift_ms[name] += since_ms
        self._last_ms[name] = now_ms
        at_ms = now_ms - self._shift_ms[name]
        return super().admit(over, tokens=tokens, received_ms=at_ms, now_ms=at_ms)


LIMITERS: dict[str, type[RateLimits]] = {
    "sound": RateLimits,
    "counts_refused": CountsRefused,
    "reads_then_writes": ReadsThenWrites,
    "slides_its_reset": SlidesItsReset,
}


def wrapper(window_ms: int, name: str) -> list[str]:
    """The command to run the platform under, so that its minutes are that long and its limiter is that one."""
    if name not in LIMITERS:
        raise KeyError(f"there is no limiter {name}; there are {', '.join(LIMITERS)}")
    return [sys.executable, "-m", "tests.rig.limit_twins", str(window_ms), name]


def main(argv: list[str]) -> None:
    """Change the product, then run its command line with what follows (a `python -m headwater` is left out)."""
    window_ms, name, *command = argv
    if "-m" in command and command.index("-m") == 1:
        command = command[3:]
    from headwater.gateway import limits

    limits.WINDOWS_MS = (int(window_ms), *limits.WINDOWS_MS[1:])
    limits.RateLimits = LIMITERS[name]  # type: ignore[attr-defined]
    from headwater.cli.main import main as headwater

    sys.argv = ["headwater", *command]
    headwater()


if __name__ == "__main__":
    main(sys.argv[1:])
