"""The reference page of the settings, made from their classes: `python -m headwater.settings.reference > PAGE`."""

import sys
from dataclasses import fields

from headwater.settings.explain import as_toml, presentable
from headwater.settings.load import LISTS, TABLES, defaults_of, variable_of

_OPENING = """\
# Settings

<!-- Made by `python -m headwater.settings.reference > docs/reference/settings.md`; a test fails when it is stale. -->

The settings are read once, at the start. A later place wins over an earlier one:

1. the default;
2. the file: `--config PATH`, else the one `HEADWATER_CONFIG` names, else `headwater.toml` in the current directory;
3. the environment: `HEADWATER_GATEWAY__LISTEN` sets `gateway.listen`, and so on for each key of a single table;
4. the command line: `--set gateway.listen=127.0.0.1:9000`, as often as needed.

An unknown table, key or environment variable of that form, or a bad value, stops the start; all problems are named at
once. `headwater config explain [KEY]` shows each value, where it comes from and what it hides. Relative paths start at
the current directory. A configuration that names no deployment and no upstream serves one small model, the deployment
`qwen-small`.

Secrets are named in the file, never written there: `api_key = { env = "NAME" }` or `{ file = "PATH" }`.

Not settings: `HEADWATER_CONFIG` names the file, and `HEADWATER_API_KEY` is the key that clients send.
"""


def render() -> str:
    """Return the page, Markdown."""
    parts = [_OPENING]
    for name, table in TABLES.items():
        parts.append(f"\n## `[{name}]`\n\n{_meaning(table)}\n\n{_rows(name, table, has_variables=True)}")
    for name, table in LISTS.items():
        parts.append(f"\n## `[[{name}]]`\n\n{_meaning(table)}\n\n{_rows(name, table, has_variables=False)}")
    return "".join(parts)


def _meaning(table: type) -> str:
    return (table.__doc__ or "").strip()


def _rows(name: str, table: type, *, has_variables: bool) -> str:
    defaults = defaults_of(table)
    head = "| Key | Default | Means | Expected |" + (" Environment |" if has_variables else "")
    lines = [head, "| --- " * (head.count("|") - 1) + "|"]
    for setting in fields(table):
        default = f"`{as_toml(presentable(defaults[setting.name]))}`" if setting.name in defaults else "required"
        if defaults.get(setting.name, "") is None:
            default = "not set"
        cells = [f"`{setting.name}`", default, setting.metadata["help"], _escaped(setting.metadata["kind"].expected)]
        cells += [f"`{variable_of(name, setting.name)}`"] if has_variables else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "\\`")


if __name__ == "__main__":
    sys.stdout.write(render())
