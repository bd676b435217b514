"""A history of a whole run, and its checker, in the manner of Jepsen.

Senders note every event with the answer it got, the sandbox notes every value that was applied, and meanwhile
processes are killed and the CRM fails. At the end: (a) whatever was acknowledged is applied, superseded, parked,
refused or pending; (b) the CRM holds what a model of the acknowledged events says; (c) nothing that was refused at
the door was applied; (d) a value was applied twice only where the outcome of the first time was unknown. What the
journal calls delivered is looked for among what the sandbox applied: its word alone proves nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson
import requests

from bridge.intake.signatures import sign
from bridge.journal.event_log import EventFilter
from bridge.journal.retry_log import Filter
from bridge.sandbox import Crm
from bridge.sandbox.records import Applied
from bridge.settings import Secret, Verify
from tests.running import Running, eventually

Answer = Literal["acknowledged", "refused", "unknown"]
Target = Literal["worker", "dispatcher", "master", "everything"]
TARGETS: tuple[Target, ...] = ("worker", "dispatcher", "master", "everything")

#: How often the CRM fails meanwhile, by kind.
TROUBLE = {"500": 0.02, "reset": 0.02, "answer-lost": 0.02, "silent-drop": 0.02, "429": 0.01, "502-html": 0.01}
#: Seconds that settling an answered call may take on a busy machine: a kill meanwhile leaves its outcome unknown.
SETTLING_S = 1.0
#: Seconds after which the services give a call up; a standstill of the machine makes calls that long, as the CRM sees
#: them, and its answer then came to nobody.
TIMEOUT_S = 2
RECORDS = 80
SENDERS = 6
#: How often a start is killed too, and within how many seconds of its beginning.
EARLY, START_S = 0.35, 2.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One event as its partner knows it."""

    id: str
    record: str
    at: float
    values: Mapping[str, str]


@dataclass
class History:
    """What the senders saw. Thread-safe where several threads write."""

    sent: dict[str, Sent] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    duplicates: int = 0
    kills: list[tuple[float, float, str]] = field(default_factory=list)  # from, until (monotonic), target

    def of(self, answer: Answer) -> list[Sent]:
        return [self.sent[id_] for id_, got in list(self.answers.items()) if got == answer]

    def summary(self) -> str:
        answers = Counter(self.answers.values())
        kills = Counter(target for _, _, target in self.kills)
        return (
            f"{len(self.sent)} events: {answers['acknowledged']} acknowledged, {answers['refused']} refused, "
            f"{answers['unknown']} unknown, {self.duplicates} second deliveries; kills: "
            + ", ".join(f"{number} {target}" for target, number in sorted(kills.items()))
        )


class Partner:
    """Sends events until told to stop, as partners do: some late, some twice, some forged, again when refused 5xx."""

    def __init__(self, services: Running | Sequence[Running], history: History, *, seed: int) -> None:
        """Of several replicas each delivery goes to any, a second one to another perhaps."""
        self._services = [services] if isinstance(services, Running) else list(services)
        self._history = history
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._verify = Verify("standard-webhooks", (Secret(file=self._services[0].folder / "acme.secret"),))
        self.stopping = threading.Event()

    def run(self, seed: int) -> None:
        """One sender."""
        chance = random.Random(seed)
        earlier: list[Sent] = []
        with requests.Session() as session:
            while not self.stopping.is_set():
                if earlier and chance.random() < 0.05:
                    self._again(session, chance.choice(earlier))
                    continue
                event = self._next(chance)
                forged = chance.random() < 0.03
                self._history.sent[event.id] = event
                answer = self._deliver(session, event, forged=forged, patient=chance.random() < 0.9)
                self._history.answers[event.id] = answer
                if answer == "acknowledged":
                    earlier.append(event)

    def _next(self, chance: random.Random) -> Sent:
        with self._lock:
            number = next(self._numbers)
        id_ = f"e{number}"
        record = f"c{chance.randrange(RECORDS)}" if chance.random() < 0.97 else f"unknown-{chance.randrange(4)}"
        at = time.time() - chance.choice([0, 0, 0, 2, 60]) + number / 1e6
        values = {"company_name": f"name {id_}"}
        if chance.random() < 0.5:
            values["notes"] = f"note {id_}"
        if chance.random() < 0.3:
            values["tier"] = chance.choice(["gold", "silver", "bronze", "platinum"])  # platinum is refused
        return Sent(id_, record, at, values)

    def _deliver(self, session: requests.Session, event: Sent, *, forged: bool, patient: bool) -> Answer:
        unknown = False
        while True:
            code = self._post(session, event, forged=forged)
            if code == 202:
                return "acknowledged"
            if code == 401:
                return "unknown" if unknown else "refused"
            unknown = unknown or code is None  # a 503 says that nothing was taken
            if not patient or self.stopping.is_set():
                return "unknown" if unknown else "refused"
            time.sleep(0.05)

    def _again(self, session: requests.Session, event: Sent) -> None:
        if self._post(session, event, forged=False) == 202:
            with self._lock:
                self._history.duplicates += 1

    def _post(self, session: requests.Session, event: Sent, *, forged: bool) -> int | None:
        payload = {"id": event.id, "client": event.record, "at": event.at} | {
            {"company_name": "name"}.get(name, name): value for name, value in event.values.items()
        }
        body = orjson.dumps(payload)
        url = f"{self._chance.choice(self._services).url}/webhooks/acme"
        headers = sign(self._verify, body=body, url=url, now=time.time(), delivery_id=f"msg_{event.id}")
        if forged:
            body = body.replace(b"name", b"n4me", 1)
        try:
            return session.post(
                url, data=body, headers={"Content-Type": "application/json", **headers}, timeout=10
            ).status_code
        except requests.RequestException:
            return None


def dispatcher_pid(folder: Path) -> int | None:
    """Who holds the dispatch lock."""
    with contextlib.suppress(OSError):
        inode = (folder / "journal.db.dispatch").stat().st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            parts = line.split()
            if "FLOCK" in parts and parts[-3].split(":")[-1] == str(inode):
                return int(parts[parts.index("WRITE") + 1])
    return None


def kill(service: Running, target: Target, chance: random.Random) -> int:
    """`kill -9` of part of the service; it is there again afterwards. Returns how many starts were killed as well."""
    assert service.process is not None
    master, *workers = service.pids()
    match target:
        case "worker":
            victims = [chance.choice(workers)] if workers else []
        case "dispatcher":
            victims = [pid] if (pid := dispatcher_pid(service.folder)) in workers else []
        case "master":
            victims = [master]
        case "everything":
            victims = [master, *workers]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    early = 0
    if master in victims:
        service.process.wait(10)
        assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), within_s=40)
        service.start(ready=False)
        while chance.random() < EARLY:
            time.sleep(chance.uniform(0, START_S))
            kill_group(service)
            early += 1
            service.start(ready=False)
        assert eventually(service.is_ready), service.log.read_text(encoding="utf-8")[-3000:]
    return early


def kill_group(service: Running) -> None:
    """`kill -9` of all of it at once, however much of it is there yet."""
    assert service.process is not None
    os.killpg(service.process.pid, signal.SIGKILL)
    service.process.wait(10)

    def is_gone() -> bool:
        try:
            os.killpg(service.process.pid, 0)  # type: ignore[union-attr]  # asserted above
        except ProcessLookupError:
            return True
        return False

    assert eventually(is_gone)


def check(history: History, crm: Crm, service: Running) -> list[str]:
    """Every breach of (a) to (d), none in a sound run. The service is idle, or ended so."""
    with service.journal() as journal:
        outcomes = {logged.event: logged.outcome for logged in journal.events(EventFilter())}
        entries = journal.entries(Filter())
    # (a)
    settled = {"parked", "refused", "delivered", "superseded", "unchanged"}
    breaches = [
        f"(a) {event} was acknowledged and is {outcomes.get(event.id)}"
        for event in history.of("acknowledged")
        if outcomes.get(event.id) not in settled
    ]
    applied = crm.ledger.applied()
    assert not applied or applied[0].seq == 1, "the sandbox keeps too little of what it applied"
    values = {(one.id, one.property, one.value) for one in applied}
    breaches += [
        f"(a) {event} is called delivered, and none of it ever arrived"
        for event in history.of("acknowledged")
        if outcomes.get(event.id) == "delivered"
        and not any((event.record, name, value) in values for name, value in event.values.items())
    ]
    # (b)
    held = crm.state(id_property="acme_client_id").get("partner_clients", {})
    certain, possible = _words(history.of("acknowledged")), _words(history.of("unknown"))
    for key in certain.keys() | possible.keys():
        record, name = key
        value = held.get(record, {}).get(name)
        allowed = _allowed(certain.get(key, ()), possible.get(key, ()), refused="platinum")
        if record.startswith("unknown-"):
            allowed = {None}
        if value not in allowed:
            breaches.append(f"(b) {record}.{name} is {value!r}, must be one of {sorted(map(str, allowed))[:5]}")
    parked = {entry.record for entry in entries if entry.category == "OBJECT_NOT_FOUND"}
    wanted = {event.record for event in history.of("acknowledged") if event.record.startswith("unknown-")}
    maybe = {event.record for event in history.of("unknown") if event.record.startswith("unknown-")}
    if not wanted <= parked <= wanted | maybe:
        breaches.append(f"(b) parked as unknown: {parked}, must be {wanted}")
    # (c)
    refused = {value for event in history.of("refused") for value in event.values.values() if " " in value}
    breaches += [f"(c) {one} was refused at the door" for one in applied if one.value in refused]
    # (d)
    breaches += [
        f"(d) {one} was applied before, and answered: {_when(one, history, crm)}"
        for one in _needless(applied, history, crm)
    ]
    breaches += [f"contract: {violation}" for violation in crm.ledger.violations()]
    return breaches


def _words(events: Sequence[Sent]) -> dict[tuple[str, str], list[tuple[float, str]]]:
    words: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for event in events:
        for name, value in event.values.items():
            words[event.record, name].append((event.at, value))
    return words


def _allowed(
    certain: Sequence[tuple[float, str]], possible: Sequence[tuple[float, str]], *, refused: str
) -> set[str | None]:
    """The values that may stand: the newest word, or a newer one that may or may not have come. A word that the
    CRM refuses leaves the value that stood when it was sent, which any older word may be.
    """
    if any(value == refused for _, value in (*certain, *possible)):
        return {None, *(value for _, value in (*certain, *possible) if value != refused)}
    newest = max(certain, default=None)
    later = {value for at, value in possible if newest is None or at > newest[0]}
    return later | ({newest[1]} if newest is not None else {None})


def _needless(applied: Sequence[Applied], history: History, crm: Crm) -> Iterator[Applied]:
    """Values applied a second time although the first time was answered, soundly and to a process that lived."""
    calls = {call.seq: call for call in crm.ledger.calls("update")}
    first: dict[tuple[str, str, str], Applied] = {}
    for one in applied:
        key = (one.id, one.property, one.value)
        before = first.setdefault(key, one)
        if before is one or " " not in one.value:
            continue
        call = calls.get(before.call)
        if call is None or call.fault is not None or call.ended is None:
            continue
        if call.ended - call.started >= TIMEOUT_S / 2:  # its start is when the CRM came to read it
            continue
        # A worker whose master was killed ends by itself, and may cut calls until then.
        if any(call.started <= until and call.ended + SETTLING_S >= from_ for from_, until, _ in history.kills):
            continue
        yield one


def _when(one: Applied, history: History, crm: Crm) -> str:
    """How its first call lies to the kills, to see why it was sent again."""
    first = min(other.call for other in crm.ledger.applied() if (other.id, other.value) == (one.id, one.value))
    [call] = [call for call in crm.ledger.calls("update") if call.seq == first]
    kills = ", ".join(
        f"{from_ - call.started:.2f}…{until - call.started:.2f} {what}" for from_, until, what in history.kills
    )
    lasted, again = (call.ended or 0) - call.started, one.at - call.started_at
    return f"first in a call of {lasted:.2f} s, then {again:.2f} s after its start; kills at {kills}"


def run_history(
    folder: Path, crm: Crm, url: str, *, workers: int, seed: int, kills: int, events: int
) -> tuple[History, Running]:
    """A whole run with so many kills, and more events acknowledged than that, to be checked."""
    chance = random.Random(seed)
    history = History()
    service = Running(folder, url, workers=workers, timeout=f"{TIMEOUT_S}s", drain_timeout="2s")
    service.start()
    partner = Partner(service, history, seed=seed)
    senders = [threading.Thread(target=partner.run, args=(seed * 1000 + number,)) for number in range(SENDERS)]
    crm.faults.set_rates(TROUBLE)
    try:
        for sender in senders:
            sender.start()
        for number in range(kills):
            time.sleep(chance.uniform(0.05, 0.6))
            target = TARGETS[number % len(TARGETS)] if number < len(TARGETS) else chance.choice(TARGETS)
            began = time.monotonic()
            early = kill(service, target, chance)
            history.kills += [(began, time.monotonic(), each) for each in (target, *["start"] * early)]
        time.sleep(0.5)
        assert eventually(lambda: len(history.of("acknowledged")) > events, within_s=60)
        partner.stopping.set()
        for sender in senders:
            sender.join(30)
        crm.faults.clear()
        assert eventually(service.is_ready)
        assert eventually(service.idle, within_s=90), f"seed {seed}: {service.status()}"
        assert service.stop() == 0
    finally:
        partner.stopping.set()
        if service.process is not None and service.process.poll() is None:
            service.kill_all()
    return history, service
