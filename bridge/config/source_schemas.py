"""One partner system: `sources.NAME`, its `verify:` and `examples:`; and the schema of the whole file."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, get_args
from urllib.parse import urlencode

from marshmallow import ValidationError, validate

from bridge.config.blocks import Block, Complaints, Entries, Free, Items, Nested, OneOrMore
from bridge.config.mapping_schemas import (
    PROPERTY_NAME,
    PROPERTY_RULE,
    Formats,
    MappingSchema,
    MeaningSchema,
    Shorthand,
    property_name,
)
from bridge.config.scalars import (
    Affix,
    Choice,
    Constant,
    Duration,
    Expression,
    Flag,
    Size,
    Text,
    Whole,
    Zone,
    kind,
    reason,
    surroundings,
)
from bridge.config.service_schemas import (
    Credential,
    CrmSchema,
    JournalSchema,
    RetrySchema,
    ServerSchema,
    about,
    between,
    faults,
    rule_for,
    text_fault,
)
from bridge.http.limits import MAX_REQUESTS
from bridge.intake.schemes import PARTS
from bridge.settings import (
    Challenge,
    Example,
    Hmac,
    MappingBlock,
    OccurredAt,
    Reply,
    RequestLimit,
    Scheme,
    Settings,
    Source,
    Verify,
)
from bridge.tryout.payloads import SavedRequest, read_saved

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


class HeaderName(Text):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", text, re.ASCII):
            raise ValidationError(f"{text!r} is not a header's name")
        return text


class TimestampSchema(Block):
    """Where the sender's clock stands."""

    makes = dict
    header = HeaderName(required=True, metadata=about("The header that holds the time of signing."))
    unit = Choice("s", "ms", "iso", metadata=about("Seconds, milliseconds or ISO 8601."))


class IdSchema(Block):
    """Where the delivery's id stands."""

    makes = dict
    header = HeaderName(required=True, metadata=about("The header that holds the delivery's id."))


class Template(Text):
    """What is signed, such as {timestamp}.{body}."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        unknown = [part for part in re.findall(r"\{([^{}]*)\}", text) if part not in PARTS]
        if unknown or re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", text)):
            raise ValidationError(f"knows {', '.join('{' + part + '}' for part in PARTS)} and plain text, nothing else")
        if "{body}" not in text:
            raise ValidationError("must contain {body}, or anybody could change it")
        return text


class VerifySchema(Block):
    """How it is known that a request comes from the partner."""

    makes = Verify
    more_defaults = (Hmac,)
    aliases: ClassVar[Mapping[str, str]] = {
        "secret": "secrets",
        "type": "scheme",
        "token": "secrets",
        "tokens": "secrets",
    }
    scheme = Choice(*get_args(Scheme), required=True, metadata=about("The partner's way of signing."))
    secrets = Items(Credential(), metadata=about("Any of them may match, so that a rotation loses nothing."))
    tolerance_s = Duration(data_key="tolerance", metadata=about("How far the sender's clock may be off, both ways."))
    header = HeaderName(metadata=about("The header of the signature or token."))
    prefix = Affix(metadata=about("What stands before the signature or token."))
    algorithm = Choice("sha1", "sha256", "sha384", "sha512", metadata=about("The hash of scheme hmac."))
    encoding = Choice("hex", "base64", metadata=about("How the signature is written."))
    key = Choice("raw", "base64", "hex", metadata=about("How the secret is written."))
    signed = Template(metadata=about("What is signed, such as {timestamp}.{body}."))
    timestamp = Nested(TimestampSchema, metadata=about("The header with the time of signing."))
    id = Nested(IdSchema, metadata=about("The header with the delivery's id."))

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
            within = timestamp and timestamp.get("header", "").lower() == data.get("header", "").lower()
            usual = {"header": "", **({"signed": "{timestamp}.{body}"} if timestamp else {})}
            hmac = Hmac(
                **{**usual, **{name: data[name] for name in names if name in data}},
                timestamp_header=timestamp.get("header"),
                timestamp_unit=timestamp.get("unit", "s"),
                id_header=id_.get("header"),
                # without a prefix, nothing tells a signature from what is none
                split="" if not prefix else " " if "," in prefix else ",",
                timestamp_entry="t=" if within else None,
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
    id = Constant(required=True, metadata=about("The record's id."))
    id_property = property_name(metadata=about("The property that holds the id."))
    object_type = Text(metadata=about("The object type."))
    properties = Entries(
        Constant(),
        pattern=PROPERTY_NAME,
        rule=PROPERTY_RULE,
        required=True,
        metadata=about("The properties, as HubSpot stores them."),
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
    payload = Free(metadata=about("The body; text stands for itself, anything else is sent as JSON."))
    file = Text(metadata=about("In place of `payload`: a file with the body, or one saved by `listen --save`."))
    headers = Entries(Constant(), metadata=about("Request headers that the mapping looks at."))
    expect = Items(Nested(ExpectedSchema), metadata=about("The updates that must come out."))
    ignored = Flag(validate=validate.Equal(True, error="is true or left out"), metadata=about("`when` must not match."))
    invalid = Entries(Constant(), metadata=about("Properties that must be found invalid, and why."))

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


class ReplySchema(Block):
    """How accepted webhooks are answered."""

    makes = Reply
    status = Whole(validate=between(200, 299), metadata=about("The status of the answer."))
    body = Choice("counts", "none", metadata=about("What the answer says."))


class RequestLimitSchema(Block):
    """How many requests this source may send."""

    makes = RequestLimit
    requests = Whole(required=True, validate=between(1, MAX_REQUESTS), metadata=about("Requests in every `per`."))
    per_s = Duration(data_key="per", required=True, metadata=about("The window's length."))


class ChallengeSchema(Block):
    """How the sender's handshake is answered."""

    makes = Challenge
    reply = Expression(required=True, metadata=about("JMESPath to the answer, such as _query.challenge."))
    method = Choice("GET", "POST", metadata=about("The handshake's method."))
    when = Expression(metadata=about("JMESPath; which requests are handshakes."))
    as_ = Choice("text", "json", data_key="as", metadata=about("The answer's form."))
    signed = Flag(metadata=about("Whether a handshake must be signed."))


class OccurredAtSchema(Block):
    """Where an event's time is, and how it is written."""

    makes = OccurredAt
    source = Expression(data_key="from", required=True, metadata=about("JMESPath to the time."))
    format = Formats(metadata=about("How it is written, as for a property of type datetime."))
    timezone = Zone(metadata=about("The zone of times that name none."))


class SourceSchema(MeaningSchema):
    """A partner system: POST /webhooks/NAME."""

    makes = Source
    more_defaults = (MappingBlock,)
    aliases: ClassVar[Mapping[str, str]] = {
        **MeaningSchema.aliases,
        "secrets": "verify",
        "scheme": "verify",
        "filter": "when",
        "id": "event_id",
    }
    verify = Nested(
        VerifySchema, required=True, metadata=about("How it is known that a request comes from the partner.")
    )
    events = Expression(metadata=about("JMESPath to one event or a list of events."))
    when = Expression(metadata=about("JMESPath; events for which it does not hold are ignored."))
    event_id = Expression(metadata=about("JMESPath to the event's id; a second delivery changes nothing."))
    occurred_at = Shorthand(
        OccurredAtSchema,
        "from",
        metadata=about("JMESPath to the event's time; an older event never overwrites a newer value."),
    )
    timezone = Zone(metadata=about("The zone of dates and times that name none."))
    body = Choice("json", "ndjson", "form", metadata=about("The form of the request's body."))
    payload_field = Text(metadata=about("With `body: form`: the field that holds JSON."))
    max_body = Size(metadata=about("The largest body, in place of server.max_body."))
    limit = Nested(RequestLimitSchema, metadata=about("More than this is answered 429."))
    challenge = Nested(ChallengeSchema, metadata=about("How the sender's handshake is answered."))
    expect_every_s = Duration(data_key="expect_every", metadata=about("No event for longer makes the source silent."))
    reply = Nested(ReplySchema, metadata=about("How accepted webhooks are answered."))
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
    aliases: ClassVar[Mapping[str, str]] = {
        "hubspot": "crm",
        "source": "sources",
        "partners": "sources",
        "webhooks": "sources",
        "retries": "retry",
    }
    crm = Nested(CrmSchema, metadata=about("The CRM and how it is called."))
    journal = Nested(JournalSchema, metadata=about("Where accepted events are kept."))
    retry = Nested(RetrySchema, metadata=about("How long to wait after failures."))
    server = Nested(ServerSchema, metadata=about("Where and how the service listens."))
    include = Patterns(metadata=about("Files with more sources, relative to this one."))
    sources = Entries(
        Nested(SourceSchema),
        pattern=SOURCE_NAME,
        rule=SOURCE_RULE,
        metadata=about("The partner systems by name."),
    )

    def build(self, data: dict[str, Any]) -> dict[str, Any]:
        """The blocks by name: the sources are loaded one by one, so that each tells its own problems."""
        return data
