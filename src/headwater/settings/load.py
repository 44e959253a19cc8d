"""Read the settings once, at the start: defaults < file < environment < command line.

Everything wrong is collected and reported together, each problem with its full key (`deployments[0].slots`). The pure
part works on what was read; only `load` touches the file system, and `secret.py` the files secrets are kept in.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from headwater.errors import ConfigError
from headwater.settings.check import check_whole
from headwater.settings.model import (
    DEFAULT_DEPLOYMENT,
    BillingSettings,
    CostSettings,
    DeploymentSettings,
    GatewaySettings,
    LogSettings,
    ModelStoreSettings,
    PriceSettings,
    RouteSettings,
    Settings,
    StoreSettings,
    UpstreamSettings,
    WebhookSettings,
)
from headwater.settings.problems import Problem, did_you_mean, printable, refused, shown
from headwater.settings.values import BadValue, Kind, OneOf

DEFAULT_FILE: Final = Path("headwater.toml")
VARIABLE_PREFIX: Final = "HEADWATER_"
FILE_BYTES_MAX: Final = 4 * 2**20

TABLES: Final[Mapping[str, type]] = {
    "gateway": GatewaySettings,
    "store": StoreSettings,
    "models": ModelStoreSettings,
    "log": LogSettings,
    "billing": BillingSettings,
}
LISTS: Final[Mapping[str, type]] = {
    "deployments": DeploymentSettings,
    "upstreams": UpstreamSettings,
    "routes": RouteSettings,
    "prices": PriceSettings,
    "costs": CostSettings,
    "webhooks": WebhookSettings,
}

Source = Literal["default", "file", "environment", "command line"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a setting's value comes from, and which lower values it hides, nearest first.

    where: the file's path, the variable's name or the `--set` argument's key; empty for a default.
    """

    value: object
    source: Source
    where: str = ""
    hides: "tuple[Origin, ...]" = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings with the origin of each key; path: the file they were read from, None when there was none."""

    settings: Settings
    origins: Mapping[str, Origin]
    path: Path | None


def load(*, config_path: Path | None, environ: Mapping[str, str], overrides: Sequence[str] = ()) -> Loaded:
    """Return the settings, or raise ConfigError naming every key that can't be.

    config_path: the file to read; None means `HEADWATER_CONFIG`, else `./headwater.toml` if it is there, else no file.
    overrides: `KEY=VALUE` from the command line; a later one wins.
    """
    path = _find_file(config_path, environ)
    reading = _Reading(environ=environ)
    if path is not None:
        reading.read_file(str(path), _read_toml(path))
    reading.read_environment()
    reading.read_overrides(overrides)
    settings = reading.build()
    if reading.problems or settings is None:
        raise refused(reading.problems, path)
    return Loaded(settings=settings, origins=reading.origins, path=path)


def kinds_of(table: type) -> dict[str, Kind]:
    """Return what each field of a settings class may hold."""
    return {f.name: f.metadata["kind"] for f in fields(table)}


def defaults_of(table: type) -> dict[str, object]:
    """Return the default of each field of a settings class that has one."""
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(table)}
    return {name: default for name, default in defaults.items() if default is not MISSING}


def variable_of(table: str, key: str) -> str:
    """Return the environment variable that sets a key of a single table."""
    return f"{VARIABLE_PREFIX}{table}__{key}".upper()


def _find_file(config_path: Path | None, environ: Mapping[str, str]) -> Path | None:
    variable = environ.get("HEADWATER_CONFIG")
    if config_path is None and not variable:
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None
    path = config_path if config_path is not None else Path(variable or "")
    if not path.is_file():
        asked_by = "--config" if config_path is not None else "HEADWATER_CONFIG"
        raise ConfigError(
            f"The configuration file {path} can't be read.",
            why=f"{asked_by} names it, but there is no such file.",
            now="Correct the path, or leave it out to start with the defaults.",
        )
    return path


def _read_toml(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"The configuration file {path} can't be read.",
            why=f"The system says: {error.strerror}.",
            now="Correct its permissions, or name another file with --config.",
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"The configuration file {path} is over {FILE_BYTES_MAX} bytes.", now="Is it the right file?")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        why = f"It is not UTF-8 text (at line {line}, byte {error.start} of the file)."
    except tomllib.TOMLDecodeError as error:  # its text ends "(at line 3, column 5)"
        why = f"It is not valid TOML: {error}."
    except RecursionError:
        why = "It is nested too deep."
    raise ConfigError(
        f"The configuration file {path} can't be read.", why=why, now="Correct it there; see https://toml.io."
    )


@dataclass(slots=True)
class _Reading:
    """What has been read so far: typed values with their origins, and the problems found on the way."""

    environ: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    items: dict[str, list[dict[str, object]]] = field(default_factory=lambda: {name: [] for name in LISTS})

    def __post_init__(self) -> None:
        """Begin with the defaults of the single tables."""
        for name, table in TABLES.items():
            for key, default in defaults_of(table).items():
                self.origins[f"{name}.{key}"] = Origin(default, "default")

    def read_file(self, path: str, document: Mapping[str, object]) -> None:
        """Take the tables of the TOML file over the defaults."""
        for name, written in document.items():
            if name in TABLES:
                self._read_table(name, TABLES[name], written, path, f"[{name}]")
            elif name in LISTS:
                self._read_list(name, written, path)
            else:
                known = ", ".join([*(f"[{t}]" for t in TABLES), *(f"[[{t}]]" for t in LISTS)])
                hint = did_you_mean(name, [*TABLES, *LISTS]) or f" The tables are {known}."
                self._found(printable(name), f"unknown table ({path}).{hint}")

    def _read_list(self, name: str, written: object, path: str) -> None:
        if not isinstance(written, list):
            self._found(name, f"expected [[{name}]], once for each; given {_written_as(name, written)} ({path}).")
            return
        for index, item in enumerate(written):
            key = f"{name}[{index}]"
            for field_name, default in defaults_of(LISTS[name]).items():
                self.origins[f"{key}.{field_name}"] = Origin(default, "default")
            self._read_table(key, LISTS[name], item, path, f"[[{name}]]")
            if isinstance(item, dict):
                self._report_missing(key, LISTS[name], item, path)
            prefix = f"{key}."
            self.items[name].append(
                {k.removeprefix(prefix): o.value for k, o in self.origins.items() if k.startswith(prefix)}
            )

    def _read_table(self, key: str, table: type, written: object, path: str, expected: str) -> None:
        if not isinstance(written, dict):
            self._found(key, f"expected {expected}; given {_written_as(key, written)} ({path}).")
            return
        kinds = kinds_of(table)
        for name, value in written.items():
            if name in kinds:
                self._take(f"{key}.{name}", kinds[name], value, "file", path)
            else:
                hint = did_you_mean(name, kinds) or f" The keys of {expected} are {', '.join(kinds)}."
                self._found(f"{key}.{printable(name)}", f"unknown key ({path}).{hint}")

    def _report_missing(self, key: str, table: type, written: Mapping[str, object], path: str) -> None:
        defaults = defaults_of(table)
        for name, kind in kinds_of(table).items():
            if name not in written and name not in defaults:
                self._found(f"{key}.{name}", f"missing; expected {kind.expected} ({path}).")

    def read_environment(self) -> None:
        """Take `HEADWATER_TABLE__KEY` over the file. Names without `__` belong to other programs or to no setting."""
        known = {variable_of(t, k): (f"{t}.{k}", kind) for t, c in TABLES.items() for k, kind in kinds_of(c).items()}
        for variable in sorted(self.environ):
            if not variable.startswith(VARIABLE_PREFIX) or "__" not in variable:
                continue
            if variable in known:
                key, kind = known[variable]
                self._take_text(key, kind, self.environ[variable], "environment", variable)
                continue
            table = variable.removeprefix(VARIABLE_PREFIX).split("__")[0].lower()
            why = f" [[{table}]] is set in the file only." if table in LISTS else did_you_mean(variable, known)
            self._found(variable, f"unknown environment variable.{why}")

    def read_overrides(self, overrides: Sequence[str]) -> None:
        """Take `KEY=VALUE` from the command line over everything else."""
        known = {f"{t}.{k}": kind for t, c in TABLES.items() for k, kind in kinds_of(c).items()}
        for override in overrides:
            key, equals, text = (part.strip() for part in override.partition("="))
            if key in known and equals:
                self._take_text(key, known[key], text, "command line", f"--set {key}")
            elif key in known:
                self._found(key, f"expected --set {key}=VALUE; given no value (command line).")
            elif key.split("[")[0].split(".")[0] in LISTS:
                self._found(key, "lists are set in the file only (command line).")
            else:
                # What doesn't look like a key may be anything, a pasted secret included.
                name = key if equals and re.fullmatch(r"[a-z_]{1,40}(\.[a-z_]{1,40})*", key) else "--set"
                self._found(name, f"unknown; expected --set TABLE.KEY=VALUE (command line).{did_you_mean(key, known)}")

    def _take_text(self, key: str, kind: Kind, text: str, source: Source, where: str) -> None:
        self._take(key, kind, kind.from_text(text), source, where)

    def _take(self, key: str, kind: Kind, written: object, source: Source, where: str) -> None:
        try:
            value = kind.parse(written, self.environ)
        except BadValue as bad:
            given = bad.given or ("something else (not shown)" if kind.is_secret else shown(written))
            place = source if source == "command line" else where
            is_word = isinstance(kind, OneOf) and isinstance(written, str)
            hint = did_you_mean(str(written), kind.words) if is_word and isinstance(kind, OneOf) else ""
            self._found(f"{key}{bad.where}", f"expected {bad.expected}; given {given} ({place}).{hint}")
            return
        below = self.origins.get(key)
        hides = () if below is None else (Origin(below.value, below.source, below.where), *below.hides)
        self.origins[key] = Origin(value, source, where, hides)

    def build(self) -> Settings | None:
        """Return the settings, or None when problems forbid it."""
        if not self.items["deployments"] and not self.items["upstreams"]:
            default = {f.name: getattr(DEFAULT_DEPLOYMENT, f.name) for f in fields(DEFAULT_DEPLOYMENT)}
            self.items["deployments"].append(default)
            self.origins.update({f"deployments[0].{name}": Origin(value, "default") for name, value in default.items()})
        is_namespace_known = not any(p.key.startswith(("deployments", "upstreams", "routes")) for p in self.problems)
        self.problems += check_whole(self.items, is_namespace_known=is_namespace_known)
        if self.problems:
            return None
        tables = {
            name: table(**{key: self.origins[f"{name}.{key}"].value for key in kinds_of(table)})
            for name, table in TABLES.items()
        }
        lists = {name: tuple(table(**item) for item in self.items[name]) for name, table in LISTS.items()}
        arguments: dict[str, Any] = {**tables, **lists}
        return Settings(**arguments)

    def _found(self, key: str, says: str) -> None:
        self.problems.append(Problem(key, says))


def _written_as(name: str, written: object) -> str:
    if isinstance(written, dict):
        return f"[{name}]"
    return f"[[{name}]]" if isinstance(written, list) and written else "something else"
