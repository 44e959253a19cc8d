"""Reading the settings: defaults, precedence, references to secrets, and what a good file becomes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.money import parse_nanos
from headwater.settings import DEFAULT_DEPLOYMENT, GatewaySettings, Loaded, Settings, StoreSettings, load
from headwater.settings.load import LISTS, TABLES, kinds_of, variable_of
from headwater.settings.values import BadValue, Price, split_address

WHOLE = """
[gateway]
listen = "[::1]:9000"
idle_timeout_s = 5
[store]
url = "sqlite:////var/lib/headwater/books.db"
[[deployments]]
name = "small"
model = "./m.gguf"
slots = 2
threads = 3
[[upstreams]]
name = "acme"
base_url = "https://api.example.com/v1/"
api_key = { env = "ACME_API_KEY" }
headers = { X-Team = "blue", X-Token = { env = "ACME_API_KEY" } }
models = ["large-1", "meta/large-2"]
[[prices]]
model = "small"
input = "0.10"
cached_input = "0.01"
output = "0.30"
[[prices]]
model = "acme/meta/large-2"
input = "0"
output = "12.000000001"
"""


def load_text(
    tmp_path: Path, text: str, environ: Mapping[str, str] | None = None, overrides: list[str] | None = None
) -> Loaded:
    path = tmp_path / "headwater.toml"
    path.write_text(text, encoding="utf-8")
    return load(config_path=path, environ=environ or {}, overrides=overrides or [])


def test_nothing_configured_is_a_platform_with_one_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(config_path=None, environ={})
    assert loaded.path is None
    assert loaded.settings == dataclasses.replace(Settings(), deployments=(DEFAULT_DEPLOYMENT,))
    assert loaded.settings.gateway.listen == "127.0.0.1:8080", "the default listens on loopback only"
    assert {origin.source for origin in loaded.origins.values()} == {"default"}


def test_an_upstream_alone_gets_no_default_deployment(tmp_path: Path) -> None:
    text = '[[upstreams]]\nname = "a"\nbase_url = "http://127.0.0.1:1/v1"\nmodels = ["x"]\n'
    assert load_text(tmp_path, text).settings.deployments == ()


def test_a_price_can_name_the_default_deployment(tmp_path: Path) -> None:
    settings = load_text(tmp_path, '[[prices]]\nmodel = "qwen-small"\ninput = "1"\noutput = "2"\n').settings
    assert settings.prices[0].model == settings.deployments[0].name


def test_a_whole_file_becomes_settings(tmp_path: Path) -> None:
    settings = load_text(tmp_path, WHOLE, {"ACME_API_KEY": "sk-1\n"}).settings
    assert (settings.gateway.host, settings.gateway.port) == ("::1", 9000)
    assert settings.gateway.idle_timeout_s == 5.0
    assert isinstance(settings.gateway.idle_timeout_s, float)
    assert settings.store.path == Path("/var/lib/headwater/books.db")
    assert settings.store.data_directory == Path("/var/lib/headwater")
    assert (settings.deployments[0].slots, settings.deployments[0].threads) == (2, 3)
    upstream = settings.upstreams[0]
    assert upstream.base_url == "https://api.example.com/v1"
    assert upstream.api_key is not None
    assert upstream.api_key.reveal() == "sk-1"
    assert {name: value.reveal() for name, value in upstream.headers.items()} == {"x-team": "blue", "x-token": "sk-1"}
    assert upstream.models == ("large-1", "meta/large-2")
    assert upstream.idle_timeout_s is None
    assert [price.output for price in settings.prices] == ["0.30", "12.000000001"]


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("sk-2\n", encoding="utf-8")
    text = f'[[upstreams]]\nname="a"\nbase_url="http://h/v1"\nmodels=["x"]\napi_key = {{ file = "{secret}" }}\n'
    key = load_text(tmp_path, text).settings.upstreams[0].api_key
    assert key is not None
    assert key.reveal() == "sk-2"


def test_each_layer_hides_the_one_below(tmp_path: Path) -> None:
    file, environ = '[gateway]\nlisten = "127.0.0.1:1"\n', {"HEADWATER_GATEWAY__LISTEN": "127.0.0.1:2"}
    overrides = ["gateway.listen=127.0.0.1:3", "gateway.listen=127.0.0.1:4"]
    assert load_text(tmp_path, "").settings.gateway.port == 8080
    assert load_text(tmp_path, file).settings.gateway.port == 1
    assert load_text(tmp_path, file, environ).settings.gateway.port == 2
    loaded = load_text(tmp_path, file, environ, overrides)
    assert loaded.settings.gateway.port == 4
    origin = loaded.origins["gateway.listen"]
    assert [origin.source, *(hidden.source for hidden in origin.hides)] == [
        "command line", "command line", "environment", "file", "default",
    ]  # fmt: skip
    assert [hidden.value for hidden in origin.hides] == ["127.0.0.1:3", "127.0.0.1:2", "127.0.0.1:1", "127.0.0.1:8080"]


def test_the_file_is_found_by_option_then_variable_then_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, port in (("headwater.toml", 1), ("variable.toml", 2), ("option.toml", 3)):
        Path(name).write_text(f'[gateway]\nlisten = "127.0.0.1:{port}"\n', encoding="utf-8")
    environ = {"HEADWATER_CONFIG": "variable.toml"}
    assert load(config_path=None, environ={}).settings.gateway.port == 1
    assert load(config_path=None, environ=environ).settings.gateway.port == 2
    assert load(config_path=Path("option.toml"), environ=environ).settings.gateway.port == 3


def test_environment_text_becomes_the_kind_of_the_setting(tmp_path: Path) -> None:
    environ = {
        "HEADWATER_GATEWAY__TOOLS_COUNT_MAX": "7",
        "HEADWATER_GATEWAY__IDLE_TIMEOUT_S": "2.5",
        "HEADWATER_LOG__LEVEL": "debug",
        "HEADWATER_API_KEY": "hw-not-a-setting",
        "HEADWATER_SOMETHING": "not ours",
        "OTHER_GATEWAY__LISTEN": "not ours",
    }
    settings = load_text(tmp_path, "", environ).settings
    assert (settings.gateway.tools_count_max, settings.gateway.idle_timeout_s) == (7, 2.5)
    assert settings.log.level == "debug"


@pytest.mark.parametrize("key", [f"{t}.{k}" for t, c in TABLES.items() for k in kinds_of(c)])
def test_every_scalar_can_be_set_in_all_three_places(key: str, tmp_path: Path) -> None:
    table, name = key.split(".")
    default = getattr(getattr(Settings(), table), name)
    if default is None:
        default = max(90, getattr(kinds_of(TABLES[table])[name], "at_least", 0))  # not set is the default; any will do
    text = default if isinstance(default, str) else str(default)
    written = f'"{default}"' if isinstance(default, str) else str(default)
    loaded = load_text(
        tmp_path, f"[{table}]\n{name} = {written}\n", {variable_of(table, name): text}, [f"{key}={text}"]
    )
    origin = loaded.origins[key]
    assert origin.value == default
    assert [hidden.source for hidden in origin.hides] == ["environment", "file", "default"]


def test_every_default_is_a_value_the_loader_takes() -> None:
    for table in (*TABLES.values(), *LISTS.values()):
        for field in dataclasses.fields(table):
            assert field.metadata["help"].endswith("."), f"{table.__name__}.{field.name} has no help"
            if isinstance(field.default, int | float | str):
                assert field.metadata["kind"].parse(field.default, {}) == field.default


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::]:65535", ("::", 65535)), ("localhost:1", ("localhost", 1))],
)
def test_listen_splits_into_host_and_port(address: str, parts: tuple[str, int]) -> None:
    settings = GatewaySettings(listen=address)
    assert (settings.host, settings.port) == parts


@given(st.text(max_size=40))
def test_an_address_is_split_or_refused_but_never_breaks(text: str) -> None:
    parts = split_address(text)
    assert parts is None or (parts[0] and 0 <= parts[1] <= 65_535)


@given(st.text(max_size=24) | st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,12})?", fullmatch=True))
def test_a_price_the_settings_take_is_a_price_the_ledger_takes(text: str) -> None:
    try:
        price = Price().parse(text, {})
    except BadValue:
        return
    assert parse_nanos(price) >= 0


def test_a_relative_store_stays_relative() -> None:
    assert StoreSettings().path == Path("data/headwater.db")
    assert StoreSettings(url="sqlite:///books.db").data_directory == Path()
