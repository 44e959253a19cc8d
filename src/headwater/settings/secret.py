"""Secrets: named in the configuration, never written there, and never shown after.

`SecretReference` and `Headers` are the kinds of setting that read: the environment they are given, and files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headwater.settings.values import BadValue

HIDDEN: Final = "***"
_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 §5.1, token
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")
_CREDENTIAL_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
_CONNECTION_HEADERS: Final = frozenset({
    "host", "connection", "content-length", "content-type", "transfer-encoding", "te", "trailer", "upgrade", "expect",
    "accept-encoding", "content-encoding",
})  # fmt: skip


class Secret:
    """A string that never shows itself: `repr`, `str` and formatting give ***; only `reveal` hands it out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """value: the secret itself."""
        self._value = value

    def reveal(self) -> str:
        """Return the secret; call it where the bytes leave for the wire, nowhere else."""
        return self._value

    def __repr__(self) -> str:
        """Return ***."""
        return HIDDEN

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same string."""
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        """Hash by the value, so that settings holding secrets can be compared."""
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class SecretReference:
    """A secret named, not written: `{ env = "NAME" }` or `{ file = "PATH" }`, so that the settings can be shared."""

    is_secret: bool = True
    expected: str = field(default='{ env = "NAME" } or { file = "PATH" }', init=False)

    def from_text(self, text: str) -> object:
        return text

    def parse(self, written: object, environ: Mapping[str, str]) -> Secret:
        if isinstance(written, str):
            raise BadValue(f"{self.expected}: a secret is not kept in this file", given="a literal string (not shown)")
        if not isinstance(written, dict) or len(written) != 1:
            raise BadValue(self.expected)
        ((source, target),) = written.items()
        if source == "env":
            value = _from_environment(target, environ)
        elif source == "file":
            value = _from_file(target)
        else:
            raise BadValue(self.expected, given=f"a table with the key {source!r}")
        if not _HEADER_VALUE.fullmatch(value):
            raise BadValue(
                "a secret of printable ASCII, since it is sent in a header", given=f"{source} {target!r} (not shown)"
            )
        return Secret(value)


def _from_environment(variable: object, environ: Mapping[str, str]) -> str:
    if not isinstance(variable, str) or not _ENVIRONMENT_NAME.fullmatch(variable):
        # Someone who pastes the secret itself here must not see it again in the log.
        raise BadValue("the name of an environment variable", where=".env", given="something else (not shown)")
    value = environ.get(variable, "").strip()
    if not value:
        state = "is empty" if variable in environ else "is not set"
        raise BadValue(f"the environment variable {variable} to hold the secret", given=f"{variable}, which {state}")
    return value


def _from_file(path: object) -> str:
    if not isinstance(path, str) or not path.strip():
        raise BadValue("the path of a file", where=".file", given="something else (not shown)")
    try:
        value = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadValue(
            "a file that holds the secret", given=f'the file "{path}", which can\'t be read: {reason}'
        ) from None
    if not value:
        raise BadValue("a file that holds the secret", given=f'the file "{path}", which is empty')
    return value


@dataclass(frozen=True, slots=True)
class Headers:
    """Headers to send: name → a literal, or a reference like a secret's.

    All come out as Secret, so that none is ever shown, and with lower-case names.
    """

    is_secret: bool = True
    expected: str = field(
        default='a table of headers, each a string or { env = "NAME" } or { file = "PATH" }', init=False
    )

    def from_text(self, text: str) -> object:
        return text

    def parse(self, written: object, environ: Mapping[str, str]) -> Mapping[str, Secret]:
        if not isinstance(written, dict):
            raise BadValue(self.expected)
        self._check_names(written)
        return {header.lower(): self._parse_one(header, value, environ) for header, value in written.items()}

    def _check_names(self, written: Mapping[str, object]) -> None:
        seen: set[str] = set()
        for header in written:
            if not _HEADER_NAME.fullmatch(header):
                raise BadValue("a header name", where=f".{header!r}", given="other characters")
            if header.lower() in seen:
                raise BadValue("each header only once, in any case", where=f".{header}", given="a second one")
            if header.lower() in _CONNECTION_HEADERS:
                raise BadValue("no header that the connection itself sets", where=f".{header}", given="one")
            seen.add(header.lower())

    def _parse_one(self, header: str, value: object, environ: Mapping[str, str]) -> Secret:
        if isinstance(value, str) and header.lower() not in _CREDENTIAL_HEADERS:
            if not _HEADER_VALUE.fullmatch(value):
                raise BadValue("printable ASCII", where=f".{header}", given="other characters (not shown)")
            return Secret(value)
        try:
            return SecretReference().parse(value, environ)
        except BadValue as bad:
            raise BadValue(bad.expected, where=f".{header}{bad.where}", given=bad.given) from None
