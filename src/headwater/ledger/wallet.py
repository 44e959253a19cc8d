"""Credit in memory: an organization's grants and what is left of each. Pure; owned by the book (`book.py`)."""

from typing import NamedTuple

from headwater.ledger.periods import MS_MAX, MS_MIN
from headwater.ledger.rows import TransferKind, TransferRow


class LotState(NamedTuple):
    """A grant as the disk knows it. remaining_nanos: neither charged nor lapsed; what open holds hold is still in it."""

    grant_id: str
    organization_id: str
    remaining_nanos: int
    expires_at_ms: int | None
    is_revoked: bool

    def is_over(self, now_ms: int) -> bool:
        """Whether what comes back to it lapses."""
        return self.is_revoked or (self.expires_at_ms is not None and self.expires_at_ms <= now_ms)


class Lot:
    """What is left of one grant. free_nanos: neither spent nor held. usable_until_ms: from then on nothing is reserved from it.

    It ends with its term, with a revocation, and when its free rest has lapsed, so that it stays over even if the clock is
    put back.
    """

    __slots__ = (
        *("expires_at_ms", "free_nanos", "grant_id", "held_nanos", "is_revoked"),
        *("json_head", "key", "organization_id", "usable_until_ms"),
    )

    def __init__(self, grant_id: str, organization_id: str, remaining_nanos: int, expires_at_ms: int | None) -> None:
        self.grant_id = grant_id
        self.organization_id = organization_id
        self.free_nanos = remaining_nanos
        self.held_nanos = 0
        self.expires_at_ms = expires_at_ms
        self.usable_until_ms = MS_MAX if expires_at_ms is None else expires_at_ms
        self.is_revoked = False
        self.key = (grant_id,)
        self.json_head = f'["{grant_id}",'

    def is_over(self, now_ms: int) -> bool:
        """Whether nothing more may be reserved from it: expired or revoked."""
        return self.usable_until_ms <= now_ms

    def end(self, *, is_revoked: bool) -> int:
        """Nothing more may be reserved from it; returns what was free, which is so no longer."""
        free_nanos, self.free_nanos, self.usable_until_ms = self.free_nanos, 0, MS_MIN
        self.is_revoked = self.is_revoked or is_revoked
        return free_nanos


class Wallet:
    """An organization's credit: its lots, the soonest expiring first, those that never expire last.

    is_prepaid: whether every request has to be covered; otherwise lots are used while they last and the rest is owed.
    """

    __slots__ = ("currency", "is_prepaid", "lots", "organization_id")

    def __init__(self, organization_id: str, *, is_prepaid: bool, currency: str | None = None) -> None:
        self.organization_id = organization_id
        self.currency = currency
        self.is_prepaid = is_prepaid
        self.lots: list[Lot] = []

    def add(self, lot: Lot) -> None:
        """A grant becomes spendable."""
        self.lots.append(lot)
        self.lots.sort(key=lambda one: (one.expires_at_ms is None, one.expires_at_ms or 0, one.grant_id))

    def available_nanos(self, now_ms: int) -> int:
        """Credit that may still be reserved."""
        return sum([lot.free_nanos for lot in self.lots if lot.usable_until_ms > now_ms])

    def covers(self, amount_nanos: int, now_ms: int) -> bool:
        """Whether so much credit may still be reserved."""
        for lot in self.lots:
            if lot.usable_until_ms > now_ms:
                amount_nanos -= lot.free_nanos
                if amount_nanos <= 0:  # mostly the first has enough
                    return True
        return amount_nanos <= 0

    def take(self, amount_nanos: int, now_ms: int) -> list[tuple[Lot, int]]:
        """Hold an amount, or as much of it as there is; (lot, nanos) in the order they will be spent."""
        taken: list[tuple[Lot, int]] = []
        for lot in self.lots:
            if not amount_nanos:
                break
            free_nanos = lot.free_nanos
            if not free_nanos or lot.usable_until_ms <= now_ms:
                continue
            part = min(free_nanos, amount_nanos)
            lot.free_nanos -= part
            lot.held_nanos += part
            amount_nanos -= part
            taken.append((lot, part))
        return taken

    def forget_if_empty(self, lot: Lot) -> None:
        """Take a lot out of the list once nothing is left of it and nothing can come back."""
        if not lot.free_nanos and not lot.held_nanos and lot in self.lots:
            self.lots.remove(lot)


def lapse(lot: Lot, nanos: int, part: int, now_ms: int) -> TransferRow:
    """Credit that nobody may spend any more. part: the reservation that gave it back, 0 when it was free."""
    return TransferRow(
        lapsed_kind(is_revoked=lot.is_revoked), lot.grant_id, part, lot.organization_id, None, nanos, None, now_ms
    )


def lapsed_kind(*, is_revoked: bool) -> TransferKind:
    """By which transfer credit lapses: it was taken back, or its time was over."""
    return "grant_revoke" if is_revoked else "grant_expire"
