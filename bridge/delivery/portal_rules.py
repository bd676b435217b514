"""Values that the portal's own definitions rule out are refused before they are sent (`crm.validate: portal`).

Where HubSpot answers 400 without saying which input is bad, each bad value costs a search among a hundred records; the
definitions show it beforehand. They must refuse nothing that HubSpot accepts. So only definitions that were read within
the last minute refuse a value, and not twice by the same reading: a value that comes again was replayed by a person,
who may have corrected the portal. Where HubSpot's rule is not certain, HubSpot decides. Without the scope to read the
definitions, or with an empty answer or none, nothing is refused here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from bridge.crm.properties import ABSENT, Definition, NotTold, fold
from bridge.delivery.limiter import Limiter
from bridge.errors import CrmUnreachableError
from bridge.model import Clock, Outcome, PendingRecord, Reason, Refused, RetryLater, to_us

T = TypeVar("T")

#: Seconds after which the definitions are read again in any case.
REFRESH_S = 600.0
#: Seconds within which definitions may refuse a value, and between two readings for that.
CERTAIN_S = 60.0
#: Seconds between two readings for values that come again; meanwhile these wait.
AGAIN_S = 2.0
#: Seconds within which a call begins to ask the portal; after that HubSpot decides.
_LONGEST_ASKING_S = 4.0
_LOOK_S = 0.05
#: The end of messages that begin with HubSpot's wording.
_ORIGIN = "(by the portal's definition of {}; it was not sent)"
#: Characters of a value, and options, that a message names.
_SHOWN, _OPTIONS = 60, 8

#: A text that some reader may take for a number: digits, and what is written around them.
_MAY_BE_NUMBER = re.compile(r"\W*\d[\deE_\W]*[dDfF]?\W*|\W*(?:nan|inf|infinity)\W*|\s*", re.IGNORECASE)


class Portal(Protocol):
    """Where definitions come from. Both raise CrmUnreachableError."""

    def properties(self, object_type: str) -> Mapping[str, Definition] | NotTold:
        """All listed properties, by name."""
        ...

    def property(self, object_type: str, name: str) -> Definition | NotTold:
        """One property, listed or not: HubSpot does not list sensitive ones. `ABSENT`: there is none."""
        ...


@dataclass(slots=True)
class _Known:
    """What is known of one object type; times are monotonic. `reading` is held by who reads it."""

    definitions: dict[str, Definition | None] = field(default_factory=dict)
    read_at: float = float("-inf")
    try_from: float = float("-inf")
    failed_until: float = float("-inf")  # the portal did not answer: nothing is asked before
    unlisted: dict[str, float] = field(default_factory=dict)  # names without an answer, and until when
    refused: set[tuple[int, str, int]] = field(default_factory=set)  # by this reading: record, property, value's hash
    reading: threading.Lock = field(default_factory=threading.Lock)


class PortalRules:
    """Thread-safe: `_lock` guards the table of object types; each has a lock for its reading. A table of definitions is
    replaced as a whole, or grows.
    """

    def __init__(
        self,
        *,
        portal: Portal,
        limiter: Limiter,
        clock: Clock,
        may_call: Callable[[], bool] = lambda: True,
        note_reading: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`may_call` is asked just before each reading: whether this process still is the one that delivers.
        `note_reading` is called with its time, and may raise JournalError.
        """
        self._portal = portal
        self._may_call = may_call
        self._note_reading = note_reading
        self._limiter = limiter
        self._clock = clock
        self._pause = threading.Event()
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def rule_out(self, object_type: str, records: Sequence[PendingRecord]) -> tuple[list[PendingRecord], list[Outcome]]:
        """The records without the values that HubSpot cannot accept, and the outcomes of these: refused, or later again
        where this very reading refused them already. May take as long as a call; then nothing is asked for a while.
        """
        with self._lock:
            known = self._known.setdefault(object_type, _Known())
        until = self._clock.monotonic() + _LONGEST_ASKING_S
        self._read(known, object_type, until, older_than_s=REFRESH_S)
        if not known.definitions or not (wrong := self._wrong(known.definitions, records)):
            return list(records), []
        again = not known.refused.isdisjoint(_triples(wrong, records))
        self._read(known, object_type, until, older_than_s=AGAIN_S if again else CERTAIN_S, wait=True, again=again)
        if self._clock.monotonic() - known.read_at > CERTAIN_S:
            return list(records), []
        self._ask_for_unlisted(known, object_type, records, until)
        definitions = known.definitions
        wrong = self._wrong(definitions, [_restricted(one, definitions.keys()) for one in records])
        outcomes: list[Outcome] = []
        left = []
        for record in records:
            reasons = wrong.get(record.ref, {})
            refused = _triples(wrong, [record])
            if not known.refused.isdisjoint(refused):
                reason = next(iter(reasons.values()))
                outcomes.append(RetryLater(record, reason, AGAIN_S, own_failure=False))
                continue
            if reasons:
                known.refused |= refused
                outcomes.append(Refused(record, reasons))
            left.append(_restricted(record, record.values.keys() - reasons.keys()) if reasons else record)
        return [record for record in left if record.values], outcomes

    def _read(
        self,
        known: _Known,
        object_type: str,
        until: float,
        *,
        older_than_s: float,
        wait: bool = False,
        again: bool = False,
    ) -> None:
        """Read the definitions if they are older, at most once a minute unless `again`. `wait` for another thread that
        is reading them; where nothing is known yet, every caller waits.
        """
        if not self._is_due(known, older_than_s, again=again):
            return
        if not known.reading.acquire(blocking=wait or not known.definitions):
            return
        try:
            if self._is_due(known, older_than_s, again=again):
                found = self._asked(partial(self._portal.properties, object_type), until)
                now = self._clock.monotonic()
                known.try_from = now + (REFRESH_S if isinstance(found, NotTold) else CERTAIN_S)
                if found and not isinstance(found, NotTold):
                    known.definitions, known.read_at = dict(found), now
                    known.refused = set()
                else:
                    known.failed_until = known.try_from
        finally:
            known.reading.release()

    def _is_due(self, known: _Known, older_than_s: float, *, again: bool) -> bool:
        now = self._clock.monotonic()
        return now - known.read_at > older_than_s and now >= (known.failed_until if again else known.try_from)

    def _ask_for_unlisted(
        self, known: _Known, object_type: str, records: Sequence[PendingRecord], until: float
    ) -> None:
        definitions = known.definitions
        for name in sorted({name for record in records for name in record.values} - definitions.keys()):
            if self._clock.monotonic() < known.unlisted.get(name, float("-inf")):
                continue
            told = self._asked(partial(self._portal.property, object_type, name), until)
            if isinstance(told, Definition):
                definitions[name] = told
            elif told is ABSENT:
                definitions[name] = None
            else:
                known.unlisted[name] = self._clock.monotonic() + (CERTAIN_S if told is None else REFRESH_S)

    def _asked(self, ask: Callable[[], T], until: float) -> T | None:
        """The portal's answer, within the rate limit; None where it cannot be asked."""
        while True:
            now = self._clock.monotonic()
            if now > until or not self._may_call():
                return None
            if (grant := self._limiter.acquire(now)) is not None:
                self._note_reading(to_us(self._clock.now()))
                # A process can freeze in between: neither an old grant counts, nor one of another term.
                if self._may_call() and self._limiter.fresh(grant, self._clock.monotonic()):
                    break
                continue
            self._pause.wait(min(max(self._limiter.wait_s(now), 0.001), _LOOK_S))
        try:
            return ask()
        except CrmUnreachableError:
            return None

    @staticmethod
    def _wrong(
        definitions: Mapping[str, Definition | None], records: Sequence[PendingRecord]
    ) -> dict[int, dict[str, Reason]]:
        """By record, the properties that HubSpot cannot accept, and why."""
        wrong: dict[int, dict[str, Reason]] = {}
        for record in records:
            for name, value in record.values.items():
                if (complaint := complaint_about(name, definitions.get(name), value.value)) is not None:
                    wrong.setdefault(record.ref, {})[name] = Reason("VALIDATION_ERROR", complaint)
        return wrong


def complaint_about(name: str, definition: Definition | None, text: str) -> str | None:
    """Why the portal cannot take this text for this property; None where it may. `definition` None: it has none."""
    if definition is None:
        return f'Property "{name}" does not exist {_ORIGIN.format(name)}'
    if not definition.writable:
        return f'Property "{name}" is read-only {_ORIGIN.format(name)}'
    if text and definition.type == "number" and not _MAY_BE_NUMBER.fullmatch(text):
        return f"{_shown(text)} was not a valid number {_ORIGIN.format(name)}"
    if text and definition.type == "enumeration" and definition.options and not definition.external:
        for option in text.split(";") if definition.multiple else [text]:
            if option and fold(option) not in definition.folded:
                listed = _listed(definition)
                return f"{_shown(option)} was not one of the allowed options: [{listed}] {_ORIGIN.format(name)}"
    return None


def _triples(wrong: Mapping[int, Mapping[str, Reason]], records: Sequence[PendingRecord]) -> set[tuple[int, str, int]]:
    """The values that are wrong: record, property, the value's hash."""
    values = ((one.ref, name, one.values[name].value) for one in records for name in wrong.get(one.ref, ()))
    return {(ref, name, hash(text)) for ref, name, text in values}


def _listed(definition: Definition) -> str:
    options = list(definition.options)
    rest = f" and {len(options) - _OPTIONS} more" if len(options) > _OPTIONS else ""
    return ", ".join(option[:_SHOWN] for option in options[:_OPTIONS]) + rest


def _shown(text: str) -> str:
    """As HubSpot quotes values: raw, but short."""
    return text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")


def _restricted(record: PendingRecord, names: Collection[str]) -> PendingRecord:
    return replace(record, values={name: value for name, value in record.values.items() if name in names})
