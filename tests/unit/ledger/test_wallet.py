import pytest

from headwater.ledger.wallet import Lot, Wallet, lapse


def lot(grant_id: str, nanos: int, expires_at_ms: int | None = None) -> Lot:
    return Lot(grant_id, "org_1", nanos, expires_at_ms)


def wallet(*lots: Lot) -> Wallet:
    one = Wallet("org_1", is_prepaid=True)
    for each in lots:
        one.add(each)
    return one


def taken(one: Wallet, amount_nanos: int, now_ms: int = 0) -> list[tuple[str, int]]:
    return [(each.grant_id, nanos) for each, nanos in one.take(amount_nanos, now_ms)]


def test_the_soonest_expiring_credit_is_used_first_and_what_never_expires_last() -> None:
    one = wallet(lot("a", 10), lot("b", 10, 900), lot("c", 10, 500), lot("d", 10, 900))
    assert taken(one, 35) == [("c", 10), ("b", 10), ("d", 10), ("a", 5)]


def test_as_much_is_taken_as_there_is() -> None:
    one = wallet(lot("a", 10))
    assert taken(one, 25) == [("a", 10)]
    assert taken(one, 25) == []
    assert one.available_nanos(0) == 0


def test_nothing_is_taken_for_an_amount_of_zero() -> None:
    one = wallet(lot("a", 10))
    assert taken(one, 0) == []
    assert one.available_nanos(0) == 10


def test_what_is_taken_is_held_not_gone() -> None:
    grant = lot("a", 10)
    wallet(grant).take(4, 0)
    assert (grant.free_nanos, grant.held_nanos) == (6, 4)


@pytest.mark.parametrize(("now_ms", "is_over"), [(499, False), (500, True), (501, True)])
def test_credit_is_over_from_the_moment_it_expires(now_ms: int, is_over: bool) -> None:
    one = wallet(lot("a", 10, 500))
    assert one.lots[0].is_over(now_ms) == is_over
    assert one.available_nanos(now_ms) == (0 if is_over else 10)
    assert taken(one, 10, now_ms) == ([] if is_over else [("a", 10)])


@pytest.mark.parametrize("now_ms", [0, 500, 900])
@pytest.mark.parametrize("lots", [(), (10,), (10, 5), (0, 10, 5)])
def test_credit_covers_what_is_available_and_no_more(lots: tuple[int, ...], now_ms: int) -> None:
    terms_ms = (None, 500, 900)
    one = wallet(*(lot(f"grant_{number}", nanos, terms_ms[number]) for number, nanos in enumerate(lots)))
    available = one.available_nanos(now_ms)
    assert [one.covers(nanos, now_ms) for nanos in (0, available, available + 1)] == [True, True, False]


def test_revoked_credit_is_over_at_once() -> None:
    one = wallet(lot("a", 10), lot("b", 10))
    assert one.lots[0].end(is_revoked=True) == 10
    assert one.lots[0].is_revoked
    assert one.available_nanos(0) == 10
    assert taken(one, 20) == [("b", 10)]


def test_credit_that_has_lapsed_stays_over_when_the_clock_is_put_back() -> None:
    one = wallet(lot("a", 10, 500))
    one.lots[0].end(is_revoked=False)
    assert not one.lots[0].is_revoked
    assert one.lots[0].is_over(0)


def test_a_lot_leaves_the_wallet_once_nothing_is_left_of_it_and_nothing_can_come_back() -> None:
    grant = lot("a", 10)
    one = wallet(grant)
    one.forget_if_empty(grant)
    one.take(10, 0)
    one.forget_if_empty(grant)
    assert one.lots == [grant]
    grant.held_nanos = 0
    one.forget_if_empty(grant)
    one.forget_if_empty(grant)  # twice is once
    assert one.lots == []


def test_a_lapse_says_why_and_whose_release_it_was() -> None:
    grant = lot("gnt_1", 10, 500)
    assert lapse(grant, 7, 0, 600)[:6] == ("grant_expire", "gnt_1", 0, "org_1", None, 7)
    grant.is_revoked = True
    assert lapse(grant, 3, 12, 600)[:6] == ("grant_revoke", "gnt_1", 12, "org_1", None, 3)
