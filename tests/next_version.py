"""Today's service with one more migration, as the next version will have: the schema only grows."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from bridge.__main__ import main
from bridge.journal import postgresql_versions, versions
from bridge.journal.database import run
from bridge.journal.schema import HEAD

NEXT = f"{int(HEAD) + 1:04}"

GROWTH = (
    "ALTER TABLE events ADD COLUMN region text",
    "ALTER TABLE desired ADD COLUMN weight integer NOT NULL DEFAULT 1",
    "CREATE INDEX due_weight ON due (lane, since_us) WHERE due_us IS NOT NULL",
    "CREATE TABLE regions (name text PRIMARY KEY, since_us bigint NOT NULL DEFAULT 0)",
)

todays = versions.migrate


def migrate(connection: Connection) -> None:
    """Today's migrations and the next one, in the same transaction."""
    todays(connection)
    for statement in GROWTH:
        run(connection, statement)
    run(connection, f"UPDATE alembic_version SET version_num = '{NEXT}'")


if __name__ == "__main__":
    vars(versions).update(KNOWN=(*versions.KNOWN, NEXT), HEAD=NEXT, migrate=migrate)
    vars(postgresql_versions).update(HEAD=NEXT)
    main()
