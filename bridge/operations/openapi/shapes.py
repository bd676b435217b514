"""Values as JSON Schema: what one property, record id or time takes, and how schemas are joined.

Every schema admits at least what `bridge.intake.fields` takes, which has the one of each type; a test holds them to
that. What a schema cannot say briefly (a length after trimming, say) stands in its description.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.intake.blocks import MAX_ID
from bridge.intake.fields import BLANK, SCALARS, TYPES
from bridge.intake.language import Path
from bridge.intake.payload import parse_json_text
from bridge.intake.texts import MAX_TEXT
from bridge.settings import Property

#: A schema; True fits everything, False nothing.
JsonSchema = Mapping[str, Any] | bool

_NUMBER_KEY = re.compile(r"-?(0|[1-9][0-9]{0,399})(\.[0-9]{1,399})?")

_DIGITS = "A day as eight digits (20261231), or seconds or milliseconds since 1970, if that lies in 1990 to 2099."

#: The reusable schemas that the ones here refer to, by name.
SHARED: Mapping[str, JsonSchema] = {
    "Nothing": {
        "description": "No value: null, blank text or an empty list. An absent key changes nothing either.",
        "anyOf": [
            {"type": "null"},
            {"type": "string", "pattern": f"^{BLANK}*$"},
            {"type": "array", "maxItems": 0},
        ],
    },
    "Time": {
        "description": "A point in time.",
        "anyOf": [
            {"type": "string", "format": "date-time"},
            {"type": "number", "description": _DIGITS},
            {"type": "string", "description": "Any other form of ISO 8601, or such a number as text."},
        ],
    },
    "Day": {
        "description": "A day, or a point in time whose day is meant.",
        "anyOf": [
            {"type": "string", "format": "date"},
            {"type": "string", "format": "date-time"},
            {"type": "number", "description": _DIGITS},
            {"type": "string", "description": "Any other form of ISO 8601, or such a number as text."},
        ],
    },
}
_NOTHING = {"$ref": "#/components/schemas/Nothing"}
_WHEN = "When it happened. An older event never overwrites a newer value. Absent: the time of arrival."
#: Anything at all is taken: what is no text and no number counts as missing.
EVENT_ID: JsonSchema = {
    "description": "The event's id, a text or a number: a second delivery of the same id changes nothing.",
}


def record_id_shape(*, digits: bool) -> JsonSchema:
    """What a record's id may be."""
    about = f"Which record is meant: a text or a whole number, at most {MAX_ID} characters."
    text: dict[str, Any] = {"type": "string", "minLength": 1}
    if digits:
        about += " It consists of digits."
        text["pattern"] = f"^{BLANK}*[0-9]+{BLANK}*$"
    return {"description": about, "anyOf": [text, {"type": "integer"}]}


def property_shape(name: str, how: Property) -> JsonSchema:
    """What the value for the property `name` may be, null and the like included unless it is required."""
    one = TYPES[how.type].shapes(how) if how.values is None else _listed(how.values)
    several: list[JsonSchema] = []
    if how.multiple:
        several.append({"type": "array", "items": {"anyOf": [*one, _NOTHING]}})
    if how.separator is not None:
        about = f"Several values as one text, separated by {how.separator!r}."
        several.append({"type": "string", "description": about})
    alternatives = [*one, *several]
    if not how.required or how.on_null == "clear":
        alternatives.append(_NOTHING)
    described = {"description": _about(name, how)}
    only = alternatives[0]
    if len(alternatives) == 1 and isinstance(only, Mapping) and "description" not in only:
        return {**described, **only}
    return {**described, "anyOf": alternatives}


def _about(name: str, how: Property) -> str:
    parts = [f"Becomes `{name}`."]
    if how.type == "string" and how.values is None and not how.format:
        parts.append(f"At most {MAX_TEXT} characters.")
    if how.required:
        parts.append("Required.")
    if how.on_null == "clear":
        parts.append("Null, blank text or an empty list clears it.")
    return " ".join(parts)


def time_shape(formats: Sequence[str]) -> JsonSchema:
    """When an event happened, as it is written."""
    time = TYPES["datetime"].shapes(Property(type="datetime", format=tuple(formats)))
    return {"description": _WHEN, "anyOf": [*time, _NOTHING]}


def _listed(values: Mapping[str, str]) -> Sequence[JsonSchema]:
    """The alternatives where `values:` translates; numbers and booleans count by their text."""
    texts = [text for text in values if text != "*"]
    others = [parse_json_text(text) for text in texts if text in {"true", "false"} or _NUMBER_KEY.fullmatch(text)]
    padded = rf"^{BLANK}*({'|'.join(map(escaped, texts))}){BLANK}*$"
    found: list[JsonSchema] = []
    if texts:
        found.append({"enum": [*texts, *others]})
    if "*" in values:
        found.append({"type": SCALARS, "description": "Any other value is taken too."})
    elif texts:
        found.append({"type": "string", "pattern": padded, "description": "The same with blanks around it."})
    return found or [False]


def escaped(text: str) -> str:
    """A pattern for this very text, to ECMA, Python and Rust alike (`re.escape` escapes more than they take)."""
    return re.sub(r"[\\^$.*+?()\[\]{}|/]", r"\\\g<0>", text)


# --- and, or, not of JSON Schemas, and places within a document, written as briefly as they can be ---

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
    offered: list[JsonSchema] = []
    for schema in schemas:
        if schema is not False and schema not in offered:
            offered.append(schema)
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
    place = Branch()
    place.add(path, schema, required=True)
    return place.schema()


@dataclass(slots=True)
class Branch:
    """One branch of a document: what is asked of it, and of the branches within it.

    Where nothing within is required, another kind of value may stand there too: the mapping then finds
    nothing within, which is as good as absent.
    """

    asked: list[JsonSchema] = field(default_factory=list)
    keys: dict[str, Branch] = field(default_factory=dict)
    indices: dict[int, Branch] = field(default_factory=dict)
    required: set[str | int] = field(default_factory=set)

    def add(self, path: Path, schema: JsonSchema, *, required: bool = False) -> None:
        """Ask `schema` of what stands at `path`; `required`: something must stand there."""
        place = self
        for step in path:
            if required:
                place.required.add(step)
            if isinstance(step, int):
                place = place.indices.setdefault(step, Branch())
            else:
                place = place.keys.setdefault(step, Branch())
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
