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


class Ticket:
    """The right to serve one request under a key, until `Idempotency.release`. answer_bytes_max: 0 keeps nothing."""

    __slots__ = ("_expires_after_ms", "answer_bytes_max", "body_hash", "name", "request_id")

    def __init__(
        self,
        name: tuple[str, str, str],
        body_hash: bytes,
        request_id: str,
        answer_bytes_max: int,
        expires_after_ms: int,
    ) -> None:
        self.name = name
        self.body_hash = body_hash
        self.request_id = request_id
        self.answer_bytes_max = answer_bytes_max
        self._expires_after_ms = expires_after_ms

    def keep(self, body: bytes, now_ms: int) -> StoredAnswer | None:
        """The row that keeps an answer; None when it is too large for what may be kept."""
        if len(body) > self.answer_bytes_max:
            return None
        return StoredAnswer(*self.name, self.body_hash, self.request_id, body, now_ms, now_ms + self._expires_after_ms)


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
            found = await asyncio.to_thread(self._look, name)
            if found.answer is not None:
                if found.answer.body_hash != body_hash:
                    raise _reused(key)
                return Replay(found.answer.answer, found.answer.request_id)
            is_begun = True
        finally:
            if not is_begun:
                del self._in_flight[name]
        settings = self._settings
        room = settings.idempotency_project_bytes_max - found.stored_bytes if found.is_storage_allowed else -1
        return Ticket(
            name,
            body_hash,
            request_id,
            min(settings.idempotency_answer_bytes_max, room),
            settings.idempotency_hours * 3_600_000,
        )

    def release(self, ticket: Ticket) -> None:
        """The request has ended: whoever comes now finds its answer, or a free key."""
        self._in_flight.pop(ticket.name, None)

    def _look(self, name: tuple[str, str, str]) -> store.KeptAnswer:
        with contextlib.closing(store.open_reader(self._database)) as reader:
            return store.read_kept_answer(reader, *name, now_ms=int(self._clock.now_s() * 1000))


def _reused(key: str) -> IdempotencyKeyReused:
    return IdempotencyKeyReused(
        f"The {HEADER} {key!r} was used for a request with another body; use a new key for a new request.", param=HEADER
    )
