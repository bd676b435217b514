"""What pages read and write: forms, links, numbers, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlencode

from flask import request
from markupsafe import Markup
from marshmallow import Schema, ValidationError

from bridge.errors import PayloadError
from bridge.http.bodies import read_body
from bridge.http.problems import Refusal
from bridge.intake.payload import parse_json, to_json
from bridge.journal.retry_log import Filter
from bridge.operations import access, queries
from bridge.settings import MappingBlock, Property, Source
from bridge.showing import MICROSECONDS, iso, microseconds_of, printable, printable_json, what_to_do

# --- what the console's forms and links ask: bodies, filters, and the links that ask the same again ---

#: The longest form: a payload to try, percent-encoded.
MAX_FORM = 4_000_000
#: Most fields of a form: a page of selected entries and its filter.
MAX_FIELDS = 500

#: What people do not type: the blanks at its ends are its own.
EXACT = "message"
#: The field in which a page hands on what was asked, as a query: a text with controls in it would not come back from a
#: field of its own, and does not belong into a page.
ASKED = "asked"

Fields = dict[str, list[str]]


def own_form() -> Fields:
    """The fields of a form that one of our pages sent. Raises Refusal for any other."""
    if request.mimetype != "application/x-www-form-urlencoded":
        raise Refusal(415, "Send the form as application/x-www-form-urlencoded.")
    try:
        fields = _read(read_body(request.environ, MAX_FORM).decode())
        asked = _read(first(fields, ASKED))
    except ValueError as error:
        raise Refusal(400, "The form cannot be read.") from error
    for name, values in asked.items():
        fields[name] = [*values, *fields.get(name, ())]
    if not access.is_own_form(request, first(fields, "form_token")):
        raise Refusal(403, "This form is out of date, or came from another site. Go back, reload the page, try again.")
    return fields


def _read(text: str) -> Fields:
    return parse_qs(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)


def first(fields: Fields, name: str) -> str:
    """The first value of a field; "" without one."""
    return fields.get(name, [""])[0]


def read_filter(schema: Schema, fields: Fields) -> tuple[Filter, dict[str, Any]]:
    """The filter that fields mean, and what else they ask; empty ones do not narrow. Raises Refusal."""
    known = {
        name: [value if name == EXACT else value.strip() for value in fields[name] if value.strip()]
        for name in schema.fields
        if name in fields
    }
    try:
        chosen, options = schema.load(queries.of_arguments({name: values for name, values in known.items() if values}))
    except ValidationError as error:
        told = "; ".join(f"{name}: {texts}" for name, texts in error.messages_dict.items())
        raise Refusal(422, f"The filter is not understood: {told}") from error
    return chosen, options


def pairs_of(chosen: Filter) -> list[tuple[str, str]]:
    """A filter as the fields that mean it."""
    return [
        (name, text)
        for name, value in queries.as_query(chosen).items()
        for text in (value if isinstance(value, list) else [str(value)])
    ]


def link_of(path: str, chosen: Filter, **more: object) -> str:
    """A link that asks for this filter."""
    query = urlencode([*pairs_of(chosen), *((name, str(value)) for name, value in more.items())])
    return f"{path}?{query}" if query else path


#: What a page shows of a payload.
PAYLOAD = 20_000
#: What steers nothing and is seen by what it does; the blank is that of `number`.
KEPT = "\n\r\t\N{NARROW NO-BREAK SPACE}"


def visible(value: Any) -> Any:
    """What a page writes, wherever it stands: other texts than ours with all escaped that cannot be seen."""
    if isinstance(value, Markup):
        return Markup(printable(value, keep=KEPT))  # noqa: S704 (what is escaped adds no markup)
    return printable(str(value), keep=KEPT)


def number(value: float) -> str:
    """1234567 → 1 234 567, with a narrow space that does not break."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def span(seconds: float | None) -> str:
    """A length of time in the largest unit that says enough."""
    if seconds is None:
        return "–"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def ago(moment: str | None) -> str:
    """An ISO time as its distance from now."""
    if moment is None:
        return "never"
    try:
        seconds = time.time() - microseconds_of(datetime.fromisoformat(moment)) / MICROSECONDS
    except ValueError:  # beyond the calendar
        return short(moment)
    if abs(seconds) < 1:
        return "just now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def short(moment: str | None) -> str:
    """A time of `iso` as people read it."""
    return "–" if moment is None else moment.partition(".")[0].replace("T", " ")


def size(count: float) -> str:
    """A number of bytes in the unit that fits it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def document(value: Any) -> str:
    """A JSON document, indented; a text is one already."""
    if not isinstance(value, str):
        return printable_json(value, indented=True)
    try:
        text = to_json(parse_json(value.encode()), indented=True)
    except PayloadError:
        text = value
    return text if len(text) <= PAYLOAD else f"{text[:PAYLOAD]}\n… {len(text) - PAYLOAD} more characters"


#: Filters of the templates.
FILTERS: dict[str, Callable[..., str | None]] = {
    "number": number,
    "span": span,
    "ago": ago,
    "short": short,
    "size": size,
    "document": document,
    "iso": iso,
    "what_to_do": what_to_do,
}


# --- mappings -----------------------------------------------------------------------------------


def facts(source: Source) -> Iterator[tuple[str, str]]:
    """What holds for all events of a source."""
    yield "events", source.events
    if source.when is not None:
        yield "when", source.when
    if source.event_id is not None:
        yield "event id", source.event_id
    if (time := source.occurred_at) is not None:
        yield (
            "occurred at",
            "; ".join(
                filter(
                    None,
                    (
                        time.source,
                        f"format {', '.join(time.format)}" if time.format else "",
                        f"timezone {time.timezone}" if time.timezone else "",
                    ),
                )
            ),
        )


def blocks(source: Source) -> Iterator[dict[str, Any]]:
    """The mapping of a source, block by block, as tables."""
    for block in source.mappings:
        facts = [
            ("object type", block.object_type),
            ("record id", block.record.id),
            ("found by", _address(block)),
            ("unknown record", block.record.on_unknown),
            ("invalid values", block.on_invalid),
        ]
        if block.when is not None:
            facts.append(("only when", block.when))
        if block.schema is not None:
            facts.append(("schema", block.schema))
        yield {"facts": facts, "rows": list(_rows(block))}


def _address(block: MappingBlock) -> str:
    if not block.record.id_property:
        return "HubSpot's record id"
    return f"{block.record.id_property}, in any letter case" if block.record.caseless else block.record.id_property


def looked_for(source: Source) -> dict[str, frozenset[str]]:
    """The mapped properties that an event may lack, all but constants, and what the same blocks map."""
    found: dict[str, frozenset[str]] = {}
    for block in source.mappings:
        pairs = [] if block.pairs is None else [name for name, _ in block.pairs.properties.values()]
        every = frozenset([*block.properties, *pairs])
        for name in (*(name for name, how in block.properties.items() if how.constant is None), *pairs):
            found[name] = found.get(name, frozenset()) | every
    return found


def _rows(block: MappingBlock) -> Iterator[tuple[str, str, str, str]]:
    for name, how in block.properties.items():
        yield name, how.type, _from(how), _details(how)
    if block.pairs is not None:
        for theirs, (name, how) in block.pairs.properties.items():
            yield name, how.type, f"{block.pairs.items}: {theirs}", _details(how)


def _from(how: Property) -> str:
    return how.source if how.source is not None else f"constant {how.constant!r}"


def _details(how: Property) -> str:
    told = [
        f"scale {how.scale}" if how.scale else "",
        f"decimal {how.decimal}" if how.decimal != "." else "",
        f"thousands {how.thousands}" if how.thousands else "",
        f"format {', '.join(how.format)}" if how.format else "",
        f"timezone {how.timezone}" if how.timezone else "",
        "several" if how.multiple else "",
        "required" if how.required else "",
        "null clears" if how.on_null == "clear" else "",
        ", ".join(f"{theirs} → {ours}" for theirs, ours in how.values.items()) if how.values else "",
    ]
    return "; ".join(filter(None, told))
