"""One source, `sources.NAME`: what its events mean, how they are verified, its examples; and the whole file."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlencode

from marshmallow import ValidationError, validate

from bridge.config.blocks import (
    Block,
    Complaints,
    Entries,
    Free,
    Items,
    Nested,
    OneOrMore,
    Reader,
    Shorthand,
    about,
    schema_of,
)
from bridge.config.scalars import (
    FORMS,
    PROPERTY_NAME,
    PROPERTY_RULE,
    Choice,
    Constant,
    Flag,
    HeaderName,
    Text,
    kind,
    reason,
    surroundings,
)
from bridge.config.service_schemas import faults, rule_for, text_fault
from bridge.intake.fields import READ_BY
from bridge.settings import Example, Hmac, MappingBlock, OccurredAt, Pairs, Property, Record, Settings, Source, Verify
from bridge.tryout.payloads import SavedRequest, read_saved

# --- what an event means: `record`, `properties`, `pairs`, `schema`, and the blocks of `mappings` ---


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


# --- `verify:` of a source: the scheme, its secrets, and the keys of schemes hmac and bearer ---

#: keys of `verify:` that only some schemes read
ONLY_FOR = {
    "algorithm": ("hmac",),
    "encoding": ("hmac",),
    "key": ("hmac",),
    "signed": ("hmac",),
    "timestamp": ("hmac",),
    "id": ("hmac",),
    "header": ("hmac", "bearer"),
    "prefix": ("hmac", "bearer"),
}
AUTHORIZATION = "authorization"


class TimestampSchema(Block):
    """Where the sender's clock stands."""

    makes = dict
    header = HeaderName(required=True, metadata=about("The header that holds the time of signing.", "X-Acme-Timestamp"))
    unit = Choice("s", "ms", "iso", metadata=about("Seconds, milliseconds or ISO 8601."))


class IdSchema(Block):
    """Where the delivery's id stands."""

    makes = dict
    header = HeaderName(required=True, metadata=about("The header that holds the delivery's id.", "X-Acme-Delivery"))


def _same_header(data: Mapping[str, Any]) -> bool:
    """Whether the time stands in the signature's header."""
    time = data.get("timestamp", {}).get("header")
    return time is not None and str(time).lower() == str(data.get("header", "")).lower()


class VerifySchema(Block):
    makes = Verify
    takes_keys_of = (Hmac,)
    aliases: ClassVar[Mapping[str, str]] = {
        "secret": "secrets",
        "type": "scheme",
        "token": "secrets",
        "tokens": "secrets",
    }
    timestamp = Nested(
        TimestampSchema, metadata=about("The header with the time of signing.", "{header: X-Acme-Timestamp, unit: ms}")
    )
    id = Nested(IdSchema, metadata=about("The header with the delivery's id.", "{header: X-Acme-Delivery}"))

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        scheme = data.get("scheme")
        if scheme is None:
            return
        for key, schemes in ONLY_FOR.items():
            if key in given and scheme not in schemes:
                yield (key,), f"belongs to scheme {' or '.join(schemes)}, not to {scheme}"
        if scheme == "hmac":
            yield from self._hmac(data, given)
        if scheme == "none":
            if given.get("secrets"):
                yield ("secrets",), "scheme none checks no secrets; remove them, or name the scheme they are for"
        elif not given.get("secrets"):
            yield ("secrets",), f"scheme {scheme} needs at least one: write `secrets: [{{env: NAME}}]`"
        secrets = data.get("secrets", [])
        if isinstance(given.get("secrets"), list) and len(secrets) == len(given["secrets"]):
            rule = rule_for(scheme, data.get("key", "raw"))
            for index, secret in enumerate(secrets):
                yield from ((("secrets", index), fault) for fault in faults(secret, rule))

    def _hmac(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        if "header" not in given:
            yield ("header",), "is missing: scheme hmac needs the header of the signature"
        elif _same_header(data) and not (data.get("prefix") or given.get("prefix")):
            yield ("prefix",), "is missing: in one header with the time nothing else tells which text is the signature"
        signed = data.get("signed", "")
        for part in ("timestamp", "id"):
            if f"{{{part}}}" in signed and part not in given:
                yield ("signed",), f"names {{{part}}}; write `{part}: {{header: …}}` beside it"
        if signed and "timestamp" in given and "{timestamp}" not in signed:
            yield ("timestamp",), "is not part of `signed`, so that anybody could change it: name {timestamp} there"

    def build(self, data: dict[str, Any]) -> Verify:
        given: dict[str, Any] = {key: data[key] for key in ("scheme", "tolerance_s") if key in data}
        hmac = None
        if data["scheme"] == "hmac":
            names = ("header", "algorithm", "encoding", "prefix", "key", "signed")
            prefix, timestamp, id_ = data.get("prefix", ""), data.get("timestamp", {}), data.get("id", {})
            usual = {"header": "", **({"signed": "{timestamp}.{body}"} if timestamp else {})}
            hmac = Hmac(
                **{**usual, **{name: data[name] for name in names if name in data}},
                timestamp_header=timestamp.get("header"),
                timestamp_unit=timestamp.get("unit", "s"),
                id_header=id_.get("header"),
                # without a prefix, nothing tells a signature from what is none
                split="" if not prefix else " " if "," in prefix else ",",
                timestamp_entry="t=" if _same_header(data) else None,
            )
        else:
            given |= {key: data[key] for key in ("header", "prefix") if key in data}
            if given.get("header", AUTHORIZATION).lower() != AUTHORIZATION:
                given.setdefault("prefix", "")  # `X-Token: …` is the token alone
        rule = functools.partial(text_fault, rule=rule_for(data["scheme"], data.get("key", "raw")))
        secrets = tuple(secret.checked(rule) for secret in data.get("secrets", ()))
        return Verify(**given, secrets=secrets, hmac=hmac)


# --- `examples:` of a source: a payload, and what is to become of it ---


class ExpectedSchema(Block):
    """One update that must come out."""

    makes = dict
    id = Constant(required=True, metadata=about("The record's id.", "C-1042"))
    id_property = FORMS["property"](metadata=about("The property that holds the id.", "acme_client_id"))
    object_type = Text(metadata=about("The object type.", "contacts"))
    properties = Entries(
        Constant(),
        pattern=PROPERTY_NAME,
        rule=PROPERTY_RULE,
        required=True,
        metadata=about("The properties, as HubSpot stores them.", "{company_name: Acme}"),
    )


class ExampleSchema(Block):
    """A sample that `check` maps, and what must come out."""

    makes = Example
    aliases: ClassVar[Mapping[str, str]] = {
        "expected": "expect",
        "body": "payload",
        "error": "invalid",
        "errors": "invalid",
    }
    payload = Free(
        metadata=about("The body; text stands for itself, anything else is sent as JSON.", "{id: C-1042, name: Acme}")
    )
    file = Text(
        metadata=about(
            "In place of `payload`: a file with the body, or one saved by `listen --save`.", "samples/created.json"
        )
    )
    headers = Entries(
        Constant(), metadata=about("Request headers that the mapping looks at.", "{X-Acme-Topic: client.updated}")
    )
    expect = Items(
        Nested(ExpectedSchema),
        metadata=about("The updates that must come out.", "[{id: C-1042, properties: {company_name: Acme}}]"),
    )
    ignored = Flag(validate=validate.Equal(True, error="is true or left out"), metadata=about("`when` must not match."))
    invalid = Entries(
        Constant(), metadata=about("Properties that must be found invalid, and why.", "{tier: is missing}")
    )

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del data
        if ("payload" in given) == ("file" in given):
            yield (), "needs `payload` or `file`, one of the two"
        if len({"expect", "ignored", "invalid"} & set(given)) != 1:
            yield (), "needs exactly one of `expect`, `ignored: true` and `invalid`"

    def build(self, data: dict[str, Any]) -> Example:
        if "file" in data:
            request = _request(data["file"])
        else:
            request = SavedRequest(_body(data.get("payload")).encode("utf-8", "surrogatepass"), {})
        expect = data.get("expect")
        return Example(
            payload=request.body.decode("utf-8", "surrogateescape"),
            headers={**request.headers, **data.get("headers", {})},
            query=request.parameters,
            expect=None if expect is None else tuple(expect),
            ignored=data.get("ignored", False),
            invalid=data.get("invalid"),
        )


def _body(payload: Any) -> str:
    """The raw body that a sample stands for, in the form that its source reads."""
    if isinstance(payload, str):
        return payload
    body = surroundings.get().body
    if body == "ndjson" and isinstance(payload, list):
        return "\n".join(_json(line) for line in payload)
    if body.startswith("form"):
        field = body.partition(":")[2]
        if field:
            return urlencode({field: _json(payload)})
        if isinstance(payload, Mapping):
            return urlencode({key: "" if value is None else str(value) for key, value in payload.items()})
    return _json(payload)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValidationError({"payload": ["holds a number that JSON cannot carry"]}) from error


def _request(name: str) -> SavedRequest:
    """What a file holds: a bare body, or a request as `listen --save` writes it."""
    path = surroundings.get().folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValidationError({"file": [f"{path} cannot be read: {reason(error)}"]}) from error
    return read_saved(content) or SavedRequest(content, {})


SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
SOURCE_RULE = "is not a source's name: lower-case letters, digits, `-` and `_`, at most 64"


# --- a source, and the file ---


class SourceSchema(MeaningSchema):
    makes = Source
    leaves_out = ()
    stand_ins: ClassVar[Mapping[str, Any]] = {**MeaningSchema.stand_ins, "verify": Verify("none")}
    reads: ClassVar[Mapping[str, Reader]] = {"occurred_at": functools.partial(Shorthand, schema_of(OccurredAt), "from")}
    aliases: ClassVar[Mapping[str, str]] = {
        **MeaningSchema.aliases,
        "secrets": "verify",
        "scheme": "verify",
        "filter": "when",
        "id": "event_id",
    }
    mappings = Items(
        Nested(MappingSchema),
        validate=validate.Length(min=1, error="must name at least one"),
        metadata=about("Several meanings, in place of a single one; every one that matches applies."),
    )
    examples = Items(Nested(ExampleSchema), metadata=about("Samples that `check` maps."))

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        if "mappings" in given:
            for key in sorted(set(self.shared()) & set(given)):
                yield (key,), "stands beside `mappings`; move it into an entry of the list"
        else:
            yield from self.meaning(data, given)
        if "payload_field" in given and data.get("body") != "form":
            yield ("payload_field",), "works only with `body: form`"

    def build(self, data: dict[str, Any]) -> Source:
        single = {key: data.pop(key) for key in self.shared() if key in data}
        several = data.pop("mappings", None)
        mappings = (
            [MappingBlock(**single)]
            if several is None
            else [replace(block, path=("mappings", index)) for index, block in enumerate(several)]
        )
        examples = tuple(data.pop("examples", ()))
        return Source(name="", mappings=tuple(mappings), examples=examples, **data)


class Patterns(OneOrMore):
    """File names or patterns."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, (str, list)):
            raise ValidationError(f"must be a file name, a pattern or a list of these, not {kind(value)}")
        return super()._deserialize(value, *args, **kwargs)


class FileSchema(Block):
    """Partner Bridge: partner webhooks in, HubSpot batch updates out."""

    makes = Settings
    may_lack = ("crm",)
    aliases: ClassVar[Mapping[str, str]] = {
        "hubspot": "crm",
        "source": "sources",
        "partners": "sources",
        "webhooks": "sources",
        "retries": "retry",
    }
    include = Patterns(metadata=about("Files with more sources, relative to this one.", "sources/*.yaml"))
    sources = Entries(
        Nested(SourceSchema),
        pattern=SOURCE_NAME,
        rule=SOURCE_RULE,
        metadata=about("The partner systems by name."),
    )

    def build(self, data: dict[str, Any]) -> dict[str, Any]:
        """The blocks by name: the sources are loaded one by one, so that each tells its own problems."""
        return data
