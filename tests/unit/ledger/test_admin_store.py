"""The statements of administration agree with the tables and with those of the hot path."""

import re
from pathlib import Path

from headwater.ledger import admin_store, schema, store


def statements(module: object) -> list[store.Statement]:
    return [value for value in vars(module).values() if isinstance(value, store.Statement)]


def test_every_fixed_statement_is_sound_sql(database: Path) -> None:
    connection = store.open_writer(database)
    texts = [value for name, value in vars(admin_store).items() if name.startswith("SELECT_")]
    texts += [one.sql for one in statements(admin_store)]
    assert len(texts) >= 25
    for text in texts:
        numbers = [int(number) for number in re.findall(r"\?(\d)", text)]
        connection.execute(f"EXPLAIN {text}", [None] * max([text.count("?") - len(numbers), *numbers]))
    connection.close()


def test_what_administration_writes_comes_after_the_rows_it_refers_to() -> None:
    everything = statements(store) + statements(admin_store)
    inserted = {found[1]: one.rank for one in everything if (found := re.match(r"INSERT INTO (\w+)", one.sql))}
    for name in ("budgets", "grants", "grant_lots", "changes"):
        table = schema.metadata.tables[name]
        for key in table.foreign_keys:
            assert inserted[key.column.table.name] < inserted[name], name
    assert len({one.rank for one in everything}) == len(everything)


def test_no_statement_of_administration_changes_the_log() -> None:
    log = {"reservations", "resolutions", "transfers", "usage_records", "attempts", "prices", "epochs", "changes"}
    for one in statements(admin_store):
        changed = re.match(r"(?:UPDATE|DELETE FROM) (\w+)", one.sql)
        assert changed is None or changed[1] not in log, one.name


def test_the_columns_written_are_the_columns_there_are() -> None:
    for table, columns in (
        (schema.budgets, admin_store.BUDGET_COLUMNS),
        (schema.grants, admin_store.GrantRow._fields[:-1]),
        (schema.projects, admin_store.ProjectRow._fields),
        (schema.organizations, (*admin_store.OrganizationRow._fields[:6], "weight")),
        (schema.changes, ("id", *admin_store.ChangeRow._fields)),
    ):
        assert {column.name for column in table.columns} == set(columns), table.name
