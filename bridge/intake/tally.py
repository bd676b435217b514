"""What a mapping found: how many events of a body brought each property, and what each of them left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.intake.values import Gap, Reading

#: Outcome → property → events. The outcomes:
#: `present`: a value goes on. `absent`: nothing was found, or the pair was not sent. `null`: what was found is null or
#: blank, and is left out or (`on_null: clear`) cleared. `invalid`: what was found cannot be taken, or what is required
#: is not there.
Found = Mapping[str, Mapping[str, int]]


class Tally:
    """Counts what is missing as it comes, and the rest at the end: mostly nothing is. For one thread.

    `index` is that of the event that is read just now. `left_out` lists (index, what the event leaves out), if the
    tally is to `explain`: a body may leave out more than it has bytes.
    """

    __slots__ = ("_explain", "_missing", "_read", "index", "left_out")

    def __init__(self, *, explain: bool = False) -> None:
        self.index = 0
        self._explain = explain
        self.left_out: list[tuple[int, tuple[Gap, ...]]] = []
        self._read: dict[frozenset[str], int] = {}
        self._missing: dict[str, dict[str, int]] = {}

    def add(self, looked_for: frozenset[str], reading: Reading) -> None:
        """Count what a block read, and what it looked for."""
        self._read[looked_for] = self._read.get(looked_for, 0) + 1
        _, invalid, _, gaps = reading
        for name, outcome, _ in gaps:
            if name not in invalid:
                self._count(name, outcome)
        if invalid:
            for name in invalid.keys() & looked_for:
                self._count(name, "invalid")
        if self._explain:
            self._explain_gaps(gaps)

    def _explain_gaps(self, gaps: Sequence[Gap]) -> None:
        told = tuple(gap for gap in gaps if gap.expression is not None)
        if told and self.left_out and self.left_out[-1][0] == self.index:
            told = self.left_out.pop()[1] + told
        if told:
            self.left_out.append((self.index, told))

    def _count(self, name: str, outcome: str) -> None:
        missing = self._missing.setdefault(outcome, {})
        missing[name] = missing.get(name, 0) + 1

    def found(self) -> Found:
        """What was counted; an event that several blocks read counts for each of them."""
        present: dict[str, int] = {}
        for looked_for, events in self._read.items():
            if present:
                present |= {name: present.get(name, 0) + events for name in looked_for}
            else:
                present = dict.fromkeys(looked_for, events)
        for missing in self._missing.values():
            for name, events in missing.items():
                present[name] -= events
                if not present[name]:
                    del present[name]
        return {"present": present, **self._missing} if present else self._missing
