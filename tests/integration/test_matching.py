"""Which ids are one record: what stands in the journal from before is joined, and nothing is lost or older by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from bridge.journal import appending, matching
from bridge.journal.control import ValueFilter
from bridge.journal.database import Database, fetch, run
from bridge.journal.event_log import EventFilter
from bridge.journal.retry_log import Filter
from bridge.journal.store import Journal, open_database
from bridge.model import Delivered, Event, Lane, Parked, PendingRecord, PropertyUpdate, Reason, RecordKey, to_us
from tests.builders import call, event
from tests.fakes import FakeClock

EMAIL = Lane("partner_clients", "email")
#: Examples of one test share a journal, but no records.
EXAMPLES = count()


def at(
    number: int, record: str, properties: Mapping[str, str], *, time_s: float | None = None, caseless: bool = False
) -> Event:
    """An event about a record of `EMAIL`, as a mapping gives it."""
    update = PropertyUpdate(RecordKey.of(EMAIL, record, caseless=caseless), properties)
    return event(f"e{number}", at=time_s, updates=[update])


def as_of_old(made: Event, record: str) -> Event:
    """The event as a program gave it that compared ids as they came."""
    return replace(made, updates=tuple(replace(update, record=RecordKey(EMAIL, record)) for update in made.updates))


@contextmanager
def older_program(journal_url: str) -> Iterator[None]:
    """Merge as a program does that knows nothing of how lanes compare ids."""
    database = open_database(journal_url)
    noted = database.transact(lambda connection: fetch(connection, "SELECT id, caseless FROM lanes"))
    database.transact(lambda connection: run(connection, "UPDATE lanes SET caseless = NULL"))
    yield
    for number, how in noted:
        database.transact(partial(run, sql="UPDATE lanes SET caseless = :how WHERE id = :id", id=number, how=how))
    database.close()


def take(journal: Journal, clock: FakeClock) -> list[PendingRecord]:
    refs = list(dict.fromkeys(found.ref for found in journal.due(limit=1000, exclude=())))
    return sorted(journal.take(refs, began_at_us=to_us(clock.now())).records, key=lambda record: record.key)


def deliver(journal: Journal, clock: FakeClock) -> dict[str, dict[str, str]]:
    """Send what is due; returns the values by the id under which they went."""
    taken = take(journal, clock)
    done = [Delivered(record) for record in taken]
    journal.settle(taken, done, call=call(taken, began=clock.now(), status=200), doubtful=False)
    return {record.key.id: {name: value.value for name, value in record.values.items()} for record in taken}


def test_twins_become_one_with_the_newest_value_of_each_property(journal: Journal, clock: FakeClock) -> None:
    """The older word came later, so that it would have been the CRM's last."""
    now = clock.now()
    journal.append([at(1, "Sales@example.com", {"name": "old", "city": "Paris"}, time_s=now - 60)])
    journal.append([at(2, "sales@example.com", {"name": "new", "tier": "gold"}, time_s=now - 30)])
    assert journal.match_ids({EMAIL: True}) == 1
    assert deliver(journal, clock) == {"sales@example.com": {"name": "new", "city": "Paris", "tier": "gold"}}
    assert deliver(journal, clock) == {}


def test_a_value_that_an_older_one_may_have_overwritten_is_sent_once_more(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([at(1, "sales@example.com", {"name": "new", "tier": "gold"}, time_s=now - 30)])
    deliver(journal, clock)
    journal.append([at(2, "Sales@example.com", {"name": "old", "tier": "gold", "city": "Paris"}, time_s=now - 60)])
    deliver(journal, clock)
    assert journal.match_ids({EMAIL: True}) == 1
    assert deliver(journal, clock) == {"sales@example.com": {"name": "new"}}


def test_what_comes_later_meets_the_one_record_in_whatever_spelling(journal: Journal, clock: FakeClock) -> None:
    journal.match_ids({EMAIL: True})
    now = clock.now()
    journal.append([at(1, "SALES@example.com", {"name": "new"}, time_s=now - 10, caseless=True)])
    journal.append([at(2, "Sales@Example.com", {"name": "old", "city": "Paris"}, time_s=now - 20, caseless=True)])
    assert deliver(journal, clock) == {"SALES@example.com": {"name": "new", "city": "Paris"}}
    journal.append([at(3, "sales@EXAMPLE.com", {"city": "Rome"}, time_s=now - 5, caseless=True)])
    assert deliver(journal, clock) == {"sales@EXAMPLE.com": {"city": "Rome"}}
    for spelling in ("sales@example.com", " SALES@EXAMPLE.COM "):
        assert [story["record"] for story in journal.trace_record(spelling)] == ["sales@EXAMPLE.com"]
        assert [found.event for found in journal.events(EventFilter(record=spelling))] == ["e1", "e2", "e3"]
        assert journal.count_known(ValueFilter(record=spelling)).values == 2


def test_ids_that_count_letter_case_are_found_by_their_own_spelling_alone(journal: Journal) -> None:
    exact = Lane("partner_clients", "acme_client_id")
    journal.match_ids({exact: False, EMAIL: True})
    for number, record in enumerate(("A1", "a1")):
        made = event(f"e{number}", record, {"name": record})
        journal.append(
            [replace(made, updates=tuple(replace(u, record=RecordKey(exact, record)) for u in made.updates))]
        )
    assert [story["record"] for story in journal.trace_record("A1")] == ["A1"]
    assert [found.event for found in journal.events(EventFilter(record="a1"))] == ["e1"]


def test_a_parked_twin_is_found_and_tried_again_with_the_other(journal: Journal, clock: FakeClock) -> None:
    journal.append([at(1, "Sales@example.com", {"name": "old"}, time_s=clock.now() - 60)])
    taken = take(journal, clock)
    parked = [Parked(record, Reason("OBJECT_NOT_FOUND", "unknown")) for record in taken]
    journal.settle(taken, parked, call=call(taken, began=clock.now(), status=207), doubtful=False)
    [entry] = journal.entries(Filter(record="Sales@example.com"))
    journal.append([at(2, "sales@example.com", {"city": "Paris"}, time_s=clock.now() - 50)])
    assert (entry.state, journal.match_ids({EMAIL: True})) == ("parked", 1)
    assert journal.entries(Filter()) == []
    assert deliver(journal, clock) == {"sales@example.com": {"name": "old", "city": "Paris"}}


def test_a_record_without_a_twin_keeps_what_is_known_of_it(journal: Journal, clock: FakeClock) -> None:
    journal.append([at(1, "Sales@example.com", {"name": "old"})])
    taken = take(journal, clock)
    parked = [Parked(record, Reason("OBJECT_NOT_FOUND", "unknown")) for record in taken]
    journal.settle(taken, parked, call=call(taken, began=clock.now(), status=207), doubtful=False)
    before = journal.entries(Filter())
    assert journal.match_ids({EMAIL: True}) == 0
    assert journal.entries(Filter(record="SALES@example.com")) == before
    assert before[0].record == "Sales@example.com"


def test_a_call_that_is_open_meanwhile_settles_nothing_and_is_doubted(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([at(1, "Sales@example.com", {"name": "old"}, time_s=now - 60)])
    journal.append([at(2, "sales@example.com", {"name": "new"}, time_s=now - 30)])
    open_ = take(journal, clock)
    assert journal.match_ids({EMAIL: True}) == 1
    done = [Delivered(record) for record in open_]
    journal.settle(open_, done, call=call(open_, began=now, status=200), doubtful=False)
    assert deliver(journal, clock) in ({"sales@example.com": {"name": "new"}}, {})
    assert [story["values"][0]["value"] for story in journal.trace_record("sales@example.com")] == ["new"]


def test_back_to_exact_every_record_stands_under_its_own_spelling(journal: Journal, clock: FakeClock) -> None:
    journal.match_ids({EMAIL: True})
    journal.append([at(1, "Sales@example.com", {"name": "a"}, caseless=True)])
    journal.match_ids({EMAIL: False})
    journal.append([at(2, "Sales@example.com", {"name": "b"})])
    assert deliver(journal, clock) == {"Sales@example.com": {"name": "b"}}


def test_accents_of_their_own_are_joined_where_letter_case_counts(journal: Journal, clock: FakeClock) -> None:
    decomposed, composed = "Cafe\N{COMBINING ACUTE ACCENT}", "Caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    journal.append([at(1, composed, {"name": "a"}), at(2, composed.lower(), {"name": "c"})])
    journal.append([as_of_old(at(3, decomposed, {"name": "b"}), decomposed)])
    assert journal.match_ids({EMAIL: False}) == 1
    assert deliver(journal, clock) == {composed: {"name": "b"}, composed.lower(): {"name": "c"}}


def test_the_rest_of_a_large_request_is_joined_too(journal: Journal, journal_url: str, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([], staging=[[at(1, "Sales@example.com", {"name": "old"}, time_s=now - 60)]])
    journal.match_ids({EMAIL: True})
    journal.append([at(2, "sales@example.com", {"name": "new"}, time_s=now - 30, caseless=True)])
    clock.advance(appending.ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    assert deliver(journal, clock) == {"sales@example.com": {"name": "new"}}


SPELLINGS = ("sales@x.example", "Sales@x.example", "SALES@X.EXAMPLE")


@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(SPELLINGS),
            st.sampled_from("abc"),
            st.integers(0, 5),
            st.sampled_from(["append", "deliver", "lose", "open", "open, to be lost"]),
        ),
        max_size=12,
    ),
    later=st.lists(st.tuples(st.sampled_from(SPELLINGS), st.sampled_from("abc"), st.integers(0, 5)), max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
def test_joined_they_end_as_one_record_would_have(
    journal: Journal,
    clock: FakeClock,
    changes: list[tuple[str, str, int, str]],
    later: list[tuple[str, str, int]],
) -> None:
    """Whatever was sent before, in whatever order, and with calls that end only after they were joined: in the end the
    CRM has the newest value of each property, at equal times that of the later arrival.
    """
    example = next(EXAMPLES)
    began = clock.now()
    crm: dict[str, str] = {}
    newest: dict[str, tuple[float, int, str]] = {}
    lane = Lane("partner_clients", f"email_{example}")

    open_: list[tuple[PendingRecord, float, str]] = []

    def send(how: str = "deliver") -> None:
        for record in take(journal, clock):
            assert record.key.lane == lane
            if record.ref not in {other.ref for other, *_ in open_}:  # a record is in one call at a time
                open_.append((record, clock.now(), how))
        end("deliver", "lose")

    def end(*hows: str) -> None:
        for record, began, how in [one for one in open_ if one[2] in hows]:
            lost = how in {"lose", "open, to be lost"}
            if how != "lose":  # of a call that is lost the CRM may take what it had all the same, and late
                crm.update({name: value.value for name, value in record.values.items()})
            outcomes = [] if lost else [Delivered(record)]
            status = None if lost else 200
            journal.settle([record], outcomes, call=call([record], began=began, status=status), doubtful=lost)
            open_.remove((record, began, how))

    def append(number: int, spelling: str, name: str, time: int, *, caseless: bool) -> None:
        value = f"{example}.{number}"
        made = at(example * 100 + number, spelling, {name: value}, time_s=began - 60 + time, caseless=caseless)
        key = replace(made.updates[0].record, lane=lane)
        journal.append([replace(made, updates=(replace(made.updates[0], record=key),))])
        newest[name] = max(newest.get(name, (0, 0, "")), (time, number, value))

    for number, (spelling, name, time, then) in enumerate(changes):
        append(number, spelling, name, time, caseless=False)
        if then != "append":
            send(then)
    journal.match_ids({lane: True})
    for number, (spelling, name, time) in enumerate(later, 50):
        append(number, spelling, name, time, caseless=number % 2 == 0)
    send()
    end("open", "open, to be lost")
    for _ in range(3):
        clock.advance(130)
        send()
    assert crm == {name: value for name, (_, _, value) in newest.items()}
    records = [story for spelling in SPELLINGS[:1] for story in journal.trace_record(spelling)]
    assert sum(story["id_property"] == lane.id_property for story in records) == bool(newest)


def test_two_processes_that_find_the_same_twins_join_them_once(
    journal: Journal, journal_url: str, clock: FakeClock
) -> None:
    """All workers reload at a time, so that what one of them has found another may have done."""
    journal.append([at(1, "Sales@example.com", {"name": "a"}), at(2, "sales@example.com", {"city": "b"})])
    journal.append([at(3, "Other@example.com", {"name": "c"})])
    refs = [due.ref for due in journal.due(limit=9, exclude=())]
    database = open_database(journal_url)
    [(lane,)] = database.transact(lambda connection: fetch(connection, "SELECT DISTINCT lane FROM records"))
    for united in (1, 0):
        done = database.transact(lambda connection: matching._step(connection, refs, {lane: True}, to_us(clock.now())))
        assert done.gone == united
    database.close()
    assert deliver(journal, clock) == {
        "Other@example.com": {"name": "c"},
        "sales@example.com": {"name": "a", "city": "b"},
    }


def test_many_are_looked_through_page_by_page(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setattr(matching, "PAGE", 7)
    monkeypatch.setattr(matching, "STEP", 3)
    now = clock.now()
    for number in range(30):
        spelling = f"C{number % 15}@x.example" if number < 15 else f"c{number % 15}@x.example"
        journal.append([at(number, spelling, {"name": str(number)}, time_s=now - number)])
    assert journal.match_ids({EMAIL: True}) == 15
    assert deliver(journal, clock) == {f"C{n}@x.example": {"name": str(n)} for n in range(15)}


def test_an_older_program_beside_this_one_is_made_good_at_the_next_start(
    journal: Journal, journal_url: str, clock: FakeClock
) -> None:
    journal.match_ids({EMAIL: True})
    journal.append([at(1, "sales@example.com", {"name": "new"}, time_s=clock.now() - 5, caseless=True)])
    with older_program(journal_url):
        journal.append([at(2, "Sales@example.com", {"name": "old"}, time_s=clock.now() - 9)])
    assert journal.match_ids({EMAIL: True}) == 1
    assert deliver(journal, clock) == {"sales@example.com": {"name": "new"}}


def test_what_was_mapped_before_a_change_of_match_is_merged_by_it(journal: Journal, clock: FakeClock) -> None:
    """Requests that were under way, slices of large ones, workers that have not reloaded yet."""
    now = clock.now()
    journal.match_ids({EMAIL: True})
    journal.append([at(1, "sales@example.com", {"name": "new"}, time_s=now - 5, caseless=True)])
    journal.append([at(2, "Sales@Example.com", {"name": "old", "city": "Paris"}, time_s=now - 9, caseless=False)])
    assert deliver(journal, clock) == {"sales@example.com": {"name": "new", "city": "Paris"}}
    assert [found.event for found in journal.events(EventFilter(record="SALES@example.com"))] == ["e1", "e2"]
    journal.match_ids({EMAIL: False})
    journal.append([at(3, "Sales@Example.com", {"name": "other"}, time_s=now - 3, caseless=True)])
    assert deliver(journal, clock) == {"Sales@Example.com": {"name": "other"}}


class Dying:
    """A database before one of whose transactions the process ends."""

    def __init__(self, database: Database, *, after: int) -> None:
        self._database = database
        self._left = after

    def transact(self, work: Callable[[Connection], Any]) -> Any:
        if not self._left:
            raise MemoryError
        self._left -= 1
        return self._database.transact(work)

    def read(self) -> AbstractContextManager[Connection]:
        return self._database.read()


@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("caseless", [True, False])
def test_a_start_that_was_cut_short_is_finished_by_the_next(
    journal: Journal, journal_url: str, monkeypatch: pytest.MonkeyPatch, clock: FakeClock, *, caseless: bool, after: int
) -> None:
    """Wherever it was cut; of lanes whose ids count letter case, too: those of old are not in NFC."""
    monkeypatch.setattr(matching, "STEP", 1)
    now, accent = clock.now(), "e\N{COMBINING ACUTE ACCENT}"
    for number in range(6):
        old = f"Cafe{number}" if caseless else f"Caf{accent}{number}"
        journal.append([as_of_old(at(number, old, {"name": "old"}, time_s=now - 9), old)])
    database = open_database(journal_url)
    dying = cast("Database", Dying(database, after=after))
    with (
        pytest.raises(MemoryError) if after < 8 else nullcontext()
    ):  # one notes, six steps, and one notes that it is done
        matching.unite(dying, {EMAIL: caseless}, now_us=to_us(now))
    database.close()
    journal.match_ids({EMAIL: caseless})
    for number in range(6):
        record = f"cafe{number}" if caseless else f"Caf\N{LATIN SMALL LETTER E WITH ACUTE}{number}"
        journal.append([at(9 + number, record, {"name": "new"}, time_s=now - 5, caseless=caseless)])
    assert [*deliver(journal, clock).values()] == [{"name": "new"}] * 6
    assert deliver(journal, clock) == {}


def test_two_open_calls_of_twins_end_with_the_newer_value(journal: Journal, clock: FakeClock) -> None:
    """The newer one's is confirmed, the older one's is not heard of any more and may be applied late."""
    now = clock.now()
    journal.append([at(1, "Sales@example.com", {"name": "older"}, time_s=now - 60)])
    journal.append([at(2, "sales@example.com", {"name": "newer"}, time_s=now - 30)])
    older, newer = take(journal, clock)
    assert [value.value for value in older.values.values()] == ["older"]
    journal.match_ids({EMAIL: True})
    journal.settle([newer], [Delivered(newer)], call=call([newer], began=now, status=200), doubtful=False)
    journal.settle([older], [], call=call([older], began=now, status=None), doubtful=True)
    assert deliver(journal, clock) == {"sales@example.com": {"name": "newer"}}
    clock.advance(130)
    assert deliver(journal, clock) == {"sales@example.com": {"name": "newer"}}
    clock.advance(130)
    assert deliver(journal, clock) == {}


def test_one_that_stands_in_anothers_place_makes_room_first(
    journal: Journal, journal_url: str, clock: FakeClock
) -> None:
    """Back from caseless, where an older program left an id with an accent of its own: two clients, not one."""
    capital, decomposed = "Jos\N{LATIN SMALL LETTER E WITH ACUTE}", "jose\N{COMBINING ACUTE ACCENT}"
    journal.match_ids({EMAIL: True})
    with older_program(journal_url):
        journal.append([as_of_old(at(1, decomposed, {"city": "b"}), decomposed)])
    journal.append([at(2, capital, {"name": "capital"}, caseless=True)])
    journal.match_ids({EMAIL: False})
    assert deliver(journal, clock) == {capital: {"name": "capital"}, capital.lower(): {"city": "b"}}


@pytest.mark.parametrize("text", ["a\0b", "\ud800", ""])
def test_a_text_that_no_id_is_finds_nothing(journal: Journal, text: str) -> None:
    journal.append([at(1, "ab", {"name": "a"})])
    assert journal.trace_record(text) == []
    assert journal.entries(Filter(record=text)) == []
    assert list(journal.events(EventFilter(record=text))) == []
    assert journal.count_known(ValueFilter(record=text)).values == 0


def test_a_join_is_doubted_whatever_was_in_doubt_before(journal: Journal, clock: FakeClock) -> None:
    """The kept record's open call ends an old doubt of its own, not the one that the join has made; nor does one of
    two joins in a row hide the other.
    """
    began = clock.now()
    journal.append([at(0, "sales@example.com", {"name": "first"}, time_s=began - 90)])
    lost = take(journal, clock)
    journal.settle(lost, [], call=call(lost, began=began, status=None), doubtful=True)
    journal.append([at(1, "sales@example.com", {"name": "newest"}, time_s=began - 30)])
    deliver(journal, clock)
    clock.advance(121)
    journal.append([at(2, "Sales@example.com", {"name": "older"}, time_s=began - 60)])
    open_ = take(journal, clock)
    assert {record.key.id for record in open_} == {"sales@example.com", "Sales@example.com"}
    older, newest = open_
    journal.match_ids({EMAIL: True})
    journal.settle([newest], [Delivered(newest)], call=call([newest], began=clock.now(), status=200), doubtful=False)
    journal.settle([older], [], call=call([older], began=clock.now(), status=None), doubtful=True)
    deliver(journal, clock)
    clock.advance(130)
    assert deliver(journal, clock) == {"sales@example.com": {"name": "newest"}}
    clock.advance(130)
    assert deliver(journal, clock) == {}
