"""The types of properties, one class each: a partner's value in, HubSpot's string out.

A class holds all that the program knows of its type: how a value is read, which keys of a property it has, which types
of the portal it fits, its JSON Schema, and samples, from which tests and the manual's page are made.

A value that cannot be what it claims is named, never guessed (G12). Nothing is cleared by accident: absent is left out;
null, blank text and an empty list are left out too, or become "" with `on_null: clear`. `required` asks for a value (or
for the key, with `on_null: clear`). Error messages complete a sentence that begins with the property's name and quote
at most 60 characters of the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from marshmallow import ValidationError, fields, missing
from marshmallow.validate import Email

from bridge.errors import MappingError
from bridge.intake.language import EXACT, Path
from bridge.intake.texts import (
    Marks,
    calendar_day,
    check_format,
    instant,
    iso_utc,
    join_texts,
    midnight_in_utc,
    plain_number,
    read_number,
    safe_text,
    show,
    text_of,
    write,
)
from bridge.settings import Property, PropertyType

_BOOLS = {"true": "true", "yes": "true", "1": "true", "false": "false", "no": "false", "0": "false"}
_email = Email()
#: What Python's `strip` takes for a blank, in ECMA's patterns and in Python's.
BLANK = r"[\s\x1c-\x1f\x85]"
SCALARS = ["string", "number", "boolean"]
_NUMBER_TEXT = rf"^{BLANK}*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{{1,4}})?{BLANK}*$"
_BOOL_WORDS = "|".join("".join(f"[{c.upper()}{c}]" for c in word) for word in ("true", "false", "yes", "no"))
_SAMPLE = datetime(2026, 12, 31, 23, 58, 57, tzinfo=UTC)
#: marshmallow's messages, one copy for all fields of a type: there may be a hundred thousand.
_MESSAGES: dict[type, Any] = {}

#: The alternatives of which a value is one, each a JSON Schema.
Shapes = list[dict[str, Any]]


class PropertyField(fields.Field[str]):
    """One HubSpot property. It never changes once built, so threads may share it. A type's class says `convert`."""

    #: Which properties of the portal it fits: their type; "checkbox" is an enumeration of true and false, "external"
    #: one whose options stand elsewhere, as the owners do.
    fits: ClassVar[frozenset[str]] = frozenset()
    #: The keys of a property that not every type reads.
    reads: ClassVar[tuple[str, ...]] = ()
    #: A partner's JSON → HubSpot's text, and JSON that it refuses, both without any option.
    takes: ClassVar[Mapping[str, str]] = {}
    refuses: ClassVar[Sequence[str]] = ('["a"]', '{"a": 1}')

    def __init__(self, how: Property, zone: tzinfo | None = None) -> None:
        super().__init__(required=how.required, allow_none=True)
        self.error_messages = _MESSAGES.setdefault(type(self), self.error_messages)
        self._clears = how.on_null == "clear"
        self._values = how.values
        self._separator = how.separator
        self._format = how.format
        self._zone = zone
        self._one = self.convert if how.values is None else self._translate
        self._several = how.multiple
        self._read = self._join if how.multiple else self._one

    @classmethod
    def faults(cls, how: Property) -> Iterator[tuple[str, str]]:
        """Keys that the type has, but not with this value, and why."""
        del how
        yield from ()

    @classmethod
    def shapes(cls, how: Property) -> Shapes:
        """What a value may be that `values:` does not translate. All that `convert` takes fits."""
        del how
        return [{"type": SCALARS}]

    @property
    def joins(self) -> bool:
        """Whether it is joined from several elements."""
        return self._several

    @property
    def clears(self) -> bool:
        """Whether it may become "", which clears the property."""
        return self._clears or "" in (self._values or {}).values()

    def __deepcopy__(self, memo: dict[int, Any]) -> PropertyField:
        """A schema that is made of it has this very one: nothing of it changes, and no other schema has it."""
        return self

    def convert(self, value: Any) -> str:
        """HubSpot's text of a value that is neither null nor blank. Raises ValidationError."""
        raise NotImplementedError

    def deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Any:
        """The property's text, or `missing` where it is to be left out."""
        if type(value) is str:  # first, as most values are texts
            return self._read(value) if value and not value.isspace() else self._nothing()
        if value is missing:
            if self.required:
                raise ValidationError("is required and absent")
            return missing
        return self._nothing() if value is None or value == [] else self._read(value)

    def unfit_values(self) -> Iterator[tuple[str, str]]:
        """What of `values:` stands for nothing that the property can hold, and why: that is no partner's fault."""
        for key, found in (self._values or {}).items():
            try:
                text = self.convert(found) if found else ""
                if self._several:
                    join_texts([text])
            except ValidationError as error:
                yield key, "; ".join(str(message) for message in error.messages)

    def _nothing(self) -> Any:
        if self._clears:
            return ""
        if self.required:
            raise ValidationError("is required and empty")
        return missing

    def _join(self, value: Any) -> Any:
        if isinstance(value, str) and self._separator is not None:
            value = value.split(self._separator)
        elements = value if isinstance(value, list) else [value]
        texts = [
            self._one(element)
            for element in elements
            if element is not None and not (isinstance(element, str) and not element.strip())
        ]
        texts = [text for text in texts if text]
        return join_texts(texts) if texts else self._nothing()

    def _translate(self, value: Any) -> str:
        values = self._values or {}
        text = text_of(value).strip()
        found = values.get(text, values.get("*"))
        if found is None:
            raise ValidationError(f"is {show(text)}, which values: does not list")
        return self.convert(found) if found else ""


class TextField(PropertyField):
    """Any scalar, as it is; with `format: email` trimmed and checked."""

    fits = frozenset({"string", "phone_number", "external"})
    reads = ("format",)
    takes: ClassVar = {'"  Globex Ltd "': "  Globex Ltd ", "7": "7", "1.50": "1.50", "true": "true"}

    def convert(self, value: Any) -> str:
        text = safe_text(value if type(value) is str else text_of(value))
        if not self._format:
            return text
        try:
            return str(_email(text.strip()))
        except ValidationError as error:
            raise ValidationError(f"is {show(text)}, not an e-mail address") from error

    @classmethod
    def faults(cls, how: Property) -> Iterator[tuple[str, str]]:
        for pattern in how.format:
            if pattern != "email":
                yield "format", f"a string may have the format email, not {pattern!r}"

    @classmethod
    def shapes(cls, how: Property) -> Shapes:
        return [{"type": "string", "format": "email"}] if how.format else super().shapes(how)


class OptionField(PropertyField):
    """Any scalar, trimmed; with `multiple: true` a list of them."""

    fits = frozenset({"enumeration"})
    reads = ("multiple",)
    takes: ClassVar = {'" gold "': "gold", "3": "3", "true": "true"}

    def convert(self, value: Any) -> str:
        return safe_text((value if type(value) is str else text_of(value)).strip())


class PhoneField(PropertyField):
    """Text or a number, trimmed; it holds at least one digit."""

    fits = frozenset({"string", "phone_number"})
    takes: ClassVar = {'" +49 228 1 "': "+49 228 1", "492281": "492281"}
    refuses: ClassVar = ('"call me"', "true", *PropertyField.refuses)

    def convert(self, value: Any) -> str:
        text = safe_text(text_of(value).strip())
        if isinstance(value, bool) or not any(character.isdigit() for character in text):
            raise ValidationError(f"is {show(value)}, not a phone number")
        return text

    @classmethod
    def shapes(cls, how: Property) -> Shapes:
        del how
        return [{"type": ["string", "number"], "description": "A phone number: at least one digit."}]


class NumberField(PropertyField):
    """Exact decimals, from a number or its text in the marks of `decimal` and `thousands`, times `scale`."""

    fits = frozenset({"number", "external"})
    reads = ("scale", "decimal", "thousands")
    takes: ClassVar = {"5": "5", "1.50": "1.5", '" +1e3 "': "1000", '".5"': "0.5"}
    refuses: ClassVar = ('"1,5"', '"0x1"', '"NaN"', '"1e999"', "true", *PropertyField.refuses)

    def __init__(self, how: Property, zone: tzinfo | None = None) -> None:
        super().__init__(how, zone)
        self._scale = Decimal(how.scale) if how.scale is not None else None
        self._marks = None if how.decimal == "." and not how.thousands else Marks(how.decimal, how.thousands)

    def convert(self, value: Any) -> str:
        number = read_number(value, self._marks)
        return plain_number(number if self._scale is None else EXACT.multiply(number, self._scale))

    @classmethod
    def faults(cls, how: Property) -> Iterator[tuple[str, str]]:
        if how.scale is not None:
            try:
                read_number(how.scale)
            except ValidationError:
                yield "scale", f"{how.scale!r} is not a number"
        if how.decimal == how.thousands:
            yield "thousands", f"{how.thousands!r} is the mark of decimals too"

    @classmethod
    def shapes(cls, how: Property) -> Shapes:
        text: dict[str, Any] = {"type": "string"}
        if how.thousands or how.decimal != ".":
            text |= {"description": "The same as text.", "examples": [f"1{how.thousands}234{how.decimal}50"]}
        else:
            text |= {"pattern": _NUMBER_TEXT, "description": "The same as text, with a decimal point."}
        return [{"type": "number"}, text]


class BoolField(PropertyField):
    """The booleans, 1 and 0, and the texts true, false, yes, no, 1, 0 in any case."""

    fits = frozenset({"bool", "checkbox"})
    takes: ClassVar = {"true": "true", "1": "true", '" YES "': "true", "false": "false", "0": "false", '"No"': "false"}
    refuses: ClassVar = ('"maybe"', '"on"', "2", "1.0", *PropertyField.refuses)

    def convert(self, value: Any) -> str:
        if value is True:
            return "true"
        if value is False:
            return "false"
        found = _BOOLS.get(text_of(value).strip().lower())
        if found is None:
            raise ValidationError(f"is {show(value)}, not true or false")
        return found

    @classmethod
    def shapes(cls, how: Property) -> Shapes:
        del how
        text = {"type": "string", "pattern": f"^{BLANK}*({_BOOL_WORDS}|0|1){BLANK}*$"}
        return [{"type": "boolean"}, {"enum": [0, 1]}, text]


class TimeField(PropertyField):
    """What `date` and `datetime` share. They say `written`, and the shared schema of what needs no format."""

    reads = ("format", "timezone")
    refuses: ClassVar = ('"soon"', '"31/12/2026"', '"2027"', "-1", "true", *PropertyField.refuses)
    schema: ClassVar[str]

    def convert(self, value: Any) -> str:
        try:
            return self.written(value)
        except ValueError as error:
            raise ValidationError(f"is {show(value)}, which {error}") from error

    def written(self, value: Any) -> str:
        """HubSpot's text. Raises ValueError."""
        raise NotImplementedError

    @classmethod
    def faults(cls, how: Property) -> Iterator[tuple[str, str]]:
        for pattern in how.format:
            if complaint := check_format(pattern):
                yield "format", complaint

    @classmethod
    def shapes(cls, how: Property) -> Shapes:
        if not how.format:
            return [{"$ref": f"#/components/schemas/{cls.schema}"}]
        samples = [write(_SAMPLE, pattern) for pattern in how.format]
        return [
            {
                "type": ["string", "number"],
                "description": f"As {' or '.join(how.format)}.",
                "examples": [float(sample) if isinstance(sample, Decimal) else sample for sample in samples],
            }
        ]


class DateField(TimeField):
    """A day; of an instant, its day in `timezone`, else in the zone it is written in."""

    fits = frozenset({"date"})
    takes: ClassVar = {
        '"2026-01-02"': "2026-01-02",
        '"2026-01-02T23:30:00-05:00"': "2026-01-02",
        "20270105": "2027-01-05",
        "1767396600": "2026-01-02",
    }
    schema = "Day"

    def written(self, value: Any) -> str:
        return calendar_day(value, self._zone, self._format).isoformat()

    def hint(self, value: Any) -> str | None:
        """What to look at in a value that is read as documented, but hardly as its sender meant it: a day that was
        written as its midnight in UTC.
        """
        if self._zone is None or self._values is not None:
            return None
        try:
            meant, read = midnight_in_utc(value, self._format), calendar_day(value, self._zone, self._format)
        except ValueError:
            return None
        if meant is None or meant == read:
            return None
        return (
            f"is {show(value)}, midnight in UTC, which is {read} in {self._zone}; where the day {meant} is meant, give "
            "the property `timezone: UTC`"
        )


class DateTimeField(TimeField):
    """An instant; what names no zone is read in `timezone`."""

    fits = frozenset({"datetime"})
    takes: ClassVar = {
        '"2026-01-02T03:04:05Z"': "2026-01-02T03:04:05Z",
        '"2026-01-02T03:04:05.123+02:00"': "2026-01-02T01:04:05.123Z",
        "1767323045": "2026-01-02T03:04:05Z",
        "1767323045250": "2026-01-02T03:04:05.250Z",
    }
    refuses: ClassVar = ('"2026-01-02T03:04:05"', *TimeField.refuses)
    schema = "Time"

    def written(self, value: Any) -> str:
        return iso_utc(instant(value, self._zone, self._format))


class ConstantField(PropertyField):
    """`constant`: always this text."""

    def __init__(self, text: str) -> None:
        super().__init__(Property())
        self._text = text

    def deserialize(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._text


TYPES: Mapping[PropertyType, type[PropertyField]] = {
    "string": TextField,
    "enumeration": OptionField,
    "phone_number": PhoneField,
    "number": NumberField,
    "bool": BoolField,
    "date": DateField,
    "datetime": DateTimeField,
}
#: Keys of a property that only some types read, and these types.
READ_BY: Mapping[str, Sequence[PropertyType]] = {
    key: [name for name, made in TYPES.items() if key in made.reads] for one in TYPES.values() for key in one.reads
}

_PLAIN = Property()


def build_field(how: Property, zone: tzinfo | None, path: Path) -> PropertyField:
    """The field for one property. Raises an ExceptionGroup of MappingErrors with all that is wrong."""
    problems = [MappingError((*path, option), message) for option, message in _misfits(how)]
    try:
        zone = zone_of(how.timezone, (*path, "timezone")) or zone
    except MappingError as error:
        problems.append(error)
    if problems:
        raise ExceptionGroup("property", problems)
    field = TYPES[how.type](how, zone)
    problems = [MappingError((*path, "values", key), message) for key, message in field.unfit_values()]
    if problems:
        raise ExceptionGroup("property", problems)
    if how.constant is None:
        return field
    try:
        text = field.deserialize(how.constant) if how.constant.strip() else ""
    except ValidationError as error:
        message = f"the constant {'; '.join(str(part) for part in error.messages)}"
        raise ExceptionGroup("property", [MappingError((*path, "constant"), message)]) from error
    return ConstantField(str(text))


def zone_of(name: str | None, path: Path) -> ZoneInfo | None:
    """The time zone of that name. Raises MappingError at `path`."""
    try:
        return None if name is None else ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # KeyError: ZoneInfoNotFoundError
        raise MappingError(path, f"there is no time zone {name!r}") from error


def _misfits(how: Property) -> Iterator[tuple[str, str]]:
    """Options that the property's type does not have, or whose text is not what it should be."""
    if how.type not in TYPES:
        yield "type", f"{how.type!r} is none of {', '.join(TYPES)}"
        return
    for key, types in READ_BY.items():
        # a list can be of any type to this module: that HubSpot has such enumerations only is the file's rule
        if key != "multiple" and how.type not in types and getattr(how, key) != getattr(_PLAIN, key):
            yield key, f"belongs to type {' or '.join(types)}, not to {how.type}"
    yield from TYPES[how.type].faults(how)
    if how.separator is not None and not (how.multiple and how.separator):
        yield "separator", "needs multiple: true, and some text"
