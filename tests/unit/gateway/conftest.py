from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.ledger.migrate import ensure_schema
from headwater.ledger.store import Connection, open_reader, open_writer
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger.settlements import PARENTS

WAIT_S = 20.0


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a freshly migrated database, with a default organization, project, key and price."""
    path = tmp_path_factory.mktemp("template") / "headwater.db"
    ensure_schema(path)
    writer = LedgerWriter(open_writer(path), on_fatal=lambda _: None)
    writer.start()
    writer.submit(PARENTS).result(WAIT_S)
    writer.close()
    return path.read_bytes()


@pytest.fixture
def database(template: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "headwater.db"
    path.write_bytes(template)
    return path


@pytest.fixture
def writer(database: Path) -> Iterator[LedgerWriter]:
    """A writer on the database; not started."""
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    yield writer
    writer.close()


@pytest.fixture
def reader(database: Path) -> Iterator[Connection]:
    connection = open_reader(database)
    yield connection
    connection.close()
