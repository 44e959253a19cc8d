from pathlib import Path

import pytest

from headwater.catalogue.entries import OWN_NAME, SHIPPED, find_entry, load_catalogue, read_catalogue
from headwater.catalogue.sources import HubSource, WheelSource
from headwater.errors import ConfigError, OperatorError
from headwater.settings.model import ModelStoreSettings, Settings

OWN = """
[[models]]
name = "mine"
title = "Mine"
family = "mine"
licence = "MIT"
attribution = "Me"
publisher_url = "https://example.com/mine"
context_tokens = 2048
capabilities = ["chat"]
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
size_bytes = 1000
sources = ["file:/models/mine.gguf"]
"""


def test_the_shipped_catalogue_is_sound() -> None:
    entries = read_catalogue(SHIPPED)
    assert list(entries) == ["qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct", "smollm2-135m-instruct"]
    assert all(deployment.model in entries for deployment in Settings().deployments)
    for entry in entries.values():
        assert entry.licence == "Apache-2.0", "a model under other terms needs a word in the documents first"
        assert isinstance(entry.sources[0], HubSource), "the publisher's hub first"
        assert isinstance(entry.sources[-1], WheelSource), "a fresh machine with no hub in reach gets it from the index"
        assert "chat" in entry.capabilities


def test_the_corrected_template_shows_tool_calls_as_json() -> None:
    """The 1.5B's own template has doubled braces there, from a formatting step of its publisher."""
    template = read_catalogue(SHIPPED)["qwen2.5-coder-1.5b-instruct"].chat_template
    assert template is not None
    assert r"<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>" in template
    assert r"{{\"" not in template
    assert template.count("{%") == template.count("%}")


def test_own_entries_join_the_shipped_ones_and_win(tmp_path: Path) -> None:
    settings = ModelStoreSettings(directory=str(tmp_path))
    (tmp_path / OWN_NAME).write_text(OWN + OWN.replace('"mine"', '"smollm2-135m-instruct"', 1))
    entries = load_catalogue(settings)
    assert set(entries) == {*read_catalogue(SHIPPED), "mine"}
    assert entries["smollm2-135m-instruct"].licence == "MIT"


def test_an_unknown_name_is_met_with_the_nearest(tmp_path: Path) -> None:
    settings = ModelStoreSettings(directory=str(tmp_path))
    with pytest.raises(OperatorError, match=r"Did you mean 'qwen2\.5-coder-0\.5b-instruct'"):
        find_entry("qwen2.5-0.5b-instruct", settings)
    with pytest.raises(OperatorError, match="headwater models list"):
        find_entry("zzz", settings)


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ('licence = "MIT"\n', "", "missing: licence"),
        ('licence = "MIT"', 'license = "MIT"', "missing: licence; unknown: license"),
        ('title = "Mine"', "title = 3", "title should be a text"),
        ("context_tokens = 2048", "context_tokens = 0", "context_tokens should be a whole number"),
        ("size_bytes = 1000", "size_bytes = true", "size_bytes should be a whole number"),
        ('name = "mine"', 'name = "../mine"', "lower-case"),
        ("0000000000", "000000000X", "64 lower-case hex"),
        ('["chat"]', '["magic"]', "capabilities"),
        ('["file:/models/mine.gguf"]', "[]", "at least one source"),
        ('["file:/models/mine.gguf"]', '["ftp://x"]', "should begin with"),
        ("size_bytes", 'chat_template = "absent.jinja"\nsize_bytes', "chat_template can't be read"),
        ("[[models]]", "[models]", "tables"),
        ("[[models]]", "[[models", "can't be read"),
    ],
)
def test_a_wrong_entry_is_named_with_its_field(tmp_path: Path, was: str, becomes: str, says: str) -> None:
    (tmp_path / OWN_NAME).write_text(OWN.replace(was, becomes))
    with pytest.raises(ConfigError, match=says) as caught:
        load_catalogue(ModelStoreSettings(directory=str(tmp_path)))
    assert OWN_NAME in str(caught.value)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / OWN_NAME).write_text(OWN + OWN)
    with pytest.raises(ConfigError, match="occurs twice"):
        load_catalogue(ModelStoreSettings(directory=str(tmp_path)))
