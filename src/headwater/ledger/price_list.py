"""Which price is in force: every version of every price and cost, looked up by model and moment. Pure.

A version is in force from its effective date until the next one's; of two with one date the later made counts. A version
that is withdrawn says that from then on there is no price. `kind` tells what callers pay (price) from what an upstream
takes (cost).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from headwater.ledger.store import PriceKind, PriceVersion
from headwater.money import Price


class _InForce(NamedTuple):
    price: Price | None
    from_ms: int
    until_ms: int | None


_NEVER = _InForce(None, 0, None)


class PriceList:
    """A snapshot of all versions; replaced whole by `load` when one is added."""

    def __init__(self, versions: Iterable[PriceVersion] = (), *, stand_ins: Mapping[str, str] | None = None) -> None:
        """stand_ins: of names that never had a price of their own, whose price they have: a route's first target."""
        self._stand_ins = dict(stand_ins or {})
        self._versions: dict[tuple[PriceKind, str], list[PriceVersion]] = {}
        self._in_force: dict[tuple[PriceKind, str], _InForce] = {}
        self._by_id: dict[str, Price] = {}
        self.load(versions)

    def stand_in(self, stand_ins: Mapping[str, str]) -> None:
        """Have these stand-ins, and no others."""
        self._stand_ins, self._in_force = dict(stand_ins), {}

    def load(self, versions: Iterable[PriceVersion]) -> None:
        """Know these versions, and no others."""
        found: dict[tuple[PriceKind, str], list[PriceVersion]] = {}
        for version in versions:
            found.setdefault((version.kind, version.price.model), []).append(version)
        for ordered in found.values():
            ordered.sort(key=lambda version: (version.effective_at_ms, version.price.id))
        self._versions, self._in_force = found, {}
        self._by_id = {version.price.id: version.price for ordered in found.values() for version in ordered}

    def current(self, model: str, now_ms: int, kind: PriceKind = "price") -> Price | None:
        """The price of a model at a moment; None when there is none."""
        known = self._in_force.get((kind, model))
        if known is None or now_ms < known.from_ms or (known.until_ms is not None and now_ms >= known.until_ms):
            known = self._in_force[kind, model] = self._find(kind, model, now_ms)
        return known.price

    def version(self, price_id: str) -> Price | None:
        """The version of this id."""
        return self._by_id.get(price_id)

    def in_force(self, model: str, now_ms: int, kind: PriceKind = "price") -> PriceVersion | None:
        """The version in force at a moment, which may be a withdrawal; None before the first."""
        past = [version for version in self._versions.get((kind, model), ()) if version.effective_at_ms <= now_ms]
        return past[-1] if past else None

    def _find(self, kind: PriceKind, model: str, now_ms: int) -> _InForce:
        ordered = self._versions.get((kind, model))
        if not ordered:
            stand_in = self._stand_ins.get(model) if kind == "price" else None
            return _NEVER if stand_in is None else self._find(kind, stand_in, now_ms)
        following = next((version for version in ordered if version.effective_at_ms > now_ms), None)
        until_ms = None if following is None else following.effective_at_ms
        version = self.in_force(model, now_ms, kind)
        if version is None:
            return _InForce(None, 0, until_ms)
        return _InForce(None if version.is_withdrawn else version.price, version.effective_at_ms, until_ms)
