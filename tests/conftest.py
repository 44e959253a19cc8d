"""Fixtures for tests of every kind."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# How fast a machine is just now is no property of the code: no time-outs of single examples, no complaints about slow ones.
hypothesis.settings.register_profile(
    "headwater", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("headwater")

# A runner that was put into the background ignores Ctrl-C, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
