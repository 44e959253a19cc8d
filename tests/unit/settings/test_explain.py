"""Explaining settings, and that secrets are in nothing that can be printed."""

import copy
import json
import pickle
import pprint
from pathlib import Path

import pytest

from headwater.errors import ConfigError
from headwater.settings import Loaded, Secret, load
from headwater.settings.explain import explain

CANARY = "sk-canary-77aa01"
TOML = """
[gateway]
listen = "127.0.0.1:1"
[[upstreams]]
name = "acme"
base_url = "https://api.example.com/v1"
api_key = { env = "ACME" }
headers = { X-Token = { env = "ACME" } }
models = ["large-1"]
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    path = tmp_path / "headwater.toml"
    path.write_text(TOML, encoding="utf-8")
    return load(config_path=path, environ={"ACME": CANARY}, overrides=["gateway.listen=127.0.0.1:2"])


def test_one_key_shows_value_origin_and_what_it_hides(loaded: Loaded) -> None:
    (explanation,) = explain(loaded, "gateway.listen")
    assert explanation.in_force.text == '"127.0.0.1:2"'
    assert explanation.in_force.origin == "command line"
    assert [(hidden.text, hidden.origin) for hidden in explanation.hides] == [
        ('"127.0.0.1:1"', f"file {loaded.path}"),
        ('"127.0.0.1:8080"', "default"),
    ]
    assert "Address and port" in explanation.meaning


def test_a_table_or_list_shows_all_its_keys(loaded: Loaded) -> None:
    assert len(explain(loaded, "log")) == 2
    assert {e.key.partition(".")[0] for e in explain(loaded, "upstreams")} == {"upstreams[0]"}
    assert explain(loaded, "upstreams") == explain(loaded, "upstreams[0]")
    assert explain(loaded, "deployments") == []
    assert len(explain(loaded)) == len(loaded.origins)


def test_values_are_shown_as_toml_writes_them(loaded: Loaded) -> None:
    shown = {e.key: e.in_force.text for e in explain(loaded, "upstreams")}
    assert shown["upstreams[0].models"] == '["large-1"]'
    assert shown["upstreams[0].context_tokens"] == "not set"
    assert shown["upstreams[0].api_key"] == "***"
    assert shown["upstreams[0].headers"] == "{ x-token = *** }"


@pytest.mark.parametrize("key", ["gateway.lisen", "gate", "upstreams[1]", "", "deployments[0].name"])
def test_an_unknown_key_is_refused(loaded: Loaded, key: str) -> None:
    with pytest.raises(ConfigError, match="There is no setting"):
        explain(loaded, key)


def test_secrets_are_in_nothing_that_can_be_printed(loaded: Loaded) -> None:
    key = loaded.settings.upstreams[0].api_key
    assert key is not None
    printed = [
        repr(loaded),
        str(loaded.settings),
        f"{key} {key!r} {key!s}",
        pprint.pformat(loaded),
        json.dumps([e.as_json() for e in explain(loaded)]),
        repr(explain(loaded)),
        repr(copy.deepcopy(loaded.settings)),
    ]
    assert not [text for text in printed if CANARY in text]
    with pytest.raises(TypeError):
        json.dumps(key)
    with pytest.raises(TypeError):
        f"{key:>20}"


def test_a_secret_compares_and_travels_by_value() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert pickle.loads(pickle.dumps(Secret("a"))).reveal() == "a"  # noqa: S301 - our own bytes
