"""Books that somebody changed behind the platform's back: for every rule one change, and the row that must be named."""

from pathlib import Path
from typing import NamedTuple

from headwater.ledger import entries
from headwater.ledger.store import open_reader, open_writer


class Twin(NamedTuple):
    """statements: what is done, with semicolons between. find_id: SQL, before it is done, of the id that must be named."""

    name: str
    statements: str
    table: str
    find_id: str
    what: str


def doctor(database: Path, *statements: str) -> None:
    """Change books behind the platform's back: guards off, the change, guards on again."""
    connection = open_writer(database)
    connection.execute("PRAGMA foreign_keys=OFF")
    for name, kind in connection.execute("SELECT name, type FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP {kind} {name}")
    for statement in statements:
        for one in statement.split(";"):
            connection.execute(one)
    for statement in entries.PROGRAM[1:]:
        connection.execute(statement)
    connection.close()


def one(database: Path, sql: str) -> str:
    """The first column of the first row, as text."""
    reader = open_reader(database)
    row = reader.execute(sql).fetchone()
    reader.close()
    assert row is not None, sql
    return str(row[0])


POSTED = "(SELECT min(id) FROM resolutions WHERE charge_nanos > 0)"
VOIDED = (
    "(SELECT r.request_id FROM reservations r JOIN resolutions s ON s.reservation_id = r.id JOIN usage_records u"
    " ON u.request_id = r.request_id WHERE s.kind = 'void' AND u.outcome = 'upstream_error' ORDER BY s.id LIMIT 1)"
)
OF_POSTED = (
    f"(SELECT request_id FROM reservations WHERE id = (SELECT reservation_id FROM resolutions WHERE id = {POSTED}))"
)
RESERVED = f"(SELECT reservation_id FROM resolutions WHERE id = {POSTED})"
ABSORBED = "(SELECT min(subject) FROM transfers WHERE kind = 'absorb')"
LATE = "(SELECT min(subject) FROM transfers WHERE kind = 'late_post')"
BATCH = "(SELECT min(request_id) FROM usage_records WHERE service_tier = 'batch')"
COSTLY = "(SELECT min(id) FROM attempts WHERE cost_nanos > 0)"
LAPSED = "(SELECT min(id) FROM transfers WHERE part > 0)"
RESOLVED_OF = (
    "SELECT s.id FROM resolutions s JOIN reservations r ON r.id = s.reservation_id WHERE r.request_id = {}".format
)
HOUR = "(hour, key_id, model) = (SELECT hour, key_id, model FROM usage_hours ORDER BY 1, 2, 3 LIMIT 1)"

TWINS = (
    Twin(
        "a charge is raised",
        f"UPDATE resolutions SET charge_nanos = charge_nanos + 1 WHERE id = {POSTED}",
        "resolutions",
        f"SELECT {POSTED}",
        "charge_nanos",
    ),
    Twin(
        "a charge is forgiven",
        f"CREATE TEMP TABLE was AS SELECT {POSTED} AS id; UPDATE resolutions SET charge_nanos = 0 WHERE id = (SELECT id FROM was)",
        "resolutions",
        "SELECT min(id) FROM resolutions WHERE kind = 'post'",
        "charge_nanos",
    ),
    Twin(
        "a reservation is made smaller than its charge",
        f"UPDATE reservations SET amount_nanos = 1 WHERE id = {RESERVED}",
        "resolutions",
        f"SELECT {POSTED}",
        "charge_nanos",
    ),
    Twin(
        "a reservation is made larger after its cost was absorbed",
        f"UPDATE reservations SET amount_nanos = amount_nanos + 1 WHERE request_id = {ABSORBED}",
        "resolutions",
        RESOLVED_OF(ABSORBED),
        "charge_nanos",
    ),
    Twin(
        "a resolution is deleted",
        f"DELETE FROM resolutions WHERE id = {POSTED}",
        "reservations",
        "SELECT 1",
        "resolution",
    ),
    Twin(
        "a resolution is deleted and the reservation made out to be open",
        f"UPDATE ledger_state SET value = 1; DELETE FROM resolutions WHERE id = {POSTED}",
        "reservations",
        "SELECT 1",
        "resolution",
    ),
    Twin(
        "a reservation is deleted",
        f"DELETE FROM reservations WHERE id = {RESERVED}",
        "resolutions",
        f"SELECT {POSTED}",
        "reservation",
    ),
    Twin(
        "a record is deleted",
        f"DELETE FROM usage_records WHERE request_id = {OF_POSTED}",
        "resolutions",
        f"SELECT {POSTED}",
        "usage record",
    ),
    Twin(
        "a record says another cost",
        f"UPDATE usage_records SET cost_nanos = cost_nanos - 1 WHERE request_id = {OF_POSTED}",
        "usage_records",
        f"SELECT {OF_POSTED}",
        "cost_nanos",
    ),
    Twin(
        "a record says fewer tokens",
        f"UPDATE usage_records SET uncached_input = uncached_input - 1 WHERE request_id = {OF_POSTED}",
        "usage_records",
        f"SELECT {OF_POSTED}",
        "uncached_input",
    ),
    Twin(
        "an attempt says more tokens",
        f"UPDATE attempts SET cache_write_1h = cache_write_1h + 1 WHERE request_id = {OF_POSTED}",
        "usage_records",
        f"SELECT {OF_POSTED}",
        "cache_write_1h",
    ),
    Twin(
        "record and attempt agree on fewer tokens",
        f"UPDATE usage_records SET output = output + 1 WHERE request_id = {OF_POSTED};"
        f"UPDATE attempts SET output = output + 1 WHERE request_id = {OF_POSTED}",
        "resolutions",
        f"SELECT {POSTED}",
        "charge_nanos",
    ),
    Twin(
        "an attempt is deleted",
        f"DELETE FROM attempts WHERE request_id = {OF_POSTED}",
        "usage_records",
        f"SELECT {OF_POSTED}",
        "uncached_input",
    ),
    Twin(
        "tokens are absurd",
        f"UPDATE usage_records SET output = {2**62} WHERE request_id = {OF_POSTED};"
        f"UPDATE attempts SET output = {2**62} WHERE request_id = {OF_POSTED}",
        "resolutions",
        f"SELECT {POSTED}",
        "charge_nanos",
    ),
    Twin(
        "a price version is changed",
        "UPDATE prices SET output_nanos = output_nanos + 1000000 WHERE id = 'prc_1'",
        "resolutions",
        f"SELECT {POSTED}",
        "charge_nanos",
    ),
    Twin(
        "a price version is deleted",
        "DELETE FROM prices WHERE id = 'prc_1'",
        "usage_records",
        f"SELECT {OF_POSTED}",
        "price_id",
    ),
    Twin(
        "a record names another price",
        f"UPDATE usage_records SET price_id = 'prc_4' WHERE request_id = {OF_POSTED}",
        "usage_records",
        f"SELECT {OF_POSTED}",
        "price_id",
    ),
    Twin(
        "a record is moved to another organization",
        f"UPDATE usage_records SET organization_id = 'org_2' WHERE request_id = {OF_POSTED}",
        "usage_records",
        f"SELECT {OF_POSTED}",
        "organization_id",
    ),
    Twin(
        "a record is moved to another key",
        f"UPDATE usage_records SET key_id = 'key_2' WHERE request_id = {OF_POSTED}",
        "usage_records",
        f"SELECT {OF_POSTED}",
        "key_id",
    ),
    Twin(
        "an undelivered answer is made out to be delivered",
        f"UPDATE usage_records SET outcome = 'ok' WHERE request_id = {VOIDED}",
        "resolutions",
        RESOLVED_OF(VOIDED),
        "charge_nanos",
    ),
    Twin(
        "the discount of a service tier is taken away",
        "CREATE TEMP TABLE was AS SELECT min(request_id) AS id FROM usage_records WHERE service_tier = 'batch';"
        "UPDATE usage_records SET service_tier = 'standard' WHERE request_id = (SELECT id FROM was)",
        "resolutions",
        "SELECT s.id FROM resolutions s JOIN reservations r ON r.id = s.reservation_id"
        " WHERE r.service_tier = 'batch' ORDER BY s.id LIMIT 1",
        "charge_nanos",
    ),
    Twin(
        "a record without a reservation used something",
        "INSERT INTO usage_records SELECT * FROM usage_records WHERE request_id = 'req_000000_old' AND 0;"
        "UPDATE usage_records SET received_at_ms = received_at_ms + 86400000 WHERE request_id = 'req_000000_old'",
        "usage_records",
        "SELECT 'req_000000_old'",
        "reservation",
    ),
    Twin(
        "a record from before the ledger says another cost",
        "UPDATE usage_records SET cost_nanos = 3151 WHERE request_id = 'req_000000_old'",
        "usage_records",
        "SELECT 'req_000000_old'",
        "cost_nanos",
    ),
    Twin(
        "an upstream's cost is changed",
        f"UPDATE attempts SET cost_nanos = cost_nanos + 1 WHERE id = {COSTLY}",
        "attempts",
        f"SELECT {COSTLY}",
        "cost_nanos",
    ),
    Twin(
        "an upstream's cost has no version",
        f"CREATE TEMP TABLE was AS SELECT {COSTLY} AS id; UPDATE attempts SET cost_id = NULL WHERE id = (SELECT id FROM was)",
        "attempts",
        f"SELECT {COSTLY}",
        "cost_nanos",
    ),
    Twin(
        "what was absorbed is changed",
        f"UPDATE transfers SET amount_nanos = amount_nanos + 1 WHERE kind = 'absorb' AND subject = {ABSORBED}",
        "transfers",
        f"SELECT 'absorb ' || {ABSORBED}",
        "amount_nanos",
    ),
    Twin(
        "what was absorbed is forgotten",
        f"CREATE TEMP TABLE was AS SELECT {ABSORBED} AS id; DELETE FROM transfers"
        " WHERE kind = 'absorb' AND subject = (SELECT id FROM was)",
        "transfers",
        "SELECT 'absorb ' || min(request_id) FROM usage_records WHERE flags = 'absorbed'",
        "amount_nanos",
    ),
    Twin(
        "a late charge is changed",
        f"UPDATE transfers SET amount_nanos = amount_nanos + 1 WHERE kind = 'late_post' AND subject = {LATE}",
        "transfers",
        f"SELECT 'late_post ' || {LATE}",
        "amount_nanos",
    ),
    Twin(
        "a late charge is made beside a charge in time",
        "INSERT INTO transfers SELECT 900, 'late_post', " + OF_POSTED + ", 0, 'org_1', 'm', 7, NULL, 1",
        "transfers",
        f"SELECT 'late_post ' || {OF_POSTED}",
        "amount_nanos",
    ),
    Twin(
        "a transfer names a request that isn't there",
        "INSERT INTO transfers VALUES (900, 'absorb', 'req_none', 0, 'org_1', 'm', 7, NULL, 1)",
        "transfers",
        "SELECT 900",
        "subject",
    ),
    Twin(
        "a grant's transfer is changed",
        "UPDATE transfers SET amount_nanos = amount_nanos + 1 WHERE kind = 'grant' AND subject = 'grt_2'",
        "transfers",
        "SELECT id FROM transfers WHERE kind = 'grant' AND subject = 'grt_2'",
        "amount_nanos",
    ),
    Twin(
        "a grant's transfer goes to another organization",
        "UPDATE transfers SET organization_id = 'org_1' WHERE kind = 'grant' AND subject = 'grt_2'",
        "transfers",
        "SELECT id FROM transfers WHERE kind = 'grant' AND subject = 'grt_2'",
        "organization_id",
    ),
    Twin(
        "what lapsed with a reservation is changed",
        f"UPDATE transfers SET amount_nanos = amount_nanos + 1 WHERE id = {LAPSED}",
        "transfers",
        f"SELECT {LAPSED}",
        "amount_nanos",
    ),
    Twin(
        "a free rest that lapsed is changed",
        "UPDATE transfers SET amount_nanos = amount_nanos + 1 WHERE kind = 'grant_revoke' AND part = 0 AND subject = 'grt_4'",
        "balances",
        "SELECT 'grants/org_1'",
        "balance_nanos",
    ),
    Twin(
        "an adjustment is changed",
        "UPDATE transfers SET amount_nanos = amount_nanos + 1 WHERE id = (SELECT min(id) FROM transfers WHERE kind = 'adjust')",
        "balances",
        "SELECT 'adjustments/org_1'",
        "balance_nanos",
    ),
    Twin(
        "a balance is forgotten",
        "DELETE FROM balances WHERE account = 'wallet/org_2'",
        "balances",
        "SELECT 'wallet/org_2'",
        "balance_nanos",
    ),
    Twin(
        "a balance is invented",
        "INSERT INTO balances VALUES ('wallet/org_9', 5)",
        "balances",
        "SELECT 'wallet/org_9'",
        "balance_nanos",
    ),
    Twin(
        "a lot is changed",
        "UPDATE grant_lots SET remaining_nanos = remaining_nanos + 1 WHERE grant_id = 'grt_2'",
        "grant_lots",
        "SELECT 'grt_2'",
        "remaining_nanos",
    ),
    Twin(
        "a late charge's lots are changed",
        "UPDATE transfers SET note = '[[\"grt_2\",1]]' WHERE kind = 'late_post' AND note IS NOT NULL",
        "grant_lots",
        "SELECT 'grt_2'",
        "remaining_nanos",
    ),
    Twin(
        "a reservation's lots are changed",
        "UPDATE reservations SET lots = NULL WHERE id = (SELECT max(r.id) FROM reservations r JOIN resolutions s"
        " ON s.reservation_id = r.id WHERE r.lots IS NOT NULL AND s.charge_nanos > 0)",
        "grant_lots",
        "SELECT 'grt_2'",
        "remaining_nanos",
    ),
    Twin(
        "a cap has spent less",
        "UPDATE budget_periods SET spent_nanos = spent_nanos - 1 WHERE budget_id = 'bud_tag'",
        "budget_periods",
        "SELECT 'bud_tag total'",
        "spent_nanos",
    ),
    Twin(
        "a cap forgets a period",
        "DELETE FROM budget_periods WHERE budget_id = 'bud_org'",
        "budget_periods",
        "SELECT 'bud_org 2026-11'",
        "spent_nanos",
    ),
    Twin(
        "a reservation's caps are changed",
        f"UPDATE reservations SET budgets = NULL WHERE id = {RESERVED}",
        "budget_periods",
        "SELECT 'bud_org 2026-11'",
        "spent_nanos",
    ),
    Twin(
        "a reservation's caps are garbled",
        f"UPDATE reservations SET budgets = '[[' WHERE id = {RESERVED}",
        "reservations",
        "SELECT 1",
        "budgets and lots",
    ),
    Twin(
        "a cap was overdrawn",
        "UPDATE budgets SET limit_nanos = 1 WHERE id = 'bud_tag'",
        "budget_periods",
        "SELECT 'bud_tag total'",
        "spent_nanos",
    ),
    Twin(
        "an hour counts a request more",
        f"UPDATE usage_hours SET requests_count = requests_count + 1 WHERE {HOUR}",
        "usage_hours",
        "SELECT hour || ' ' || key_id || ' ' || model FROM usage_hours ORDER BY hour LIMIT 1",
        "requests_count",
    ),
    Twin(
        "an hour is forgotten",
        "DELETE FROM usage_hours WHERE model = 'free' AND hour = (SELECT min(hour) FROM usage_hours WHERE model = 'free')",
        "usage_hours",
        "SELECT ((received_at_ms + duration_ms) / 3600000) || ' key_1 free' FROM usage_records"
        " WHERE model = 'free' ORDER BY received_at_ms LIMIT 1",
        "requests_count",
    ),
    Twin(
        "an hour is invented",
        "INSERT INTO usage_hours SELECT 1, key_id, model, organization_id, project_id, requests_count, ok_count,"
        " unpriced_count, uncached_input, cache_read, cache_write, output, reasoning, cache_write_1h, cost_nanos,"
        " upstream_cost_nanos FROM usage_hours WHERE model = 'free' LIMIT 1",
        "usage_hours",
        "SELECT '1 key_1 free'",
        "requests_count",
    ),
    Twin(
        "a record is moved to another hour",
        f"UPDATE usage_records SET duration_ms = duration_ms + 3600000 WHERE request_id = {OF_POSTED}",
        "usage_hours",
        f"SELECT (received_at_ms / 3600000) || ' key_1 m' FROM usage_records WHERE request_id = {OF_POSTED}",
        "requests_count",
    ),
    Twin(
        "an expired request of a gateway that is gone has no record",
        "INSERT INTO epochs VALUES (2, 'later', 1)",
        "resolutions",
        "SELECT s.id FROM resolutions s JOIN reservations r ON r.id = s.reservation_id"
        " WHERE s.kind = 'expire' AND r.request_id NOT IN (SELECT request_id FROM usage_records)",
        "usage record",
    ),
)
