"""What an administrator changes while the platform runs reaches memory here, before the change is confirmed to anybody.

Called on the event loop only; what is changed is on the disk by then. `admin/administration.py` says what must be told.
"""

from collections.abc import Sequence

from headwater.gateway.auth import Authenticator
from headwater.gateway.cashier import Cashier
from headwater.gateway.idempotency import Idempotency
from headwater.gateway.limits import RateLimiter
from headwater.gateway.weights import Weights
from headwater.ledger.limit_store import LimitRow
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.store import PriceVersion
from headwater.ledger.wallet import Lot


class LiveBooks:
    """The running gateway as the administration sees it."""

    def __init__(
        self,
        authenticator: Authenticator,
        cashier: Cashier,
        idempotency: Idempotency,
        limits: RateLimiter,
        weights: Weights,
    ) -> None:
        self._authenticator = authenticator
        self._idempotency = idempotency
        self._cashier = cashier
        self._limits = limits
        self._weights = weights

    def forget_key(self, key_hash: bytes) -> None:
        """A key was changed or revoked: the next request with it reads the store again."""
        self._authenticator.forget(key_hash)

    def forget_project(self, project_id: str) -> None:
        """A project was changed: whether it keeps answers is read again."""
        self._idempotency.forget_project(project_id)

    def set_organization(self, organization_id: str, *, is_prepaid: bool, currency: str | None) -> None:
        """An organization exists, or its way of paying changed."""
        self._cashier.book.set_organization(organization_id, is_prepaid=is_prepaid, currency=currency)

    def add_grant(self, grant_id: str, organization_id: str, amount_nanos: int, expires_at_ms: int | None) -> None:
        """Credit may be spent."""
        self._cashier.book.add_lot(Lot(grant_id, organization_id, amount_nanos, expires_at_ms))

    def revoke_grant(self, organization_id: str, grant_id: str) -> int:
        """Take back what nobody holds of a grant; returns how much that is, 0 when memory doesn't know it (any more)."""
        return self._cashier.book.revoke_lot(organization_id, grant_id) or 0

    def set_budget(self, terms: BudgetTerms) -> None:
        """A budget exists, or its limit or thresholds changed."""
        self._cashier.set_budget(terms)

    def drop_budget(self, terms: BudgetTerms) -> None:
        """A budget is archived."""
        self._cashier.drop_budget(terms)

    def set_limit(self, limit: LimitRow) -> None:
        """A rate limit exists, or limits otherwise now."""
        self._limits.set_limit(limit)

    def drop_limit(self, limit: LimitRow) -> None:
        """A rate limit is lifted."""
        self._limits.drop_limit(limit)

    def weigh_organization(self, organization_id: str, weight: int) -> None:
        """An organization has another weight."""
        self._weights.set_organization(organization_id, weight)

    def weigh_key(self, key_id: str, weight: int) -> None:
        """A key has another weight."""
        self._weights.set_key(key_id, weight)

    def set_prices(self, versions: Sequence[PriceVersion]) -> None:
        """Prices or costs changed; versions: all there are."""
        self._cashier.prices.load(versions)
