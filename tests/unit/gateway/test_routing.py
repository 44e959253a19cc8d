import pytest

from headwater.errors import ModelNotFound, PermissionDenied
from headwater.gateway.routing import ModelDirectory
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
