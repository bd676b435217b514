"""Marshmallow fields, one per HubSpot property type: a partner's value in, HubSpot's string out.

A value that cannot be what it claims is named, never guessed (G12). Nothing is cleared by accident: absent is left out;
null, blank text and an empty list are left out too, or become "" with `on_null: clear`. `required` asks for a value (or
for the key, with `on_null: clear`). Error messages complete a sentence that begins with the property's name and quote
at most 60 characters of the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from marshmallow import ValidationError, fields, missing
from marshmallow.validate import Email

from bridge.errors import MappingError
from bridge.intake.language import EXACT
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
)
from bridge.settings import Property

_BOOLS = {"true": "true", "yes": "true", "1": "true", "false": "false", "no": "false", "0": "false"}
_email = Email()
#: marshmallow's messages, one copy for all fields of a type: there may be a hundred thousand.
_MESSAGES: dict[type, Any] = {}

Path = tuple[str | int, ...]


class PropertyField(fields.Field[str]):
    """One HubSpot property. Immutable once built, hence thread-safe; subclasses say `convert`."""

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
    """`string`: any scalar, as it is; with `format: email` trimmed and checked."""

    def convert(self, value: Any) -> str:
        text = safe_text(value if type(value) is str else text_of(value))
        if not self._format:
            return text
        try:
            return str(_email(text.strip()))
        except ValidationError as error:
            raise ValidationError(f"is {show(text)}, not an e-mail address") from error


class OptionField(PropertyField):
    """`enumeration`: any scalar, trimmed."""

    def convert(self, value: Any) -> str:
        return safe_text((value if type(value) is str else text_of(value)).strip())


class PhoneField(PropertyField):
    """`phone_number`: text or a number, trimmed; it holds at least one digit."""

    def convert(self, value: Any) -> str:
        text = safe_text(text_of(value).strip())
        if isinstance(value, bool) or not any(character.isdigit() for character in text):
            raise ValidationError(f"is {show(value)}, not a phone number")
        return text


class NumberField(PropertyField):
    """`number`: exact decimals, from a number or its text in the marks of `decimal` and `thousands`, times `scale`."""

    def __init__(self, how: Property, zone: tzinfo | None = None) -> None:
        super().__init__(how, zone)
        self._scale = Decimal(how.scale) if how.scale is not None else None
        self._marks = None if how.decimal == "." and not how.thousands else Marks(how.decimal, how.thousands)

    def convert(self, value: Any) -> str:
        number = read_number(value, self._marks)
        return plain_number(number if self._scale is None else EXACT.multiply(number, self._scale))


class BoolField(PropertyField):
    """`bool`: true and false, 1 and 0, and the texts true, false, yes, no, 1, 0 in any case."""

    def convert(self, value: Any) -> str:
        if value is True:
            return "true"
        if value is False:
            return "false"
        found = _BOOLS.get(text_of(value).strip().lower())
        if found is None:
            raise ValidationError(f"is {show(value)}, not true or false")
        return found


class DateField(PropertyField):
    """`date`: a day; of an instant, its day in `timezone`, else in the zone it is written in."""

    def convert(self, value: Any) -> str:
        try:
            return calendar_day(value, self._zone, self._format).isoformat()
        except ValueError as error:
            raise ValidationError(f"is {show(value)}, which {error}") from error

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


class DateTimeField(PropertyField):
    """`datetime`: an instant; what names no zone is read in `timezone`."""

    def convert(self, value: Any) -> str:
        try:
            return iso_utc(instant(value, self._zone, self._format))
        except ValueError as error:
            raise ValidationError(f"is {show(value)}, which {error}") from error


class ConstantField(PropertyField):
    """`constant`: always this text."""

    def __init__(self, text: str) -> None:
        super().__init__(Property())
        self._text = text

    def deserialize(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._text


TYPES: Mapping[str, Callable[[Property, tzinfo | None], PropertyField]] = {
    "string": TextField,
    "enumeration": OptionField,
    "phone_number": PhoneField,
    "number": NumberField,
    "bool": BoolField,
    "date": DateField,
    "datetime": DateTimeField,
}


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


def _misfits(how: Property) -> list[tuple[str, str]]:
    """Options that the property's type does not have, or whose text is not what it should be."""
    found = []
    if how.type not in TYPES:
        found.append(("type", f"{how.type!r} is none of {', '.join(TYPES)}"))
    if how.scale is not None:
        if how.type != "number":
            found.append(("scale", f"only a number has it, not {how.type}"))
        try:
            read_number(how.scale)
        except ValidationError:
            found.append(("scale", f"{how.scale!r} is not a number"))
    if how.type != "number" and (how.decimal != "." or how.thousands):
        found.append(("thousands" if how.thousands else "decimal", f"only a number has it, not {how.type}"))
    elif how.decimal == how.thousands:
        found.append(("thousands", f"{how.thousands!r} is the mark of decimals too"))
    for pattern in how.format:
        if how.type == "string":
            if pattern != "email":
                found.append(("format", f"a string may have the format email, not {pattern!r}"))
        elif how.type in {"date", "datetime"}:
            complaint = check_format(pattern)
            if complaint:
                found.append(("format", complaint))
        else:
            found.append(("format", f"only string, date and datetime have it, not {how.type}"))
    if how.separator is not None and not (how.multiple and how.separator):
        found.append(("separator", "needs multiple: true, and some text"))
    if how.timezone is not None and how.type not in {"date", "datetime"}:
        found.append(("timezone", f"only date and datetime have it, not {how.type}"))
    return found
