from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.admin.books import Books, open_books
from headwater.admin.keys import KeyAdmin
from headwater.ledger.migrate import ensure_schema


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a freshly migrated database."""
    path = tmp_path_factory.mktemp("empty") / "headwater.db"
    ensure_schema(path)
    return path.read_bytes()


@pytest.fixture
def books(short_path: Path, clock: Clock, empty: bytes) -> Iterator[Books]:
    (short_path / "headwater.db").write_bytes(empty)  # a migration of its own would cost half a second
    fatal: list[BaseException] = []
    books = open_books(short_path / "headwater.db", clock=clock, on_fatal=fatal.append)
    yield books
    books.close()
    assert not fatal


@pytest.fixture
def keys(books: Books, clock: Clock) -> KeyAdmin:
    return KeyAdmin(books, clock=clock, model_names=["qwen", "acme/large"])
