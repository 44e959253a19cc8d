"""Alembic's entry: runs the migrations on the connection that `ledger/migrate.py` hands in."""

from alembic import context

from headwater.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
