"""What people look at and do: the admin API, which the command line uses too, and the console ask here.

What it hands out is ready for JSON; times are ISO 8601.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from bridge.errors import JournalError
from bridge.journal.control import ValueFilter
from bridge.journal.database import portions
from bridge.journal.event_log import EventFilter, Logged, Remap, Share
from bridge.journal.replay import Difference
from bridge.journal.retry_log import PORTION, Entry, Filter, Reference
from bridge.journal.store import Journal
from bridge.journal.upkeep import Minute, minutes_of
from bridge.model import Pause
from bridge.showing import iso

#: Rows of what fills the journal.
WAITING = 10

Document = dict[str, Any]
Progress = Callable[[int], None]
#: Whether to end here, and to go on later.
Enough = Callable[[], bool]


class JournalDesk:
    """The desk on an open journal. Thread-safe, as the journal is."""

    def __init__(self, *, journal: Journal, make_remap: Callable[[], Remap]) -> None:
        """`make_remap` gives today's mapping; it is asked for when something is replayed."""
        self._journal = journal
        self._make_remap = make_remap

    # --- the retry log ---

    def retry(self, entry_id: str) -> Document | None:
        """One entry with the stories of the events behind it."""
        entry = self._entry(entry_id)
        return None if entry is None else self._with_events(entry)

    def retry_behind(self, entry_id: str) -> Document | None:
        """The same with all that is known of it: its events' payloads too, and the calls that carried it."""
        entry = self._entry(entry_id)
        if entry is None:
            return None
        payloads, calls = self._journal.payloads(entry), self._journal.calls_of(entry)
        return self._with_events(entry) | {"payloads": payloads, "calls": calls}

    def _entry(self, entry_id: str) -> Entry | None:
        return next(iter(self._journal.entries(Filter(ids=(entry_id,)))), None)

    def _with_events(self, entry: Entry) -> Document:
        stories = [story for event_id in entry.event_ids for story in self._journal.trace_event(event_id)]
        return entry_document(entry) | {"events": stories}

    def count_retries(self, chosen: Filter) -> int:
        """How many entries the filter means."""
        return self._journal.count_entries(chosen)

    def retries_page(
        self, chosen: Filter, *, limit: int, offset: int = 0, after: Reference | None = None
    ) -> tuple[list[Document], Reference | None]:
        """Some of the entries, oldest failure first, and the one after which the next page begins, if there may be one.
        There are fewer rows than `limit` where entries are settled meanwhile.
        """
        found = self._journal.references(chosen, after=after, limit=limit, offset=offset)
        rows = [
            entry_document(entry)
            for portion in portions(found, PORTION)
            for entry in self._journal.entries(Filter(ids=tuple(each.id for each in portion)))
        ]
        return rows, found[-1] if len(found) == limit else None

    def retry_overview(self, chosen: Filter, *, limit: int, offset: int) -> Document:
        """How many entries the filter means, the largest groups of one cause, and a page, oldest failure first."""
        found = self._journal.overview(chosen, limit=limit, offset=offset)
        groups = [
            {
                "state": group.state,
                "category": group.category,
                "message": group.message,
                "entries": group.entries,
                "first_failed_at": iso(group.first_us),
                "last_failed_at": iso(group.last_us),
            }
            for group in found.groups
        ]
        return {
            "entries": found.entries,
            "groups": groups,
            "more_groups": found.more_groups,
            "page": list(map(entry_document, found.page)),
        }

    def last_hour(self) -> list[Minute]:
        """What the last hour brought, by minutes; oldest first."""
        return minutes_of(self._journal.figures().history)

    def act_on_retries(
        self,
        act: str,
        chosen: Filter,
        *,
        after: Reference | None = None,
        limit: int | None = None,
        progress: Progress = lambda _done: None,
    ) -> Document:
        """`replay` the entries that the filter means: map the kept payloads with today's mapping and send them now; or
        `discard` for good those that it still means at the moment of the act. `limit` bounds how many; then `next` is
        the place after which to go on, None at the end.
        """
        found = self._journal.references(chosen, after=after, limit=limit)
        if act == "replay":
            replayed = self._journal.replay(found, self._make_remap(), progress=progress)
            done = {"entries": replayed.entries, "events": replayed.events, "unmapped": replayed.unmapped}
        else:
            discarded = self._journal.discard(found, chosen, progress=progress)
            done = {"entries": discarded.entries, "given_up": discarded.values}
        return done if limit is None else done | {"next": found[-1].place if len(found) == limit else None}

    # --- the event log ---

    def events(self, chosen: EventFilter, *, after: int = 0) -> Iterator[Document]:
        """The events after the one of this `seq`, in the order of their arrival."""
        return map(event_document, self._journal.events(chosen, after=after))

    def recent_events(self, number: int) -> list[Document]:
        """The events that came last, newest first."""
        return list(map(event_document, self._journal.recent_events(number)))

    def presence(self, source: str, properties: Mapping[str, Collection[str]]) -> dict[str, Document]:
        """How often each property came with the source's events, compared with those beside it: see
        `bridge.journal.event_log`. Nothing while the journal cannot be read.
        """
        try:
            found = self._journal.presence(source)
        except JournalError:
            return {}
        return {name: share_document(found.of(name, beside)) for name, beside in properties.items()}

    def replay_events(
        self,
        chosen: EventFilter,
        *,
        dry_run: bool,
        shown: int,
        after: int = 0,
        enough: Enough | None = None,
    ) -> Document:
        """Map kept events again; a dry run only tells what would change. `next` is where to go on when it was `enough`,
        None at the end.
        """
        changes: list[Difference] = []
        kept: list[Difference] = []
        counts: Counter[str] = Counter()

        def tell(found: Sequence[Difference]) -> None:
            counts.update(difference.what for difference in found)
            for difference in found:
                told = kept if difference.what == "kept" else changes
                if len(told) < shown:
                    told.append(difference)

        done = self._journal.replay_events(
            chosen,
            self._make_remap(),
            dry_run=dry_run,
            after=after,
            enough=enough or (lambda: False),
            differences=tell,
        )
        # What is only kept must not hide what changes.
        differences = list(map(difference_document, [*changes, *kept][:shown]))
        return _to_go_on(done.after, enough) | {
            "dry_run": dry_run,
            "events": done.events,
            "unmapped": done.unmapped,
            "changes": dict(sorted(counts.items())),
            "differences": differences,
            "left_out": counts.total() - len(differences),
        }

    def trace(self, wanted: str) -> Document:
        """The stories of an event or a record."""
        return {"events": self._journal.trace_event(wanted), "records": self._journal.trace_record(wanted)}

    # --- steering ---

    def resync(self, chosen: ValueFilter, *, dry_run: bool, after: int = 0, enough: Enough | None = None) -> Document:
        """Send known values once more; a dry run counts them. `next` as with `replay_events`."""
        if dry_run:
            found = self._journal.count_known(chosen)
        else:
            found = self._journal.resync(chosen, after=after, enough=enough or (lambda: False))
        told = {"dry_run": dry_run, "records": found.records, "values": found.values}
        return told | _to_go_on(found.after, enough)

    def pauses(self) -> list[Document]:
        """Every pause that holds, whoever made it."""
        return list(map(pause_document, self._journal.load_pauses()))

    def pause(self, object_type: str | None, reason: str) -> Document:
        """Stop delivery, or that of one object type."""
        return pause_document(self._journal.pause(object_type, detail=reason))

    def resume(self, object_type: str | None) -> list[Document]:
        """End people's pauses; returns those that ended."""
        return list(map(pause_document, self._journal.resume(object_type)))


def _to_go_on(after: int, enough: Enough | None) -> Document:
    return {} if enough is None else {"next": after or None}


# --- documents ----------------------------------------------------------------------------------


def entry_document(entry: Entry) -> Document:
    """An entry of the retry log as `retries list --json` prints it."""
    return {
        "id": entry.id,
        "state": entry.state,
        "source": entry.source,
        "object_type": entry.object_type,
        "id_property": entry.id_property,
        "record": entry.record,
        "category": entry.category,
        "message": entry.message,
        "properties": list(entry.properties),
        "event_ids": list(entry.event_ids),
        "attempts": entry.attempts,
        "first_failed_at": iso(entry.first_failed_us),
        "next_attempt_at": iso(entry.next_attempt_us),
    }


def event_document(event: Logged) -> Document:
    """An event as `events list --json` prints it."""
    return {
        "id": event.event,
        "seq": event.seq,
        "source": event.source,
        "received_at": iso(event.received_us),
        "occurred_at": iso(event.occurred_us),
        "outcome": event.outcome,
        "outcomes": event.outcomes,
        "records": list(event.records),
        "properties": list(event.properties),
        "unmappable": event.unmappable,
    }


def difference_document(difference: Difference) -> Document:
    """A difference as `events replay --json` prints it."""
    record = difference.record
    return {
        "event": difference.event,
        "source": difference.source,
        "what": difference.what,
        "object_type": record.lane.object_type if record else None,
        "id_property": (record.lane.id_property or None) if record else None,
        "record": record.sent if record else None,
        "property": difference.property,
        "old": difference.old,
        "new": difference.new,
        "by": difference.by,
        "note": difference.note,
    }


def share_document(share: Share) -> Document:
    """How often a property came, with times as text."""
    return {
        "late": share.late,
        "late_events": share.late_events,
        "lacking": share.lacking,
        "earlier": share.earlier,
        "earlier_events": share.earlier_events,
        "last_at": iso(share.last_us),
        "lacking_since": iso(share.since_us),
        "stopped": share.stopped,
    }


def pause_document(pause: Pause) -> Document:
    """A pause as `/status` tells it."""
    return {
        "scope": pause.scope,
        "target": pause.target,
        "reason": pause.reason,
        "detail": pause.detail,
        "since": iso(pause.since_us),
        "until": iso(pause.until_us),
    }


def waiting_document(waiting: Sequence[tuple[str, str, int]]) -> list[Document]:
    """What fills the journal, as `/status` tells it: whose records wait, most first."""
    return [
        {"source": source, "object_type": object_type, "records": records}
        for source, object_type, records in waiting[:WAITING]
    ]
