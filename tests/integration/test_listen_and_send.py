"""`send` against a real service and a real listener, for every scheme and form of body; and what `listen` keeps."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import requests

from bridge.cli import run
from bridge.settings import Scheme
from tests.forked import Forked
from tests.listening import Listening, listening
from tests.running import Running, eventually, free_port

RAW = "8c1f0b6e5d4a39271605f4e3d2c1b0a98c1f0b6e5d4a39271605f4e3d2c1b0a9"
WHSEC = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()
PUBLIC = "https://hooks.example.com"
SCHEMES = get_args(Scheme)
FORMS = {"lines": "body: ndjson", "fields": "body: form", "inside": "body: form\n    payload_field: payload"}
VARIANTS = {
    "hmac-b64": "hmac, header: X-Sig, encoding: base64, prefix: 'v=', key: hex, signed: '{id}|{method}|{url}|{body}', "
    "id: {header: X-Id}",
    "hmac-iso": "hmac, header: X-Sig, algorithm: sha512, signed: '{timestamp}.{body}', "
    "timestamp: {header: X-Time, unit: iso}",
    "token": "bearer, header: X-Token, prefix: ''",
}


def source(name: str, verify: str, more: str = "") -> str:
    scheme = verify.partition(",")[0]
    kind = {"standard-webhooks": "standard", "basic": "basic"}.get(scheme, "raw")
    secrets = "" if scheme == "none" else f", secrets: [{{file: {kind}.secret}}]"
    header = ", header: X-Signature" if verify == "hmac" else ""
    return f"""\
  {name}:
    verify: {{scheme: {verify}{header}{secrets}}}
    {more or "body: json"}
    event_id: id
    when: "type != 'ping'"
    record: {{id: client, id_property: acme_client_id}}
    properties:
      company_name: name
      annual_revenue: {{from: revenue, type: number}}
    examples:
      - payload: {{id: e1, client: "7", name: Globex, revenue: "12.50"}}
        expect: [{{id: "7", properties: {{company_name: Globex, annual_revenue: "12.5"}}}}]
"""


SOURCES = "".join(
    [
        *(source(scheme, scheme) for scheme in SCHEMES),
        *(source(name, verify) for name, verify in VARIANTS.items()),
        *(source(name, "github", more) for name, more in FORMS.items()),
    ]
)
NAMES = [*SCHEMES, *VARIANTS, *FORMS]


def written(folder: Path) -> Running:
    """A configured service with a source for every scheme, not started; the CRM is nowhere."""
    for name, text in (("raw", RAW), ("standard", WHSEC), ("basic", "acme:correct horse battery staple")):
        (folder / f"{name}.secret").write_text(text + "\n")
        (folder / f"{name}.secret").chmod(0o600)
    return Running(folder, "http://127.0.0.1:9", sources=SOURCES, public_url=PUBLIC)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A real service with a source for every scheme."""
    made = written(tmp_path_factory.mktemp("service"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def configured(tmp_path: Path) -> Running:
    """The same, not started."""
    return written(tmp_path)


def send(service: Running, *arguments: str) -> int:
    return run(["send", "--config", str(service.config), *arguments])


def checked(listener: Listening, status: int = 0) -> None:
    assert listener.stop() == status
    assert "Traceback" not in listener.notes


# --- send ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_send_signs_is_accepted(service: Running, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The example, a second time with an id of its own."""
    assert send(service, name, "--count", "2") == 0
    out, _ = capsys.readouterr()
    assert json.loads(out)["answers"] == {"202": 2}
    assert json.loads(out)["accepted"] == 2


@pytest.mark.parametrize("name", FORMS)
def test_a_json_file_is_sent_in_the_sources_form(
    service: Running, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has that form already is sent as it is."""
    file = tmp_path / "payload.json"
    file.write_text(json.dumps({"id": f"{name}-1", "client": "7", "name": "Café & Co", "revenue": "1.50"}, indent=2))
    assert send(service, name, str(file)) == 0
    assert '"accepted":1' in capsys.readouterr().out
    file.write_text({"lines": '{"id": "l2", "client": "7"}\n{"id": "l3", "client": "7"}'}.get(name, "id=f2&client=7"))
    status = send(service, name, str(file))
    assert (status, f'"accepted":{2 if name == "lines" else 1}' in capsys.readouterr().out) == (
        (1, False) if name == "inside" else (0, True)
    )


def test_a_401_is_explained(service: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer says nothing, so what may be wrong is told; and what this command itself put there."""
    assert send(service, "hubspot-v3", "--header", "x-hubspot-signature-v3: bm8=") == 1
    _, err = capsys.readouterr()
    assert "- --header x-hubspot-signature-v3 stands in place of the signature's" in err
    assert f"the scheme signs the URL, here {PUBLIC}/…" in err
    assert "another secret or scheme" in err
    assert "`listen hubspot-v3` in its place shows it" in err


def test_headers_of_ones_own_are_sent(configured: Running, tmp_path: Path) -> None:
    """Repeated, in place of those that are there, in any script."""
    with listening(tmp_path, "github", "--config", str(configured.config), "--json") as listener:
        assert send(
            configured, "github", "--url", listener.url, "--header", "X-Kind: Kundenänderung",
            "--header", "content-type: application/vnd.acme+json", "--header", "X-GitHub-Delivery: mine",
        ) == 0  # fmt: skip
        headers = listener.next()["headers"]
    assert headers["X-Kind"].encode("latin-1").decode() == "Kundenänderung"
    assert [value for name, value in headers.items() if name.lower() == "content-type"] == ["application/vnd.acme+json"]
    assert headers["X-GitHub-Delivery"] == "mine"


@pytest.mark.parametrize("path", ["", "/"])
def test_an_address_alone_is_enough(service: Running, path: str) -> None:
    assert send(service, "stripe", "--url", service.url + path) == 0


def test_a_source_that_the_service_lacks_is_told(
    service: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bridge.yaml"
    config.write_text(f"crm: {{token: {{env: T, default: pat-eu1-4f1c2a9e}}}}\nsources:\n{source('late', 'none')}")
    assert run(["send", "--config", str(config), "late", "--url", service.url]) == 1
    assert "404: the service there has no source late" in capsys.readouterr().err


def test_something_else_that_answers_is_told(
    configured: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another server on the port, not a service that refuses."""
    port = free_port()
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert eventually(lambda: _answers(port))
        assert send(configured, "stripe", "--url", f"http://127.0.0.1:{port}") == 1
    finally:
        other.terminate()
        other.wait(10)
    assert "this is no answer of Partner Bridge's" in capsys.readouterr().err


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}", timeout=2).ok
    except requests.ConnectionError:
        return False


def test_nobody_there_is_told_with_a_reason(configured: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert send(configured, "stripe") == 1
    err = capsys.readouterr().err
    assert f"{configured.url}/webhooks/stripe cannot be reached (connection refused); is it running?" in err


# --- listen -------------------------------------------------------------------------------------


def test_the_verdict_the_events_and_the_inputs_are_shown(
    configured: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a line of JSON, with why an event is ignored, parked or invalid; the answer is the service's own."""
    payload = tmp_path / "events.json"
    payload.write_text(
        json.dumps(
            [
                {"id": "e1", "client": 7, "name": "Globex", "revenue": 1.5},
                {"id": "e2", "type": "ping"},
                {"id": "e3", "name": "no client"},
                {"id": "e4", "client": 8, "revenue": "much"},
            ]
        )
    )
    with listening(tmp_path, "stripe", "--config", str(configured.config), "--json") as listener:
        assert send(configured, "stripe", str(payload), "--url", listener.url) == 0
        shown = listener.next()
        answer = json.loads(capsys.readouterr().out[4:])
        send(configured, "stripe", str(payload), "--url", listener.url)
        again = listener.next()
        checked(listener)
    assert shown["verdict"]["accepted"]
    assert shown["verdict"]["detail"] == "signed as stripe does, with its secret (raw.secret)"
    assert abs(shown["verdict"]["clock_off_s"]) < 30
    assert [event["taken_as"] for event in shown["events"]] == ["accepted", "ignored", "parked", "parked"]
    assert shown["events"][1]["why"] == "`when` does not hold: type != 'ping'"
    assert shown["events"][2]["why"] == "the record id is missing"
    assert "annual_revenue" in shown["events"][3]["invalid"]
    assert shown["inputs"] == [
        {"id": "7", "idProperty": "acme_client_id", "properties": {"company_name": "Globex", "annual_revenue": "1.5"}}
    ]
    assert json.loads(shown["answer"]["body"]) == answer
    assert (answer["accepted"], answer["ignored"], answer["parked"]) == (1, 1, 2)
    assert json.loads(again["answer"]["body"])["duplicates"] == 4
    assert not list(tmp_path.glob("*.db*")), "nothing is journalled"


@pytest.mark.parametrize("name", ["hubspot-v1", "basic"])
def test_a_secret_that_is_wrong_is_told(configured: Running, tmp_path: Path, name: str) -> None:
    """By the listener; the sender learns nothing. What the request would bring is shown all the same."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    theirs = written(folder)
    (folder / "raw.secret").write_text(RAW[::-1] + "\n")
    (folder / "standard.secret").write_text("whsec_" + base64.b64encode(b"another of twenty-four by").decode())
    (folder / "basic.secret").write_text("acme:another horse battery staple\n")
    with listening(tmp_path, name, "--config", str(configured.config), "--json") as listener:
        assert send(theirs, name, "--url", listener.url) == 1
        shown = listener.next()
    assert shown["verdict"]["reason"] == "mismatch"
    assert any("with another secret" in hint for hint in shown["verdict"]["hints"])
    assert (shown["answer"]["status"], shown["taken"]) == (401, False)
    assert shown["inputs"][0]["properties"] == {"company_name": "Globex", "annual_revenue": "12.5"}


def test_what_is_shown_reads_well_in_a_pipe(configured: Running, tmp_path: Path) -> None:
    """A block a request: missing header, a clock that is off, another path, credentials masked, nothing cut."""
    with listening(tmp_path, "stripe", "--config", str(configured.config)) as listener:
        requests.post(
            listener.url,
            json={"id": "e1", "client": "7", "name": "\x1b[31m\u202eGlobex"},
            headers={"X-Hub-Signature-256": "sha256=00", "Authorization": "Bearer sehr-geheim", "Cookie": "a=b"},
            timeout=10,
        )
        stamp = "Stripe-Signature: t=1700000000,v1=" + "0" * 64
        send(configured, "stripe", "--url", listener.url, "--header", stamp)
        requests.post(listener.url + "x", data=b"hello", timeout=10)
        requests.post(listener.url, data={"id": "e1"}, timeout=10)
        assert requests.get(listener.url.replace("/webhooks/stripe", "/readyz"), timeout=10).text == "ok\n"
        checked(listener)
    text = listener.text
    blocks = text.split("\n\n")
    assert "POST /webhooks/stripe  →  401" in blocks[0]
    assert "  signature  refused: the header stripe-signature is missing" in blocks[0]
    assert "is `scheme: github` meant?" in blocks[0]
    assert "Authorization: Bearer ***" in blocks[0]
    assert "geheim" not in text
    assert "a=b" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "s old; 300 s are tolerated" in blocks[1]
    assert "  clock      off by" in blocks[1]
    assert "this listens at /webhooks/stripe only" in blocks[2]
    assert "the source reads `body: json`; this is `body: form`" in blocks[3]
    assert "answer     401 The request could not be verified." in blocks[0]
    assert "5 requests" not in listener.notes, "probes are no requests of a partner's"
    assert "4 requests: 2 answered 401, 1 answered 404, 1 answered 415" in listener.notes


def test_a_path_that_finds_nothing_is_told(configured: Running, tmp_path: Path) -> None:
    """Of a request that is taken, and of one that is not."""
    file = tmp_path / "payload.json"
    file.write_text('{"id": "e1", "client": "7", "nmae": "A", "revenue": null}')
    with listening(tmp_path, "github", "--config", str(configured.config), "--json") as listener:
        for more, status in (((), 0), (("--header", "X-Hub-Signature-256: sha256=00"), 1)):
            assert send(configured, "github", str(file), "--url", listener.url, *more) == status
            (left_out,) = listener.next()["left_out"]
            assert left_out["absent"]["company_name"] == "name"
            assert left_out["null"] == {"annual_revenue": "revenue"}


def test_what_is_kept_is_read_by_map_send_and_examples(
    configured: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what came with gzip, or is not UTF-8; credentials are not kept; only its owner can read a file."""
    kept = tmp_path / "kept"
    with listening(tmp_path, "none", "--config", str(configured.config), "--json", "--save", str(kept)) as listener:
        event = {"id": "k1", "client": "7", "name": "Café", "revenue": 3}
        headers = {"Content-Type": "application/json", "Authorization": "Bearer sehr-geheim", "X-Topic": "clients"}
        packed = gzip.compress(json.dumps(event).encode())
        for body, more in ((packed, {"Content-Encoding": "gzip"}), (b'{"id": "\xff"}', {})):
            requests.post(listener.url, data=body, headers=headers | more, params={"a": "1"}, timeout=10)
            shown = listener.next()
            assert Path(shown["saved"]).is_file()
        checked(listener)
    good, bad = sorted(kept.iterdir())
    assert stat.S_IMODE(good.stat().st_mode) == 0o600
    assert f"next: partner-bridge map none {good}" in listener.notes
    assert "geheim" not in good.read_text()
    assert json.loads(json.loads(good.read_text())["body"]) == event
    assert base64.b64decode(json.loads(bad.read_text())["body_base64"]) == b'{"id": "\xff"}'
    config = str(configured.config)
    assert run(["map", "--config", config, "none", str(good)]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"][0]["properties"]["company_name"] == "Café"
    assert run(["map", "--config", config, "none", str(bad)]) == 1
    assert "the body is not UTF-8" in capsys.readouterr().out
    text = configured.config.read_text()
    expected = 'expect: [{id: "7", properties: {company_name: Café, annual_revenue: "3"}}]'
    block_of_both = f'    examples:\n      - {{file: "{good}", {expected}}}\n      - {{file: "{bad}", ignored: true}}\n'
    head, _, tail = text.partition("  none:\n")
    block, _, rest = tail.partition("    examples:\n")
    configured.config.write_text(
        head + "  none:\n" + block + block_of_both + "".join(rest.splitlines(keepends=True)[2:])
    )
    assert run(["check", "--sandbox", "--config", config]) == 1
    out, err = capsys.readouterr()
    problems = [line for line in (out + err).splitlines() if not line.startswith("warning: ")]
    assert len(problems) == 1, problems
    assert "sources.none.examples[1]: the payload is refused: the body is not UTF-8" in problems[0]


def test_a_kept_request_is_sent_anew(service: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Signed anew: the signature it came with is of another day. Its own headers and query go along."""
    saved = {
        "source": "slack", "method": "POST", "path": "/webhooks/slack", "query": "x=1", "verdict": {},
        "headers": {
            "Host": "elsewhere", "Content-Length": "7", "X-Slack-Signature": "v0=00", "X-Slack-Request-Timestamp": "1",
            "Content-Type": "application/json; charset=utf-8", "Authorization": "Bearer ***",
        },
        "body": '{"id": "again", "client": "7", "name": "Globex"}',
    }  # fmt: skip
    file = tmp_path / "saved.json"
    file.write_text(json.dumps(saved))
    for name in ("slack", "bearer", "hubspot-v3"):
        assert send(service, name, str(file)) == 0, capsys.readouterr()


def test_a_partner_without_a_configuration_is_shown_too(tmp_path: Path) -> None:
    """Nothing but an empty folder: what comes, how it is signed, and what to type next."""
    environ = {"BRIDGE_CONFIG": ""}
    with listening(tmp_path, "globex", "--json", "--credentials", environ=environ) as listener:
        headers = {"X-Shopify-Hmac-SHA256": "00", "Cookie": "asked=for"}
        answer = requests.post(listener.url, json={"a": 1}, headers=headers, timeout=10)
        assert (answer.status_code, answer.json()["accepted"]) == (202, 0)
        shown = listener.next()
        requests.get(listener.url, params={"hub.challenge": "1"}, timeout=10)
        handshake = listener.next()
        checked(listener)
    assert shown["body"] == '{"a": 1}'
    assert shown["headers"]["Cookie"] == "asked=for"
    assert shown["verdict"] is None
    assert "inputs" not in shown
    assert shown["notes"] == ["authenticated as shopify does: `verify: {scheme: shopify, …}`"]
    assert handshake["notes"] == ["this looks like a handshake, which `challenge:` of the source answers"]
    assert "there is no bridge.yaml" in listener.notes
    assert listener.notes.splitlines()[-1] == "next: partner-bridge init --from shopify"


def test_a_handshake_is_answered_as_the_service_does(configured: Running, tmp_path: Path) -> None:
    """And a body that is too long is refused as there."""
    text = configured.config.read_text()
    handshake = "    max_body: 100\n    challenge: {method: GET, reply: _query.challenge}\n    event_id: id\n"
    head, _, tail = text.partition("  none:\n")
    configured.config.write_text(head + "  none:\n" + tail.replace("    event_id: id\n", handshake, 1))
    with listening(tmp_path, "none", "--config", str(configured.config), "--json") as listener:
        assert requests.get(listener.url, params={"challenge": "abc"}, timeout=10).text == "abc"
        assert listener.next()["notes"] == ["a handshake, answered as `challenge:` says"]
        assert requests.post(listener.url, json={"name": "x" * 200}, timeout=10).status_code == 413
        assert listener.next()["notes"] == ["its body was not read: raise `max_body` of the source or of `server`"]
        checked(listener)


def test_a_source_that_the_file_lacks_is_shown_too(configured: Running, tmp_path: Path) -> None:
    """With what to add to the file."""
    with listening(tmp_path, "new-one", "--config", str(configured.config), "--json") as listener:
        requests.post(listener.url, json={}, headers={"X-Slack-Signature": "v0=00"}, timeout=10)
        listener.next()
        checked(listener)
    assert "has no source new-one" in listener.notes
    assert "  new-one:\n    verify: {scheme: slack, secrets: [{env: NEW_ONE_SECRET}]}\n" in listener.notes


def test_a_port_that_is_taken_and_a_file_that_is_not_there_are_told(
    service: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence each."""
    assert run(["listen", "stripe", "--config", str(service.config)]) == 1
    assert f"cannot listen on 127.0.0.1:{service.port}: Address already in use" in capsys.readouterr().err
    assert run(["listen", "stripe", "--config", str(tmp_path / "gone.yaml")]) == 1
    assert "gone.yaml" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run(["listen", "stripe", "--config", str(service.config), "--save", str(tmp_path / "file" / "in")]) == 1
    assert "change --save" in capsys.readouterr().err


def test_on_a_terminal_it_fits_eighty_columns(configured: Running, tmp_path: Path) -> None:
    """In colours, folded, a long body cut."""
    import pty
    import struct
    import termios
    from fcntl import ioctl

    main, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    port = free_port()
    process = Forked(
        ["listen", "none", "--config", str(configured.config), "--port", str(port)],
        stdout=terminal,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"},
    )
    os.close(terminal)
    try:
        assert eventually(lambda: _ready(port))
        event = {"id": "e1", "client": "7", "name": "Globex " * 30, "list": list(range(500))}
        requests.post(f"http://127.0.0.1:{port}/webhooks/none", json=event, timeout=10)
        shown = b""
        while b"parked" not in shown:
            shown += os.read(main, 65_536)
    finally:
        process.terminate()
        assert process.wait(20) == 0
        os.close(main)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert max(map(len, plain.splitlines())) <= 80
    assert "more lines; --save keeps them" in plain
    assert "\x1b[" in shown.decode()


def _ready(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=2).ok
    except requests.ConnectionError:
        return False
