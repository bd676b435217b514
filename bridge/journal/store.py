"""The journal: one object through which everyone else reads and writes it.

Constraints it keeps: 202 is answered after `append` returned, which is after a commit with fsync (G1); an
event takes effect once (G3); the newest value of a property wins (G4); what is parked or refused is kept
(G8). The tables stand in `schema`, the rules in `merging` (what is desired), `delivering` (what is sent and
settled), `retry_log`, `replay` and `control` (what people do); here are only transactions, time and limits.

Thread-safe. Open it after `fork`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy.engine import Connection

from bridge.errors import JournalError, JournalFullError
from bridge.journal import appending, control, delivering, event_log, matching, replay, retry_log, trace, upkeep
from bridge.journal.appending import Appended, Staged, drop_incomplete, oldest_staged, slices, unmergeable, unstage
from bridge.journal.control import Headroom, Resynced, ValueFilter
from bridge.journal.database import Database, fence, fetch, load_meta, on_postgresql, portions, save_meta
from bridge.journal.due import DueScan, due
from bridge.journal.event_log import EventFilter, Logged, Remap, portions_to_read
from bridge.journal.replay import CHANGES, Difference, Replay, Replayed, ReplayStep
from bridge.journal.retry_log import Chosen, Discarded, Filter
from bridge.journal.upkeep import DAY_US, Figures, Retention
from bridge.model import CALL_BYTES, Call, Clock, Due, Event, Lane, Outcome, Pause, PendingRecord, Taken, to_us
from bridge.settings import Journal as JournalSettings

#: Share of `max_size` from which on settled events go before `retention` is over: intake need not be refused then.
EARLY_AT = 0.9
#: Intake reopens when the journal has fallen to this share of its limits.
REOPEN_AT = 0.95
#: A due time further ahead than this (or than retry.max) comes from a wrong clock.
DUE_HORIZON_S = 600.0
#: How long a database that is out of reach is tried again: intake must answer its senders; a call that is about to
#: begin must be as old as its doubt; what a call did is worth waiting for, because it would be sent again.
INTAKE_PATIENCE_S, TAKE_PATIENCE_S, SETTLE_PATIENCE_S = 1.0, 5.0, 20.0


#: Any entry of the retry log.
EVERY = Filter()


class Watcher(Protocol):
    """Whom the journal tells what it did, for metrics. Called outside any transaction."""

    def committed(self, duration_s: float, appended: Appended) -> None: ...

    def settled(self, settled: delivering.Settlement) -> None: ...

    def troubled(self, kind: str) -> None: ...


def open_database(url: str, *, troubled: Callable[[str], None] = lambda _kind: None) -> Database:
    """The database of a `journal.url`. `troubled` is told the kind of trouble, each time: `full`, `io`, `read-only`,
    `damaged`, `gone`.
    """
    if on_postgresql(url):
        from bridge.journal.postgresql.database import PostgresDatabase

        return PostgresDatabase(url, troubled=troubled)
    from bridge.journal.sqlite.database import SqliteDatabase

    return SqliteDatabase(url, troubled=troubled)


P = ParamSpec("P")
R = TypeVar("R")


def reading(function: Callable[Concatenate[Connection, P], R]) -> Callable[Concatenate[Journal, P], R]:
    """The function as a method of the journal, in a read transaction of its own."""

    @wraps(function)
    def method(journal: Journal, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with journal._database.read() as connection:  # noqa: SLF001 (one of us)
            return function(connection, *args, **kwargs)

    return method


def writing(
    function: Callable[Concatenate[Connection, P], R], *, durable: bool = True
) -> Callable[Concatenate[Journal, P], R]:
    """The function as a method of the journal, in a write transaction of its own."""

    @wraps(function)
    def method(journal: Journal, /, *args: P.args, **kwargs: P.kwargs) -> R:
        database = journal._database  # noqa: SLF001 (one of us)
        return database.transact(lambda connection: function(connection, *args, **kwargs), durable=durable)

    return method


class Journal:
    """An open journal."""

    def __init__(
        self,
        *,
        settings: JournalSettings,
        clock: Clock,
        retry_max_s: float = DUE_HORIZON_S,
        watcher: Watcher | None = None,
    ) -> None:
        self._database = open_database(settings.url, troubled=self._troubled)
        self._settings = settings
        self._clock = clock
        self._watcher = watcher
        self._horizon_us = to_us(max(retry_max_s, DUE_HORIZON_S))
        self._lanes: dict[int, Lane] = {}  # lanes are never changed or removed: a cache cannot be stale
        self._lanes_lock = threading.Lock()
        self._due_scan = DueScan(clock.monotonic)
        self._retention = Retention()
        self._retry_log_count = upkeep.RetryLogCount(clock.monotonic)
        self._full = False
        self._figures: tuple[float, Figures, int] | None = None
        # What calls do must survive all but a power cut, in which it is sent again.
        self._calls_durable = not self._database.relaxed_outlives_crash
        self._epoch: int | None = None  # of the dispatcher's term, see `under`
        # By record: when it was taken by commits whose answers were lost, and what it was before. A record is in one
        # call at a time, and so is its entry here.
        self._in_vain: dict[int, tuple[frozenset[int], PendingRecord]] = {}

    # --- intake ---

    def append(
        self,
        events: Sequence[Event],
        *,
        staging: Sequence[Sequence[Event]] = (),
        staged: Collection[int] = (),
        admitted: bool = False,
    ) -> Appended:
        """Take these events in one transaction with fsync. Raises JournalFullError at the limits, unless `admitted`.

        `staging` are events that are kept now and merged by later calls (see `bridge.journal.appending`), `staged`
        what was kept and is merged with these.
        """
        if not admitted:
            self.refuse_if_full()
        started = self._clock.monotonic()

        def work(connection: Connection) -> Appended:
            now_us = self._now_us()
            appended = appending.append(connection, events, now_us=now_us)
            appended.staged = [appending.stage(connection, rest, now_us=now_us) for rest in staging]
            if staged:
                unstage(connection, staged)
            return appended

        appended = self._database.transact(work, patience_s=INTAKE_PATIENCE_S)
        if self._watcher is not None:
            self._watcher.committed(self._clock.monotonic() - started, appended)
        return appended

    def stage(self, events: Sequence[Event], *, after: Staged | None, whole: bool) -> Staged:
        """Keep the next piece of a large request on disk, to be merged when it is whole. Raises JournalError when what
        came before was dropped meanwhile.
        """
        return self._database.transact(
            lambda connection: appending.stage(connection, events, now_us=self._now_us(), after=after, whole=whole),
            patience_s=INTAKE_PATIENCE_S,
        )

    def merge_staged(self) -> bool:
        """Merge what is left of a large request whose process ended, or drop it if it was not whole; False when there
        is none.
        """
        with self._database.read() as connection:
            found = oldest_staged(connection, now_us=self._now_us())
        if found is None:
            return False
        if found.incomplete:
            self._database.transact(partial(drop_incomplete, id_=found.id))
            return True
        for events in slices(found.events):
            self._merge(events)
        self.append((), staged=[found.id], admitted=True)
        return True

    def _merge(self, events: Sequence[Event]) -> None:
        """Merge what was staged; an event that the journal does not take is parked and holds up nothing else."""
        try:
            self.append(events, admitted=True)
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever is wrong with an event, the others must get in)
            if len(events) == 1:
                self.append([unmergeable(events[0], error)], admitted=True)
                return
            for event in events:
                self._merge([event])

    def reconfigure(self, settings: JournalSettings, *, retry_max_s: float) -> None:
        """Go on with other limits and times; the URL stays."""
        self._settings = settings
        self._horizon_us = to_us(max(retry_max_s, DUE_HORIZON_S))

    def match_ids(self, caseless: Mapping[Lane, bool]) -> int:
        """Compare the record ids of these lanes as is said from now on (see `bridge.journal.matching`). Returns how
        many records turned out to be others.
        """
        return matching.unite(self._database, caseless, now_us=self._now_us())

    def refuse_if_full(self) -> None:
        """Raise JournalFullError while the journal is at one of its limits (with a second's lag)."""
        figures, size = self._cached_figures()
        share = REOPEN_AT if self._full else 1.0
        pending_full = figures.pending >= self._settings.max_pending * share
        size_full = size >= self._settings.max_size * share
        self._full = pending_full or size_full
        most = ", most of them from {} for {}".format(*figures.waiting[0]) if figures.waiting else ""
        if pending_full:
            limit = self._settings.max_pending
            raise JournalFullError(
                f"{figures.pending} records wait to be delivered (journal.max_pending {limit}){most}"
            )
        if size_full:
            raise JournalFullError(
                f"the journal holds {size} bytes (journal.max_size {self._settings.max_size}): {figures.pending} "
                f"records wait to be delivered{most}, {figures.parked} entries are parked, which stay until someone "
                "replays or discards them, and the last values of all records are remembered (journal.remember)"
            )

    def _cached_figures(self) -> tuple[Figures, int]:
        now = self._clock.monotonic()
        cached = self._figures
        if cached is None or now - cached[0] >= 1.0:
            cached = (now, self.figures(), self._database.size())
            self._figures = cached
        return cached[1], cached[2]

    # --- delivery ---

    def due(self, *, limit: int, exclude: Collection[int]) -> Sequence[Due]:
        """For every (lane, source) its `limit` oldest due records, leaving out those in `exclude`."""
        with self._database.read() as connection:
            return due(
                connection,
                lambda number: self._lane(connection, number),
                limit=limit,
                exclude=exclude,
                now_us=self._now_us(),
                horizon_us=self._horizon_us,
                scan=self._due_scan,
            )

    def take(
        self,
        refs: Sequence[int],
        *,
        began_at_us: int,
        max_bytes: int = CALL_BYTES,
        only: Collection[str] | None = None,
    ) -> Taken:
        """Read these records with their pending values and mark them as being in a call: as many as fit."""

        def work(connection: Connection) -> Taken:
            fence(connection, self._epoch)
            lane = partial(self._lane, connection)
            taken = delivering.take(connection, lane, refs, began_us=began_at_us, max_bytes=max_bytes, only=only)
            records = []
            for record in taken.records:
                marks, before = self._in_vain.get(record.ref, (frozenset(), record))
                records.append(delivering.taken_again(record, before, marks=marks))
                self._in_vain[record.ref] = (marks | {began_at_us}, replace(records[-1], values={}))
            return replace(taken, records=records)

        # Doubt must not be forgotten while its call goes on.
        taken = self._database.transact(work, durable=self._calls_durable, patience_s=TAKE_PATIENCE_S)
        for record in taken.records:
            self._in_vain.pop(record.ref, None)
        return taken

    def settle(
        self, taken: Sequence[PendingRecord], outcomes: Sequence[Outcome], *, call: Call | None, doubtful: bool
    ) -> None:
        """Write down what one call did, in one transaction."""
        tried: list[delivering.Settlement] = []

        def work(connection: Connection) -> delivering.Settlement:
            fence(connection, self._epoch)
            if not tried or call is None or not delivering.was_settled(connection, taken, outcomes, call):
                tried.append(
                    delivering.settle(connection, taken, outcomes, call=call, doubtful=doubtful, now_us=self._now_us())
                )
            return tried[-1]

        settled = self._database.transact(work, durable=self._calls_durable, patience_s=SETTLE_PATIENCE_S)
        if self._watcher is not None:
            self._watcher.settled(settled)

    def under(self, epoch: int | None) -> Journal:
        """The same journal for one term of the dispatcher: what it takes, settles and notes is refused with a
        JournalTermError once the term is over. None: no other process can deliver.
        """
        journal = copy.copy(self)
        journal._epoch = epoch  # noqa: SLF001 (one of us)
        return journal

    def _note(self, note: Callable[[Connection], None], *, alone: bool = False) -> None:
        """Write something down in this term, see `fence`; a power cut may undo it."""

        def work(connection: Connection) -> None:
            fence(connection, self._epoch, alone=alone)
            note(connection)

        self._database.transact(work, durable=False)

    def _lane(self, connection: Connection, number: int) -> Lane:
        with self._lanes_lock:
            if number not in self._lanes:
                for found, object_type, id_property in fetch(
                    connection, "SELECT id, object_type, id_property FROM lanes"
                ):
                    self._lanes[found] = Lane(object_type, id_property)
            return self._lanes[number]

    def clock_was_set(self, by_us: int) -> None:
        """The wall clock was set by so much: doubts are as old as before, by the new time."""
        self._note(lambda connection: delivering.shift_doubts(connection, by_us))

    def save_pauses(self, pauses: Sequence[Pause]) -> None:
        """Keep these pauses, for a restart and for every worker's status; those of people stay as they are."""
        self._note(lambda connection: control.save_pauses(connection, pauses), alone=True)

    load_pauses = reading(control.load_pauses)
    calls_since = reading(upkeep.calls_since)
    call_starts = reading(upkeep.call_starts)
    note_reading = writing(upkeep.note_reading, durable=False)
    load_secret = reading(load_meta)
    save_secret = writing(save_meta)

    # --- retry log ---

    entries = reading(retry_log.entries)
    references = reading(retry_log.references)
    count_entries = reading(retry_log.count_entries)
    overview = reading(retry_log.overview)
    payloads = reading(retry_log.payloads)
    calls_of = reading(retry_log.calls)

    def replay(
        self, chosen: Sequence[Chosen], remap: Remap, *, progress: Callable[[int], None] = lambda _: None
    ) -> Replayed:
        """Map these entries' events again and make everything due now, in small transactions.

        Raises JournalFullError before it begins when what is parked would fill the journal and so stop intake, and
        between two steps when something else filled it meanwhile.
        """
        done, headroom = Replayed(), self._headroom()
        if wanted := sum(entry.state == "parked" for entry in chosen):
            headroom.check(wanted=wanted)
        for step in portions(chosen, retry_log.STEP):
            parked = sum(entry.state == "parked" for entry in step)
            if parked:  # what is retried is pending already, and may be hastened whenever
                headroom.check(done=f" ({done.entries} of {len(chosen)} entries are replayed)")
            part = self._database.transact(partial(replay.replay, chosen=step, remap=remap, now_us=self._now_us()))
            done.entries += part.entries
            done.events += part.events
            done.unmapped += part.unmapped
            done.merged.add(part.merged)
            headroom.made_pending(parked)
            progress(len(step))
        return done

    def discard(
        self, found: Sequence[Chosen], still: Filter = EVERY, *, progress: Callable[[int], None] = lambda _: None
    ) -> Discarded:
        """Give up those of these entries for good that the filter means, in small transactions. Each applies it anew: a
        record that a newer event or a delivery took out of the retry log meanwhile is left alone.
        """
        done = Discarded()
        for step in portions(found, retry_log.STEP):
            ids = [entry.id for entry in step]
            part = self._database.transact(partial(retry_log.discard, ids=ids, chosen=still, now_us=self._now_us()))
            done.entries += part.entries
            done.values += part.values
            if self._watcher is not None:
                self._watcher.settled(delivering.Settlement(discarded=part.values))
            progress(len(step))
        return done

    begin_act = writing(control.begin_act)
    tell_act = writing(control.tell_act, durable=False)
    latest_act = reading(control.latest_act)

    # --- event log and undo ---

    count_events = reading(event_log.count_events)
    recent_events = reading(event_log.recent)
    presence = reading(event_log.presence)
    trace_event = reading(trace.of_event)
    trace_record = reading(trace.of_record)

    def events(self, chosen: EventFilter, *, after: int = 0) -> Iterator[Logged]:
        """The events that `chosen` means, in the order of their arrival, page by page."""
        for page, _ in self._event_pages(chosen, after):
            yield from page

    def _event_pages(
        self, chosen: EventFilter, after: int = 0, looked_at: Callable[[int], None] = lambda _: None
    ) -> Iterator[tuple[list[Logged], int]]:
        """Pages, each with where the next one begins (0 at the end)."""
        with self._database.read() as connection:
            upto = event_log.newest_seq(connection)
            among = event_log.numbers(connection, chosen.ids) if chosen.ids else None
        while True:
            with self._database.read() as connection:
                found, looked, following = event_log.page(connection, chosen, after=after, upto=upto, among=among)
            yield found, following
            looked_at(looked)
            if not following:
                return
            after = following

    def replay_events(
        self,
        chosen: EventFilter,
        remap: Remap,
        *,
        dry_run: bool = False,
        after: int = 0,
        enough: Callable[[], bool] = lambda: False,
        differences: Callable[[Sequence[Difference]], None] = lambda _: None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Replayed:
        """Map kept events again, in small transactions; values that they set are replaced or withdrawn, newer ones
        never. `differences` is told what changes, step by step. It begins after the event of this `seq` and ends
        between two steps when it is `enough`; then `after` of what is returned tells where to go on.

        Raises JournalFullError between two steps when the journal is full, so that intake is not stopped.
        """
        replaying = Replay(remap, dry_run=dry_run)
        done, headroom = Replayed(), self._headroom()
        for page, following in self._event_pages(chosen, after, looked_at=progress):
            with self._database.read() as connection:
                parts = list(portions_to_read(connection, [event.seq for event in page]))
            for at, part in enumerate(parts, 1):
                if not dry_run:
                    headroom.check(done=f" ({done.events} events are replayed)")
                step = self._replay_part(replaying, part, dry_run=dry_run)
                done.events += step.events
                done.unmapped += step.unmapped
                done.merged.add(step.merged)
                differences(step.differences)
                headroom.made_pending(len({found.record for found in step.differences if found.what in CHANGES}))
                if at < len(parts) and enough():
                    done.after = part[-1]
                    return done
            done.after = following
            if enough():
                break
        return done

    def _replay_part(self, replaying: Replay, part: Sequence[int], *, dry_run: bool) -> ReplayStep:
        with self._database.read() as connection:
            mapped = replaying.read(connection, part)
        step = partial(replaying.step, mapped=mapped, now_us=self._now_us())
        if not dry_run:
            return self._database.transact(step)
        with self._database.read() as connection:
            return step(connection)

    count_known = reading(control.count_delivered)

    def resync(
        self,
        chosen: ValueFilter,
        *,
        after: int = 0,
        enough: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Resynced:
        """Make delivered values pending again, in small transactions; `progress` is told of records. It ends between
        two steps when it is `enough`; then `after` of what is returned is what to go on with.

        Raises JournalFullError before it begins when that would fill the journal and so stop intake, and between two
        steps when something else filled it meanwhile.
        """
        headroom = self._headroom()
        if not after:
            headroom.check(wanted=self.count_known(chosen).records)
        done = Resynced(after=after)
        while True:
            headroom.check(done=f" ({done.records} records are due)")
            part, done.after = self._database.transact(
                partial(control.step, chosen=chosen, after=done.after, now_us=self._now_us())
            )
            done.records += part.records
            done.values += part.values
            headroom.made_pending(part.records)
            progress(part.records)
            if not done.after or enough():
                return done

    def _headroom(self) -> Headroom:
        def count() -> int:
            with self._database.read() as connection:
                return upkeep.pending(connection)

        return Headroom(count=count, max_pending=self._settings.max_pending, monotonic=self._clock.monotonic)

    def pause(self, object_type: str | None = None, *, detail: str = "") -> Pause:
        """Stop delivery, or that of one object type, until a person ends it; with fsync."""
        return self._database.transact(
            lambda connection: control.pause(connection, object_type, detail, now_us=self._now_us())
        )

    resume = writing(control.resume)

    # --- upkeep ---

    figures = reading(upkeep.read_figures)

    def refresh_figures(self, *, delivery: dict[str, Any] | None = None, sources: Collection[str] = ()) -> Figures:
        """Count the gauges anew and keep them for everyone. `sources` are the configured ones."""
        with self._database.read() as connection:
            figures = upkeep.count_figures(
                connection, self._retry_log_count, delivery=delivery or {}, sources=sources, now_us=self._now_us()
            )

        self._note(lambda connection: upkeep.save_figures(connection, figures), alone=True)
        return figures

    def prune(self) -> int:
        """One small step of retention; returns how many rows and pages went: 0 when there is no more to do now. Settled
        events go before their time while the journal is near `max_size`, the oldest first.
        """
        now_us = self._now_us()
        _, size = self._cached_figures()
        is_near = size >= self._settings.max_size * EARLY_AT
        retention_us = 0 if is_near else to_us(self._settings.retention_s)

        def work(connection: Connection) -> int:
            pruned = self._retention.step(
                connection,
                events_before_us=now_us - retention_us,
                day_began_us=now_us - now_us % DAY_US,
                # A kept event may be replayed: what is newer must be known as long.
                values_before_us=now_us - to_us(max(self._settings.remember_s, self._settings.retention_s)),
                now_us=now_us,
            )
            # Near the limit what can go must go, however much lies before it that cannot.
            pruned = pruned or int(is_near and self._retention.is_under_way)
            return pruned + self._database.give_back(connection)

        return self._database.transact(work, durable=False)

    def size(self) -> int:
        """Bytes on disk."""
        return self._database.size()

    def check_writable(self) -> None:
        """Raise a JournalError unless a transaction can be committed, with fsync, now."""
        self._database.check_writable()

    def close(self) -> None:
        """Close the database; the object cannot be used afterwards."""
        self._database.close()

    def _troubled(self, kind: str) -> None:
        if self._watcher is not None:
            self._watcher.troubled(kind)

    def _now_us(self) -> int:
        return to_us(self._clock.now())
