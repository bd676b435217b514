"""Reads what HubSpot complains about: an entry of `errors[]`, or the body of a refused call.

Every field is optional in practice and may be of any type, so nothing here raises, whatever the JSON.
Errors of properties stand in three places that repeat each other incompletely: nested `errors[]`,
`context.propertyName`, and JSON text inside `message`. `sentences` says how a message is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bridge.crm import sentences
from bridge.model import PendingRecord, Reason

#: Characters of a message of HubSpot's that are kept for people.
MAX_MESSAGE = 500

#: Characters of a body that are shown where it holds no message.
MAX_SHOWN = 300

#: Codes that tell of a property's definition, not of a record's value.
DEFINITION_CODES = frozenset({"PROPERTY_DOESNT_EXIST", "READ_ONLY_VALUE"})

_CONSTANT = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class NamedProperty:
    """One property that a complaint names; `value` where it also tells the value."""

    name: str
    code: str
    value: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong, and with which inputs. Every part may be empty. `details`: the messages of single errors that name
    no property. `words`: what people are told, never empty where a fallback was given. `scopes`: what the token lacks.
    """

    category: str
    message: str
    named: tuple[NamedProperty, ...] = ()
    ids: frozenset[str] = frozenset()
    trace_ids: frozenset[str] = frozenset()
    details: tuple[str, ...] = ()
    words: str = ""
    scopes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.words:
            object.__setattr__(self, "words", self.message)

    @property
    def reason(self) -> Reason:
        return Reason(self.category or "UNKNOWN", self.words[:MAX_MESSAGE])

    @property
    def properties(self) -> frozenset[str]:
        return frozenset(named.name for named in self.named)

    @property
    def values(self) -> frozenset[tuple[str, str]]:
        return frozenset((named.name, named.value) for named in self.named if named.value is not None)

    @property
    def definitions(self) -> frozenset[str]:
        """The properties that nobody can write, it says."""
        return frozenset(named.name for named in self.named if named.code in DEFINITION_CODES)

    @property
    def duplicates(self) -> bool:
        return sentences.is_duplicates(self.message)

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for two complaints that say the same, but for numbers in an unstructured message."""
        codes = frozenset((named.name, named.code) for named in self.named)
        return (self.category, codes or sentences.gist(self.words[:MAX_MESSAGE]))

    def reason_for(self, name: str) -> Reason:
        """Why this property is refused, in HubSpot's words where it has some for it."""
        message = next((one.message for one in self.named if one.name == name and one.message), self.words)
        return Reason(self.category or "VALIDATION_ERROR", message[:MAX_MESSAGE])

    def blames_id_property(self, id_property: str) -> bool:
        """Whether this says that records cannot be addressed by this property: it is not unique, or does not exist. A
        complaint that names another property is about that one, whatever its words.
        """
        return id_property in self.definitions or (
            self.properties <= {id_property}
            and any(sentences.unfit(told) == id_property for told in (self.message, *self.details))
        )

    def about(self, record: PendingRecord, *, shared: bool = False) -> frozenset[str]:
        """The record's properties that this is about. `shared`: it is about other records too, so a property with
        which it names only other values does not count.
        """
        told: dict[str, set[str | None]] = {}
        for one in self.named:
            if one.name in record.values:
                told.setdefault(one.name, set()).add(None if one.code in DEFINITION_CODES else one.value)
        if not shared:
            return frozenset(told)
        return frozenset(name for name, values in told.items() if values & {None, record.values[name].value})


def read_complaint(body: Any, *, fallback: str = "") -> Complaint:
    """The complaint in an error body or an entry of `errors[]`, whatever it looks like. `fallback`: what people are
    told where HubSpot says nothing.
    """
    told = body if isinstance(body, dict) else {}
    message = text(told.get("message"))
    nested = told.get("errors")
    errors = [item for item in nested if isinstance(item, dict)] if isinstance(nested, list) else []
    named: dict[tuple[str, str | None], NamedProperty] = {}
    details: list[str] = []
    for item in (*errors, *sentences.listed(message)):
        found = list(_named(item))
        for one in found:
            named.setdefault((one.name, one.value), one)
        if not found:
            details.append(text(item.get("message")))
    for one in _named(told):
        if not any(known.name == one.name for known in named.values()):
            named[one.name, one.value] = one
    contexts = [item.get("context") for item in (told, *errors)]
    traces = [trace for context in contexts for trace in texts(_get(context, "objectWriteTraceId"))]
    scopes = dict.fromkeys(scope for context in contexts for scope in _scopes(context))
    return Complaint(
        category=_constant(told.get("category")) or _constant(told.get("errorType")),
        message=message,
        named=_without_vaguer(named.values()),
        ids=frozenset(id_ for context in contexts for key in ("ids", "id") for id_ in texts(_get(context, key))),
        # Several inputs' trace ids have been seen joined by commas.
        trace_ids=frozenset(part for joined in traces for part in joined.split(",")),
        details=tuple(details),
        words=_words(message, errors, scopes) or fallback,
        scopes=tuple(scopes),
    )


def _words(message: str, errors: Sequence[dict[str, Any]], scopes: Iterable[str]) -> str:
    """HubSpot's own words for people, with the scopes that only the contexts name [docs GUIDE]."""
    words = message or "; ".join(dict.fromkeys(filter(None, (text(item.get("message")) for item in errors))))
    missing = ", ".join(scope for scope in scopes if scope not in words)
    return " ".join(filter(None, (words, f"(required scopes: {missing})" if missing else "")))


def _scopes(context: Any) -> list[str]:
    return [scope for key in ("requiredGranularScopes", "requiredScopes") for scope in texts(_get(context, key))]


def shown(body: Any) -> str:
    """The beginning of a JSON value, for people."""
    return printable(orjson.dumps(body).decode()[:MAX_SHOWN])


def printable(words: str) -> str:
    return "".join(character if character.isprintable() else " " for character in words)


def text(value: Any) -> str:
    """The value if it is text, without NUL, which PostgreSQL takes nowhere, and without halves of surrogate pairs,
    which JSON within a message may hold and no database takes; else nothing.
    """
    return value.replace("\x00", "").encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _constant(value: Any) -> str:
    """The value if it looks like one of HubSpot's constants: what becomes a label must be bounded."""
    return value if isinstance(value, str) and _CONSTANT.fullmatch(value) else ""


def texts(value: Any) -> list[str]:
    """A list of texts or numbers, or a single one, as texts."""
    values = value if isinstance(value, list) else [value]
    found = [text(str(one)) for one in values if isinstance(one, (str, int)) and not isinstance(one, bool)]
    return [one for one in found if one]


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _named(item: dict[str, Any]) -> Iterator[NamedProperty]:
    message = text(item.get("message"))
    code = _constant(item.get("code")) or _constant(item.get("error"))
    value = item.get("propertyValue")
    told = text(value) if isinstance(value, str) else sentences.value(message)
    names = texts(_get(item.get("context"), "propertyName")) or texts(item.get("name"))
    for name in names:
        yield NamedProperty(name, code, told if len(names) == 1 else None, message)


def _without_vaguer(named: Collection[NamedProperty]) -> tuple[NamedProperty, ...]:
    """Without the entries that repeat a property and its code but leave out the value."""
    exact = {(one.name, one.code) for one in named if one.value is not None}
    return tuple(one for one in named if one.value is not None or (one.name, one.code) not in exact)
