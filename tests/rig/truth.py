"""The fake engine's own account of what happened: JSON lines as it goes, read back as attempts.

Each line has `event`, `serial` (the attempt's number in that engine), `t_ns` (CLOCK_MONOTONIC, comparable between the
processes of one machine) and `wall_s`. Every attempt has one `received` and, unless the engine died, one `closed`.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self

import msgspec

Phase = Literal["queued", "prefill", "decode"]


class TruthLog:
    """Appends events to a file, each line out of this process before the call returns."""

    def __init__(self, path: Path) -> None:
        """path: created, or gone on with; the lines of an earlier engine in it stay."""
        self.path = path
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def write(self, event: str, serial: int, **facts: object) -> None:
        """Append one event with the time now."""
        line = {"event": event, "serial": serial, "t_ns": time.monotonic_ns(), "wall_s": time.time(), **facts}
        self._file.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Close the file; nothing is buffered that could be lost."""
        self._file.close()


@dataclass(slots=True, kw_only=True)
class Attempt:
    """What the engine knows of one request it received."""

    serial: int
    request_id: str
    received_at_ns: int
    received_wall_s: float
    facts: dict[str, Any]
    """The rest of the `received` line: stream, model, digest, has_authorization, headers, id_slot, cache_prompt, …"""
    started_at_ns: int | None = None
    """When it got a slot; None: never (refused, or left in the queue)."""
    slot: int | None = None
    tokens_sent: int = 0
    """Output tokens handed to the socket; of an answer that isn't streamed, tokens made."""
    token_times_ns: list[int] = field(default_factory=list)
    """When each was made, just before its bytes went to the socket."""
    aborted_at_ns: int | None = None
    abort_phase: Phase | None = None
    abort_how: Literal["eof", "reset", "closed", "shutdown"] | None = None
    finish_reason: str | None = None
    """None: it didn't finish (or `no_finish` kept it back; see `is_finished`)."""
    is_finished: bool = False
    reported_usage: dict[str, Any] | None = None
    """The final usage object as written, lies included; None: none was written."""
    faults: list[str] = field(default_factory=list)
    closed_at_ns: int | None = None

    @property
    def fault(self) -> str | None:
        """The first fault injected, if any."""
        return self.faults[0] if self.faults else None

    @property
    def is_aborted(self) -> bool:
        """Whether the engine saw its peer leave before the answer was out."""
        return self.aborted_at_ns is not None

    def tokens_made_in(self, span_s: float) -> int:
        """Return the most tokens made within any span of that length: the bound on sent − billed for a cut stream."""
        most, start = 0, 0
        for end, at in enumerate(self.token_times_ns):
            while at - self.token_times_ns[start] > span_s * 1e9:
                start += 1
            most = max(most, end - start + 1)
        return most


@dataclass(slots=True)
class Truth:
    """All attempts of one log, in the order received."""

    attempts: list[Attempt] = field(default_factory=list)

    @property
    def by_request(self) -> dict[str, list[Attempt]]:
        """Attempts under their request id, each in order."""
        found: dict[str, list[Attempt]] = {}
        for attempt in self.attempts:
            found.setdefault(attempt.request_id, []).append(attempt)
        return found

    def only(self, request_id: str | None = None) -> Attempt:
        """Return the one attempt (of that id). Raises AssertionError when there are none or several."""
        found = self.attempts if request_id is None else self.by_request.get(request_id, [])
        assert len(found) == 1, f"{len(found)} attempts of {request_id or 'any id'}, expected one"
        return found[0]

    @property
    def is_settled(self) -> bool:
        """Whether every attempt has been closed."""
        return all(attempt.closed_at_ns is not None for attempt in self.attempts)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a log file, even while it is being written."""
        return cls.parse(path.read_bytes())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the lines; a last one without its newline was torn by a kill and doesn't count. Serials may restart."""
        lines = data.split(b"\n")[:-1]
        return cls(_fold(msgspec.json.decode(line) for line in lines if line))


def _fold(events: Iterable[dict[str, Any]]) -> list[Attempt]:
    attempts: list[Attempt] = []
    current: dict[int, Attempt] = {}
    for event in events:
        serial = event.pop("serial")
        if event["event"] == "received":
            attempt = Attempt(
                serial=serial,
                request_id=event.pop("request_id"),
                received_at_ns=event["t_ns"],
                received_wall_s=event["wall_s"],
                facts=event,
            )
            current[serial] = attempt
            attempts.append(attempt)
        else:
            _apply(current[serial], event)
    return attempts


def _apply(attempt: Attempt, event: dict[str, Any]) -> None:
    match event["event"]:
        case "started":
            attempt.started_at_ns, attempt.slot = event["t_ns"], event["slot"]
        case "fault":
            attempt.faults.append(event["fault"])
        case "aborted":
            attempt.aborted_at_ns, attempt.abort_how = event["t_ns"], event["how"]
            attempt.abort_phase, attempt.tokens_sent = event["phase"], event["tokens_sent"]
        case "finished":
            attempt.is_finished = True
            attempt.finish_reason, attempt.reported_usage = event["finish_reason"], event["usage"]
        case "closed":
            attempt.closed_at_ns = event["t_ns"]
            attempt.tokens_sent, attempt.token_times_ns = event["tokens_sent"], event["token_times_ns"]
        case other:
            raise ValueError(f"The truth log has an event this reader doesn't know: {other}")
