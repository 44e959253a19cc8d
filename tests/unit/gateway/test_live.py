"""What an administrator changes is in force in the running gateway as soon as it was told."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from headwater.errors import AuthenticationFailed, InsufficientQuota
from headwater.gateway.auth import Authenticator
from headwater.gateway.cashier import Cashier
from headwater.gateway.headers import Headers
from headwater.gateway.idempotency import Idempotency
from headwater.gateway.limits import RateLimiter
from headwater.gateway.live import LiveBooks
from headwater.gateway.telemetry import Telemetry
from headwater.gateway.weights import Weights
from headwater.keys import new_key
from headwater.ledger import admin_store, store
from headwater.ledger.limit_store import LimitRow
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.rows import KeyRow
from headwater.ledger.store import PriceVersion, Write
from headwater.ledger.writer import LedgerWriter
from headwater.settings.model import BillingSettings
from tests.unit.gateway.chats import chat, target
from tests.unit.gateway.conftest import WAIT_S
from tests.unit.gateway.tills import PRINCIPAL, HandClock, make_cashier, make_request, sized
from tests.unit.ledger.settlements import PRICE

NOW_S = 1_795_435_200.0
NOW_MS = int(NOW_S * 1000)
TERMS = BudgetTerms("bud_1", "org_1", "organization", "org_1", 0, "month", None, 1_000, "UTC")


class Running:
    """A cashier, an authenticator, and the administration's view of them."""

    def __init__(self, database: Path, writer: LedgerWriter) -> None:
        clock = HandClock(NOW_S)
        self.writer = writer
        self.cashier: Cashier = make_cashier(database, writer, clock)
        self.authenticator = Authenticator(database, cache_count=100, clock=clock)
        idempotency = Idempotency(database, BillingSettings(), clock=clock)
        self.limits = RateLimiter(telemetry=Telemetry(writer), clock=clock)
        self.weights = Weights()
        self.live = LiveBooks(self.authenticator, self.cashier, idempotency, self.limits, self.weights)
        self._count = 0

    async def reserve(self, *, tags: tuple[str, ...] = ()) -> int:
        """Ask for money as a request does; returns what was held."""
        self._count += 1
        request = make_request(f"req_{self._count}", chat(), now_s=NOW_S, tags=tags)
        _, held = await self.cashier.reserve(request, target(is_own=False), sized(chat(), 10))
        return held.row.amount_nanos


@pytest.fixture
async def running(database: Path, writer: LedgerWriter) -> AsyncIterator[Running]:
    writer.start()
    made = Running(database, writer)
    yield made
    made.authenticator.close()


@pytest.mark.parametrize(
    ("scope", "scope_id"), [("organization", "org_1"), ("project", "prj_1"), ("key", "key_1"), ("tag", "night")]
)
async def test_a_budget_holds_from_the_next_request_on(running: Running, scope: str, scope_id: str) -> None:
    terms = TERMS._replace(scope=scope, scope_id=scope_id)  # type: ignore[arg-type]
    amount = await running.reserve(tags=("night",))
    assert amount > 0
    running.live.set_budget(terms)
    with pytest.raises(InsufficientQuota):
        await running.reserve(tags=("night",))
    running.live.set_budget(terms._replace(limit_nanos=amount))
    await running.reserve(tags=("night",))
    with pytest.raises(InsufficientQuota):
        await running.reserve(tags=("night",))
    running.live.drop_budget(terms)
    await running.reserve(tags=("night",))


async def test_a_tag_is_declared_by_its_budget(running: Running) -> None:
    book = running.cashier.book
    terms = TERMS._replace(scope="tag", scope_id="night")
    assert not book.declares("org_1", "night")
    running.live.set_budget(terms)
    assert book.declares("org_1", "night")
    assert not book.declares("org_2", "night")
    running.live.drop_budget(terms)
    assert not book.declares("org_1", "night")


async def test_credit_is_needed_granted_and_taken_back(running: Running) -> None:
    live = running.live
    amount = await running.reserve()
    live.set_organization("org_1", is_prepaid=True, currency=None)
    with pytest.raises(InsufficientQuota, match="credit is 0;"):
        await running.reserve()
    live.add_grant("grt_1", "org_1", 3 * amount, None)
    await running.reserve()
    assert live.revoke_grant("org_1", "grt_1") == 2 * amount
    with pytest.raises(InsufficientQuota):
        await running.reserve()
    live.set_organization("org_1", is_prepaid=False, currency=None)
    await running.reserve()


async def test_a_new_organization_can_be_served(running: Running) -> None:
    running.live.set_organization("org_2", is_prepaid=True, currency="EUR")
    assert running.cashier.book.is_prepaid("org_2")
    assert running.cashier.book.currency("org_2") == "EUR"
    running.live.add_grant("grt_2", "org_2", 5, NOW_MS + 1)
    assert running.cashier.credit_nanos("org_2") == 5


async def test_a_price_is_in_force_for_the_next_request(running: Running) -> None:
    amount = await running.reserve()
    dearer = msgspec.structs.replace(PRICE, id="prc_2", uncached_input=200_000_000, output=600_000_000)
    versions = [
        PriceVersion(PRICE, 1, "price", 1, "config", is_withdrawn=False),
        PriceVersion(dearer, NOW_MS, "price", NOW_MS, "admin", is_withdrawn=False),
    ]
    running.writer.submit([store.price_write(dearer, NOW_MS, source="admin")]).result(WAIT_S)
    running.live.set_prices(versions)
    assert await running.reserve() == 2 * amount


async def test_a_revoked_key_opens_nothing_once_it_is_forgotten(running: Running) -> None:
    key = new_key()
    row = KeyRow("key_2", "org_1", "prj_1", "k", key.hash, key.hint, None, 1_000, None, None)
    headers = Headers(authorization=f"Bearer {key.secret}")
    running.writer.submit([Write(store.INSERT_KEY, tuple(row))]).result(WAIT_S)
    assert (await running.authenticator.authenticate(headers)).key_id == "key_2"
    running.writer.submit([Write(store.REVOKE_KEY, (NOW_MS, "key_2"))]).result(WAIT_S)
    assert (await running.authenticator.authenticate(headers)).key_id == "key_2"  # memory doesn't know yet
    running.live.forget_key(key.hash)
    with pytest.raises(AuthenticationFailed, match="revoked"):
        await running.authenticator.authenticate(headers)


async def test_a_key_budget_is_read_from_the_disk_when_the_key_was_not_loaded(running: Running) -> None:
    terms = TERMS._replace(scope="key", scope_id="key_1")
    running.writer.submit([admin_store.budget_write(terms, NOW_MS)]).result(WAIT_S)
    running.live.set_budget(terms)  # nobody has used the key: nothing to change in memory
    assert not running.cashier.book.is_loaded("key_1")
    with pytest.raises(InsufficientQuota):
        await running.reserve()
    assert len(await running.cashier.caps_of(PRINCIPAL)) == 1


async def test_a_project_is_not_kept_in_memory(running: Running) -> None:
    running.live.forget_project("prj_1")  # accepted, and nothing changes
    assert await running.reserve() > 0


async def test_a_limit_and_a_weight_hold_as_soon_as_they_were_told(running: Running) -> None:
    limit = LimitRow("lim_1", "org_1", "key", "key_1", None, 5, None, None, None, None, None, None, 1_000)
    running.live.set_limit(limit)
    request = make_request("req_1", chat(), now_s=NOW_S)
    assert dict(running.limits.headers(request))[b"x-ratelimit-limit-requests"] == b"5"
    running.live.drop_limit(limit)
    assert running.limits.headers(request) == []
    running.live.weigh_organization("org_1", 4)
    running.live.weigh_key("key_1", 2)
    assert (running.weights.organization("org_1"), running.weights.key("key_1")) == (4, 2)
