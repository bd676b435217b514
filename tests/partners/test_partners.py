"""Five partner systems as they are: each folder holds a source, payloads, and the inputs they must become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load_settings
from bridge.intake.mapping import Mapped, compile_source
from bridge.intake.payload import parse_json
from bridge.intake.signatures import SignedRequest, Verified, Verifier, sign
from bridge.settings import Settings
from bridge.tryout.dry_run import report

HERE = Path(__file__).parent
PUBLIC_URL = "https://hooks.example.com"
NOW = 1_767_323_045.0
CASES = sorted(path for path in HERE.glob("*/*.expected.json"))


@pytest.fixture(scope="module")
def partners(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """All five in one configuration, as `include:` joins them."""
    file = tmp_path_factory.mktemp("partners") / "bridge.yaml"
    file.write_text(
        f"crm: {{token: {{env: TOKEN}}}}\nserver: {{public_url: {PUBLIC_URL}}}\ninclude: [{HERE}/*/source.yaml]\n"
    )
    environ = {f"{path.parent.name.upper()}_SECRET": "q8Zr-1vYw3KpT6xJ0cNf5sLbA" for path in CASES}
    environ |= {"TOKEN": "pat-eu1-4f1c2a9e-77b0", "ERP_LOGIN": "erp:Vk3-wqz8-rmt4"}
    return load_settings(file, environ=environ)


def deliver(settings: Settings, name: str, body: bytes, headers: dict[str, str], query: dict[str, str]) -> Mapped:
    """Sign the body as the partner would, verify it, and map it."""
    source = settings.sources[name]
    path = f"/webhooks/{name}" + ("?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else "")
    signed = sign(source.verify, body=body, url=PUBLIC_URL + path, now=NOW, delivery_id="delivery-1")
    request = SignedRequest("POST", path, [*signed.items(), *headers.items()], body)
    verdict = Verifier(source.verify, PUBLIC_URL).verify(request, NOW)
    assert isinstance(verdict, Verified)
    compiled = compile_source(source, PUBLIC_URL)
    mapped = compiled.map_body(
        parse_json(body),
        headers=signed | headers,
        query=query,
        delivery_id=verdict.delivery_id or "delivery-1",
        signed_hash=verdict.signed_hash,
    )
    for event in mapped.events:  # what is kept is enough to map it again
        again = compiled.remap(event.payload, event.context, event.root)
        assert (again.updates, again.unmappable) == (event.updates, event.unmappable)
    return mapped


def beside(path: Path, kind: str) -> dict[str, Any]:
    file = path.with_name(path.name.replace(".expected.", f".{kind}."))
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name.partition('.')[0]}")
def test_a_partners_payload_becomes_what_was_agreed(partners: Settings, case: Path) -> None:
    """Inputs, ignored and parked events, and every message."""
    body = case.with_name(case.name.replace(".expected.", ".")).read_bytes()
    mapped = deliver(partners, case.parent.name, body, beside(case, "headers"), beside(case, "query"))
    found = report(mapped)
    found.pop("object_type")
    nothing: dict[str, Any] = {"ignored": [], "parked": [], "invalid": [], "left_out": []}
    assert found == nothing | json.loads(case.read_text())


def test_the_nightly_array_is_five_thousand_events(partners: Settings) -> None:
    """Each keeps of the whole payload only what its mapping looks at."""
    client = json.loads((HERE / "erp" / "small.json").read_text())["run"]["clients"][0]
    run = {"id": "2026-01-03", "finished": "2026-01-03T03:04:05", "mandant": 10}
    clients = [{**client, "number": f"{number:06}"} for number in range(5_000)]
    mapped = deliver(partners, "erp", json.dumps({"run": {**run, "clients": clients}}).encode(), {}, {})
    assert len({event.id for event in mapped.events}) == 5_000
    assert {event.root for event in mapped.events} == {'{"run":{"mandant":10}}'}
    assert {event.occurred_at_us for event in mapped.events} == {1_767_405_845_000_000}
    assert not mapped.invalid
    assert len(report(mapped)["inputs"]) == 5_000


def test_no_partner_needs_code(partners: Settings) -> None:
    """None of the five uses `schema:`."""
    assert sorted(partners.sources) == ["billing", "erp", "hubspot", "shop", "ticketing"]
    assert not any(block.schema for source in partners.sources.values() for block in source.mappings)
