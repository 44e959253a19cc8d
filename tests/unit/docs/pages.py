"""The pages of the documentation, taken apart for the tests that hold them to the code."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|(.*)\|$")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def all_pages() -> list[Path]:
    """Every Markdown page a reader is led to, the two READMEs and the changelog among them."""
    return [*READMES, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """The page's path in the repository, for messages and test ids."""
    return str(page.relative_to(ROOT))


def read(name: str) -> str:
    """The text of a page of `docs/`."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks in these languages."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(page, language, text) for language, text in found if language in languages]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def rows(text: str, heading: str) -> list[list[str]]:
    """The rows of every table whose first column is called `heading`, each a list of stripped cells."""
    return list(_rows(text, heading))


def _rows(text: str, heading: str) -> Iterator[list[str]]:
    is_inside = False
    for line in text.splitlines():
        match = _ROW.match(line)
        if match is None:
            is_inside = False
            continue
        cells = [cell.strip() for cell in match[1].split("|")]
        if cells[0] == heading:
            is_inside = True
        elif is_inside and not set(line) <= set("|- "):
            yield cells


def codes(cell: str) -> list[str]:
    """What stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def sections(text: str) -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = text.split("\n## ")[1:]
    return {part.split("\n", 1)[0]: part.partition("\n")[2] for part in parts}
