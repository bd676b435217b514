"""Whether what a mapping sends fits the type and the options of the portal's property."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime

from marshmallow import ValidationError

from bridge.config.document import Keys
from bridge.config.scalars import nearest
from bridge.delivery.properties import Definition
from bridge.intake.fields import build_field
from bridge.settings import Property

#: type of the portal → types of mappings that fit it; what is not listed here is not judged
FITTING = {
    "string": {"string", "phone_number"},
    "phone_number": {"string", "phone_number"},
    "number": {"number"},
    "bool": {"bool"},
    "date": {"date"},
    "datetime": {"datetime"},
    "enumeration": {"enumeration"},
}

#: an enumeration that a checkbox stands for has these two options
BOOLS = frozenset({"true", "false"})

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_EPOCH_MS = re.compile(r"-?\d+", re.ASCII)


def misfits(how: Property, definition: Definition) -> Iterator[tuple[Keys, str]]:
    """What does not fit: where, within the mapping of the property, and why.

    Where all that can be sent is known (`constant`, `values`), these texts are judged; else the type.
    """
    if how.multiple and definition.type == "enumeration" and not definition.multiple:
        yield ("multiple",), f"{definition.name} takes one option only; remove `multiple: true`"
        return
    texts = _known_texts(how)
    if texts is None:
        if not _type_fits(how, definition):
            yield ("type",), f"{how.type} does not fit: {definition.name} {_described(definition)}"
        elif definition.multiple and not how.multiple:
            yield ("type",), f"{definition.name} takes several options; write `multiple: true`"
        return
    for keys, text in texts:
        if text and not _takes(definition, text):
            yield keys, _refused(definition, text)


def _known_texts(how: Property) -> list[tuple[Keys, str]] | None:
    """All that this property can be sent, or None when it depends on the payload."""
    if how.constant is None and how.values is None:
        return None
    try:
        field = build_field(how, None, ())
    except ExceptionGroup:  # told of by the check before
        return []
    if how.constant is not None:
        return [(("constant",), str(field.deserialize(None)))]
    texts: list[tuple[Keys, str]] = []
    for said, text in (how.values or {}).items():
        try:
            texts.append((("values", said), field.convert(text) if text else ""))
        except ValidationError:  # this text depends on more, such as the source's time zone
            continue
    return texts


def _type_fits(how: Property, definition: Definition) -> bool:
    fitting = FITTING.get(definition.type)
    if fitting is None or how.type in fitting:
        return True
    if definition.type != "enumeration":
        return False
    if how.type == "bool":
        return set(definition.options) >= BOOLS
    return definition.external and how.type in {"string", "number"}


def _takes(definition: Definition, text: str) -> bool:
    match definition.type:
        case "bool":
            return text in BOOLS
        case "enumeration":
            if definition.external or not definition.options:
                return True
            return all(option in definition.options for option in _options_in(definition, text))
        case "number":
            return _NUMBER.fullmatch(text) is not None
        case "date" | "datetime":
            read = date.fromisoformat if definition.type == "date" else datetime.fromisoformat
            try:
                return _EPOCH_MS.fullmatch(text) is not None or read(text) is not None
            except ValueError:
                return False
        case _:
            return True


def _options_in(definition: Definition, text: str) -> list[str]:
    return text.split(";") if definition.multiple else [text]


def _refused(definition: Definition, text: str) -> str:
    if definition.type != "enumeration":
        return f"{text[:60]!r} does not fit: {definition.name} {_described(definition)}"
    wrong = next(option for option in _options_in(definition, text) if option not in definition.options)
    by_label = {label.lower(): value for value, label in definition.options.items()}
    near = by_label.get(wrong.lower()) or nearest(wrong, definition.options)
    listed = list(definition.options)
    rest = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    hint = f"did you mean {near!r}?" if near else f"its options are {', '.join(listed[:8])}{rest}"
    return f"{definition.name} has no option {wrong[:60]!r} in the portal; {hint}"


def _described(definition: Definition) -> str:
    """What it is, and what to write for it."""
    kind = f"is a {definition.type}" if definition.type != "enumeration" else "is an enumeration"
    shown = f" ({definition.field_type})" if definition.field_type else ""
    more = ", multiple: true" if definition.multiple else ""
    return f"{kind}{shown} in the portal; write `type: {definition.type}{more}`"
