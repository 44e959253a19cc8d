"""Limits and weights as an operator handles them."""

from typing import Any

import msgspec
import pytest

from headwater.admin import keys, limits, organizations, projects
from headwater.admin.administration import Administration
from headwater.admin.limits import LimitView, Numbers
from headwater.errors import OperatorError
from headwater.ledger.limit_store import read_key_weights, read_limits, read_organization_weights
from tests.unit.admin.conftest import RunningPlatform, changes_count, last_change

PER_MINUTE = Numbers(tokens_per_minute=100, requests_per_minute=6)


def create(administration: Administration, numbers: Numbers = PER_MINUTE, **wish: Any) -> LimitView:
    return administration.perform(limits.CREATE, limits.CreateLimit(numbers, **wish))


@pytest.fixture
def key(at_rest: Administration) -> keys.KeyView:
    return at_rest.perform(keys.CREATE, keys.CreateKey("laptop")).details


def test_each_scope_can_be_limited_by_name_or_id(
    administration: Administration,
    live: RunningPlatform,
    acme: organizations.OrganizationView,
    search: projects.ProjectView,
    key: keys.KeyView,
) -> None:
    of_key = create(administration, key="laptop", model="qwen")
    assert (of_key.scope, of_key.scope_id, of_key.model, of_key.scope_name) == ("key", key.id, "qwen", "laptop")
    assert (of_key.tokens_per_minute, of_key.requests_per_minute, of_key.tokens_per_day) == (100, 6, None)
    of_project = create(administration, project=search.id)
    assert (of_project.scope, of_project.organization) == ("project", "acme")
    of_owner = create(administration, organization="acme", model="qwen")
    assert (of_owner.scope_id, of_owner.model) == (acme.id, "qwen")
    of_model = create(administration, model="qwen")
    assert (of_model.scope, of_model.scope_id, of_model.model, of_model.organization) == ("model", "qwen", None, None)
    rows = administration.read(read_limits)
    assert [told for name, told, *_ in live.told if name == "set_limit"] == rows
    assert [view.id for view in administration.perform(limits.LIST, limits.ListLimits("acme"))] == [
        of_project.id,
        of_owner.id,
    ]
    assert last_change(administration)[:3] == ("limit", of_model.id, "create")


@pytest.mark.parametrize(
    ("wish", "what"),
    [
        ({}, "isn't said"),
        ({"model": "qwem"}, "Did you mean"),
        ({"key": "laptop", "project": "search"}, "one thing's"),
        ({"key": "laptop", "numbers": Numbers()}, "limit nothing"),
        ({"key": "laptop", "numbers": Numbers(tokens_per_day=0)}, "--tokens-per-day is a whole number"),
        ({"key": "laptop", "numbers": Numbers(concurrency_max=10**16)}, "--concurrency-max is a whole number"),
        ({"key": "nobody"}, "no key"),
    ],
)
def test_what_can_not_be_a_limit_is_refused(
    administration: Administration, key: keys.KeyView, wish: dict[str, Any], what: str
) -> None:
    before = changes_count(administration)
    with pytest.raises(OperatorError, match=what):
        create(administration, **wish)
    assert changes_count(administration) == before


def test_an_update_changes_what_is_given_and_lifts_what_is_none(
    administration: Administration, live: RunningPlatform, key: keys.KeyView
) -> None:
    made = create(administration, key=key.id)
    wish = limits.UpdateLimit(made.id, Numbers(tokens_per_minute=None, requests_per_day=9))
    changed = administration.perform(limits.UPDATE, wish)
    assert (changed.tokens_per_minute, changed.requests_per_minute, changed.requests_per_day) == (None, 6, 9)
    assert live.told[-1][0] == "set_limit"
    assert last_change(administration)[3] == {"tokens_per_minute": None, "requests_per_day": 9}
    count = changes_count(administration)
    administration.perform(limits.UPDATE, wish)
    assert changes_count(administration) == count
    with pytest.raises(OperatorError, match="limit nothing"):
        administration.perform(
            limits.UPDATE, limits.UpdateLimit(made.id, Numbers(requests_per_minute=None, requests_per_day=None))
        )


def test_an_archived_limit_is_lifted_once_and_can_not_be_changed(
    administration: Administration, live: RunningPlatform, key: keys.KeyView
) -> None:
    made = create(administration, key=key.id)
    archived = administration.perform(limits.ARCHIVE, limits.ArchiveLimit(made.id))
    assert archived.archived_at_ms is not None
    assert live.told[-1][0] == "drop_limit"
    told = len(live.told)
    assert administration.perform(limits.ARCHIVE, limits.ArchiveLimit(made.id)) == archived
    assert len(live.told) == told
    assert administration.perform(limits.LIST, limits.ListLimits()) == []
    assert administration.perform(limits.LIST, limits.ListLimits(with_archived=True)) == [archived]
    with pytest.raises(OperatorError, match="archived"):
        administration.perform(limits.UPDATE, limits.UpdateLimit(made.id, PER_MINUTE))
    with pytest.raises(OperatorError, match="no limit 'lim_x'"):
        administration.perform(limits.SHOW, limits.ShowLimit("lim_x"))


def test_a_revoked_key_can_not_be_limited(administration: Administration, key: keys.KeyView) -> None:
    administration.perform(keys.REVOKE, keys.RevokeKey(key.id))
    with pytest.raises(OperatorError, match="is revoked"):
        create(administration, key=key.id)


def test_a_wish_travels_as_json_with_what_is_not_set_left_out() -> None:
    wish = limits.UpdateLimit("lim_1", Numbers(tokens_per_minute=None, requests_per_day=9))
    assert msgspec.json.decode(msgspec.json.encode(wish), type=limits.UpdateLimit) == wish


def test_weights_are_given_and_changed_and_the_running_platform_is_told(
    administration: Administration, live: RunningPlatform
) -> None:
    owner = administration.perform(organizations.CREATE, organizations.CreateOrganization("acme", weight=4))
    key = administration.perform(keys.CREATE, keys.CreateKey("laptop", weight=3)).details
    assert (owner.weight, key.weight) == (4, 3)
    assert administration.read(read_organization_weights) == {owner.id: 4}
    assert administration.read(read_key_weights) == {key.id: 3}
    changed = administration.perform(organizations.UPDATE, organizations.UpdateOrganization("acme", weight=1))
    assert changed.weight == 1
    assert administration.perform(keys.UPDATE, keys.UpdateKey(key.id, weight=1000)).weight == 1000
    told = [note for note in live.told if note[0].startswith("weigh_")]
    assert told == [
        ("weigh_organization", owner.id, 4),
        ("weigh_key", key.id, 3),
        ("weigh_organization", owner.id, 1),
        ("weigh_key", key.id, 1000),
    ]
    assert last_change(administration)[3] == {"weight": 1000}


@pytest.mark.parametrize("weight", [0, -1, 1001])
def test_a_weight_is_one_to_a_thousand(administration: Administration, weight: int) -> None:
    with pytest.raises(OperatorError, match="weight is a whole number of 1 to 1000"):
        administration.perform(keys.CREATE, keys.CreateKey("k", weight=weight))
    with pytest.raises(OperatorError, match="weight is a whole number of 1 to 1000"):
        administration.perform(organizations.UPDATE, organizations.UpdateOrganization("default", weight=weight))
