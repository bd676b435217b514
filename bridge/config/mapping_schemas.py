"""What an event means: `record`, `properties`, `pairs`, `schema`, and the blocks of `mappings`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar

from bridge.config.blocks import Block, Complaints, Entries, Reader, Shorthand, about
from bridge.config.scalars import FORMS, PROPERTY_NAME, PROPERTY_RULE
from bridge.intake.fields import READ_BY
from bridge.settings import MappingBlock, Pairs, Property, Record


class RecordSchema(Block):
    makes = Record

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del data
        if "match" in given and "id_property" not in given:
            yield ("match",), "stands beside `id_property`: HubSpot's record ids are digits; leave it out"


class HowSchema(Block):
    """How a value becomes what HubSpot stores."""

    makes: ClassVar[type] = Property
    aliases: ClassVar[Mapping[str, str]] = {
        "path": "from",
        "source": "from",
        "options": "values",
        "map": "values",
        "tz": "timezone",
    }
    leaves_out: ClassVar[Collection[str]] = ("source", "constant")

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        type_ = data.get("type", "string")
        if "type" in data or "type" not in given:
            for key, types in READ_BY.items():
                if key in given and type_ not in types:
                    yield (key,), f"belongs to type {' or '.join(types)}, not to {type_}"
        if "separator" in given and not given.get("multiple"):
            yield ("separator",), "works only with `multiple: true`"
        if type_ == "string" and data.get("format", ("email",)) != ("email",):
            yield ("format",), "type string knows format `email` only"
        if type_ == "number" and data.get("decimal", ".") == data.get("thousands"):
            yield ("thousands",), "is the mark of decimals too; set `decimal:` as well"


class PropertySchema(HowSchema):
    leaves_out = ()

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        yield from super().relations(data, given)
        if "from" in given and "constant" in given:
            yield ("constant",), "stands beside `from`; keep one of the two"
        elif "from" not in given and "constant" not in given:
            yield (), "needs `from` (JMESPath to the value) or `constant`"
        elif "constant" in given:
            for key in sorted((set(given) - {"constant", "type"}) & set(self.names())):
                yield (key,), "has no effect on a constant; remove it"


class PairPropertySchema(HowSchema):
    """The HubSpot property that one of the sender's names stands for."""

    makes = dict
    to = FORMS["property"](required=True, metadata=about("The HubSpot property.", "annual_revenue"))


class PairsSchema(Block):
    makes = Pairs
    reads: ClassVar[Mapping[str, Reader]] = {"properties": partial(Entries, Shorthand(PairPropertySchema, "to"))}

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del given
        first: dict[str, str] = {}
        for name, how in data.get("properties", {}).items():
            if (to := how.get("to")) in first:
                yield ("properties", name), f"writes {to}, as {first[to]!r} does; keep one"
            elif to is not None:
                first[to] = name

    def build(self, data: dict[str, Any]) -> Pairs:
        properties = {
            name: (how["to"], Property(**{key: how[key] for key in how if key != "to"}))
            for name, how in data["properties"].items()
            if "to" in how
        }
        return Pairs(**{**data, "properties": properties})


class MeaningSchema(Block):
    """The keys that stand in an entry of `mappings`, or in the source itself when it has only one."""

    makes: ClassVar[type] = MappingBlock
    aliases: ClassVar[Mapping[str, str]] = {"mapping": "mappings", "props": "properties"}
    leaves_out: ClassVar[Collection[str]] = ("when", "timezone")
    may_lack = ("record",)
    stand_ins: ClassVar[Mapping[str, Any]] = {"record": Record("@")}
    reads: ClassVar[Mapping[str, Reader]] = {
        "properties": partial(Entries, Shorthand(PropertySchema, "from"), pattern=PROPERTY_NAME, rule=PROPERTY_RULE)
    }

    @classmethod
    def shared(cls) -> list[str]:
        """The keys of a source that belong to its single meaning."""
        return MeaningSchema.names()

    def meaning(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        """What is wrong between the keys of one meaning."""
        if "record" not in given:
            yield ("record",), "is missing: write `record: {id: PATH, id_property: NAME}`"
        if not {"properties", "pairs", "schema"} & set(given):
            yield ("properties",), "is missing: write `properties:`, `pairs:` or `schema:`"
        if "schema" in given:
            for key in sorted({"properties", "pairs"} & set(given)):
                yield (key,), "stands beside `schema`, which maps everything; keep one of the two"
        pairs = data.get("pairs")
        for name, (to, _) in pairs.properties.items() if isinstance(pairs, Pairs) else ():
            if to in data.get("properties", {}):
                yield ("pairs", "properties", name), f"writes {to}, as `properties` does; keep one"


class MappingSchema(MeaningSchema):
    """One entry of `mappings`."""

    leaves_out = ()

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        return self.meaning(data, given)
