"""`GET /openapi.json`: a document that is valid, says who may come in and how, and leaves no answer out."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator

from bridge.http.problems import register_problem_handlers
from bridge.intake.payload import to_json
from bridge.operations.access import guard
from bridge.operations.openapi import build_document, openapi_blueprint
from bridge.operations.openapi.document import MAX_PROPERTIES
from bridge.settings import Crm, Property, Secret, Server, Settings
from tests.configurations import configurations


@functools.cache
def document(label: str) -> dict[str, Any]:
    """As a client reads it."""
    found: dict[str, Any] = json.loads(to_json(build_document(configurations()[label])))
    return found


def post(source: str, label: str = "everything") -> dict[str, Any]:
    found: dict[str, Any] = document(label)["paths"][f"/webhooks/{source}"]["post"]
    return found


def event(source: str, label: str = "everything") -> dict[str, Any]:
    found: dict[str, Any] = document(label)["components"]["schemas"][f"{source}.event"]
    return found


@pytest.mark.parametrize("label", sorted(configurations()))
def test_it_is_valid_openapi_3_1(label: str) -> None:
    """Judged by an independent validator, for whatever may be configured."""
    assert document(label)["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(document(label)).iter_errors()) == []


@pytest.mark.parametrize("label", sorted(configurations()))
def test_each_source_has_a_path_of_its_own_and_the_probes_are_there(label: str) -> None:
    paths = {f"/webhooks/{name}" for name in configurations()[label].sources} | {"/livez", "/readyz"}
    assert set(document(label)["paths"]) == paths


def test_plain_paths_become_nested_properties() -> None:
    """What partners have to send, with types, options and what may not be missing."""
    acme = event("acme", "init-standard-webhooks")
    updated = acme["anyOf"][0]
    assert updated["properties"]["type"] == {"const": "client.updated"}
    client = updated["properties"]["data"]["properties"]["client"]
    assert client["required"] == ["id"]
    assert set(client["properties"]) == {"id", "name", "arr_cents", "renews_on", "active", "plan", "email"}
    assert client["properties"]["plan"]["anyOf"][0] == {"enum": ["Gold", "Silver"]}
    assert client["properties"]["arr_cents"]["anyOf"][0] == {"type": "number"}
    assert client["properties"]["active"]["anyOf"][0] == {"type": "boolean"}
    assert client["properties"]["email"]["anyOf"][0] == {"type": "string", "format": "email"}
    assert updated["required"] == ["type", "data"]
    assert acme["anyOf"][1]["title"] == "Ignored"


def test_events_decide_what_the_document_is() -> None:
    """An event or a list of events, at the top or where the expression finds them."""
    schemas = document("everything")["components"]["schemas"]
    one = {"$ref": "#/components/schemas/types.event"}
    assert [found.get("items", found) for found in schemas["types"]["anyOf"]] == [one, one]
    nested = schemas["several"]["properties"]["data"]["properties"]["events"]
    assert [found.get("items", found)["$ref"][-12:] for found in nested["anyOf"]] == ["everal.event"] * 2
    assert schemas["several"]["required"] == ["data"]
    assert schemas["several"]["properties"]["tenant"]["description"].startswith("Which record is meant")


def test_what_cannot_be_derived_is_open_and_says_how_it_is_read() -> None:
    client = event("types")["properties"]["client"]["properties"]
    assert client["a"] == {"description": "Becomes `computed`, read by `join('-', [client.a, client.b])`."}


@pytest.mark.parametrize(
    "source, schemes",
    [
        ("types", [{"webhook-signature", "webhook-timestamp", "webhook-id"},
                   {"svix-signature", "svix-timestamp", "svix-id"}]),
        ("several", [{"X-Signature", "X-Time", "X-Id"}]),
        ("pairs", [{"X-Token"}]),
        ("single", []),
        ("lines", [{"bearer"}]),
        ("form", [{"basic"}]),
        ("hello", [{"X-HubSpot-Signature-v3", "X-HubSpot-Request-Timestamp"}]),
        ("own", [{"X-Hub-Signature-256"}]),
    ],
)  # fmt: skip
def test_it_says_how_requests_prove_themselves(source: str, schemes: list[set[str]]) -> None:
    """HTTP's own schemes where they fit, else every header that is needed."""
    known = document("everything")["components"]["securitySchemes"]
    needed = [{known[name].get("name", known[name].get("scheme")) for name in one} for one in post(source)["security"]]
    assert needed == schemes


def test_it_says_how_to_sign() -> None:
    """Enough to write a client: algorithm, encoding, what is signed, and the headers that belong to it."""
    known = document("everything")["components"]["securitySchemes"]
    about = known["several.x-signature"]["description"]
    for text in ("HMAC-SHA512, in base64", "`{id}.{method}.{url}.{timestamp}.{body}`", "https://hooks.example.com"):
        assert text in about
    assert "milliseconds" in known["several.x-time"]["description"]
    assert "300 s" in known["several.x-time"]["description"]
    assert "the same each time" in known["several.x-id"]["description"]
    assert "`Token `" in known["pairs.x-token"]["description"]
    stripe = document("init-stripe")["components"]["securitySchemes"]["stripe.stripe-signature"]["description"]
    assert "`t={timestamp},v1=…`" in stripe


def test_no_secret_is_in_it() -> None:
    """Of any source of any configuration."""
    for label, settings in configurations().items():
        text = json.dumps(document(label))
        secrets = [secret.text() for source in settings.sources.values() for secret in source.verify.secrets]
        assert [secret for secret in secrets if secret in text] == []


def test_all_answers_are_there() -> None:
    """Those of every source, and 422 and 429 where the source may give them."""
    sources = configurations()["everything"].sources
    always = {"400", "404", "405", "408", "413", "414", "415", "417", "431", "501", "503"}
    assert set(post("several")["responses"]) == always | {"202", "401"}
    assert set(post("types")["responses"]) == always | {"202", "401", "422"}
    assert set(post("pairs")["responses"]) == always | {"202", "401", "429"}
    assert set(post("single")["responses"]) == always | {"202"}
    assert "content" not in post("lines")["responses"]["200"]
    answers = post("pairs")["responses"]
    assert {status for status, answer in answers.items() if "Retry-After" in answer.get("headers", {})} == {
        "429",
        "503",
    }
    assert {name for name in sources if "headers" in post(name)["responses"].get("401", {})} == {"form", "lines"}
    problems = [list(answer["content"]) for status, answer in answers.items() if status >= "4"]
    assert problems == [["application/problem+json"]] * len(problems)


def test_bodies_have_their_media_types() -> None:
    """JSON, lines of JSON, forms, and JSON inside a form's field."""
    bodies = {name: post(name)["requestBody"]["content"] for name in ("types", "lines", "form", "inside")}
    kinds = {name: list(content) for name, content in bodies.items()}
    form = "application/x-www-form-urlencoded"
    assert kinds == {"types": ["application/json"], "lines": ["application/x-ndjson"], "form": [form], "inside": [form]}
    inside = bodies["inside"][form]["schema"]
    assert inside["required"] == ["payload"]
    assert inside["properties"]["payload"]["contentSchema"] == {"$ref": "#/components/schemas/inside"}
    assert "gzip" in post("types")["requestBody"]["description"]


def test_headers_and_parameters_that_are_read_are_named() -> None:
    """Those of the mapping, and the delivery id where the scheme does not sign it."""

    def named(source: str, label: str) -> set[tuple[str, str]]:
        return {(one["in"], one["name"]) for one in post(source, label)["parameters"]}

    assert named("shop", "partners") == {
        ("header", "X-Shop-Topic"), ("header", "X-Shop-Domain"), ("header", "X-Shop-Webhook-Id")
    }  # fmt: skip
    assert named("ticketing", "partners") == {("query", "tenant")}
    assert named("pairs", "everything") == {("header", "X-Sent-At"), ("query", "tenant")}


def test_handshakes_are_described() -> None:
    """A GET of its own, or one more body and answer of the POST."""
    hello = document("everything")["paths"]["/webhooks/hello"]["get"]
    assert [one["name"] for one in hello["parameters"]] == ["challenge", "mode"]
    assert list(hello["responses"]["200"]["content"]) == ["text/plain"]
    assert hello["security"] == []
    assert {"200", "202"} <= set(post("handshake")["responses"])
    body = document("everything")["components"]["schemas"]["handshake"]
    assert not post("handshake")["requestBody"]["required"]
    assert body["anyOf"][1]["required"] == ["type", "challenge"]


def test_the_server_is_what_partners_call() -> None:
    """The public URL, else what is bound."""

    def url(**options: Any) -> str:
        found: str = build_document(Settings(Crm(), server=Server(**options)))["servers"][0]["url"]
        return found

    assert document("everything")["servers"] == [{"url": "https://hooks.example.com"}]
    assert url() == "http://localhost:8080"
    assert url(bind=("::1", 80)) == "http://[::1]:80"
    assert url(bind=("10.1.2.3", 80)) == "http://10.1.2.3:80"


EVERYWHERE = ".".join("0000")


class Admin:
    """The route behind the guard of the admin port."""

    def __init__(self, host: str, token: Secret | None) -> None:
        self.settings = configurations()["init-hmac"]
        app = Flask("test")
        app.register_blueprint(openapi_blueprint(lambda: self.settings))
        guard(app, host=host, token=token)
        register_problem_handlers(app)
        self.client = app.test_client()

    def get(self, query: str = "", **headers: str) -> Any:
        return self.client.get(f"/openapi.json{query}", headers=headers, base_url="http://localhost")


@pytest.mark.parametrize(
    "host, token, headers, status",
    [
        ("127.0.0.1", False, {}, 200),
        ("127.0.0.1", True, {}, 401),
        (EVERYWHERE, False, {}, 403),
        (EVERYWHERE, True, {}, 401),
        (EVERYWHERE, True, {"Authorization": "Bearer a-token-of-the-operators"}, 200),
    ],
)
def test_it_is_for_operators(host: str, token: bool, headers: Mapping[str, str], status: int) -> None:
    """As the rest of the admin port: off without a token where others reach it."""
    secret = Secret(env="UNSET_IN_TESTS", default="a-token-of-the-operators") if token else None
    answer = Admin(host, secret).get(**headers)
    assert answer.status_code == status
    assert status != 200 or answer.get_json()["openapi"] == "3.1.0"


def test_it_follows_the_configuration() -> None:
    """The same bytes until the settings are others, which a reload brings."""
    admin = Admin("127.0.0.1", None)
    first = admin.get().data
    assert admin.get().data == first
    admin.settings = configurations()["init-stripe"]
    assert b"/webhooks/stripe" in admin.get().data


def test_it_is_bounded_and_one_source_can_be_asked_for_alone() -> None:
    """Of more properties than one document holds it says how many there are and what to ask for."""
    admin = Admin("127.0.0.1", None)
    many = configurations()["everything"]
    [first, second, *_] = many.sources.values()
    block = first.mappings[0]
    wide = replace(
        first, mappings=(replace(block, properties={f"p{n}": Property("a") for n in range(MAX_PROPERTIES)}),)
    )
    admin.settings = replace(many, sources={first.name: wide, second.name: second})
    refused = admin.get()
    assert refused.status_code == 422
    assert "2 sources with 200" in refused.get_json()["detail"]
    assert "?source=NAME" in refused.get_json()["detail"]
    only = admin.get(f"?source={second.name}")
    OpenAPIV31SpecValidator(only.get_json()).validate()
    assert [path for path in only.get_json()["paths"] if path.startswith("/webhooks/")] == [f"/webhooks/{second.name}"]
    assert admin.get("?source=nobody").status_code == 404
