"""Step 2: who asks. Keys are looked up by hash; the ones in use stay in memory."""

import asyncio
import json
import threading
from collections import OrderedDict
from pathlib import Path

from headwater.clock import Clock
from headwater.errors import AuthenticationFailed
from headwater.gateway.headers import Headers
from headwater.keys import hash_key, is_well_formed
from headwater.ledger.rows import KeyRow
from headwater.ledger.store import Connection, open_reader, read_key
from headwater.request import Principal

_NOW = "Create one with `headwater keys create`."


class Authenticator:
    """Bearer keys (or `x-api-key`) to principals. If the store can't be read, the gate stays shut: the error propagates.

    At most `cache_count` keys are held, least recently used first out; a key that isn't held is read once. Keys that
    don't exist aren't held: the checksum already keeps random guesses away from the store.
    """

    def __init__(self, database: Path, *, cache_count: int, clock: Clock) -> None:
        self._database = database
        self._cache_count = cache_count
        self._clock = clock
        self._held: OrderedDict[bytes, Principal] = OrderedDict()
        self._reader: Connection | None = None
        self._reading = threading.Lock()
        self._forgotten_count = 0

    async def authenticate(self, headers: Headers) -> Principal:
        """The principal of this request. Raises AuthenticationFailed."""
        secret = _presented_key(headers)
        key_hash = hash_key(secret)
        principal = self._held.get(key_hash)
        if principal is not None:
            self._held.move_to_end(key_hash)
        elif is_well_formed(secret):
            principal = self._hold(await self._find(key_hash))
        else:
            raise AuthenticationFailed(f"This is not a key of this platform (they begin with hw-). {_NOW}")
        if principal.expires_at_s is not None and principal.expires_at_s <= self._clock.now_s():
            raise AuthenticationFailed(f"The API key has expired. {_NOW}", code="expired_api_key")
        return principal

    def forget(self, key_hash: bytes) -> None:
        """Drop a key that was revoked or changed; the next request with it reads the store again. Loop thread only."""
        self._held.pop(key_hash, None)
        self._forgotten_count += 1

    def close(self) -> None:
        """Close the reading connection."""
        if self._reader is not None:
            self._reader.close()

    async def _find(self, key_hash: bytes) -> KeyRow:
        """The key's row as it is now: read again when a key was revoked while this one was being read."""
        while True:
            forgotten_count = self._forgotten_count
            row = await asyncio.to_thread(self._read, key_hash)
            if row is None:
                raise AuthenticationFailed(f"The API key is unknown here. {_NOW}")
            if forgotten_count == self._forgotten_count:
                return row

    def _read(self, key_hash: bytes) -> KeyRow | None:
        with self._reading:
            if self._reader is None:
                self._reader = open_reader(self._database)
            return read_key(self._reader, key_hash)

    def _hold(self, row: KeyRow) -> Principal:
        if row.revoked_at_ms is not None:
            raise AuthenticationFailed(f"The API key was revoked. {_NOW}", code="revoked_api_key")
        principal = Principal(
            organization_id=row.organization_id,
            project_id=row.project_id,
            key_id=row.id,
            allowed_models=None if row.allowed_models is None else frozenset(json.loads(row.allowed_models)),
            expires_at_s=None if row.expires_at_ms is None else row.expires_at_ms / 1000,
        )
        self._held[row.hash] = principal
        if len(self._held) > self._cache_count:
            self._held.popitem(last=False)
        return principal


def _presented_key(headers: Headers) -> str:
    """The key as sent, from the one place it was sent in."""
    if headers.authorization is not None:
        scheme, _, secret = headers.authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise AuthenticationFailed("The Authorization header must read `Bearer <API key>`.")
        return secret.strip()
    if headers.api_key is not None:
        return headers.api_key.strip()
    raise AuthenticationFailed(
        f"No API key was sent: `Authorization: Bearer hw-…` is missing. {_NOW}", code="missing_api_key"
    )
