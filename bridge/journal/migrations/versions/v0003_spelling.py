"""How ids are compared, and how the newest event spells them; and what is due follows from what waits.

Older programs left rows in `due`, and failures, for which nothing waited any more. They did no harm, but are told by
`journal verify` from here on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_PENDING = "SELECT 1 FROM desired d WHERE d.record = {} AND d.state = 0"
#: Confirmed values that go once more after a doubt.
_AGAIN = """SELECT 1 FROM records r JOIN desired d ON d.record = r.id
             WHERE r.id = {} AND r.doubt_us IS NOT NULL AND d.state = 1 AND d.revision > r.doubt_n"""


def upgrade() -> None:
    op.add_column("lanes", sa.Column("caseless", sa.Integer(), nullable=True))
    op.add_column("lanes", sa.Column("united", sa.Integer(), nullable=True))
    op.add_column("records", sa.Column("spelling", sa.Text(), nullable=True))
    op.execute(
        """INSERT INTO due (record, source, lane, due_us, since_us)
           SELECT DISTINCT d.record, coalesce(d.source, ''), o.lane, o.due_us, o.since_us FROM desired d
             JOIN (SELECT record, min(lane) AS lane, min(due_us) AS due_us, min(since_us) AS since_us
                     FROM due GROUP BY record) AS o ON o.record = d.record
            WHERE d.state = 0 AND NOT EXISTS (SELECT 1 FROM due
                                               WHERE due.record = d.record AND due.source = coalesce(d.source, ''))"""
    )
    op.execute(
        f"""DELETE FROM due WHERE NOT EXISTS ({_PENDING.format("due.record")} AND coalesce(d.source, '') = due.source)
               AND NOT EXISTS ({_AGAIN.format("due.record")})"""
    )
    op.execute(
        f"""UPDATE records SET parked_us = NULL, category = NULL, message = NULL, attempts = 0, failing_since_us = NULL,
                   retry_us = NULL
             WHERE (coalesce(category, message) IS NOT NULL OR attempts > 0
                    OR coalesce(parked_us, retry_us, failing_since_us) IS NOT NULL)
               AND NOT EXISTS ({_PENDING.format("records.id")}) AND NOT EXISTS ({_AGAIN.format("records.id")})"""
    )
    op.execute(
        """UPDATE due SET due_us = since_us WHERE due_us IS NULL
              AND EXISTS (SELECT 1 FROM records r WHERE r.id = due.record AND r.parked_us IS NULL)"""
    )
