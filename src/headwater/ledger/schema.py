"""The tables, as SQLAlchemy Core knows them: for migrations and reports, never on the path of a request.

The writer's own SQL is in `store.py`; `tests/unit/ledger/test_schema.py` holds the two and the migrations together.
Times are integer milliseconds since the Unix epoch, durations milliseconds, money nano-units.
"""

from sqlalchemy import (
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
)

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"}
)

TOKEN_COLUMNS = ("uncached_input", "cache_read", "cache_write", "output", "reasoning")


def _tokens() -> list[Column[int]]:
    return [Column(name, Integer, nullable=False) for name in TOKEN_COLUMNS]


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
    sqlite_strict=True,
)

projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at_ms", Integer, nullable=False),
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
    *_usage_checks(),
    Index(None, "request_id"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
