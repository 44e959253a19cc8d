"""Every setting of the platform with its default and meaning; read once at the start, then passed as plain arguments.

Each field's metadata holds `help` (what it means) and `kind` (what it may hold); the loader checks by `kind`, and the
reference page is generated from both. Paths are relative to the directory the platform is started in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from headwater.settings import values
from headwater.settings.secret import Headers, Secret, SecretReference
from headwater.settings.values import split_address


def _about(help: str, kind: values.Kind) -> dict[str, object]:  # noqa: A002 - the metadata's own word
    return {"help": help, "kind": kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The HTTP face: where it listens and what it bounds."""

    listen: str = field(
        default="127.0.0.1:8080",
        metadata=_about("Address and port of the API; port 0 takes any free one.", values.Address()),
    )
    body_bytes_max: int = field(
        default=8 * 2**20,
        metadata=_about("A larger request body gets 413 before it is parsed.", values.WholeNumber(1024, 2**30)),
    )
    messages_count_max: int = field(
        default=2048, metadata=_about("More messages in a request get 400.", values.WholeNumber(1, 1_000_000))
    )
    tools_count_max: int = field(
        default=128, metadata=_about("More tools in a request get 400.", values.WholeNumber(1, 100_000))
    )
    schema_bytes_max: int = field(
        default=262_144,
        metadata=_about(
            "A larger JSON schema (of a tool or a response format) gets 400.", values.WholeNumber(64, 2**26)
        ),
    )
    schema_depth_max: int = field(
        default=32, metadata=_about("A JSON schema nested deeper gets 400.", values.WholeNumber(1, 128))
    )
    json_depth_max: int = field(
        default=64, metadata=_about("A request body nested deeper gets 400.", values.WholeNumber(4, 256))
    )
    choices_count_max: int = field(
        default=8,
        metadata=_about("A larger `n` gets 400; each choice is a call of its own.", values.WholeNumber(1, 64)),
    )
    stop_count_max: int = field(
        default=16, metadata=_about("More stop sequences in a request get 400.", values.WholeNumber(1, 1024))
    )
    stop_bytes_max: int = field(
        default=1024, metadata=_about("A longer stop sequence gets 400 (UTF-8 bytes).", values.WholeNumber(1, 65_536))
    )
    concurrent_requests_max: int = field(
        default=512,
        metadata=_about(
            "Requests being served at once, over all models; one more gets 503 with `Retry-After`.",
            values.WholeNumber(1, 100_000),
        ),
    )
    queued_requests_max: int = field(
        default=256,
        metadata=_about(
            "Requests waiting for one deployment or upstream; one more gets 503 with `Retry-After`.",
            values.WholeNumber(0, 100_000),
        ),
    )
    connections_max: int = field(
        default=4096,
        metadata=_about(
            "Connections of clients open at once; one more gets 503 and is closed. Less when the system's limit of open "
            "files leaves less.",
            values.WholeNumber(8, 1_000_000),
        ),
    )
    memory_bytes_max: int | None = field(
        default=None,
        metadata=_about(
            "Resident memory of the platform's own process: from 90 % of it load is refused, batch first. Not set means "
            "a quarter of the machine's or container's, at least 512 MiB.",
            values.WholeNumber(64 * 2**20, 2**44),
        ),
    )
    event_loop_lag_max_s: float = field(
        default=0.05,
        metadata=_about(
            "When the event loop is later than this for long, load is refused, batch first.", values.Seconds()
        ),
    )
    connect_timeout_s: float = field(
        default=5.0, metadata=_about("Longest wait for a connection to an engine or upstream.", values.Seconds())
    )
    first_byte_timeout_s: float = field(
        default=120.0,
        metadata=_about(
            "Longest wait for an engine's first event; an engine that reports prefill progress counts as alive.",
            values.Seconds(),
        ),
    )
    idle_timeout_s: float = field(
        default=60.0, metadata=_about("Longest silence between two events of an engine.", values.Seconds())
    )
    total_timeout_s: float = field(
        default=600.0, metadata=_about("Longest life of a request, waiting in the queue included.", values.Seconds())
    )
    write_stall_timeout_s: float = field(
        default=30.0,
        metadata=_about("A client that takes nothing for this long has left (`client_gone`).", values.Seconds()),
    )
    drain_timeout_s: float = field(
        default=30.0,
        metadata=_about("At shutdown, how long the requests being served may go on.", values.Seconds()),
    )
    output_tokens_default_max: int = field(
        default=4096,
        metadata=_about(
            "Output cap sent to the engine when the caller states none (less if the context leaves less).",
            values.WholeNumber(1, 1_000_000),
        ),
    )
    key_cache_count: int = field(
        default=50_000, metadata=_about("API keys held in memory.", values.WholeNumber(1, 10_000_000))
    )

    @property
    def host(self) -> str:
        """Host part of `listen`, an IPv6 one without its brackets."""
        return self._address[0]

    @property
    def port(self) -> int:
        """Port part of `listen`; 0 means any free one."""
        return self._address[1]

    @property
    def _address(self) -> tuple[str, int]:
        address = split_address(self.listen)
        if address is None:
            raise ValueError(f"listen is not HOST:PORT: {self.listen!r}")
        return address


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where keys, usage and prices are kept."""

    url: str = field(
        default="sqlite:///./data/headwater.db",
        metadata=_about(
            "The database; its directory is the data directory, which also holds the lock and the sockets.",
            values.StoreUrl(),
        ),
    )

    archive_after_days: int | None = field(
        default=None,
        metadata=_about(
            "Usage records older than this move from the database to files beside it; not set keeps them all.",
            values.WholeNumber(1, 36_500),
        ),
    )
    verify_interval_s: float = field(
        default=3600.0,
        metadata=_about(
            "How often the books are recomputed in the background; a difference is logged and counted.",
            values.Seconds(30 * 86_400.0),
        ),
    )

    @property
    def path(self) -> Path:
        """The database file."""
        return Path(self.url.removeprefix(values.StoreUrl.prefix))

    @property
    def data_directory(self) -> Path:
        """The directory of the database file: the one the owner locks."""
        return self.path.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStoreSettings:
    """Where model files are kept and fetched from."""

    directory: str = field(
        default="./data/models",
        metadata=_about("Directory of the model files.", values.line("the path of a directory")),
    )
    huggingface_endpoint: str = field(
        default="https://huggingface.co",
        metadata=_about("Where `hf:` sources are fetched; a mirror's address will do.", values.HttpUrl()),
    )
    modelscope_endpoint: str = field(
        default="https://modelscope.cn", metadata=_about("Where `modelscope:` sources are fetched.", values.HttpUrl())
    )
    connect_timeout_s: float = field(
        default=5.0,
        metadata=_about("A source that can't be reached in this time is left for the next one.", values.Seconds(300.0)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is logged, and how; never prompts, answers or keys."""

    level: Literal["debug", "info", "warning", "error"] = field(
        default="info",
        metadata=_about("The least level that is logged.", values.OneOf(("debug", "info", "warning", "error"))),
    )
    format: Literal["auto", "json", "console"] = field(
        default="auto",
        metadata=_about(
            "How a line looks; `auto` is `json`, and on a terminal `console` with warnings and errors only.",
            values.OneOf(("auto", "json", "console")),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingSettings:
    """How use is priced."""

    currency: str = field(
        default="USD",
        metadata=_about(
            "The currency of every price.",
            values.Matching(re.compile(r"[A-Z]{3}"), 'three capital letters (ISO 4217), such as "USD"'),
        ),
    )
    unpriced: Literal["record", "refuse"] = field(
        default="record",
        metadata=_about(
            "A request for a model without a price: `record` serves it and flags its record, `refuse` answers 403.",
            values.OneOf(("record", "refuse")),
        ),
    )
    idempotency_hours: int = field(
        default=24,
        metadata=_about("How long an answer is kept for its `Idempotency-Key`.", values.WholeNumber(1, 24 * 30)),
    )
    idempotency_answer_bytes_max: int = field(
        default=262_144,
        metadata=_about("A larger answer is given but not kept.", values.WholeNumber(0, 2**24)),
    )
    idempotency_project_bytes_max: int = field(
        default=64 * 2**20,
        metadata=_about(
            "Answers kept for one project; beyond it they are given but not kept.", values.WholeNumber(0, 2**40)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSettings:
    """A model we serve ourselves, with its settings and a wished replica count."""

    name: str = field(metadata=_about("The name callers ask for.", values.name()))
    model: str = field(
        metadata=_about(
            "What is served: a catalogue entry's name, or the path of a GGUF file.",
            values.line("a catalogue entry's name or the path of a GGUF file"),
        )
    )
    engine: Literal["llamacpp"] = field(
        default="llamacpp", metadata=_about("The serving software.", values.OneOf(("llamacpp",)))
    )
    replicas: int = field(
        default=1, metadata=_about("Running copies, each a process with its own memory.", values.WholeNumber(1, 16))
    )
    slots: int = field(default=4, metadata=_about("Requests a replica serves at once.", values.WholeNumber(1, 64)))
    context_tokens: int = field(
        default=4096,
        metadata=_about(
            "Prompt and output tokens of one request; a replica reserves memory for this × `slots`.",
            values.WholeNumber(256, 131_072),
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=_about(
            "Threads of a replica; not set means an even share of the machine's cores − 1 among all replicas, at least 1.",
            values.WholeNumber(1, 1024),
        ),
    )
    batch_tokens: int | None = field(
        default=None,
        metadata=_about(
            "Prompt tokens read in one go, which can't be interrupted; not set means measured at the first start, so "
            "that one batch takes about 0.2 s, at most 0.4 s.",
            values.WholeNumber(8, 16_384),
        ),
    )
    start_timeout_s: float = field(
        default=180.0, metadata=_about("A replica not ready by then has failed to start.", values.Seconds())
    )
    restarts_max: int = field(
        default=3,
        metadata=_about("Restarts within `restart_window_s`; after that it stays down.", values.WholeNumber(0, 1000)),
    )
    restart_window_s: float = field(
        default=60.0, metadata=_about("The time in which restarts are counted.", values.Seconds())
    )
    hang_timeout_s: float = field(
        default=60.0,
        metadata=_about(
            "A replica that answers nothing, or on which no call advances, for this long is ended and started again; one "
            "that advances, however slowly, is left alone.",
            values.Seconds(),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """Somebody else's models, callable as `upstream/model`."""

    name: str = field(metadata=_about("The part before the `/` in the names callers ask for.", values.name()))
    kind: Literal["openai"] = field(default="openai", metadata=_about("The API it speaks.", values.OneOf(("openai",))))
    base_url: str = field(
        metadata=_about(
            "Its address up to and including the version, such as `https://api.example.com/v1`.", values.HttpUrl()
        )
    )
    api_key: Secret | None = field(
        default=None, metadata=_about("Its key, sent as a bearer token; not set sends none.", SecretReference())
    )
    headers: Mapping[str, Secret] = field(
        default_factory=dict,
        metadata=_about("Headers sent with each request; their values are never shown.", Headers()),
    )
    models: tuple[str, ...] = field(
        metadata=_about(
            "The models callable here, by their names there.",
            values.ListOf(values.Matching(re.compile(r"[!-~]{1,200}"), "a model's name without spaces, as a string")),
        )
    )
    concurrency_max: int = field(
        default=256,
        metadata=_about("Requests sent to it at once; more wait in the queue.", values.WholeNumber(1, 100_000)),
    )
    context_tokens: int | None = field(
        default=None,
        metadata=_about(
            "Prompt and output tokens of one request there; not set means unknown, and the upstream decides.",
            values.WholeNumber(1, 100_000_000),
        ),
    )
    connect_timeout_s: float | None = field(
        default=None, metadata=_about("Not set means `gateway.connect_timeout_s`.", values.Seconds())
    )
    first_byte_timeout_s: float | None = field(
        default=None, metadata=_about("Not set means `gateway.first_byte_timeout_s`.", values.Seconds())
    )
    idle_timeout_s: float | None = field(
        default=None, metadata=_about("Not set means `gateway.idle_timeout_s`.", values.Seconds())
    )
    total_timeout_s: float | None = field(
        default=None, metadata=_about("Not set means `gateway.total_timeout_s`.", values.Seconds())
    )
    failures_max: int = field(
        default=5,
        metadata=_about(
            "After so many failures in a row it is left alone for a while, requests for it getting 503 at once; 0 means never.",
            values.WholeNumber(0, 10_000),
        ),
    )
    retries_max: int = field(
        default=1,
        metadata=_about(
            "Retries of one call that failed before any content, where no fallback is left; all together add at most a "
            "fifth to the calls.",
            values.WholeNumber(0, 10),
        ),
    )
    running_counts: Literal["none", "continuous_usage_stats", "timings_per_token"] = field(
        default="none",
        metadata=_about(
            "How it is asked to count tokens while it streams, so that a cut stream is billed exactly.",
            values.OneOf(("none", "continuous_usage_stats", "timings_per_token")),
        ),
    )
    output_cap_field: Literal["max_tokens", "max_completion_tokens"] = field(
        default="max_tokens",
        metadata=_about(
            "The request field it reads the output cap from.", values.OneOf(("max_tokens", "max_completion_tokens"))
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSettings:
    """A name that stands for several targets: when one fails before any content, the next one answers."""

    name: str = field(metadata=_about("The name callers ask for.", values.name()))
    targets: tuple[str, ...] = field(
        metadata=_about(
            "Deployments and `upstream/model` names, in the order they are tried.",
            values.ListOf(values.line("the name of a deployment, or `upstream/model`")),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSettings:
    """What callers pay for a model, per million tokens; without a price, its use is recorded as unpriced."""

    model: str = field(
        metadata=_about(
            "The name callers ask for: a deployment, `upstream/model`, or a route.", values.line("a model's name")
        )
    )
    input: str = field(metadata=_about("Prompt tokens.", values.Price()))
    cached_input: str | None = field(
        default=None, metadata=_about("Prompt tokens read from a cache; not set means as `input`.", values.Price())
    )
    cache_write: str | None = field(
        default=None, metadata=_about("Prompt tokens written to a cache; not set means as `input`.", values.Price())
    )
    cache_write_1h: str | None = field(
        default=None,
        metadata=_about("Of those, tokens kept for an hour; not set means as `cache_write`.", values.Price()),
    )
    output: str = field(metadata=_about("Output tokens.", values.Price()))
    reasoning: str | None = field(
        default=None,
        metadata=_about("Output tokens spent on reasoning; not set means as `output`.", values.Price()),
    )
    request: str | None = field(
        default=None, metadata=_about("A million requests, beside their tokens; not set means nothing.", values.Price())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSettings(PriceSettings):
    """What an upstream takes for a model, per million tokens: put beside the price on each attempt, charged to nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """An address that is told of events, by a signed POST."""

    url: str = field(metadata=_about("Where events are sent.", values.HttpUrl()))
    secret: Secret = field(metadata=_about("The key of the signature (`webhook-signature`).", SecretReference()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration. Where it names no deployment and no upstream, the loader adds `DEFAULT_DEPLOYMENT`."""

    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    models: ModelStoreSettings = field(default_factory=ModelStoreSettings)
    log: LogSettings = field(default_factory=LogSettings)
    billing: BillingSettings = field(default_factory=BillingSettings)
    deployments: tuple[DeploymentSettings, ...] = ()
    upstreams: tuple[UpstreamSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    prices: tuple[PriceSettings, ...] = ()
    costs: tuple[CostSettings, ...] = ()
    webhooks: tuple[WebhookSettings, ...] = ()


# An empty configuration is a platform too: it serves this.
DEFAULT_DEPLOYMENT: Final = DeploymentSettings(name="qwen-small", model="qwen2.5-coder-0.5b-instruct")
