"""What the book must decide, said as plainly as can be: lists, and sums over them. Shares no code with the book."""

from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo


@dataclass
class Budget:
    scope: tuple[str, str]
    limit: int
    days: int | str  # of a period: a number, "month" or "total"
    zone: str
    first_day: int = 1  # counted from Monday, 1 January of the year 1
    is_archived: bool = False

    def period(self, now_ms: int) -> object:
        local = datetime.fromtimestamp(now_ms / 1000, ZoneInfo(self.zone))
        if isinstance(self.days, int):
            return max(0, (local.toordinal() - self.first_day) // self.days)
        return (local.year, local.month) if self.days == "month" else "ever"


@dataclass
class Grant:
    organization: str
    amount: int
    expires_ms: int | None
    is_closed: bool = False  # revoked, or its rest has lapsed
    lapsed: int = 0

    def is_over(self, now_ms: int) -> bool:
        return self.is_closed or (self.expires_ms is not None and self.expires_ms <= now_ms)


@dataclass
class Request:
    organization: str
    amount: int
    periods: list[tuple[str, object]]
    held: list[tuple[str, int]]
    state: str = "open"
    charge: int = 0
    paid: list[tuple[str, int]] = field(default_factory=list)


class ReferenceLedger:
    def __init__(self) -> None:
        self.is_prepaid: dict[str, bool] = {}
        self.budgets: dict[str, Budget] = {}
        self.grants: dict[str, Grant] = {}
        self.requests: list[Request] = []

    def spent(self, period: tuple[str, object]) -> int:
        return sum(one.charge for one in self.requests if period in one.periods)

    def held(self, period: tuple[str, object]) -> int:
        return sum(one.amount for one in self.requests if one.state == "open" and period in one.periods)

    def left(self, period: tuple[str, object]) -> int:
        return max(0, self.budgets[period[0]].limit - self.spent(period) - self.held(period))

    def free(self, grant: str) -> int:
        gone = [part for one in self.requests for part in one.paid + (one.held if one.state == "open" else [])]
        return self.grants[grant].amount - self.grants[grant].lapsed - sum(nanos for lot, nanos in gone if lot == grant)

    def credit(self, organization: str, now_ms: int) -> list[tuple[str, int]]:
        usable = [i for i, one in self.grants.items() if one.organization == organization and not one.is_over(now_ms)]
        usable.sort(key=lambda i: (self.grants[i].expires_ms or 1e99, i))
        return [(grant, self.free(grant)) for grant in usable]

    def take(self, organization: str, amount: int, now_ms: int) -> list[tuple[str, int]]:
        taken: list[tuple[str, int]] = []
        for grant, free in self.credit(organization, now_ms):
            taken.append((grant, min(free, amount - sum(nanos for _, nanos in taken))))
        return [part for part in taken if part[1]]

    def over(self, scopes: list[tuple[str, str]], now_ms: int) -> list[tuple[str, object]]:
        live = [item for item in self.budgets.items() if not item[1].is_archived]
        return [(name, one.period(now_ms)) for scope in scopes for name, one in live if one.scope == scope]

    def short(self, organization: str, periods: list[tuple[str, object]], amount: int, now_ms: int) -> list[str]:
        """The scopes that have too little left."""
        short = [self.budgets[period[0]].scope[0] for period in periods if self.left(period) < amount]
        credit = sum(free for _, free in self.credit(organization, now_ms))
        return short + (["wallet"] if self.is_prepaid[organization] and credit < max(1, amount) else [])

    def reserve(self, organization: str, scopes: list[tuple[str, str]], amount: int, now_ms: int) -> Request | str:
        periods = self.over(scopes, now_ms)
        for scope in self.short(organization, periods, amount, now_ms):
            return scope
        self.requests.append(Request(organization, amount, periods, self.take(organization, amount, now_ms)))
        return self.requests[-1]

    def settle(self, one: Request, cost: int, now_ms: int) -> None:
        charge = min(cost, one.amount)
        if one.state == "open":
            self.release(one, charge, now_ms)
        elif self.short(one.organization, one.periods, charge, now_ms):
            charge = 0
        else:
            one.paid = self.take(one.organization, charge, now_ms)
        one.charge, one.state = charge, "settled"

    def release(self, one: Request, charge: int, now_ms: int) -> None:
        one.state, rest = "expired", charge
        for grant, nanos in one.held:
            one.paid.append((grant, min(nanos, rest)))
            self.grants[grant].lapsed += nanos - min(nanos, rest) if self.grants[grant].is_over(now_ms) else 0
            rest -= min(nanos, rest)

    def close(self, grant: str) -> int:
        gone, self.grants[grant].is_closed = self.free(grant), True
        self.grants[grant].lapsed += gone
        return gone
