"""The reference page of the command line, made from the commands themselves.

`python -m headwater.cli.reference > docs/reference/cli.md`
"""

import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer.main
from typer.core import TyperArgument, TyperGroup

from headwater.cli.main import app

_OPENING = """\
# Command line

<!-- Made by `python -m headwater.cli.reference > docs/reference/cli.md`; a test fails when it is stale. -->

Results go to standard output; progress, logs and errors go to standard error. With `--json` a command (any but
`headwater up`) prints one JSON document and nothing else on standard output. `-h` is short for `--help` everywhere.

| Exit code | Means |
| --- | --- |
| 0 | done |
| 1 | failed; the error says what happened, why and what now |
| 2 | the configuration can't be, or the command line can't be read; nothing was done |
| 130 | interrupted by Ctrl-C before it was done (`headwater up` that was running stops in order and exits with 0) |

Where a command finds its settings: [settings](settings.md).
"""


def page() -> str:
    """Return the page, Markdown."""
    root = typer.main.get_command(app)
    text = "\n".join([_OPENING, *_sections("headwater", root)]).rstrip("\n") + "\n"
    return text.replace("***", "`***`")  # a hidden secret, not emphasis


def _sections(name: str, command: Any) -> Iterator[str]:
    is_group = isinstance(command, TyperGroup)
    yield f"## `{name}`\n"
    yield f"{(command.help or '').strip()}\n"
    if is_group:
        yield "| Command | Does |\n| --- | --- |"
        for child, sub in command.commands.items():
            yield f"| [`{name} {child}`](#{_anchor(f'{name} {child}')}) | {_first_line(sub.help)} |"
        yield ""
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        yield "| Argument or option | Default | Means |\n| --- | --- | --- |"
        yield from rows
        yield ""
    if is_group:
        for child, sub in command.commands.items():
            yield from _sections(f"{name} {child}", sub)


def _row(parameter: Any) -> str:
    if isinstance(parameter, TyperArgument):
        written = (parameter.metavar or parameter.name or "").strip("[]")
        return f"| `{written}` | {'required' if parameter.required else 'not given'} | {parameter.help or ''} |"
    names = " or ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else f" `{_value(parameter)}`"
    return f"| {names}{value} | {_default(parameter)} | {parameter.help or ''} |"


def _value(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(get_args(annotation))
    return str(parameter.metavar or "TEXT")


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.secondary_opts:
        return f"`{parameter.opts[0] if parameter.default else parameter.secondary_opts[0]}`"
    return "not given" if parameter.default in (None, False) else f"`{parameter.default}`"


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0]


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


if __name__ == "__main__":
    sys.stdout.write(page())
