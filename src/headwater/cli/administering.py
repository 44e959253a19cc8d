"""What the nouns of administration share: how a verb is carried out, how people write times and amounts and read them."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from headwater.cli.options import load_settings
from headwater.cli.output import print_facts, print_json, print_table
from headwater.errors import OperatorError

if TYPE_CHECKING:
    import msgspec

    from headwater.admin.administration import Verb

W = TypeVar("W", bound="msgspec.Struct")
A = TypeVar("A")
Facts = dict[str, object]
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

OrganizationOption = Annotated[
    str | None,
    typer.Option("--organization", metavar="ORG", help="An organization, by name or id.", show_default=False),
]
ProjectOption = Annotated[
    str | None, typer.Option("--project", metavar="PROJECT", help="A project, by name or id.", show_default=False)
]
WeightOption = Annotated[
    int | None,
    typer.Option(
        "--weight", metavar="N", help="Its share of the service beside others that wait, 1 to 1000.", show_default=False
    ),
]
NoteOption = Annotated[
    str | None, typer.Option("--note", metavar="TEXT", help="What it is for; shown in lists.", show_default=False)
]


def perform(verb: "Verb[W, A]", wish: W, config: Path | None, overrides: list[str] | None) -> A:
    """Carry out a verb where it can be: in the running platform, or on the files of one that doesn't run."""
    from headwater.admin.client import find_admin

    return find_admin(load_settings(config, overrides).settings).call(verb, wish)


def show_one(facts: Facts, *, as_json: bool) -> None:
    """Print one object: every fact for a script, for a person those that aren't said twice."""
    if as_json:
        print_json(facts)
        return
    print_facts({name: _plain(value) for name, value in facts.items() if not name.endswith("_nanos")})


def show_all(facts: Sequence[Facts], columns: dict[str, str], *, as_json: bool, numbers: Sequence[str] = ()) -> None:
    """Print objects: whole for a script, for a person a table of some facts. columns: heading to the name of a fact."""
    if as_json:
        print_json([*facts])
        return
    rows = [[_plain(one[name]) for name in columns.values()] for one in facts]
    print_table("", [*columns], rows, numbers=numbers)


def _plain(value: object) -> object:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ("; " if any(isinstance(one, dict) for one in value) else ", ").join(
                map(str, map(_plain, value))
            ) or None
        case dict():
            return ", ".join(f"{name} {one}" for name, one in value.items()) or None
    return value


def money(name: str, nanos: int) -> Facts:
    """An amount as a decimal string under its name, and exactly beside it."""
    from headwater.money import format_nanos

    return {name: format_nanos(nanos), f"{name}_nanos": nanos}


def iso(milliseconds: int | None) -> str | None:
    """A moment as people and scripts read it, UTC."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def parse_span_s(text: str) -> float:
    """Seconds of a span such as 90d or 12h. Raises OperatorError."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text, re.ASCII)
    if match is None:
        raise OperatorError(
            f"{text!r} is not a span of time.", now="Write a number and a unit: 45s, 30m, 12h, 90d, 4w."
        )
    return int(match[1]) * _UNITS_S[match[2]]


def parse_end(text: str | None) -> tuple[float | None, int | None]:
    """(seconds from now, None) of a span, (None, milliseconds) of a date or time, two Nones of nothing."""
    if text is None:
        return None, None
    if re.match(r"\d{4}-", text):
        return None, parse_moment_ms(text, "--expires")
    return parse_span_s(text), None


def parse_moment_ms(text: str, option: str) -> int:
    """Milliseconds since the Unix epoch of a date or time; without a zone it is UTC. Raises OperatorError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise OperatorError(
            f"{option} {text!r} is not a date or time.", now="Write it as 2026-11-01 or 2026-11-01T12:00."
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def optional(parse: Callable[[str], A], text: str | None) -> A | None:
    """What a text means, or None when nothing was written."""
    return None if text is None else parse(text)
