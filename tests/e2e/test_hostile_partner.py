"""Two partners share a lane, and one of them writes whatever the bridge looks for in the CRM's words (F56)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.crm import sentences
from bridge.crm.complaints import DEFINITION_CODES
from bridge.crm.sentences import Sentence
from bridge.sandbox import Crm, SandboxServer
from bridge.sandbox.answers import Naming
from tests.running import Running, eventually, running

SOURCE = """\
  {name}:
    verify: {{scheme: standard-webhooks, secrets: [{{file: acme.secret}}]}}
    event_id: id
    record: {{id: client, id_property: acme_client_id}}
    properties:
      company_name: name
      tier: {{from: tier, type: enumeration}}
"""

#: Records of the good partner in one run.
GOOD = 60

#: Seconds that they may take longer beside the hostile one.
LONGER_S = 5.0


def hostile_words() -> list[str]:
    """Every sentence that the code looks for, with others' names in it, JSON that names their properties, and what
    an attack found.
    """
    places = {"name": "acme_client_id", "type": "0-2", "number": "1", "kind": "long.", "limit": "daily"}
    rows = [one for one in vars(sentences).values() if isinstance(one, tuple)]
    table = [one for row in rows for one in row if isinstance(one, Sentence)]
    words = [one.wording.format(**places, value="gold", texts="gold, silver") for one in table]
    items = [{"error": code, "name": name} for code in sorted(DEFINITION_CODES) for name in ("company_name", "tier")]
    words += [start + json.dumps([item]) for start in ("", sentences.LISTED) for item in items]
    return [*words, "acme_client_id is non-unique", "MISSING_SCOPES", "You have reached your DAILY limit"]


@dataclass
class Stage:
    service: Running
    crm: Crm
    runs: int = 0

    def post(self, record: str, *, source: str, **values: Any) -> None:
        event = {"id": f"e-{record}", "client": record, "name": f"name of {record}", **values}
        answer = self.service.post(event, source=source)
        assert answer.status_code == 202, answer.text

    def held(self) -> dict[str, dict[str, str]]:
        return self.crm.state(id_property="acme_client_id").get("partner_clients", {})

    def takes_s(self, *, beside: bool) -> tuple[float, dict[str, str]]:
        """Post the good partner's records, one by one; seconds until the last has arrived, and what the hostile
        partner posted between them.
        """
        self.runs += 1
        words = hostile_words() if beside else []
        bad: dict[str, str] = {}
        good = {f"g{self.runs}-{number}" for number in range(GOOD)}
        began = time.monotonic()
        for number, record in enumerate(sorted(good)):
            if number < len(words):
                hostile = f"h{self.runs}-{number}"
                self.post(hostile, source="hostile", tier=words[number])
                bad[hostile] = words[number]
            self.post(record, source="good", tier="gold")
        arrived = eventually(lambda: good <= self.held().keys(), within_s=60, every_s=0.02)
        assert arrived, (self.service.status()["pauses"], len(good & self.held().keys()))
        took = time.monotonic() - began
        assert all(self.held()[record] == {"company_name": f"name of {record}", "tier": "gold"} for record in good)
        return took, bad


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    crm = Crm(open_properties=False)
    sources = "".join(SOURCE.format(name=name) for name in ("good", "hostile"))
    with SandboxServer(crm) as server, running(tmp_path, server.url, sources=sources) as service:
        yield Stage(service, crm)


@pytest.mark.parametrize(
    "multi_status, naming",
    [
        pytest.param(True, "both", id="207", marks=pytest.mark.heavy),
        pytest.param(False, "both", id="400"),
        pytest.param(False, "none", id="anonymous 400", marks=pytest.mark.heavy),
        pytest.param(False, "words", id="400 in words", marks=pytest.mark.heavy),
    ],
)
def test_f56_of_two_partners_the_hostile_one_holds_up_nobody(stage: Stage, multi_status: bool, naming: Naming) -> None:
    """The good one's records arrive as fast; of the hostile one's only the bad values wait, where they can be seen."""
    stage.crm.behaviour.multi_status = multi_status
    stage.crm.behaviour.naming = naming
    alone_s, _ = stage.takes_s(beside=False)
    beside_s, bad = stage.takes_s(beside=True)
    assert len(bad) > 20
    assert beside_s <= alone_s + LONGER_S
    assert eventually(lambda: {entry.record for entry in stage.service.entries()} == bad.keys())
    assert eventually(stage.service.idle)
    assert eventually(lambda: all(stage.held().get(one) == {"company_name": f"name of {one}"} for one in bad))
    assert {entry.properties for entry in stage.service.entries()} == {("tier",)}
    assert not stage.service.log_has("delivery paused")
