"""A real service and the signatures of its partners: forgeries, a rotation under load, and what it never shows."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from bridge.sandbox import Crm, SandboxServer
from bridge.settings import Verify
from tests.forging import Headers, forgeries
from tests.running import ACME, SECRET, Running, eventually, running
from tests.senders import BODY, BY_NAME, QUERY, Sender, whsec

#: One partner for each kind of header.
LIVE = tuple(
    BY_NAME[name]
    for name in ("standard-webhooks", "stripe", "github", "slack", "hubspot-v3", "zendesk", "bearer", "basic")
)
#: gunicorn's limit on one header; what is longer does not reach the service.
LONGEST_HEADER = 8190


def with_senders(folder: Path, senders: tuple[Sender, ...]) -> str:
    """The sources of these senders, their secrets written."""
    for sender in senders:
        sender.write_secret(folder)
    return "".join(sender.source() for sender in senders)


class Wire:
    """One connection that sends headers as they are, also those that are there twice."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def post(
        self, name: str, headers: Headers, body: bytes = BODY, query: str = QUERY
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers without their date, and body of the answer."""
        connection = self._connection
        connection.putrequest("POST", f"/webhooks/{name}?{query}", skip_accept_encoding=True)
        for key, value in [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]:
            connection.putheader(key, value)
        connection.endheaders(body)
        with connection.getresponse() as answer:
            content = answer.read()
            kept = [(key, value) for key, value in answer.getheaders() if key.lower() != "date"]
        if answer.will_close:
            connection.close()
        return answer.status, kept, content

    def close(self) -> None:
        self._connection.close()


def verifications(service: Running) -> Counter[tuple[str, str, str]]:
    """bridge_verifications_total by source, result and secret."""
    text = requests.get(f"{service.admin_url}/metrics", timeout=10).text
    counts: Counter[tuple[str, str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "bridge_verifications_total":
                counts[sample.labels["source"], sample.labels["result"], sample.labels["secret"]] += int(sample.value)
    return counts


def test_f38_a_real_server_answers_every_forgery_alike(tmp_path: Path) -> None:
    """401, equal to the byte but for the date; what no server takes (headers beyond its limits) is a 4xx."""
    with SandboxServer(Crm()) as sandbox, running(tmp_path, sandbox.url, sources=with_senders(tmp_path, LIVE)) as live:
        for sender in LIVE:
            wire = Wire(live.port)
            verify = Verify(sender.name, hmac=None)  # type: ignore[arg-type]  # these are named as their schemes
            answers: dict[tuple[object, ...], str] = {}
            for forgery in forgeries(sender, verify, time.time(), beyond_s=60):
                status, headers, content = wire.post(sender.name, forgery.headers, forgery.body, forgery.query)
                if any(len(name) + len(value) + 2 > LONGEST_HEADER for name, value in forgery.headers):
                    assert 400 <= status < 500, (sender.name, forgery.label, content)
                else:
                    assert status == 401, (sender.name, forgery.label, content)
                    answers.setdefault((tuple(headers), content), forgery.label)
            assert len(answers) == 1, answers
            assert wire.post(sender.name, list(sender.headers(time.time()).items()))[0] == 202, sender.name
            wire.close()
        with sqlite3.connect(tmp_path / "journal.db") as journal:
            assert journal.execute("SELECT count(*) FROM events").fetchone() == (len(LIVE),)


def _in_place(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _renamed(file: Path, text: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o600)
    fresh.rename(file)


def _mounted(file: Path, text: str) -> None:
    """As Kubernetes does: the name is a link, whose target is changed in one step."""
    fresh = file.with_name(f"..{time.time_ns()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o600)
    link = file.with_suffix(".link")
    link.symlink_to(fresh.name)
    link.rename(file)


@pytest.mark.parametrize("write", [_in_place, _renamed, _mounted])
def test_f39_a_rotation_under_load_rejects_no_valid_request(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    """Old, old and new, new only, three times over, while partners send without a pause: all answers are 202."""
    keys = [SECRET, *(whsec(f"rotation {number}") for number in range(3))]
    rejected: list[str] = []
    done: Counter[str] = Counter()
    now = {"key": SECRET}
    stop = threading.Event()

    def send(worker: int) -> None:
        file = tmp_path / f"sender{worker}.secret"
        number = 0
        with requests.Session() as session:
            while not stop.is_set():
                key = now["key"]
                file.write_text(key, encoding="utf-8")
                number += 1
                event = {"id": f"e{worker}-{number}", "client": f"c{worker}", "name": f"n{number}"}
                answer = live.post(event, session=session, secret=file)
                if answer.status_code != 202:
                    rejected.append(f"{answer.status_code} {answer.text}")
                done[f"{worker} {key}"] += 1

    with SandboxServer(Crm()) as sandbox, running(tmp_path, sandbox.url, workers=2) as live:
        senders = [threading.Thread(target=send, args=(worker,)) for worker in range(4)]
        for sender in senders:
            sender.start()
        secrets = tmp_path / "acme.secret"

        def all_have_sent_by(key: str) -> bool:
            return all(done[f"{worker} {key}"] > 4 for worker in range(4))

        try:
            for old, new in itertools.pairwise(keys):
                assert eventually(lambda key=old: all_have_sent_by(key))  # type: ignore[misc]
                write(secrets, f"{old}\n{new}\n")
                now["key"] = new
                assert eventually(lambda key=new: all_have_sent_by(key))  # type: ignore[misc]
                write(secrets, f"{new}\n")
        finally:
            stop.set()
            for sender in senders:
                sender.join(30)
        assert rejected == []
        assert sum(done.values()) > 75
        retired = tmp_path / "retired.secret"
        retired.write_text(keys[0], encoding="utf-8")
        assert eventually(lambda: live.post({"id": "late"}, secret=retired).status_code == 401)
        counted = verifications(live)
        assert counted["acme", "accepted", "0"] > 0
        assert counted["acme", "accepted", "1"] > 0
        assert counted["acme", "mismatch", ""] > 0


PAYLOAD = "payload-that-nobody-may-show"
WRONG = "credential-that-nobody-may-show"
OFTEN = 4

STRICT = """\
  strict:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    max_body: 2KiB
    on_invalid: reject
    occurred_at: at
    record: {id: client, id_property: acme_client_id}
    properties:
      company_name: {from: name, required: true}
      annual_revenue: {from: revenue, type: number}
      tier: {from: tier, type: enumeration, values: {gold: gold}}
"""


def test_neither_secrets_nor_payloads_are_shown_by_a_loaded_run(tmp_path: Path) -> None:
    """In the log at its most talkative, in metrics, status and the answers to partners, whatever fails."""
    senders = tuple(BY_NAME.values())
    operator = "token-of-an-operator-0123456789"
    environ = {"BRIDGE_LOG_LEVEL": "debug", "OPERATOR": operator}
    sources = ACME + STRICT + with_senders(tmp_path, senders)
    crm = Crm()
    crm.faults.set_rates(dict.fromkeys(("429", "500", "502", "reset", "garbage", "whole-400", "unknown"), 0.1))
    answers: list[bytes] = []
    with SandboxServer(crm) as sandbox:
        live = Running(tmp_path, sandbox.url, sources=sources, environ=environ)
        live.config.write_text(
            live.config.read_text(encoding="utf-8").replace("server:\n", "server:\n  admin_token: {env: OPERATOR}\n"),
            encoding="utf-8",
        )
        live.start()
        try:
            wire = Wire(live.port)
            for number, sender in itertools.product(range(OFTEN), senders):
                body = json.dumps({"id": f"e{number}", "client": f"c{number}", "name": f"{PAYLOAD} {number}"}).encode()
                answers.append(wire.post(sender.name, list(sender.headers(time.time(), body).items()), body)[2])
                for headers in _refused(sender):
                    status, _, content = wire.post(sender.name, headers, body, f"token={WRONG}")
                    assert status == 401, (sender.name, headers)
                    answers.append(content)
            wire.close()
            for source, payload in itertools.product(("acme", "strict"), _payloads()):
                live.post(payload, source=source)
            for method, path in (
                ("GET", f"/webhooks/acme?{WRONG}"),
                ("POST", f"/webhooks/{WRONG}"),
                ("POST", f"/{WRONG}"),
            ):
                requests.request(method, f"{live.url}{path}", data=PAYLOAD, timeout=10)
            for text in _no_requests():
                with socket.create_connection(("127.0.0.1", live.port), timeout=10) as raw:
                    raw.sendall(text.encode())
                    raw.recv(4096)
            (tmp_path / "acme.secret").write_text(f"changeme\n{WRONG}\n", encoding="utf-8")
            other = tmp_path / "other.secret"
            other.write_text(whsec("other"), encoding="utf-8")
            assert eventually(lambda: live.post({"id": "e9"}, secret=other).status_code == 401)
            (tmp_path / "github.secret").unlink()
            headers = list(BY_NAME["github"].headers(time.time()).items())
            wire = Wire(live.port)
            assert eventually(lambda: wire.post("github", headers)[0] == 401)
            wire.close()
            requests.get(f"{live.admin_url}/api/retries", headers={"Authorization": f"Bearer {WRONG}"}, timeout=10)
            assert eventually(lambda: live.status()["parked"] > 0)
            metrics = requests.get(f"{live.admin_url}/metrics", timeout=10).content
            figures = json.dumps(live.status()).encode()
        finally:
            live.stop()
    log = live.log.read_bytes()
    for proof in (b'"mismatch"', b'"missing_header"', b'"malformed"', b'"no_secret"', b"placeholder", b'"stale"'):
        assert proof in log, proof
    secrets = [sender.secret for sender in senders]
    secrets += [SECRET, operator, "a-token-for-the-sandbox", whsec("other"), WRONG]
    for name, shown in (("log", log), ("metrics", metrics), ("status", figures), ("answers", b"".join(answers))):
        for secret in (*secrets, PAYLOAD):
            for form in (secret, secret.removeprefix("whsec_"), secret.partition(":")[2] or secret):
                assert form.encode() not in shown, (name, form, _around(shown, form.encode()))


def _refused(sender: Sender) -> Iterator[Headers]:
    """One request for each reason there is to refuse it."""
    genuine = sender.headers(time.time())
    yield []
    yield [(name, WRONG) for name in genuine]
    yield [(name, f"Bearer {WRONG}") for name in genuine]
    if sender.signs_body:
        yield list(sender.headers(time.time(), b"{}").items())
    if sender.unit is not None:
        yield list(sender.headers(time.time() - 1000).items())
        yield list(sender.headers(time.time() + 1000).items())


def _payloads() -> Iterator[object]:
    """What a partner may send that is wrong in itself, all of it signed."""
    yield {"id": "p1", "client": "p1", "name": PAYLOAD, "revenue": PAYLOAD, "tier": PAYLOAD}
    yield {"id": "p1", "client": "p1", "name": f"{PAYLOAD} in another event"}
    yield {"id": "p2", "name": PAYLOAD}
    yield {"id": "p3", "client": {PAYLOAD: PAYLOAD}, "name": [PAYLOAD], "at": PAYLOAD}
    yield {"id": "p4", "client": "p4", "name": PAYLOAD + ";" * 70_000}
    yield f'{{"id": "p5", "{PAYLOAD}": "{PAYLOAD}'.encode()
    yield f'{{"id": "p6", "{PAYLOAD}": 1, "{PAYLOAD}": 2}}'.encode()
    yield f'{{"id": "p7", "name": "{PAYLOAD}\\ud800"}}'.encode()
    yield f'"{PAYLOAD}"'.encode()
    yield b'{"id": "p8", "name": ' + b"[" * 5000 + f'"{PAYLOAD}"'.encode() + b"]" * 5000 + b"}"
    yield PAYLOAD.encode() + b"\xff"
    yield gzip.compress(PAYLOAD.encode())


def _no_requests() -> Iterator[str]:
    """What is not HTTP, in each place where a server may quote it."""
    head = "POST /webhooks/acme HTTP/1.1\r\nHost: a\r\n"
    yield f"{WRONG}\r\n\r\n"
    yield f"{WRONG} /webhooks/acme?{WRONG} HTTP/9.9\r\n\r\n"
    yield f"{head}{WRONG}\r\n\r\n{PAYLOAD}"
    yield f"{head}X Token: {WRONG}\r\n\r\n{PAYLOAD}"
    yield f"{head}Content-Length: {WRONG}\r\n\r\n{PAYLOAD}"
    yield f"{head}Transfer-Encoding: {WRONG}\r\n\r\n{PAYLOAD}"
    yield f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{PAYLOAD}\r\n"
    yield f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{PAYLOAD}\r\n0\r\n\r\n"


def _around(shown: bytes, form: bytes) -> bytes:
    at = shown.index(form)
    return shown[max(0, at - 300) : at + 100]


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "cannot be read: No such file or directory"),
        ("whsec_<the secret of your endpoint>", "holds a placeholder, not a secret"),
        ("whsec_aHVudGVyMmh1bnRlcg==", "holds 13 bytes after base64; standard-webhooks needs 24 to 64"),
    ],
)
def test_without_a_sound_secret_nothing_starts(tmp_path: Path, content: str | None, told: str) -> None:
    """F52: `serve` and `check` say the same: the key, the file and what is wrong, not what it holds."""
    service = Running(tmp_path, "http://127.0.0.1:1")
    secret = tmp_path / "acme.secret"
    if content is None:
        secret.unlink()
    else:
        secret.write_text(content, encoding="utf-8")
    for command in ("check", "serve"):
        ended = service.run(command)
        assert ended.returncode == 1
        assert "bridge.yaml" in ended.stderr
        assert "sources.acme.verify.secrets[0]: the " in ended.stderr
        assert f"{secret} {told}" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert "aHVud" not in ended.stderr
