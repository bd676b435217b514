"""The model of what the CRM should hold: for each property the newest word, by the rules of dating and nothing else.

It knows no calls, retries or pauses: whatever these do, this is the end. Times are microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

#: A sender's value that the mapping finds invalid.
INVALID = "invalid"
#: A time stamp further ahead than this is not believed.
TOLERANCE_US = 300 * 1_000_000
Address = tuple[str, str]  # record, property


@dataclass(frozen=True)
class Told:
    """One event of a partner; without a record nobody can be asked."""

    id: str
    record: str | None
    properties: dict[str, str]
    occurred_us: int | None
    skip_unchanged: bool = False


@dataclass(frozen=True)
class Word:
    """What one event says of one property. The highest rank stands."""

    time_us: int
    arrival: int
    value: str
    event: str
    discarded: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        return self.time_us, self.arrival


@dataclass
class Desired:
    """The newest words, the events behind them, and what of these waits for a person."""

    words: dict[Address, Word] = field(default_factory=dict)
    events: dict[str, Told] = field(default_factory=dict)
    dated: dict[str, int] = field(default_factory=dict)  # event → its effective time
    unmappable: set[str] = field(default_factory=set)
    swapped: bool = False
    _newest: dict[str, int] = field(default_factory=dict)

    def mapped(self, told: Told) -> dict[str, str]:
        """Today's mapping: a mistake swaps p and q."""
        names = {"p": "q", "q": "p"} if self.swapped else {}
        return {names.get(name, name): value for name, value in told.properties.items()}

    def arrive(self, group: Sequence[Told], now_us: int) -> None:
        """These events arrive together."""
        believed = now_us + TOLERANCE_US
        times = {
            told.id: None if told.occurred_us is None or told.occurred_us > believed else told.occurred_us
            for told in group
        }
        claims: dict[str, int] = {}
        for told in group:
            time_us = times[told.id]
            if told.record is not None:
                claims[told.record] = max(claims.get(told.record, -(2**62)), now_us if time_us is None else time_us)
        for record, claim in claims.items():
            known = self._newest.get(record, -(2**62))
            self._newest[record] = claim if known > believed else max(claim, known)
        best: dict[Address, Word] = {}
        for told in group:
            self.events[told.id] = told
            if told.record is None:
                self.unmappable.add(told.id)
                continue
            time_us = times[told.id]
            self.dated[told.id] = self._newest[told.record] if time_us is None else time_us
            for name, value in self.mapped(told).items():
                word = Word(self.dated[told.id], len(self.events), value, told.id)
                address = told.record, name
                best[address] = max(best.get(address, word), word, key=lambda one: one.rank)
        for address, word in best.items():
            standing = self.words.get(address)
            if standing is None or word.rank > standing.rank or standing.time_us > believed:
                self.words[address] = word

    def map_anew(self) -> None:
        """Today's mapping is applied to all events as if it had been there from the beginning."""
        before, self.words = self.words, {}
        for arrival, told in enumerate(self.events.values(), start=1):
            for name, value in self.mapped(told).items() if told.record is not None else ():
                word = Word(self.dated[told.id], arrival, value, told.id)
                address = str(told.record), name
                self.words[address] = max(self.words.get(address, word), word, key=lambda one: one.rank)
        for address, word in self.words.items():
            was = before.get(address)
            if was is not None and was.discarded and (was.event, was.value) == (word.event, word.value):
                self.words[address] = replace(word, discarded=True)

    def discard(self, record: str, names: Sequence[str]) -> None:
        """A person gives these up."""
        for name in names:
            self.words[record, name] = replace(self.words[record, name], discarded=True)

    def standing(self) -> dict[Address, str]:
        """The values that are neither given up nor invalid."""
        return {
            address: word.value for address, word in self.words.items() if not word.discarded and word.value != INVALID
        }

    def invalid(self) -> set[Address]:
        """What the mapping refused and nobody gave up."""
        return {address for address, word in self.words.items() if word.value == INVALID and not word.discarded}
