"""The catalogue: what is known about each model, from our `catalogue.toml` and the operator's own of the same form."""

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headwater.catalogue.sources import Source, parse_source
from headwater.errors import ConfigError, OperatorError
from headwater.settings.model import ModelStoreSettings

SHIPPED: Final = Path(__file__).with_name("catalogue.toml")
OWN_NAME: Final = "catalogue.toml"  # of the operator, in the model directory
TEMPLATE_BYTES_MAX: Final = 2**20

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_TEXTS: Final = ("name", "title", "family", "licence", "attribution", "publisher_url", "sha256")
_REQUIRED: Final = {*_TEXTS, "context_tokens", "capabilities", "size_bytes", "sources"}
_CAPABILITIES: Final = ("chat", "tools", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model of the catalogue.

    licence: an SPDX identifier; publisher_url: where the publisher presents the file.
    context_tokens: the longest context the model was made for.
    chat_template: text used instead of the file's own template, None to use the file's.
    sources: tried in order; each must deliver exactly `size_bytes` bytes with this `sha256` (lower-case hex).
    """

    name: str
    title: str
    family: str
    licence: str
    attribution: str
    publisher_url: str
    context_tokens: int
    chat_template: str | None
    capabilities: tuple[str, ...]
    sha256: str
    size_bytes: int
    sources: tuple[Source, ...]


def load_catalogue(settings: ModelStoreSettings) -> dict[str, Entry]:
    """Every known model by name: those shipped, then those of `catalogue.toml` in the model directory, which win.

    Raises ConfigError naming the file, the entry and the field when one is wrong.
    """
    entries = read_catalogue(SHIPPED)
    own = Path(settings.directory) / OWN_NAME
    if own.is_file():
        entries |= read_catalogue(own)
    return entries


def find_entry(name: str, settings: ModelStoreSettings) -> Entry:
    """The entry of that name. Raises OperatorError, with the nearest names, when there is none."""
    entries = load_catalogue(settings)
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
        raise OperatorError(
            f"No model named {name!r} is in the catalogue.",
            why=f"It has {', '.join(sorted(entries))}.",
            now=f"Did you mean {near[0]!r}?" if near else "`headwater models list` shows them all.",
        )
    return entries[name]


def read_catalogue(path: Path) -> dict[str, Entry]:
    """The entries of one catalogue file, in its order. Raises ConfigError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"The model catalogue {path} can't be read.", why=f"{error}.", now="Mend the file."
        ) from error
    models = document.get("models")
    if (
        set(document) - {"models"}
        or not isinstance(models, list)
        or not all(isinstance(model, dict) for model in models)
    ):
        raise _wrong(path, "the file", "it should hold [[models]] tables and nothing else")
    entries: dict[str, Entry] = {}
    for table in models:
        entry = _entry(path, table)
        if entry.name in entries:
            raise _wrong(path, entry.name, "the name occurs twice")
        entries[entry.name] = entry
    return entries


def _entry(path: Path, table: dict[str, Any]) -> Entry:
    name = table.get("name", "an entry without a name")
    missing, unknown = _REQUIRED - set(table), set(table) - _REQUIRED - {"chat_template"}
    if missing or unknown:
        raise _wrong(
            path,
            name,
            "; ".join(
                f"{word} {', '.join(sorted(keys))}"
                for word, keys in (("missing:", missing), ("unknown:", unknown))
                if keys
            ),
        )
    for key in _TEXTS:
        if not isinstance(table[key], str) or not table[key]:
            raise _wrong(path, name, f"{key} should be a text, not {table[key]!r}")
    for key in ("context_tokens", "size_bytes"):
        if type(table[key]) is not int or table[key] < 1:
            raise _wrong(path, name, f"{key} should be a whole number above 0, not {table[key]!r}")
    if not _NAME.fullmatch(table["name"]):
        raise _wrong(path, name, "the name should be lower-case letters, digits, '.', '_' and '-'")
    if not re.fullmatch(r"[0-9a-f]{64}", table["sha256"]):
        raise _wrong(path, name, "sha256 should be 64 lower-case hex digits")
    capabilities, sources = table["capabilities"], table["sources"]
    if not isinstance(capabilities, list) or any(capability not in _CAPABILITIES for capability in capabilities):
        raise _wrong(path, name, f"capabilities should be a list of {', '.join(_CAPABILITIES)}")
    if not isinstance(sources, list) or not sources:
        raise _wrong(path, name, "sources should be a list of at least one source")
    try:
        parsed = tuple(parse_source(source) for source in sources)
    except ValueError as error:
        raise _wrong(path, name, str(error)) from error
    plain = {key: table[key] for key in (*_TEXTS, "context_tokens", "size_bytes")}
    return Entry(
        **plain,
        capabilities=tuple(capabilities),
        sources=parsed,
        chat_template=_template(path, name, table.get("chat_template")),
    )


def _template(path: Path, name: str, written: object) -> str | None:
    if written is None:
        return None
    if not isinstance(written, str):
        raise _wrong(path, name, "chat_template should be the path of a file beside the catalogue")
    try:
        with (path.parent / written).open("rb") as file:
            data = file.read(TEMPLATE_BYTES_MAX + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, name, f"its chat_template can't be read: {error}") from error
    if not text or len(data) > TEMPLATE_BYTES_MAX:
        raise _wrong(path, name, f"its chat_template should have 1 to {TEMPLATE_BYTES_MAX:,} bytes")
    return text


def _wrong(path: Path, name: object, why: str) -> ConfigError:
    return ConfigError(f"The model catalogue {path} is wrong at {name}.", why=f"{why}.", now="Mend the entry.")
