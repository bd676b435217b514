"""One block of a mapping, compiled: an event in, what it asks of one record out."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from bridge.errors import MappingError
from bridge.intake.expressions import ABSENT, Expression, ExpressionError, Frame, compile_expression
from bridge.intake.fields import DateField, PropertyField, build_field, zone_of
from bridge.intake.language import Path
from bridge.intake.own_schema import OwnSchema, Schemas
from bridge.intake.texts import PROPERTY_NAME, show, unstorable
from bridge.intake.values import (
    CompiledValues,
    Gap,
    PairReader,
    PropertySchema,
    Read,
    Tally,
    UnmappableError,
    Values,
    value_getter,
)
from bridge.model import Lane, PropertyUpdate, RecordKey, comparable
from bridge.settings import MappingBlock, Pairs, Property

#: The longest record id that is taken for one.
MAX_ID = 255


class Problems:
    """Collects MappingErrors while compiling goes on, so that all are reported at once."""

    def __init__(self) -> None:
        self.found: list[MappingError] = []

    def add(self, path: Path, message: str) -> None:
        self.found.append(MappingError(path, message))

    def expression(self, text: str, path: Path) -> Expression:
        """The compiled expression; after a problem another that stands in for it."""
        try:
            return compile_expression(text, path)
        except MappingError as error:
            self.found.append(error)
            return compile_expression("@", path)

    def zone(self, name: str | None, path: Path) -> ZoneInfo | None:
        """The time zone of that name."""
        try:
            return zone_of(name, path)
        except MappingError as error:
            self.found.append(error)
            return None

    def field(self, how: Property, zone: ZoneInfo | None, path: Path) -> PropertyField | None:
        """The property's field, or None after a problem."""
        try:
            return build_field(how, zone, path)
        except ExceptionGroup as group:
            self.found.extend(error for error in group.exceptions if isinstance(error, MappingError))
            return None


class BlockReading(NamedTuple):
    """What a block makes of one event: `errors` by property (or "record"), `unmappable` says why."""

    update: PropertyUpdate | None
    errors: dict[str, str]
    unmappable: str | None = None
    unlisted: int = 0


class CompiledBlock:
    """A block ready for events. It never changes, so threads may share it."""

    def __init__(
        self, block: MappingBlock, path: Path, zone: ZoneInfo | None, problems: Problems, schemas: Schemas
    ) -> None:
        self.rejects = block.on_invalid == "reject"
        self._zone = problems.zone(block.timezone, (*path, "timezone")) or zone
        self.when = problems.expression(block.when, (*path, "when")) if block.when is not None else None
        self._id = problems.expression(block.record.id, (*path, "record", "id"))
        self._get_id = self._id.get
        self._lane = Lane(block.object_type, block.record.id_property)
        self._digits = not block.record.id_property
        self._caseless = block.record.caseless
        self._skip_unchanged = block.unchanged == "skip"
        self._expressions = [self._id] if self.when is None else [self._id, self.when]
        self._values = self._compile_values(block, path, problems, schemas)
        #: The properties whose presence an event decides.
        self.looked_for = self._values.looked_for

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """Every expression that a replay evaluates again."""
        return tuple(self._expressions)

    def read(self, event: dict[str, Any], frame: Frame, tally: Tally | None = None) -> BlockReading:
        """What the event asks of its record. `tally` counts what it brings."""
        try:
            reading = self._values.read(event, frame)
        except UnmappableError as error:
            return BlockReading(None, {"record": str(error)}, str(error))
        if tally is not None:
            tally.add(self.looked_for, reading)
        valid, invalid, unlisted, _ = reading
        try:
            record_id = read_id(self._get_id(event, frame), digits=self._digits)
        except (ExpressionError, ValueError) as error:
            reason = f"the record id {error}"
            return BlockReading(None, {**invalid, "record": reason}, reason, unlisted)
        key = RecordKey.of(self._lane, record_id, caseless=self._caseless)
        return BlockReading(PropertyUpdate(key, valid, invalid, self._skip_unchanged), invalid, None, unlisted)

    def hints(self, event: dict[str, Any], frame: Frame) -> Iterator[tuple[str, str]]:
        """See `CompiledValues.hints`; nothing for an event that the block does not apply to."""
        applies = self.when is None or self.when.matches(event, frame)
        if applies and isinstance(self._values, CompiledValues):
            yield from self._values.hints(event, frame)

    def _compile_values(self, block: MappingBlock, path: Path, problems: Problems, schemas: Schemas) -> Values:
        if block.schema is not None:
            if block.properties or block.pairs:
                problems.add((*path, "schema"), "stands instead of properties: and pairs:")
            return OwnSchema(block.schema, (*path, "schema"), self._zone, schemas, problems.found)
        fields: dict[str, PropertyField] = {}
        getters: list[tuple[str, Read, Gap]] = []
        for name, how in block.properties.items():
            place = (*path, "properties", name)
            if (how.source is None) == (how.constant is None):
                problems.add(place, "needs either from: or constant:")
            self._add_field(fields, name, how, place, problems)
            if how.source is not None:
                expression = problems.expression(how.source, (*place, "from"))
                self._expressions.append(expression)
                getters.append((name, value_getter(expression), Gap(name, "absent", expression.text)))
        pairs = None
        if block.pairs is not None:
            pairs = self._compile_pairs(block.pairs, set(block.properties), fields, (*path, "pairs"), problems)
        if not block.properties and not (block.pairs and block.pairs.properties):
            problems.add((*path, "properties"), "nothing is mapped to any property")
        schema = PropertySchema.from_dict(dict(fields))()
        assert isinstance(schema, PropertySchema)  # noqa: S101 (from_dict of this very class)
        multiple = frozenset(name for name, field in fields.items() if field.joins)
        hinters = {name: field.hint for name, field in fields.items() if isinstance(field, DateField)}
        nulls = {name: Gap(name, "null", gap.expression) for name, _, gap in getters}
        if pairs is not None:
            nulls |= {name: Gap(name, "null", pairs.value.text) for name in pairs.unsent}
        cleared = {name: Gap(name, "null") for name in nulls if name in fields and fields[name].clears}
        constants = len(fields.keys() - nulls.keys())
        return CompiledValues(
            schema, multiple, tuple(getters), pairs, hinters, nulls, cleared, frozenset(nulls), constants=constants
        )

    def _compile_pairs(
        self, pairs: Pairs, taken: set[str], fields: dict[str, PropertyField], path: Path, problems: Problems
    ) -> PairReader:
        names: dict[str, str] = {}
        for sender, (name, how) in pairs.properties.items():
            place = (*path, "properties", sender)
            if how.constant is not None or how.source is not None:
                problems.add(place, "a pair brings its own value: from: and constant: do not belong here")
            elif name in taken:
                problems.add((*place, "to"), f"the property {name} is there twice")
            else:
                self._add_field(fields, name, how, place, problems)
                names[sender] = name
                taken.add(name)
        reader = PairReader(
            problems.expression(pairs.items, (*path, "in")),
            problems.expression(pairs.name, (*path, "name")),
            problems.expression(pairs.value, (*path, "value")),
            names,
            {name: Gap(name, "absent") for name in names.values()},
        )
        self._expressions += [reader.items, reader.name, reader.value]
        return reader

    def _add_field(
        self, fields: dict[str, PropertyField], name: str, how: Property, path: Path, problems: Problems
    ) -> None:
        if not PROPERTY_NAME.fullmatch(name) or name == "Meta":
            problems.add(path, f"{name!r} is not a property name")
            return
        field = problems.field(how, self._zone, path)
        if field is not None:
            fields[name] = field


def read_id(value: object, *, digits: bool) -> str:
    """A record id's text, trimmed and in NFC. Raises ValueError whose message completes "the record id …"."""
    if isinstance(value, str):
        text = comparable(value.strip(), caseless=False)
    elif value is ABSENT or value is None:
        raise ValueError("is missing")
    elif isinstance(value, Decimal) and value == value.to_integral_value():
        text = format(value.to_integral_value(), "f")
    elif isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    else:
        raise ValueError(f"is {show(value)}")
    if not text:
        raise ValueError("is blank")
    if len(text) > MAX_ID:
        raise ValueError(f"has {len(text)} characters; {MAX_ID} are taken")
    if (what := unstorable(text)) is not None:
        raise ValueError(f"is {show(text)}, which holds {what}")
    if digits and not (text.isascii() and text.isdigit()):
        raise ValueError(f"is {show(text)}; without id_property it must be digits")
    return text
