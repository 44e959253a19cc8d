"""Step 6: rate limits. Whether a request may run now under every limit over it, and what callers are told of them.

What counts is decided in `scheduling/rate_limits.py`. Here is what it needs of the world: the clock, the tokens of a
prompt, the store at a start. A caller without limits costs a few lookups.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil
from typing import NamedTuple

from headwater.clock import Clock
from headwater.errors import AboveRateLimit, EngineFailed, NoReplica, RateLimitExceeded, TimedOut
from headwater.gateway.admission import Sized, count_input, with_output_cap
from headwater.gateway.routing import Target
from headwater.gateway.telemetry import Telemetry
from headwater.ledger.limit_store import LimitRow, WindowUse, read_limits, read_used, read_used_by_all
from headwater.ledger.rows import AttemptRow
from headwater.ledger.store import Connection
from headwater.request import Request
from headwater.scheduling.input_estimate import InputEstimates, prompt_bytes, typical_tokens
from headwater.scheduling.rate_limits import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    Cap,
    Grant,
    Limit,
    RateLimits,
    Refusal,
    Standing,
    What,
    tokens_max,
)
from headwater.usage import Outcome

HeaderList = list[tuple[bytes, bytes]]
WINDOWS_MS = (MINUTE_MS, HOUR_MS, DAY_MS)
_NAMES = ("minute", "hour", "day")


class Held(NamedTuple):
    """What a limited request holds until it is settled. prompt_tokens: as far as they are known beforehand."""

    grant: Grant
    prompt_bytes: int
    prompt_tokens: int


class RateLimiter:
    """Admits and settles requests under the rate limits in force. Event loop only."""

    def __init__(self, *, telemetry: Telemetry, clock: Clock) -> None:
        self.limits = RateLimits()
        self._estimates = InputEstimates()
        self._telemetry = telemetry
        self._clock = clock

    # -- before ------------------------------------------------------------------------------------------------------

    async def admit(
        self, request: Request, target: Target, sized: Sized, headers: HeaderList
    ) -> tuple[Sized, Held | None]:
        """Reserve the request's place and tokens under every limit over it; None: nothing limits it.

        A cap the caller didn't state shrinks to what a whole limit leaves beside the prompt. headers: of the answer; they
        are told how the caller stands if it streams or is refused, else `headers` says so at its end.
        Raises RateLimitExceeded.
        """
        limits = self._over(request)
        if not limits:
            return sized, None
        fitted, tokens = _fit(limits, sized, sized.input_tokens)
        decided = self._reserve(limits, request, tokens)
        if not sized.is_counted and (fitted is not sized or isinstance(decided, Refusal)):
            # The bound is of bytes, and several times too high; but what can't fit anyway is worth no counting.
            if isinstance(decided, Refusal):
                decided = self._reserve(limits, request, _least_tokens(sized))
            if isinstance(decided, Grant):
                decided.give_back()
                counted = await _count(sized, target)
                limits = self._over(request)  # an operator may have changed them meanwhile
                if counted is not None:
                    sized = sized._replace(input_tokens=min(counted, sized.input_tokens), is_counted=True)
                    fitted, tokens = _fit(limits, sized, sized.input_tokens)
                else:
                    fitted, tokens = self._fit_estimated(limits, sized, target)
                decided = self._reserve(limits, request, tokens)
        if isinstance(decided, Refusal):
            headers += self._standing_headers(limits)
            raise self._refused(decided)
        if fitted.chat.output_tokens_max != sized.chat.output_tokens_max:
            cap_tokens = fitted.chat.output_tokens_max or 0
            headers.append((b"x-headwater-output-cap", b"%d; reason=rate_limit" % cap_tokens))
        if request.is_stream:
            headers += self._standing_headers(limits)
        chat, input_tokens = sized.chat, sized.input_tokens
        if not sized.is_counted:
            input_tokens = min(input_tokens, self._estimates.probable(target.name, chat))
        return fitted, Held(decided, prompt_bytes(chat), input_tokens * chat.choices_count)

    def _fit_estimated(self, limits: Sequence[Limit], sized: Sized, target: Target) -> tuple[Sized, int]:
        """The same as `_fit` where nobody can count: an estimate alone never says that a request can't ever fit.

        One that might, since prompts have a token for every four bytes or so, takes the whole limit to itself.
        """
        most, chat = tokens_max(limits), sized.chat
        estimated = min(self._estimates.estimate(target.name, prompt_bytes(chat)), sized.input_tokens)
        output_tokens = (chat.output_tokens_max or 0) if sized.is_stated else 1
        if most is None or chat.choices_count * (estimated + output_tokens) <= most:
            return _fit(limits, sized, estimated)
        fitted, tokens = _fit(limits, sized, min(typical_tokens(chat), estimated))
        return fitted, max(tokens, most)

    def _reserve(self, limits: Sequence[Limit], request: Request, tokens: int) -> Grant | Refusal:
        received_ms, now_ms = int(request.received_at_s * 1000), self._now_ms()
        return self.limits.admit(limits, tokens=tokens, received_ms=received_ms, now_ms=now_ms)

    def _refused(self, refusal: Refusal) -> RateLimitExceeded:
        self._telemetry.rate_limit_refusals.labels(refusal.limit.scope, refusal.what).inc()
        return refusal_error(refusal, self._clock.now_s())

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def settle(self, held: Held, outcome: Outcome, attempts: Sequence[AttemptRow]) -> None:
        """Give back what the request didn't use, or all of it when it was refused after all. Further calls do nothing.

        What was asked of an engine and left before the first token has used its prompt, though nobody pays for it.
        """
        if outcome == "rejected":
            held.grant.give_back()
            return
        tokens = sum([row.usage.input + row.usage.output for row in attempts])
        if outcome == "client_gone" and attempts and not tokens:
            tokens = held.prompt_tokens
        held.grant.settle(tokens)
        for row in attempts:
            if row.usage_source == "reported" and row.outcome == "ok":
                self._estimates.learn(row.target, held.prompt_bytes, row.usage.input)

    def headers(self, request: Request) -> HeaderList:
        """How the caller stands under its tightest limits now, as OpenAI names it; none where nothing limits it."""
        return self._standing_headers(self._over(request))

    # -- what an administrator changes ---------------------------------------------------------------------------------

    def set_limit(self, row: LimitRow) -> None:
        """A limit exists, or limits otherwise now."""
        self.limits.put(as_limit(row), self._now_ms())

    def drop_limit(self, row: LimitRow) -> None:
        """A limit is lifted."""
        self.limits.drop(as_limit(row))

    # -- a start ---------------------------------------------------------------------------------------------------------

    def load(self, connection: Connection) -> None:
        """Take the limits in force from the store, and what their windows under way have used; before the first request."""
        now_ms = self._now_ms()
        shared: dict[int, Totals] = {}
        for row in read_limits(connection):
            limit = as_limit(row)
            self.limits.put(limit, now_ms)
            for cap in {cap.window_ms: cap for cap in limit.caps}.values():
                starts_ms = now_ms // cap.window_ms * cap.window_ms
                if limit.scope == "key" or row.created_at_ms > starts_ms:
                    used = read_used(connection, row, starts_ms, starts_ms + cap.window_ms)
                else:
                    if cap.window_ms not in shared:  # one pass serves every limit that isn't a key's
                        shared[cap.window_ms] = Totals(connection, starts_ms, starts_ms + cap.window_ms)
                    used = shared[cap.window_ms].of(limit)
                if used.requests:
                    self.limits.restore(limit, cap, requests=used.requests, tokens=used.tokens, now_ms=now_ms)

    # -- its own ---------------------------------------------------------------------------------------------------------

    def _over(self, request: Request) -> list[Limit]:
        principal = request.principal
        return self.limits.find(principal.organization_id, principal.project_id, principal.key_id, request.model)

    def _standing_headers(self, limits: Sequence[Limit]) -> HeaderList:
        now_ms, found = self._now_ms(), []
        kinds: tuple[tuple[What, bytes], ...] = (("requests", b"requests"), ("tokens", b"tokens"))
        for what, name in kinds:
            standing = self.limits.standing(limits, what, now_ms) if limits else None
            if standing is not None:
                found += standing_headers(standing, name, now_ms)
        return found

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)


class Totals:
    """What one window has used, by organization, by project and by model, each with and without a model."""

    def __init__(self, connection: Connection, starts_ms: int, ends_ms: int) -> None:
        self._sums: dict[tuple[str, str | None], WindowUse] = {}
        for owner, project, model, requests, tokens in read_used_by_all(connection, starts_ms, ends_ms):
            for place in ((owner, None), (owner, model), (project, None), (project, model), (model, None)):
                known = self._sums.get(place, WindowUse(0, 0))
                self._sums[place] = WindowUse(known.requests + requests, known.tokens + tokens)

    def of(self, limit: Limit) -> WindowUse:
        """What counts against a limit that isn't a key's."""
        return self._sums.get((limit.scope_id, limit.model), WindowUse(0, 0))


def as_limit(row: LimitRow) -> Limit:
    """A stored limit as requests are held to it."""
    requests = (row.requests_per_minute, row.requests_per_hour, row.requests_per_day)
    tokens = (row.tokens_per_minute, row.tokens_per_hour, row.tokens_per_day)
    caps = [Cap("requests", window_ms, most) for window_ms, most in zip(WINDOWS_MS, requests, strict=True) if most]
    caps += [Cap("tokens", window_ms, most) for window_ms, most in zip(WINDOWS_MS, tokens, strict=True) if most]
    return Limit(row.id, row.scope, row.scope_id, row.model, tuple(caps), row.concurrency_max)


def standing_headers(standing: Standing, name: bytes, now_ms: int) -> HeaderList:
    """`x-ratelimit-*` of requests or tokens (platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers)."""
    return [
        (b"x-ratelimit-limit-" + name, b"%d" % standing.maximum),
        (b"x-ratelimit-remaining-" + name, b"%d" % standing.remaining),
        (b"x-ratelimit-reset-" + name, duration_text(standing.resets_at_ms - now_ms)),
    ]


def duration_text(left_ms: int) -> bytes:
    """A time as OpenAI writes it, such as `1s` or `6m0s`, rounded up to seconds."""
    minutes, seconds = divmod(max(0, ceil(left_ms / 1000)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, seconds)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds


def refusal_error(refusal: Refusal, now_s: float) -> RateLimitExceeded:
    """What the caller is told. `Retry-After` is the window's end, rounded up: not a second too early."""
    limit = refusal.limit
    whose = f"{limit.scope} {limit.scope_id}" + (f" for the model {limit.model}" if limit.model else "")
    if refusal.what == "concurrency":
        return RateLimitExceeded(
            f"The rate limit of the {whose} allows {refusal.maximum} requests at once, and {refusal.used} are being "
            "served or queued.",
            retry_after_s=1,
        )
    per = _NAMES[WINDOWS_MS.index(refusal.window_ms)]
    allows = f"The rate limit of the {whose} allows {refusal.maximum} {refusal.what} per {per}"
    if refusal.retry_at_ms is None:
        return AboveRateLimit(
            f"{allows}; this request may take {refusal.needed}, so it can never fit. Shorten the messages or lower "
            "`max_tokens`."
        )
    needs = "" if refusal.what == "requests" else f", and this request takes {refusal.needed} or more"
    ends = datetime.fromtimestamp(refusal.retry_at_ms / 1000, UTC).isoformat(timespec="seconds")
    return RateLimitExceeded(
        f"{allows}; {refusal.used} are used{needs}. It starts over at {ends}.",
        retry_after_s=max(1, ceil(refusal.retry_at_ms / 1000 - now_s)),
    )


def _fit(limits: Sequence[Limit], sized: Sized, input_tokens: int) -> tuple[Sized, int]:
    """The payload with a cap that a whole limit allows, if the caller stated none, and the tokens to reserve for it."""
    chat, most = sized.chat, tokens_max(limits)
    if most is None:
        return sized, 0
    cap_tokens = chat.output_tokens_max or 0
    if not sized.is_stated and cap_tokens > most // chat.choices_count - input_tokens:
        cap_tokens = max(1, most // chat.choices_count - input_tokens)
        sized = sized._replace(chat=with_output_cap(chat, cap_tokens))
    return sized, chat.choices_count * (input_tokens + cap_tokens)


async def _count(sized: Sized, target: Target) -> int | None:
    """The prompt's tokens; None where nobody can say. Whether anybody can answer at all is found out later, and elsewhere."""
    try:
        return await count_input(sized.chat, target)
    except (NoReplica, EngineFailed, TimedOut):
        return None


def _least_tokens(sized: Sized) -> int:
    """The least it could be held for: one token of prompt, and of output what the caller asks for."""
    output_tokens = (sized.chat.output_tokens_max or 0) if sized.is_stated else 1
    return sized.chat.choices_count * (1 + output_tokens)
