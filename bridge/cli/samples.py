"""The demo's webhooks: good ones, and every common kind of trouble, with what the CRM should hold in the end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

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
