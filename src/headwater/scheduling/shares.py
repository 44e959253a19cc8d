"""Who was served how many tokens of late. Pure: told the time, reads no clock."""

from collections import deque
from collections.abc import Iterator
from typing import Final

WINDOW_S: Final = 60.0
BUCKETS_COUNT: Final = 6


class ShareWindow:
    """Tokens served by organization, over the last `window_s` seconds, give or take a sixth of it."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.window_s = window_s
        self._step_s = window_s / BUCKETS_COUNT
        self._current: dict[str, int] = {}
        self._past: deque[dict[str, int]] = deque(maxlen=BUCKETS_COUNT - 1)
        self._ends_s: float | None = None

    def add(self, organization_id: str, tokens: int) -> None:
        """Count tokens; a negative number takes back what was counted too much."""
        current = self._current
        current[organization_id] = current.get(organization_id, 0) + tokens

    def advance(self, now_s: float) -> None:
        """Let the window end at `now_s`, seconds on any one clock that doesn't run backwards."""
        if self._ends_s is None:
            self._ends_s = now_s + self._step_s
        if now_s < self._ends_s:
            return
        steps = int((now_s - self._ends_s) / self._step_s) + 1
        for _ in range(min(steps, BUCKETS_COUNT)):
            self._past.append(self._current)
            self._current = {}
        self._ends_s += steps * self._step_s

    def recent(self) -> Iterator[str]:
        """Who was served in the window as it was last advanced; some of them more than once."""
        yield from self._current
        for bucket in self._past:
            yield from bucket

    def tokens(self, now_s: float) -> dict[str, int]:
        """Tokens in the window by organization; who had none is left out."""
        self.advance(now_s)
        sums: dict[str, int] = {}
        for bucket in (*self._past, self._current):
            for organization_id, tokens in bucket.items():
                sums[organization_id] = sums.get(organization_id, 0) + tokens
        return {organization_id: tokens for organization_id, tokens in sums.items() if tokens > 0}
