"""As partners really call, over real HTTP with several worker processes: limits, handshakes, lines, long arrays."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest
import requests

from bridge.intake.signatures import sign
from bridge.settings import Secret, Verify
from tests.running import ACME, Running, free_port, running

SOURCES = (
    ACME
    + ACME.replace("  acme:", "  tight:")
    + "    limit: {requests: 20, per: 1m}\n"
    + ACME.replace("  acme:", "  meta:")
    + '    challenge: {when: "_query.\\"hub.mode\\" == \'subscribe\'", reply: \'_query."hub.challenge"\'}\n'
    + ACME.replace("  acme:", "  slack:").replace("scheme: standard-webhooks", "scheme: slack")
    + "    challenge: {method: POST, when: \"type == 'url_verification'\", reply: challenge, signed: true}\n"
    + ACME.replace("  acme:", "  lines:")
    + "    body: ndjson\n    max_body: 4MiB\n    reply: {status: 200, body: none}\n"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("partners")
    with running(folder, f"http://127.0.0.1:{free_port()}", sources=SOURCES, workers=2) as started:
        yield started


def counted(service: Running, metric: str, **labels: str) -> float:
    text = requests.get(f"{service.admin_url}/metrics", timeout=5).text
    wanted = {f'{name}="{value}"' for name, value in labels.items()}
    found = re.findall(rf"^{metric}{{(.*?)}} (\S+)$", text, re.MULTILINE)
    return sum(float(value) for given, value in found if wanted <= set(given.split(",")))


def test_the_limit_is_that_of_all_workers(service: Running) -> None:
    """Each request on a connection of its own, so that both workers get some."""
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: service.post({"id": f"t{n}", "client": "t"}, source="tight"), range(60)))
    statuses = [answer.status_code for answer in answers]
    # Two processes that take at the very same instant may count as one.
    assert 20 <= statuses.count(202) <= 22
    assert statuses.count(202) + statuses.count(429) == 60
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json()["type"] == "urn:partner-bridge:problem:too-many-requests"
    assert counted(service, "bridge_webhooks_total", source="tight", code="429") == statuses.count(429)
    assert service.post({"id": "after", "client": "t"}).status_code == 202


def test_meta_asks_for_its_challenge(service: Running) -> None:
    """What comes back is text that no browser renders, and nothing of what was asked becomes a header."""
    url = f"{service.url}/webhooks/meta"
    asked = {"hub.mode": "subscribe", "hub.challenge": "1158201444", "hub.verify_token": "x"}
    answer = requests.get(url, params=asked, timeout=5)
    assert (answer.status_code, answer.text) == (200, "1158201444")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for evil in ("a\r\nX-Evil: 1\r\n\r\n<b>", "<script>", "x" * 3000 + "\n"):
        answer = requests.get(url, params={**asked, "hub.challenge": evil}, timeout=5)
        assert answer.status_code == 400
        assert "X-Evil" not in answer.headers
        assert "script" not in answer.text
    assert requests.get(url, timeout=5).status_code == 400
    assert requests.head(url, timeout=5).status_code == 405
    assert requests.get(f"{service.url}/webhooks/acme", params=asked, timeout=5).headers["Allow"] == "POST"


def test_slack_verifies_its_url(service: Running) -> None:
    """Signed as every event of Slack's; unsigned nobody learns anything."""
    url = f"{service.url}/webhooks/slack"
    body = orjson.dumps({"type": "url_verification", "token": "t", "challenge": "3eZbrw1aBm2rZg"})
    verify = Verify("slack", (Secret(file=service.folder / "acme.secret"),))
    headers = {"Content-Type": "application/json", **sign(verify, body=body, now=time.time(), delivery_id="")}
    answer = requests.post(url, data=body, headers=headers, timeout=5)
    assert (answer.status_code, answer.text) == (200, "3eZbrw1aBm2rZg")
    answer = requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=5)
    assert answer.status_code == 401
    assert "3eZbrw" not in answer.text


def test_five_thousand_lines_in_one_request(service: Running, tmp_path: Path) -> None:
    """Taken whole, answered as the partner wants it, and by the same rules delivered again."""
    lines = b"\n".join(orjson.dumps({"id": f"l{n}", "client": f"c{n}", "name": f"n{n}"}) for n in range(5000))
    verify = Verify("standard-webhooks", (Secret(file=service.folder / "acme.secret"),))
    for _ in range(2):
        headers = {
            "Content-Type": "application/x-ndjson",
            **sign(verify, body=lines, now=time.time(), delivery_id="bulk"),
        }
        answer = requests.post(f"{service.url}/webhooks/lines", data=lines, headers=headers, timeout=20)
        assert (answer.status_code, answer.content) == (200, b"")
    assert counted(service, "bridge_events_total", source="lines", outcome="accepted") == 5000
    assert counted(service, "bridge_events_total", source="lines", outcome="duplicate") == 5000
    broken = lines[:-5]
    headers = {
        "Content-Type": "application/x-ndjson",
        **sign(verify, body=broken, now=time.time(), delivery_id="broken"),
    }
    answer = requests.post(f"{service.url}/webhooks/lines", data=broken, headers=headers, timeout=20)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("line 5000: ")
