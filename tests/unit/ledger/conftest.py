from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.ledger.migrate import ensure_schema
from headwater.ledger.store import Connection, open_reader, open_writer
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger import books
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


@pytest.fixture(scope="session")
def sound(template: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of sound books with settlements of all kinds (`books.build`)."""
    path = tmp_path_factory.mktemp("sound") / "headwater.db"
    path.write_bytes(template)
    books.build(path)
    return path.read_bytes()


@pytest.fixture
def sound_books(sound: bytes, tmp_path: Path) -> Path:
    """A database with those."""
    path = tmp_path / "headwater.db"
    path.write_bytes(sound)
    return path


@pytest.fixture
def database(template: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "headwater.db"
    path.write_bytes(template)
    return path


@pytest.fixture
def fatal() -> list[BaseException]:
    """What `on_fatal` was called with."""
    return []


@pytest.fixture
def writer(database: Path, fatal: list[BaseException]) -> Iterator[LedgerWriter]:
    """A writer on the database; not started."""
    writer = LedgerWriter(open_writer(database), on_fatal=fatal.append)
    yield writer
    writer.close()


@pytest.fixture
def reader(database: Path) -> Iterator[Connection]:
    connection = open_reader(database)
    yield connection
    connection.close()
