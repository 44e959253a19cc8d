import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headwater.errors import AuthenticationFailed
from headwater.gateway.auth import Authenticator
from headwater.gateway.headers import Headers
from headwater.keys import NewKey, new_key
from headwater.ledger import store
from headwater.ledger.rows import KeyRow
from headwater.ledger.store import DatabaseError, Write
from headwater.ledger.writer import LedgerWriter
from tests.unit.gateway.conftest import WAIT_S

CACHE_COUNT = 3


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now


class Keys:
    """Keys in a real ledger, and an authenticator on it."""

    def __init__(self, database: Path, writer: LedgerWriter) -> None:
        self.clock = Clock()
        self.authenticator = Authenticator(database, cache_count=CACHE_COUNT, clock=self.clock)
        self._writer = writer
        self._count = 1  # the database has one already

    def make(self, *, allowed_models: str | None = None, expires_at_ms: int | None = None) -> NewKey:
        made = new_key()
        self._count += 1
        row = KeyRow(
            *(f"key_{self._count}", "org_1", "prj_1", "x", made.hash, made.hint),
            *(allowed_models, 1_000, expires_at_ms, None),
        )
        self._writer.submit([Write(store.INSERT_KEY, tuple(row))]).result(WAIT_S)
        return made

    def revoke(self, key_id: str) -> None:
        self._writer.submit([Write(store.REVOKE_KEY, (2_000, key_id))]).result(WAIT_S)

    async def ask(self, secret: str) -> str:
        """The key's id, or the code of the refusal."""
        try:
            headers = Headers(authorization=f"Bearer {secret}")
            return (await self.authenticator.authenticate(headers)).key_id
        except AuthenticationFailed as error:
            return error.code

    @property
    def is_store_read(self) -> bool:
        return self.authenticator._reader is not None

    @property
    def held_count(self) -> int:
        return len(self.authenticator._held)


@pytest.fixture
async def keys(database: Path, writer: LedgerWriter) -> AsyncIterator[Keys]:
    writer.start()
    keys = Keys(database, writer)
    yield keys
    keys.authenticator.close()


async def test_a_key_is_who_it_belongs_to(keys: Keys) -> None:
    made = keys.make(allowed_models='["m","n"]', expires_at_ms=5_000_000)
    for headers in (
        Headers(authorization=f"Bearer {made.secret}"),
        Headers(authorization=f"bearer  {made.secret} "),
        Headers(api_key=f" {made.secret}"),
    ):
        principal = await keys.authenticator.authenticate(headers)
        assert (principal.organization_id, principal.project_id, principal.key_id) == ("org_1", "prj_1", "key_2")
        assert principal.allowed_models == frozenset({"m", "n"})
        assert principal.expires_at_s == 5_000


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (Headers(), "missing_api_key"),
        (Headers(authorization="Basic abc"), "invalid_api_key"),
        (Headers(authorization="Bearer"), "invalid_api_key"),
        (Headers(authorization="Bearer "), "invalid_api_key"),
        (Headers(authorization=""), "invalid_api_key"),
        (Headers(authorization="Bearer sk-0123456789"), "invalid_api_key"),
        (Headers(authorization="Bearer hw-" + "0" * 49), "invalid_api_key"),
        (Headers(authorization="Bearer hw-" + "é" * 49), "invalid_api_key"),
        (Headers(authorization="Bearer hw-" + "0" * 100_000), "invalid_api_key"),
        (Headers(api_key=""), "invalid_api_key"),
    ],
)
async def test_what_is_no_key_of_ours_never_reaches_the_store(keys: Keys, headers: Headers, code: str) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        await keys.authenticator.authenticate(headers)
    assert refused.value.code == code
    assert not keys.is_store_read


async def test_a_refusal_does_not_repeat_the_key(keys: Keys) -> None:
    secret = new_key().secret
    with pytest.raises(AuthenticationFailed) as refused:
        await keys.authenticator.authenticate(Headers(authorization=f"Bearer {secret}"))
    assert secret not in refused.value.message


async def test_a_key_in_use_is_read_once_and_an_unknown_one_is_not_held(keys: Keys) -> None:
    made = keys.make()
    assert await keys.ask(made.secret) == "key_2"
    keys.authenticator.close()
    assert await keys.ask(made.secret) == "key_2"  # from memory: the store is closed
    with pytest.raises(DatabaseError):  # and where it must be read, the gate stays shut
        await keys.ask(keys.make().secret)
    assert keys.held_count == 1


async def test_an_unknown_key_is_refused(keys: Keys) -> None:
    assert await keys.ask(new_key().secret) == "invalid_api_key"
    assert keys.held_count == 0


async def test_a_revoked_key_is_refused_from_the_moment_it_is_forgotten(keys: Keys) -> None:
    made = keys.make()
    assert await keys.ask(made.secret) == "key_2"
    keys.revoke("key_2")
    keys.authenticator.forget(made.hash)
    assert await keys.ask(made.secret) == "revoked_api_key"
    assert keys.held_count == 0
    keys.authenticator.forget(made.hash)  # twice is once


async def test_a_key_revoked_while_it_is_being_read_does_not_stay(keys: Keys) -> None:
    made = keys.make()
    one_thread = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(one_thread)
    asked = asyncio.ensure_future(keys.ask(made.secret))
    await asyncio.sleep(0)  # the reading thread has its order
    one_thread.submit(lambda: None).result(WAIT_S)  # and has carried it out: it saw a good key
    keys.revoke("key_2")
    keys.authenticator.forget(made.hash)
    assert await asked == "revoked_api_key"
    assert await keys.ask(made.secret) == "revoked_api_key"


async def test_a_key_expires_while_it_is_held(keys: Keys) -> None:
    made = keys.make(expires_at_ms=2_000_000)
    keys.clock.now = 1_999.9
    assert await keys.ask(made.secret) == "key_2"
    keys.clock.now = 2_000.0
    assert await keys.ask(made.secret) == "expired_api_key"
    keys.authenticator.forget(made.hash)
    assert await keys.ask(made.secret) == "expired_api_key"


async def test_so_many_keys_are_held_and_the_least_recently_used_goes_first(keys: Keys) -> None:
    made = [keys.make() for _ in range(CACHE_COUNT + 1)]
    for one in made[:CACHE_COUNT]:
        await keys.ask(one.secret)
    await keys.ask(made[0].secret)
    await keys.ask(made[CACHE_COUNT].secret)
    assert keys.held_count == CACHE_COUNT
    assert list(keys.authenticator._held) == [made[2].hash, made[0].hash, made[3].hash]


async def test_many_first_requests_of_one_key_at_once_agree(keys: Keys) -> None:
    made = keys.make()
    assert await asyncio.gather(*(keys.ask(made.secret) for _ in range(20))) == ["key_2"] * 20
    assert keys.held_count == 1
