"""The real ledger of `tests/unit/ledger`, for the gateway's tests."""

from tests.unit.ledger.conftest import WAIT_S, database, fatal, reader, template, writer

__all__ = ["WAIT_S", "database", "fatal", "reader", "template", "writer"]
