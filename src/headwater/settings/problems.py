"""What is wrong with a configuration, in words: all of it at once, one line a problem, secrets never repeated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from headwater.errors import ConfigError

_SHOWN_CHARACTERS_MAX = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: the full key, and a sentence saying what was expected, what was given and where."""

    key: str
    says: str

    def __str__(self) -> str:
        """Return the line a person reads."""
        return f"{self.key}: {self.says}"


def refused(problems: Sequence[Problem], path: Path | None) -> ConfigError:
    """Return the error that stops the start; path: the file read, None when there was none."""
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    # One mistake (a name given twice) can be found on two ways; its line is read once.
    lines = dict.fromkeys(str(problem) for problem in problems)
    place = f"in {path}, " if path else ""
    return ConfigError(
        f"The configuration has {count}; nothing was started.",
        why="\n".join(lines),
        now=f"Correct this {place}in the environment or on the command line; all keys: docs/reference/settings.md.",
    )


def shown(value: object) -> str:
    """Return a value as it may stand in a message: TOML-like and short."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = value if len(value) <= _SHOWN_CHARACTERS_MAX else value[:_SHOWN_CHARACTERS_MAX] + "…"
            return f'"{printable(text)}"'
        case int() | float():
            return str(value)
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"


def printable(text: str) -> str:
    """Return the text with what would move a terminal's cursor or break a line written as escapes."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean …?` for a near miss, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
