"""The kinds of value a setting can hold: each turns what was written into a typed value, or says what it expected.

All here are pure; those that hold secrets are in `secret.py`. What was written is either TOML (typed) or text
(environment, command line); `from_text` brings the second to the first.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final, Protocol
from urllib.parse import urlsplit

from headwater.money import PRICE_UNITS_MAX

NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_PRICE_FRACTION_DIGITS_MAX: Final = 9  # money is kept in nano-units
_PRICE_WHOLE_DIGITS_MAX: Final = 9  # a price of 10⁹ a million tokens is a slip; 10⁹ × 10⁹ still fits 63 bits


class BadValue(Exception):
    """A value that isn't of its kind; `expected` finishes "expected …"; `where` is a key inside the value."""

    def __init__(self, expected: str, *, where: str = "", given: str | None = None) -> None:
        """given: replaces the written value in the message, where that isn't the point or must not be shown."""
        super().__init__(expected)
        self.expected, self.where, self.given = expected, where, given


class Kind(Protocol):
    """What a setting may hold."""

    @property
    def expected(self) -> str:
        """Finishes the sentence "expected …"."""

    @property
    def is_secret(self) -> bool:
        """Whether what was written must not be repeated in a message."""

    def from_text(self, text: str) -> object:
        """Read the text of an environment variable or of `--set` as TOML would give it; raises BadValue."""

    def parse(self, written: object, environ: Mapping[str, str]) -> object:
        """Return the typed value, or raise BadValue."""


class _Text:
    """What the kinds share that are written as a string."""

    is_secret = False

    def from_text(self, text: str) -> object:
        return text


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """An int from at_least to at_most, both allowed."""

    at_least: int
    at_most: int
    is_secret: bool = False

    @property
    def expected(self) -> str:
        return f"a whole number from {self.at_least} to {self.at_most}"

    def from_text(self, text: str) -> object:
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text

    def parse(self, written: object, environ: Mapping[str, str]) -> int:  # noqa: ARG002 - the shape of a Kind
        if not isinstance(written, int) or isinstance(written, bool) or not self.at_least <= written <= self.at_most:
            raise BadValue(self.expected)
        return written


@dataclass(frozen=True, slots=True)
class Seconds:
    """A float over 0 and at most at_most; a whole number will do."""

    at_most: float = 86_400.0
    is_secret: bool = False

    @property
    def expected(self) -> str:
        return f"seconds, over 0 and at most {self.at_most:g}"

    def from_text(self, text: str) -> object:
        return float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else text

    def parse(self, written: object, environ: Mapping[str, str]) -> float:  # noqa: ARG002
        is_number = isinstance(written, int | float) and not isinstance(written, bool)
        if not is_number or not math.isfinite(written) or not 0 < written <= self.at_most:  # type: ignore[arg-type,operator]
            raise BadValue(self.expected)
        return float(written)  # type: ignore[arg-type]


@dataclass(frozen=True)
class OneOf(_Text):
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        quoted = [f'"{word}"' for word in self.words]
        return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]

    def parse(self, written: object, environ: Mapping[str, str]) -> str:  # noqa: ARG002
        if not isinstance(written, str) or written not in self.words:
            raise BadValue(self.expected)
        return written


@dataclass(frozen=True)
class Matching(_Text):
    """A string that matches a pattern whole."""

    pattern: re.Pattern[str]
    expected: str

    def parse(self, written: object, environ: Mapping[str, str]) -> str:  # noqa: ARG002
        if not isinstance(written, str) or not self.pattern.fullmatch(written):
            raise BadValue(self.expected)
        return written


def name() -> Matching:
    """A name that can be called, logged and made a label: it needs no quoting anywhere."""
    return Matching(NAME_PATTERN, "a name of 1 to 63 characters from a-z 0-9 . _ - that starts with a letter or digit")


def line(what: str) -> Matching:
    """Any one line of text that isn't empty; `what` says which."""
    return Matching(re.compile(r"[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*"), f"{what}, as a string")


class Address(_Text):
    """`HOST:PORT` to listen on; port 0 lets the system choose; an IPv6 host stands in brackets."""

    expected = 'an address and port such as "127.0.0.1:8080" or "[::1]:8080"'

    def parse(self, written: object, environ: Mapping[str, str]) -> str:  # noqa: ARG002
        if not isinstance(written, str) or split_address(written) is None:
            raise BadValue(self.expected)
        return written


def split_address(address: str) -> tuple[str, int] | None:
    """Return host (without brackets) and port of `HOST:PORT`, or None when it isn't one."""
    host, colon, port = address.rpartition(":")
    if not colon or not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        return None
    return host.strip("[]"), int(port)


class StoreUrl(_Text):
    """Where the books are kept: `sqlite:///PATH`; an absolute path makes it four slashes."""

    expected = '"sqlite:///PATH" (the only store supported), such as "sqlite:///./data/headwater.db"'
    prefix: Final = "sqlite:///"

    def parse(self, written: object, environ: Mapping[str, str]) -> str:  # noqa: ARG002
        if not isinstance(written, str):
            raise BadValue(self.expected)
        path = written.removeprefix(self.prefix)
        # In memory nothing could be promised, and `?` options would change what we rely on (journal mode, locking).
        if (
            path == written
            or not path.strip()
            or path.endswith("/")
            or path == ":memory:"
            or re.search(r"[?#\x00]", path)
        ):
            raise BadValue(self.expected, given=_without_credentials(written))
        return written


class HttpUrl(_Text):
    """An http(s) address; a `/` at its end is dropped."""

    expected = "an http:// or https:// address without user, query or fragment"

    def parse(self, written: object, environ: Mapping[str, str]) -> str:  # noqa: ARG002
        if not isinstance(written, str):
            raise BadValue(self.expected)
        try:
            parts = urlsplit(written)
            is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port out of range, a broken IPv6 host
            is_good = False
        if not is_good or re.search(r"[?#@\s\x00-\x1f]", written):
            raise BadValue(self.expected, given=_without_credentials(written))
        return written.rstrip("/")


def _without_credentials(url: str) -> str:
    """Return the address, quoted, without what may be a secret: user and password before the `@`, and the query."""
    bare = re.sub(r"//[^/]*@", "//***@", url.partition("?")[0])
    return f'"{bare}"' if bare == url else f'"{bare}" (part not shown)'


class Price(_Text):
    """Money per million tokens as a decimal string; kept as that string, since a float could not be exact."""

    expected = 'a decimal string of at most 9 digits on each side of the point, such as "0.10"'

    def parse(self, written: object, environ: Mapping[str, str]) -> str:  # noqa: ARG002
        if isinstance(written, int | float) and not isinstance(written, bool):
            raise BadValue(f'a string, since a float is not exact: write it as a string, "{written}"')
        pattern = rf"[0-9]{{1,{_PRICE_WHOLE_DIGITS_MAX}}}(\.[0-9]{{1,{_PRICE_FRACTION_DIGITS_MAX}}})?"
        if not isinstance(written, str) or not re.fullmatch(pattern, written):
            raise BadValue(self._why_not(written))
        if Decimal(written) > PRICE_UNITS_MAX:
            raise BadValue(f"at most {PRICE_UNITS_MAX} for a million tokens")
        return written

    def _why_not(self, written: object) -> str:
        try:
            number = Decimal(written) if isinstance(written, str) else None
        except InvalidOperation:
            number = None
        if number is not None and number.is_finite() and number < 0:
            return f"a price of 0 or more: {self.expected}"
        return self.expected


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of at least one value of a kind, none twice."""

    of: Matching
    is_secret: bool = False

    @property
    def expected(self) -> str:
        return f"a list of at least one: {self.of.expected}"

    def from_text(self, text: str) -> object:
        return text

    def parse(self, written: object, environ: Mapping[str, str]) -> tuple[str, ...]:
        if not isinstance(written, list) or not written:
            raise BadValue(self.expected)
        values: list[str] = []
        for index, item in enumerate(written):
            try:
                value = self.of.parse(item, environ)
            except BadValue as bad:
                raise BadValue(bad.expected, where=f"[{index}]") from None
            if value in values:
                raise BadValue("each only once", where=f"[{index}]")
            values.append(value)
        return tuple(values)
