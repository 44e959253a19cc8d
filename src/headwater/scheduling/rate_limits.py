"""Rate limits: at most so many requests and tokens in each minute, hour or day, and so many requests at once. Pure.

Windows are fixed: the one of a moment is floor(moment / length) on the store's clock, UTC. A request counts in the window
in which it was received. Its tokens are reserved before it runs (prompt and output cap) and what it didn't use goes back
when it is settled, into the window of the reservation; so no number of requests at once can pass a limit. A request that
is refused counts nowhere.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
CONCURRENCY_RETRY_MS = 1000
"""When a place among the requests at once gets free is not known; asking again after this is cheap."""
KEPT_MIN = 1024
"""Below so many limits in use none is forgotten: it would save nothing."""

Scope = Literal["organization", "project", "key", "model"]
What = Literal["requests", "tokens", "concurrency"]


class Cap(NamedTuple):
    """At most `maximum` requests, or tokens, in each window of this length."""

    what: Literal["requests", "tokens"]
    window_ms: int
    maximum: int


class Limit(NamedTuple):
    """What holds for one scope. model: only requests to it count; None: all. concurrency_max None: any number at once."""

    id: str
    scope: Scope
    scope_id: str
    model: str | None
    caps: tuple[Cap, ...]
    concurrency_max: int | None = None


class Window:
    """What the newest window and the one before it have used. A request may be received in one and admitted in the next."""

    __slots__ = ("_index", "_requests", "_requests_before", "_tokens", "_tokens_before", "window_ms")

    def __init__(self, window_ms: int, now_ms: int) -> None:
        self.window_ms = window_ms
        self._index = now_ms // window_ms
        self._requests = self._tokens = self._requests_before = self._tokens_before = 0

    def index_of(self, received_ms: int, now_ms: int) -> int:
        """The window in which a request received then counts; the present one if that was over before the last began."""
        now = now_ms // self.window_ms
        if now == self._index + 1:
            self._requests_before, self._tokens_before = self._requests, self._tokens
            self._index, self._requests, self._tokens = now, 0, 0
        elif now > self._index or now < self._index - 1:  # idle for long, or the clock was put back by a window
            self._requests = self._tokens = self._requests_before = self._tokens_before = 0
            self._index = now
        index = received_ms // self.window_ms
        return index if self._index - 1 <= index <= self._index else now

    def used(self, what: What, index: int) -> int:
        """What that window, of `index_of`, has used."""
        if index == self._index:
            return self._tokens if what == "tokens" else self._requests
        return self._tokens_before if what == "tokens" else self._requests_before

    def add(self, index: int, requests: int, tokens: int) -> None:
        """Count, or give back; for a window that has been over for long there is nothing to do."""
        if index == self._index:
            self._requests += requests
            self._tokens += tokens
        elif index == self._index - 1:
            self._requests_before += requests
            self._tokens_before += tokens

    def is_idle(self, now_ms: int) -> bool:
        """Whether nothing it holds can matter any more."""
        return now_ms // self.window_ms > self._index + 1


class Use:
    """What is used under one limit: its windows by length, and the requests in flight."""

    __slots__ = ("in_flight_count", "windows")

    def __init__(self, limit: Limit, now_ms: int) -> None:
        self.in_flight_count = 0
        self.windows: dict[int, Window] = {}
        self.fit(limit, now_ms)

    def fit(self, limit: Limit, now_ms: int) -> None:
        """Have the windows that the limit needs; those there are stay."""
        for cap in limit.caps:
            if cap.window_ms not in self.windows:
                self.windows[cap.window_ms] = Window(cap.window_ms, now_ms)

    def is_idle(self, now_ms: int) -> bool:
        """Whether it can be forgotten."""
        return not self.in_flight_count and all(window.is_idle(now_ms) for window in self.windows.values())


class Grant:
    """What one admitted request holds under its limits until it is settled, once."""

    __slots__ = ("_uses", "_windows", "is_open", "tokens")

    def __init__(self, uses: list[Use], windows: list[tuple[Window, int]], tokens: int) -> None:
        self._uses = uses
        self._windows = windows
        self.tokens = tokens
        self.is_open = True

    def settle(self, tokens: int) -> None:
        """It is over and has used so many tokens; the rest of what it held is free again. A second call does nothing."""
        self._end(0, tokens)

    def give_back(self) -> None:
        """It was refused after all: as if it had never been asked. After a settlement this does nothing."""
        self._end(-1, 0)

    def _end(self, requests: int, tokens: int) -> None:
        if not self.is_open:
            return
        self.is_open = False
        for use in self._uses:
            use.in_flight_count -= 1
        for window, index in self._windows:
            window.add(index, requests, tokens - self.tokens)


class Refusal(NamedTuple):
    """Why a request may not run now. maximum, used, needed: of `what`.

    window_ms 0: requests at once. retry_at_ms: when it may, as far as this limit goes; None: never, it is larger than the limit.
    """

    limit: Limit
    what: What
    window_ms: int
    maximum: int
    used: int
    needed: int
    retry_at_ms: int | None


class Standing(NamedTuple):
    """How a caller stands under its tightest limit of requests, or of tokens."""

    maximum: int
    remaining: int
    resets_at_ms: int


class RateLimits:
    """Every limit in force and what is used under it; nothing is kept for those nobody uses."""

    def __init__(self) -> None:
        self._scopes: dict[str, dict[str, Limit]] = {}  # ids of organizations, projects and keys differ by their prefix
        self._models: dict[str, dict[str, Limit]] = {}
        self._uses: dict[str, Use] = {}
        self._sweep_count = KEPT_MIN

    def __bool__(self) -> bool:
        """Whether there is any limit at all."""
        return bool(self._scopes or self._models)

    @property
    def uses_count(self) -> int:
        """Limits of which anything is remembered."""
        return len(self._uses)

    # -- what limits there are ---------------------------------------------------------------------------------------

    def put(self, limit: Limit, now_ms: int) -> None:
        """A limit exists, or is another one now; what was used under it stays used."""
        self._table(limit).setdefault(limit.scope_id, {})[limit.id] = limit
        use = self._uses.get(limit.id)
        if use is not None:
            use.fit(limit, now_ms)

    def drop(self, limit: Limit) -> None:
        """A limit is lifted. What runs under it ends without a trace."""
        of_scope = self._table(limit).get(limit.scope_id, {})
        if of_scope.pop(limit.id, None) is not None and not of_scope:
            del self._table(limit)[limit.scope_id]
        self._uses.pop(limit.id, None)

    def restore(self, limit: Limit, cap: Cap, *, requests: int, tokens: int, now_ms: int) -> None:
        """What the window under way had used before this process began. Once for each length of a limit's windows."""
        window = self._use(limit, now_ms).windows[cap.window_ms]
        window.add(window.index_of(now_ms, now_ms), requests, tokens)

    def find(self, organization_id: str, project_id: str, key_id: str, model: str) -> list[Limit]:
        """The limits over a request; empty for most."""
        scopes = self._scopes
        found: list[Limit] = []
        if scopes:
            for scope_id in (organization_id, project_id, key_id):
                limits = scopes.get(scope_id)
                if limits is not None:
                    found += [limit for limit in limits.values() if limit.model is None or limit.model == model]
        if self._models:
            found += self._models.get(model, {}).values()
        return found

    # -- requests ------------------------------------------------------------------------------------------------------

    def admit(self, limits: Iterable[Limit], *, tokens: int, received_ms: int, now_ms: int) -> Grant | Refusal:
        """Reserve a request's tokens under all of its limits, or under none.

        Of several refusals the one that holds longest is returned: its time is when coming back can help.
        """
        uses: list[Use] = []
        windows: list[tuple[Window, int]] = []
        longest: Refusal | None = None
        for limit in limits:
            use = self._use(limit, now_ms)
            uses.append(use)
            if limit.concurrency_max is not None and use.in_flight_count >= limit.concurrency_max:
                refused = Refusal(
                    limit,
                    "concurrency",
                    0,
                    limit.concurrency_max,
                    use.in_flight_count,
                    1,
                    now_ms + CONCURRENCY_RETRY_MS,
                )
                longest = _longer(longest, refused)
            windows += [(window, window.index_of(received_ms, now_ms)) for window in use.windows.values()]
            for what, window_ms, maximum in limit.caps:
                window = use.windows[window_ms]
                index = window.index_of(received_ms, now_ms)
                used, needed = window.used(what, index), tokens if what == "tokens" else 1
                if used + needed > maximum:
                    retry_at_ms = None if needed > maximum else (index + 1) * window_ms
                    refused = Refusal(limit, what, window_ms, maximum, used, needed, retry_at_ms)
                    longest = _longer(longest, refused)
        if longest is not None:
            return longest
        for use in uses:
            use.in_flight_count += 1
        for window, index in windows:
            window.add(index, 1, tokens)
        return Grant(uses, windows, tokens)

    def standing(self, limits: Iterable[Limit], what: What, now_ms: int) -> Standing | None:
        """How much of `what` is left now under the tightest limit; None when nothing limits it."""
        tightest: Standing | None = None
        for limit in limits:
            use = self._uses.get(limit.id)
            for kind, window_ms, maximum in limit.caps:
                if kind != what:
                    continue
                index, used = now_ms // window_ms, 0
                if use is not None:
                    window = use.windows[window_ms]
                    index = window.index_of(now_ms, now_ms)
                    used = window.used(what, index)
                found = Standing(maximum, max(0, maximum - used), (index + 1) * window_ms)
                # With as little left under both, the one that lasts longer is the tighter.
                if tightest is None or (found.remaining, -found.resets_at_ms) < (
                    tightest.remaining,
                    -tightest.resets_at_ms,
                ):
                    tightest = found
        return tightest

    # -- its own -------------------------------------------------------------------------------------------------------

    def _table(self, limit: Limit) -> dict[str, dict[str, Limit]]:
        return self._models if limit.scope == "model" else self._scopes

    def _use(self, limit: Limit, now_ms: int) -> Use:
        use = self._uses.get(limit.id)
        if use is None:
            if len(self._uses) >= self._sweep_count:
                self._sweep(now_ms)
            use = self._uses[limit.id] = Use(limit, now_ms)
        return use

    def _sweep(self, now_ms: int) -> None:
        """Forget what nobody uses; again when twice as many are in use, so that each costs a constant."""
        self._uses = {name: use for name, use in self._uses.items() if not use.is_idle(now_ms)}
        self._sweep_count = max(KEPT_MIN, 2 * len(self._uses))


def tokens_max(limits: Sequence[Limit]) -> int | None:
    """The most tokens that one request may ever need under these limits; None: any number."""
    return min((cap.maximum for limit in limits for cap in limit.caps if cap.what == "tokens"), default=None)


def _longer(one: Refusal | None, other: Refusal) -> Refusal:
    """The refusal that holds longer."""
    if one is None or other.retry_at_ms is None:
        return other
    return one if one.retry_at_ms is None or one.retry_at_ms >= other.retry_at_ms else other
