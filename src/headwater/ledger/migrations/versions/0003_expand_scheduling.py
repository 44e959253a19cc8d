"""Scheduling: weights of organizations and keys, rate limits, and why an attempt went where it went.

The statements are written out, so that what this revision made stays what it made whatever `schema.py` becomes.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
release = "0.2.0"

STATEMENTS = (
    """
    ALTER TABLE organizations ADD COLUMN weight INTEGER DEFAULT 1 NOT NULL CONSTRAINT ck_organizations_weight CHECK (weight BETWEEN 1 AND 1000)
    """,
    """
    ALTER TABLE api_keys ADD COLUMN weight INTEGER DEFAULT 1 NOT NULL CONSTRAINT ck_api_keys_weight CHECK (weight BETWEEN 1 AND 1000)
    """,
    """
    ALTER TABLE attempts ADD COLUMN reason TEXT
    """,
    """
    CREATE TABLE rate_limits (
        id TEXT NOT NULL,
        organization_id TEXT,
        scope TEXT NOT NULL,
        scope_id TEXT NOT NULL,
        model TEXT,
        requests_per_minute INTEGER,
        requests_per_hour INTEGER,
        requests_per_day INTEGER,
        tokens_per_minute INTEGER,
        tokens_per_hour INTEGER,
        tokens_per_day INTEGER,
        concurrency_max INTEGER,
        created_at_ms INTEGER NOT NULL,
        archived_at_ms INTEGER,
        PRIMARY KEY (id),
        CONSTRAINT ck_rate_limits_scope CHECK (scope IN ('organization', 'project', 'key', 'model')),
        CONSTRAINT ck_rate_limits_model_is_everybodys CHECK ((scope = 'model') = (organization_id IS NULL) AND (scope <> 'model' OR model IS NULL)),
        CONSTRAINT ck_rate_limits_limits_positive CHECK (min(coalesce(requests_per_minute, 1), coalesce(requests_per_hour, 1), coalesce(requests_per_day, 1), coalesce(tokens_per_minute, 1), coalesce(tokens_per_hour, 1), coalesce(tokens_per_day, 1), coalesce(concurrency_max, 1)) >= 1),
        CONSTRAINT ck_rate_limits_limits_something CHECK (coalesce(requests_per_minute, requests_per_hour, requests_per_day, tokens_per_minute, tokens_per_hour, tokens_per_day, concurrency_max) IS NOT NULL),
        FOREIGN KEY(organization_id) REFERENCES organizations (id)
    )
     STRICT
    """,
    """
    CREATE INDEX ix_rate_limits_scope_id ON rate_limits (scope_id)
    """,
)


def upgrade() -> None:
    """Add the columns and the table; everybody weighs 1 and nobody is limited."""
    for statement in STATEMENTS:
        op.execute(statement)
