"""Today's service with one more migration, as the next version will have: the schema only grows."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from bridge.__main__ import main
from bridge.journal import schema, versions
from bridge.journal.database import run
from bridge.journal.postgresql import versions as postgresql_versions

NEXT = f"{int(schema.HEAD) + 1:04}"

GROWTH = (
    "ALTER TABLE events ADD COLUMN region text",
    "ALTER TABLE desired ADD COLUMN weight integer NOT NULL DEFAULT 1",
    "CREATE INDEX due_weight ON due (lane, since_us) WHERE due_us IS NOT NULL",
    "CREATE TABLE regions (name text PRIMARY KEY, since_us bigint NOT NULL DEFAULT 0)",
)

todays = schema.migrate


def migrate(connection: Connection) -> None:
    """Today's migrations and the next one, in the same transaction."""
    todays(connection)
    for statement in GROWTH:
        run(connection, statement)
    run(connection, f"UPDATE alembic_version SET version_num = '{NEXT}'")


if __name__ == "__main__":
    vars(schema).update(KNOWN=(*schema.KNOWN, NEXT), HEAD=NEXT)
    for module in (versions, postgresql_versions):
        vars(module).update(HEAD=NEXT, migrate=migrate)
    main()
