"""The generated reference pages are what their generators say, and the generators leave nothing out."""

import re
from pathlib import Path

import pytest

from headwater import errors, errors_reference
from headwater.cli import reference as cli_reference
from tests.unit.docs.pages import DOCS, ROOT, read

SOURCE = ROOT / "src" / "headwater"
PAGES = {
    "cli.md": (cli_reference.page, "python -m headwater.cli.reference"),
    "errors.md": (errors_reference.page, "python -m headwater.errors_reference"),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_fresh(name: str) -> None:
    render, command = PAGES[name]
    path = DOCS / "reference" / name
    assert path.read_text(encoding="utf-8") == render(), f"run: {command} > docs/reference/{name}"


def test_every_error_class_has_its_row() -> None:
    page = errors_reference.page()
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.PlatformError)]
    assert len(classes) > 15
    for one in classes:
        assert f"| {one.status} | `{one.type}` | `{one.code}` |" in page


def test_every_code_that_is_given_where_an_error_is_raised_has_its_row() -> None:
    given: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if path.name not in ("errors.py", "errors_reference.py"):
            given |= set(re.findall(r'\bcode="([a-z_]+)"', path.read_text(encoding="utf-8")))
    assert given == set(errors_reference.SPECIAL)
    for code in given:
        assert f"`{code}`" in errors_reference.page()


def test_there_is_no_advice_for_a_code_that_is_gone() -> None:
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.PlatformError)]
    assert set(errors_reference.ADVICE) == {one.code for one in classes}


def test_the_page_names_only_codes_that_exist() -> None:
    known = set(errors_reference.ADVICE) | set(errors_reference.SPECIAL)
    for page in (Path("how-to/troubleshoot.md"), Path("how-to/use-an-upstream.md"), Path("explanation/request.md")):
        text = read(str(page))
        named = set(re.findall(r"\b[45]\d\d `([a-z_]+)`", text))
        assert named
        assert named <= known, page
