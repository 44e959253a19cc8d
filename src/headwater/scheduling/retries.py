"""Whether a call that failed is worth another try, where, and when. Pure: time and chance are arguments.

A try elsewhere comes first: the next target of a route. The last target is asked again once, after a short pause with
jitter, and only within a budget, so that retries never add more than a fifth to what is offered: an upstream in trouble
must not be given more work than one that is well. Source: Google SRE book, chapter 21, "Handling Overload".
"""

from typing import Final, NamedTuple

from headwater.errors import PlatformError

EARNED: Final = 0.18
"""What each call offered adds to the budget of a target; a retry takes 1."""
BUDGET_MAX: Final = 2.0
"""So many may be saved up in a quiet time. With these two, any hundred calls or more bear a fifth of retries at most."""
PAUSE_S: Final = 0.1
"""Mean pause before the first retry; doubled for each one after it."""
WAIT_S_MAX: Final = 2.0
"""A `Retry-After` up to this is waited for; a longer one is passed on to the caller."""

CONNECT: Final = "connect"  # no connection
BROKEN: Final = "broken"  # the answer broke off, was garbage or held an error
SERVER: Final = "server"  # an answer with status 5xx
SILENT: Final = "silent"  # a time-out before any content
BUSY: Final = "busy"  # 429 or 503: it wishes to be left alone for a time that it says
REFUSED: Final = "refused"  # it answers, but not us: 401, 404, a redirect
WRONG: Final = "wrong"  # it says that the request is wrong
COUNTS: Final = frozenset({CONNECT, BROKEN, SERVER, SILENT})
"""Faults that say that the upstream is in trouble."""
_REPEATABLE: Final = frozenset({CONNECT, BROKEN, SERVER, BUSY})
_PLATFORMS_OWN: Final = frozenset({"overloaded", "no_replica", "upstream_down"})
"""Codes of refusals of ours that concern one target only: another one may have room."""


def may_go_elsewhere(error: PlatformError, *, has_content: bool) -> bool:
    """Whether another target may be asked instead: never once content has come, never when the request is at fault."""
    if has_content:
        return False
    return error.fault != WRONG if error.fault is not None else error.code in _PLATFORMS_OWN


class Again(NamedTuple):
    """Ask the same target again after a pause."""

    pause_s: float


def again(
    error: PlatformError, *, has_content: bool, retries_count: int, retries_max: int, draw: float
) -> Again | None:
    """Whether the same target is worth another try, and after what pause. draw: from [0, 1).

    retries_count: those made already. A wish of the upstream's own (`Retry-After`) is never cut short.
    """
    if has_content or error.fault not in _REPEATABLE or retries_count >= retries_max:
        return None
    pause_s: float = PAUSE_S * 2**retries_count * (0.5 + draw)
    if error.fault == BUSY:
        wish_s = error.retry_after_s
        return None if wish_s is None or wish_s > WAIT_S_MAX else Again(wish_s + pause_s)
    return Again(pause_s)


class RetryBudget:
    """How many retries one target can bear: less than a fifth of the calls offered to it, and a few saved up."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens = 0.0

    def offered(self) -> None:
        """A call that is no retry is about to be made."""
        if self._tokens < BUDGET_MAX:
            self._tokens += EARNED

    def take(self) -> bool:
        """Use the budget for one retry, if it holds one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
