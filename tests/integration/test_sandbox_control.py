"""A sandbox in another process: looked into and steered over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer

PATH = "/crm/v3/objects/partner_clients/batch/update"


@pytest.fixture
def url() -> Iterator[str]:
    with SandboxServer(Crm()) as server:
        yield server.url


def update(url: str, id_: str, **properties: str) -> int:
    body = {"inputs": [{"id": id_, "idProperty": "acme_client_id", "properties": properties}]}
    headers = {"Authorization": "Bearer t"}
    return requests.post(f"{url}{PATH}", json=body, headers=headers, timeout=10).status_code


def get(url: str, path: str) -> Any:
    answer = requests.get(f"{url}/sandbox{path}", timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()


def tell(url: str, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{url}/sandbox{path}", json=body, timeout=10)


def test_everything_that_happened_can_be_seen(url: str) -> None:
    """State, calls, applied values from a given one on, violations, and an overview."""
    update(url, "c1", notes="a", tier="gold")
    update(url, "c1", notes="b")
    assert get(url, "/state") == {"partner_clients": {"c1": {"notes": "b", "tier": "gold"}}}
    assert get(url, "/state?id_property=external_id") == {}
    calls = get(url, "/calls")["calls"]
    assert [call["status"] for call in calls] == [200, 200]
    assert calls[0]["inputs"][0]["properties"] == {"notes": "a", "tier": "gold"}
    assert get(url, "/calls?after=1&inputs=false")["calls"][0]["inputs"] == 1
    applied = get(url, "/applied")
    assert applied["last"] == 3
    assert [(entry["seq"], entry["property"], entry["value"]) for entry in applied["applied"]] == [
        (1, "notes", "a"),
        (2, "tier", "gold"),
        (3, "notes", "b"),
    ]
    assert [entry["seq"] for entry in get(url, "/applied?after=1&limit=1")["applied"]] == [2]
    assert get(url, "/violations") == {"violations": []}
    overview = get(url, "")
    assert (overview["calls"], overview["statuses"], overview["applied"]) == (2, {"200": 2}, 3)
    assert overview["records"] == {"partner_clients": 1}


def test_faults_can_be_scripted_switched_and_cleared(url: str) -> None:
    """In one body or several; what stands is answered."""
    plan = tell(url, "/faults", next=[{"kind": "429", "times": 2, "retry_after": "1"}]).json()
    assert len(plan["next"]) == 2
    tell(url, "/faults", always=[{"kind": "503"}])
    assert [update(url, "c1") for _ in range(3)] == [429, 429, 503]
    tell(url, "/faults", stop=["503"], rates={"500": 1})
    assert update(url, "c1") == 500
    assert get(url, "/faults")["rates"] == {"500": 1.0}
    tell(url, "/faults", clear=True)
    assert update(url, "c1") == 200


@pytest.mark.parametrize(
    "path, body",
    [
        ("/faults", {"next": [{"kind": "no-such"}]}),
        ("/faults", {"next": [{"kind": "500", "no_such": 1}]}),
        ("/faults", {"next": [{"kind": "500", "on": "no-such"}]}),
        ("/faults", {"rates": {"500": 2}}),
        ("/faults", {"rates": {"500": 0.6, "429": 0.6}}),
        ("/records", {}),
        ("/properties", {"name": "x", "type": "no-such"}),
        ("/behaviour", {"no_such": 1}),
    ],
)
def test_what_cannot_be_understood_is_refused(url: str, path: str, body: dict[str, Any]) -> None:
    """400 with a message, and nothing changes."""
    before = get(url, "/faults")
    answer = tell(url, path, **body)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert get(url, "/faults") == before


def test_records_properties_behaviour_and_tokens_can_be_set(url: str) -> None:
    """As tests in the same process do with the parts."""
    tell(url, "/records", ids=["c1"], id_property="acme_client_id", properties={"notes": "seed"})
    assert get(url, "/state") == {"partner_clients": {"c1": {"notes": "seed"}}}
    tell(url, "/records", ids=["c1"], id_property="acme_client_id", archive=True)
    assert update(url, "c1", notes="x") == 207
    tell(url, "/records", ids=["c3"], id_property="acme_client_id", merge_into="c2")
    assert update(url, "c3", notes="x") == 200
    assert "c3" not in get(url, "/state")["partner_clients"]
    tell(url, "/properties", name="plan", type="enumeration", options=["a", "b"])
    assert [update(url, "c4", plan=plan) for plan in ("a", "c")] == [200, 400]
    assert tell(url, "/behaviour", multi_status=False, limit=1).json()["limit"] == 1
    tell(url, "/behaviour", limit=None)
    assert update(url, "C4", notes="another") == 200
    assert tell(url, "/behaviour", fold_case=True).json()["fold_case"] is True
    assert update(url, "c4", notes="one") == 200
    assert update(url, "C4", notes="the same") == 200
    assert get(url, "/state")["partner_clients"]["c4"]["notes"] == "the same"
    tell(url, "/tokens", accept=["other"])
    assert update(url, "c4") == 401
    tell(url, "/tokens", accept=["t"], forbid=["partner_clients"])
    assert update(url, "c4") == 403


def test_reset_forgets_what_happened(url: str) -> None:
    """Records, logs and faults."""
    update(url, "c1", notes="a")
    tell(url, "/faults", always=[{"kind": "500"}])
    tell(url, "/reset")
    assert get(url, "/state") == {}
    assert get(url, "/calls") == {"calls": []}
    assert update(url, "c1", notes="a") == 200


def test_other_paths_and_methods_are_404(url: str) -> None:
    """The sandbox's own paths do not reach the API, nor the log of calls."""
    assert requests.get(f"{url}/sandbox/no-such", timeout=10).status_code == 404
    assert requests.get(f"{url}/sandbox/reset", timeout=10).status_code == 404
    assert requests.get(f"{url}/no-such", timeout=10).status_code == 404
    assert [call["path"] for call in get(url, "/calls")["calls"]] == ["/no-such"]
