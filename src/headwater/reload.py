"""What a changed configuration changes in a running platform, and what only a new start can. Pure.

Whatever is not named here as changeable stays as it was and is named in the answer, so that a new setting is never taken
for applied by mistake.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from headwater.settings.model import GatewaySettings, Settings

GATEWAY_LIVE: Final = frozenset({
    "body_bytes_max", "messages_count_max", "tools_count_max", "schema_bytes_max", "schema_depth_max", "json_depth_max",
    "choices_count_max", "stop_count_max", "stop_bytes_max", "concurrent_requests_max", "queued_requests_max",
    "first_byte_timeout_s", "idle_timeout_s", "total_timeout_s", "write_stall_timeout_s",
    "drain_timeout_s", "output_tokens_default_max",
})  # fmt: skip
"""Keys of `[gateway]` that are read for each request, or handed to what serves it."""
TABLES_LIVE: Final = frozenset({"models"})
"""Single tables that are read anew whenever they are needed."""
LISTS_LIVE: Final = {"deployments": "name", "upstreams": "name", "routes": "name", "prices": "model", "costs": "model"}
"""Lists of tables that can change, with the key that says which is which."""


class Difference(NamedTuple):
    """What is to be done. settings: the configuration in force afterwards. changed and kept: keys, as people read them.

    kept: what differs in the file but needs a new start; it stays as it was.
    """

    settings: Settings
    changed: list[str]
    kept: list[str]


def compare(old: Settings, new: Settings) -> Difference:
    """What of `new` can take the place of `old` in a running platform. Values are not named: some are secret."""
    changed: list[str] = []
    kept: list[str] = []
    effective: dict[str, Any] = {}
    for one in fields(Settings):
        before, after = getattr(old, one.name), getattr(new, one.name)
        effective[one.name] = before
        if before == after:
            continue
        if one.name in LISTS_LIVE:
            changed += _list_changes(one.name, LISTS_LIVE[one.name], before, after)
            effective[one.name] = after
        elif one.name in TABLES_LIVE:
            changed += [f"{one.name}.{key}" for key in _differing(before, after)]
            effective[one.name] = after
        elif isinstance(before, GatewaySettings):
            keys = _differing(before, after)
            live = [key for key in keys if key in GATEWAY_LIVE]
            changed += [f"gateway.{key}" for key in live]
            kept += [f"gateway.{key}" for key in keys if key not in GATEWAY_LIVE]
            effective[one.name] = replace(before, **{key: getattr(after, key) for key in live})
        elif isinstance(before, tuple):
            kept.append(one.name)
        else:
            kept += [f"{one.name}.{key}" for key in _differing(before, after)]
    return Difference(Settings(**effective), changed, kept)


class _Table(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


def _differing(before: _Table, after: _Table) -> list[str]:
    return [one.name for one in fields(before) if getattr(before, one.name) != getattr(after, one.name)]


def _list_changes(table: str, key: str, before: Sequence[_Table], after: Sequence[_Table]) -> list[str]:
    """`TABLE "name" added`, `… removed`, `… changed: these keys`; the order of the tables means nothing."""
    was = {str(getattr(one, key)): one for one in before}
    now = {str(getattr(one, key)): one for one in after}
    said = [f'{table} "{name}" added' for name in now if name not in was]
    said += [f'{table} "{name}" removed' for name in was if name not in now]
    for name, table_now in now.items():
        keys = _differing(was[name], table_now) if name in was else []
        said += [f'{table} "{name}" changed: {", ".join(keys)}'] if keys else []
    return said
