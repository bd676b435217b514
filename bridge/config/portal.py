"""Compares the configuration with the portal's property definitions: what HubSpot would refuse, said before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime
from urllib.parse import urlsplit

from marshmallow import ValidationError

from bridge.config.scalars import nearest
from bridge.config.yaml_file import Document, Keys
from bridge.crm.hubspot import HubSpot
from bridge.crm.properties import Definition, NotTold, Portal
from bridge.crm.tokens import Tokens
from bridge.errors import CrmUnreachableError, Problem
from bridge.intake.fields import TYPES, build_field
from bridge.settings import Crm, MappingBlock, Property, Settings

# --- the portal's writable properties as comments, for the `bridge.yaml` that `init --portal` writes ---

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


# --- whether what a mapping sends fits the type and the options of the portal's property ---

#: types of the portal that some type of ours is for; others are not judged
JUDGED = frozenset().union(*(one.fits for one in TYPES.values()))

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
    kinds = {definition.type}
    if definition.type == "enumeration" and definition.external:
        kinds.add("external")
    if definition.type == "enumeration" and set(definition.options) >= BOOLS:
        kinds.add("checkbox")
    return not kinds.isdisjoint(TYPES[how.type].fits) or definition.type not in JUDGED


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


#: Identify a record although HubSpot does not tell that they are unique: object type → property.
BUILT_IN_IDENTITIES = {"contacts": "email", "0-1": "email"}


@dataclass(slots=True)
class Comparison:
    """What the portal says of a configuration. `trouble`: why it could not be asked to the end."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of mappings and where it stands."""

    keys: Keys
    mapping: MappingBlock

    def properties(self) -> Iterator[tuple[Keys, str, Property]]:
        """Where each property stands, its name in the portal, and how it gets its value."""
        for name, how in self.mapping.properties.items():
            yield (*self.keys, "properties", name), name, how
        if self.mapping.pairs is not None:
            for name, (to, how) in self.mapping.pairs.properties.items():
                yield (*self.keys, "pairs", "properties", name), to, how


def compare(settings: Settings, document: Document, *, token: Callable[[], str] | Tokens) -> Comparison:
    """Ask the portal about each object type that the mappings use, and find what does not fit."""
    blocks: dict[str, list[Block]] = {}
    for name, source in settings.sources.items():
        for mapping in source.mappings:
            blocks.setdefault(mapping.object_type, []).append(Block(("sources", name, *mapping.path), mapping))
    found = Comparison()
    with closing(client(settings.crm, token=token)) as crm:
        portal = Portal(crm=crm, path=settings.crm.properties_path, name=portal_name(settings.crm))
        try:
            for object_type, using in blocks.items():
                _ask(portal, object_type, using, document, found)
        except CrmUnreachableError as error:
            found.trouble = str(error)
    return found


def client(crm: Crm, *, token: Callable[[], str] | Tokens) -> HubSpot:
    """The client that the service itself would use."""
    return HubSpot(
        base_url=crm.base_url,
        api_path=crm.api_path,
        token=token,
        timeout_s=crm.timeout_s,
        proxy=crm.proxy,
        ca_file=crm.ca_file,
    )


def portal_name(crm: Crm) -> str:
    """The portal as messages call it; the URL may hold more than is to be shown."""
    parts = urlsplit(crm.base_url)
    return f"the portal at {parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def scope_message(object_type: str, told: NotTold) -> str:
    """Why a 403 left an object type unchecked."""
    wanted = (
        f"lacks a scope: {' or '.join(told.scopes)}" if told.scopes else "lacks a scope, which HubSpot did not name"
    )
    return f"could not check {object_type}: the token {wanted} (HTTP 403)"


class _Told:
    """What the portal told of one object type. Which properties are archived is asked once it matters."""

    def __init__(self, portal: Portal, object_type: str, properties: dict[str, Definition]) -> None:
        self.object_type = object_type
        self._portal = portal
        self._properties = {name: one for name, one in properties.items() if not one.archived}
        self._archived = frozenset(properties) - frozenset(self._properties)
        self._asked = False

    def get(self, name: str) -> Definition | None:
        return self._properties.get(name)

    def unique(self) -> list[str]:
        return sorted(name for name, definition in self._properties.items() if definition.unique)

    def unknown(self, name: str) -> str:
        """The message about a property that the portal does not list."""
        if not self._asked and name not in self._archived:
            self._archived |= self._portal.archived(self.object_type)
            self._asked = True
        if name in self._archived:
            return f"{name} is archived in the portal, which counts as unknown; restore it there, or remove it here"
        near = nearest(name, self._properties)
        hint = f"did you mean {near}?" if near else "create it there, or remove it here"
        return f"the portal's {self.object_type} has no property {name}; {hint}"


def _ask(portal: Portal, object_type: str, using: list[Block], document: Document, found: Comparison) -> None:
    answer = portal.properties(object_type)
    if isinstance(answer, NotTold) and answer.reason == "forbidden":
        found.warnings.append(_problem(document, ("crm", "token"), scope_message(object_type, answer)))
        return
    if isinstance(answer, NotTold):
        message = f"the portal has no object type {object_type}: {answer.words}"
        found.problems += (_problem(document, (*block.keys, "object_type"), message) for block in using)
        return
    found.compared.append(object_type)
    told = _Told(portal, object_type, answer)
    for block in using:
        if block.mapping.schema is not None:
            message = "what a schema of your own returns was not compared with the portal"
            found.warnings.append(_problem(document, (*block.keys, "schema"), message))
        found.problems += (_problem(document, keys, message) for keys, message in _complaints(block, told))


def _complaints(block: Block, told: _Told) -> Iterator[tuple[Keys, str]]:
    identity = block.mapping.record.id_property
    if identity:
        yield from (((*block.keys, "record", "id_property"), message) for message in _identity(identity, told))
    for keys, name, how in block.properties():
        definition = told.get(name)
        if definition is None:
            yield keys, told.unknown(name)
        elif definition.calculated:
            yield keys, f"{name} is calculated by HubSpot; no value can be written to it"
        elif not definition.writable:
            yield keys, f"{name} is read-only in the portal; no value can be written to it"
        else:
            yield from (((*keys, *where), message) for where, message in misfits(how, definition))


def _identity(name: str, told: _Told) -> Iterator[str]:
    definition = told.get(name)
    if name == "hs_object_id":
        yield "hs_object_id is HubSpot's own record id; leave `id_property` out to address records by it"
    elif definition is None:
        yield told.unknown(name)
    elif not definition.unique and BUILT_IN_IDENTITIES.get(told.object_type) != name:
        unique = told.unique()
        hint = f"unique are: {', '.join(unique[:8])}" if unique else "the portal has none that is"
        yield f"{name} is not unique in the portal, so it identifies no record; {hint}"


def _problem(document: Document, keys: Keys, message: str) -> Problem:
    return document.problem(document.known(keys), message)
