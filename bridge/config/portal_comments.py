"""The portal's writable properties as comments, for the `bridge.yaml` that `init --portal` writes."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.delivery.properties import Definition

#: Characters of a label, and options of an enumeration, that a comment shows.
MAX_LABEL = 60
MAX_OPTIONS = 8


def commented(object_type: str, properties: Mapping[str, Definition]) -> str:
    """Comment lines, one a property: name, type as a mapping spells it, label, options."""
    writable = sorted((one for one in properties.values() if one.writable), key=lambda one: one.name)
    rows = [(_line(one.name), _type(one), _about(one)) for one in writable]
    names, types = (max((len(row[place]) for row in rows), default=0) for place in (0, 1))
    listed = [f"#   {name:{names}}  {type_:{types}}  {about}".rstrip() for name, type_, about in rows]
    head = f"# What {object_type} of the portal can be written ({len(rows)} properties): name, type, label, options."
    return "\n".join(["", head, *listed, ""])


def not_listed(message: str) -> str:
    """The comment that stands in place of the list."""
    return f"\n# The portal's properties are not listed here: {_line(message)}\n"


def _type(definition: Definition) -> str:
    more = [word for word, holds in (("multiple", definition.multiple), ("unique", definition.unique)) if holds]
    return ", ".join([_line(definition.type), *more])


def _about(definition: Definition) -> str:
    label = _shortened(_line(definition.label), MAX_LABEL)
    if definition.type != "enumeration" or not definition.options:
        return label
    shown = [_shortened(_line(value), MAX_LABEL) for value in list(definition.options)[:MAX_OPTIONS]]
    rest = len(definition.options) - len(shown)
    return f"{label}: {', '.join(shown)}" + (f" and {rest} more" if rest else "")


def _line(text: str) -> str:
    """Text that cannot end its comment, whatever somebody called a property."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
