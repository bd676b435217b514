"""What Alembic calls: the migrations run on the connection that `bridge.journal.schema` hands over."""

from __future__ import annotations

from alembic import context

from bridge.journal.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
context.run_migrations()
