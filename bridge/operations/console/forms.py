"""What the console's forms and links ask: bodies, filters, and the links that ask the same again."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlencode

from flask import request
from marshmallow import Schema, ValidationError

from bridge.intake.bodies import read_body
from bridge.intake.problems import Refusal
from bridge.journal.retry_log import Filter
from bridge.operations import queries, sessions

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
    if not sessions.is_own_form(request, first(fields, "form_token")):
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
