import json
from typing import Any

import pytest

from headwater.admin import grants, keys, organizations
from headwater.admin.administration import Administration, Verb
from headwater.admin.grants import (
    Adjust,
    AdjustmentView,
    ArchiveGrant,
    CreateGrant,
    GrantView,
    ListGrants,
    ShowGrant,
    UpdateGrant,
)
from headwater.admin.organizations import OrganizationView, ShowOrganization
from headwater.errors import OperatorError
from headwater.ledger import store
from headwater.ledger.batch import Batch
from headwater.ledger.rows import Delta, ReservationRow
from headwater.ledger.store import Write
from tests.unit.admin.conftest import Clock, RunningPlatform, changes_count, last_change

UNIT = 10**9
LARGEST = "9223372036.854775807"


def create(administration: Administration, amount: str = "100", **fields: object) -> GrantView:
    wish = CreateGrant("acme", amount, **fields)  # type: ignore[arg-type]
    return administration.perform(grants.CREATE, wish)


def adjust(administration: Administration, amount: str, note: str | None = None) -> AdjustmentView:
    return administration.perform(grants.ADJUST, Adjust("acme", amount, note))


def archive(administration: Administration, grant_id: str) -> GrantView:
    return administration.perform(grants.ARCHIVE, ArchiveGrant(grant_id))


def balances(administration: Administration) -> dict[str, int]:
    """Every balance by the first part of its account, which is acme's; it must be what the entries add up to."""
    rows = administration.read(lambda reader: reader.execute("SELECT account, balance_nanos FROM balances").fetchall())
    summed = administration.read(
        lambda reader: reader.execute("SELECT account, sum(amount_nanos) FROM entries GROUP BY account").fetchall()
    )
    assert {account: nanos for account, nanos in summed if nanos} == {
        account: nanos for account, nanos in rows if nanos
    }
    assert sum(nanos for _, nanos in summed) == 0
    return {account.partition("/")[0]: nanos for account, nanos in rows}


def transfers(administration: Administration) -> list[tuple[str, str, int, int]]:
    """(kind, subject, part, amount) of every transfer."""
    text = "SELECT kind, subject, part, amount_nanos FROM transfers ORDER BY id"
    return administration.read(lambda reader: reader.execute(text).fetchall())


def hold(administration: Administration, grant: GrantView | None, amount_nanos: int) -> ReservationRow:
    """A request that holds this much, of a grant or of nothing, on the disk."""
    key = administration.perform(keys.CREATE, keys.CreateKey("k", organization="acme")).details
    row = ReservationRow(
        id=1,
        request_id="req_1",
        epoch=1,
        organization_id=key.organization_id,
        project_id=key.project_id,
        key_id=key.id,
        model="qwen",
        price_id=None,
        amount_nanos=amount_nanos,
        budgets=None,
        lots=None if grant is None else f'[["{grant.id}",{amount_nanos}]]',
        client_request_id=None,
        dialect="openai_chat",
        service_tier="standard",
        is_stream=True,
        choices_count=1,
        tags=None,
        received_at_ms=1_000_000,
        expires_at_ms=2_000_000,
    )
    batch = Batch()
    batch.reserve(row)
    administration.write([Write(store.INSERT_EPOCH, (1, "here", 0)), *batch.writes()])
    return row


def test_a_grant_is_in_the_books_and_then_in_memory(
    administration: Administration, live: RunningPlatform, acme: OrganizationView
) -> None:
    before = changes_count(administration)
    view = create(administration, "99.95", expires_in_s=90 * 86_400, note="for the pilot")
    assert (view.amount_nanos, view.remaining_nanos, view.held_nanos) == (99_950_000_000, 99_950_000_000, 0)
    assert (view.organization, view.currency, view.note, view.revoked_at_ms) == ("acme", "USD", "for the pilot", None)
    assert view.expires_at_ms == 1_000_000 + 90 * 86_400_000
    assert live.told == [("add_grant", view.id, acme.id, 99_950_000_000, view.expires_at_ms)]
    assert live.changes_seen == [before + 1]
    assert balances(administration) == {"wallet": 99_950_000_000, "grants": -99_950_000_000}
    assert transfers(administration) == [("grant", view.id, 0, 99_950_000_000)]
    [lot] = administration.read(store.read_lots).values()
    assert (lot.grant_id, lot.remaining_nanos, lot.expires_at_ms) == (view.id, 99_950_000_000, view.expires_at_ms)
    noun, object_id, verb, detail = last_change(administration)
    assert (noun, object_id, verb, detail["amount_nanos"]) == ("grant", view.id, "create", 99_950_000_000)
    assert administration.perform(grants.SHOW, ShowGrant(view.id)) == view
    shown = administration.perform(organizations.SHOW, ShowOrganization("acme"))
    assert (shown.wallet_nanos, shown.credit_nanos) == (99_950_000_000, 99_950_000_000)


def test_grants_add_up(administration: Administration, acme: OrganizationView) -> None:
    made = [create(administration, "10"), create(administration, "0.000000001", expires_at_ms=1_500_000)]
    administration.perform(grants.CREATE, CreateGrant("default", "7"))
    assert administration.perform(grants.LIST, ListGrants("acme")) == made
    assert len(administration.perform(grants.LIST, ListGrants())) == 3
    shown = administration.perform(organizations.SHOW, ShowOrganization("acme"))
    assert (shown.wallet_nanos, shown.credit_nanos) == (10 * UNIT + 1, 10 * UNIT + 1)
    assert made[1].state(1_500_000) == "expired"
    assert made[1].state(1_499_999) == "active"


def test_credit_that_has_expired_is_no_credit_though_nobody_has_swept_it_yet(
    administration: Administration, acme: OrganizationView, clock: Clock
) -> None:
    create(administration, "10", expires_in_s=60)
    clock.now += 60
    shown = administration.perform(organizations.SHOW, ShowOrganization("acme"))
    assert (shown.wallet_nanos, shown.credit_nanos) == (10 * UNIT, 0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"amount": "0"}, "gives nothing"),
        ({"amount": "-5"}, "can't be '-5'"),
        ({"amount": "ten"}, "can't be 'ten'"),
        ({"amount": "9223372036.854775808"}, "beyond"),
        ({"expires_in_s": 0.0}, "can't expire"),
        ({"expires_at_ms": 1_000_000}, "can't expire"),
        ({"note": "x" * 1001}, "at most 1000"),
        ({"note": "a\nb"}, "printable"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(
    administration: Administration,
    live: RunningPlatform,
    acme: OrganizationView,
    fields: dict[str, object],
    words: str,
) -> None:
    with pytest.raises(OperatorError, match=words):
        create(administration, **fields)  # type: ignore[arg-type]
    assert balances(administration) == {}
    assert administration.perform(grants.LIST, ListGrants()) == []
    assert live.told == []


def test_credit_goes_to_an_organization_that_can_use_it(administration: Administration, acme: OrganizationView) -> None:
    with pytest.raises(OperatorError, match="no organization 'acne'"):
        administration.perform(grants.CREATE, CreateGrant("acne", "1"))
    administration.perform(organizations.ARCHIVE, organizations.ArchiveOrganization("acme"))
    with pytest.raises(OperatorError, match="is archived"):
        create(administration)


def test_a_balance_beyond_63_bits_is_refused_before_it_is_written(
    administration: Administration, live: RunningPlatform, acme: OrganizationView
) -> None:
    create(administration, LARGEST)
    for amount in ("0.000000001", LARGEST):
        with pytest.raises(OperatorError, match="too much"):
            create(administration, amount)
        with pytest.raises(OperatorError, match="too much"):
            adjust(administration, amount)
    assert len(live.told) == 1
    assert balances(administration)["wallet"] == 2**63 - 1
    assert adjust(administration, f"-{LARGEST}").wallet_nanos == 0
    with pytest.raises(OperatorError, match="too much"):
        adjust(administration, "-0.000000001")  # the adjustments account is full
    assert balances(administration) == {"wallet": 0, "grants": -(2**63 - 1), "adjustments": 2**63 - 1}


def test_what_is_held_counts_against_the_largest_balance(
    administration: Administration, acme: OrganizationView
) -> None:
    adjust(administration, LARGEST)
    hold(administration, None, 5 * UNIT)
    with pytest.raises(OperatorError, match="too much"):
        create(administration, "1")  # it would not fit once the hold comes back
    assert balances(administration)["wallet"] == 2**63 - 1 - 5 * UNIT
    adjust(administration, "-1")
    create(administration, "1")


def test_taking_back_a_grant_moves_what_memory_freed(
    administration: Administration, live: RunningPlatform, acme: OrganizationView, clock: Clock
) -> None:
    view = create(administration)
    before = changes_count(administration)
    live.free_nanos = 60 * UNIT  # the rest is held by requests
    clock.now = 2_000.0
    archived = archive(administration, view.id)
    assert live.told[-1] == ("revoke_grant", acme.id, view.id)
    assert live.changes_seen[-1] == before, "memory decides before anything is written"
    assert (archived.revoked_at_ms, archived.remaining_nanos) == (2_000_000, 40 * UNIT)
    assert archived.state(2_000_000) == "revoked"
    assert transfers(administration)[1:] == [("grant_revoke", view.id, 0, 60 * UNIT)]
    assert balances(administration) == {"wallet": 40 * UNIT, "grants": -40 * UNIT}
    assert last_change(administration) == ("grant", view.id, "archive", {"revoked_nanos": 60 * UNIT})
    told = len(live.told)
    clock.now = 3_000.0
    assert archive(administration, view.id) == archived
    assert len(live.told) == told
    assert administration.perform(organizations.SHOW, ShowOrganization("acme")).credit_nanos == 0


def test_taking_back_a_grant_that_is_spent_or_held_moves_nothing(
    administration: Administration, live: RunningPlatform, acme: OrganizationView
) -> None:
    view = create(administration)
    live.free_nanos = 0
    assert archive(administration, view.id).revoked_at_ms == 1_000_000
    assert len(transfers(administration)) == 1


def test_without_a_running_platform_what_nobody_holds_is_what_the_books_say(
    at_rest: Administration, acme: OrganizationView
) -> None:
    view = create(at_rest)
    other = create(at_rest, "1")
    at_rest.write([Write(store.ADD_TO_LOT, (*Delta((view.id,), 0).key, -30 * UNIT))])  # spent
    hold(at_rest, view, 25 * UNIT)
    assert at_rest.perform(grants.SHOW, ShowGrant(view.id)).held_nanos == 25 * UNIT
    archived = archive(at_rest, view.id)
    assert archived.remaining_nanos == 25 * UNIT
    assert transfers(at_rest)[2:] == [("grant_revoke", view.id, 0, 45 * UNIT)]
    assert at_rest.perform(grants.SHOW, ShowGrant(other.id)) == other


def test_an_expired_grant_can_not_be_taken_back(
    administration: Administration, live: RunningPlatform, acme: OrganizationView, clock: Clock
) -> None:
    view = create(administration, expires_in_s=60)
    clock.now += 60
    with pytest.raises(OperatorError, match="has expired"):
        archive(administration, view.id)
    assert len(live.told) == 1


def test_only_the_note_of_a_grant_can_be_changed(administration: Administration, acme: OrganizationView) -> None:
    view = create(administration, note="a")
    changed = administration.perform(grants.UPDATE, UpdateGrant(view.id, "b"))
    assert changed.note == "b"
    assert (changed.amount_nanos, changed.expires_at_ms) == (view.amount_nanos, view.expires_at_ms)
    assert last_change(administration) == ("grant", view.id, "update", {"note": "b"})
    count = changes_count(administration)
    administration.perform(grants.UPDATE, UpdateGrant(view.id, "b"))
    assert changes_count(administration) == count
    with pytest.raises(OperatorError, match="at most 1000"):
        administration.perform(grants.UPDATE, UpdateGrant(view.id, "x" * 1001))


def test_a_grant_that_is_not_there_is_said_to_be_that(administration: Administration, acme: OrganizationView) -> None:
    made = create(administration)
    verbs: list[tuple[Verb[Any, Any], Any]] = [
        (grants.SHOW, ShowGrant("grt_none")),
        (grants.UPDATE, UpdateGrant("grt_none", "x")),
        (grants.ARCHIVE, ArchiveGrant("grt_none")),
    ]
    for verb, wish in verbs:
        with pytest.raises(OperatorError, match="no grant 'grt_none'") as refused:
            administration.perform(verb, wish)
        assert made.id in refused.value.why


def test_an_adjustment_moves_the_balance_and_no_credit(
    administration: Administration, live: RunningPlatform, acme: OrganizationView
) -> None:
    owed = adjust(administration, "-5", "credit note 7")
    assert (owed.amount_nanos, owed.wallet_nanos, owed.organization) == (-5 * UNIT, -5 * UNIT, "acme")
    back = adjust(administration, "0.5")
    assert back.wallet_nanos == -4_500_000_000
    assert balances(administration) == {"wallet": -4_500_000_000, "adjustments": 4_500_000_000}
    assert transfers(administration) == [("adjust", owed.id, 0, -5 * UNIT), ("adjust", back.id, 0, 500_000_000)]
    assert live.told == []
    assert administration.perform(organizations.SHOW, ShowOrganization("acme")).credit_nanos == 0
    noun, object_id, verb, detail = last_change(administration)
    assert (noun, object_id, verb) == ("adjustment", back.id, "create")
    assert json.dumps(detail)


@pytest.mark.parametrize(
    ("amount", "words"), [("0", "changes nothing"), ("-0", "changes nothing"), ("--5", "can't be"), ("+5", "can't be")]
)
def test_an_adjustment_of_nothing_or_of_no_number_is_refused(
    administration: Administration, acme: OrganizationView, amount: str, words: str
) -> None:
    with pytest.raises(OperatorError, match=words):
        adjust(administration, amount)
    assert balances(administration) == {}
