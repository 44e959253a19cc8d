"""Every verb of administration by its name: what the admin socket serves and the command line asks for."""

from types import MappingProxyType
from typing import Any

from headwater.admin import budgets, grants, keys, limits, organizations, prices, projects, running
from headwater.admin.administration import Verb

_ALL: tuple[Verb[Any, Any], ...] = (
    *organizations.VERBS,
    *projects.VERBS,
    *keys.VERBS,
    *budgets.VERBS,
    *limits.VERBS,
    *grants.VERBS,
    *prices.VERBS,
    *running.VERBS,
)
VERBS = MappingProxyType({verb.name: verb for verb in _ALL})
