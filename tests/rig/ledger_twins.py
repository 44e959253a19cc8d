"""Broken builds whose books go wrong: what the rigs about money must catch. `twins.py` runs them."""

import time
from collections.abc import Callable
from typing import Any


def acknowledge_long_before_commit() -> None:
    """Answers end when their settlement is handed over, and it is committed a tenth of a second later."""
    from headwater.ledger.writer import LedgerWriter
    from tests.rig.twins import acknowledge_before_commit

    acknowledge_before_commit()
    commit: Callable[..., None] = LedgerWriter._commit

    def commit_late(self: Any, *arguments: Any) -> None:
        time.sleep(0.1)  # on the writer's thread
        commit(self, *arguments)

    LedgerWriter._commit = commit_late  # type: ignore[method-assign,assignment]


def no_recovery() -> None:
    """A start leaves open what an earlier process left open."""
    from headwater.admin import books
    from headwater.ledger.recovery import Recovered

    def recover(*_arguments: Any, **_named: Any) -> Recovered:
        return Recovered(0, 0, 0)

    books.__dict__["recover"] = recover


def answers_not_kept() -> None:
    """No answer is stored for an idempotency key: whoever asks again is served, and charged, again."""
    from headwater.gateway.idempotency import Ticket

    Ticket.keep = lambda *_arguments: None  # type: ignore[method-assign]


def nothing_is_in_flight() -> None:
    """Nobody remembers under which idempotency keys requests are being served."""
    from headwater.gateway.idempotency import Idempotency

    begin: Callable[..., None] = Idempotency.__init__

    class NoneTaken(dict[Any, Any]):
        def get(self, *_arguments: Any) -> None:
            return None

        def __delitem__(self, key: Any) -> None:
            self.pop(key, None)

    def forgetful(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        self._in_flight = NoneTaken()

    Idempotency.__init__ = forgetful  # type: ignore[method-assign]


def project_unchecked() -> None:
    """Nobody asks what the caps of projects still allow."""
    from headwater.ledger.book import Book
    from headwater.ledger.caps import counters_json

    counters: Callable[..., Any] = Book._counters

    def without_project(self: Any, *arguments: Any) -> Any:
        found, _, wallet = counters(self, *arguments)
        others = [one for one in found if one.terms.scope != "project"]
        return others, counters_json(others), wallet

    Book._counters = without_project  # type: ignore[method-assign,assignment]


def check_then_act() -> None:
    """What may be spent is looked at, and taken as much later as a store takes to answer: in between others look too."""
    import asyncio

    from headwater.gateway import cashier
    from headwater.ledger.wallet import Wallet

    hold: Callable[..., Any] = cashier.Cashier._hold
    is_blind = False

    async def look_then_hold(self: Any, request: Any, target: Any, sized: Any, price: Any, now_ms: int) -> Any:
        nonlocal is_blind
        await self._load_key(request.principal.key_id)
        affordable = self.book.affordable_nanos(**cashier._scopes(request), now_ms=now_ms)
        if affordable is not None and affordable < cashier._worst_case(request, sized, price):
            return await hold(self, request, target, sized, price, now_ms)
        await asyncio.sleep(0.005)
        counters = self.book.counters(**cashier._scopes(request), now_ms=now_ms)
        is_blind = True
        for counter in counters:
            counter.left_nanos += 2**62
        try:
            return await hold(self, request, target, sized, price, now_ms)
        finally:
            is_blind = False
            for counter in counters:
                counter.left_nanos -= 2**62

    credit: Callable[..., int] = Wallet.available_nanos
    Wallet.available_nanos = lambda self, now_ms: 2**62 if is_blind else credit(self, now_ms)  # type: ignore[method-assign]
    cashier.Cashier._hold = look_then_hold  # type: ignore[method-assign]


def leavers_pay_nothing() -> None:
    """Whoever leaves before the end isn't charged for what was made until then."""
    from headwater.gateway import life

    cost: Callable[..., int | None] = life.__dict__["request_cost_nanos"]

    def cost_of_those_who_stayed(*arguments: Any, **named: Any) -> int | None:
        found = cost(*arguments, **named)
        return 0 if found is not None and named["outcome"] == "client_gone" else found

    life.__dict__["request_cost_nanos"] = cost_of_those_who_stayed


def nobody_watches() -> None:
    """A client that leaves isn't noticed."""
    from headwater.gateway import life

    life.Life._left = lambda self: None  # type: ignore[method-assign]  # noqa: ARG005


def impatient_holds() -> None:
    """Not broken, but hasty: a hold expires a second after it is made, so that settlements come late."""
    from headwater.gateway import cashier

    cashier.__dict__["EXPIRY_GRACE_S"] = 1.0 - 600.0  # the time-out of a whole request is added to it
    cashier.__dict__["SWEEP_S"] = 0.05


TWINS: dict[str, Callable[[], None]] = {
    "acknowledge_long_before_commit": acknowledge_long_before_commit,
    "no_recovery": no_recovery,
    "answers_not_kept": answers_not_kept,
    "nothing_is_in_flight": nothing_is_in_flight,
    "impatient_holds": impatient_holds,
    "project_unchecked": project_unchecked,
    "check_then_act": check_then_act,
    "leavers_pay_nothing": leavers_pay_nothing,
    "nobody_watches": nobody_watches,
}
