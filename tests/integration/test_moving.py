"""Moving a journal from SQLite to PostgreSQL: all of it, once, whatever cuts the move short."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from bridge.errors import JournalDamagedError, JournalError, JournalLockedError, JournalUnavailableError
from bridge.journal import moving, versions
from bridge.journal.moving import LOCAL, move
from bridge.journal.retry_log import Filter
from bridge.journal.schema import MOVING, metadata
from bridge.journal.store import Journal
from bridge.model import Delivered, Intake, Outcome, Parked, Reason, Refused, RetryLater, to_us
from bridge.settings import Journal as JournalSettings
from tests.builders import call, event
from tests.fakes import FakeClock
from tests.postgres import fresh_database
from tests.proxies import Cut, TcpProxy
from tests.running import free_port

EVENTS = 60


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal to copy: filling one takes as long as moving it."""
    path = tmp_path_factory.mktemp("kept") / "journal.db"
    filled(path)
    return path


@pytest.fixture
def source(tmp_path: Path, kept: Path) -> str:
    shutil.copy(kept, tmp_path)
    return f"sqlite:///{tmp_path}/{kept.name}"


def filled(path: Path) -> str:
    """The URL of a journal in which every table has rows and every state occurs."""
    url = f"sqlite:///{path}"
    versions.prepare(url)
    clock = FakeClock()
    journal = Journal(settings=JournalSettings(url=url, retention_s=1e9), clock=clock)
    for number in range(EVENTS // 10):
        clock.advance(1)
        wanted = {"company_name": f"Zoë & Søn № {number}\t\\N\n", "notes": "" if number % 3 else "x" * 1000}
        some = range(number * 10, number * 10 + 10)
        journal.append([event(f"e{at}", f"c{at % 20}", wanted, at=clock.now()) for at in some])
    journal.append([replace(event("rooted", "c0"), root='{"a":"whole body"}')])
    journal.append([event("odd", updates=(), unmappable="no record id")])
    taken = journal.take(
        list(dict.fromkeys(found.ref for found in journal.due(limit=16, exclude=()))), began_at_us=to_us(clock.now())
    ).records
    outcomes: list[Outcome] = [Delivered(record) for record in taken]
    outcomes[1] = Parked(taken[1], Reason("OBJECT_NOT_FOUND", "no such client"))
    outcomes[2] = RetryLater(taken[2], Reason("UNCONFIRMED", "silent"), delay_s=60)
    outcomes[3] = Refused(taken[3], {"notes": Reason("VALIDATION_ERROR", "too long")})
    journal.settle(taken, outcomes, call=call(taken, began=clock.now(), status=207), doubtful=False)
    journal.append([event("large", "c1")], staging=[[event("rest", "c2")]])
    journal.pause("partner_services", detail="by hand")
    journal.save_secret("token", "a secret")
    journal.refresh_figures()
    journal.close()
    with closing(sqlite3.connect(path)) as connection:  # as after retention: what had the highest numbers is gone
        connection.execute("UPDATE sqlite_sequence SET seq = seq + 100")
        connection.commit()
    return url


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that a journal holds, by table and key, but for what is of its place only."""
    found = {}
    for table in metadata.sorted_tables:
        names = [column.name for column in table.columns]
        if url.startswith("sqlite"):
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
                read = file.execute(f"SELECT {', '.join(names)} FROM {table.name}").fetchall()
        else:
            with psycopg.connect(url) as connection:
                read = connection.execute(
                    sql.SQL("SELECT {} FROM {}").format(
                        sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier(table.name)
                    )
                ).fetchall()
        if table.name == "meta":
            read = [row for row in read if row[0] not in LOCAL]
        found[table.name] = sorted(read, key=repr)
    return found


def version(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return "" if row is None else str(row[0])


@pytest.fixture
def target() -> str:
    return fresh_database(migrated=False)


def test_everything_is_carried_over(source: str, target: str) -> None:
    before = rows(source)
    assert all(before.values()), "every table has rows"
    told: list[tuple[int, int]] = []

    moved = move(source, target, progress=lambda done, total: told.append((done, total)))

    assert rows(target) == before == rows(source)
    assert moved.rows == {name: len(found) for name, found in before.items()}
    assert told[0] == (0, sum(moved.rows.values()))
    assert told[-1] == (sum(moved.rows.values()),) * 2
    versions.check(target)


def test_the_moved_journal_goes_on_where_the_file_stopped(source: str, target: str) -> None:
    """Duplicates are known, what was pending is due, numbers that were given before are not given again."""
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as file:
        numbers = dict(file.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    move(source, target)
    journal = Journal(settings=JournalSettings(url=target), clock=FakeClock())
    try:
        assert [receipt.intake for receipt in journal.append([event("e5", "c5")]).receipts] == [Intake.DUPLICATE]
        assert {entry.state for entry in journal.entries(Filter())} == {"retrying", "parked"}
        assert journal.load_secret("token") == "a secret"
        assert [pause.detail for pause in journal.load_pauses()] == ["by hand"]
        journal.append([event("new", "new-record")])
        assert journal.merge_staged() is False or journal.trace_event("rest")
    finally:
        journal.close()
    with psycopg.connect(target) as connection:
        [(seq,)] = connection.execute("SELECT seq FROM events WHERE event_id = 'new'").fetchall()
        [(record,)] = connection.execute("SELECT id FROM records WHERE record = 'new-record'").fetchall()
    assert seq > numbers["events"]
    assert record > numbers["records"]


class CutShortError(Exception):
    """What ends a move in the middle."""


def test_cut_short_anywhere_a_second_run_goes_on(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is whole no program uses it; what was copied is not copied again; nothing is doubled."""
    monkeypatch.setattr(moving, "STEP_ROWS", 7)
    chance = random.Random(7)
    began: list[int] = []

    def cut(after: int) -> Any:
        left = after

        def progress(done: int, total: int) -> None:
            nonlocal left
            if left == after:
                began.append(done)
            left -= 1
            if left == 0:
                raise CutShortError

        return progress

    with pytest.raises(CutShortError):
        move(source, target, progress=cut(2))
    runs = 0
    while True:
        with pytest.raises(JournalError, match=r"migrate --to|newer"):
            versions.check(target)
        with pytest.raises(JournalError):
            versions.prepare(target)
        try:
            move(source, target, progress=cut(chance.randrange(2, 9)))
            break
        except CutShortError:
            runs += 1
    assert runs > 4
    assert began == sorted(began)
    assert began[-1] > 0
    assert rows(target) == rows(source)
    versions.check(target)


@pytest.mark.parametrize("at, forwarded", [(b"COPY events", False), (b"COPY desired", True), (b"setval", True)])
def test_a_connection_lost_at_a_commit_neither_loses_nor_doubles(source: str, at: bytes, forwarded: bool) -> None:
    """Also where the server had committed, and only its answer was lost."""
    server_url = fresh_database(migrated=False)
    with TcpProxy(psycopg.conninfo.conninfo_to_dict(server_url)["port"]) as proxy:  # type: ignore[arg-type]
        port = str(proxy.upstream)
        target = server_url.replace(f":{port}/", f":{proxy.port}/")
        proxy.cut_at(Cut(at, forwarded=forwarded))
        with pytest.raises(JournalUnavailableError, match="run the same command again"):
            move(source, target)
        assert len(proxy.cut_short) == 1
        move(source, target)
    assert rows(server_url) == rows(source)


def test_a_file_that_was_changed_between_two_runs_is_copied_anew(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the first run are out of date."""
    monkeypatch.setattr(moving, "STEP_ROWS", 7)

    def progress(done: int, total: int) -> None:
        if done > 100:
            raise CutShortError

    with pytest.raises(CutShortError):
        move(source, target, progress=progress)
    journal = Journal(settings=JournalSettings(url=source), clock=FakeClock())
    journal.append([event("later", "c1", {"company_name": "another"})])
    journal.discard(journal.entries(Filter()))
    journal.close()

    move(source, target)

    assert rows(target) == rows(source)
    assert version(target) != MOVING


def test_a_second_run_after_the_end_has_nothing_to_do(source: str, target: str) -> None:
    """Also when the target has been used since: it is left alone."""
    first = move(source, target)
    again = move(source, target)
    assert again.before
    assert again.rows == first.rows
    journal = Journal(settings=JournalSettings(url=target), clock=FakeClock())
    journal.append([event("new", "c1")])
    journal.close()
    assert move(source, target).rows["events"] == first.rows["events"] + 1


def test_a_target_of_an_earlier_move_is_not_overwritten(source: str, target: str) -> None:
    """The file was served again after the move: neither may replace the other."""
    move(source, target)
    journal = Journal(settings=JournalSettings(url=source), clock=FakeClock())
    journal.append([event("later", "c1")])
    journal.close()
    before = rows(target)
    with pytest.raises(JournalError, match="as of an earlier move"):
        move(source, target)
    assert rows(target) == before


def test_another_journals_data_is_not_touched(source: str, target: str, tmp_path: Path) -> None:
    """Whether that came by itself, by a move, or by one that was cut short."""
    (tmp_path / "other").mkdir()
    other = filled(tmp_path / "other" / "journal.db")
    move(other, target)
    before = rows(target)
    with pytest.raises(JournalError, match="another journal's data"):
        move(source, target)
    assert rows(target) == before

    grown = fresh_database()
    journal = Journal(settings=JournalSettings(url=grown), clock=FakeClock())
    journal.append([event("own", "c1")])
    journal.close()
    with pytest.raises(JournalError, match="another journal's data"):
        move(source, grown)

    half = fresh_database(migrated=False)

    def progress(done: int, total: int) -> None:
        if done:
            raise CutShortError

    with pytest.raises(CutShortError):
        move(other, half, progress=progress)
    with pytest.raises(JournalError, match="another journal's data"):
        move(source, half)


def test_a_journal_in_use_is_not_moved(source: str, target: str) -> None:
    """While a service runs on the file the copy would be out of date at once."""
    lock = versions.ServiceLock(source)
    lock.acquire()
    try:
        with pytest.raises(JournalLockedError, match="stop that first"):
            move(source, target)
    finally:
        lock.release()
    move(source, target)


def test_a_file_that_is_changed_during_the_move_is_noticed(source: str, target: str) -> None:
    """A command beside it may write: then the copy is not what the file holds."""

    def progress(done: int, total: int) -> None:
        if done == total:
            journal = Journal(settings=JournalSettings(url=source), clock=FakeClock())
            journal.append([event("meanwhile", "c1")])
            journal.close()

    with pytest.raises(JournalError, match="was changed while it was copied"):
        move(source, target, progress=progress)
    move(source, target)
    assert rows(target) == rows(source)


@pytest.mark.damages
def test_a_damaged_file_is_not_moved(source: str, target: str) -> None:
    path = Path(source.removeprefix("sqlite:///"))
    with path.open("r+b") as file:
        file.seek(4096 * 12)
        file.write(b"\xff" * 4096)
    with pytest.raises(JournalDamagedError):
        move(source, target)


def test_a_database_out_of_reach_is_told_in_one_line_without_the_password(source: str) -> None:
    with pytest.raises(JournalError) as caught:
        move(source, f"postgresql://bridge:open-sesame@127.0.0.1:{free_port()}/journal")
    assert "\n" not in str(caught.value)
    assert "open-sesame" not in str(caught.value)
