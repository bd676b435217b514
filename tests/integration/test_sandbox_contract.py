"""The sandbox over HTTP: what HubSpot's contract says about updates that nothing goes wrong with but the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from bridge.model import Lane, RecordKey
from bridge.sandbox import Behaviour, Crm, SandboxServer, ViolationKind

PATH = "/crm/v3/objects/partner_clients/batch/update"
TOKEN = {"Authorization": "Bearer pat-test"}


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Crm(open_properties=False)) as server:
        yield server


def entry(id_: str, trace: str | None = None, id_property: str | None = None, **properties: Any) -> dict[str, Any]:
    optional = {"objectWriteTraceId": trace, "idProperty": id_property}
    return {"id": id_, "properties": properties} | {key: value for key, value in optional.items() if value}


def post(server: SandboxServer, *inputs: Any, path: str = PATH, **more: Any) -> requests.Response:
    body = {"json": {"inputs": list(inputs)}} | more
    return requests.post(f"{server.url}{path}", headers=TOKEN, timeout=10, **body)


def kinds(server: SandboxServer) -> list[ViolationKind]:
    return [violation.kind for violation in server.crm.ledger.violations()]


def flaws_in(message: str) -> list[dict[str, Any]]:
    """The JSON inside a message of refused values."""
    found: list[dict[str, Any]] = json.loads(message[message.index("[") :])
    return found


def test_a_good_call_is_200_and_every_record_is_updated(server: SandboxServer) -> None:
    """Results hold the record id, the changed properties, hs_object_id and lastmodifieddate, no more."""
    answer = post(server, entry("1", company_name="A"), entry("2", tier="gold"))
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "COMPLETE"
    assert "errors" not in body
    by_id = {result["id"]: result for result in body["results"]}
    assert set(by_id) == {"1", "2"}
    assert set(by_id["1"]["properties"]) == {"company_name", "hs_object_id", "lastmodifieddate"}
    assert server.crm.state() == {"partner_clients": {"1": {"company_name": "A"}, "2": {"tier": "gold"}}}
    assert kinds(server) == []


def test_results_are_not_in_input_order(server: SandboxServer) -> None:
    """A client that matches by place is found out."""
    ids = [str(number) for number in range(50)]
    results = post(server, *(entry(id_, notes="x") for id_ in ids)).json()["results"]
    assert sorted(ids) == sorted(result["id"] for result in results)
    assert ids != [result["id"] for result in results]


def test_with_an_id_property_the_result_carries_the_record_id(server: SandboxServer) -> None:
    """The state is known by the address that was used."""
    body = post(server, entry("c-7", id_property="acme_client_id", notes="x")).json()
    record_id = body["results"][0]["id"]
    assert record_id.isdigit()
    assert "acme_client_id" not in body["results"][0]["properties"]
    assert server.crm.state() == {"partner_clients": {"c-7": {"notes": "x"}}}
    again = post(server, entry("c-7", id_property="acme_client_id", notes="y")).json()
    assert again["results"][0]["id"] == record_id


def test_results_may_echo_trace_id_and_id_property(server: SandboxServer) -> None:
    """Both are optional in HubSpot's schema, so both ways can be played."""
    server.crm.behaviour.echo_trace_ids = True
    server.crm.behaviour.echo_id_property = True
    result = post(server, entry("c-7", "t1", "acme_client_id", notes="x")).json()["results"][0]
    assert result["objectWriteTraceId"] == "t1"
    assert result["properties"]["acme_client_id"] == "c-7"


def test_a_refused_value_costs_only_its_input_when_all_have_trace_ids(server: SandboxServer) -> None:
    """207: one entry per refused input, with trace id, property name and HubSpot's words."""
    answer = post(server, entry("1", "a", tier="platinum", nope="x"), entry("2", "b", tier="gold"))
    assert answer.status_code == 207
    body = answer.json()
    assert body["numErrors"] == 1
    assert [result["id"] for result in body["results"]] == ["2"]
    (error,) = body["errors"]
    assert error["category"] == "VALIDATION_ERROR"
    assert error["context"] == {"objectWriteTraceId": ["a"], "propertyName": ["tier", "nope"]}
    found = flaws_in(error["message"])
    assert [flaw["error"] for flaw in found] == ["INVALID_OPTION", "PROPERTY_DOESNT_EXIST"]
    assert found[0]["message"] == "platinum was not one of the allowed options: [gold, silver, bronze]"
    assert server.crm.state() == {"partner_clients": {"2": {"tier": "gold"}}}


@pytest.mark.parametrize(
    "traces",
    [
        (None, None),  # none at all
        ("a", None),  # one input without
        ("a", "a"),  # not unique
    ],
)
def test_a_refused_value_costs_the_whole_call_without_trace_ids(
    server: SandboxServer, traces: tuple[str | None, str | None]
) -> None:
    """400, nothing written, and the body names properties but no input."""
    answer = post(server, entry("1", traces[0], tier="platinum"), entry("2", traces[1], tier="gold"))
    assert answer.status_code == 400
    body = answer.json()
    assert body["category"] == "VALIDATION_ERROR"
    assert body["errors"][0]["context"] == {"propertyName": ["tier"]}
    assert body["errors"][0]["code"] == "INVALID_OPTION"
    assert flaws_in(body["message"])[0]["name"] == "tier"
    assert "context" not in body
    assert server.crm.state() == {}


def test_the_whole_call_may_be_refused_in_spite_of_trace_ids(server: SandboxServer) -> None:
    """For update that is an open question, so both ways can be played."""
    server.crm.behaviour.multi_status = False
    answer = post(server, entry("1", "a", tier="platinum"), entry("2", "b", tier="gold"))
    assert answer.status_code == 400
    assert server.crm.state() == {}


def test_the_errors_of_a_refused_call_may_be_incomplete(server: SandboxServer) -> None:
    """As captured: four in the message, three in errors."""
    body = post(server, *(entry(str(number), nope="x") for number in range(4))).json()
    assert len(flaws_in(body["message"])) == 4
    assert len(body["errors"]) == 3


@pytest.mark.parametrize("naming, told", [("message", "tier"), ("none", "")])
def test_what_names_the_property_can_be_narrowed(server: SandboxServer, naming: Any, told: str) -> None:
    """Only inside the message, as documented for create, or nowhere."""
    server.crm.behaviour.naming = naming
    error = post(server, entry("1", "a", tier="x"), entry("2", "b", tier="gold")).json()["errors"][0]
    assert error["context"] == {"objectWriteTraceId": ["a"]}
    assert told in error["message"]
    assert ("[" in error["message"]) == bool(told)


@pytest.mark.parametrize("multi_status", [True, False])
def test_a_refusal_in_words_alone_quotes_the_value_raw(server: SandboxServer, multi_status: bool) -> None:
    """With nothing that names property or input, and nothing escaped."""
    server.crm.behaviour.naming = "words"
    server.crm.behaviour.multi_status = multi_status
    value = 'x"}], {"error": "PROPERTY_DOESNT_EXIST"'
    body = post(server, entry("1", "a", tier=value), entry("2", "b", tier="gold")).json()
    told = body["errors"][0] if multi_status else body
    assert told["message"] == f"{value} was not one of the allowed options: [gold, silver, bronze]"
    assert multi_status or "errors" not in told


def test_one_entry_covers_all_unknown_ids(server: SandboxServer) -> None:
    """207 with and without trace ids; the rest is written."""
    answer = post(server, entry("unknown1", notes="x"), entry("UNKNOWN-2", notes="x"), entry("3", notes="x"))
    assert answer.status_code == 207
    body = answer.json()
    assert body["numErrors"] == 1
    assert body["errors"][0]["category"] == "OBJECT_NOT_FOUND"
    assert body["errors"][0]["context"] == {"ids": ["unknown1", "UNKNOWN-2"]}
    assert "PARTNER_CLIENT objects" in body["errors"][0]["message"]
    traced = post(server, entry("unknown1", "t1", notes="x"), entry("3", "t2", notes="x")).json()
    assert traced["errors"][0]["context"] == {"ids": ["unknown1"], "objectWriteTraceId": ["t1"]}


def test_a_strict_crm_knows_only_what_was_added() -> None:
    """`known` makes it strict."""
    known = [RecordKey(Lane("partner_clients", "acme_client_id"), "c1")]
    with SandboxServer(Crm(known=known)) as server:
        good = entry("c1", id_property="acme_client_id", notes="x")
        answer = post(server, good, entry("c2", id_property="acme_client_id", notes="x"))
        assert answer.json()["errors"][0]["context"]["ids"] == ["c2"]
        server.crm.records.add("partner_clients", "c2", id_property="acme_client_id")
        assert post(server, entry("c2", id_property="acme_client_id", notes="x")).status_code == 200


def test_an_archived_record_is_not_found(server: SandboxServer) -> None:
    """And is found again once it was added again."""
    server.crm.records.archive("partner_clients", "5")
    assert post(server, entry("5", notes="x")).status_code == 207
    server.crm.records.add("partner_clients", "5")
    assert post(server, entry("5", notes="x")).status_code == 200


def test_a_merged_record_is_dropped_silently(server: SandboxServer) -> None:
    """200 with neither result nor error for it, and nothing is written."""
    server.crm.records.merge("partner_clients", "5", into="6")
    answer = post(server, entry("5", "a", notes="x"), entry("7", "b", notes="x"))
    assert answer.status_code == 200
    assert [result["id"] for result in answer.json()["results"]] == ["7"]
    assert server.crm.state() == {"partner_clients": {"7": {"notes": "x"}}}


def test_one_id_twice_refuses_the_whole_call(server: SandboxServer) -> None:
    """With HubSpot's words, with or without trace ids; and it is a breach of the contract."""
    answer = post(server, entry("1", "a", notes="x"), entry("1", "b", notes="y"), entry("2", "c", notes="z"))
    assert answer.status_code == 400
    body = answer.json()
    assert body["message"] == "Duplicate IDs found in batch input: [1]. IDs must be unique"
    assert body["context"] == {"ids": ["1"]}
    assert server.crm.state() == {}
    assert kinds(server) == [ViolationKind.DUPLICATE]


def test_two_ids_of_one_record_refuse_the_whole_call(server: SandboxServer) -> None:
    """A client cannot know, so it is no breach of the contract."""
    server.crm.records.merge("partner_clients", "old", into="new", id_property="acme_client_id", silent=False)
    pair = [entry(id_, id_property="acme_client_id", notes="x") for id_ in ("old", "new")]
    answer = post(server, *pair)
    assert answer.status_code == 400
    assert answer.json()["context"] == {"ids": ["old", "new"]}
    server.crm.behaviour.duplicates = "record"
    assert answer.json()["message"] != post(server, *pair).json()["message"]
    assert kinds(server) == []


def test_ids_may_differ_in_letter_case_only() -> None:
    """`fold_case`: as with e-mail addresses."""
    with SandboxServer(Crm(fold_case=True)) as server:
        both = [entry(id_, id_property="external_id", notes="x") for id_ in ("Ab", "aB")]
        assert post(server, *both).status_code == 400
        assert post(server, both[0]).json()["results"] != []


@pytest.mark.parametrize("name", ["hs_object_id", "company_name", "never_declared"])
def test_an_id_property_that_is_not_unique_refuses_the_whole_call(server: SandboxServer, name: str) -> None:
    """With HubSpot's words, which name the property."""
    answer = post(server, entry("1", "a", name, notes="x"), entry("2", "b", notes="x"))
    assert answer.status_code == 400
    assert f"Unable to perform update/upsert by non-unique partner_clients property {name}" in answer.text


def test_a_hundred_inputs_are_the_most(server: SandboxServer) -> None:
    """101 refuse the whole call."""
    assert post(server, *(entry(str(number), notes="x") for number in range(100))).status_code == 200
    assert post(server, *(entry(str(number), notes="y") for number in range(101))).status_code == 400
    assert kinds(server) == [ViolationKind.TOO_MANY]
    assert server.crm.state()["partner_clients"]["0"] == {"notes": "x"}


@pytest.mark.parametrize(
    "item, kind",
    [
        (entry("1", annual_revenue=12), ViolationKind.NOT_A_STRING),
        (entry("1", notes=None), ViolationKind.NOT_A_STRING),  # null is not documented on input
        (entry("1", active=True), ViolationKind.NOT_A_STRING),
        ({"id": 1, "properties": {}}, ViolationKind.NOT_A_STRING),
        ({"properties": {"notes": "x"}}, ViolationKind.MISSING_ID),
        ({"id": "", "properties": {}}, ViolationKind.MISSING_ID),
        ({"id": "1"}, ViolationKind.MALFORMED),
        ("text", ViolationKind.MALFORMED),
    ],
)
def test_what_the_schema_forbids_is_refused_and_noted(server: SandboxServer, item: Any, kind: ViolationKind) -> None:
    """One such input refuses the whole call."""
    answer = post(server, item, entry("2", notes="x"))
    assert answer.status_code == 400
    assert "Invalid input JSON on line 1" in answer.json()["message"]
    assert kinds(server) == [kind]
    assert server.crm.state() == {}


def test_a_body_that_is_no_json_is_refused_with_its_place(server: SandboxServer) -> None:
    """`Invalid input JSON on line L, column C`."""
    headers = {"Content-Type": "application/json"} | TOKEN
    answer = requests.post(f"{server.url}{PATH}", data=b'{"inputs": [}', headers=headers, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("Invalid input JSON on line 1, column 1")
    assert requests.post(f"{server.url}{PATH}", data=b"x", headers=TOKEN, timeout=10).status_code == 415


@pytest.mark.parametrize("body", [{}, {"inputs": []}])
def test_a_body_without_inputs_is_an_empty_success(server: SandboxServer, body: dict[str, Any]) -> None:
    """As HubSpot does; it is noted."""
    answer = post(server, json=body)
    assert (answer.status_code, answer.json()["results"]) == (200, [])
    assert kinds(server) == [ViolationKind.EMPTY]


def test_a_leading_semicolon_appends_options(server: SandboxServer) -> None:
    """And nothing but lists of options is merged."""
    post(server, entry("1", products="crm;sales", notes="a"))
    post(server, entry("1", products=";data;crm", notes=";b"))
    assert server.crm.state()["partner_clients"]["1"] == {"products": "crm;sales;data", "notes": ";b"}


def test_a_unique_value_belongs_to_one_record(server: SandboxServer) -> None:
    """A record is found by the unique value written to it, and no other may take it."""
    post(server, entry("1", external_id="e1"))
    assert post(server, entry("e1", id_property="external_id", notes="x")).json()["results"][0]["id"] == "1"
    refused = post(server, entry("2", "t", external_id="e1"))
    assert flaws_in(refused.json()["errors"][0]["message"])[0]["error"] == "CONFLICTING_UNIQUE_VALUE"
    post(server, entry("1", external_id="e9"))
    assert post(server, entry("e1", id_property="external_id", notes="y")).json()["results"][0]["id"] != "1"


def test_undeclared_properties_are_taken_as_strings_when_open() -> None:
    """So that a newcomer's own configuration works; what is declared is still checked."""
    with SandboxServer(Crm()) as server:
        assert post(server, entry("7", id_property="their_id", their_name="x")).status_code == 200
        assert post(server, entry("7", id_property="their_id", tier="x")).status_code == 400
        assert post(server, entry("1", their_name="x" * 65_537)).status_code == 400


def test_any_object_type_and_dated_paths_are_served(server: SandboxServer) -> None:
    """`api_path` is configurable in a bridge."""
    path = "/crm/objects/2026-09/partner_services/batch/update"
    server.crm.define("partner_services", "seats", "number")
    assert post(server, entry("1", seats="3"), path=path).status_code == 200
    assert server.crm.state() == {"partner_services": {"1": {"seats": "3"}}}
    assert post(server, entry("1"), path="/crm/v3/objects/partner_clients/batch/upsert").status_code == 404
    assert requests.get(f"{server.url}{PATH}", headers=TOKEN, timeout=10).status_code == 405


def test_the_correlation_id_of_the_header_is_the_bodys(server: SandboxServer) -> None:
    """On errors; on successes it is in the header alone. The log of calls has it too."""
    refused = post(server, entry("1", tier="x"))
    assert refused.headers["x-hubspot-correlation-id"] == refused.json()["correlationId"]
    assert post(server, entry("1", tier="gold")).headers["x-hubspot-correlation-id"]
    assert server.crm.ledger.calls()[0].correlation_id == refused.json()["correlationId"]


def test_tokens_are_asked_for(server: SandboxServer) -> None:
    """401 bodies: none, unknown, expired, revoked."""
    url = f"{server.url}{PATH}"
    body = {"inputs": [entry("1", notes="x")]}
    nobody = requests.post(url, json=body, timeout=10)
    assert (nobody.status_code, nobody.json()["category"]) == (401, "INVALID_AUTHENTICATION")
    server.crm.access.accept_only("other")
    assert post(server, entry("1", notes="x")).status_code == 401
    server.crm.access.accept_only("pat-test")
    assert post(server, entry("1", notes="x")).status_code == 200
    server.crm.access.expire("pat-test", ago_s=60)
    expired = post(server, entry("1", notes="x"))
    assert (expired.status_code, expired.json()["category"]) == (401, "EXPIRED_AUTHENTICATION")
    assert "expired 60 second(s) ago" in expired.json()["message"]


def test_a_missing_scope_closes_one_object_type(server: SandboxServer) -> None:
    """403 MISSING_SCOPES names the scope; other types go on."""
    server.crm.access.forbid("partner_clients")
    refused = post(server, entry("1", notes="x"))
    assert (refused.status_code, refused.json()["category"]) == (403, "MISSING_SCOPES")
    assert refused.json()["errors"][0]["context"] == {"requiredGranularScopes": ["crm.objects.partner-clients.write"]}
    other = PATH.replace("partner_clients", "partner_services")
    assert post(server, entry("1"), path=other).status_code == 200
    server.crm.access.allow("partner_clients")
    assert post(server, entry("1", notes="x")).status_code == 200


@pytest.mark.parametrize("version", ["v1", "v3", "2026-09"])
def test_refresh_tokens_give_access_tokens(server: SandboxServer, version: str) -> None:
    """Form-encoded, with `expires_in`; what was issued is good until it expires."""
    form = {"grant_type": "refresh_token", "refresh_token": "r", "client_id": "c", "client_secret": "s"}
    server.crm.access.accept_only()
    answer = requests.post(f"{server.url}/oauth/{version}/token", data=form, timeout=10).json()
    assert answer["expires_in"] == 1800
    assert answer["refresh_token"] == "r"
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    body = {"inputs": [entry("1", notes="x")]}
    assert requests.post(f"{server.url}{PATH}", json=body, headers=headers, timeout=10).status_code == 200
    server.crm.access.expire_issued()
    assert requests.post(f"{server.url}{PATH}", json=body, headers=headers, timeout=10).status_code == 401


def test_a_bad_refresh_token_is_told_as_hubspot_tells_it() -> None:
    """400 BAD_REFRESH_TOKEN."""
    form = {"grant_type": "refresh_token", "refresh_token": "no", "client_id": "c", "client_secret": "s"}
    with SandboxServer(Crm(refresh_tokens=["yes"])) as server:
        answer = requests.post(f"{server.url}/oauth/v3/token", data=form, timeout=10)
    assert (answer.status_code, answer.json()["status"]) == (400, "BAD_REFRESH_TOKEN")


def test_the_rate_limit_answers_429_and_tells_what_is_left() -> None:
    """Headers and body as documented; a refused call is noted and does not count."""
    with SandboxServer(Crm(limit=2, daily=1000)) as server:
        first = post(server, entry("1", notes="x"))
        assert first.headers["X-HubSpot-RateLimit-Max"] == "2"
        assert first.headers["X-HubSpot-RateLimit-Remaining"] == "1"
        assert first.headers["X-HubSpot-RateLimit-Interval-Milliseconds"] == "10000"
        assert first.headers["X-HubSpot-RateLimit-Daily-Remaining"] == "999"
        post(server, entry("1", notes="x"))
        refused = post(server, entry("1", notes="y"))
        assert refused.status_code == 429
        assert refused.json()["errorType"] == "RATE_LIMIT"
        assert refused.json()["policyName"] == "TEN_SECONDLY_ROLLING"
        assert "category" not in refused.json()
        assert "Retry-After" not in refused.headers
        assert kinds(server) == [ViolationKind.RATE_LIMITED]
        server.crm.limits.reset()
        server.crm.limits.daily = 0
        server.crm.behaviour.retry_after = "7"
        daily = post(server, entry("1", notes="y"))
        assert (daily.json()["policyName"], daily.headers["Retry-After"]) == ("DAILY", "7")


def test_latency_is_spent_before_the_update_takes_effect() -> None:
    """A call takes at least that long."""
    with SandboxServer(Crm(behaviour=Behaviour(latency_s=0.1))) as server:
        post(server, entry("1", notes="x"))
        (call,) = server.crm.ledger.calls("update")
        assert call.ended is not None
        assert call.ended - call.started >= 0.1


def test_definitions_and_usage_can_be_read(server: SandboxServer) -> None:
    """The Properties API's shape; it can be forbidden on its own."""
    url = f"{server.url}/crm/v3/properties/partner_clients"
    listed = requests.get(url, headers=TOKEN, timeout=10).json()["results"]
    by_name = {definition["name"]: definition for definition in listed}
    assert by_name["tier"]["type"] == "enumeration"
    assert [option["value"] for option in by_name["tier"]["options"]] == ["gold", "silver", "bronze"]
    assert by_name["products"]["fieldType"] == "checkbox"
    assert by_name["acme_client_id"]["hasUniqueValue"] is True
    assert by_name["hs_health_score"]["calculated"] is True
    assert by_name["hs_health_score"]["modificationMetadata"]["readOnlyValue"] is True
    server.crm.access.forbid("properties")
    assert requests.get(url, headers=TOKEN, timeout=10).status_code == 403
    usage = requests.get(f"{server.url}/account-info/v3/api-usage/daily/private-apps", headers=TOKEN, timeout=10)
    assert usage.json()["results"][0]["currentUsage"] == 2  # this call is the second


def test_records_can_be_read_back(server: SandboxServer) -> None:
    """One by one, by the page, and as a batch by an id property."""
    post(server, *(entry(f"c{number}", id_property="acme_client_id", notes="n") for number in range(3)))
    objects = f"{server.url}/crm/v3/objects/partner_clients"

    def get(path: str) -> requests.Response:
        return requests.get(f"{objects}{path}", headers=TOKEN, timeout=10)

    one = get("/c1?idProperty=acme_client_id&properties=notes,nope").json()
    assert one["properties"]["notes"] == "n"
    assert get(f"/{one['id']}").status_code == 200
    assert get("/unknown").status_code == 404
    page = get("?limit=2&properties=notes").json()
    assert len(page["results"]) == 2
    assert len(get(f"?limit=2&after={page['paging']['next']['after']}").json()["results"]) == 1
    assert get("?limit=101").status_code == 400
    asked = {"inputs": [{"id": "c1"}, {"id": "no"}], "properties": ["notes"], "idProperty": "acme_client_id"}
    read = requests.post(f"{objects}/batch/read", json=asked, headers=TOKEN, timeout=10)
    assert read.status_code == 207
    assert [result["id"] for result in read.json()["results"]] == [one["id"]]
    assert read.json()["errors"][0]["context"] == {"ids": ["no"]}
