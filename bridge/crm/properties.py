"""The portal's property definitions: one call reads those of an object type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from bridge.crm import sentences
from bridge.crm.complaints import read_complaint
from bridge.crm.hubspot import HubSpot
from bridge.crm.transport import Answer, NoAnswer, NoAnswerKind
from bridge.errors import CrmUnreachableError

#: Types that HubSpot keeps to itself [docs PROPS].
INTERNAL_TYPES = frozenset({"json", "object_coordinates"})

#: Characters of the portal's own words that a sentence of ours repeats.
MAX_WORDS = 200

_NO_ANSWER: Mapping[NoAnswerKind, str] = {
    "connect": "cannot be reached: no connection came up; check `base_url` and the network",
    "tls": "cannot be reached: its certificate is not trusted; check `base_url` and `ca_file`",
    "timeout": "did not answer within `timeout`; try again later",
    "reset": "broke the connection off; try again later",
    "truncated": "broke its answer off; try again later",
    "oversize": "sent more than any list of properties has; check `base_url`",
}

_REFUSED: Mapping[int, str] = {
    401: "refused the token (HTTP 401); give it one that is valid now",
    404: "knows no such path (HTTP 404); check `base_url`, `properties_path` and the object type",
    429: "takes no more calls just now (HTTP 429); try again later",
}


def fold(text: str) -> str:
    """A text as it is compared where neither letter case nor the blanks around it count."""
    return text.strip().casefold()


@dataclass(frozen=True, slots=True)
class Definition:
    """One property as the portal describes it [spec PROP-v3].

    `options`: internal value → label. `external`: its options stand elsewhere, as the owners do.
    """

    name: str
    type: str
    field_type: str = ""
    label: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    external: bool = False
    unique: bool = False
    read_only: bool = False
    calculated: bool = False
    archived: bool = False
    custom: bool = False
    #: The values and labels of its options, as `fold` gives them.
    folded: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        said = {fold(text) for option in self.options.items() for text in option}
        object.__setattr__(self, "folded", frozenset(said))

    @property
    def multiple(self) -> bool:
        """Whether it takes several options at once."""
        return self.type == "enumeration" and self.field_type == "checkbox"

    @property
    def writable(self) -> bool:
        # Of custom properties `calculated` has no effect [spec PROP-v3].
        calculated = self.calculated and not self.custom
        return not (self.read_only or calculated or self.archived or self.type in INTERNAL_TYPES)


@dataclass(frozen=True, slots=True)
class NotTold:
    """The portal answered without definitions: the token lacks one of `scopes`, or there is no such object type or
    property. `words` are the portal's own.
    """

    reason: Literal["forbidden", "object_type", "property"]
    words: str = ""
    scopes: tuple[str, ...] = ()


#: There is no such property.
ABSENT = NotTold("property")


class Portal:
    """The properties of a portal, by object type. As thread-safe as its client."""

    def __init__(self, *, crm: HubSpot, path: str, name: str) -> None:
        """`path`: of the Properties API; `name`: how errors call the portal."""
        self._crm = crm
        self._path = path.rstrip("/")
        self._name = name

    def properties(self, object_type: str) -> dict[str, Definition] | NotTold:
        """All properties of an object type by name. Raises CrmUnreachableError with one clear sentence."""
        answer = self._get(quote(object_type, safe=""))
        if answer.status == 403:
            return _forbidden(answer)
        if answer.status == 400 and sentences.unknown_type(_words(answer)) == object_type:
            return NotTold("object_type", _words(answer))
        if answer.status != 200:
            raise CrmUnreachableError(f"{self._name} {_refusal(answer)}")
        listed = _listed(answer.body)
        if not listed:
            message = f"{self._name} answered with something that is no list of properties; check `base_url`"
            raise CrmUnreachableError(message)
        return listed

    def property(self, object_type: str, name: str) -> Definition | NotTold:
        """One property by its name, which `properties` may not list (sensitive ones, say); `ABSENT`: there is none.
        Raises CrmUnreachableError.
        """
        path = f"{quote(object_type, safe='')}/{quote(name, safe='')}"
        for query in ("", "?dataSensitivity=sensitive", "?dataSensitivity=highly_sensitive"):
            answer = self._get(path + query)
            if answer.status == 200 and isinstance(answer.body, dict) and answer.body.get("name") == name:
                return _definition(answer.body)
            if answer.status != 404:
                return _forbidden(answer)
        return ABSENT

    def archived(self, object_type: str) -> frozenset[str]:
        """The names of the archived properties, which `properties` may leave out; none where the portal does not tell.
        Never raises.
        """
        answer = self._crm.get(f"{self._path}/{quote(object_type, safe='')}?archived=true")
        if isinstance(answer, NoAnswer) or answer.status != 200:
            return frozenset()
        return frozenset(name for name, definition in _listed(answer.body).items() if definition.archived)

    def _get(self, path: str) -> Answer:
        answer = self._crm.get(f"{self._path}/{path}")
        if isinstance(answer, NoAnswer):
            raise CrmUnreachableError(f"{self._name} {_NO_ANSWER.get(answer.kind, f'was not asked: {answer.detail}')}")
        return answer


def _refusal(answer: Answer) -> str:
    if answer.status in _REFUSED:
        return _REFUSED[answer.status]
    if 300 <= answer.status < 400:
        return f"redirects (HTTP {answer.status}), and the token goes nowhere else; check `base_url`"
    said = f", saying {_words(answer)!r}" if _words(answer) else ""
    return f"answered HTTP {answer.status}{said}; try again later, or check `base_url`"


def _words(answer: Answer) -> str:
    said = answer.body.get("message") if isinstance(answer.body, dict) else None
    return " ".join(said.split())[:MAX_WORDS] if isinstance(said, str) else ""


def _forbidden(answer: Answer) -> NotTold:
    return NotTold("forbidden", _words(answer), tuple(filter(_is_name, read_complaint(answer.body).scopes)))


def _listed(body: Any) -> dict[str, Definition]:
    results = body.get("results") if isinstance(body, dict) else None
    entries = results if isinstance(results, list) else []
    known = [_definition(entry) for entry in entries if isinstance(entry, dict) and _is_name(entry.get("name"))]
    return {definition.name: definition for definition in known}


def _definition(entry: dict[str, Any]) -> Definition:
    metadata = entry.get("modificationMetadata")
    return Definition(
        name=entry["name"],
        type=_text(entry.get("type")),
        field_type=_text(entry.get("fieldType")),
        label=_text(entry.get("label")),
        options=_options(entry.get("options")),
        external=entry.get("externalOptions") is True,
        unique=entry.get("hasUniqueValue") is True,
        read_only=isinstance(metadata, dict) and metadata.get("readOnlyValue") is True,
        calculated=entry.get("calculated") is True,
        archived=entry.get("archived") is True,
        custom=entry.get("hubspotDefined") is False,
    )


def _options(written: Any) -> dict[str, str]:
    options = [option for option in written if isinstance(option, dict)] if isinstance(written, list) else []
    return {_text(option.get("value")): _text(option.get("label")) for option in options if option.get("value")}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()
