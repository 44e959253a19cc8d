"""Writes the answers of `GET /v1/models` and `GET /v1/models/{id}`."""

from collections.abc import Iterable

import msgspec


class ModelObject(msgspec.Struct, frozen=True):
    """One callable model.

    created: whole seconds since the Unix epoch; owned_by: who makes it callable here, not who trained it.
    """

    id: str
    created: int
    owned_by: str
    object: str = "model"


class _ModelList(msgspec.Struct, frozen=True):
    data: list[ModelObject]
    object: str = "list"


def model_body(model: ModelObject) -> bytes:
    """The body that describes one model."""
    return msgspec.json.encode(model)


def models_body(models: Iterable[ModelObject]) -> bytes:
    """The body that lists models, in the order given."""
    return msgspec.json.encode(_ModelList(list(models)))
