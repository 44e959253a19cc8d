"""Three descriptions of one database must agree: `schema.py`, the migrations, and the SQL in `store.py`."""

import importlib
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Table, create_engine

from headwater import ledger
from headwater.ledger import migrate, schema, store
from headwater.ledger.store import Connection, Statement, open_reader

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


def statements() -> dict[str, dict[str, Statement]]:
    """Every fixed statement that writes, by the module of the package it stands in and its name."""
    found: dict[str, dict[str, Statement]] = {}
    for name in pkgutil.iter_modules(ledger.__path__):
        module = vars(importlib.import_module(f"headwater.ledger.{name.name}"))
        found[name.name] = {value.name: value for value in module.values() if isinstance(value, Statement)}
    return found


def all_statements() -> list[Statement]:
    """Each of them once."""
    return list({one.name: one for found in statements().values() for one in found.values()}.values())


def nulls(text: str) -> list[None]:
    """A value for each parameter of a statement, numbered or not."""
    numbered = [int(number) for number in re.findall(r"\?(\d+)", text)]
    return [None] * max(numbered, default=text.count("?"))


def test_every_table_is_written_somewhere_and_parents_rank_before_what_refers_to_them() -> None:
    written: set[str] = set()
    for found in statements().values():
        ranks: dict[str, int] = {}
        for one in found.values():
            if (insert := re.match(r"(?:INSERT|REPLACE) INTO (\w+)", one.sql)) is not None:
                ranks[insert[1]] = min(one.rank, ranks.get(insert[1], one.rank))
        written |= set(ranks)
        for table in schema.metadata.tables.values():
            for key in table.foreign_keys:  # what one module writes may stand in one submission
                if {table.name, key.column.table.name} <= set(ranks):
                    assert ranks[key.column.table.name] < ranks[table.name]
    assert written == set(schema.metadata.tables)


def test_no_two_statements_have_one_rank() -> None:
    ranks = [one.rank for one in all_statements()]
    assert len(set(ranks)) == len(ranks)


def test_every_fixed_statement_is_sound_sql(database: Path) -> None:
    connection = store.open_writer(database)
    texts = [value for name, value in vars(store).items() if name.startswith("SELECT_")]
    texts += [one.sql for one in all_statements()]
    assert len(texts) >= 40
    for text in texts:
        connection.execute(f"EXPLAIN {text}", nulls(text))
    connection.close()


@pytest.mark.parametrize("count", [2, 32])
def test_an_insert_of_many_rows_is_sound_and_takes_each_rows_parameters(database: Path, count: int) -> None:
    connection = store.open_writer(database)
    for one in all_statements():
        text = one.for_rows(count)
        is_plain = re.match(r"(INSERT|REPLACE) INTO \w+ \([^)]*\) VALUES \(", one.sql) and not re.search(
            r"\?\d", one.sql
        )
        assert (text is not None) == bool(is_plain), one.name
        if text is not None:
            assert text.count("?") == one.sql.count("?") * count
            connection.execute(f"EXPLAIN {text}", [None] * text.count("?"))
    connection.close()


@pytest.mark.parametrize(
    "text", [store.SELECT_KEY_BY_HASH, store.SELECT_BUDGETS_OF_KEY, store.SELECT_ANSWER, store.SELECT_IS_REQUEST_OF]
)
def test_what_a_request_asks_is_answered_from_an_index(reader: Connection, text: str) -> None:
    plan = reader.execute(f"EXPLAIN QUERY PLAN {text}", nulls(text)).fetchall()
    assert all("SCAN" not in row[3] or row[3] == "SCAN CONSTANT ROW" for row in plan), plan


def test_head_is_the_newest_revision() -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert scripts.get_heads() == [migrate.HEAD]
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)  # a newer schema is known by its number


def test_every_table_is_strict_about_types() -> None:
    for table in schema.metadata.tables.values():
        assert table.dialect_options["sqlite"]["strict"], table.name
