"""How a block reads its properties' values, and the count of what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol

from marshmallow import EXCLUDE, Schema, ValidationError

from bridge.intake.expressions import ABSENT, Expression, ExpressionError, Frame, StepsError
from bridge.intake.texts import show

#: Steps (see `bridge.intake.interpreter.STEPS`) for a pair, and for an element or character of what is joined.
_PAIR, _ELEMENT = 6, 10

Read = Callable[[Any, Frame], Any]


class UnmappableError(Exception):
    """An event gives a block nothing to ask of any record; the message says why."""


class Gap(NamedTuple):
    """A property for which an event brings no value: `absent` where nothing was found, `null` where that was null or
    blank. `expression` is what found it, and None where nothing is left out: the pair was not sent, as senders of
    changes do, or the property is cleared.
    """

    property: str
    outcome: Literal["absent", "null"]
    expression: str | None = None


class Reading(NamedTuple):
    """What a block reads from one event: HubSpot's strings, messages, how many names nobody listed, and which values
    are missing. A property that is required is in `invalid` when it is absent, and in `gaps`, too.
    """

    valid: dict[str, str]
    invalid: dict[str, str]
    unlisted: int = 0
    gaps: Sequence[Gap] = ()


class Values(Protocol):
    """What a block reads values with: a schema compiled from the file, or the user's own. `looked_for` names the
    properties whose presence an event decides.
    """

    @property
    def looked_for(self) -> frozenset[str]: ...

    def read(self, event: dict[str, Any], frame: Frame) -> Reading:
        """The event's values. Raises UnmappableError."""
        ...


class PropertySchema(Schema):
    """A marshmallow schema whose fields are HubSpot properties (`fields.PropertyField`)."""

    class Meta:
        unknown = EXCLUDE
        register = False

    def __init__(self) -> None:
        super().__init__()
        self._readers = tuple((name, field.deserialize) for name, field in self.load_fields.items())

    def read(self, raw: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
        """The values that `load` would give and its errors, without its closures per field: in a third of its time.

        The fields do the validation either way; a test holds the two equal.
        """
        valid: dict[str, str] = {}
        invalid: dict[str, str] = {}
        for name, deserialize in self._readers:
            try:
                text = deserialize(raw.get(name, ABSENT))
            except ValidationError as error:
                invalid[name] = "; ".join(str(message) for message in error.messages)
            else:
                if text is not ABSENT:
                    valid[name] = text
        return valid, invalid


@dataclass(frozen=True, slots=True)
class PairReader:
    """`pairs:`, for senders in which names are data. `unsent` has for each property what there is without its pair."""

    items: Expression
    name: Expression
    value: Expression
    properties: Mapping[str, str]  # sender's name → HubSpot property
    unsent: Mapping[str, Gap]

    def read_into(
        self,
        raw: dict[str, Any],
        failed: dict[str, str],
        gaps: list[Gap],
        event: dict[str, Any],
        frame: Frame,
    ) -> int:
        """Put the listed pairs' values into `raw`, and why one cannot be read into `failed`; a later pair wins. Counts
        the others.
        """
        found = self.items.get(event, frame)
        if found is ABSENT or found is None:
            gaps += [Gap(name, "absent", self.items.text) for name in self.unsent]
            return 0
        get_name, get_value, wanted = self.name.get, value_getter(self.value), self.properties
        unlisted = 0
        without: set[str] = set()
        pairs = found if type(found) is list else list(self._of_object(found, frame))
        for pair in chain.from_iterable(frame.parts(pairs, _PAIR)):
            entry = type(pair) is tuple
            name = pair[0] if entry else get_name(pair, frame)
            if type(name) is not str:
                name = str(name) if type(name) in {int, Decimal} else ""
            target = wanted.get(name)
            if target is None:
                unlisted += 1
                continue
            try:
                value = pair[1] if entry else get_value(pair, frame)
            except ExpressionError as error:
                raw.pop(target, None)
                failed[target] = str(error)
                continue
            if value is ABSENT:
                without.add(target)
            else:
                failed.pop(target, None)
                raw[target] = value
        for name, gap in self.unsent.items():
            if name not in raw and name not in failed:
                gaps.append(Gap(name, "absent", self.value.text) if name in without else gap)
        return unlisted

    def _of_object(self, found: Any, frame: Frame) -> Iterator[Any]:
        """An object in which the name's key is there is one pair; any other is its entries."""
        if type(found) is not dict:
            raise UnmappableError(f"the pairs are {show(found)}, not a list or an object")
        if self.name.get(found, frame) is ABSENT:
            yield from found.items()
        else:
            yield found


@dataclass(frozen=True, slots=True)
class CompiledValues:
    """`properties:` and `pairs:` of a block. It never changes, so threads may share it. `multiple` names the properties
    that are joined from lists. What an event may lack is made beforehand: with each of the `getters`, what there is
    when it finds nothing; in `nulls`, when it finds null or a blank; in `cleared`, when that clears the property.
    """

    schema: PropertySchema
    multiple: frozenset[str]
    getters: tuple[tuple[str, Read, Gap], ...]
    pairs: PairReader | None
    hinters: Mapping[str, Callable[[Any], str | None]]
    nulls: Mapping[str, Gap]
    cleared: Mapping[str, Gap]
    looked_for: frozenset[str]
    constants: int

    def read(self, event: dict[str, Any], frame: Frame) -> Reading:
        """See Values."""
        raw: dict[str, Any] = {}
        failed: dict[str, str] = {}
        gaps: list[Gap] = []
        for name, get, gap in self.getters:
            try:
                value = get(event, frame)
            except ExpressionError as error:
                failed[name] = str(error)
            else:
                if value is ABSENT:
                    gaps.append(gap)
                else:
                    raw[name] = value
        unlisted = 0
        if self.pairs is not None:
            try:
                unlisted = self.pairs.read_into(raw, failed, gaps, event, frame)
            except ExpressionError as error:
                raise UnmappableError(f"the pairs cannot be read: {error}") from error
        for name in self.multiple & raw.keys() if self.multiple else ():
            try:
                frame.spend(_ELEMENT * len(raw[name]) if type(raw[name]) in {list, str} else 0)
            except StepsError as error:
                failed[name] = str(error)
                del raw[name]
        valid, invalid = self.schema.read(raw)
        try:
            frame.keep(sum(map(len, valid.values())))
        except ExpressionError as error:
            raise UnmappableError(f"the values {error}") from error
        for name, message in failed.items():
            invalid[name] = message
        if len(valid) - self.constants != len(raw):
            gaps += [self.nulls[name] for name in raw if name not in valid and name not in invalid]
        if self.cleared:
            gaps += [gap for name, gap in self.cleared.items() if valid.get(name) == ""]
        return Reading(valid, invalid, unlisted, gaps)

    def hints(self, event: dict[str, Any], frame: Frame) -> Iterator[tuple[str, str]]:
        """Properties, and what to look at in a value of theirs that is read as documented."""
        raw: dict[str, Any] = {}
        for name, get, _ in self.getters:
            if name in self.hinters:
                with suppress(ExpressionError):
                    raw[name] = get(event, frame)
        if self.pairs is not None:
            with suppress(ExpressionError, UnmappableError):
                self.pairs.read_into(raw, {}, [], event, frame)
        for name, hint in self.hinters.items():
            if (told := hint(raw.get(name, ABSENT))) is not None:
                yield name, told


def value_getter(expression: Expression) -> Read:
    """The expression's getter; where it is no plain path, an empty list counts as absent like null."""
    if expression.plain:
        return expression.get
    get = expression.get

    def read(event: Any, frame: Frame) -> Any:
        value = get(event, frame)
        return ABSENT if value == [] else value

    return read


# --- what a mapping found: how many events of a body brought each property, and what each of them left out ---

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
