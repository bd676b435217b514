"""Journals of older programs: what they left is put in order once, and nothing of it is lost."""

from __future__ import annotations

from functools import partial

from bridge.journal import versions
from bridge.journal.database import run
from bridge.journal.retry_log import Filter
from bridge.journal.schema import HEAD
from bridge.journal.store import Journal, open_database
from bridge.model import Delivered, Parked, Reason, to_us
from bridge.settings import Journal as JournalSettings
from tests.backends import verify
from tests.builders import call, event
from tests.fakes import FakeClock

#: What made today's version of 0002, taken back.
BACK = (
    "DROP INDEX staged_request",
    "ALTER TABLE staged DROP COLUMN request",
    "ALTER TABLE staged DROP COLUMN incomplete",
    "ALTER TABLE lanes DROP COLUMN caseless",
    "ALTER TABLE lanes DROP COLUMN united",
    "ALTER TABLE records DROP COLUMN spelling",
    "UPDATE alembic_version SET version_num = '0002'",
)
_DUE = "INSERT INTO due (record, source, lane, due_us, since_us)"
#: What an older program could leave: c1 parked with nothing behind it, c2 due of a source that has nothing, c3 with a
#: value whose source is not due, c4 not parked and without a time.
LEFT = (
    f"{_DUE} SELECT id, 'gone', lane, NULL, 1 FROM records WHERE record = 'c1'",
    "UPDATE records SET category = 'X', message = 'x', parked_us = 1, attempts = 3 WHERE record = 'c1'",
    f"{_DUE} SELECT id, 'gone', lane, 1, 1 FROM records WHERE record = 'c2'",
    "UPDATE due SET source = 'gone' WHERE record = (SELECT id FROM records WHERE record = 'c3')",
    "UPDATE due SET due_us = NULL WHERE record = (SELECT id FROM records WHERE record = 'c4')",
)


def test_what_older_programs_left_behind_is_put_in_order(journal_url: str) -> None:
    clock = FakeClock()
    journal = Journal(settings=JournalSettings(url=journal_url), clock=clock)
    journal.append([event(f"e{number}", f"c{number}", {"name": f"n{number}"}) for number in range(1, 6)])

    def taken() -> list[str]:
        refs = list(dict.fromkeys(due.ref for due in journal.due(limit=9, exclude=())))
        records = journal.take(refs, began_at_us=to_us(clock.now())).records
        outcomes = [
            Parked(one, Reason("NO", "no")) if one.key.id == "c5" else Delivered(one)
            for one in records
            if one.key.id in wanted
        ]
        journal.settle(records, outcomes, call=call(records, began=clock.now()), doubtful=False)
        return sorted(one.key.id for one in records if one.key.id in wanted)

    wanted = {"c1", "c5"}
    assert taken() == ["c1", "c5"]
    journal.close()
    database = open_database(journal_url)
    for statement in (*BACK, *LEFT):
        database.transact(partial(run, sql=statement))
    database.close()

    versions.prepare(journal_url)
    verify(journal_url)
    journal = Journal(settings=JournalSettings(url=journal_url), clock=clock)
    assert [(entry.record, entry.category) for entry in journal.entries(Filter())] == [("c5", "NO")]
    wanted = {"c2", "c3", "c4"}
    assert taken() == ["c2", "c3", "c4"]
    assert taken() == []
    journal.close()
    database = open_database(journal_url)
    [(version,)] = database.transact(
        lambda connection: run(connection, "SELECT version_num FROM alembic_version").fetchall()
    )
    database.close()
    assert version == HEAD
