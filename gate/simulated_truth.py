"""What the simulation knows by itself: who holds and has spent what, and what each caller was promised.

It is told of every decision as it is made, and compares: a hold under exactly the caps it belongs under, never more than
a limit, credit only from grants that are in force, back only what was taken.
"""

import json
from typing import NamedTuple

from gate.simulated_disk import Broken, Contents
from gate.simulated_world import KEYS, PROJECTS, Asked, World
from headwater.ledger.book import Hold, Settled
from headwater.ledger.periods import BudgetTerms, period_at
from headwater.ledger.rows import TransferRow


class _Held(NamedTuple):
    asked: Asked
    periods: list[tuple[str, str]]
    lots: list[tuple[str, int]]


class Truth:
    """One simulated platform, as somebody sees it who keeps books of his own."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.terms: dict[str, BudgetTerms] = {terms.id: terms for terms in world.budgets}
        self.limits_max = {terms.id: terms.limit_nanos for terms in world.budgets}
        self.acknowledged: dict[str, int] = {}
        self._limits = dict(self.limits_max)
        self._counted: dict[tuple[str, str], int] = {}  # spent and held
        self._free = {grant.id: grant.amount_nanos for grant in world.grants}
        self._grants = {grant.id: grant for grant in world.grants}
        self._closed: set[str] = set()
        self._open: dict[int, _Held] = {}
        self._expired: dict[int, _Held] = {}

    # -- what an operator does ---------------------------------------------------------------------------------------

    def changed(self, terms: BudgetTerms) -> None:
        """A budget has a new limit."""
        self.terms[terms.id] = terms
        self._limits[terms.id] = terms.limit_nanos
        self.limits_max[terms.id] = max(self.limits_max[terms.id], terms.limit_nanos)

    def archived(self, terms: BudgetTerms) -> None:
        """A budget caps nothing any more."""
        del self.terms[terms.id]

    def revoked(self, grant_id: str, gone_nanos: int) -> None:
        """What is free of a grant is gone."""
        if gone_nanos != self._free[grant_id]:
            raise Broken("misstated", f"{gone_nanos} of {grant_id} was revoked, {self._free[grant_id]} was free")
        self._close(grant_id)

    def swept(self, transfers: list[TransferRow], now_ms: int) -> None:
        """Credit has lapsed."""
        expected = {
            name: free
            for name, free in self._free.items()
            if free and name not in self._closed and self._is_over(name, now_ms)
        }
        if {row.subject: row.amount_nanos for row in transfers} != expected:
            raise Broken("misstated", f"lapsed: {transfers}; expected: {expected}")
        for name, grant in self._grants.items():
            if grant.expires_at_ms is not None and grant.expires_at_ms <= now_ms:
                self._close(name)

    # -- what requests do ----------------------------------------------------------------------------------------------

    def admitted(self, asked: Asked, hold: Hold, now_ms: int) -> None:
        """Money was held."""
        periods = self._periods(asked, now_ms)
        written = [(name, period) for name, period in json.loads(hold.budgets_json or "[]")]
        if sorted(written) != sorted(periods):
            raise Broken("overdrawn", f"reservation {hold.id} is held under {written}, not under {periods}")
        for period in periods:
            counted = self._counted[period] = self._counted.get(period, 0) + asked.amount_nanos
            if asked.amount_nanos and counted > self._limits[period[0]]:
                raise Broken("overdrawn", f"{period}: {counted} of {self._limits[period[0]]} is spent or held")
        lots: list[tuple[str, int]] = [(name, nanos) for name, nanos in json.loads(hold.lots_json or "[]")]
        organization_id = PROJECTS[KEYS[asked.key_id]]
        if self._world.is_prepaid[organization_id] and sum(nanos for _, nanos in lots) != asked.amount_nanos:
            raise Broken("overdrawn", f"reservation {hold.id} of {asked.amount_nanos} is covered by {lots} only")
        self._take(lots, now_ms)
        self._open[hold.id] = _Held(asked, periods, lots)

    def refused(self, asked: Asked, now_ms: int) -> None:
        """Too little was left somewhere, it was said."""
        if not self._is_short(asked, self._periods(asked, now_ms), max(1, asked.amount_nanos), now_ms):
            raise Broken("misstated", f"{asked} was refused, though every cap and the credit allow it")

    def settled(self, hold: Hold, cost_nanos: int, settled: Settled, now_ms: int) -> None:
        """A request has ended, in time or late."""
        held = self._open.pop(hold.id, None)
        if held is not None:
            charge = min(cost_nanos, held.asked.amount_nanos)
            self._expect(hold, settled.charge_nanos, charge)
            self._release(held, charge, settled.transfers, now_ms)
            return
        held = self._expired.pop(hold.id)
        charge = min(cost_nanos, held.asked.amount_nanos)
        is_short = self._is_short(held.asked, held.periods, charge, now_ms)
        self._expect(hold, settled.charge_nanos, 0 if is_short else charge)
        for period in held.periods:
            self._counted[period] = self._counted.get(period, 0) + settled.charge_nanos
        self._take([(name, nanos) for name, nanos in json.loads(settled.late_lots_json or "[]")], now_ms)

    def expired(self, hold: Hold, settled: Settled, now_ms: int) -> None:
        """A hold's time is over."""
        held = self._expired[hold.id] = self._open.pop(hold.id)
        self._release(held, 0, settled.transfers, now_ms)

    def acknowledge(self, request_id: str, charge_nanos: int) -> None:
        """A caller has the end of its answer."""
        self.acknowledged[request_id] = charge_nanos

    # -- what a crash does ---------------------------------------------------------------------------------------------

    def restarted(self, contents: Contents) -> None:
        """Nothing is held any more; what is spent and left is what the disk says."""
        self._counted = dict(contents.spent)
        self._free = dict(contents.lots)
        self._closed = {name for name in self._free if name in contents.revoked or contents.has_lapsed(name)}
        self._open, self._expired = {}, {}

    def check(self, contents: Contents) -> None:
        """Every caller who was given the end of an answer has its record, with the charge it was told."""
        for request_id, charge in self.acknowledged.items():
            if request_id not in contents.charged:
                raise Broken("lost", f"{request_id} was answered to its end and has no record")
            if contents.charged[request_id] != charge:
                raise Broken("misstated", f"{request_id} was charged {contents.charged[request_id]}, not {charge}")

    def check_credit(self, contents: Contents) -> None:
        """When nothing is held: of every grant the disk has left what there is."""
        if self._free != contents.lots:
            raise Broken("misstated", f"the disk says {contents.lots} is left of the grants, it is {self._free}")

    # -- how -----------------------------------------------------------------------------------------------------------

    def credit_nanos(self, organization_id: str, now_ms: int) -> int:
        """What an organization may still spend of its grants."""
        own = [name for name, grant in self._grants.items() if grant.organization_id == organization_id]
        return sum(self._free[name] for name in own if not self._is_over(name, now_ms))

    def _periods(self, asked: Asked, now_ms: int) -> list[tuple[str, str]]:
        project_id = KEYS[asked.key_id]
        organization_id = PROJECTS[project_id]
        scopes = {("organization", organization_id), ("project", project_id), ("key", asked.key_id)}
        scopes |= {("tag", tag) for tag in asked.tags} if organization_id == "org_1" else set()
        own = [terms for terms in self.terms.values() if (terms.scope, terms.scope_id) in scopes]
        return [(terms.id, period_at(terms, now_ms).key) for terms in own]

    def _is_short(self, asked: Asked, periods: list[tuple[str, str]], nanos: int, now_ms: int) -> bool:
        if any(self._counted.get(period, 0) + nanos > self._limits[period[0]] for period in periods):
            return True
        organization_id = PROJECTS[KEYS[asked.key_id]]
        return self._world.is_prepaid[organization_id] and self.credit_nanos(organization_id, now_ms) < nanos

    def _is_over(self, grant_id: str, now_ms: int) -> bool:
        expires_at_ms = self._grants[grant_id].expires_at_ms
        return grant_id in self._closed or (expires_at_ms is not None and expires_at_ms <= now_ms)

    def _close(self, grant_id: str) -> None:
        self._closed.add(grant_id)
        self._free[grant_id] = 0

    def _take(self, lots: list[tuple[str, int]], now_ms: int) -> None:
        for name, nanos in lots:
            self._free[name] -= nanos
            if self._is_over(name, now_ms) or self._free[name] < 0:
                raise Broken("overdrawn", f"{nanos} was taken from {name}, which is over or has less")

    def _release(self, held: _Held, charge: int, transfers: tuple[TransferRow, ...], now_ms: int) -> None:
        for period in held.periods:
            self._counted[period] += charge - held.asked.amount_nanos
        lapsed: dict[str, int] = {}
        for name, nanos in held.lots:
            back = nanos - min(nanos, charge)
            charge -= nanos - back
            if back and self._is_over(name, now_ms):
                lapsed[name] = back
            else:
                self._free[name] += back
        said = {row.subject: row.amount_nanos for row in transfers}
        if said != lapsed:
            raise Broken("misstated", f"with the release lapsed {said}, not {lapsed}")

    def _expect(self, hold: Hold, charge_nanos: int, expected_nanos: int) -> None:
        if charge_nanos != expected_nanos:
            raise Broken("misstated", f"reservation {hold.id} was charged {charge_nanos}, not {expected_nanos}")
