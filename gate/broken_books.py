"""Books that break one rule each. A simulation that can't tell them from the real one proves nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gate.simulated_run import Parts
from headwater.ledger.book import Book, Hold, Settled
from headwater.ledger.caps import Cap, Counter
from headwater.ledger.periods import MS_MAX, BudgetTerms
from headwater.ledger.rows import Delta, TransferRow
from headwater.ledger.wallet import Wallet
from headwater.money import NANOS_MAX


@contextmanager
def _without_limit(counters: Sequence[Counter]) -> Iterator[None]:
    for counter in counters:
        counter.left_nanos += NANOS_MAX
    try:
        yield
    finally:
        for counter in counters:
            counter.left_nanos -= NANOS_MAX


class ChecksTheFirstScopeOnly(Book):
    """Asks the organization's cap, and takes the others along unasked."""

    def reserve(self, **caller: Any) -> Hold:
        """Reserve as if only the first cap had a limit."""
        asked = {name: value for name, value in caller.items() if name != "amount_nanos"}
        with _without_limit(self.counters(**asked)[1:]):
            return super().reserve(**caller)


class HoldsNothing(Book):
    """Looks whether there is enough, and takes it when it is spent: read, then write."""

    def reserve(self, **caller: Any) -> Hold:
        """Reserve without holding."""
        hold = super().reserve(**caller)
        for counter in hold.counters:
            counter.held_nanos -= hold.amount_nanos
            counter.left_nanos += hold.amount_nanos
        return hold

    def _end(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        for counter in hold.counters:
            counter.held_nanos += hold.amount_nanos
            counter.left_nanos -= hold.amount_nanos
        return super()._end(hold, cost_nanos, now_ms)


class SpendsTwice(Book):
    """Counts a charge in each cap once more."""

    def settle(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        """Settle, with every cap named twice."""
        settled = super().settle(hold, cost_nanos, now_ms)
        return settled._replace(budgets=settled.budgets * 2)


class SettlesAgain(Book):
    """Takes a second settlement of a hold as a late one."""

    def settle(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        """Settle, and once more, as if the first had been forgotten."""
        first = super().settle(hold, cost_nanos, now_ms)
        hold.is_settled = False
        for counter in hold.counters:
            counter.unsettled_count += 1
        second = super().settle(hold, cost_nanos, now_ms)
        return first._replace(lots=first.lots + second.lots, budgets=first.budgets + second.budgets)


class ForgetsAtMidnight(Book):
    """Has one counter for each cap, and starts it anew with each period."""

    def _counters(self, *caller: Any) -> tuple[list[Counter], str | None, Wallet]:
        for caps in (*self._caps.values(), *self._keys.values()):
            for cap in caps:
                if cap._current is not None and not cap._current.period.holds(caller[-1]):
                    cap._counters.clear()
                    cap._restored.clear()
                    cap._current = None
                    self._stacks.clear()
        return super()._counters(*caller)


class SettlesIntoToday(Book):
    """Counts a charge in the period in which the request ended, not in the one in which it was admitted."""

    def settle(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        """Settle, with the periods of now."""
        settled = super().settle(hold, cost_nanos, now_ms)
        caps = [cap for found in (*self._caps.values(), *self._keys.values()) for cap in found]
        today = {cap.terms.id: cap.counter(now_ms).period.key for cap in caps}
        moved = tuple(Delta((key[0], today.get(key[0], key[1])), nanos) for key, nanos in settled.budgets)
        return settled._replace(budgets=moved)


class GivesBackExpiredCredit(Book):
    """Puts what a hold didn't need back into its grant, whether that is still in force or not."""

    def _spend_lots(
        self, hold: Hold, charge_nanos: int, now_ms: int
    ) -> tuple[tuple[Delta, ...], tuple[TransferRow, ...]]:
        kept = [(lot, lot.usable_until_ms) for lot, _ in hold.lots]
        for lot, _ in hold.lots:
            lot.usable_until_ms = MS_MAX
        try:
            return super()._spend_lots(hold, charge_nanos, now_ms)
        finally:
            for lot, usable_until_ms in kept:
                lot.usable_until_ms = usable_until_ms


class LapsesHeldCredit(Book):
    """Lets credit lapse that a hold was promised."""

    def expire_lots(self, now_ms: int) -> list[TransferRow]:
        """Let everything of an expired grant lapse, what is held too."""
        for _, _, lot in self._expiring:
            if lot.is_over(now_ms):
                lot.free_nanos += lot.held_nanos
        return super().expire_lots(now_ms)


class ChargesBeyondTheHold(Book):
    """Charges what a request cost, though less was reserved."""

    def settle(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        """Settle without absorbing."""
        settled = super().settle(hold, cost_nanos, now_ms)
        more = settled.absorbed_nanos if not settled.is_late else 0
        budgets = tuple(Delta(key, nanos + more) for key, nanos in settled.budgets)
        return settled._replace(charge_nanos=settled.charge_nanos + more, absorbed_nanos=0, budgets=budgets)


class PostsLateUnasked(Book):
    """Posts a late settlement without asking the caps whether there is still enough."""

    def _settle_late(self, hold: Hold, cost_nanos: int, now_ms: int) -> Settled:
        with _without_limit(hold.counters):
            return super()._settle_late(hold, cost_nanos, now_ms)


class ForgetsBusyKeys(Book):
    """Lets the caps of a key leave memory while requests under them are under way."""

    def _forget_keys(self, now_ms: int) -> None:  # noqa: ARG002
        while len(self._keys) > self._keys_count_max:
            key_id, _ = self._keys.popitem(last=False)
            del self._key_used_ms[key_id]


class ReloadsKeys(Book):
    """Takes what the disk says of a key though memory is ahead of it."""

    def load_key(self, key_id: str, caps: Sequence[Cap], now_ms: int) -> None:
        """Load, in any case."""
        self._keys.pop(key_id, None)
        super().load_key(key_id, caps, now_ms)


class StartsFromNothing(Book):
    """Doesn't know after a restart what was spent before it."""

    def set_budget(self, terms: BudgetTerms, *, restored: Any = None) -> None:  # noqa: ARG002
        """Set a budget without its past."""
        super().set_budget(terms)


BROKEN_BOOKS: tuple[type[Book], ...] = (
    ChecksTheFirstScopeOnly,
    HoldsNothing,
    SpendsTwice,
    SettlesAgain,
    ForgetsAtMidnight,
    SettlesIntoToday,
    GivesBackExpiredCredit,
    LapsesHeldCredit,
    ChargesBeyondTheHold,
    PostsLateUnasked,
    ForgetsBusyKeys,
    ReloadsKeys,
    StartsFromNothing,
)


def _named(book: type[Book]) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in book.__name__)[1:]


def _parts(book: type[Book]) -> Parts:
    return Parts(make_book=lambda next_id, keys_count_max: book(next_id=next_id, keys_count_max=keys_count_max))


TWINS: dict[str, Parts] = {
    **{_named(book): _parts(book) for book in BROKEN_BOOKS},
    "acknowledges_before_commit": Parts(acknowledges_early=True),
}
"""By name, what replaces a part of the simulated platform."""
STORE_TWINS = ("acknowledges_before_commit",)
"""Those that are tried over the real store too, whose book is always the product's."""
