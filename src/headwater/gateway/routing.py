"""Step 5: from the name a caller asks for to the target that answers, and whether this caller may use it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headwater.errors import ModelNotFound, PermissionDenied
from headwater.gateway.engines import Engine
from headwater.gateway.guard import Guard
from headwater.gateway.pool import Pool
from headwater.request import Principal


class Timeouts(NamedTuple):
    """Seconds; connect is the engine client's."""

    first_byte_s: float
    idle_s: float
    total_s: float


class Target(NamedTuple):
    """One name that can be called, with everything a request needs of it.

    engine_model: its name at the engine. pool: shared by all models of one upstream.
    context_tokens: None when we don't know (somebody else's model). is_own: a deployment of ours, whose engine can
    count tokens, whose tool calls we enforce and repair. guard: shared as the pool is; None: nothing stands before it.
    targets: of a route the ones it tries, in this order, none of them a route; its other fields are then its first one's.
    """

    name: str
    engine_model: str
    pool: Pool[Engine]
    timeouts: Timeouts
    context_tokens: int | None
    is_own: bool
    created_at_s: int
    guard: Guard | None = None
    targets: tuple["Target", ...] = ()


def route_target(name: str, targets: Sequence[Target]) -> Target:
    """A route as what callers resolve: its first target under another name, with those that stand in for it."""
    return targets[0]._replace(name=name, targets=tuple(targets))


class ModelDirectory:
    """Every callable name. A snapshot: replaced whole when the configuration changes, never edited."""

    def __init__(self, targets: Mapping[str, Target], routes: Mapping[str, Sequence[str]] | None = None) -> None:
        """targets: deployments and upstream models. routes: the names of each one's targets, in their order."""
        self._routes: dict[str, Sequence[str]] = {}
        self._targets: dict[str, Target] = {}
        self.replace(targets, routes)

    def replace(self, targets: Mapping[str, Target], routes: Mapping[str, Sequence[str]] | None = None) -> None:
        """Serve these from the next request on; what is being served keeps its target. routes: None keeps those there are."""
        if routes is not None:
            self._routes = dict(routes)
        made = {name: route_target(name, [targets[one] for one in names]) for name, names in self._routes.items()}
        self._targets = {**targets, **made}

    def resolve(self, name: str, principal: Principal) -> Target:
        """The target of a name. Raises ModelNotFound, or PermissionDenied when the key isn't for it."""
        target = self._targets.get(name)
        if target is None:
            raise ModelNotFound(
                f"The model {name[:200]!r} does not exist here. `GET /v1/models` lists what this key can call.",
                param="model",
            )
        if not _is_allowed(name, principal):
            raise PermissionDenied(f"This API key is not allowed to use the model {name!r}.", param="model")
        return target

    def visible(self, principal: Principal) -> list[Target]:
        """What this caller can call, by name."""
        return [self._targets[name] for name in sorted(self._targets) if _is_allowed(name, principal)]

    def all(self) -> list[Target]:
        """Every deployment and upstream model, without the routes to them, for metrics and readiness."""
        return [target for target in self._targets.values() if not target.targets]


def _is_allowed(name: str, principal: Principal) -> bool:
    return principal.allowed_models is None or name in principal.allowed_models
