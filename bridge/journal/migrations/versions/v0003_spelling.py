"""How ids are compared, and how the newest event spells them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("lanes", sa.Column("caseless", sa.Integer(), nullable=True))
    op.add_column("records", sa.Column("spelling", sa.Text(), nullable=True))
