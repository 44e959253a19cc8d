"""Credit as an operator handles it: grants that are spent, expire or are taken back, and corrections of a balance.

A grant is one submission: its row, the transfer that brings it into the books, its lot, and the balances they move.
"""

from collections import Counter

import msgspec

from headwater.admin import finding
from headwater.admin.administration import Administration, Verb
from headwater.admin.checks import amount_nanos, check_note, end_ms
from headwater.errors import OperatorError
from headwater.ids import ADJUSTMENT, GRANT, new_id
from headwater.ledger import admin_store
from headwater.ledger.admin_store import GrantRow
from headwater.ledger.batch import Batch, transfer_accounts
from headwater.ledger.rows import Delta, TransferRow
from headwater.ledger.store import Write
from headwater.money import NANOS_MAX, format_nanos


class CreateGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for credit. amount: decimal string of the organization's currency; it ends as in `CreateKey`."""

    organization: str
    amount: str
    expires_in_s: float | None = None
    expires_at_ms: int | None = None
    note: str | None = None


class ListGrants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see every grant, or those of one organization."""

    organization: str | None = None


class ShowGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see one."""

    id: str


class UpdateGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for another note."""

    id: str
    note: str | None


class ArchiveGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to take back what nobody holds of it."""

    id: str


class Adjust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to correct what an organization owes. amount: decimal string, negative for what it is to owe."""

    organization: str
    amount: str
    note: str | None = None


class GrantView(msgspec.Struct, frozen=True):
    """A grant as people see it. Amounts are nano-units of currency; held_nanos, a part of remaining_nanos: by open requests."""

    id: str
    organization_id: str
    organization: str
    currency: str
    amount_nanos: int
    remaining_nanos: int
    held_nanos: int
    expires_at_ms: int | None
    note: str | None
    created_at_ms: int
    revoked_at_ms: int | None

    def state(self, now_ms: float) -> str:
        """active, spent, expired or revoked, at a moment."""
        if self.revoked_at_ms is not None:
            return "revoked"
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return "expired"
        return "active" if self.remaining_nanos else "spent"


class AdjustmentView(msgspec.Struct, frozen=True):
    """A correction and what the wallet holds after it; below 0 is owed."""

    id: str
    organization_id: str
    organization: str
    currency: str
    amount_nanos: int
    wallet_nanos: int
    note: str | None
    created_at_ms: int


def _create(administration: Administration, wish: CreateGrant) -> GrantView:
    """Give credit; it can be spent when this returns."""
    owner = finding.active_organization(administration, wish.organization)
    nanos = amount_nanos("A grant", wish.amount)
    if not nanos:
        raise OperatorError("A grant of 0 gives nothing.", now="Give an amount above 0.")
    now_ms = administration.now_ms
    row = GrantRow(
        id=new_id(GRANT),
        organization_id=owner.id,
        amount_nanos=nanos,
        expires_at_ms=end_ms("A grant", now_ms, in_s=wish.expires_in_s, at_ms=wish.expires_at_ms),
        note=check_note(wish.note),
        created_at_ms=now_ms,
        revoked_at_ms=None,
        remaining_nanos=nanos,
    )
    transfer = TransferRow("grant", row.id, 0, owner.id, None, nanos, row.note, now_ms)
    _check_balances(administration, transfer)
    administration.write(
        [
            Write(admin_store.INSERT_GRANT, row[:-1]),
            Write(admin_store.INSERT_LOT, (row.id, nanos)),
            *_moved(transfer),
            administration.change(
                "grant",
                row.id,
                "create",
                organization_id=owner.id,
                amount_nanos=nanos,
                expires_at_ms=row.expires_at_ms,
                note=row.note,
            ),
        ]
    )
    if administration.live is not None:
        administration.live.add_grant(row.id, owner.id, nanos, row.expires_at_ms)
    return _view_of(administration, row.id)


def _list(administration: Administration, wish: ListGrants) -> list[GrantView]:
    owner = None if wish.organization is None else finding.organization(administration, wish.organization)
    rows = administration.read(admin_store.read_grants)
    return _views(administration, [row for row in rows if owner is None or row.organization_id == owner.id])


def _show(administration: Administration, wish: ShowGrant) -> GrantView:
    return _view_of(administration, wish.id)


def _update(administration: Administration, wish: UpdateGrant) -> GrantView:
    found = _found(administration, wish.id)
    note = check_note(wish.note)
    if note != found.note:
        administration.write(
            [
                Write(admin_store.UPDATE_GRANT, (found.id, note)),
                administration.change("grant", found.id, "update", note=note),
            ]
        )
    return _view_of(administration, wish.id)


def _archive(administration: Administration, wish: ArchiveGrant) -> GrantView:
    """Take back what nobody holds; what open requests hold stays theirs. Doing it twice keeps the first time."""
    found = _found(administration, wish.id)
    now_ms = administration.now_ms
    if found.revoked_at_ms is not None:
        return _view_of(administration, wish.id)
    if found.expires_at_ms is not None and found.expires_at_ms <= now_ms:
        raise OperatorError(
            f"The grant {found.id} has expired; nothing of it is left to take back.",
            now="What is left of it goes back by itself.",
        )
    free_nanos = _free(administration, found)
    writes = [
        Write(admin_store.REVOKE_GRANT, (found.id, now_ms)),
        administration.change("grant", found.id, "archive", revoked_nanos=free_nanos),
    ]
    if free_nanos:
        transfer = TransferRow("grant_revoke", found.id, 0, found.organization_id, None, free_nanos, None, now_ms)
        writes += _moved(transfer, Delta((found.id,), -free_nanos))
    administration.write(writes)
    return _view_of(administration, wish.id)


def _adjust(administration: Administration, wish: Adjust) -> AdjustmentView:
    """Correct what is owed. It is no credit: a prepaid organization can't spend it."""
    owner = finding.organization(administration, wish.organization)
    nanos = amount_nanos("An adjustment", wish.amount, is_signed=True)
    if not nanos:
        raise OperatorError("An adjustment of 0 changes nothing.", now="Give another amount, such as -5 or 0.50.")
    adjustment_id, now_ms = new_id(ADJUSTMENT), administration.now_ms
    transfer = TransferRow("adjust", adjustment_id, 0, owner.id, None, nanos, check_note(wish.note), now_ms)
    _check_balances(administration, transfer)
    administration.write(
        [
            *_moved(transfer),
            administration.change(
                "adjustment", adjustment_id, "create", organization_id=owner.id, amount_nanos=nanos, note=wish.note
            ),
        ]
    )
    return AdjustmentView(
        id=adjustment_id,
        organization_id=owner.id,
        organization=owner.name,
        currency=owner.currency or administration.currency,
        amount_nanos=nanos,
        wallet_nanos=finding.organization(administration, owner.id).wallet_nanos,
        note=wish.note,
        created_at_ms=now_ms,
    )


def _moved(transfer: TransferRow, *lots: Delta) -> list[Write]:
    """The rows of a transfer: itself, the balances of its two accounts, and what it takes from lots."""
    batch = Batch()
    batch.move([transfer], lots)
    return batch.writes()


def _check_balances(administration: Administration, transfer: TransferRow) -> None:
    """Refuse a transfer after which a balance wouldn't fit 63 bits.

    What is held comes back to the wallet some time, so it counts there. Requests that settle meanwhile only move money
    out of these accounts, or within wallet and held, so what is read here stays true until the transfer is written.
    """
    gives, takes = transfer_accounts(transfer)
    accounts = (gives, takes, f"held/{transfer.organization_id}")
    given, taken, held = administration.read(lambda reader: admin_store.read_balances(reader, accounts))
    after = (given - transfer.amount_nanos, taken + transfer.amount_nanos, taken + held + transfer.amount_nanos)
    if any(abs(nanos) > NANOS_MAX for nanos in after):
        raise OperatorError(
            f"{format_nanos(transfer.amount_nanos)} is too much.",
            why=f"An account holds at most {format_nanos(NANOS_MAX)} either way.",
            now="Move less.",
        )


def _free(administration: Administration, found: GrantRow) -> int:
    """What nobody holds of a grant: decided in the running platform's memory, where it is taken back at once."""
    if administration.live is not None:
        return administration.live.revoke_grant(found.organization_id, found.id)
    held = administration.read(admin_store.read_held)
    return found.remaining_nanos - held[found.id, ""]


def _found(administration: Administration, grant_id: str) -> GrantRow:
    found = administration.read(lambda reader: admin_store.find_grant(reader, grant_id))
    if found is None:
        known = finding.listed(row.id for row in administration.read(admin_store.read_grants))
        raise OperatorError(
            f"There is no grant {grant_id!r}.",
            why=f"There are: {known or 'none'}.",
            now="`headwater grants list` shows the ids.",
        )
    return found


def _view_of(administration: Administration, grant_id: str) -> GrantView:
    return _views(administration, [_found(administration, grant_id)])[0]


def _views(administration: Administration, rows: list[GrantRow]) -> list[GrantView]:
    now_ms = administration.now_ms
    owners = {row.id: row for row in administration.read(lambda r: admin_store.read_organizations(r, now_ms))}
    held = administration.read(admin_store.read_held) if rows else Counter[tuple[str, str]]()
    return [
        GrantView(
            id=row.id,
            organization_id=row.organization_id,
            organization=owners[row.organization_id].name,
            currency=owners[row.organization_id].currency or administration.currency,
            amount_nanos=row.amount_nanos,
            remaining_nanos=row.remaining_nanos,
            held_nanos=held[row.id, ""],
            expires_at_ms=row.expires_at_ms,
            note=row.note,
            created_at_ms=row.created_at_ms,
            revoked_at_ms=row.revoked_at_ms,
        )
        for row in rows
    ]


CREATE = Verb("grants.create", CreateGrant, GrantView, _create)
LIST = Verb("grants.list", ListGrants, list[GrantView], _list)
SHOW = Verb("grants.show", ShowGrant, GrantView, _show)
UPDATE = Verb("grants.update", UpdateGrant, GrantView, _update)
ARCHIVE = Verb("grants.archive", ArchiveGrant, GrantView, _archive)
ADJUST = Verb("grants.adjust", Adjust, AdjustmentView, _adjust)
VERBS = (CREATE, LIST, SHOW, UPDATE, ARCHIVE, ADJUST)
