"""For each setting: its value, where that comes from, and which lower values it hides. Pure; secrets show as ***."""

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

from headwater.errors import ConfigError
from headwater.settings.load import LISTS, TABLES, Loaded, Origin
from headwater.settings.problems import did_you_mean, printable
from headwater.settings.secret import HIDDEN, Secret


@dataclass(frozen=True, slots=True)
class Stated:
    """A value as it may be shown, and who stated it."""

    value: object
    origin: str

    @property
    def text(self) -> str:
        """The value as TOML writes it; `not set` for None."""
        return as_toml(self.value)


@dataclass(frozen=True, slots=True)
class Explanation:
    """One setting: its value in force, what it means and may hold, and what it hides, nearest first."""

    key: str
    in_force: Stated
    hides: tuple[Stated, ...]
    meaning: str
    expected: str

    def as_json(self) -> dict[str, object]:
        """Return what scripts read."""
        return {
            "key": self.key,
            "value": self.in_force.value,
            "origin": self.in_force.origin,
            "hides": [{"value": hidden.value, "origin": hidden.origin} for hidden in self.hides],
            "meaning": self.meaning,
            "expected": self.expected,
        }


def explain(loaded: Loaded, key: str | None = None) -> list[Explanation]:
    """Return one explanation for each setting under key, in the order of the reference.

    key: a full key (`gateway.listen`), a table (`gateway`, `deployments[0]`) or a list (`deployments`); None means all.
    Raises ConfigError when nothing has that key.
    """
    chosen = [name for name in loaded.origins if key is None or _is_under(name, key)]
    # A list that is empty has no keys, and still is one.
    if key is not None and not chosen and key not in LISTS:
        parents = [*TABLES, *LISTS]
        raise ConfigError(
            f"There is no setting {printable(key)}.",
            why=f"The configuration has no such key.{did_you_mean(key, [*loaded.origins, *parents])}",
            now="`headwater config explain` without a key lists all of them.",
        )
    return [_explain_one(name, loaded.origins[name]) for name in chosen]


def _is_under(name: str, key: str) -> bool:
    return name == key or name.startswith((f"{key}.", f"{key}["))


def _explain_one(key: str, origin: Origin) -> Explanation:
    parent, _, name = key.rpartition(".")
    table = parent.partition("[")[0]
    metadata = next(f.metadata for f in _fields_of(table) if f.name == name)
    return Explanation(
        key=key,
        in_force=_stated(origin),
        hides=tuple(_stated(hidden) for hidden in origin.hides),
        meaning=metadata["help"],
        expected=metadata["kind"].expected,
    )


def _fields_of(table: str) -> tuple[Field[Any], ...]:
    return fields(TABLES[table] if table in TABLES else LISTS[table])


def _stated(origin: Origin) -> Stated:
    where = "" if origin.source == "command line" else origin.where
    return Stated(value=presentable(origin.value), origin=f"{origin.source} {where}".strip())


def presentable(value: object) -> object:
    """Return the value as JSON can hold it, with each secret replaced by ***."""
    match value:
        case Secret():
            return HIDDEN
        case Mapping():
            return {str(key): presentable(item) for key, item in value.items()}
        case list() | tuple():
            return [presentable(item) for item in value]
        case _:
            return value


def as_toml(value: object) -> str:
    """Return a presentable value as one line of TOML; `not set` for None and *** as it stands."""
    match value:
        case None:
            return "not set"
        case bool():
            return "true" if value else "false"
        case str():
            return value if value == HIDDEN else f'"{printable(value)}"'
        case Mapping():
            return "{ " + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
        case Sequence():
            return "[" + ", ".join(as_toml(item) for item in value) + "]"
        case _:
            return str(value)
