"""A source's payload as JSON Schema, derived from its mapping.

Whatever the mapping takes without a complaint fits the schema. Places that it does not look at are open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jmespath
from apispec import APISpec
from apispec.exceptions import APISpecError
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, fields
from marshmallow.decorators import PRE_LOAD

from bridge.intake.expressions import Expression, compile_expression
from bridge.intake.language import VARIABLES, Node, Path, calls, plain_path
from bridge.intake.mapping import MAX_EVENTS
from bridge.intake.own_schema import SchemaError, Schemas
from bridge.operations.openapi.shapes import (
    EVENT_ID,
    Branch,
    JsonSchema,
    all_of,
    any_of,
    as_object,
    at,
    described,
    escaped,
    negated,
    property_shape,
    record_id_shape,
    time_shape,
)
from bridge.settings import Challenge, MappingBlock, Pairs, Source

# --- which places of an event an expression looks at ---

#: Nodes whose first child alone looks at the event: the others look at what that one found.
_CHAINS = frozenset(
    {
        "subexpression", "index_expression", "pipe", "projection", "value_projection", "filter_projection", "flatten",
    }
)  # fmt: skip


def places_read(expression: str) -> list[Path]:
    """The paths of the event with which the expression begins to look, each once; not `_root` and the like."""
    found = _read(jmespath.compile(expression).parsed)
    return list(dict.fromkeys(path for path in found if path and path[0] not in VARIABLES))


def _read(node: Node) -> Iterator[Path]:
    path = plain_path(node)
    kind = node["type"]
    if path is not None:
        yield path
    elif kind in _CHAINS:
        yield from _read(node["children"][0])
    elif kind not in {"expref", "literal", "slice"}:
        for child in node["children"]:
            yield from _read(child)


# --- `when:` as JSON Schema, as far as it looks at plain paths of the event and compares them with literals ---
#
# What cannot be said at all is `Bounds()`; where both of its schemas are the same, the condition is said exactly.

_LIMITS = {"lt": "exclusiveMaximum", "lte": "maximum", "gt": "exclusiveMinimum", "gte": "minimum"}
_TURNED = {"lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte", "eq": "eq", "ne": "ne"}
_FALSE: tuple[object, ...] = (None, False, "", [], {})


class Bounds(NamedTuple):
    """A condition as two schemas: `wide` fits every event for which it holds, `narrow` fits no other event."""

    wide: JsonSchema = True
    narrow: JsonSchema = False


ALWAYS = Bounds(True, True)


def bounds_of(condition: str | None) -> Bounds:
    """The bounds of a `when:` that compiles; None holds always."""
    return ALWAYS if condition is None else _bounds(jmespath.compile(condition).parsed)


def both(*bounds: Bounds) -> Bounds:
    """Where all of them hold."""
    return Bounds(all_of(one.wide for one in bounds), all_of(one.narrow for one in bounds))


def either(*bounds: Bounds) -> Bounds:
    """Where at least one holds."""
    return Bounds(any_of(one.wide for one in bounds), any_of(one.narrow for one in bounds))


def _bounds(node: Node) -> Bounds:
    children = node["children"]
    match node["type"]:
        case "and_expression":
            return both(*map(_bounds, children))
        case "or_expression":
            found = either(*map(_bounds, children))
        case "not_expression":
            inner = _bounds(children[0])
            found = Bounds(negated(inner.narrow), negated(inner.wide))
        case "comparator" | "function_expression" if len(children) == 2:
            return _test(node["value"], *children)
        case _:
            return _said(_event_path(node), {"not": {"enum": list(_FALSE)}})
    # An expression that raises does not hold as a whole, though `!` and `||` would make true of false.
    return found._replace(narrow=False) if any(calls(children[0])) else found


def _test(operator: str, left: Node, right: Node) -> Bounds:
    """A comparison, or a function of two arguments."""
    if left["type"] == "literal" and operator in _TURNED:
        left, right, operator = right, left, _TURNED[operator]
    if right["type"] != "literal":
        return Bounds()
    path, value = _event_path(left), right["value"]
    match operator:
        case "eq" if isinstance(value, (str, int)):
            return _said(path, {"const": value})
        case "ne" if isinstance(value, (str, int)):
            equal = _said(path, {"const": value})
            return Bounds(negated(equal.narrow), negated(equal.wide))
        case "lt" | "lte" | "gt" | "gte" if type(value) is int:
            return _said(path, {"type": "number", _LIMITS[operator]: value})
        case "starts_with" if isinstance(value, str):
            return _said(path, {"type": "string", "pattern": f"^{escaped(value)}"})
        case "ends_with" if isinstance(value, str):
            # `$` is the very end to ECMA, and also before a line's end to others: exact for no one
            return _said(path, {"type": "string", "pattern": f"{escaped(value)}$"})._replace(narrow=False)
        case "contains" if isinstance(value, str):
            listed = {"type": "array", "contains": {"const": value}}
            return _said(path, any_of([{"type": "string", "pattern": escaped(value)}, listed]))
        case _:
            return Bounds()


def _said(path: Path | None, schema: JsonSchema) -> Bounds:
    """That the schema fits what stands at the path, where there is one."""
    if path is None:
        return Bounds()
    found = at(path, schema)
    return Bounds(found, found)


def _event_path(node: Node) -> Path | None:
    """The path of a node that reads the event and nothing beside it."""
    path = plain_path(node)
    return None if path is None or (path and path[0] in VARIABLES) else path


# --- a user's own marshmallow schema as JSON Schema: by apispec, made as lenient as marshmallow's `load` is ---
#
# marshmallow reads numbers and times from texts, and a hook or a custom field may take anything: what
# apispec says of those would keep out what is taken, so they are widened or left open.

#: Fields that take just what apispec says of them.
_EXACT = frozenset(
    {fields.String, fields.Email, fields.Url, fields.UUID, fields.Enum, fields.Dict, fields.List, fields.Nested}
)
_NUMBER, _TIME = ["number", "string"], ["string", "number"]
#: Fields that read other JSON types too.
_LENIENT: dict[type, list[str]] = {
    fields.Integer: _NUMBER,
    fields.Float: _NUMBER,
    fields.Decimal: _NUMBER,
    fields.TimeDelta: _NUMBER,
    fields.Boolean: ["boolean", "number", "string"],
    fields.DateTime: _TIME,
    fields.NaiveDateTime: _TIME,
    fields.AwareDateTime: _TIME,
    fields.Date: _TIME,
    fields.Time: _TIME,
}
#: What of apispec's findings concerns loading.
_KEPT = frozenset(
    {
        "type", "format", "properties", "required", "items", "additionalProperties", "enum", "pattern", "anyOf",
        "minLength", "maxLength", "minItems", "maxItems",
    }
)  # fmt: skip
_PYTHON_ONLY = re.compile(r"\(\?|\\[AZ]")


def shape_of(name: str) -> JsonSchema:
    """The shape of the schema that a configuration names, told by a process of its own as its `load` is."""
    try:
        found: JsonSchema = Schemas().call(name, own_shape)
    except SchemaError:
        return True
    return found


def own_shape(schema: Schema) -> JsonSchema:
    """What `schema.load` takes, as far as it can be told without calling it."""
    if _reshapes(schema):
        return True
    plugin = MarshmallowPlugin(schema_name_resolver=lambda _schema: "")  # within, not beside
    APISpec(title="", version="", openapi_version="3.1.0", plugins=[plugin])
    assert plugin.converter is not None  # noqa: S101 (made with the spec)
    plugin.converter.add_attribute_function(_taken)  # type: ignore[no-untyped-call]  # apispec has no types here
    try:
        found: dict[str, Any] = plugin.converter.schema2jsonschema(schema)  # type: ignore[no-untyped-call]  # nor here
    except APISpecError:  # a schema that contains itself
        return True
    return found


def _reshapes(schema: Schema) -> bool:
    """Whether the input may be changed before its fields see it."""
    return bool(schema._hooks[PRE_LOAD]) or type(schema).load is not Schema.load  # noqa: SLF001 (as apispec reads it)


def _taken(_converter: Any, field: Any, ret: dict[str, Any]) -> dict[str, Any]:
    """What the field loads, in place of all that was found of it."""
    made = type(field)
    plain: dict[str, Any] = {}
    if field.dump_only or field.pre_load:
        pass
    elif made in _LENIENT:
        plain["type"] = [*_LENIENT[made], *(["null"] if field.allow_none else [])]
    elif made in _EXACT and not (made is fields.Enum and field.by_value) and not _hides(field):
        plain = {key: value for key, value in ret.items() if key in _KEPT}
        if not all(value is None or isinstance(value, str) for value in plain.get("enum", ())):
            del plain["enum"]
        if "pattern" in plain and not all(map(_is_portable, field.validators)):
            del plain["pattern"]
    about = {key: str(ret[key]) for key in ("title", "description") if key in ret}
    ret.clear()
    return plain | about


def _hides(field: Any) -> bool:
    """Whether a nested schema takes more than it says."""
    return isinstance(field, fields.Nested) and (_reshapes(field.schema) or field.unknown is not None)


def _is_portable(validator: Any) -> bool:
    """Whether the pattern that a validator has, if any, means the same outside Python."""
    regex = getattr(validator, "regex", None)
    if not isinstance(regex, re.Pattern):
        return True
    return not (regex.flags & ~re.UNICODE or _PYTHON_ONLY.search(str(regex.pattern)))


# --- one source's events and bodies ---

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
    place = Branch()
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


def _common(source: Source) -> Branch:
    """What is asked of every event, ignored ones too."""
    place = Branch()
    if source.event_id is not None:
        _ask(place, compile_expression(source.event_id, ()), EVENT_ID, about="Part of the event's id")
    if (time := source.occurred_at) is not None:
        _ask(place, compile_expression(time.source, ()), time_shape(time.format), about="When it happened")
    return place


def _ask(place: Branch, expression: Expression, shape: JsonSchema, *, about: str, required: bool = False) -> None:
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


def _pairs(place: Branch, pairs: Pairs) -> JsonSchema:
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
        place = Branch()
        place.add(name, {"enum": _written(sender)}, required=True)
        place.add(value, property_shape(target, how))
        yield described(place.schema(), title=sender)


def _unlisted(pairs: Pairs, name: Path) -> JsonSchema:
    return at(name, {"not": {"enum": list(pairs.properties)}})


def _entries(pairs: Pairs, name: Path) -> JsonSchema:
    """An object without the name's key is its entries."""
    place = Branch()
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
