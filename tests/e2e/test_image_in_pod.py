"""The pod that the chart renders, run by podman from the image: delivery, rotation, sudden death, a clean end."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from tests.chart.rendering import SECRETS, Json
from tests.chart.test_kubernetes import FIRST, inside, merged, named
from tests.containers import MARKS, Engine
from tests.pods import CRM, Pod, playing

pytestmark = MARKS

WEBHOOKS = "http://127.0.0.1:8080/webhooks"
SHUTDOWN: Json = {"preStopSeconds": 1, "drainSeconds": 10}
VALUES: Json = {
    "config": {
        "crm": {"base_url": CRM, "flush_interval": "50ms"},
        "retry": {"base": "100ms", "max": "1s"},
        "sources": {
            "acme": {
                "verify": {"scheme": "standard-webhooks", "secrets": [{"file": f"{SECRETS}/acme"}]},
                "event_id": "id",
                "record": {"id": "client", "id_property": "acme_client_id"},
                "properties": {"company_name": "name"},
            }
        },
    },
    "shutdown": SHUTDOWN,
}


def key() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def post(pod: Pod, client: str, name: str, *, signed_with: str | None = None, source: str = "acme") -> int:
    """Post one event about a client, signed as partners do with the newest secret; returns the status."""
    event = secrets.token_hex(8)
    now = datetime.now(UTC)
    body = json.dumps({"id": event, "client": client, "name": name})
    secret = signed_with or pod.secrets["acme"].split()[-1]
    headers = {
        "webhook-id": event,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(event, now, body),
    }
    status, _ = pod.request(f"{WEBHOOKS}/{source}", body, headers)
    return status


def company_names(pod: Pod, *clients: str) -> list[str | None]:
    """What the CRM holds for these clients, asked as any of HubSpot's clients would."""
    inputs = [{"id": client} for client in clients]
    asked = {"inputs": inputs, "idProperty": "acme_client_id", "properties": ["acme_client_id", "company_name"]}
    url = f"{CRM}/crm/v3/objects/partner_clients/batch/read"
    status, text = pod.request(url, json.dumps(asked), {"authorization": "Bearer pat-test"})
    results = json.loads(text)["results"] if status in {200, 207} else []
    names = {each["properties"]["acme_client_id"]: each["properties"].get("company_name") for each in results}
    return [names.get(client) for client in clients]


@pytest.fixture
def pod(engine: Engine, tmp_path: Path) -> Iterator[Pod]:
    with playing(engine, tmp_path, VALUES, {"hubspot-token": "pat-test", "acme": key()}) as made:
        yield made


def test_the_rendered_pod_delivers_within_its_limits(
    pod: Pod, record_testsuite_property: Callable[[str, object], None]
) -> None:
    record_testsuite_property("seconds_until_ready", round(pod.start(), 1))
    seen = pod.inspect()
    assert seen["HostConfig"]["ReadonlyRootfs"] is True
    assert seen["HostConfig"]["Memory"] == 512 << 20
    assert seen["Config"]["User"] == "10001:10001"
    status = dict(line.split(":\t", 1) for line in pod.run("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert {name: status[name] for name in ("CapEff", "CapBnd")} == {"CapEff": "0" * 16, "CapBnd": "0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

    assert pod.request(f"{WEBHOOKS}/acme", "{}")[0] == 401
    assert post(pod, "7", "Acme") == 202
    pod.until(lambda: company_names(pod, "7") == ["Acme"])
    idle = pod.memory()
    record_testsuite_property("idle_megabytes", round(idle / 1e6))
    assert idle < 256 << 20, "more than the chart asks for"

    code, took = pod.stop()
    assert code == 0, pod.log()
    assert took < SHUTDOWN["drainSeconds"] + 4


def test_a_secret_is_rotated_without_a_restart(pod: Pod) -> None:
    pod.start()
    process = pod.inspect()["State"]["Pid"]
    old, new = pod.secrets["acme"], key()
    assert post(pod, "7", "signed with the old one") == 202
    assert post(pod, "7", "nobody knows this one yet", signed_with=new) == 401

    pod.rotate(pod.secrets | {"acme": f"{old}\n{new}\n"})
    pod.until(lambda: post(pod, "7", "both are taken", signed_with=new) == 202)
    assert post(pod, "7", "the old one too", signed_with=old) == 202
    _, metrics = pod.request("http://127.0.0.1:9090/metrics")
    used = [line for line in metrics.splitlines() if line.startswith("bridge_verifications_total")]
    assert any('secret="1"' in line and 'result="accepted"' in line for line in used), used  # the second one

    pod.rotate(pod.secrets | {"acme": new})
    pod.until(lambda: post(pod, "7", "the old one is gone", signed_with=old) == 401)
    assert post(pod, "7", "at last") == 202
    pod.until(lambda: company_names(pod, "7") == ["at last"])
    assert pod.inspect()["State"]["Pid"] == process


def test_the_service_takes_over_a_changed_config_map_without_a_restart(pod: Pod) -> None:
    pod.start()
    process = pod.inspect()["State"]["Pid"]
    assert post(pod, "7", "too early", source="second") == 404
    more = {"config": {"sources": {"second": VALUES["config"]["sources"]["acme"]}}}
    pod.reconfigure(merged(pod.values, more))
    pod.until(lambda: post(pod, "7", "in time", source="second") == 202)
    pod.until(lambda: company_names(pod, "7") == ["in time"])
    assert pod.inspect()["State"]["Pid"] == process
    assert pod.stop()[0] == 0


def test_nothing_accepted_is_lost_when_the_service_is_killed(pod: Pod) -> None:
    pod.start(crm=False)
    clients = [str(number) for number in range(20)]
    assert {post(pod, client, "first") for client in clients} == {202}
    pod.kill()
    pod.revive()
    assert {post(pod, client, "second") for client in clients[:10]} == {202}
    pod.kill()
    pod.remove()

    pod.start()  # on the same volume, with a CRM this time
    pod.until(lambda: company_names(pod, *clients) == ["second"] * 10 + ["first"] * 10)
    assert pod.stop()[0] == 0


def test_the_readmes_commands_deliver_back_up_and_restore(engine: Engine, tmp_path: Path) -> None:
    """Its values but for the CRM's address, its commands in its order, each in the pod that it is meant for."""
    values = merged(FIRST, {"config": {"crm": {"base_url": CRM}}, "shutdown": SHUTDOWN})
    send, trace, _, backup, _, _, _, restore, resume = [inside(each) for each in named("kubectl", "exec")]
    with playing(engine, tmp_path, values, {"hubspot-token": "pat-test", "acme": key()}) as pod:
        pod.start()
        pod.run(*send)
        pod.until(lambda: company_names(pod, "7") == ["Acme"])
        pod.until(lambda: "delivered" in pod.run(*trace))
        assert "sha256" in pod.run(*backup).lower()
        assert pod.stop()[0] == 0

        pod.values = values | {"maintenance": True}
        pod.start(wait=False)
        assert pod.request("http://127.0.0.1:9090/readyz")[0] == 0, "there is no service"
        assert "delivery is paused" in pod.run(*restore)
        code, took = pod.stop()
        assert (code, took < 5) == (0, True)

        pod.values = values
        pod.start()
        pod.run(*send)
        assert company_names(pod, "7") == [None], "the CRM is new, and delivery paused"
        pod.run(*resume)
        pod.until(lambda: company_names(pod, "7") == ["Acme"])
        assert pod.stop()[0] == 0
