"""What a seed of the simulation is about: who may call, under which caps, with which credit, and what they will ask for.

Everything is drawn from the seed. Amounts are a few hundred nano-units and caps a few hundred more, so that nearly every
cap is reached; the clock starts shortly before something happens to the calendar.
"""

import random
from datetime import UTC, datetime
from typing import NamedTuple, get_args

from headwater.ledger.periods import BudgetTerms, PeriodKind, ScopeKind
from headwater.money import Price

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
EPOCH_MS = 1_795_000_000_000
ORGANIZATIONS = ("org_1", "org_2")
PROJECTS = {"prj_1": "org_1", "prj_2": "org_1", "prj_3": "org_2"}
KEYS = {"key_1": "prj_1", "key_2": "prj_1", "key_3": "prj_2", "key_4": "prj_3"}
TAGS = ("night", "batch")
MODEL = "m"
PRICE = Price(
    id="prc_1",
    model=MODEL,
    currency="USD",
    uncached_input=0,
    cache_read=0,
    cache_write=0,
    output=1_000_000,
    reasoning=1_000_000,
)
"""A nano-unit for each output token, so that a cost can be read off the usage."""
ZONES = ("UTC", "Europe/Berlin", "America/Santiago")
PERIODS: tuple[PeriodKind, ...] = get_args(PeriodKind)


def _ms(*moment: int) -> int:
    year, month, day, hour = moment
    return int(datetime(year, month, day, hour, 50, tzinfo=UTC).timestamp() * 1000)


STARTS_MS = (
    _ms(2026, 11, 22, 23),  # a Sunday's last minutes in UTC
    _ms(2026, 12, 31, 22),  # a year's in Berlin
    _ms(2026, 10, 24, 21),  # Berlin's day of 25 hours is about to begin
    _ms(2026, 9, 6, 3),  # Santiago is about to skip midnight
)


class Asked(NamedTuple):
    """One request: by whom, what it may cost at most, what it will cost, and in how many steps it is answered.

    life_ms: how long its reservation lives. leaves_at: the step at which its caller is gone, None for one who stays.
    """

    key_id: str
    tags: tuple[str, ...]
    amount_nanos: int
    cost_nanos: int
    is_stream: bool
    steps_count: int
    life_ms: int
    leaves_at: int | None


class Granted(NamedTuple):
    """Credit given before the first request."""

    id: str
    organization_id: str
    amount_nanos: int
    expires_at_ms: int | None


class World(NamedTuple):
    """All of it. is_prepaid: by organization. concurrency: requests served at once."""

    seed: int
    start_ms: int
    is_prepaid: dict[str, bool]
    budgets: tuple[BudgetTerms, ...]
    grants: tuple[Granted, ...]
    requests: tuple[Asked, ...]
    concurrency: int
    keys_count_max: int


def draw(seed: int) -> World:
    """The world of a seed."""
    pick = random.Random(seed)
    start_ms = pick.choice(STARTS_MS) + pick.randrange(30 * MINUTE_MS)
    scopes: list[tuple[ScopeKind, str, str]] = [("organization", one, one) for one in ORGANIZATIONS]
    scopes += [("project", one, organization) for one, organization in PROJECTS.items()]
    scopes += [("key", one, PROJECTS[project]) for one, project in KEYS.items()]
    scopes += [("tag", tag, "org_1") for tag in TAGS]
    budgets = tuple(_budget(pick, number, scopes, start_ms) for number in range(pick.randrange(2, 7)))
    grants = tuple(_grant(pick, number, start_ms) for number in range(pick.randrange(1, 5)))
    return World(
        seed=seed,
        start_ms=start_ms,
        is_prepaid={"org_1": pick.random() < 0.5, "org_2": pick.random() < 0.3},
        budgets=budgets,
        grants=grants,
        requests=tuple(_request(pick) for _ in range(pick.randrange(20, 41))),
        concurrency=pick.choice((2, 5, 12)),
        keys_count_max=pick.choice((2, 50)),
    )


def _budget(pick: random.Random, number: int, scopes: list[tuple[ScopeKind, str, str]], start_ms: int) -> BudgetTerms:
    scope, scope_id, organization_id = pick.choice(scopes)
    period: PeriodKind = "day" if pick.random() < 0.5 else pick.choice(PERIODS)
    return BudgetTerms(
        id=f"bud_{number}",
        organization_id=organization_id,
        scope=scope,
        scope_id=scope_id,
        limit_nanos=pick.randrange(100, 900),
        period=period,
        period_days=pick.randrange(1, 4) if period == "custom" else None,
        anchor_ms=start_ms - pick.randrange(3 * DAY_MS),
        time_zone=pick.choice(ZONES),
        thresholds=(50, 80, 100),
    )


def _grant(pick: random.Random, number: int, start_ms: int) -> Granted:
    expires_at_ms = None if pick.random() < 0.4 else start_ms + pick.choice((MINUTE_MS, 2 * HOUR_MS, DAY_MS))
    return Granted(f"gnt_{number}", pick.choice(ORGANIZATIONS), pick.randrange(50, 1_000), expires_at_ms)


def _request(pick: random.Random) -> Asked:
    amount_nanos = 0 if pick.random() < 0.05 else pick.randrange(1, 200)
    kind = pick.random()
    cost_nanos = (
        pick.randrange(amount_nanos + 1) if kind < 0.7 else amount_nanos + (pick.randrange(50) if kind > 0.9 else 0)
    )
    steps_count = pick.randrange(1, 5)
    return Asked(
        key_id=pick.choice(tuple(KEYS)),
        tags=() if pick.random() < 0.6 else tuple(pick.choices(TAGS, k=pick.randrange(1, 3))),
        amount_nanos=amount_nanos,
        cost_nanos=cost_nanos,
        is_stream=pick.random() < 0.6,
        steps_count=steps_count,
        life_ms=pick.choice((2_000, 10 * MINUTE_MS, 10 * MINUTE_MS)),
        leaves_at=pick.randrange(steps_count) if pick.random() < 0.15 else None,
    )
