"""One dispatcher among all replicas: the term on PostgreSQL, and the fence around what it writes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from bridge.errors import JournalTermError
from bridge.journal.postgresql import term
from bridge.journal.postgresql.term import Term
from bridge.journal.store import Journal
from bridge.journal.versions import dispatch_claim
from bridge.model import Delivered, Pause, Scope, SystemClock, to_us
from bridge.settings import Journal as JournalSettings
from tests.builders import call, event
from tests.fakes import FakeClock
from tests.running import eventually

DUE = 100


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    opened = Journal(settings=JournalSettings(url=database_url), clock=SystemClock())
    yield opened
    opened.close()


@contextlib.contextmanager
def claims(url: str, *clocks: FakeClock) -> Iterator[list[Term]]:
    made = [Term(url, clock=clock) for clock in clocks]
    try:
        yield made
    finally:
        for one in made:
            one.release()


def expire(url: str) -> None:
    """As if the holder had not renewed its term for so long."""
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE dispatcher SET until_us = 1")


def test_one_of_two_delivers_until_it_gives_way(database_url: str, clock: FakeClock) -> None:
    with claims(database_url, clock, clock) as (one, other):
        assert one.acquire()
        assert one.acquire()  # it has it already
        assert not other.acquire()
        assert one.holder() == other.holder()
        assert not other.may_call()
        one.release()
        assert other.acquire()
        assert (one.epoch, other.epoch) == (0, 2)
        assert other.may_call()


def test_a_term_that_was_not_renewed_is_taken_over(database_url: str, clock: FakeClock) -> None:
    with claims(database_url, clock, clock) as (one, other):
        assert one.acquire()
        expire(database_url)
        assert other.acquire()
        assert eventually(lambda: not one.held(), within_s=term.RENEW_S + 2)
        assert not one.may_call()
        assert other.held()
        assert not one.acquire()


def test_f49_a_term_that_no_thread_could_renew_is_not_kept(
    database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look held, and no call would ever start."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with claims(database_url, clock) as (one,):
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", refuse)
            for _ in range(2):
                with pytest.raises(RuntimeError):
                    one.acquire()
        assert one.epoch == 0
        assert one.acquire()
        assert one.epoch == 3
        clock.advance(term.CALLS_S + 1)
        assert not one.may_call()
        assert eventually(one.may_call, within_s=term.RENEW_S + 2)  # somebody renews it


def test_no_call_starts_long_after_the_last_renewal(
    database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever held it up: a process that was frozen finds out before the next call."""
    monkeypatch.setattr(term, "RENEW_S", 60.0)
    with claims(database_url, clock) as (one,):
        assert one.acquire()
        clock.advance(term.CALLS_S - 0.1)
        assert one.may_call()
        clock.advance(0.2)
        assert not one.may_call()
        assert one.held()  # nobody took over


def test_it_is_renewed_all_the_time(database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(term, "RENEW_S", 0.02)
    with claims(database_url, clock, clock) as (one, other):
        assert one.acquire()
        expire(database_url)
        time.sleep(0.3)
        assert not other.acquire()
        clock.advance(60)
        assert eventually(one.may_call)


def test_a_file_is_claimed_without_a_term(tmp_path: object) -> None:
    claim = dispatch_claim(f"sqlite:///{tmp_path}/journal.db", clock=FakeClock())
    assert claim.epoch is None
    assert claim.held()
    assert claim.may_call()


def test_who_does_not_deliver_any_more_changes_nothing(journal: Journal, database_url: str, clock: FakeClock) -> None:
    with claims(database_url, clock, clock) as (one, other):
        assert one.acquire()
        old = journal.under(one.epoch)
        journal.append([event("e1", "1"), event("e2", "2")])
        now = time.time()
        [first, second] = [due.ref for due in old.due(limit=DUE, exclude=())]
        taken = old.take([first], began_at_us=to_us(now)).records
        expire(database_url)
        assert other.acquire()
        new = journal.under(other.epoch)
        outage = Pause(Scope.ALL, "", "outage", "503", since_us=1, until_us=None)
        new.save_pauses([outage])
        with pytest.raises(JournalTermError):
            old.settle(taken, [Delivered(record) for record in taken], call=call(taken, began=now), doubtful=False)
        with pytest.raises(JournalTermError):
            old.take([second], began_at_us=to_us(now))
        with pytest.raises(JournalTermError):
            old.save_pauses([])
        with pytest.raises(JournalTermError):
            old.refresh_figures()
        with pytest.raises(JournalTermError):
            old.clock_was_set(1)
        assert new.load_pauses() == [outage]  # what the old one left there is handed over
        assert {due.ref for due in new.due(limit=DUE, exclude=())} == {first, second}
        # The call of the old one may still be applied: the new one knows.
        [again] = new.take([first], began_at_us=to_us(now) + 1).records
        assert again.doubt_at_us == to_us(now)


def test_a_successor_waits_for_what_is_being_settled(database_url: str, clock: FakeClock) -> None:
    """Else it could take a record before its predecessor noted what a call had done."""
    with claims(database_url, clock, clock) as (one, other), psycopg.connect(database_url) as settling:
        assert one.acquire()
        expire(database_url)
        settling.execute("SELECT epoch FROM dispatcher WHERE id = 1 FOR KEY SHARE")
        taking_over = threading.Thread(target=other.acquire)
        taking_over.start()
        taking_over.join(0.5)
        assert taking_over.is_alive()
        settling.rollback()
        taking_over.join(5)
        assert other.held()
