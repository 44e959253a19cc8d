"""A database as version 0.1.0 left it: schema 0001, with keys, a price, and records of requests."""

from pathlib import Path

from headwater.ledger import migrate
from headwater.ledger.store import open_writer

HOUR_MS = 3_600_000
BEGAN_MS = 1_788_652_800_000  # 2026-09-06T00:00Z
STEP_MS = 7 * 60_000
RECORD_COLUMNS = (
    *("request_id", "organization_id", "project_id", "key_id", "dialect", "model", "is_stream", "choices_count"),
    *("outcome", "usage_source", "uncached_input", "cache_read", "cache_write", "output", "reasoning"),
    *("price_id", "cost_nanos", "received_at_ms", "queue_ms", "duration_ms"),
)


def old_database(path: Path, *, records_count: int = 300) -> None:
    """Make it at `path`. Every seventh record has no price; every fifth is of another model."""
    migrate.main(path, "0001")
    connection = open_writer(path)
    connection.execute("BEGIN")
    connection.execute("INSERT INTO organizations VALUES ('org_1', 'default', 1000)")
    connection.execute("INSERT INTO projects VALUES ('prj_1', 'org_1', 'default', 1000)")
    for name in ("key_1", "key_2"):
        row = (name, "org_1", "prj_1", name, name.encode().ljust(32), "hw-abcde", None, 1000, None, None)
        connection.execute(f"INSERT INTO api_keys VALUES ({', '.join('?' * len(row))})", row)
    connection.execute("INSERT INTO prices VALUES ('prc_1', 'm', 'USD', 100, 10, 100, 300, 300, 2000)")
    text = f"INSERT INTO usage_records ({', '.join(RECORD_COLUMNS)}) VALUES ({', '.join('?' * len(RECORD_COLUMNS))})"
    connection.executemany(text, [_record(number) for number in range(records_count)])
    connection.execute(
        "INSERT INTO attempts SELECT 'att_' || request_id, request_id, 0, model, 'rep_1', outcome, NULL, usage_source,"
        " uncached_input, cache_read, cache_write, output, reasoning, received_at_ms, duration_ms FROM usage_records"
    )
    connection.execute("COMMIT")
    connection.close()


def _record(number: int) -> tuple[object, ...]:
    is_priced = number % 7 != 0
    return (
        *(
            f"req_{number:06d}",
            "org_1",
            "prj_1",
            f"key_{1 + number % 2}",
            "openai_chat",
            "z" if number % 5 == 0 else "m",
        ),
        *(1, 1, "ok" if number % 3 else "client_gone", "reported"),
        *(number % 100, number % 50, number % 20, number % 70, number % 70 // 2),
        *("prc_1" if is_priced else None, number * 3 if is_priced else None),
        *(BEGAN_MS + number * STEP_MS, 1, 1 + number % 9 * 60_000),
    )
