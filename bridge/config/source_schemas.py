"""One partner system: `sources.NAME`, and the schema of the whole file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from marshmallow import ValidationError, validate

from bridge.config.blocks import Block, Complaints, Entries, Items, Nested, OneOrMore
from bridge.config.example_schemas import ExampleSchema
from bridge.config.formats import Duration, Size, Zone
from bridge.config.mapping_schemas import Formats, MappingSchema, MeaningSchema, Shorthand
from bridge.config.scalars import Choice, Expression, Flag, Text, Whole, kind
from bridge.config.service_schemas import (
    CrmSchema,
    JournalSchema,
    RetrySchema,
    ServerSchema,
    about,
    between,
)
from bridge.config.verify_schemas import VerifySchema
from bridge.intake.quotas import MAX_REQUESTS
from bridge.settings import Challenge, MappingBlock, OccurredAt, Reply, RequestLimit, Settings, Source

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
