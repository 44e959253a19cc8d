import json
import math

import pytest

from headwater.admin import keys, projects
from headwater.admin.administration import Administration
from headwater.admin.keys import CreatedKeyView, CreateKey, KeyView, ListKeys, RevokeKey, ShowKey, UpdateKey
from headwater.admin.organizations import OrganizationView
from headwater.admin.projects import ProjectView
from headwater.errors import OperatorError
from headwater.keys import hash_key, is_well_formed
from headwater.ledger.rows import KeyRow
from headwater.ledger.store import read_keys
from tests.unit.admin.conftest import Clock, RunningPlatform, changes_count, last_change


def create(administration: Administration, name: str = "x", **fields: object) -> CreatedKeyView:
    return administration.perform(keys.CREATE, CreateKey(name, **fields))  # type: ignore[arg-type]


def update(administration: Administration, key: str, **fields: object) -> KeyView:
    return administration.perform(keys.UPDATE, UpdateKey(key, **fields))  # type: ignore[arg-type]


def stored(administration: Administration) -> list[KeyRow]:
    return administration.read(read_keys)


def test_a_new_key_works_and_only_its_hash_is_kept(administration: Administration) -> None:
    made = create(administration, "laptop", allowed_models=["qwen", "acme/large"], expires_in_s=60)
    assert is_well_formed(made.key)
    [row] = stored(administration)
    assert row.id == made.details.id
    assert row.hash == hash_key(made.key)
    assert made.key not in repr(row)
    assert json.loads(row.allowed_models or "") == ["acme/large", "qwen"]
    assert (row.created_at_ms, row.expires_at_ms, row.revoked_at_ms) == (1_000_000, 1_060_000, None)
    noun, object_id, verb, detail = last_change(administration)
    assert (noun, object_id, verb) == ("key", row.id, "create")
    assert detail["expires_at_ms"] == 1_060_000
    assert made.key not in json.dumps(detail)
    assert row.hash.hex() not in json.dumps(detail)


def test_a_key_without_limits_has_none(administration: Administration) -> None:
    view = create(administration).details
    assert view.allowed_models is None
    assert view.expires_at_ms is None
    assert (view.organization, view.project) == ("default", "default")


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "a\x1b[0m", "\ud800"])
def test_a_name_must_be_printable_and_short(administration: Administration, name: str) -> None:
    with pytest.raises(OperatorError, match="1 to 100 printable characters"):
        create(administration, name)
    assert stored(administration) == []


@pytest.mark.parametrize("expires_in_s", [0, -1, math.nan, math.inf, -math.inf, 1e18, 1e300])
def test_an_impossible_end_is_refused_and_never_reaches_the_ledger(
    administration: Administration, expires_in_s: float
) -> None:
    with pytest.raises(OperatorError, match="can't expire"):
        create(administration, expires_in_s=expires_in_s)
    create(administration, "y", expires_in_s=100 * 365 * 86_400)  # the ledger lives on


@pytest.mark.parametrize("expires_at_ms", [0, 999_999, 1_000_000, -(10**18), 10**18])
def test_an_end_in_the_past_or_out_of_sight_is_refused(administration: Administration, expires_at_ms: int) -> None:
    with pytest.raises(OperatorError, match="can't expire at"):
        create(administration, expires_at_ms=expires_at_ms)
    assert create(administration, expires_at_ms=1_000_001).details.expires_at_ms == 1_000_001


def test_a_key_can_only_be_limited_to_what_can_be_called(administration: Administration) -> None:
    with pytest.raises(OperatorError, match="no model 'gpt'") as refused:
        create(administration, allowed_models=["qwen", "gpt"])
    assert "qwen, acme/large" in refused.value.why


def test_a_key_goes_to_the_project_that_is_named(
    administration: Administration, acme: OrganizationView, search: ProjectView
) -> None:
    by_name, by_id = create(administration, project="search"), create(administration, project=search.id)
    by_organization = create(administration, organization="acme")
    for made in (by_name, by_id):
        assert (made.details.project_id, made.details.organization_id) == (search.id, acme.id)
    assert (by_organization.details.organization, by_organization.details.project) == ("acme", "default")


def test_a_project_that_is_not_there_is_refused_with_those_that_are(
    administration: Administration, search: ProjectView
) -> None:
    with pytest.raises(OperatorError, match="no project 'serch'") as refused:
        create(administration, project="serch")
    assert "search (of acme)" in refused.value.why
    with pytest.raises(OperatorError, match="no project 'search' in organization 'default'"):
        create(administration, project="search", organization="default")
    with pytest.raises(OperatorError, match="no organization 'acne'") as refused:
        create(administration, organization="acne")
    assert "default, acme" in refused.value.why


def test_a_name_that_several_projects_have_needs_its_organization(
    administration: Administration, acme: OrganizationView
) -> None:
    with pytest.raises(OperatorError, match="2 projects 'default'") as refused:
        create(administration, project="default")
    assert "'acme'" in refused.value.why
    assert "--organization" in refused.value.now
    assert create(administration, project="default", organization="acme").details.organization_id == acme.id


def test_an_archived_project_takes_no_key(administration: Administration, search: ProjectView) -> None:
    administration.perform(projects.ARCHIVE, projects.ArchiveProject("search"))
    with pytest.raises(OperatorError, match="is archived"):
        create(administration, project="search")


def test_keys_are_listed_by_project_and_organization(administration: Administration, search: ProjectView) -> None:
    everywhere = create(administration).details
    own = create(administration, project="search").details
    default = create(administration, organization="acme").details

    def listed(**fields: str) -> list[KeyView]:
        return administration.perform(keys.LIST, ListKeys(**fields))

    assert listed() == [everywhere, own, default]
    assert listed(project="search") == [own]
    assert listed(organization="acme") == [own, default]


def test_a_revoked_key_stays_in_the_list_with_its_first_time(
    administration: Administration, clock: Clock, live: RunningPlatform
) -> None:
    first = create(administration, "a")
    clock.now = 2_000.0
    second = create(administration, "b")
    assert administration.perform(keys.REVOKE, RevokeKey(first.details.id)).revoked_at_ms == 2_000_000
    assert live.told == [("forget_key", hash_key(first.key))]
    assert live.changes_seen == [3], "the revocation is on the disk before anybody is told"
    clock.now = 3_000.0
    assert administration.perform(keys.REVOKE, RevokeKey(first.details.id)).revoked_at_ms == 2_000_000
    assert changes_count(administration) == 3
    times = {row.id: row.revoked_at_ms for row in stored(administration)}
    assert times == {first.details.id: 2_000_000, second.details.id: None}


def test_revoking_a_key_that_is_not_there_says_how_to_find_one(administration: Administration) -> None:
    create(administration, "laptop")
    with pytest.raises(OperatorError, match="no key 'key_none'") as refused:
        administration.perform(keys.REVOKE, RevokeKey("key_none"))
    assert "laptop" in refused.value.why
    assert "keys list" in refused.value.now


def test_a_name_that_several_keys_have_is_refused_unless_one_is_left(administration: Administration) -> None:
    first, second = create(administration, "ci").details, create(administration, "ci").details
    with pytest.raises(OperatorError, match="2 keys 'ci'") as refused:
        administration.perform(keys.REVOKE, RevokeKey("ci"))
    assert first.id in refused.value.why
    assert second.id in refused.value.why
    administration.perform(keys.REVOKE, RevokeKey(first.id))
    assert administration.perform(keys.SHOW, ShowKey("ci")) == second


def test_what_people_see_of_a_key_has_its_state_and_not_its_hash(administration: Administration) -> None:
    made = create(administration, "x", allowed_models=["qwen"], expires_in_s=1)
    view = administration.perform(keys.SHOW, ShowKey("x"))
    assert view == made.details
    assert view.hint == made.key[:8] + "…"
    assert view.allowed_models == ["qwen"]
    assert [view.state(now_ms) for now_ms in (1_000_000, 1_000_999, 1_001_000)] == ["active", "active", "expired"]
    assert administration.perform(keys.REVOKE, RevokeKey("x")).state(1_001_000) == "revoked"
    assert not hasattr(view, "hash")


def test_a_changed_key_is_forgotten_after_the_change_is_stored(
    administration: Administration, live: RunningPlatform
) -> None:
    made = create(administration, "x", allowed_models=["qwen"], expires_in_s=60)
    key_id = made.details.id
    assert update(administration, "x", name="y").name == "y"
    assert update(administration, key_id, allowed_models=["acme/large"]).allowed_models == ["acme/large"]
    assert update(administration, key_id, allowed_models=None).allowed_models is None
    assert update(administration, key_id, expires_in_s=10).expires_at_ms == 1_010_000
    view = update(administration, key_id, expires_at_ms=None)
    assert (view.name, view.allowed_models, view.expires_at_ms) == ("y", None, None)
    assert administration.perform(keys.SHOW, ShowKey(key_id)) == view
    assert live.told == [("forget_key", hash_key(made.key))] * 5
    assert live.changes_seen == [2, 3, 4, 5, 6]
    assert last_change(administration) == ("key", key_id, "update", {"expires_at_ms": None})


def test_a_change_that_changes_nothing_leaves_no_trace(administration: Administration, live: RunningPlatform) -> None:
    create(administration, "x")
    update(administration, "x", name="x")
    assert live.told == []
    assert changes_count(administration) == 1


def test_a_key_can_not_be_changed_to_what_can_not_be(administration: Administration) -> None:
    before = create(administration, "x").details
    with pytest.raises(OperatorError, match="no model 'gpt'"):
        update(administration, "x", allowed_models=["gpt"])
    with pytest.raises(OperatorError, match="printable"):
        update(administration, "x", name="")
    with pytest.raises(OperatorError, match="can't expire"):
        update(administration, "x", expires_in_s=-1)
    assert administration.perform(keys.SHOW, ShowKey("x")) == before
    administration.perform(keys.REVOKE, RevokeKey("x"))
    with pytest.raises(OperatorError, match="is revoked"):
        update(administration, "x", name="y")
