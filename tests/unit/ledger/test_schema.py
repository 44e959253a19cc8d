"""Three descriptions of one database must agree: `schema.py`, the migrations, and the SQL in `store.py`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Table, create_engine

from headwater.ledger import migrate, schema, store
from headwater.ledger.store import Connection, open_reader

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite


def objects(connection: Connection) -> dict[str, str]:
    """Every table and index by name, its SQL with white space and the order of its constraints evened out."""
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'alembic_version'"
    ).fetchall()
    return {name: _even(sql) for name, sql in rows}


def _even(sql: str) -> str:
    sql = re.sub(r"\s+", " ", sql).strip()
    head, _, rest = sql.partition("(")
    depth, parts, part = 0, [], ""
    for character in rest:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0 or (character == "," and depth == 0):
            parts.append(part.strip())
            part = ""
            depth = max(depth, 0)
        else:
            part += character
    return f"{head}({', '.join(sorted(parts))}) {part.strip()}"


def test_the_migrations_make_what_the_schema_says(tmp_path: Path, reader: Connection) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'made.db'}", module=sqlite)
    schema.metadata.create_all(engine)
    engine.dispose()
    made = open_reader(tmp_path / "made.db")
    assert objects(reader) == objects(made)
    made.close()


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (schema.api_keys, store.KEY_COLUMNS),
        (schema.prices, store.PRICE_COLUMNS),
        (schema.usage_records, store.USAGE_COLUMNS),
        (schema.attempts, store.ATTEMPT_COLUMNS),
    ],
    ids=str,
)
def test_the_columns_written_are_the_columns_there_are_in_their_order(table: Table, columns: tuple[str, ...]) -> None:
    assert tuple(column.name for column in table.columns) == tuple(columns)


def test_parents_rank_before_the_tables_that_refer_to_them() -> None:
    statements = [value for value in vars(store).values() if isinstance(value, store.Statement)]
    ranks = {found[1]: one.rank for one in statements if (found := re.match(r"INSERT INTO (\w+)", one.sql)) is not None}
    assert set(ranks) == set(schema.metadata.tables)
    for table in schema.metadata.tables.values():
        for key in table.foreign_keys:
            assert ranks[key.column.table.name] < ranks[table.name]
    assert len({one.rank for one in statements}) == len(statements)


def test_every_fixed_statement_is_sound_sql(database: Path) -> None:
    connection = store.open_writer(database)
    texts = [value for name, value in vars(store).items() if name.startswith("SELECT_")]
    texts += [value.sql for value in vars(store).values() if isinstance(value, store.Statement)]
    assert len(texts) >= 12
    for text in texts:
        connection.execute(f"EXPLAIN {text}", [None] * text.count("?"))
    connection.close()


@pytest.mark.parametrize("text", [store.SELECT_KEY_BY_HASH, store.SELECT_KEY_USAGE])
def test_what_a_request_asks_is_answered_from_an_index(reader: Connection, text: str) -> None:
    plan = reader.execute(f"EXPLAIN QUERY PLAN {text}", [None] * text.count("?")).fetchall()
    assert all("SCAN" not in row[3] for row in plan), plan


def test_head_is_the_newest_revision() -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert scripts.get_heads() == [migrate.HEAD]
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)  # a newer schema is known by its number


def test_every_table_is_strict_about_types() -> None:
    for table in schema.metadata.tables.values():
        assert table.dialect_options["sqlite"]["strict"], table.name
