import pytest

from headwater.errors import ModelNotFound, PermissionDenied
from headwater.gateway.routing import ModelDirectory, route_target
from headwater.request import Principal
from tests.unit.gateway.chats import target


def principal(*allowed: str) -> Principal:
    return Principal(
        organization_id="org_1", project_id="prj_1", key_id="key_1", allowed_models=frozenset(allowed) or None
    )


@pytest.fixture
async def models() -> ModelDirectory:
    return ModelDirectory({name: target(name) for name in ("qwen", "acme/large", "acme/small")})


def test_a_name_resolves_to_its_target(models: ModelDirectory) -> None:
    assert models.resolve("acme/large", principal()).name == "acme/large"
    assert models.resolve("qwen", principal("qwen")).name == "qwen"


@pytest.mark.parametrize("name", ["Qwen", "large", "acme", "qwen ", "", "x" * 100_000])
def test_a_name_that_is_not_here_is_not_found(models: ModelDirectory, name: str) -> None:
    with pytest.raises(ModelNotFound) as refused:
        models.resolve(name, principal())
    assert refused.value.param == "model"
    assert len(refused.value.message) < 400


def test_a_key_is_for_its_models_only(models: ModelDirectory) -> None:
    with pytest.raises(PermissionDenied) as refused:
        models.resolve("acme/large", principal("qwen"))
    assert refused.value.param == "model"
    with pytest.raises(ModelNotFound):  # a name that isn't here is that first
        models.resolve("none", principal("qwen"))


def test_a_caller_sees_what_it_can_call_by_name(models: ModelDirectory) -> None:
    assert [one.name for one in models.visible(principal())] == ["acme/large", "acme/small", "qwen"]
    assert [one.name for one in models.visible(principal("qwen", "gone"))] == ["qwen"]
    assert len(models.all()) == 3


def test_a_key_for_no_model_sees_none(models: ModelDirectory) -> None:
    nobody = Principal(organization_id="o", project_id="p", key_id="k", allowed_models=frozenset())
    assert models.visible(nobody) == []
    with pytest.raises(PermissionDenied):
        models.resolve("qwen", nobody)


async def test_a_route_is_its_first_target_under_another_name_with_those_that_stand_in() -> None:
    first, second = target("own", context_tokens=4096), target("acme/m", is_own=False)
    made = route_target("smart", [first, second])
    assert (made.name, made.pool, made.context_tokens, made.is_own) == ("smart", first.pool, 4096, True)
    assert [one.name for one in made.targets] == ["own", "acme/m"]


async def test_routes_are_callable_and_no_pools_of_their_own() -> None:
    targets = {name: target(name) for name in ("own", "acme/m")}
    models = ModelDirectory(targets, {"smart": ["acme/m", "own"]})
    assert models.resolve("smart", principal("smart")).targets[0].name == "acme/m"
    with pytest.raises(PermissionDenied):
        models.resolve("acme/m", principal("smart"))
    assert [one.name for one in models.visible(principal())] == ["acme/m", "own", "smart"]
    assert [one.name for one in models.all()] == ["own", "acme/m"]


async def test_a_route_follows_its_targets_when_they_change_and_goes_when_it_is_taken_out() -> None:
    models = ModelDirectory({"own": target("own", context_tokens=4096)}, {"smart": ["own"]})
    models.replace({"own": target("own", context_tokens=1024)})
    assert models.resolve("smart", principal()).context_tokens == 1024
    models.replace({"own": target("own")}, {})
    with pytest.raises(ModelNotFound):
        models.resolve("smart", principal())
