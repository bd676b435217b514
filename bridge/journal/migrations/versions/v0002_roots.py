"""An index by which retention finds whether a root is still needed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    has_root = sa.text("root IS NOT NULL")
    op.create_index("events_root", "events", ["root"], sqlite_where=has_root, postgresql_where=has_root)
