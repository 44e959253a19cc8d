"""Fill a book from the disk: at the start everything but the budgets of keys, and those when a key is first used."""

from headwater.ledger import store
from headwater.ledger.book import Book
from headwater.ledger.caps import Cap
from headwater.ledger.store import BudgetState, Connection
from headwater.ledger.wallet import Lot


def load_book(reader: Connection, *, keys_count_max: int) -> Book:
    """The book as the log left it; every reservation has been resolved (`recovery.recover`)."""
    book = Book(next_id=store.read_next_reservation_id(reader), keys_count_max=keys_count_max)
    for organization_id, is_prepaid, currency in store.read_organizations_paying(reader):
        book.set_organization(organization_id, is_prepaid=is_prepaid, currency=currency)
    for state in store.read_lots(reader).values():
        if not state.is_revoked:
            book.add_lot(Lot(state.grant_id, state.organization_id, state.remaining_nanos, state.expires_at_ms))
    for budget in store.read_budgets(reader):
        book.set_budget(budget.terms, restored=budget.spent_nanos)
    return book


def key_caps(budgets: list[BudgetState]) -> list[Cap]:
    """The caps of a key, for `Book.load_key`."""
    caps = []
    for budget in budgets:
        cap = Cap(budget.terms)
        cap.restore(budget.spent_nanos)
        caps.append(cap)
    return caps
