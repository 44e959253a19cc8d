"""One attempt at one choice: what was received of it, and how sure we are of the count.

The engine's own count wins, running or closing, whichever came last. Without one, each content event is counted as a
token and the prompt is estimated from its bytes. An attempt that produced nothing and didn't end well used nothing.
"""

from headwater.errors import EngineFailed, PlatformError
from headwater.events import Event, Failed, Finished, FinishReason, Reasoning, Text, ToolCallDelta, UsageReport
from headwater.ids import ATTEMPT, new_id
from headwater.ledger.charge import call_cost_nanos
from headwater.ledger.rows import AttemptRow, Mark
from headwater.money import Price
from headwater.request import Chat
from headwater.usage import NO_USAGE, Outcome, Usage, UsageSource

BYTES_PER_TOKEN_ESTIMATED = 4
"""Of English text with common tokenizers; only for prompts that nobody counted, and such records say `estimated`."""

RUNAWAY_FACTOR, RUNAWAY_SLACK = 2, 1024
"""An event may be less than a token, so the cap is not an exact bound on events; twice of it and a little is."""

REPORT_BYTES_MAX = 4096
"""Of a report that nobody may believe so much is kept."""

_REPORTED: UsageSource = "reported"
_COUNTED: UsageSource = "counted"
_ESTIMATED: UsageSource = "estimated"


class Attempt:
    """Counts what one upstream call delivers. Owned by the task that reads the call."""

    def __init__(self, choice: int, target: str, chat: Chat, *, queued_at_s: float, is_own: bool = False) -> None:
        """queued_at_s: Unix time; until `started_at_s` is set the attempt waits for its place. is_own: on an engine of ours."""
        self.id = new_id(ATTEMPT)
        self.choice = choice
        self.target = target
        self.is_own = is_own
        self.reason: str | None = None
        """Why it was made, and where; for the receipt."""
        self.content_at_s: float | None = None
        """When its first content came, on the monotonic clock."""
        self.charged_count = 0
        """Of `counted`, those that fair sharing has been told of."""
        self.replica_id: str | None = None
        self.started_at_s = queued_at_s
        self.duration_s = 0.0
        self.finish_reason: FinishReason | None = None
        self.error_code: str | None = None
        self.has_started = False
        self.lying_report: bytes | None = None
        self.counted = 0
        """Events with content so far."""
        self.counted_max = RUNAWAY_FACTOR * (chat.output_tokens_max or 0) + RUNAWAY_SLACK
        """More than so many, and the engine ignores its output cap: what is gathered of one answer has a bound."""
        self._chat = chat
        self._abandoned: Outcome | None = None
        self._counted_reasoning = 0
        self._report: UsageReport | None = None

    def observe(self, events: list[Event]) -> PlatformError | None:
        """Take note of events as the engine sent them (before any repair).

        Returns the error of a failure among them, or of an engine that ignores its output cap; None when there is none, or
        the terminal event was read before it.
        """
        self.has_started = True
        failure: PlatformError | None = None
        for event in events:
            kind = type(event)
            if kind is Text or kind is ToolCallDelta:
                self.counted += 1
            elif kind is Reasoning:
                self.counted += 1
                self._counted_reasoning += 1
            elif isinstance(event, UsageReport):
                self._report = event
            elif isinstance(event, Finished):
                self.finish_reason = event.reason
            elif isinstance(event, Failed) and self.finish_reason is None:  # no failure undoes a fixed outcome
                failure = event.error
        if self.counted > self.counted_max:
            failure = EngineFailed("The engine went on far beyond the output cap it was given; it was cut off.")
        return failure

    @property
    def is_finished(self) -> bool:
        """Whether the engine's terminal event was read: from then on the attempt is `ok`, whatever follows."""
        return self.finish_reason is not None

    @property
    def uncached_input(self) -> int | None:
        """Input tokens that were read, as the engine reported them; None when it didn't."""
        return None if self._report is None else self._report.usage.uncached_input

    @property
    def read_tokens(self) -> int | None:
        """Prompt tokens the engine says it read, without what was cached; None while it has said nothing."""
        return None if self._report is None else self._report.usage.input - self._report.usage.cache_read

    def abandon(self, outcome: Outcome) -> None:
        """It failed before any content, and the request goes on without it: it ended like this, and used nothing."""
        if self._abandoned is None:
            self._abandoned = outcome

    def usage(self) -> tuple[Usage, UsageSource]:
        """Tokens received so far and how we know."""
        if self._abandoned is not None:
            return NO_USAGE, _REPORTED  # nothing is estimated here, so the record isn't less sure for it
        report = self._report
        if report is not None and (report.is_final or report.usage.output >= self.counted):
            usage, source = report.usage, _REPORTED
        elif report is not None:
            # Content came after the last running count: the prompt is reported, the output ours to count.
            usage = Usage(
                uncached_input=report.usage.uncached_input,
                cache_read=report.usage.cache_read,
                cache_write=report.usage.cache_write,
                cache_write_1h=report.usage.cache_write_1h,
                output=self.counted,
                reasoning=self._counted_reasoning,
            )
            source = _COUNTED
        else:
            prompt = -(-self._chat.text_bytes // BYTES_PER_TOKEN_ESTIMATED) + len(self._chat.messages)
            usage = Usage(uncached_input=prompt, output=self.counted, reasoning=self._counted_reasoning)
            source = _ESTIMATED
        if usage.output == 0 and not self.is_finished:
            return NO_USAGE, _COUNTED
        return usage, source

    def mark(self) -> Mark:
        """How far it has come, for the books."""
        usage, source = self.usage()
        return Mark(
            id=self.id,
            choice=self.choice,
            target=self.target,
            replica_id=self.replica_id,
            usage_source=source,
            usage=usage,
            started_at_ms=int(self.started_at_s * 1000),
        )

    def row(self, request_id: str, outcome: Outcome, cost: Price | None = None) -> AttemptRow:
        """The attempt's row; outcome is the request's, unless this attempt itself finished.

        cost: what the upstream takes, None when that is unknown or the engine is ours.
        """
        usage, source = self.usage()
        return AttemptRow(
            id=self.id,
            request_id=request_id,
            choice=self.choice,
            target=self.target,
            replica_id=self.replica_id,
            outcome="ok" if self.is_finished else self._abandoned or outcome,
            error_code=self.error_code,
            usage_source=source,
            usage=usage,
            started_at_ms=int(self.started_at_s * 1000),
            duration_ms=int(self.duration_s * 1000),
            cost_id=None if cost is None else cost.id,
            cost_nanos=None if cost is None else call_cost_nanos(usage, cost),
            report=None if self.lying_report is None else self.lying_report[:REPORT_BYTES_MAX].decode(errors="replace"),
            reason=self.reason,
        )
