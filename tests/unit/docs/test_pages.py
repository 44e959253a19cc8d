"""No page is orphaned, no link broken, and the Chinese pages say what the English ones do."""

import re
from pathlib import Path

import pytest

from tests.unit.docs.pages import DOCS, READMES, ROOT, all_pages, blocks, name_of, prose

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def _links(page: Path) -> list[str]:
    return [link for link in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose(page))]
    return {heading.replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert not anchor or anchor in _anchors(target), f"{name_of(page)} links to {link}, which has no such heading"


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "README.md"
    listed = {(DOCS / link.partition("#")[0]).resolve() for link in _links(index)}
    pages = set(DOCS.rglob("*.md")) - {index}
    assert {name_of(page) for page in pages - listed} == set()


def test_the_readmes_lead_to_the_index_and_to_each_other() -> None:
    english, chinese = READMES
    assert {"docs/README.md", chinese.name} <= set(_links(english))
    assert {"docs/README.md", english.name} <= set(_links(chinese))


def test_every_page_is_of_one_of_the_four_kinds() -> None:
    kinds = {page.relative_to(DOCS).parts[0] for page in DOCS.rglob("*.md") if page != DOCS / "README.md"}
    assert kinds == {"tutorial", "how-to", "reference", "explanation"}


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/first-deployment.md"])
def test_the_chinese_page_has_the_same_parts_and_the_same_code(page: str) -> None:
    english, chinese = ROOT / page, (ROOT / page).with_suffix(".zh.md")
    assert len(_HEADING.findall(prose(english))) == len(_HEADING.findall(prose(chinese)))
    code = [_without_comments(block.text) for block in blocks(english, "sh", "toml", "python", "text")]
    assert code == [_without_comments(block.text) for block in blocks(chinese, "sh", "toml", "python", "text")]
    links = [re.sub(r"\.zh\.md|\.md", "", link) for link in _links(english)]
    assert sorted(links) == sorted(re.sub(r"\.zh\.md|\.md", "", link) for link in _links(chinese))


def _without_comments(code: str) -> list[str]:
    return [re.sub(r"\s+# .*$", "", line) for line in code.splitlines()]


def test_every_make_target_in_the_docs_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    text = "\n".join(page.read_text(encoding="utf-8") for page in all_pages())
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets


def test_the_changelog_has_this_version() -> None:
    from headwater import __version__

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog
    assert re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)


def test_no_page_leads_a_reader_out_of_the_repository_by_name() -> None:
    for page in all_pages():
        assert not re.search(r"\b(DESIGN|STYLE)\b", page.read_text(encoding="utf-8")), name_of(page)
