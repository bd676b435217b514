"""`partner-bridge demo`: the whole job in a few seconds, with no account and no configuration.

A real service in a process of its own, a sandbox CRM, signed webhooks over HTTP; then every event is looked up
in the journal and every record in the CRM, and both are compared with what should have come of it.
"""

from __future__ import annotations

import base64
import os
import random
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import orjson
import requests

from bridge.cli.common import console, print_table, progress, unused_config_option
from bridge.cli.serving import end, free_port, wait_until_open
from bridge.errors import BridgeError
from bridge.journal.retry_log import Entry, Filter
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.settings import Journal as JournalSettings

# --- the demo's webhooks: good ones, and every common kind of trouble, with what the CRM should hold in the end ---

#: The configuration that the demo's service runs with.
CONFIG = """\
crm:
  base_url: {crm_url}
  token: {{file: crm.token}}
  flush_interval: 200ms
  rate_limit: {{calls: 190, per: 10s}}
journal:
  url: sqlite:///{folder}/journal.db
server:
  bind: 127.0.0.1:{port}
  admin_bind: 127.0.0.1:{admin_port}
sources:
  acme:
    verify:
      scheme: standard-webhooks
      secrets: [{{file: acme.secret}}]
    when: "type == 'client.updated'"
    event_id: id
    occurred_at: timestamp
    record: {{id: data.client.id, id_property: acme_client_id}}
    properties:
      company_name: data.client.name
      annual_revenue: {{from: data.client.arr_cents, type: number, scale: 0.01}}
      active: {{from: data.client.active, type: bool}}
      tier: {{from: data.client.plan, type: enumeration, values: {{Gold: gold, Silver: silver, Bronze: bronze}}}}
      products: {{from: data.client.products, type: enumeration, multiple: true}}
    examples:
      - payload: {{id: evt_1, type: client.updated, timestamp: "2026-01-02T03:04:05Z",
                  data: {{client: {{id: "17", name: Globex, arr_cents: 1250000, active: true, plan: Gold}}}}}}
        expect:
          - {{id: "17", id_property: acme_client_id,
             properties: {{company_name: Globex, annual_revenue: "12500", active: "true", tier: gold}}}}
"""

NAMES = ("Globex", "Initech", "Umbrella", "Hooli", "Stark", "Wayne", "Acme", "Tyrell", "Cyberdyne", "Wonka")
PLANS = ("Gold", "Silver", "Bronze")


@dataclass(frozen=True, slots=True)
class Sample:
    """One webhook to send. `kind` groups it in the demo's table; `forged` ones carry a wrong signature."""

    kind: str
    payload: dict[str, Any]
    forged: bool = False

    @property
    def event_id(self) -> str:
        return str(self.payload["id"])


@dataclass(slots=True)
class Samples:
    """Makes `number` webhooks, reproducibly, and knows what the CRM should hold after them.

    The first is dated at `begins`, an hour ago unless it is given, each other one a second later; `after` are the
    events that other samples made before.
    """

    number: int
    seed: int = 7
    begins: datetime | None = None
    after: int = 0
    _model: dict[str, dict[str, tuple[datetime, str]]] = field(default_factory=dict)
    _made: int = 0

    def __iter__(self) -> Iterator[Sample]:
        chance = random.Random(self.seed)  # noqa: S311 (samples)
        start = self.begins or datetime.now(UTC) - timedelta(hours=1)
        special = [self._late, self._invalid, self._refused, self._unknown, self._nameless, self._ignored, self._forged]
        last: Sample | None = None
        for at in range(self.number):
            moment = start + timedelta(seconds=at)
            if at % 20 == 19 and last is not None:
                yield Sample("duplicate: sent a second time", last.payload)
            elif at % 5 == 4:
                yield special[at // 5 % len(special)](chance, moment)
            else:
                last = self._good(chance, moment)
                yield last

    def expected(self) -> dict[str, dict[str, str]]:
        """Client id → property → value, as applying everything in order of `timestamp` would give."""
        return {
            client: {name: value for name, (_, value) in properties.items()}
            for client, properties in self._model.items()
        }

    # --- kinds ---

    def _event(self, client: Mapping[str, Any], moment: datetime, kind: str = "client.updated") -> dict[str, Any]:
        self._made += 1
        return {
            "id": f"evt_{self.after + self._made:05}",
            "type": kind,
            "timestamp": moment.isoformat().replace("+00:00", "Z"),
            "data": {"client": dict(client)},
        }

    def _client(self, chance: random.Random) -> dict[str, Any]:
        number = chance.randrange(max(1, self.number // 4))
        cents = chance.randrange(10_000, 9_000_000)
        return {
            "id": number,
            "name": f"{NAMES[number % len(NAMES)]} {number}",
            "arr_cents": cents,
            "active": chance.random() < 0.8,
            "plan": chance.choice(PLANS),
        }

    def _learn(self, client: Mapping[str, Any], moment: datetime) -> None:
        cents = int(client["arr_cents"])
        whole, rest = divmod(cents, 100)
        values = {
            "company_name": str(client["name"]),
            "annual_revenue": f"{whole}.{rest:02}".rstrip("0").rstrip("."),
            "active": "true" if client["active"] else "false",
        }
        if client["plan"] in PLANS:
            values["tier"] = str(client["plan"]).lower()
        known = self._model.setdefault(str(client["id"]), {})
        for name, value in values.items():
            if name not in known or moment >= known[name][0]:
                known[name] = (moment, value)
        if client["plan"] not in PLANS and moment >= known.get("tier", (moment, ""))[0]:
            known.pop("tier", None)

    def _good(self, chance: random.Random, moment: datetime) -> Sample:
        client = self._client(chance)
        self._learn(client, moment)
        return Sample("good", self._event(client, moment))

    def _late(self, chance: random.Random, moment: datetime) -> Sample:
        client = self._client(chance)
        earlier = moment - timedelta(minutes=30)
        self._learn(client, earlier)
        return Sample("late: older than what came before", self._event(client, earlier))

    def _invalid(self, chance: random.Random, moment: datetime) -> Sample:
        client = self._client(chance) | {"id": f"plan-{self.after + self._made}", "plan": "Platinum"}
        self._learn(client, moment)
        return Sample("invalid: a plan that the mapping does not know", self._event(client, moment))

    def _refused(self, chance: random.Random, moment: datetime) -> Sample:
        client = self._client(chance) | {"id": f"product-{self.after + self._made}"}
        self._learn(client, moment)
        return Sample(
            "refused: an option that the CRM does not have",
            self._event(client | {"products": ["unicorns"]}, moment),
        )

    def _unknown(self, chance: random.Random, moment: datetime) -> Sample:
        client = self._client(chance) | {"id": f"unknown-{self.after + self._made}"}
        return Sample("unknown: a client that the CRM does not have", self._event(client, moment))

    def _nameless(self, chance: random.Random, moment: datetime) -> Sample:
        client = self._client(chance)
        del client["id"]
        return Sample("no id: a client without a number", self._event(client, moment))

    def _ignored(self, chance: random.Random, moment: datetime) -> Sample:
        return Sample("ignored: not a client.updated", self._event(self._client(chance), moment, "client.viewed"))

    def _forged(self, chance: random.Random, moment: datetime) -> Sample:
        return Sample("forged: a wrong signature", self._event(self._client(chance), moment), forged=True)


# --- the command --------------------------------------------------------------------------------

#: How long the demo waits for everything to settle.
SETTLE_S = 60.0
#: Webhooks sent at a time.
SENDERS = 4
#: Characters of a failure's message that its table shows.
MESSAGE = 90
#: Webhooks that are sent while it is kept, and the seconds between two.
LIVE, LIVE_EVERY_S = 1_800, 2.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One webhook and how it was answered."""

    sample: Sample
    status: int
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DemoService:
    """Where the demo's service is, and its files."""

    folder: Path
    url: str
    admin_url: str


@click.command()
@unused_config_option
@click.option("--events", default=200, show_default=True, type=click.IntRange(1, 100_000), help="Webhooks to send.")
@click.option("--keep", is_flag=True, help="Leave it running afterwards, until Ctrl-C.")
def demo(events: int, keep: bool) -> int:
    """Send sample webhooks through a real service into a sandbox CRM and show what became of each."""
    from bridge.sandbox import Crm, SandboxServer

    out = console()
    crm = Crm(open_properties=False, limit=190)
    crm.behaviour.latency_s = 0.05
    with tempfile.TemporaryDirectory(prefix="partner-bridge-demo-") as folder, SandboxServer(crm) as sandbox:
        service = prepare(Path(folder), sandbox.url)
        out.print(f"A service on {service.url} and a sandbox CRM on {sandbox.url}, in {folder}.")
        with running(service):
            samples = Samples(events)
            sent = send_all(service, list(samples))
            journal_settings = JournalSettings(url=f"sqlite:///{folder}/journal.db")
            with closing(Journal(settings=journal_settings, clock=SystemClock())) as journal:
                waiting = settle(journal, sent)
                entries, accounted = report(journal, sent, samples, crm.state(), waiting)
            out.print()
            out.print(summary(sent, entries, len(crm.ledger.calls("update")), accounted))
            next_steps()
            if keep:
                out.print(f"\nStill running, with a webhook every {LIVE_EVERY_S:.0f} s for an hour. The console is")
                out.print(f"  {service.admin_url}/")
                out.print("Ctrl-C ends it.")
                stay(service, events)
    return 0 if accounted else 1


def prepare(folder: Path, crm_url: str) -> DemoService:
    """Write the configuration and fresh secrets."""
    port, admin_port = free_port(), free_port()
    partner, forger = (f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}" for _ in range(2))
    files = {"acme.secret": partner, "forger.secret": forger, "crm.token": secrets.token_urlsafe(24)}
    for name, content in files.items():
        (folder / name).write_text(content + "\n", encoding="utf-8")
        (folder / name).chmod(0o600)
    text = CONFIG.format(crm_url=crm_url, folder=folder, port=port, admin_port=admin_port)
    (folder / "bridge.yaml").write_text(text, encoding="utf-8")
    return DemoService(folder, f"http://127.0.0.1:{port}/webhooks/acme", f"http://127.0.0.1:{admin_port}")


def own_environment() -> dict[str, str]:
    """The environment without what would lead the demo to somebody's journal or ports."""
    rest = {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")}
    return rest | {"BRIDGE_LOG_FORMAT": "json"}


@contextmanager
def running(service: DemoService) -> Iterator[None]:
    """The service in a process of its own; its log goes to a file."""
    log = service.folder / "service.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "bridge", "serve", "--config", str(service.folder / "bridge.yaml")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=own_environment(),
            start_new_session=True,  # Ctrl-C is for the demo, which then ends the service
        )
        try:
            try:
                wait_until_open(int(service.url.split(":")[2].split("/")[0]), child)
            except BridgeError as error:
                last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
                raise BridgeError(f"the demo's service did not start: {' '.join(last)}") from error
            yield
        finally:
            end(child, within_s=30)


def send_all(service: DemoService, samples: Sequence[Sample]) -> list[Sent]:
    """Post every sample, some at a time; second deliveries after all first ones."""
    with requests.Session() as session, progress("sending webhooks", len(samples)) as advance:
        session.trust_env = False

        def send(sample: Sample) -> Sent:
            sent = post(session, service, sample)
            advance(1)
            return sent

        first = {sample.event_id: sample for sample in reversed(samples)}  # the earliest of each id
        again = [sample for sample in samples if sample is not first[sample.event_id]]
        with ThreadPoolExecutor(SENDERS) as pool:
            return [*pool.map(send, first.values()), *pool.map(send, again)]


def post(session: requests.Session, service: DemoService, sample: Sample) -> Sent:
    """Sign one sample as the partner would, and post it."""
    from bridge.intake.signatures import sign
    from bridge.settings import Secret, Verify

    secret = service.folder / ("forger.secret" if sample.forged else "acme.secret")
    body = orjson.dumps(sample.payload)
    headers = sign(
        Verify("standard-webhooks", (Secret(file=secret),)),
        body=body,
        url=service.url,
        now=time.time(),
        delivery_id=f"msg_{sample.event_id}",
    )
    answer = session.post(service.url, data=body, headers={"Content-Type": "application/json", **headers}, timeout=30)
    return Sent(sample, answer.status_code, answer.json())


# --- looking up ---------------------------------------------------------------------------------

UNSETTLED = {"pending", "retrying"}


def settle(journal: Journal, sent: Sequence[Sent]) -> set[str]:
    """Wait until no event is pending; returns the ids of those that still are at the end of the time."""
    waiting = {one.sample.event_id for one in sent if one.status == 202}
    with progress("delivering", len(waiting)) as advance:
        deadline = time.monotonic() + SETTLE_S
        while waiting and time.monotonic() < deadline:
            settled = {event for event in waiting if fates(journal, event).isdisjoint(UNSETTLED)}
            advance(len(settled))
            waiting -= settled
            if waiting:
                time.sleep(0.1)
    return waiting


def fates(journal: Journal, event_id: str) -> set[str]:
    """What became of an event, in words; "lost" if the journal has never heard of it."""
    found: set[str] = set()
    stories = journal.trace_event(event_id)
    for story in stories:
        found |= {str(fate["fate"]) for asked in story["records"] for fate in asked["properties"]}
        if story["waits"]:
            found.add("parked")
        if story["taken_as"] == "ignored":
            found.add("ignored")
    return found or {"lost"}


def report(
    journal: Journal,
    sent: Sequence[Sent],
    samples: Samples,
    state: dict[str, dict[str, dict[str, str]]],
    waiting: set[str],
) -> tuple[list[Entry], bool]:
    """Print the tables; returns the retry log and whether every event is accounted for."""
    click.echo()
    rows = []
    lost = set(waiting)
    for kind in dict.fromkeys(one.sample.kind for one in sent):
        group = [one for one in sent if one.sample.kind == kind]
        became: Counter[str] = Counter()
        for one in group:
            if one.status != 202:
                became["nothing was taken"] += 1
                continue
            found = fates(journal, one.sample.event_id)
            if "lost" in found:
                lost.add(one.sample.event_id)
            duplicate = "recognised, " if one.answer.get("duplicates") else ""
            became[duplicate + " and ".join(sorted(found))] += 1
        answers = Counter(str(one.status) for one in group)
        rows.append([kind, str(len(group)), " ".join(sorted(answers)), _counted(became)])
    print_table(["webhooks", "sent", "answered", "what became of them"], rows)
    held = {
        record.removeprefix("acme_client_id="): {k: v for k, v in values.items() if k != "acme_client_id"}
        for record, values in state.get("partner_clients", {}).items()
    }
    expected = samples.expected()
    wrong = [record for record in expected.keys() | held.keys() if expected.get(record) != held.get(record)]
    click.echo()
    click.echo(f"In the CRM: {len(held)} records, {sum(map(len, held.values()))} values; {len(wrong)} not as expected.")
    entries = journal.entries(Filter())
    click.echo("In the retry log:")
    shown = entries[:8]
    print_table(
        ["id", "record", "category", "properties", "message"],
        [[e.id, e.record or "-", e.category, ",".join(e.properties) or "-", shortened(e.message)] for e in shown],
    )
    if len(entries) > len(shown):
        click.echo(f"… and {len(entries) - len(shown)} more")
    return entries, not lost and not wrong


def shortened(message: str) -> str:
    """The beginning of a message, as much as a table has room for."""
    return message if len(message) <= MESSAGE else f"{message[: MESSAGE - 1].rstrip()}…"


def _counted(became: Counter[str]) -> str:
    if len(became) == 1:
        return next(iter(became))
    return "; ".join(f"{number} {words}" for words, number in became.most_common())


def summary(sent: Sequence[Sent], entries: Sequence[Entry], calls: int, accounted: bool) -> str:
    """One sentence that sums it up."""
    taken = sum(one.status == 202 for one in sent)
    verdict = "every one is accounted for" if accounted else "NOT every one is accounted for"
    return (
        f"{len(sent)} webhooks, {taken} accepted, {len(sent) - taken} refused at the door; {calls} CRM calls, "
        f"{len(entries)} entries wait in the retry log, and {verdict}."
    )


def next_steps() -> None:
    """The three commands to type next."""
    program = "partner-bridge"
    if os.sep in sys.argv[0] and not sys.argv[0].endswith(".py"):
        program = shlex.quote(str(Path(sys.argv[0]).absolute()))
    click.echo("\nYour own, in a new folder:")
    for command in ("init", "check --sandbox", "serve --sandbox"):
        click.echo(f"  {program} {command}")


def stay(service: DemoService, made: int) -> None:
    """Until Ctrl-C; meanwhile the console has something to show. `made` events were sent before."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the service must not be left behind
    live = iter(Samples(LIVE, seed=8, begins=datetime.now(UTC), after=made))
    try:
        with requests.Session() as session:
            session.trust_env = False
            while True:
                time.sleep(LIVE_EVERY_S)
                with suppress(requests.RequestException):
                    if sample := next(live, None):
                        post(session, service, sample)
    except KeyboardInterrupt:
        click.echo()
