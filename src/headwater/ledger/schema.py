"""The tables, as SQLAlchemy Core knows them: for migrations and reports, never on the path of a request.

The writer's own SQL is in `store.py`; `tests/unit/ledger/test_schema.py` holds the two and the migrations together.
Times are integer milliseconds since the Unix epoch, durations milliseconds, money nano-units. What each table means, and
which of them are the log and which only caches of it, is in `docs/explanation/ledger.md`.
"""

from sqlalchemy import (
    DDL,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)

from headwater.ledger.entries import PROGRAM

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"}
)

TOKEN_COLUMNS = ("uncached_input", "cache_read", "cache_write", "output", "reasoning")
"""Beside them stands `cache_write_1h`, a part of cache_write as reasoning is of output; it came later."""


def _tokens() -> list[Column[int]]:
    return [Column(name, Integer, nullable=False) for name in TOKEN_COLUMNS]


def _added(name: str, default: str) -> Column[int]:
    """A whole number that was added to a table that may hold rows already."""
    return Column(name, Integer, nullable=False, server_default=text(default))


def _weight() -> Column[int]:
    """A share of the service, against the weights of others."""
    check = CheckConstraint("weight BETWEEN 1 AND 1000", name="weight")
    return Column("weight", Integer, check, nullable=False, server_default=text("1"))


def _usage_checks() -> list[CheckConstraint]:
    """Usage that breaks its own shape can't be stored, whoever made it."""
    return [
        CheckConstraint(" AND ".join(f"{name} >= 0" for name in TOKEN_COLUMNS), name="tokens_positive"),
        CheckConstraint("reasoning <= output", name="reasoning_in_output"),
        CheckConstraint("outcome IN ('ok', 'client_gone', 'upstream_error', 'timeout', 'rejected')", name="outcome"),
        CheckConstraint("usage_source IN ('reported', 'counted', 'estimated')", name="usage_source"),
    ]


organizations = Table(
    "organizations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at_ms", Integer, nullable=False),
    Column("currency", Text),  # ISO 4217; NULL: the platform's. An organization has one
    _added("is_prepaid", "0"),  # 1: a request needs credit in the wallet
    Column("archived_at_ms", Integer),
    _weight(),
    sqlite_strict=True,
)

projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at_ms", Integer, nullable=False),
    _added("is_storage_allowed", "1"),  # 0: no answer is kept, not even for an idempotency key
    Column("archived_at_ms", Integer),
    UniqueConstraint("organization_id", "name"),
    sqlite_strict=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the whole key; the key itself is nowhere
    Column("hint", Text, nullable=False),  # its first characters, to recognise it by
    Column("allowed_models", Text),  # JSON array of names; NULL means every model
    Column("created_at_ms", Integer, nullable=False),
    Column("expires_at_ms", Integer),
    Column("revoked_at_ms", Integer),
    _weight(),
    CheckConstraint("length(hash) = 32", name="hash_is_sha256"),
    sqlite_strict=True,
)

prices = Table(
    "prices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("currency", Text, nullable=False),
    *(Column(f"{name}_nanos", Integer, nullable=False) for name in TOKEN_COLUMNS),  # per million tokens
    Column("created_at_ms", Integer, nullable=False),
    Column("kind", Text, nullable=False, server_default=text("'price'")),  # price: they pay it; cost: we pay it
    _added("effective_at_ms", "0"),
    Column("source", Text, nullable=False, server_default=text("'config'")),  # config or admin: who may change it
    _added("is_withdrawn", "0"),  # 1: from here on there is no price
    Column("terms", Text),  # JSON of whatever goes beyond the five columns (`money.price_terms_json`)
    CheckConstraint(" AND ".join(f"{name}_nanos >= 0" for name in TOKEN_COLUMNS), name="prices_positive"),
    Index(None, "model", "created_at_ms"),
    sqlite_strict=True,
)

usage_records = Table(
    "usage_records",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("client_request_id", Text),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("key_id", Text, ForeignKey("api_keys.id"), nullable=False),
    Column("dialect", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("is_stream", Integer, nullable=False),
    Column("choices_count", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error_code", Text),
    Column("usage_source", Text, nullable=False),
    *_tokens(),
    Column("price_id", Text, ForeignKey("prices.id")),  # NULL: no price was known; cost_nanos is then NULL too
    Column("cost_nanos", Integer),
    Column("received_at_ms", Integer, nullable=False),
    Column("queue_ms", Integer, nullable=False),
    Column("ttft_ms", Integer),  # NULL: no token was sent
    Column("duration_ms", Integer, nullable=False),
    _added("cache_write_1h", "0"),
    Column("service_tier", Text, nullable=False, server_default=text("'standard'")),
    Column("tags", Text),  # the declared tags the caller named, separated by spaces
    Column("flags", Text, nullable=False, server_default=text("''")),  # words of `usage.Flag`, separated by spaces
    *_usage_checks(),
    CheckConstraint("(price_id IS NULL) = (cost_nanos IS NULL)", name="priced_or_not"),
    CheckConstraint("cost_nanos >= 0", name="cost_positive"),
    Index(None, "key_id", "received_at_ms"),
    Index(None, "received_at_ms"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("request_id", Text, ForeignKey("usage_records.request_id"), nullable=False),
    Column("choice", Integer, nullable=False),
    Column("target", Text, nullable=False),  # the deployment, or upstream/model
    Column("replica_id", Text),  # NULL for an upstream
    Column("outcome", Text, nullable=False),
    Column("error_code", Text),
    Column("usage_source", Text, nullable=False),
    *_tokens(),
    Column("started_at_ms", Integer, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    _added("cache_write_1h", "0"),
    Column("cost_id", Text),  # the version in `prices` of what the upstream takes; NULL: unknown, or our own engine
    Column("cost_nanos", Integer),
    Column("report", Text),  # JSON of the upstream's own report where it lied; what we charge by is in the columns
    Column("reason", Text),  # why this call went where it went; NULL: nothing was noted
    *_usage_checks(),
    Index(None, "request_id"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

# -- the log: reservations, their resolutions, other transfers. Rows are added, never changed -----------------------------

epochs = Table(
    "epochs",  # one row for each start of a gateway
    metadata,
    Column("id", Integer, primary_key=True),
    Column("gateway", Text, nullable=False),
    Column("started_at_ms", Integer, nullable=False),
    sqlite_strict=True,
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", Integer, primary_key=True),  # ascending in the order of admission
    Column("request_id", Text, nullable=False, unique=True),
    Column("epoch", Integer, ForeignKey("epochs.id"), nullable=False),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("key_id", Text, ForeignKey("api_keys.id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("price_id", Text, ForeignKey("prices.id")),
    Column("amount_nanos", Integer, nullable=False),  # the worst case; 0 where no price is known
    Column("budgets", Text),  # JSON [[budget id, period key], …]: the caps it is held under; NULL: none
    Column(
        "lots", Text
    ),  # JSON [[grant id, nanos], …]: the credit it is held from, in the order it is used; NULL: none
    Column("client_request_id", Text),
    Column("dialect", Text, nullable=False),
    Column("service_tier", Text, nullable=False),
    Column("is_stream", Integer, nullable=False),
    Column("choices_count", Integer, nullable=False),
    Column("tags", Text),
    Column("received_at_ms", Integer, nullable=False),
    Column("expires_at_ms", Integer, nullable=False),
    CheckConstraint("amount_nanos >= 0", name="amount_positive"),
    sqlite_strict=True,
)

resolutions = Table(
    "resolutions",
    metadata,
    Column("id", Integer, primary_key=True),  # ascending in the order of commit
    Column(
        "reservation_id", Integer, ForeignKey("reservations.id"), nullable=False, unique=True
    ),  # once, and once only
    Column("kind", Text, nullable=False),
    Column("charge_nanos", Integer, nullable=False),  # at most the reservation's amount; the rest goes back
    Column("resolved_at_ms", Integer, nullable=False),
    CheckConstraint("kind IN ('post', 'void', 'expire')", name="kind"),
    CheckConstraint("charge_nanos >= 0 AND (kind = 'post' OR charge_nanos = 0)", name="charge"),
    sqlite_strict=True,
)

transfers = Table(
    "transfers",
    metadata,
    Column("id", Integer, primary_key=True),  # ascending in the order of commit
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),  # a grant, an adjustment, or for absorb and late_post a request
    Column("part", Integer, nullable=False, server_default=text("0")),  # the reservation whose release this is, else 0
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("model", Text),  # of absorb and late_post
    Column("amount_nanos", Integer, nullable=False),
    Column("note", Text),
    Column("created_at_ms", Integer, nullable=False),
    UniqueConstraint("subject", "kind", "part"),
    CheckConstraint(
        "kind IN ('grant', 'grant_expire', 'grant_revoke', 'adjust', 'absorb', 'late_post')",
        name="kind",
    ),
    CheckConstraint("amount_nanos > 0 OR kind = 'adjust'", name="amount_positive"),
    sqlite_strict=True,
)

budgets = Table(
    "budgets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("scope", Text, nullable=False),
    Column("scope_id", Text, nullable=False),  # the id of what is capped; for a tag its word
    Column("limit_nanos", Integer, nullable=False),
    Column("period", Text, nullable=False),
    Column("period_days", Integer),  # of a custom period
    Column("anchor_ms", Integer, nullable=False),  # when the first custom period began
    Column("time_zone", Text, nullable=False),
    Column("thresholds", Text, nullable=False),  # JSON array of percentages that are announced when crossed
    Column("created_at_ms", Integer, nullable=False),
    Column("archived_at_ms", Integer),
    CheckConstraint("scope IN ('organization', 'project', 'key', 'tag')", name="scope"),
    CheckConstraint("period IN ('total', 'day', 'week', 'month', 'custom')", name="period"),
    CheckConstraint("(period = 'custom') = (period_days IS NOT NULL)", name="custom_has_days"),
    CheckConstraint("limit_nanos >= 0", name="limit_positive"),
    Index(None, "scope_id"),
    sqlite_strict=True,
)

grants = Table(
    "grants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("amount_nanos", Integer, nullable=False),
    Column("expires_at_ms", Integer),
    Column("note", Text),
    Column("created_at_ms", Integer, nullable=False),
    Column("revoked_at_ms", Integer),
    CheckConstraint("amount_nanos > 0", name="amount_positive"),
    Index(None, "organization_id"),
    sqlite_strict=True,
)

RATE_LIMITS = (
    *("requests_per_minute", "requests_per_hour", "requests_per_day"),
    *("tokens_per_minute", "tokens_per_hour", "tokens_per_day"),
    "concurrency_max",
)
"""What a rate limit may limit; NULL: not by this one."""

rate_limits = Table(
    "rate_limits",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id")),  # NULL for a model's: it is everybody's
    Column("scope", Text, nullable=False),
    Column("scope_id", Text, nullable=False),  # the id of what is limited; for a model its name
    Column("model", Text),  # only requests to this model count; NULL: to every model
    *(Column(name, Integer) for name in RATE_LIMITS),
    Column("created_at_ms", Integer, nullable=False),
    Column("archived_at_ms", Integer),
    CheckConstraint("scope IN ('organization', 'project', 'key', 'model')", name="scope"),
    CheckConstraint(
        "(scope = 'model') = (organization_id IS NULL) AND (scope <> 'model' OR model IS NULL)",
        name="model_is_everybodys",
    ),
    CheckConstraint(f"min({', '.join(f'coalesce({name}, 1)' for name in RATE_LIMITS)}) >= 1", name="limits_positive"),
    CheckConstraint(f"coalesce({', '.join(RATE_LIMITS)}) IS NOT NULL", name="limits_something"),
    Index(None, "scope_id"),
    sqlite_strict=True,
)

changes = Table(
    "changes",  # what an operator changed, and when
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at_ms", Integer, nullable=False),
    Column("noun", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("detail", Text, nullable=False),  # JSON object
    sqlite_strict=True,
)

# -- caches of the log: `headwater ledger verify` recomputes them ---------------------------------------------------------

balances = Table(
    "balances",
    metadata,
    Column("account", Text, primary_key=True),
    Column("balance_nanos", Integer, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

grant_lots = Table(
    "grant_lots",
    metadata,
    Column("grant_id", Text, ForeignKey("grants.id"), primary_key=True),
    Column("remaining_nanos", Integer, nullable=False),  # neither charged nor expired; open holds are still in it
    CheckConstraint("remaining_nanos >= 0", name="remaining_positive"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

budget_periods = Table(
    "budget_periods",
    metadata,
    Column("budget_id", Text, ForeignKey("budgets.id"), primary_key=True),
    Column("period", Text, primary_key=True),
    Column("spent_nanos", Integer, nullable=False),  # charges posted; open holds are not in it
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

usage_hours = Table(
    "usage_hours",
    metadata,
    Column("hour", Integer, primary_key=True),  # hours since the Unix epoch; that in which the request ended
    Column("key_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("requests_count", Integer, nullable=False),
    Column("ok_count", Integer, nullable=False),
    Column("unpriced_count", Integer, nullable=False),
    *_tokens(),
    Column("cache_write_1h", Integer, nullable=False),
    Column("cost_nanos", Integer, nullable=False),
    Column("upstream_cost_nanos", Integer, nullable=False),
    Index(None, "key_id", "hour"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

# -- working state: not money -----------------------------------------------------------------------------------------------

marks = Table(
    "marks",  # how far a stream under way has come; gone once it is settled
    metadata,
    Column("reservation_id", Integer, ForeignKey("reservations.id"), primary_key=True),
    Column("attempts", Text, nullable=False),  # JSON, `rows.Mark`
    Column("marked_at_ms", Integer, nullable=False),
    sqlite_strict=True,
)

ledger_state = Table(
    "ledger_state",
    metadata,
    Column("name", Text, primary_key=True),  # open_from: no reservation below this id is open
    Column("value", Integer, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    Column("route", Text, primary_key=True),
    Column("idempotency_key", Text, primary_key=True),
    Column("body_hash", LargeBinary, nullable=False),  # SHA-256 of the request body
    Column("request_id", Text, nullable=False),
    Column("answer", LargeBinary, nullable=False),  # the body of the 200
    Column("stored_at_ms", Integer, nullable=False),
    Column("expires_at_ms", Integer, nullable=False),
    Index(None, "expires_at_ms"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

notices = Table(
    "notices",  # what subscribers are to be told: written with the change itself, delivered afterwards
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # budget_threshold
    Column("subject", Text, nullable=False),  # what happens once has one notice
    Column("body", Text, nullable=False),  # the JSON that is sent
    Column("created_at_ms", Integer, nullable=False),
    Column("tries_count", Integer, nullable=False),
    Column("next_try_at_ms", Integer),  # NULL: delivered, or given up
    Column("delivered_at_ms", Integer),
    Column("failure", Text),
    UniqueConstraint("kind", "subject"),
    Index(None, "next_try_at_ms"),
    sqlite_strict=True,
)

archives = Table(
    "archives",  # what was moved out of the log into files
    metadata,
    Column("id", Integer, primary_key=True),
    Column("file", Text, nullable=False, unique=True),
    Column("sha256", LargeBinary, nullable=False),
    Column("reservations_to", Integer, nullable=False),  # ids up to here are in this file or an earlier one
    Column("records_count", Integer, nullable=False),
    Column("first_received_at_ms", Integer, nullable=False),
    Column("last_received_at_ms", Integer, nullable=False),
    Column("created_at_ms", Integer, nullable=False),
    sqlite_strict=True,
)

carried_sums = Table(
    "carried_sums",  # what the archived rows add up to: where recomputing begins
    metadata,
    Column("kind", Text, primary_key=True),  # balance, lot or budget
    Column("name", Text, primary_key=True),  # account; grant id; budget id and period with a space between
    Column("amount_nanos", Integer, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)


# -- views and triggers, which SQLAlchemy has no objects for ----------------------------------------------------------------

for _statement in PROGRAM:
    event.listen(metadata, "after_create", DDL(_statement.replace("%", "%%")))  # type: ignore[no-untyped-call]
