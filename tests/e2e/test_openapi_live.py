"""A running service against its own `/openapi.json`: schemathesis makes the requests and judges the answers.

Signed and unsigned, fitting the schemas and not: no 5xx, every answer as it is documented, and the journal
holds exactly the events that were acknowledged.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Err
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bridge.config import load_settings
from bridge.intake.mapping import compile_source
from bridge.intake.signatures import sign
from bridge.sandbox import Crm, SandboxServer
from bridge.settings import Source
from tests.configurations import ENVIRON, joined_sources
from tests.running import Running, running

JUDGES = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@schemathesis.serializer("application/x-ndjson")
def lines(_ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """The list that the schema describes, as it is sent; of what is no list, one line."""
    values = value if isinstance(value, list) else [value]
    return b"\n".join(json.dumps(one).encode() for one in values)


class Signer(requests.auth.AuthBase):
    """Signs whatever is sent, as the partner would."""

    def __init__(self, source: Source, public_url: str) -> None:
        self._source = source
        self._public_url = public_url
        self._number = itertools.count()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        signed = sign(
            self._source.verify,
            body=body_of(request),
            url=self._public_url + request.path_url,
            method=request.method or "",
            now=time.time(),
            delivery_id=f"delivery-{next(self._number)}",
        )
        request.headers.update(signed)
        return request


def body_of(request: requests.PreparedRequest) -> bytes:
    body = request.body or b""
    assert isinstance(body, (str, bytes))
    return body.encode() if isinstance(body, str) else body


class Partner:
    """One source of the service, with the count of what was acknowledged."""

    def __init__(self, source: Source, public_url: str) -> None:
        self.source = source
        self.compiled = compile_source(source, public_url)
        self.signer = Signer(source, public_url)
        self.kept = 0

    def mistrusts(self, body: bytes) -> bool:
        """Whether the scheme may refuse a body however it is signed: a plain hash can be extended, by bytes that
        are no text.
        """
        try:
            body.decode()
        except UnicodeDecodeError:
            return self.source.verify.scheme in {"hubspot-v1", "hubspot-v2"}
        return False

    def acknowledge(self, answer: Any) -> None:
        """Count the events that an answer promises to keep."""
        if not 200 <= answer.status_code < 300:
            return
        if self.source.reply.body == "none":
            self.kept += len(self.compiled.map_body(self.compiled.decode(body_of(answer.request))).events)
        elif answer.status_code == self.source.reply.status:  # else a handshake
            counts = answer.json()
            self.kept += counts["accepted"] + counts["ignored"] + counts["parked"]


def events_in_journal(service: Running) -> Counter[str]:
    """By source."""
    found: Counter[str] = Counter()
    after = 0
    while True:
        url = f"{service.admin_url}/api/events?limit=10000&after={after}"
        rows = requests.get(url, timeout=30).json()
        if not rows:
            return found
        found.update(row["source"] for row in rows)
        after = rows[-1]["seq"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With all configurations' sources at once."""
    folder = tmp_path_factory.mktemp("openapi")
    with (
        SandboxServer(Crm(tokens=["a-token-for-the-sandbox"])) as crm,
        running(folder, crm.url, sources=joined_sources(), environ=ENVIRON) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def partners(service: Running) -> dict[str, Partner]:
    loaded = load_settings(service.config, environ=ENVIRON)
    return {name: Partner(source, service.public_url) for name, source in loaded.sources.items()}


def fetched(service: Running) -> dict[str, Any]:
    answer = requests.get(f"{service.admin_url}/openapi.json", timeout=10)
    assert answer.headers["Content-Type"] == "application/json"
    document: dict[str, Any] = answer.json()
    return document


def test_what_is_documented_is_what_the_service_routes(service: Running, partners: dict[str, Partner]) -> None:
    """Every documented method of every path, no other method, and no other path."""
    paths = fetched(service)["paths"]
    assert set(paths) == {f"/webhooks/{name}" for name in partners} | {"/livez", "/readyz"}
    for path, operations in paths.items():
        documented = {method.upper() for method in operations}
        if path in {"/livez", "/readyz"}:
            documented.add("HEAD")  # as HTTP has it wherever there is GET
        for method in METHODS:
            answer = requests.request(method, service.url + path, timeout=10, headers={"Content-Length": "0"})
            assert (answer.status_code != 405) == (method in documented), (method, path, answer.status_code)
    for path in ("/", "/openapi.json", "/metrics", "/status", "/webhooks", "/webhooks/nobody"):
        assert requests.post(service.url + path, timeout=10).status_code in {404, 405}


def probe(service: Running, partners: dict[str, Partner], examples: int) -> None:
    """Send each operation so many requests that fit its schemas, and so many that do not."""
    schema = schemathesis.openapi.from_dict(fetched(service))
    schema.config.update(base_url=service.url)
    with requests.Session() as session:
        for found in schema.get_all_operations():
            assert not isinstance(found, Err)
            operation = found.ok()
            partner = partners.get(operation.path.removeprefix("/webhooks/"))
            for mode in GenerationMode if operation.body else [GenerationMode.POSITIVE]:
                probe_one(operation.as_strategy(generation_mode=mode), partner, session, examples)


def probe_one(
    cases: SearchStrategy[Case[Any]], partner: Partner | None, session: requests.Session, examples: int
) -> None:
    """Each request goes out as the partner signs it, and once more unsigned."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def check(case: Case[Any]) -> None:
        answer = case.call(session=session, auth=partner and partner.signer, timeout=10)
        case.validate_response(answer, checks=JUDGES)
        if partner is None:
            return
        assert answer.status_code != 401 or partner.mistrusts(body_of(answer.request))
        partner.acknowledge(answer)
        if partner.source.verify.scheme != "none":
            unsigned = case.call(session=session, timeout=10)
            case.validate_response(unsigned, checks=JUDGES)
            assert unsigned.status_code >= 400 or partner.source.challenge is not None

    check()


def account(service: Running, partners: dict[str, Partner]) -> None:
    """The journal holds what was acknowledged, no more and no less."""
    held = events_in_journal(service)
    assert held == Counter({name: partner.kept for name, partner in partners.items() if partner.kept})
    assert sum(held.values()) > 100


def test_every_answer_is_documented_and_nothing_is_taken_in_part(
    service: Running, partners: dict[str, Partner]
) -> None:
    """A round for every change."""
    probe(service, partners, 3)
    account(service, partners)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_the_same_with_many_more_requests(service: Running, partners: dict[str, Partner]) -> None:
    """A round for the night."""
    probe(service, partners, 60)
    account(service, partners)
