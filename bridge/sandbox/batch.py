"""`batch/update` itself: whether the call stands as a whole, and what becomes of each input.

Order of judgement: shape, number, id property, duplicates, values, existence. Everything up to
the values refuses the whole call; refused values do so too unless every input carries a trace id of its own.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from bridge.model import Clock
from bridge.sandbox import answers, faults
from bridge.sandbox.answers import Naming, Response, validation_error
from bridge.sandbox.faults import Fault, FaultPlan
from bridge.sandbox.properties import MAX_TEXT, Flaw, Properties, PropertyDefinition, check, merged, missing
from bridge.sandbox.records import Address, Call, Input, Ledger, Record, Records, ViolationKind

# --- what the body of a batch update asks, and what of the contract its shape breaks ---

MAX_INPUTS = 100  #: [docs GUIDE]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A body: the inputs that could be read, why the call is refused if it is, and what it broke."""

    inputs: tuple[Input, ...] = ()
    refusal: Response | None = None
    breaches: tuple[tuple[ViolationKind, str], ...] = ()


def parse(body: bytes) -> Parsed:
    """Read the body of a batch update. Values must be strings; all else is refused [spec PC-v3].

    A body without inputs is a success that changes nothing [issue/forum HubSpot/hubspot-api-nodejs#26].
    """
    try:
        parsed = orjson.loads(body)
        listed = parsed.get("inputs", []) if isinstance(parsed, dict) else None
    except orjson.JSONDecodeError as error:
        return _malformed(error.lineno, error.colno, error.msg)
    if not isinstance(listed, list):
        return _malformed(1, 1, "inputs: not a list")
    if not listed:
        return Parsed(breaches=((ViolationKind.EMPTY, ""),))
    inputs: list[Input] = []
    breaches: list[tuple[ViolationKind, str]] = []
    for place, item in enumerate(listed):
        fault = _shape(item)
        if fault is None:
            traced = item.get("objectWriteTraceId") or ""
            inputs.append(Input(item["id"], item.get("idProperty") or "", traced, item["properties"]))
        else:
            breaches.append((fault[0], f"inputs[{place}]: {fault[1]}"))
    refusal = _malformed(1, 1, breaches[0][1]).refusal if breaches else None
    if len(listed) > MAX_INPUTS:
        breaches.append((ViolationKind.TOO_MANY, str(len(listed))))
    return Parsed(tuple(inputs), refusal, tuple(breaches))


def _malformed(line: int, column: int, message: str) -> Parsed:
    refusal = validation_error(f"Invalid input JSON on line {line}, column {column}: {message}")
    return Parsed((), refusal, ((ViolationKind.MALFORMED, message),))


def _shape(item: Any) -> tuple[ViolationKind, str] | None:
    if not isinstance(item, dict) or not isinstance(item.get("properties"), dict):
        return ViolationKind.MALFORMED, "Some required fields were not set: [properties]"
    if not item.get("id"):
        return ViolationKind.MISSING_ID, "Some required fields were not set: [id]"
    for name in ("id", "idProperty", "objectWriteTraceId"):
        if not isinstance(item.get(name, ""), str):
            return ViolationKind.NOT_A_STRING, f"{name} is not a string"
    for name, value in item["properties"].items():
        if type(value) is not str:
            return ViolationKind.NOT_A_STRING, f"properties.{name} is not a string"
    return None


PORTAL_ID = 1
#: Object type ids as HubSpot's messages name them; partner_clients' own is not published.
TYPE_IDS = {"contacts": "0-1", "companies": "0-2", "deals": "0-3", "tickets": "0-5"}
NOTHING: AbstractSet[int] = frozenset()


@dataclass(slots=True)
class Behaviour:
    """Where HubSpot's contract is silent or open, both ways can be played; may be changed at any time.

    `multi_status`: refused values are told per input (207) when every input has a trace id of its own;
    False: the whole call is refused even so (open question 1 of the reference). `echo_trace_ids`,
    `echo_id_property`: what a result repeats beside the changed properties [spec: optional fields].
    `naming`: how a refusal names its properties. `duplicates`: which ids the duplicate message lists.
    `latency_s`: before an update takes effect and is answered. `retry_after`: on 429s of the rate limit
    (not documented there, [docs LIMITS]).
    """

    multi_status: bool = True
    echo_trace_ids: bool = False
    echo_id_property: bool = False
    naming: Naming = "both"
    duplicates: Literal["sent", "record"] = "sent"
    latency_s: float = 0.0
    retry_after: str | None = None


@dataclass(slots=True)
class _Judged:
    """What is to become of the inputs of one call; `flawed` and `accepted` go by place."""

    unknown: list[Input] = field(default_factory=list)
    flawed: dict[int, list[Flaw]] = field(default_factory=dict)
    accepted: list[int] = field(default_factory=list)


class BatchUpdate:
    """Judges and applies calls, each as one step under `records.lock`. Thread-safe by that lock."""

    def __init__(
        self,
        *,
        records: Records,
        properties: Properties,
        ledger: Ledger,
        behaviour: Behaviour,
        clock: Clock,
        seed: int = 0,
    ) -> None:
        self._records = records
        self._properties = properties
        self._ledger = ledger
        self._behaviour = behaviour
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 (repeatable, not secret)

    def run(
        self,
        call: Call,
        *,
        dropped: AbstractSet[int] = NOTHING,
        hidden: AbstractSet[int] = NOTHING,
        unknown: AbstractSet[int] = NOTHING,
    ) -> Response:
        """Apply a call and answer it. By place: inputs `dropped` are not written and not answered, those
        `hidden` are written but not answered, those `unknown` are answered OBJECT_NOT_FOUND.
        """
        inputs = call.inputs
        addresses = [Address(call.object_type, item.id_property, item.id) for item in inputs]
        with self._records.lock:
            refusal = self._refuse_whole(call, addresses)
            if refusal is not None:
                return refusal
            judged = self._judge(inputs, addresses, dropped, unknown)
            traces = {item.trace_id for item in inputs}
            told_apart = self._behaviour.multi_status and len(traces) == len(inputs) and "" not in traces
            if judged.flawed and not told_apart:
                flaws = [flaw for found in judged.flawed.values() for flaw in found]
                return answers.flawed_call(flaws, self._behaviour.naming)
            now = answers.iso(self._clock.now())
            written = {place: self._write(call, inputs[place], addresses[place], now) for place in judged.accepted}
            results = [result for place, result in written.items() if place not in hidden]
            self._random.shuffle(results)  # results[] is not in input order [issue/forum LIVE1]
        errors = [
            answers.flawed_input(inputs[place].trace_id, flaws, self._behaviour.naming)
            for place, flaws in judged.flawed.items()
        ]
        if judged.unknown:
            ids = [item.id for item in judged.unknown]
            sent_traces = [item.trace_id for item in judged.unknown if item.trace_id]
            errors.append(answers.not_found(call.object_type, ids, sent_traces))
        return answers.batch(results, errors, started=call.started_at, completed=self._clock.now())

    def _refuse_whole(self, call: Call, addresses: list[Address]) -> Response | None:
        if len(addresses) > MAX_INPUTS:
            return answers.validation_error(
                f"The maximum number of inputs supported in a batch request is {MAX_INPUTS}"
            )
        for name in dict.fromkeys(address.id_property for address in addresses if address.id_property):
            if not self._properties.identifies(call.object_type, name):
                type_id = TYPE_IDS.get(call.object_type, call.object_type)
                return answers.validation_error(
                    f"Unable to perform update/upsert by non-unique {type_id} property {name} in portal ID {PORTAL_ID}"
                )
        identities = [self._records.identity(address) for address in addresses]
        if len(set(identities)) == len(identities):
            return None
        twice = [
            self._listed_id(address)
            for address, identity in zip(addresses, identities, strict=True)
            if identities.count(identity) > 1
        ]
        ids = list(dict.fromkeys(twice))
        message = f"Duplicate IDs found in batch input: [{', '.join(ids)}]. IDs must be unique"
        return answers.validation_error(message, context={"ids": ids})

    def _listed_id(self, address: Address) -> str:
        record = self._records.find(address) if self._behaviour.duplicates == "record" else None
        return address.id if record is None else record.id

    def _judge(
        self,
        inputs: tuple[Input, ...],
        addresses: list[Address],
        dropped: AbstractSet[int],
        unknown: AbstractSet[int],
    ) -> _Judged:
        judged = _Judged()
        table = self._properties.table(addresses[0].object_type) if addresses else {}
        for place, (item, address) in enumerate(zip(inputs, addresses, strict=True)):
            if place in dropped or self._records.is_silent(address):
                continue
            record = self._records.find(address)
            exists = self._records.may_exist(address) if record is None else not record.archived
            flaws = self._flaws(item, address, record, table)
            if not exists or place in unknown:
                judged.unknown.append(item)
            elif flaws:
                judged.flawed[place] = flaws
            else:
                judged.accepted.append(place)
        return judged

    def _flaws(
        self, item: Input, address: Address, record: Record | None, table: dict[str, PropertyDefinition]
    ) -> list[Flaw]:
        flaws: list[Flaw] = []
        for name, value in item.properties.items():
            definition = table.get(name)
            flaw: Flaw | None = None
            if definition is not None:
                flaw = check(definition, value)
                if flaw is None and definition.unique and value:
                    flaw = self._conflict(address, record, name, value)
            elif not self._properties.open_properties:
                flaw = missing(name, value)
            elif len(value) > MAX_TEXT:
                flaw = check(PropertyDefinition(name), value)
            if flaw is not None:
                flaws.append(flaw)
        return flaws

    def _conflict(self, address: Address, record: Record | None, name: str, value: str) -> Flaw | None:
        holder = self._records.holder(address.object_type, name, value)
        if holder is None or holder is record:
            return None
        return Flaw(name, "CONFLICTING_UNIQUE_VALUE", f"{holder.id} already has that value.", value)

    def _write(self, call: Call, item: Input, address: Address, now: str) -> dict[str, Any]:
        record = self._records.ensure(address, now)
        table = self._properties.table(address.object_type)
        values: dict[str, str] = {}
        for name, value in item.properties.items():
            definition = table.get(name)
            if definition is not None and definition.unique:
                self._records.reindex(record, name, value)
            values[name] = merged(definition, record.properties.get(name, ""), value)
        self._records.write(address, record, values, now)
        self._ledger.apply(call, address, record.id, values)
        shown = {**values, "hs_object_id": record.id, "lastmodifieddate": now}
        if self._behaviour.echo_id_property and address.id_property:
            known = record.all_properties()
            shown[address.id_property] = known.get(address.id_property, "")
        result: dict[str, Any] = {
            "id": record.id,
            "properties": shown,
            "createdAt": record.created_at,
            "updatedAt": now,
            "archived": False,
            "url": f"https://app.hubspot.com/contacts/{PORTAL_ID}/record/{address.object_type}/{record.id}",
        }
        if self._behaviour.echo_trace_ids and item.trace_id:
            result["objectWriteTraceId"] = item.trace_id
        return result


# --- update calls as they happen: after the latency, with whatever fault befalls them ---

#: When an apply-late takes effect if the fault does not say, in seconds after arrival.
APPLY_AFTER_S = 2.0


class Player:
    """Plays update calls. Thread-safe: `_lock` guards `_late`, `_closing` ends latencies early."""

    def __init__(self, *, update: BatchUpdate, faults: FaultPlan, behaviour: Behaviour) -> None:
        self._update = update
        self._faults = faults
        self._behaviour = behaviour
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._late: set[threading.Timer] = set()

    def play(self, call: Call, parsed: Parsed, fault: Fault | None, *, scope: str) -> Response:
        """The answer to an update call. It takes effect after the latency, also when its client has left."""
        if self._behaviour.latency_s > 0:
            self._closing.wait(self._behaviour.latency_s)
        if fault is None:
            return parsed.refusal or self._update.run(call)
        if parsed.refusal is not None:
            return parsed.refusal if fault.applies else faults.answer(fault, None, scope=scope)
        match fault.kind:
            case "silent-drop":
                return self._update.run(call, dropped=self._chosen(call, fault))
            case "unknown":
                return self._update.run(call, unknown=self._chosen(call, fault))
            case "pending" | "processing" | "canceled":
                return self._unfinished(call, fault)
        served: Response | None = None
        if fault.kind == "apply-late" or fault.apply_after_s is not None:
            self._apply_late(call, fault)
        elif fault.applies:
            served = self._update.run(call)
        return faults.answer(fault, served, scope=scope)

    def settle(self, timeout_s: float) -> bool:
        """Wait until everything that is to be applied late has been; False when the time was not enough."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                waiting = next(iter(self._late), None)
            if waiting is None:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            waiting.join(left)

    def cancel(self) -> None:
        """Drop what was to be applied late."""
        with self._lock:
            for timer in self._late:
                timer.cancel()
            self._late.clear()

    def close(self) -> None:
        """As `cancel`, and end every latency."""
        self._closing.set()
        self.cancel()

    def reopen(self) -> None:
        """Undo `close`."""
        self._closing.clear()

    def _chosen(self, call: Call, fault: Fault) -> AbstractSet[int]:
        return self._faults.choose(fault, [item.id for item in call.inputs])

    def _unfinished(self, call: Call, fault: Fault) -> Response:
        rest = frozenset(range(fault.count, len(call.inputs)))
        written_now = fault.applies and fault.apply_after_s is None
        served = self._update.run(
            call, dropped=NOTHING if written_now else rest, hidden=rest if written_now else NOTHING
        )
        if fault.apply_after_s is not None:
            self._apply_late(call, fault)
        return faults.unfinished(fault, served)

    def _apply_late(self, call: Call, fault: Fault) -> None:
        def apply() -> None:
            try:
                self._update.run(call)
            finally:
                with self._lock:
                    self._late.discard(timer)

        delay_s = APPLY_AFTER_S if fault.apply_after_s is None else fault.apply_after_s
        timer = threading.Timer(delay_s, apply)
        timer.name = f"sandbox-apply-late-{call.seq}"
        timer.daemon = True
        with self._lock:
            self._late.add(timer)
        timer.start()
