"""Fixtures for tests of every kind."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty directory with a short path: a Unix socket's address has 108 bytes, and pytest's own paths are long."""
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def module_path() -> Iterator[Path]:
    """The same, shared by the tests of one module."""
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        yield Path(folder)
