"""A source's payload as JSON Schema, derived from its mapping.

Whatever the mapping takes without a complaint fits the schema. Places that it does not look at are open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bridge.intake.expressions import Expression, compile_expression
from bridge.intake.mapping import MAX_EVENTS
from bridge.operations.openapi.algebra import Path, Place, all_of, any_of, as_object, at, described, negated
from bridge.operations.openapi.conditions import Bounds, both, bounds_of, either
from bridge.operations.openapi.own import shape_of
from bridge.operations.openapi.reading import places_read
from bridge.operations.openapi.shapes import EVENT_ID, JsonSchema, property_shape, record_id_shape, time_shape
from bridge.settings import Challenge, MappingBlock, Pairs, Source

_OBJECT: JsonSchema = {"type": "object"}
_PAIRS = "Pairs of a name and a value."
_LEFT_ASIDE = "Counted and left aside."


def event_schema(source: Source) -> Mapping[str, Any]:
    """One event: any of what its blocks read, or an event that is ignored."""
    base = bounds_of(source.when)
    blocks = [(block, bounds_of(block.when)) for block in source.mappings]
    always = [block for block, _ in blocks if block.when is None]
    some = [(block, bounds) for block, bounds in blocks if block.when is not None]
    variants: list[JsonSchema] = []
    for block, bounds in some:
        title = f"Where {block.when}"
        variants.append(described(_variant(source, [*always, block], both(base, bounds)), title=title))
    if always and (not some or either(*(bounds for _, bounds in some)).narrow is not True):
        variants.append(_variant(source, always, base))
    taken = both(base, either(*(bounds for _, bounds in blocks)))
    if taken.narrow is not True:
        about = "An event that no mapping is for: acknowledged, and nothing comes of it."
        variants.append(described(_ignored(source, taken), title="Ignored", description=about))
    return {"type": "object", **as_object(any_of(variants))}


def body_schema(source: Source, event: JsonSchema) -> Mapping[str, Any]:
    """The parsed body: an event, a list of events, or a document in which `events` finds them."""
    expression = compile_expression(source.events, ())
    if not _is_plain(expression):
        return {"description": f"The events in it are found by `{source.events}`."}
    events: JsonSchema = {
        "anyOf": [
            event,
            {"type": "array", "items": as_object(event), "maxItems": MAX_EVENTS, "description": "Several, or none."},
        ]
    }
    place = Place()
    place.add(expression.path or (), events, required=True)
    if expression.path:
        for path, description in _of_root(source):
            place.add(path, {"description": description})
    return as_object(place.schema())


def read_from_request(source: Source) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The headers and the query's parameters that the mapping looks at, as expressions name them."""
    headers: dict[str, list[str]] = {}
    query: dict[str, list[str]] = {}
    for text, about in _expressions(source):
        for variable, path in sorted(compile_expression(text, ()).variables):
            if path and variable in {"_headers", "_query"}:
                found = headers if variable == "_headers" else query
                found.setdefault(path[0], []).append(about)
    return _joined(headers), _joined(query)


def read_from_handshake(challenge: Challenge) -> list[str]:
    """The query's parameters that a handshake looks at."""
    texts = [challenge.reply] if challenge.when is None else [challenge.reply, challenge.when]
    used = [variable for text in texts for variable in compile_expression(text, ()).variables]
    return sorted({path[0] for variable, path in used if variable == "_query" and path})


def handshake_schema(challenge: Challenge) -> JsonSchema:
    """A body that asks for the handshake."""
    reply = compile_expression(challenge.reply, ())
    found = at(reply.path or (), True) if _is_plain(reply) else True
    about = "The handshake: nothing comes of it but its answer."
    return described(all_of([bounds_of(challenge.when).wide, found]), title="Handshake", description=about)


# --- an event's variants ------------------------------------------------------------------------


def _variant(source: Source, blocks: Iterable[MappingBlock], bounds: Bounds) -> JsonSchema:
    place = _common(source)
    others: list[JsonSchema] = []
    for block in blocks:
        record = compile_expression(block.record.id, ())
        shape = record_id_shape(digits=not block.record.id_property)
        _ask(place, record, shape, about="Which record is meant", required=True)
        for name, how in block.properties.items():
            if how.source is not None:
                expression = compile_expression(how.source, ())
                _ask(place, expression, property_shape(name, how), about=f"Becomes `{name}`", required=how.required)
        if block.pairs is not None:
            others.append(_pairs(place, block.pairs))
        if block.schema is not None:
            others.append(shape_of(block.schema))
    return all_of([bounds.wide, place.schema(), *others])


def _ignored(source: Source, taken: Bounds) -> JsonSchema:
    return all_of([_common(source).schema(), negated(taken.narrow)])


def _common(source: Source) -> Place:
    """What is asked of every event, ignored ones too."""
    place = Place()
    if source.event_id is not None:
        _ask(place, compile_expression(source.event_id, ()), EVENT_ID, about="Part of the event's id")
    if (time := source.occurred_at) is not None:
        _ask(place, compile_expression(time.source, ()), time_shape(time.format), about="When it happened")
    return place


def _ask(place: Place, expression: Expression, shape: JsonSchema, *, about: str, required: bool = False) -> None:
    """Ask the shape where the expression is a plain path; else tell where it looks."""
    if _is_plain(expression):
        place.add(expression.path or (), shape, required=required)
        return
    for path in places_read(expression.text):
        place.add(path, {"description": f"{about}, read by `{expression.text}`."})


def _is_plain(expression: Expression) -> bool:
    """Whether it is a path within the event."""
    return expression.path is not None and not expression.variables


# --- pairs --------------------------------------------------------------------------------------


def _pairs(place: Place, pairs: Pairs) -> JsonSchema:
    """What the pairs may be; where that cannot be told, `place` gets notes on where they are read."""
    items = compile_expression(pairs.items, ())
    name, value = compile_expression(pairs.name, ()), compile_expression(pairs.value, ())
    if not _is_plain(items) or not _is_plain(value) or not _is_plain(name) or len(name.path or ()) != 1:
        _ask(place, items, {"description": _PAIRS}, about=_PAIRS.rstrip("."))
        return True
    listed = list(_pair(pairs, name.path or (), value.path or ()))
    object_ = any_of(
        [
            *listed,
            described(_unlisted(pairs, name.path or ()), title="Another name", description=_LEFT_ASIDE),
            described(_entries(pairs, name.path or ()), title="Names and values"),
        ]
    )
    if not items.path:
        return object_
    # in a list the last pair of a name counts: what the others hold is not looked at
    pair = {"anyOf": [*listed, {"title": "Another pair", "description": _LEFT_ASIDE}]}
    place.add(items.path, any_of([{"type": "null"}, {"type": "array", "items": pair}, all_of([_OBJECT, object_])]))
    return True


def _pair(pairs: Pairs, name: Path, value: Path) -> Iterator[JsonSchema]:
    """One pair for each of the names."""
    for sender, (target, how) in pairs.properties.items():
        place = Place()
        place.add(name, {"enum": _written(sender)}, required=True)
        place.add(value, property_shape(target, how))
        yield described(place.schema(), title=sender)


def _unlisted(pairs: Pairs, name: Path) -> JsonSchema:
    return at(name, {"not": {"enum": list(pairs.properties)}})


def _entries(pairs: Pairs, name: Path) -> JsonSchema:
    """An object without the name's key is its entries."""
    place = Place()
    for sender, (target, how) in pairs.properties.items():
        place.add((sender,), property_shape(target, how))
    return all_of([place.schema(), {"not": {"required": list(name)}}])


def _written(sender: str) -> list[Any]:
    """A name as text, and as the number of which it is the text."""
    return [sender, int(sender)] if sender.isascii() and sender.isdigit() and str(int(sender)) == sender else [sender]


# --- what is read beside the event --------------------------------------------------------------


def _expressions(source: Source) -> Iterator[tuple[str, str]]:
    """Every expression of the source with what it is for."""
    for text, about in (
        (source.when, "Which events count"),
        (source.event_id, "Part of the event's id"),
        (None if source.occurred_at is None else source.occurred_at.source, "When it happened"),
        (source.events, "Where the events are"),
    ):
        if text is not None:
            yield text, about
    for block in source.mappings:
        if block.when is not None:
            yield block.when, "Which events count"
        yield block.record.id, "Which record is meant"
        for name, how in block.properties.items():
            if how.source is not None:
                yield how.source, f"Becomes `{name}`"
        if block.pairs is not None:
            for text in (block.pairs.items, block.pairs.name, block.pairs.value):
                yield text, _PAIRS.rstrip(".")


def _of_root(source: Source) -> Iterator[tuple[Path, str]]:
    for text, about in _expressions(source):
        for variable, path in sorted(compile_expression(text, ()).variables):
            if variable == "_root" and path:
                yield path, f"{about}, for every event: `{text}`."


def _joined(found: Mapping[str, list[str]]) -> Mapping[str, str]:
    return {name: "; ".join(dict.fromkeys(texts)) + "." for name, texts in found.items()}
