"""First tables: organizations, projects, keys, prices, usage records and their attempts.

The statements are written out, so that what this revision made stays what it made whatever `schema.py` becomes.
"""

from alembic import op

revision = "0001"
down_revision = None
release = "0.1.0"

STATEMENTS = (
    """
    CREATE TABLE organizations (
        id TEXT NOT NULL,
        name TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (id),
        UNIQUE (name)
    )
     STRICT
    """,
    """
    CREATE TABLE prices (
        id TEXT NOT NULL,
        model TEXT NOT NULL,
        currency TEXT NOT NULL,
        uncached_input_nanos INTEGER NOT NULL,
        cache_read_nanos INTEGER NOT NULL,
        cache_write_nanos INTEGER NOT NULL,
        output_nanos INTEGER NOT NULL,
        reasoning_nanos INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT ck_prices_prices_positive CHECK (uncached_input_nanos >= 0 AND cache_read_nanos >= 0 AND cache_write_nanos >= 0 AND output_nanos >= 0 AND reasoning_nanos >= 0)
    )
     STRICT
    """,
    """
    CREATE INDEX ix_prices_model_created_at_ms ON prices (model, created_at_ms)
    """,
    """
    CREATE TABLE projects (
        id TEXT NOT NULL,
        organization_id TEXT NOT NULL,
        name TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (id),
        UNIQUE (organization_id, name),
        FOREIGN KEY(organization_id) REFERENCES organizations (id)
    )
     STRICT
    """,
    """
    CREATE TABLE api_keys (
        id TEXT NOT NULL,
        organization_id TEXT NOT NULL,
        project_id TEXT NOT NULL,
        name TEXT NOT NULL,
        hash BLOB NOT NULL,
        hint TEXT NOT NULL,
        allowed_models TEXT,
        created_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER,
        revoked_at_ms INTEGER,
        PRIMARY KEY (id),
        CONSTRAINT ck_api_keys_hash_is_sha256 CHECK (length(hash) = 32),
        FOREIGN KEY(organization_id) REFERENCES organizations (id),
        FOREIGN KEY(project_id) REFERENCES projects (id),
        UNIQUE (hash)
    )
     STRICT
    """,
    """
    CREATE TABLE usage_records (
        request_id TEXT NOT NULL,
        client_request_id TEXT,
        organization_id TEXT NOT NULL,
        project_id TEXT NOT NULL,
        key_id TEXT NOT NULL,
        dialect TEXT NOT NULL,
        model TEXT NOT NULL,
        is_stream INTEGER NOT NULL,
        choices_count INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        error_code TEXT,
        usage_source TEXT NOT NULL,
        uncached_input INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        output INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        price_id TEXT,
        cost_nanos INTEGER,
        received_at_ms INTEGER NOT NULL,
        queue_ms INTEGER NOT NULL,
        ttft_ms INTEGER,
        duration_ms INTEGER NOT NULL,
        PRIMARY KEY (request_id),
        CONSTRAINT ck_usage_records_tokens_positive CHECK (uncached_input >= 0 AND cache_read >= 0 AND cache_write >= 0 AND output >= 0 AND reasoning >= 0),
        CONSTRAINT ck_usage_records_reasoning_in_output CHECK (reasoning <= output),
        CONSTRAINT ck_usage_records_outcome CHECK (outcome IN ('ok', 'client_gone', 'upstream_error', 'timeout', 'rejected')),
        CONSTRAINT ck_usage_records_usage_source CHECK (usage_source IN ('reported', 'counted', 'estimated')),
        CONSTRAINT ck_usage_records_priced_or_not CHECK ((price_id IS NULL) = (cost_nanos IS NULL)),
        CONSTRAINT ck_usage_records_cost_positive CHECK (cost_nanos >= 0),
        FOREIGN KEY(organization_id) REFERENCES organizations (id),
        FOREIGN KEY(project_id) REFERENCES projects (id),
        FOREIGN KEY(key_id) REFERENCES api_keys (id),
        FOREIGN KEY(price_id) REFERENCES prices (id)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE INDEX ix_usage_records_key_id_received_at_ms ON usage_records (key_id, received_at_ms)
    """,
    """
    CREATE INDEX ix_usage_records_received_at_ms ON usage_records (received_at_ms)
    """,
    """
    CREATE TABLE attempts (
        id TEXT NOT NULL,
        request_id TEXT NOT NULL,
        choice INTEGER NOT NULL,
        target TEXT NOT NULL,
        replica_id TEXT,
        outcome TEXT NOT NULL,
        error_code TEXT,
        usage_source TEXT NOT NULL,
        uncached_input INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        output INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        started_at_ms INTEGER NOT NULL,
        duration_ms INTEGER NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT ck_attempts_tokens_positive CHECK (uncached_input >= 0 AND cache_read >= 0 AND cache_write >= 0 AND output >= 0 AND reasoning >= 0),
        CONSTRAINT ck_attempts_reasoning_in_output CHECK (reasoning <= output),
        CONSTRAINT ck_attempts_outcome CHECK (outcome IN ('ok', 'client_gone', 'upstream_error', 'timeout', 'rejected')),
        CONSTRAINT ck_attempts_usage_source CHECK (usage_source IN ('reported', 'counted', 'estimated')),
        FOREIGN KEY(request_id) REFERENCES usage_records (request_id)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE INDEX ix_attempts_request_id ON attempts (request_id)
    """,
)


def upgrade() -> None:
    """Create the tables and their indexes."""
    for statement in STATEMENTS:
        op.execute(statement)
