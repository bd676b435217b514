"""What a replay is going to write, and writing it in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from bridge.journal.database import run
from bridge.journal.kept import PORTION_BYTES, KeptEvent, Remapped
from bridge.journal.merging import Ask, Merged, merge
from bridge.journal.picture import Word
from bridge.journal.reconciling import reconcile
from bridge.model import RecordKey

#: Before the merge every new change counts as later than any known one.
NEW_N = 2**60

#: Events with what today's mapping makes of them.
Mapped = Sequence[tuple[KeptEvent, Remapped | None]]


def _size(mapped: Mapped) -> int:
    return sum(len(kept.payload) for kept, _ in mapped)


@dataclass(slots=True)
class Draft:
    """What is to be merged of one event for one record."""

    source: str
    time_us: int
    n: int
    properties: dict[str, str] = field(default_factory=dict)
    invalid: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What a step will write; an address is (event, record)."""

    remapped: dict[int, Mapped]
    looked_at: dict[int, Mapped] = field(default_factory=dict)  # older ones, the last that were
    drafts: dict[tuple[int, RecordKey], Draft] = field(default_factory=dict)
    names: dict[tuple[int, RecordKey], tuple[str, ...]] = field(default_factory=dict)  # all that is asked
    withdrawn: list[tuple[int, str]] = field(default_factory=list)  # (record, property), nothing in its place
    vacated: list[tuple[int, str]] = field(default_factory=list)  # another word takes the place
    silent: list[tuple[int, int]] = field(default_factory=list)  # (record, n): nothing asked any more
    judged: list[tuple[int, str | None, str]] = field(default_factory=list)  # (event, unmappable, taken as)

    def mapped(self, event: int, read: Callable[[], Mapped]) -> Mapped:
        """The event, mapped once in a step, unless many large ones are looked at in between."""
        if event in self.remapped:
            return self.remapped[event]
        self.looked_at[event] = found = self.looked_at.pop(event, None) or read()
        while sum(_size(one) for one in self.looked_at.values()) > PORTION_BYTES:
            del self.looked_at[next(iter(self.looked_at))]
        return found

    def draft(self, address: tuple[int, RecordKey], source: str, time_us: int, n: int) -> Draft:
        """The draft of this address, made if there is none."""
        return self.drafts.setdefault(address, Draft(source, time_us, n))

    def put(self, address: tuple[int, RecordKey], name: str, word: Word) -> None:
        """Let this word be merged."""
        draft = self.draft(address, word.source, word.time_us, word.n)
        if word.value is not None:
            draft.properties[name] = word.value
        else:
            draft.invalid[name] = word.message or "invalid"

    def take_back(self, address: tuple[int, RecordKey], name: str) -> None:
        """Let another word be merged in its place."""
        draft = self.drafts.get(address)
        if draft is not None:
            draft.properties.pop(name, None)
            draft.invalid.pop(name, None)


def write(connection: Connection, plan: Plan, *, again: bool, now_us: int) -> Merged:
    """Write the plan: first make room, then merge what takes it."""
    run(
        connection,
        """DELETE FROM desired
            WHERE (record, property) IN (SELECT record, property FROM {rows:record int, property text} AS given)""",
        rows=plan.withdrawn,
    )
    # Lowered below any word, with its value and state: a value that is confirmed already is not sent again.
    run(
        connection,
        """UPDATE desired SET time_us = :lowest, n = -1 FROM {rows:ref int, name text} r
            WHERE desired.record = r.ref AND desired.property = r.name""",
        rows=plan.vacated,
        lowest=-(2**62),
    )
    run(
        connection,
        "UPDATE asks SET properties = '[]' FROM {rows:ref int, n int} r WHERE asks.record = r.ref AND asks.n = r.n",
        rows=plan.silent,
    )
    asks = [
        Ask(
            event=event,
            source=draft.source,
            record=key,
            properties=draft.properties,
            invalid=draft.invalid,
            skip_unchanged=not again,
            occurred_us=None,
            n=None if draft.n >= NEW_N else draft.n,
            time_us=draft.time_us,
            names=plan.names[event, key],
        )
        for (event, key), draft in plan.drafts.items()
    ]
    merged = merge(connection, asks, now_us=now_us, replay=True)
    run(
        connection,
        """UPDATE events SET unmappable = r.why, intake = r.intake,
                  waits = CASE WHEN r.why IS NULL THEN 0 WHEN events.unmappable IS NULL THEN 1 ELSE events.waits END
             FROM {rows:seq int, why text, intake text} r WHERE events.seq = r.seq""",
        rows=plan.judged,
    )
    replaced = {ref for ref, _ in (*plan.withdrawn, *plan.vacated)}
    reconcile(connection, replaced, now_us=now_us, settled=replaced)
    return merged
