"""Which properties the events of a source asked for of late and before: what used to come and has stopped.

It is read from what is kept of the events, hence right for any number of processes and after a restart. Only a bounded
number of events is walked through, of whatever source they are: there is no index by source, and a page must not cost
what the journal holds. Of a source that sends one event in a thousand little is known, and nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import orjson
from sqlalchemy.engine import Connection

from bridge.journal import event_log
from bridge.journal.database import fetch, select

#: Events of the source that are looked at, of the newest and of earlier ones each.
SAMPLE = 500
#: Events of all sources that are walked through to find them.
WALKED = 20_000
#: Events that are meant by "of late".
LATE = 50
#: How long before the newest the earlier ones came, in a journal that reaches back twice as far.
EARLIER_US = 86_400_000_000
#: A property has stopped if at least so many events lack it, so many before were looked at, and of a share that is
#: worth a word at least so many were to be expected: one in five, and ten.
ENOUGH, WORTH, EXPECTED = 20, 0.2, 10


@dataclass(frozen=True, slots=True)
class Asking:
    """An event that asks for something: when it arrived, and for which properties."""

    seq: int
    received_us: int
    properties: frozenset[str]


@dataclass(frozen=True, slots=True)
class Share:
    """How often a property came: in `late` of the newest `late_events`; in none of the newest `lacking`, and in
    `earlier` of the `earlier_events` that were looked at before those. `last_us` is the arrival of the last that had
    it, and None where that is before `since_us`, the arrival of the oldest of those that lack it.
    """

    late: int
    late_events: int
    lacking: int
    earlier: int
    earlier_events: int
    last_us: int | None
    since_us: int | None

    @property
    def stopped(self) -> bool:
        """Whether it used to come, and chance does not explain that it comes no more."""
        if self.lacking < ENOUGH or self.earlier_events < ENOUGH:
            return False
        share = self.earlier / self.earlier_events
        return share >= WORTH and share * self.lacking >= EXPECTED


@dataclass(frozen=True, slots=True)
class Presence:
    """Events of one source that ask for something, newest first: the newest without a gap, and earlier ones."""

    newest: tuple[Asking, ...] = ()
    earlier: tuple[Asking, ...] = ()

    def of(self, name: str, beside: Collection[str] = ()) -> Share:
        """How often that property came, of the events that ask for any of those `beside` it: what the same block maps.
        Other blocks read other events, which are no sign of its having stopped. Without any: of all events.
        """
        newest, earlier = (
            [event for event in events if not beside or not event.properties.isdisjoint(beside)]
            for events in (self.newest, self.earlier)
        )
        having = [at for at, event in enumerate(newest) if name in event.properties]
        lacking = having[0] if having else len(newest)
        before = (*newest[lacking:], *earlier)
        return Share(
            late=sum(at < LATE for at in having),
            late_events=min(LATE, len(newest)),
            lacking=lacking,
            earlier=sum(name in event.properties for event in before),
            earlier_events=len(before),
            last_us=newest[lacking].received_us if having else None,
            since_us=newest[lacking - 1].received_us if lacking else None,
        )


def read(connection: Connection, source: str) -> Presence:
    """The newest events of the source and some from a day before, or from the older half of a younger journal."""
    newest = _walked(connection, source, upto=event_log.newest(connection))
    if not newest:
        return Presence()
    latest_us = newest[0].received_us
    (oldest_us,) = fetch(connection, "SELECT min(received_us) FROM events")[0]
    found = fetch(
        connection,
        "SELECT seq FROM events WHERE received_us <= :before_us ORDER BY received_us DESC, seq DESC LIMIT 1",
        before_us=latest_us - min(EARLIER_US, max(0, latest_us - oldest_us) // 2),
    )
    upto = min(found[0][0] if found else 0, newest[-1].seq - 1)
    return Presence(newest, _walked(connection, source, upto=upto))


def _walked(connection: Connection, source: str, *, upto: int) -> tuple[Asking, ...]:
    """Those that ask for something among the last events up to this one, newest first."""
    arrived: dict[int, int] = {}
    asked: dict[int, set[str]] = {}
    for seq, received_us, names in select(
        connection,
        "seq, received_us, properties",
        """SELECT e.seq, e.received_us, a.properties FROM
             (SELECT seq, received_us FROM events
               WHERE seq > :after AND seq <= :upto AND source = :source
                 AND EXISTS (SELECT 1 FROM asks a WHERE a.event = events.seq AND a.event > :after AND a.event <= :upto
                                AND a.properties <> '[]')
               ORDER BY seq DESC LIMIT :sample) AS e
             JOIN asks a ON a.event = e.seq""",  # the bounds again, so that a merge join does not begin at the end
        after=upto - WALKED,
        upto=upto,
        source=source,
        sample=SAMPLE,
    ):
        arrived[seq] = received_us
        asked.setdefault(seq, set()).update(orjson.loads(names))
    return tuple(Asking(seq, arrived[seq], frozenset(asked[seq])) for seq in sorted(asked, reverse=True))
