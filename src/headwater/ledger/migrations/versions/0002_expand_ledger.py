"""The ledger: reservations, resolutions, transfers, budgets, grants, their caches, and columns beside older ones.

The statements are written out, so that what this revision made stays what it made whatever `schema.py` becomes.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
release = "0.2.0"

STATEMENTS = (
    """
    ALTER TABLE organizations ADD COLUMN currency TEXT
    """,
    """
    ALTER TABLE organizations ADD COLUMN is_prepaid INTEGER DEFAULT 0 NOT NULL
    """,
    """
    ALTER TABLE organizations ADD COLUMN archived_at_ms INTEGER
    """,
    """
    ALTER TABLE projects ADD COLUMN is_storage_allowed INTEGER DEFAULT 1 NOT NULL
    """,
    """
    ALTER TABLE projects ADD COLUMN archived_at_ms INTEGER
    """,
    """
    ALTER TABLE prices ADD COLUMN kind TEXT DEFAULT 'price' NOT NULL
    """,
    """
    ALTER TABLE prices ADD COLUMN effective_at_ms INTEGER DEFAULT 0 NOT NULL
    """,
    """
    ALTER TABLE prices ADD COLUMN source TEXT DEFAULT 'config' NOT NULL
    """,
    """
    ALTER TABLE prices ADD COLUMN is_withdrawn INTEGER DEFAULT 0 NOT NULL
    """,
    """
    ALTER TABLE prices ADD COLUMN terms TEXT
    """,
    """
    UPDATE prices SET effective_at_ms = created_at_ms
    """,
    """
    ALTER TABLE usage_records ADD COLUMN cache_write_1h INTEGER DEFAULT 0 NOT NULL
    """,
    """
    ALTER TABLE usage_records ADD COLUMN service_tier TEXT DEFAULT 'standard' NOT NULL
    """,
    """
    ALTER TABLE usage_records ADD COLUMN tags TEXT
    """,
    """
    ALTER TABLE usage_records ADD COLUMN flags TEXT DEFAULT '' NOT NULL
    """,
    """
    ALTER TABLE attempts ADD COLUMN cache_write_1h INTEGER DEFAULT 0 NOT NULL
    """,
    """
    ALTER TABLE attempts ADD COLUMN cost_id TEXT
    """,
    """
    ALTER TABLE attempts ADD COLUMN cost_nanos INTEGER
    """,
    """
    ALTER TABLE attempts ADD COLUMN report TEXT
    """,
    """
    CREATE TABLE archives (
        id INTEGER NOT NULL,
        file TEXT NOT NULL,
        sha256 BLOB NOT NULL,
        reservations_to INTEGER NOT NULL,
        records_count INTEGER NOT NULL,
        first_received_at_ms INTEGER NOT NULL,
        last_received_at_ms INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (id),
        UNIQUE (file)
    )
     STRICT
    """,
    """
    CREATE TABLE balances (
        account TEXT NOT NULL,
        balance_nanos INTEGER NOT NULL,
        PRIMARY KEY (account)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE TABLE carried_sums (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        amount_nanos INTEGER NOT NULL,
        PRIMARY KEY (kind, name)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE TABLE changes (
        id INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        noun TEXT NOT NULL,
        object_id TEXT NOT NULL,
        verb TEXT NOT NULL,
        detail TEXT NOT NULL,
        PRIMARY KEY (id)
    )
     STRICT
    """,
    """
    CREATE TABLE epochs (
        id INTEGER NOT NULL,
        gateway TEXT NOT NULL,
        started_at_ms INTEGER NOT NULL,
        PRIMARY KEY (id)
    )
     STRICT
    """,
    """
    CREATE TABLE ledger_state (
        name TEXT NOT NULL,
        value INTEGER NOT NULL,
        PRIMARY KEY (name)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE TABLE notices (
        id TEXT NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        body TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        tries_count INTEGER NOT NULL,
        next_try_at_ms INTEGER,
        delivered_at_ms INTEGER,
        failure TEXT,
        PRIMARY KEY (id),
        UNIQUE (kind, subject)
    )
     STRICT
    """,
    """
    CREATE INDEX ix_notices_next_try_at_ms ON notices (next_try_at_ms)
    """,
    """
    CREATE TABLE usage_hours (
        hour INTEGER NOT NULL,
        key_id TEXT NOT NULL,
        model TEXT NOT NULL,
        organization_id TEXT NOT NULL,
        project_id TEXT NOT NULL,
        requests_count INTEGER NOT NULL,
        ok_count INTEGER NOT NULL,
        unpriced_count INTEGER NOT NULL,
        uncached_input INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        output INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        cache_write_1h INTEGER NOT NULL,
        cost_nanos INTEGER NOT NULL,
        upstream_cost_nanos INTEGER NOT NULL,
        PRIMARY KEY (hour, key_id, model)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE INDEX ix_usage_hours_key_id_hour ON usage_hours (key_id, hour)
    """,
    """
    CREATE TABLE budgets (
        id TEXT NOT NULL,
        organization_id TEXT NOT NULL,
        scope TEXT NOT NULL,
        scope_id TEXT NOT NULL,
        limit_nanos INTEGER NOT NULL,
        period TEXT NOT NULL,
        period_days INTEGER,
        anchor_ms INTEGER NOT NULL,
        time_zone TEXT NOT NULL,
        thresholds TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        archived_at_ms INTEGER,
        PRIMARY KEY (id),
        CONSTRAINT ck_budgets_scope CHECK (scope IN ('organization', 'project', 'key', 'tag')),
        CONSTRAINT ck_budgets_period CHECK (period IN ('total', 'day', 'week', 'month', 'custom')),
        CONSTRAINT ck_budgets_custom_has_days CHECK ((period = 'custom') = (period_days IS NOT NULL)),
        CONSTRAINT ck_budgets_limit_positive CHECK (limit_nanos >= 0),
        FOREIGN KEY(organization_id) REFERENCES organizations (id)
    )
     STRICT
    """,
    """
    CREATE INDEX ix_budgets_scope_id ON budgets (scope_id)
    """,
    """
    CREATE TABLE grants (
        id TEXT NOT NULL,
        organization_id TEXT NOT NULL,
        amount_nanos INTEGER NOT NULL,
        expires_at_ms INTEGER,
        note TEXT,
        created_at_ms INTEGER NOT NULL,
        revoked_at_ms INTEGER,
        PRIMARY KEY (id),
        CONSTRAINT ck_grants_amount_positive CHECK (amount_nanos > 0),
        FOREIGN KEY(organization_id) REFERENCES organizations (id)
    )
     STRICT
    """,
    """
    CREATE INDEX ix_grants_organization_id ON grants (organization_id)
    """,
    """
    CREATE TABLE transfers (
        id INTEGER NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        part INTEGER DEFAULT 0 NOT NULL,
        organization_id TEXT NOT NULL,
        model TEXT,
        amount_nanos INTEGER NOT NULL,
        note TEXT,
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (id),
        UNIQUE (subject, kind, part),
        CONSTRAINT ck_transfers_kind CHECK (kind IN ('grant', 'grant_expire', 'grant_revoke', 'adjust', 'absorb', 'late_post')),
        CONSTRAINT ck_transfers_amount_positive CHECK (amount_nanos > 0 OR kind = 'adjust'),
        FOREIGN KEY(organization_id) REFERENCES organizations (id)
    )
     STRICT
    """,
    """
    CREATE TABLE budget_periods (
        budget_id TEXT NOT NULL,
        period TEXT NOT NULL,
        spent_nanos INTEGER NOT NULL,
        PRIMARY KEY (budget_id, period),
        FOREIGN KEY(budget_id) REFERENCES budgets (id)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE TABLE grant_lots (
        grant_id TEXT NOT NULL,
        remaining_nanos INTEGER NOT NULL,
        PRIMARY KEY (grant_id),
        CONSTRAINT ck_grant_lots_remaining_positive CHECK (remaining_nanos >= 0),
        FOREIGN KEY(grant_id) REFERENCES grants (id)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE TABLE idempotency_keys (
        project_id TEXT NOT NULL,
        route TEXT NOT NULL,
        idempotency_key TEXT NOT NULL,
        body_hash BLOB NOT NULL,
        request_id TEXT NOT NULL,
        answer BLOB NOT NULL,
        stored_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        PRIMARY KEY (project_id, route, idempotency_key),
        FOREIGN KEY(project_id) REFERENCES projects (id)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE INDEX ix_idempotency_keys_expires_at_ms ON idempotency_keys (expires_at_ms)
    """,
    """
    CREATE TABLE reservations (
        id INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        organization_id TEXT NOT NULL,
        project_id TEXT NOT NULL,
        key_id TEXT NOT NULL,
        model TEXT NOT NULL,
        price_id TEXT,
        amount_nanos INTEGER NOT NULL,
        budgets TEXT,
        lots TEXT,
        client_request_id TEXT,
        dialect TEXT NOT NULL,
        service_tier TEXT NOT NULL,
        is_stream INTEGER NOT NULL,
        choices_count INTEGER NOT NULL,
        tags TEXT,
        received_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT ck_reservations_amount_positive CHECK (amount_nanos >= 0),
        UNIQUE (request_id),
        FOREIGN KEY(epoch) REFERENCES epochs (id),
        FOREIGN KEY(organization_id) REFERENCES organizations (id),
        FOREIGN KEY(project_id) REFERENCES projects (id),
        FOREIGN KEY(key_id) REFERENCES api_keys (id),
        FOREIGN KEY(price_id) REFERENCES prices (id)
    )
     STRICT
    """,
    """
    CREATE TABLE marks (
        reservation_id INTEGER NOT NULL,
        attempts TEXT NOT NULL,
        marked_at_ms INTEGER NOT NULL,
        PRIMARY KEY (reservation_id),
        FOREIGN KEY(reservation_id) REFERENCES reservations (id)
    )
     STRICT
    """,
    """
    CREATE TABLE resolutions (
        id INTEGER NOT NULL,
        reservation_id INTEGER NOT NULL,
        kind TEXT NOT NULL,
        charge_nanos INTEGER NOT NULL,
        resolved_at_ms INTEGER NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT ck_resolutions_kind CHECK (kind IN ('post', 'void', 'expire')),
        CONSTRAINT ck_resolutions_charge CHECK (charge_nanos >= 0 AND (kind = 'post' OR charge_nanos = 0)),
        UNIQUE (reservation_id),
        FOREIGN KEY(reservation_id) REFERENCES reservations (id)
    )
     STRICT
    """,
    """
    INSERT INTO usage_hours
    SELECT
        (received_at_ms + duration_ms) / 3600000, key_id, model, organization_id, project_id,
        count(*), sum(outcome = 'ok'), sum(cost_nanos IS NULL),
        sum(uncached_input), sum(cache_read), sum(cache_write), sum(output), sum(reasoning), 0,
        coalesce(sum(cost_nanos), 0), 0
    FROM usage_records GROUP BY 1, 2, 3
    """,
    """
    CREATE VIEW entries AS SELECT r.request_id AS subject, 'reserve' AS kind, 'wallet/' || r.organization_id AS account, -r.amount_nanos AS amount_nanos, r.received_at_ms AS at_ms FROM reservations r UNION ALL SELECT r.request_id AS subject, 'reserve' AS kind, 'held/' || r.organization_id AS account, r.amount_nanos AS amount_nanos, r.received_at_ms AS at_ms FROM reservations r UNION ALL SELECT r.request_id, s.kind, 'held/' || r.organization_id, -r.amount_nanos, s.resolved_at_ms FROM resolutions s JOIN reservations r ON r.id = s.reservation_id UNION ALL SELECT r.request_id, s.kind, 'revenue/' || r.model, s.charge_nanos, s.resolved_at_ms FROM resolutions s JOIN reservations r ON r.id = s.reservation_id UNION ALL SELECT r.request_id, s.kind, 'wallet/' || r.organization_id, r.amount_nanos - s.charge_nanos, s.resolved_at_ms FROM resolutions s JOIN reservations r ON r.id = s.reservation_id UNION ALL SELECT t.subject, t.kind, 'grants/' || t.organization_id, -t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('grant') UNION ALL SELECT t.subject, t.kind, 'wallet/' || t.organization_id, t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('grant') UNION ALL SELECT t.subject, t.kind, 'wallet/' || t.organization_id, -t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('grant_expire', 'grant_revoke') UNION ALL SELECT t.subject, t.kind, 'grants/' || t.organization_id, t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('grant_expire', 'grant_revoke') UNION ALL SELECT t.subject, t.kind, 'adjustments/' || t.organization_id, -t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('adjust') UNION ALL SELECT t.subject, t.kind, 'wallet/' || t.organization_id, t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('adjust') UNION ALL SELECT t.subject, t.kind, 'absorbed/' || t.organization_id, -t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('absorb') UNION ALL SELECT t.subject, t.kind, 'revenue/' || t.model, t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('absorb') UNION ALL SELECT t.subject, t.kind, 'wallet/' || t.organization_id, -t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('late_post') UNION ALL SELECT t.subject, t.kind, 'revenue/' || t.model, t.amount_nanos, t.created_at_ms FROM transfers t WHERE t.kind IN ('late_post') UNION ALL SELECT a.id, 'cost', 'expense/' || a.target, a.cost_nanos, a.started_at_ms + a.duration_ms FROM attempts a WHERE a.cost_nanos IS NOT NULL UNION ALL SELECT a.id, 'cost', 'payable/' || a.target, -a.cost_nanos, a.started_at_ms + a.duration_ms FROM attempts a WHERE a.cost_nanos IS NOT NULL
    """,
    """
    CREATE TRIGGER charge_within_reservation BEFORE INSERT ON resolutions WHEN NEW.charge_nanos > (SELECT amount_nanos FROM reservations WHERE id = NEW.reservation_id) BEGIN SELECT RAISE(ABORT, 'a charge is above its reservation'); END
    """,
    """
    CREATE TRIGGER reservations_are_never_changed BEFORE UPDATE ON reservations BEGIN SELECT RAISE(ABORT, 'rows of reservations are never changed'); END
    """,
    """
    CREATE TRIGGER resolutions_are_never_changed BEFORE UPDATE ON resolutions BEGIN SELECT RAISE(ABORT, 'rows of resolutions are never changed'); END
    """,
    """
    CREATE TRIGGER transfers_are_never_changed BEFORE UPDATE ON transfers BEGIN SELECT RAISE(ABORT, 'rows of transfers are never changed'); END
    """,
    """
    CREATE TRIGGER usage_records_are_never_changed BEFORE UPDATE ON usage_records BEGIN SELECT RAISE(ABORT, 'rows of usage_records are never changed'); END
    """,
    """
    CREATE TRIGGER attempts_are_never_changed BEFORE UPDATE ON attempts BEGIN SELECT RAISE(ABORT, 'rows of attempts are never changed'); END
    """,
    """
    CREATE TRIGGER prices_are_never_changed BEFORE UPDATE ON prices BEGIN SELECT RAISE(ABORT, 'rows of prices are never changed'); END
    """,
    """
    CREATE TRIGGER epochs_are_never_changed BEFORE UPDATE ON epochs BEGIN SELECT RAISE(ABORT, 'rows of epochs are never changed'); END
    """,
    """
    CREATE TRIGGER changes_are_never_changed BEFORE UPDATE ON changes BEGIN SELECT RAISE(ABORT, 'rows of changes are never changed'); END
    """,
)


def upgrade() -> None:
    """Add the columns, tables, view and triggers; older records get their hourly sums."""
    for statement in STATEMENTS:
        op.execute(statement)
