"""What an event means: `record`, `properties`, `pairs`, `schema`, and the blocks of `mappings`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from marshmallow import ValidationError, validate

from bridge.config.blocks import Block, Complaints, Entries, Nested, OneOrMore
from bridge.config.scalars import (
    Affix,
    Choice,
    Constant,
    Expression,
    Factor,
    Flag,
    Scalar,
    Text,
    Zone,
    is_reference,
    kind,
)
from bridge.config.service_schemas import about
from bridge.intake.fields import READ_BY
from bridge.settings import MappingBlock, Pairs, Property, PropertyType, Record

PROPERTY_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,99}", re.ASCII)
PROPERTY_RULE = "is not a HubSpot property's name: lower-case letters, digits and underscores"
PYTHON_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

#: what may stand between a number's thousands; a blank stands for every kind of space
MARKS = (".", ",", " ", "'", "\u2019", "_")


def property_name(**kwargs: Any) -> Text:
    return Text(validate=validate.Regexp(PROPERTY_NAME.pattern + r"\Z", error=PROPERTY_RULE), **kwargs)


class Formats(OneOrMore):
    """How dates are written."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return tuple(super()._deserialize(value, *args, **kwargs))


class Mark(Affix):
    """What stands between a number's thousands."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, *args, **kwargs)
        if text not in MARKS:
            raise ValidationError(f"{text!r} is none of the marks {', '.join(map(repr, MARKS))}")
        return text


class RecordSchema(Block):
    """Which CRM record an event is about."""

    makes = Record
    id = Expression(required=True, metadata=about("JMESPath to the record's id."))
    id_property = property_name(
        metadata=about("The unique property that holds the id; left out: id is HubSpot's record id.")
    )
    match = Choice(
        "exact",
        "caseless",
        metadata=about(
            "caseless: ids that differ in letter case are one record, sent as the newest event spells it. "
            "Default: caseless for email and domain, else exact."
        ),
    )
    on_unknown = Choice("park", "wait", "ignore", metadata=about("What to do when the CRM knows no such record."))

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
    type = Choice(*get_args(PropertyType), metadata=about("The type of the HubSpot property."))
    scale = Factor(metadata=about("Multiplies a number: 0.01 turns cents into units."))
    decimal = Choice(".", ",", metadata=about("What texts put before a number's decimals."))
    thousands = Mark(metadata=about("What texts put between a number's thousands."))
    format = Formats(
        metadata=about(
            "For type string: `email`. For dates: how they are written, as strptime reads it; or epoch, epoch_ms, "
            "excel, rfc2822; or a list of these, of which the first that reads a value counts."
        )
    )
    timezone = Zone(metadata=about("The zone of dates that name none."))
    values = Entries(
        Constant(),
        validate=validate.Length(min=1, error="must not be empty"),
        metadata=about('The partner\'s values and what they mean; "*" is for all others.'),
    )
    multiple = Flag(metadata=about("An enumeration that takes several options."))
    separator = Constant(
        validate=validate.Length(min=1, error="must not be empty"),
        metadata=about("What separates several options within one text."),
    )
    required = Flag(metadata=about("An event without this value is invalid."))
    on_null = Choice("skip", "clear", metadata=about("Whether null and blank text clear the property."))

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
    """A HubSpot property and where its value comes from."""

    source = Expression(data_key="from", metadata=about("JMESPath to the value."))
    constant = Constant(metadata=about("The same value for every event, in place of `from`."))

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
    more_defaults = (Property,)
    to = property_name(required=True, metadata=about("The HubSpot property."))


class Shorthand(Nested):
    """A block that may be written as one text: the value of its `key`."""

    def __init__(self, schema: type[Block], key: str, **kwargs: Any) -> None:
        super().__init__(schema, **kwargs)
        self.key = key
        self.scalar: Scalar = Expression() if key == "from" else Text()

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if is_reference(value) or not isinstance(value, Mapping):
            if isinstance(value, list):
                raise ValidationError(f"must be text or a mapping of keys, not {kind(value)}")
            value = {self.key: self.scalar.deserialize(value)}
        return super()._deserialize(value, *args, **kwargs)


class PairsSchema(Block):
    """For senders in which names are data: property changes, or custom fields as a list."""

    makes = Pairs
    items = Expression(
        data_key="in", required=True, metadata=about("JMESPath to one pair, a list of pairs, or an object.")
    )
    name = Expression(required=True, metadata=about("JMESPath, within a pair, to its name."))
    value = Expression(required=True, metadata=about("JMESPath, within a pair, to its value."))
    properties = Entries(
        Shorthand(PairPropertySchema, "to"),
        required=True,
        validate=validate.Length(min=1, error="must name at least one"),
        metadata=about("The sender's names and the HubSpot properties they stand for."),
    )

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del given
        first: dict[str, str] = {}
        for name, how in data.get("properties", {}).items():
            if (to := how["to"]) in first:
                yield ("properties", name), f"writes {to}, as {first[to]!r} does; keep one"
            first.setdefault(to, name)

    def build(self, data: dict[str, Any]) -> Pairs:
        properties = {}
        for name, how in data["properties"].items():
            properties[name] = (how["to"], Property(**{key: how[key] for key in how if key != "to"}))
        return Pairs(**{**data, "properties": properties})


class MeaningSchema(Block):
    """The keys that stand in an entry of `mappings`, or in the source itself when it has only one."""

    makes: ClassVar[type] = MappingBlock
    aliases: ClassVar[Mapping[str, str]] = {"mapping": "mappings", "props": "properties"}
    record = Nested(RecordSchema, metadata=about("Which CRM record an event is about."))
    object_type = Text(
        validate=validate.Regexp(
            r"[A-Za-z0-9][A-Za-z0-9_-]*\Z",
            error="is not an object type such as partner_clients, contacts or 2-12345",
        ),
        metadata=about("The CRM's object type."),
    )
    properties = Entries(
        Shorthand(PropertySchema, "from"),
        pattern=PROPERTY_NAME,
        rule=PROPERTY_RULE,
        validate=validate.Length(min=1, error="must name at least one"),
        metadata=about("HubSpot properties; the short form of `{from: PATH}` is `PATH`."),
    )
    pairs = Nested(PairsSchema, metadata=about("For senders in which names are data."))
    schema = Text(
        validate=validate.Regexp(
            PYTHON_NAME.pattern + r"\Z", error="must be module.path:ClassName of a marshmallow Schema"
        ),
        metadata=about("A marshmallow Schema of your own, as module.path:ClassName."),
    )
    on_invalid = Choice(
        "park", "reject", metadata=about("park: valid properties go on. reject: the sender is answered 422.")
    )
    unchanged = Choice("send", "skip", metadata=about("skip leaves out values that the CRM has already confirmed."))

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

    when = Expression(metadata=about("JMESPath; the entry applies to events for which it holds."))
    timezone = Zone(metadata=about("The zone of dates that name none."))

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        return self.meaning(data, given)
