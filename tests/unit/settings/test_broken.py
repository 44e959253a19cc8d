"""Every broken configuration stops the start: the key is named, with what was expected; secrets are not repeated."""

import dataclasses
from pathlib import Path

import pytest

from headwater.errors import ConfigError
from headwater.settings import load

CANARY = "sk-canary-5f3a9b"


@dataclasses.dataclass(frozen=True)
class Broken:
    """A configuration that can't be: the key named in the message, words of it, and what to write."""

    key: str
    says: str
    toml: str = ""
    environ: tuple[tuple[str, str], ...] = ()
    overrides: tuple[str, ...] = ()


def deployment(text: str, name: str = "a") -> str:
    return f'[[deployments]]\nname = "{name}"\nmodel = "m"\n{text}\n'


def upstream(text: str, base_url: str = "https://api.example.com/v1", models: str = '["x"]') -> str:
    return f'[[upstreams]]\nname = "acme"\nbase_url = "{base_url}"\nmodels = {models}\n{text}\n'


def route(targets: str, name: str = "smart") -> str:
    return f'[[routes]]\nname = "{name}"\ntargets = {targets}\n'


BOTH = deployment("") + upstream("")


def _set(variable: str) -> tuple[tuple[str, str], ...]:
    return ((variable, CANARY),)


def price(text: str, model: str = "qwen-small") -> str:
    return f'[[prices]]\nmodel = "{model}"\n{text}\n'


BROKEN = [
    # tables and keys
    Broken("gatway", "Did you mean gateway?", "[gatway]\nlisten = 'x'"),
    Broken("aliases", "The tables are [gateway]", "[[aliases]]\nname = 'chat'"),
    Broken("gateway.lisen", "Did you mean listen?", "[gateway]\nlisen = 'x'"),
    Broken("gateway.tls", "The keys of [gateway] are listen", "[gateway]\ntls = true"),
    Broken("deployments[1].slot", "Did you mean slots?", deployment("") + deployment("slot = 1", name="b")),
    Broken("gateway", "expected [gateway]; given [[gateway]]", "[[gateway]]\nlisten = '127.0.0.1:1'"),
    Broken("gateway", "expected [gateway]; given something else", "gateway = 3"),
    Broken("deployments", "expected [[deployments]], once for each; given [deployments]", "[deployments]\nname = 'a'"),
    Broken("deployments[0]", "expected [[deployments]]; given something else", "deployments = ['a']"),
    # gateway
    Broken("gateway.listen", 'an address and port such as "127.0.0.1:8080"', "[gateway]\nlisten = 8080"),
    Broken("gateway.listen", 'given "127.0.0.1:99999"', "[gateway]\nlisten = '127.0.0.1:99999'"),
    Broken("gateway.listen", "expected an address", "[gateway]\nlisten = '::1:8080'"),
    Broken("gateway.body_bytes_max", "a whole number from 1024", "[gateway]\nbody_bytes_max = 10"),
    Broken("gateway.body_bytes_max", "given 1.5", "[gateway]\nbody_bytes_max = 1.5"),
    Broken("gateway.body_bytes_max", 'given "8388608"', "[gateway]\nbody_bytes_max = '8388608'"),
    Broken("gateway.tools_count_max", "given true", "[gateway]\ntools_count_max = true"),
    Broken("gateway.choices_count_max", "a whole number from 1 to 64", "[gateway]\nchoices_count_max = 0"),
    Broken("gateway.idle_timeout_s", "seconds, over 0", "[gateway]\nidle_timeout_s = 0"),
    Broken("gateway.idle_timeout_s", "given nan", "[gateway]\nidle_timeout_s = nan"),
    Broken("gateway.total_timeout_s", "given inf", "[gateway]\ntotal_timeout_s = inf"),
    Broken("gateway.total_timeout_s", "given false", "[gateway]\ntotal_timeout_s = false"),
    # store, models, log, billing
    Broken("store.url", "the only store supported", "[store]\nurl = 'postgresql://h/x'"),
    Broken("store.url", "expected", "[store]\nurl = 'sqlite:///:memory:'"),
    Broken("store.url", "expected", "[store]\nurl = 'sqlite:///a.db?mode=ro'"),
    Broken("store.url", "expected", "[store]\nurl = 'sqlite:///'"),
    Broken("models.directory", "the path of a directory", "[models]\ndirectory = ''"),
    Broken("models.huggingface_endpoint", "an http:// or https:// address", "[models]\nhuggingface_endpoint = 'ftp://h'"),
    Broken("log.level", "Did you mean info?", "[log]\nlevel = 'inof'"),
    Broken("log.format", '"auto", "json" or "console"', "[log]\nformat = 'xml'"),
    Broken("billing.currency", "three capital letters", "[billing]\ncurrency = 'usd'"),
    # deployments
    Broken("deployments[0].model", "missing", "[[deployments]]\nname = 'a'"),
    Broken("deployments[0].name", "missing", "[[deployments]]\nmodel = 'a'"),
    Broken("deployments[0].name", "a name of 1 to 63", "[[deployments]]\nname = 'A b'\nmodel = 'm'"),
    Broken("deployments[0].name", "a name of 1 to 63", f"[[deployments]]\nname = '{'a' * 64}'\nmodel = 'm'"),
    Broken("deployments[0].engine", 'expected "llamacpp"', deployment("engine = 'vllm'")),
    Broken("deployments[0].replicas", "from 1 to 16", deployment("replicas = 17")),
    Broken("deployments[0].slots", "from 1 to 64; given 0", deployment("slots = 0")),
    Broken("deployments[0].context_tokens", "from 256 to 131072", deployment("context_tokens = 255")),
    Broken("deployments[0].threads", "from 1 to 1024", deployment("threads = 0")),
    Broken("deployments[1].name", 'is the name of deployments[0] already', deployment("") + deployment("")),
    # upstreams
    Broken("upstreams[0].name", "is the name of deployments[0] already", deployment("", "acme") + upstream("")),
    Broken("upstreams[0].kind", 'expected "openai"', upstream("kind = 'anthropic'")),
    Broken("upstreams[0].base_url", "without user, query or fragment", upstream("", base_url="https://h/v1?k=1")),
    Broken("upstreams[0].base_url", "an http:// or https://", upstream("", base_url="api.example.com")),
    Broken("upstreams[0].base_url", "an http:// or https://", upstream("", base_url="https://h:99999/v1")),
    Broken("upstreams[0].models", "at least one", upstream("", models="[]")),
    Broken("upstreams[0].models[1]", "each only once", upstream("", models='["x", "x"]')),
    Broken("upstreams[0].models[0]", "a model's name", upstream("", models='["a b"]')),
    # routes
    Broken("routes[0].targets", "missing", deployment("") + "[[routes]]\nname = 'smart'"),
    Broken("routes[0].targets", "at least one", deployment("") + route("[]")),
    Broken("routes[0].targets[0]", 'Did you mean acme/x? It can be a or acme/x.', BOTH + route("['acme/y']")),
    Broken("routes[0].targets[1]", "each only once", BOTH + route("['a', 'a']")),
    Broken("routes[1].targets[1]", "is a route; expected deployments", BOTH + route("['a']") + route("['a', 'smart']", "two")),
    Broken("routes[0].targets[0]", "is a route", BOTH + route("['smart']")),
    Broken("routes[0].name", "is the name of deployments[0] already", BOTH + route("['acme/x']", "a")),
    Broken("routes[0].name", "is the name of upstreams[0] already", BOTH + route("['acme/x']", "acme")),
    Broken("routes[1].name", "is the name of routes[0] already", BOTH + route("['acme/x']") + route("['a']")),
    Broken("routes[0].name", "a name of 1 to 63", BOTH + route("['acme/x']", "acme/y")),
    Broken("upstreams[0].failures_max", "a whole number from 0", upstream("failures_max = -1")),
    Broken("upstreams[0].retries_max", "a whole number from 0 to 10", upstream("retries_max = 11")),
    Broken("upstreams[0].api_key", "a secret is not kept in this file", upstream(f"api_key = '{CANARY}'")),
    Broken("upstreams[0].api_key", '{ env = "NAME" }', upstream("api_key = 3")),
    Broken("upstreams[0].api_key", "ACME_KEY, which is not set", upstream("api_key = { env = 'ACME_KEY' }")),
    Broken("upstreams[0].api_key", "is empty", upstream("api_key = { env = 'E' }"), environ=(("E", " "),)),
    Broken("upstreams[0].api_key", "can't be read: No such file", upstream("api_key = { file = '/nonexistent/key' }")),
    Broken("upstreams[0].api_key.env", "the name of an environment", upstream(f"api_key = {{ env = '{CANARY}' }}")),
    Broken("upstreams[0].api_key", "a table with the key 'vault'", upstream("api_key = { vault = 'x' }")),
    Broken("upstreams[0].headers.authorization", "{ env =", upstream(f"headers = {{ authorization = '{CANARY}' }}")),
    Broken("upstreams[0].headers.Host", "that the connection itself sets", upstream("headers = { Host = 'x' }")),
    Broken("upstreams[0].headers.X-A", "printable ASCII", upstream(f'headers = {{ X-A = "{CANARY}\\r\\nX-B: 1" }}')),
    Broken("upstreams[0].headers", "a table of headers", upstream("headers = ['x']")),
    Broken("upstreams[0].headers.authorization", "only one of this and upstreams[0].api_key",
           upstream("api_key = { env = 'E' }\nheaders = { Authorization = { env = 'E' } }"), environ=(("E", CANARY),)),
    Broken("upstreams[0].running_counts", "mean timings_per_token?", upstream("running_counts = 'timings_per_tokens'")),
    Broken("upstreams[0].concurrency_max", "a whole number", upstream("concurrency_max = 0")),
    # prices
    Broken("prices[0].input", 'write it as a string, "0.1"', price("input = 0.1\noutput = '1'")),
    Broken("prices[0].input", "a price of 0 or more", price("input = '-0.1'\noutput = '1'")),
    Broken("prices[0].output", "at most 9 digits", price("input = '0.1'\noutput = '0.1234567891'")),
    Broken("prices[0].output", "a decimal string", price("input = '0.1'\noutput = '1e3'")),
    Broken("prices[0].output", "a decimal string", price("input = '0.1'\noutput = 'NaN'")),
    Broken("prices[0].output", "missing", price("input = '0.1'")),
    Broken("prices[0].model", "Did you mean qwen-small?", price("input = '1'\noutput = '1'", model="qwen-smal")),
    Broken("prices[0].model", "is not configured", upstream("") + price("input = '1'\noutput = '1'")),
    Broken("prices[1].model", "is priced by prices[0] already", price("input = '1'\noutput = '1'") * 2),
    # environment and command line
    Broken("HEADWATER_GATEWAY__LISEN", "mean HEADWATER_GATEWAY__LISTEN?", environ=_set("HEADWATER_GATEWAY__LISEN")),
    Broken("HEADWATER_UPSTREAMS__0__API_KEY", "in the file only", environ=_set("HEADWATER_UPSTREAMS__0__API_KEY")),
    Broken("gateway.listen", "(HEADWATER_GATEWAY__LISTEN)", environ=(("HEADWATER_GATEWAY__LISTEN", "nowhere"),)),
    Broken("gateway.body_bytes_max", 'given "8 MiB"', environ=(("HEADWATER_GATEWAY__BODY_BYTES_MAX", "8 MiB"),)),
    Broken("store.url", 'given ""', environ=(("HEADWATER_STORE__URL", ""),)),
    Broken("gateway.lisen", "Did you mean gateway.listen?", overrides=("gateway.lisen=x",)),
    Broken("gateway.listen", "given no value", overrides=("gateway.listen",)),
    Broken("deployments[0].slots", "in the file only", overrides=("deployments[0].slots=2",)),
    Broken("log.level", 'given "loud" (command line)', overrides=("log.level=loud",)),
    Broken("--set", "expected --set TABLE.KEY=VALUE", overrides=(CANARY,)),
    Broken("--set", "expected --set TABLE.KEY=VALUE", overrides=(f"{CANARY}==",)),
    Broken("store.url", "postgresql://***@h/x", overrides=(f"store.url=postgresql://u:{CANARY}@h/x",)),
    Broken("models.modelscope_endpoint", "part not shown", overrides=(f"models.modelscope_endpoint=https://h/?k={CANARY}",)),
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=[f"{i:02}-{broken.key}" for i, broken in enumerate(BROKEN)])
def test_broken_configuration_stops_the_start_and_names_the_key(broken: Broken, tmp_path: Path) -> None:
    path = tmp_path / "headwater.toml"
    path.write_text(broken.toml, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(config_path=path, environ=dict(broken.environ), overrides=broken.overrides)
    lines = caught.value.why.splitlines()
    matching = [line for line in lines if line.startswith(f"{broken.key}: ")]
    assert len(matching) == 1, lines
    assert broken.says in matching[0]
    assert lines == matching, "one mistake is reported as one problem"
    assert CANARY not in str(caught.value)


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "headwater.toml"
    path.write_text("[gateway]\nlisten = 3\nnothing = 1\n[log]\nlevel = 'x'\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(config_path=path, environ={"HEADWATER_STORE__URL": "x"}, overrides=["billing.currency=x"])
    keys = [line.partition(":")[0] for line in caught.value.why.splitlines()]
    assert keys == ["gateway.listen", "gateway.nothing", "log.level", "store.url", "billing.currency"]
    assert "5 problems" in caught.value.what
    assert str(path) in caught.value.now


def test_a_bad_value_stops_the_start_even_where_a_good_one_overrides_it(tmp_path: Path) -> None:
    path = tmp_path / "headwater.toml"
    path.write_text("[gateway]\nlisten = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"gateway\.listen"):
        load(config_path=path, environ={}, overrides=["gateway.listen=127.0.0.1:1"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[gateway]\nlisten = \n", "line 2, column 10"),
        (b"a = 1\na = 2\n", "line 2, column 6"),
        (b"[gateway]\nlisten = '\xff'\n", "not UTF-8 text (at line 2"),
        (b"a = " + b"[" * 100_000, "nested too deep"),
    ],
)
def test_invalid_toml_is_placed(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "headwater.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(config_path=path, environ={})
    assert says in caught.value.why
    assert str(path) in caught.value.what


def test_a_named_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match="--config names it"):
        load(config_path=missing, environ={})
    with pytest.raises(ConfigError, match="HEADWATER_CONFIG names it"):
        load(config_path=None, environ={"HEADWATER_CONFIG": str(missing)})
    with pytest.raises(ConfigError, match="no such file"):
        load(config_path=tmp_path, environ={})


def test_a_message_holds_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "headwater.toml"
    path.write_text('[gateway]\nlisten = "a\\u001b[31m\\n"\n"b\\u001b" = 1\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(config_path=path, environ={})
    assert "\x1b" not in str(caught.value)
    assert len(caught.value.why.splitlines()) == 2
