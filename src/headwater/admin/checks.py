"""What a person may write for a name, an amount or an end, and the words for what they may not. Pure."""

import re
from datetime import UTC, datetime

from headwater.errors import OperatorError
from headwater.money import NANOS_MAX, parse_nanos

NAME_CHARACTERS_MAX = 100
NOTE_CHARACTERS_MAX = 1000
WEIGHT_MAX = 1000
END_IN_S_MAX = 100 * 365.25 * 86_400


def check_name(whose: str, name: str, *, id_prefix: str = "") -> str:
    """The name, when it can be one; whose: such as `A key`. Raises OperatorError."""
    if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
        raise OperatorError(
            f"{whose}'s name has 1 to {NAME_CHARACTERS_MAX} printable characters; given: {name[:120]!r}."
        )
    if id_prefix and re.fullmatch(rf"{id_prefix}[0-9a-f]{{32}}", name):
        raise OperatorError(f"{whose}'s name can't look like an id; given: {name!r}.")
    return name


def check_weight(whose: str, weight: int) -> int:
    """The weight, when it can be one; whose: such as `A key`. Raises OperatorError."""
    if not 1 <= weight <= WEIGHT_MAX:
        raise OperatorError(
            f"{whose}'s weight is a whole number of 1 to {WEIGHT_MAX}; given: {weight}.",
            now="Among those that wait, 2 is given twice the share of 1.",
        )
    return weight


def check_note(note: str | None) -> str | None:
    """The note, when it can be one. Raises OperatorError."""
    if note is not None and (len(note) > NOTE_CHARACTERS_MAX or not note.isprintable()):
        raise OperatorError(f"A note has at most {NOTE_CHARACTERS_MAX} printable characters; given: {note[:120]!r}.")
    return note


def check_currency(currency: str) -> str:
    """The currency, when it can be one. Raises OperatorError."""
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise OperatorError(
            f"{currency[:20]!r} is not a currency.", now='Give three capital letters (ISO 4217), such as "USD".'
        )
    return currency


def amount_nanos(what: str, text: str, *, is_signed: bool = False) -> int:
    """Nano-units of a decimal string; what: such as `The limit`. is_signed: it may be negative. Raises OperatorError."""
    is_negative = is_signed and text.startswith("-")
    try:
        nanos = parse_nanos(text.removeprefix("-") if is_negative else text)
    except ValueError as error:
        raise OperatorError(
            f"{what} can't be {text[:60]!r}.",
            why=f"{error}.",
            now=f"Write an amount as 25 or 0.50{' or -5' if is_signed else ''}, at most {NANOS_MAX // 10**9}.",
        ) from error
    return -nanos if is_negative else nanos


def end_ms(whose: str, now_ms: int, *, in_s: float | None, at_ms: int | None) -> int | None:
    """The moment something ends, given as seconds from now or as a moment; None: never. Raises OperatorError."""
    if in_s is not None:
        if not 0 < in_s <= END_IN_S_MAX:
            raise OperatorError(f"{whose} can't expire {in_s:g} s from now; give a positive time of at most 100 years.")
        return now_ms + int(in_s * 1000)
    if at_ms is not None and not now_ms < at_ms <= now_ms + END_IN_S_MAX * 1000:
        raise OperatorError(
            f"{whose} can't expire at {moment_text(at_ms)}; give a time to come, at most 100 years from now."
        )
    return at_ms


def moment_text(at_ms: int) -> str:
    """A moment as people read it, UTC; one that no calendar holds as its number."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{at_ms} ms"
