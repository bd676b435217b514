"""F38 through the whole application: genuine requests of every scheme are taken, and no forgery is.

Configuration, journal and Flask app are real; only the clock stands still.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hubspot.utils.signature import Signature
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client, TestResponse

from bridge.config import load
from bridge.server.service import Service
from tests.empty_journal import prepare
from tests.fakes import FakeClock
from tests.forging import Headers, extend_sha256, forgeries
from tests.senders import BODY, BY_NAME, HUBSPOT_URL, PUBLIC_URL, QUERY, ROTATING, SENDERS, Sender, url_of

NOW = 1_800_000_000.0

names = pytest.mark.parametrize("name", BY_NAME)


class House:
    """The public app of one service, with a source for each sender."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        senders = (*SENDERS, ROTATING)
        for sender in senders:
            sender.write_secret(folder)
        file = folder / "bridge.yaml"
        file.write_text(
            f"journal: {{url: 'sqlite:///{folder}/journal.db'}}\n"
            f"server: {{public_url: '{PUBLIC_URL}'}}\n"
            "sources:\n" + "".join(sender.source() for sender in senders),
            encoding="utf-8",
        )
        self.settings = load(file, environ={}, sandbox=True).settings
        prepare(self.settings.journal.url)
        self.service = Service(settings=self.settings, clock=FakeClock(NOW))
        self.client = Client(self.service.public)

    def post(self, name: str, headers: Headers, body: bytes = BODY, query: str = QUERY) -> TestResponse:
        sent = [("Content-Type", "application/json"), *headers]
        return self.client.post(f"/webhooks/{name}", query_string=query, data=body, headers=sent)

    def genuine(self, sender: Sender, body: bytes = BODY) -> TestResponse:
        return self.post(sender.name, list(sender.headers(NOW, body).items()), body)

    def stored(self) -> int:
        with sqlite3.connect(self.folder / "journal.db") as journal:
            return int(journal.execute("SELECT count(*) FROM events").fetchone()[0])

    def verifications(self) -> Counter[tuple[str, str, str]]:
        """bridge_verifications_total by source, result and secret."""
        text = self.service.metrics.exposition(self.service.gauges).decode()
        counts: Counter[tuple[str, str, str]] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "bridge_verifications_total":
                    labels = sample.labels
                    counts[labels["source"], labels["result"], labels["secret"]] += int(sample.value)
        return counts


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    yield house
    house.service.stop()


@names
def test_a_genuine_request_is_taken(house: House, name: str) -> None:
    """As the vendor's own library signs it, where there is one."""
    answer = house.genuine(BY_NAME[name])

    assert answer.status_code == 202, answer.text
    assert answer.json is not None
    assert answer.json["accepted"] + answer.json["duplicates"] == 1


def test_a_sender_that_changes_its_secret_signs_by_both(house: House) -> None:
    """The header then has a time for each signature; they must agree."""
    headers = ROTATING.headers(NOW)
    assert house.post(ROTATING.name, list(headers.items())).status_code == 202

    name, value = next(iter(headers.items()))
    assert house.post(ROTATING.name, [(name, value.replace("t=18", "t=17", 1))]).status_code == 401


def test_hubspots_libraries_sign_the_url_as_it_is(house: House) -> None:
    """While HubSpot itself decodes some escapes first; either is taken, and no third way."""
    for url, status in ((url_of("hubspot-v3"), 202), (HUBSPOT_URL, 202), (url_of("hubspot-v3").lower(), 401)):
        signature = Signature.get_signature(
            BY_NAME["hubspot-v3"].secret, BODY.decode(), "v3", url, "POST", str(int(NOW * 1000))
        )
        headers = [("X-HubSpot-Signature-v3", signature), ("X-HubSpot-Request-Timestamp", str(int(NOW * 1000)))]
        assert house.post("hubspot-v3", headers).status_code == status, url


@names
def test_f38_no_forgery_is_taken_and_all_get_one_answer(house: House, name: str) -> None:
    """401, equal to the byte in status, headers and body; nothing is stored."""
    before = house.stored()
    answers: dict[tuple[Any, ...], str] = {}
    number = 0
    for forgery in forgeries(BY_NAME[name], house.settings.sources[name].verify, NOW):
        answer = house.post(name, forgery.headers, forgery.body, forgery.query)
        assert answer.status_code == 401, (forgery.label, answer.text)
        answers.setdefault((answer.status, tuple(answer.headers), answer.data), forgery.label)
        number += 1

    assert len(answers) == 1, answers
    assert number > (60 if BY_NAME[name].signs_body else 40)
    assert house.stored() == before


def test_f38_what_one_partner_sent_is_not_taken_from_another(house: House) -> None:
    """Each genuine request, posted to every other source."""
    before = house.stored()
    for sender in SENDERS:
        headers = list(sender.headers(NOW).items())
        for other in SENDERS:
            if other is not sender:
                answer = house.post(other.name, headers)
                assert answer.status_code == 401, (sender.name, other.name)
    assert house.stored() == before


@names
def test_which_secret_matched_is_counted(house: House, name: str) -> None:
    """By its position among all that the source has; what was refused has none."""
    sender = BY_NAME[name]
    before = house.verifications()
    house.genuine(sender)
    house.post(name, [])
    after = house.verifications()

    assert after - before == {(name, "accepted", "0"): 1, (name, "missing_header", ""): 1}


def test_a_request_that_is_extended_behind_a_plain_hash_is_not_taken(house: House) -> None:
    """SHA-256 of secret and body can be continued by anybody; what comes out is no text, and refused."""
    sender = BY_NAME["hubspot-v1"]
    extension = b'{"id": "e2", "client": "c1", "name": "forged"}'
    genuine = sender.headers(NOW)["X-HubSpot-Signature"]
    padding, forged = extend_sha256(genuine, len(sender.secret.encode() + BODY), extension)
    body = BODY + padding + extension
    assert forged == hashlib.sha256(sender.secret.encode() + body).hexdigest()

    assert house.post(sender.name, [("X-HubSpot-Signature", forged)], body).status_code == 401


@pytest.mark.parametrize(
    "name, challenge",
    [
        ("basic", 'Basic realm="partner-bridge", charset="UTF-8"'),
        ("bearer", 'Bearer realm="partner-bridge"'),
        ("bearer-token", None),
        ("github", None),
    ],
)
def test_clients_are_asked_for_credentials_where_http_has_a_way(house: House, name: str, challenge: str | None) -> None:
    """Some send a password only after they were asked for it (RFC 9110, 11.6.1)."""
    assert house.post(name, []).headers.get("WWW-Authenticate") == challenge
