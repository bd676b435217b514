"""Compares the configuration with the portal's property definitions: what HubSpot would refuse, said before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bridge.config.document import Document, Keys
from bridge.config.fitting import misfits
from bridge.config.scalars import nearest
from bridge.delivery.hubspot import HubSpot
from bridge.delivery.properties import Definition, NotTold, Portal
from bridge.delivery.tokens import Tokens
from bridge.errors import CrmUnreachableError, Problem
from bridge.settings import Crm, MappingBlock, Property, Settings

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
