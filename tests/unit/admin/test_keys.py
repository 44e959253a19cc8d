import json
import math

import pytest

from headwater.admin.keys import KeyAdmin
from headwater.admin.wire import key_view
from headwater.errors import OperatorError
from headwater.keys import hash_key, is_well_formed
from tests.unit.admin.conftest import Clock


def test_a_new_key_works_and_only_its_hash_is_kept(keys: KeyAdmin) -> None:
    made = keys.create("laptop", allowed_models=["qwen", "acme/large"], expires_in_s=60)
    assert is_well_formed(made.secret)
    [row] = keys.list()
    assert row == made.row
    assert row.hash == hash_key(made.secret)
    assert made.secret not in repr(row)
    assert json.loads(row.allowed_models or "") == ["acme/large", "qwen"]
    assert (row.created_at_ms, row.expires_at_ms, row.revoked_at_ms) == (1_000_000, 1_060_000, None)


def test_a_key_without_limits_has_none(keys: KeyAdmin) -> None:
    row = keys.create("x", allowed_models=None, expires_in_s=None).row
    assert row.allowed_models is None
    assert row.expires_at_ms is None


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "a\x1b[0m", "\ud800"])
def test_a_name_must_be_printable_and_short(keys: KeyAdmin, name: str) -> None:
    with pytest.raises(OperatorError, match="1 to 100 printable characters"):
        keys.create(name, allowed_models=None, expires_in_s=None)
    assert keys.list() == []


@pytest.mark.parametrize("expires_in_s", [0, -1, math.nan, math.inf, -math.inf, 1e18, 1e300])
def test_an_impossible_end_is_refused_and_never_reaches_the_ledger(keys: KeyAdmin, expires_in_s: float) -> None:
    with pytest.raises(OperatorError, match="can't expire"):
        keys.create("x", allowed_models=None, expires_in_s=expires_in_s)
    keys.create("y", allowed_models=None, expires_in_s=100 * 365 * 86_400)  # the ledger lives on


def test_a_key_can_only_be_limited_to_what_can_be_called(keys: KeyAdmin) -> None:
    with pytest.raises(OperatorError, match="no model 'gpt'") as refused:
        keys.create("x", allowed_models=["qwen", "gpt"], expires_in_s=None)
    assert "qwen, acme/large" in refused.value.why


def test_a_revoked_key_stays_in_the_list_with_its_first_time(keys: KeyAdmin, clock: Clock) -> None:
    first = keys.create("a", allowed_models=None, expires_in_s=None).row
    clock.now = 2_000.0
    second = keys.create("b", allowed_models=None, expires_in_s=None).row
    assert keys.revoke(first.id).revoked_at_ms == 2_000_000
    clock.now = 3_000.0
    assert keys.revoke(first.id).revoked_at_ms == 2_000_000
    assert {row.id: row.revoked_at_ms for row in keys.list()} == {first.id: 2_000_000, second.id: None}


def test_revoking_a_key_that_is_not_there_says_how_to_find_one(keys: KeyAdmin) -> None:
    with pytest.raises(OperatorError, match="no key 'key_none'") as refused:
        keys.revoke("key_none")
    assert "keys list" in refused.value.now


def test_what_people_see_of_a_key_has_its_state_and_not_its_hash(keys: KeyAdmin) -> None:
    made = keys.create("x", allowed_models=["qwen"], expires_in_s=1)
    view = key_view(made.row)
    assert view.hint == made.secret[:8] + "…"
    assert view.allowed_models == ["qwen"]
    assert [view.state(now_ms) for now_ms in (1_000_000, 1_000_999, 1_001_000)] == ["active", "active", "expired"]
    assert key_view(keys.revoke(made.row.id)).state(1_001_000) == "revoked"
    assert not hasattr(view, "hash")
