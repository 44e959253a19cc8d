"""Sound books with settlements of every kind there is, for whatever reads them."""

from pathlib import Path
from random import Random

import msgspec

from headwater.ledger import store
from headwater.ledger.batch import settlement_writes
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.rows import Mark
from headwater.money import Price, Tier
from headwater.usage import Usage
from tests.unit.ledger.settlements import PRICE, settlement
from tests.unit.ledger.till import Held, Till

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
BEGAN_MS = 1_793_923_200_000  # 2026-11-06T00:00Z
NOW_MS = BEGAN_MS + 3 * DAY_MS
LONG = Price(
    id="prc_2",
    model="long",
    currency="USD",
    uncached_input=200_000_000,
    cache_read=20_000_000,
    cache_write=250_000_000,
    cache_write_1h=400_000_000,
    output=900_000_000,
    reasoning=900_000_000,
    request=2_000_000_000,
    tiers=(
        Tier(
            above_input_tokens=100,
            uncached_input=400_000_000,
            cache_read=40_000_000,
            cache_write=500_000_000,
            output=1_800_000_000,
            reasoning=1_800_000_000,
        ),
    ),
    multipliers=(("batch", 500_000),),
)
COST = Price(
    id="prc_3",
    model="acme/large",
    currency="USD",
    uncached_input=90_000_000,
    cache_read=9_000_000,
    cache_write=90_000_000,
    output=270_000_000,
    reasoning=270_000_000,
)
UPSTREAM = Price(
    id="prc_4",
    model="acme/large",
    currency="USD",
    uncached_input=100_000_000,
    cache_read=10_000_000,
    cache_write=100_000_000,
    output=300_000_000,
    reasoning=300_000_000,
)
ORGANIZATION_CAP = BudgetTerms(
    "bud_org", "org_1", "organization", "org_1", 10**13, "month", None, BEGAN_MS, "Europe/Berlin"
)
KEY_CAP = BudgetTerms("bud_key", "org_2", "key", "key_2", 10**13, "day", None, BEGAN_MS, "UTC")
TAG_CAP = BudgetTerms("bud_tag", "org_1", "tag", "search", 10**13, "total", None, BEGAN_MS, "UTC")


def usage_at(random: Random) -> Usage:
    """Some usage, every kind of token in it."""
    write, output = random.randrange(20), random.randrange(1, 80)
    return Usage(
        uncached_input=random.randrange(1, 150),
        cache_read=random.randrange(60),
        cache_write=write,
        cache_write_1h=random.randrange(write + 1),
        output=output,
        reasoning=random.randrange(output + 1),
    )


def open_till(database: Path) -> Till:
    """A till on a fresh database (`settlements.PARENTS` in it), with organizations, caps, credit and prices."""
    till = Till(database, now_ms=BEGAN_MS)
    till.__enter__()
    till.write(
        [
            store.price_write(LONG, BEGAN_MS),
            store.price_write(COST, BEGAN_MS, kind="cost"),
            store.price_write(UPSTREAM, BEGAN_MS),
        ]
    )
    till.organization("org_1", key_id="key_1", is_new=False)
    till.organization("org_2", key_id="key_2", is_prepaid=True)
    till.budget(ORGANIZATION_CAP)
    till.budget(KEY_CAP)
    till.budget(TAG_CAP)
    till.key("key_1")
    till.grant("grt_1", "org_2", 30_000, expires_at_ms=BEGAN_MS + DAY_MS)
    till.grant("grt_5", "org_2", 10**8, expires_at_ms=BEGAN_MS + 2 * DAY_MS)
    till.grant("grt_2", "org_2", 10**9)
    till.grant("grt_3", "org_1", 50_000)
    return till


def build(database: Path, *, requests_count: int = 200) -> None:
    """Fill a fresh database: about so many requests over three days, some of each kind."""
    till = open_till(database)
    # Older than the ledger: a record without a reservation.
    old = settlement("req_000000_old", received_at_ms=BEGAN_MS - HOUR_MS, cost_nanos=3_150)
    till.write(settlement_writes(old))
    random = Random(7)
    step_ms = 3 * DAY_MS // requests_count
    for number in range(requests_count):
        till.now_ms = max(till.now_ms, BEGAN_MS + number * step_ms)
        till.sweep_lots()
        _request(till, number, random)
        if number % 25 == 0:
            till.adjust("org_1", random.randrange(-500, 500) or 1)
    till.grant("grt_4", "org_1", 5_000, expires_at_ms=till.now_ms + DAY_MS)
    late = [_reserve(till, 0, 3_000), _reserve(till, 1, 3_000)]
    with_lots = _reserve(till, 1, 2_000)
    till.revoke("grt_4", "org_1")
    till.revoke("grt_3", "org_1")
    for held in (late[0], late[1], with_lots):
        till.expire(held)
    till.settle(late[0], usage_at(random))
    absorbed = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=10**12)
    till.expire(absorbed)
    till.lower(ORGANIZATION_CAP._replace(limit_nanos=1))
    till.settle(absorbed, usage_at(random))  # late, and no cap allows it any more: ours to bear
    till.settle(with_lots, usage_at(random))
    # late[1] is still running though its hold is over; two more are open, as after a crash one is not
    _reserve(till, 1, 2_500)
    till.reserve("key_2", "org_2", price=PRICE, amount_nanos=3_500, is_stream=False)
    till.remember_open()
    till.__exit__(None, None, None)


def crash(database: Path) -> None:
    """Fill a fresh database with requests that a crash cut: with marks, without, not streamed; then recover them."""
    till = open_till(database)
    held = [_reserve(till, number % 2, 50_000) for number in range(4)]
    not_streamed = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=100, is_stream=False)
    short = till.reserve("key_1", "org_1", price=PRICE, amount_nanos=3)
    for number, one in enumerate([*held[:3], short]):
        mark = Mark(f"att_m{number}", 0, "m", "rep_1", "counted", Usage(uncached_input=50, output=40), till.now_ms)
        till.mark(one, msgspec.json.encode([mark]).decode())
    assert not_streamed.row.amount_nanos
    till.now_ms += DAY_MS * 2
    till.recover()
    till.__exit__(None, None, None)


def _request(till: Till, number: int, random: Random) -> None:
    usage = usage_at(random)
    match number % 10:
        case 0 | 1 | 2:
            held = _reserve(till, number, 50_000)
            till.now_ms += 700
            till.settle(held, usage)
        case 3:
            held = till.reserve(
                "key_1", "org_1", model="long", price=LONG, amount_nanos=10**7, tags=("search",), service_tier="batch"
            )
            till.settle(held, usage, usage_at(random))
        case 4:
            held = _reserve(till, number, 9_000, is_stream=False)
            till.settle(held, usage, outcome="upstream_error")
        case 5:
            held = _reserve(till, number, 50_000)
            till.settle(held, usage, outcome="client_gone")
        case 6:
            held = till.reserve("key_1", "org_1", model="free", price=None, amount_nanos=0)
            till.settle(held, usage)
        case 7:
            held = _reserve(till, number, 5)
            till.settle(held, usage)  # costs more than was held
        case 8:
            held = till.reserve("key_1", "org_1", model="acme/large", price=UPSTREAM, amount_nanos=50_000)
            till.settle(held, usage, upstream_cost=COST, target="acme/large")
        case _:
            held = _reserve(till, number, 400)
            till.settle(held, outcome="client_gone")  # left in the queue
    if number % 20 == 9:
        refused = settlement(
            f"req_refused_{number:03d}",
            attempts_count=0,
            outcome="rejected",
            usage=Usage(),
            price_id=None,
            cost_nanos=None,
            received_at_ms=till.now_ms,
        )
        till.write(settlement_writes(refused))


def _reserve(till: Till, number: int, amount_nanos: int, *, is_stream: bool = True) -> Held:
    key_id, organization_id = ("key_2", "org_2") if number % 2 else ("key_1", "org_1")
    return till.reserve(key_id, organization_id, price=PRICE, amount_nanos=amount_nanos, is_stream=is_stream)
