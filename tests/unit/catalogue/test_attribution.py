"""What we ship the pins of, we name: licence, holder and publisher, in the reference page and in NOTICE."""

from pathlib import Path

import pytest

from headwater.catalogue.entries import SHIPPED, Entry, read_catalogue

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("entry", read_catalogue(SHIPPED).values(), ids=lambda entry: str(entry.name))
def test_each_model_is_attributed(entry: Entry) -> None:
    notice = (ROOT / "NOTICE").read_text()
    for fact in (entry.title, entry.licence, entry.attribution, entry.publisher_url):
        assert fact in notice


@pytest.mark.parametrize("entry", read_catalogue(SHIPPED).values(), ids=lambda entry: str(entry.name))
def test_each_model_is_in_the_reference_with_its_facts(entry: Entry) -> None:
    page = (ROOT / "docs" / "reference" / "models.md").read_text()
    section = page.partition(f"\n## `{entry.name}`\n")[2].partition("\n## ")[0]
    facts = [entry.title, entry.licence, entry.attribution, entry.publisher_url, entry.sha256]
    facts += [f"{entry.size_bytes:,}", f"{entry.context_tokens:,}", ", ".join(entry.capabilities)]
    facts += [f"`{source}`" for source in entry.sources]
    for fact in facts:
        assert fact in section, fact
    assert ("corrected template" in section) == (entry.chat_template is not None)
