"""The reference page says what the settings are."""

from pathlib import Path

from headwater.settings.load import LISTS, TABLES, kinds_of
from headwater.settings.reference import render

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "settings.md"


def test_the_page_is_fresh() -> None:
    command = "python -m headwater.settings.reference > docs/reference/settings.md"
    assert PAGE.read_text(encoding="utf-8") == render(), f"run: {command}"


def test_every_setting_is_documented() -> None:
    sections = dict(part.split("`\n", 1) for part in render().split("\n## `")[1:])
    for name, table in TABLES.items():
        assert all(f"| `{key}` |" in sections[f"[{name}]"] for key in kinds_of(table))
    for name, table in LISTS.items():
        assert all(f"| `{key}` |" in sections[f"[[{name}]]"] for key in kinds_of(table))


def test_every_row_has_as_many_cells_as_its_heading() -> None:
    for section in render().split("\n## ")[1:]:
        rows = [row.replace("\\|", "") for row in section.splitlines() if row.startswith("|")]
        assert len({row.count("|") for row in rows}) == 1, section.splitlines()[0]
