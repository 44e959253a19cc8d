"""Rate limits done naively, to hold the real ones to: a list of everything that was ever asked, summed up each time."""

from dataclasses import dataclass, field

from headwater.scheduling.rate_limits import Limit, What


@dataclass
class Asked:
    """One admitted request; tokens: reserved, then used."""

    limits: list[Limit]
    tokens: int
    received_ms: int
    admitted_ms: int
    is_open: bool = True
    counts: bool = True


@dataclass
class NaiveLimits:
    """Every admitted request, for ever."""

    asked: list[Asked] = field(default_factory=list)

    def index(self, window_ms: int, received_ms: int, now_ms: int) -> int:
        """The window of the moment of receipt; the present one if that is more than one window back."""
        received, now = received_ms // window_ms, now_ms // window_ms
        return received if received >= now - 1 else now

    def used(self, limit: Limit, what: What, window_ms: int, index: int) -> int:
        """What one window has used."""
        mine = [
            one
            for one in self.asked
            if one.counts and limit in one.limits and self.index(window_ms, one.received_ms, one.admitted_ms) == index
        ]
        return sum(one.tokens for one in mine) if what == "tokens" else len(mine)

    def in_flight(self, limit: Limit) -> int:
        """How many requests under a limit aren't settled."""
        return sum(one.is_open for one in self.asked if limit in one.limits)

    def fits(self, limits: list[Limit], tokens: int, received_ms: int, now_ms: int) -> bool:
        """Whether a request may run."""
        for limit in limits:
            if limit.concurrency_max is not None and self.in_flight(limit) >= limit.concurrency_max:
                return False
            for what, window_ms, maximum in limit.caps:
                needed = tokens if what == "tokens" else 1
                index = self.index(window_ms, received_ms, now_ms)
                if self.used(limit, what, window_ms, index) + needed > maximum:
                    return False
        return True
