"""`Idempotency-Key`: a request that is sent again is answered from what its first sending was told, and costs nothing.

A key belongs to a project and a route. While its first request is being served the key is taken (409); a stored answer
is given again to the same body, and refused to another (422). Only answers that are ok are stored, in the transaction of
their settlement; after an error or a crash the key is free again. Streams can't have one: there is no whole answer.
"""

import asyncio
import contextlib
import hashlib
from pathlib import Path
from typing import NamedTuple

from headwater.clock import Clock
from headwater.errors import IdempotencyKeyInUse, IdempotencyKeyReused, InvalidRequest, UnsupportedValue
from headwater.ledger import store
from headwater.ledger.rows import StoredAnswer
from headwater.request import Principal
from headwater.settings.model import BillingSettings

HEADER = "Idempotency-Key"
KEY_CHARACTERS_MAX = 255
RETRY_AFTER_S = 1
TALLY_S = 60.0
"""What a project keeps is added up on the disk this often; between, what is kept is added in memory."""


class Tally:
    """Bytes of answers that a project keeps, as known. is_allowed: whether it keeps any. read_s: when the disk was asked."""

    __slots__ = ("is_allowed", "read_s", "stored_bytes")

    def __init__(self, stored_bytes: int, read_s: float, *, is_allowed: bool) -> None:
        self.stored_bytes = stored_bytes
        self.read_s = read_s
        self.is_allowed = is_allowed


class Ticket:
    """The right to serve one request under a key, until `Idempotency.release`."""

    __slots__ = ("_body_hash", "_settings", "_tally", "name", "request_id")

    def __init__(
        self, name: tuple[str, str, str], body_hash: bytes, request_id: str, settings: BillingSettings, tally: Tally
    ) -> None:
        self.name = name
        self._body_hash = body_hash
        self.request_id = request_id
        self._settings = settings
        self._tally = tally

    def keep(self, body: bytes, now_ms: int) -> StoredAnswer | None:
        """The row that keeps an answer; None when none may be kept, or it is too large for what may."""
        settings, tally = self._settings, self._tally
        room = settings.idempotency_project_bytes_max - tally.stored_bytes
        if not tally.is_allowed or len(body) > min(settings.idempotency_answer_bytes_max, room):
            return None
        tally.stored_bytes += len(body)
        expires_at_ms = now_ms + settings.idempotency_hours * 3_600_000
        return StoredAnswer(*self.name, self._body_hash, self.request_id, body, now_ms, expires_at_ms)


class Replay(NamedTuple):
    """An answer given before. request_id: of the request that was served for it."""

    body: bytes
    request_id: str


class Idempotency:
    """The keys under which requests are being served, and the stored answers. Owned by the event loop's thread."""

    def __init__(self, database: Path, settings: BillingSettings, *, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._in_flight: dict[tuple[str, str, str], bytes] = {}
        self._tallies: dict[str, Tally] = {}

    async def begin(
        self, key: str, *, route: str, principal: Principal, body: bytes, request_id: str, is_stream: bool
    ) -> Ticket | Replay:
        """A ticket to serve the request, or the answer there is. Raises for a key that is taken, reused or impossible."""
        if is_stream:
            raise UnsupportedValue(f"A request with {HEADER} can't be streamed; leave out one of them.", param="stream")
        if not 0 < len(key) <= KEY_CHARACTERS_MAX or not key.isascii() or not key.isprintable():
            raise InvalidRequest(
                f"{HEADER} must have 1 to {KEY_CHARACTERS_MAX} printable ASCII characters; it has {len(key)}.",
                param=HEADER,
            )
        name, body_hash = (principal.project_id, route, key), hashlib.sha256(body).digest()
        taken = self._in_flight.get(name)
        if taken is not None:
            if taken != body_hash:
                raise _reused(key)
            raise IdempotencyKeyInUse(
                f"A request with the {HEADER} {key!r} is being served; ask again for its answer.",
                param=HEADER,
                retry_after_s=RETRY_AFTER_S,
            )
        self._in_flight[name] = body_hash
        is_begun = False
        try:
            answer = await asyncio.to_thread(self._look, name)
            if answer is not None:
                if answer.body_hash != body_hash:
                    raise _reused(key)
                return Replay(answer.answer, answer.request_id)
            tally = await self._tally(principal.project_id)
            is_begun = True
        finally:
            if not is_begun:
                del self._in_flight[name]
        return Ticket(name, body_hash, request_id, self._settings, tally)

    def release(self, ticket: Ticket) -> None:
        """The request has ended: whoever comes now finds its answer, or a free key."""
        self._in_flight.pop(ticket.name, None)

    def forget_project(self, project_id: str) -> None:
        """A project was changed: whether it keeps answers is read again."""
        self._tallies.pop(project_id, None)

    async def _tally(self, project_id: str) -> Tally:
        now_s = self._clock.monotonic_s()
        tally = self._tallies.get(project_id)
        if tally is None or now_s >= tally.read_s + TALLY_S:
            is_allowed, stored_bytes = await asyncio.to_thread(self._add_up, project_id)
            tally = self._tallies[project_id] = Tally(stored_bytes, now_s, is_allowed=is_allowed)
        return tally

    def _look(self, name: tuple[str, str, str]) -> StoredAnswer | None:
        with contextlib.closing(store.open_reader(self._database)) as reader:
            return store.read_answer(reader, *name, now_ms=int(self._clock.now_s() * 1000))

    def _add_up(self, project_id: str) -> tuple[bool, int]:
        with contextlib.closing(store.open_reader(self._database)) as reader:
            return store.read_answers_bytes(reader, project_id, now_ms=int(self._clock.now_s() * 1000))


def _reused(key: str) -> IdempotencyKeyReused:
    return IdempotencyKeyReused(
        f"The {HEADER} {key!r} was used for a request with another body; use a new key for a new request.", param=HEADER
    )
