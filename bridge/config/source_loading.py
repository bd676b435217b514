"""One source from the file: all that is wrong with it, also what only its expressions show."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from marshmallow import ValidationError

from bridge.config.blocks import flatten
from bridge.config.document import Document, Keys
from bridge.config.source_schemas import SourceSchema
from bridge.config.surroundings import Surroundings, surroundings
from bridge.errors import MappingError, Problem
from bridge.intake.mapping import compile_source
from bridge.intake.own_schema import Schemas
from bridge.settings import Source

#: a source that signs the URL is asked for `server.public_url` elsewhere, once for all sources
STAND_IN_URL = "https://public-url.invalid"


def load_source(
    document: Document, name: str, raw: Mapping[str, Any], around: Surroundings, schemas: Schemas
) -> tuple[Source | None, list[Problem]]:
    """One source and its problems, those of its expressions too.

    What is wrong by itself is left out and the rest loaded once more, so that a missing secret does
    not hide an expression that does not parse. `schemas` imports its own, for all sources of the file.
    """
    keys: Keys = ("sources", name)
    folder = Path(document.place(keys).file).parent
    body = f"form:{raw.get('payload_field') or ''}" if raw.get("body") == "form" else str(raw.get("body", "json"))
    around = dataclasses.replace(around, folder=folder, body=body)
    problems: list[Problem] = []
    faulty: set[Keys] = set()
    try:
        source = _load_source(name, raw, around)
    except ValidationError as error:
        complaints = list(flatten(error.messages))
        problems = [document.problem((*keys, *inner), message) for inner, message in complaints]
        faulty = {document.known((*keys, *inner))[2:] for inner, _ in complaints} - {()}
        try:
            source = _load_source(name, _sound_part(raw, faulty), dataclasses.replace(around, lenient=True))
        except ValidationError:
            return None, problems
        source = _renumbered(source, raw, faulty)
    if any(block.schema for block in source.mappings):
        _let_import_from(folder)
    known_faulty = bool(problems)
    for inner, message in mapping_faults(source, schemas):
        place = document.known((*keys, *inner))[2:]
        if not known_faulty or (place and not any(_related(place, other) for other in faulty)):
            problems.append(document.problem((*keys, *place), message))
    return source, problems


def _let_import_from(folder: Path) -> None:
    """Let `schema:` find modules that stand beside the file, behind all others: they take no other module's place."""
    if (place := str(folder.resolve())) not in sys.path:
        sys.path.append(place)


def _sound_part(raw: Mapping[str, Any], faulty: set[Keys]) -> dict[str, Any]:
    """What can be built of a source, with stand-ins for what it must have."""
    sound = _without({key: raw[key] for key in raw if key != "examples"}, (), faulty)
    stand_ins: dict[str, Any] = {"verify": {"scheme": "none"}}
    if "mappings" not in sound:
        stand_ins["record"] = {"id": "@"}
    return {**stand_ins, **sound}


def _renumbered(source: Source, raw: Mapping[str, Any], faulty: set[Keys]) -> Source:
    """The source with the places that its mappings have in the file."""
    if not isinstance(raw.get("mappings"), list) or ("mappings",) in faulty:
        return source
    kept = [index for index in range(len(raw["mappings"])) if ("mappings", index) not in faulty]
    blocks = zip(source.mappings, kept, strict=True)
    return dataclasses.replace(
        source, mappings=tuple(dataclasses.replace(block, path=("mappings", index)) for block, index in blocks)
    )


def _load_source(name: str, raw: Mapping[str, Any], around: Surroundings) -> Source:
    token = surroundings.set(around)
    try:
        source: Source = SourceSchema().load(raw)
    finally:
        surroundings.reset(token)
    return dataclasses.replace(source, name=name)


def mapping_faults(source: Source, schemas: Schemas) -> Iterator[tuple[Keys, str]]:
    """What the intake room finds wrong with a source's expressions and types."""
    try:
        compile_source(source, STAND_IN_URL, schemas)
    except ExceptionGroup as group:
        ours, others = group.split(MappingError)
        if others is not None:
            raise others from group
        yield from _leaves(ours)


def _leaves(group: BaseException | None) -> Iterator[tuple[Keys, str]]:
    if isinstance(group, MappingError):
        yield group.path, group.message
    elif isinstance(group, BaseExceptionGroup):
        for inner in group.exceptions:
            yield from _leaves(inner)


def _related(one: Keys, other: Keys) -> bool:
    """Whether one of two places is within the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _without(value: Any, keys: Keys, faulty: set[Keys]) -> Any:
    """A copy of `value` that lacks what stands at `faulty`."""
    if isinstance(value, Mapping):
        return {
            key: _without(inner, (*keys, key), faulty) for key, inner in value.items() if (*keys, key) not in faulty
        }
    if isinstance(value, list):
        return [
            _without(inner, (*keys, index), faulty) for index, inner in enumerate(value) if (*keys, index) not in faulty
        ]
    return value
