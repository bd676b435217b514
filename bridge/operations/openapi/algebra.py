"""And, or, not of JSON Schemas, and places within a document, written as briefly as they can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.operations.openapi.shapes import JsonSchema

Path = tuple[str | int, ...]


#: Keywords of objects that can be joined key by key, and those that ask nothing.
_JOINABLE = frozenset({"type", "properties", "required"})
_TEXTS = frozenset({"title", "description"})


def all_of(schemas: Iterable[JsonSchema]) -> JsonSchema:
    """What fits every one of them; objects' properties are joined."""
    wanted: list[JsonSchema] = []
    for schema in schemas:
        parts = schema["allOf"] if isinstance(schema, Mapping) and set(schema) == {"allOf"} else [schema]
        for part in parts:
            _join_into(wanted, part)
    if False in wanted:
        return False
    return {"allOf": wanted} if len(wanted) > 1 else wanted[0] if wanted else True


def _join_into(wanted: list[JsonSchema], schema: JsonSchema) -> None:
    if schema is True or schema == {} or schema in wanted:
        return
    for position, other in enumerate(wanted):
        joined = _joined(other, schema)
        if joined is not None:
            wanted[position] = joined
            return
    wanted.append(schema)


def _joined(left: JsonSchema, right: JsonSchema) -> JsonSchema | None:
    """Both as one schema that says so keyword by keyword, or None."""
    if isinstance(left, bool) or isinstance(right, bool):
        return None
    if not set(left) & set(right) and (set(left) <= _TEXTS or set(right) <= _TEXTS):
        return {**left, **right}
    for one, other in ((left, right), (right, left)):
        if set(one) == {"description"} and "description" in other:
            return {**other, "description": f"{left['description']} {right['description']}"}
    keys = set(left) | set(right)
    if not keys <= _JOINABLE or {left.get("type", "object"), right.get("type", "object")} != {"object"}:
        return None
    properties = dict(left.get("properties", {}))
    for key, schema in right.get("properties", {}).items():
        properties[key] = as_object(all_of([properties[key], schema]) if key in properties else schema)
    required = dict.fromkeys([*left.get("required", ()), *right.get("required", ())])
    return {
        **({"type": "object"} if "type" in keys else {}),
        **({"properties": properties} if properties else {}),
        **({"required": list(required)} if required else {}),
    }


def any_of(schemas: Iterable[JsonSchema]) -> JsonSchema:
    """What fits at least one of them."""
    offered = _distinct(schema for schema in schemas if schema is not False)
    if True in offered:
        return True
    return {"anyOf": offered} if len(offered) > 1 else offered[0] if offered else False


def negated(schema: JsonSchema) -> JsonSchema:
    """What does not fit it."""
    if isinstance(schema, bool):
        return not schema
    return schema["not"] if set(schema) == {"not"} else {"not": schema}


def at(path: Path, schema: JsonSchema) -> JsonSchema:
    """Documents in which something stands at `path`, and fits."""
    place = Place()
    place.add(path, schema, required=True)
    return place.schema()


@dataclass(slots=True)
class Place:
    """One place of a document: what is asked of it, and of the places within it.

    Where nothing within is required, another kind of value may stand there too: the mapping then finds
    nothing within, which is as good as absent.
    """

    asked: list[JsonSchema] = field(default_factory=list)
    keys: dict[str, Place] = field(default_factory=dict)
    indices: dict[int, Place] = field(default_factory=dict)
    required: set[str | int] = field(default_factory=set)

    def add(self, path: Path, schema: JsonSchema, *, required: bool = False) -> None:
        """Ask `schema` of what stands at `path`; `required`: something must stand there."""
        place = self
        for step in path:
            if required:
                place.required.add(step)
            if isinstance(step, int):
                place = place.indices.setdefault(step, Place())
            else:
                place = place.keys.setdefault(step, Place())
        if schema not in place.asked:
            place.asked.append(schema)

    def schema(self) -> JsonSchema:
        """All that is asked, as one schema."""
        return all_of([*self.asked, *self._object(), *self._array()])

    def _object(self) -> Iterable[JsonSchema]:
        if not self.keys:
            return
        required = [key for key in self.keys if key in self.required]
        yield {
            **({"type": "object"} if required else {}),
            "properties": {key: as_object(place.schema()) for key, place in self.keys.items()},
            **({"required": required} if required else {}),
        }

    def _array(self) -> Iterable[JsonSchema]:
        if not self.indices:
            return
        length = max(self.indices) + 1
        least = max((index for index in self.indices if index in self.required), default=-1) + 1
        places = [self.indices[index].schema() if index in self.indices else True for index in range(length)]
        yield {
            **({"type": "array", "minItems": least} if least else {}),
            "prefixItems": [as_object(place) for place in places],
        }


def described(schema: JsonSchema, **texts: str) -> Mapping[str, Any]:
    """The schema with a title or description of its own."""
    whole = as_object(schema)
    return {**texts, **({"allOf": [whole]} if set(texts) & set(whole) else whole)}


def as_object(schema: JsonSchema) -> Mapping[str, Any]:
    """Booleans as objects, which every tool reads."""
    if schema is True:
        return {}
    return {"not": {}} if schema is False else schema


def _distinct(schemas: Iterable[JsonSchema]) -> list[JsonSchema]:
    found: list[JsonSchema] = []
    for schema in schemas:
        if schema not in found:
            found.append(schema)
    return found
