"""Large requests are kept in pieces.

An older program merges each piece by itself after 30 s, and this one what that leaves: nothing that was answered as
taken is lost, but of a request that was never answered a part may be taken.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("staged", sa.Column("request", sa.BigInteger(), nullable=True))
    op.add_column("staged", sa.Column("incomplete", sa.Integer(), nullable=True))
    further = sa.text("request IS NOT NULL")
    op.create_index("staged_request", "staged", ["request"], sqlite_where=further, postgresql_where=further)
