"""What a sound bridge.yaml becomes, what may stand in place of a scalar, and what is warned of."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.config import examine, load, load_settings
from bridge.config.scalars import Surroundings, surroundings
from bridge.config.source_schemas import SourceSchema
from bridge.config.yaml_file import read_yaml
from bridge.errors import ConfigError
from bridge.settings import (
    Challenge,
    Hmac,
    Journal,
    OccurredAt,
    Pairs,
    Property,
    RateLimit,
    Record,
    Reply,
    RequestLimit,
    Retry,
    Server,
    Source,
)

STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENVIRON = {"TOKEN": "pat-eu1-0b8f4c1e", "ACME_SECRET": STANDARD_SECRET, "SIGNING": "0123456789abcdef" * 4}

SOUND = """\
crm:
  token: {env: TOKEN}
sources:
  acme:
    verify: {scheme: standard-webhooks, secrets: [{env: ACME_SECRET}]}
    event_id: id
    record: {id: data.id, id_property: acme_client_id}
    properties: {company_name: data.name}
"""

EVERYTHING = """\
crm:
  base_url: https://api.hubapi.com/
  api_path: /crm/objects/2026-09
  properties_path: /crm/v3/props
  oauth: {client_id: abc, client_secret: {env: SIGNING}, refresh_token: {env: TOKEN}, token_path: /oauth/v4/token}
  batch_size: 50
  flush_interval: 250ms
  max_in_flight: 4
  rate_limit: {calls: 190, per: 11s, daily: 200000}
  timeout: 20s
  proxy: http://proxy:3128
  ca_file: ca.pem
journal:
  url: postgresql://bridge@db/journal
  max_pending: 1000
  max_size: 2GiB
  retention: 3d
  remember: 10d
retry: {base: 1s, max: 5m, give_up_after: 12h}
server:
  bind: "[::]:8443"
  admin_bind: :9191
  admin_token: {env: SIGNING}
  public_url: https://hooks.example.com
  workers: 2
  threads: 16
  max_body: 512KiB
  drain_timeout: 10s
"""

SOURCE = """\
verify:
  scheme: hmac
  secrets: [{env: SIGNING}]
  tolerance: 3m
  header: X-Sig
  algorithm: sha512
  encoding: base64
  prefix: "v1="
  key: hex
  signed: "{id}.{timestamp}.{body}"
  timestamp: {header: X-Time, unit: ms}
  id: {header: X-Id}
object_type: 2-123
events: items
when: kind == 'x'
event_id: id
occurred_at: at
timezone: Europe/Madrid
body: ndjson
max_body: 10MB
limit: {requests: 100, per: 1s}
challenge: {reply: _query.challenge, method: POST, when: _query.mode, as: json, signed: true}
expect_every: 24h
reply: {status: 200, body: none}
record: {id: client.id, on_unknown: wait}
properties:
  company_name: client.name
  tier: {from: plan, type: enumeration, values: {Gold: gold, 7: 007, yes: true, "*": 1.50}, required: true}
  products: {from: p, type: enumeration, multiple: true, separator: ","}
  revenue: {from: cents, type: number, scale: 0.01, on_null: clear}
  seen: {from: seen, type: datetime, timezone: UTC}
  renewal: {from: renews, type: date, format: "%d/%m/%Y"}
  mail: {from: mail, format: email}
  lifecycle: {constant: active}
pairs:
  in: fields
  name: k
  value: v
  properties: {Name: display_name, ARR: {to: arr, type: number}}
on_invalid: reject
unchanged: skip
examples:
  - payload: [{a: 1}, {a: é}]
    headers: {X-Kind: 7}
    expect: [{id: 7, properties: {active: true, arr: 1.50}}]
  - {payload: raw, ignored: true}
  - {payload: {}, invalid: {tier: is missing}}
"""


def write(folder: Path, text: str, name: str = "bridge.yaml") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def load_source(folder: Path, text: str, **around: Any) -> Source:
    """A source by itself: without the intake room's word on what it supports so far."""
    token = surroundings.set(Surroundings(environ=ENVIRON, folder=folder, **around))
    try:
        source: Source = SourceSchema().load(read_yaml(write(folder, text, "source.yaml")).data)
    finally:
        surroundings.reset(token)
    return source


def warnings(folder: Path, text: str) -> list[str]:
    return [
        f"{warning.line} {warning.path}: {warning.message}"
        for warning in load(write(folder, text), environ=ENVIRON).warnings
    ]


def test_what_is_left_out_takes_the_defaults(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, SOUND), environ=ENVIRON)

    assert (settings.journal, settings.retry, settings.server) == (Journal(), Retry(), Server())
    assert settings.crm.rate_limit == RateLimit(100, 10.0, None)
    assert (settings.crm.batch_size, settings.crm.flush_interval_s, settings.crm.timeout_s) == (100, 0.5, 30.0)
    source = settings.sources["acme"]
    (block,) = source.mappings
    assert source.name == "acme"
    assert (source.events, source.body, source.reply, source.examples) == ("@", "json", Reply(), ())
    assert (block.object_type, block.on_invalid, block.unchanged) == ("partner_clients", "park", "send")
    assert block.properties == {"company_name": Property(source="data.name")}
    assert settings.file == tmp_path / "bridge.yaml"


def test_every_key_of_the_service_is_read(tmp_path: Path) -> None:
    write(tmp_path, "", "ca.pem")
    settings = load_settings(write(tmp_path, EVERYTHING + SOUND[SOUND.index("sources") :]), environ=ENVIRON)

    crm = settings.crm
    assert crm.base_url == "https://api.hubapi.com"
    assert (crm.api_path, crm.properties_path) == ("/crm/objects/2026-09", "/crm/v3/props")
    assert crm.oauth is not None
    assert (crm.oauth.client_id, crm.oauth.token_path) == ("abc", "/oauth/v4/token")
    assert crm.oauth.client_secret.text() == ENVIRON["SIGNING"]
    assert (crm.batch_size, crm.flush_interval_s, crm.max_in_flight, crm.timeout_s) == (50, 0.25, 4, 20.0)
    assert crm.rate_limit == RateLimit(190, 11.0, 200_000)
    assert (crm.proxy, crm.ca_file) == ("http://proxy:3128", tmp_path / "ca.pem")
    assert settings.journal == Journal("postgresql://bridge@db/journal", 1000, 2 * 1024**3, 259_200.0, 864_000.0)
    assert settings.retry == Retry(1.0, 300.0, 43_200.0)
    server = settings.server
    assert (server.bind, server.admin_bind) == (("::", 8443), ("0.0.0.0", 9191))  # noqa: S104 (as written)
    assert server.admin_token is not None
    assert server.public_url == "https://hooks.example.com"
    assert (server.workers, server.threads, server.max_body, server.drain_timeout_s) == (2, 16, 524_288, 10.0)


def test_every_key_of_a_source_is_read(tmp_path: Path) -> None:
    source = load_source(tmp_path, SOURCE, body="ndjson")

    assert source.verify.hmac == Hmac(
        "X-Sig", "sha512", "base64", "v1=", "hex", "{id}.{timestamp}.{body}", "X-Time", "ms", "X-Id"
    )
    assert (source.verify.scheme, source.verify.tolerance_s) == ("hmac", 180.0)
    assert [secret.text() for secret in source.verify.secrets] == [ENVIRON["SIGNING"]]
    assert (source.events, source.when, source.event_id) == ("items", "kind == 'x'", "id")
    assert source.occurred_at == OccurredAt("at")
    assert (source.timezone, source.body, source.max_body) == ("Europe/Madrid", "ndjson", 10_000_000)
    assert source.limit == RequestLimit(100, 1.0)
    assert source.challenge == Challenge("_query.challenge", "POST", "_query.mode", "json", signed=True)
    assert (source.expect_every_s, source.reply) == (86_400.0, Reply(200, "none"))
    (block,) = source.mappings
    assert block.record == Record("client.id", on_unknown="wait")
    assert (block.object_type, block.on_invalid, block.unchanged) == ("2-123", "reject", "skip")
    assert block.pairs == Pairs(
        "fields",
        "k",
        "v",
        {"Name": ("display_name", Property()), "ARR": ("arr", Property(type="number"))},
    )
    assert block.properties == {
        "company_name": Property("client.name"),
        "tier": Property(
            "plan",
            "enumeration",
            values={"Gold": "gold", "7": "007", "yes": "true", "*": "1.50"},
            required=True,
        ),
        "products": Property("p", "enumeration", multiple=True, separator=","),
        "revenue": Property("cents", "number", scale="0.01", on_null="clear"),
        "seen": Property("seen", "datetime", timezone="UTC"),
        "renewal": Property("renews", "date", format=("%d/%m/%Y",)),
        "mail": Property("mail", format=("email",)),
        "lifecycle": Property(constant="active"),
    }


def test_examples_become_bodies_and_what_is_expected_of_them(tmp_path: Path) -> None:
    """Text stands for itself; anything else is written as the source reads it."""
    first, second, third = load_source(tmp_path, SOURCE, body="ndjson").examples

    assert first.payload == '{"a": 1}\n{"a": "é"}'
    assert first.headers == {"X-Kind": "7"}
    assert first.expect == ({"id": "7", "properties": {"active": "true", "arr": "1.50"}},)
    assert (second.payload, second.ignored) == ("raw", True)
    assert third.invalid == {"tier": "is missing"}


@pytest.mark.parametrize(
    "body, payload",
    [
        ("json", '{"a": "x y", "b": 1.5}'),
        ("form", "a=x+y&b=1.5"),
        ("form:data", "data=%7B%22a%22%3A+%22x+y%22%2C+%22b%22%3A+1.5%7D"),
    ],
)
def test_an_example_takes_the_form_of_its_source(tmp_path: Path, body: str, payload: str) -> None:
    text = SOURCE[: SOURCE.index("examples")] + "examples: [{payload: {a: x y, b: 1.5}, ignored: true}]\n"

    assert load_source(tmp_path, text, body=body).examples[0].payload == payload


def test_an_example_may_stand_in_a_file(tmp_path: Path) -> None:
    """Bare, or with the headers that were received."""
    write(tmp_path, '{"id": 1}\n', "samples/bare.json")
    write(tmp_path, json.dumps({"headers": {"X-Kind": "a"}, "body": '{"id": 2}'}), "samples/saved.json")
    text = SOUND + (
        "    examples:\n"
        "      - {file: samples/bare.json, ignored: true}\n"
        "      - {file: samples/saved.json, headers: {X-More: b}, ignored: true}\n"
    )

    bare, saved = load_settings(write(tmp_path, text), environ=ENVIRON).sources["acme"].examples

    assert (bare.payload, bare.headers) == ('{"id": 1}\n', {})
    assert (saved.payload, saved.headers) == ('{"id": 2}', {"X-Kind": "a", "X-More": "b"})


def test_several_mappings_know_their_places(tmp_path: Path) -> None:
    text = SOUND[: SOUND.index("    record")] + (
        "    mappings:\n"
        "      - {when: a, object_type: contacts, record: {id: b}, properties: {c: d}, timezone: UTC}\n"
        "      - {record: {id: e}, properties: {f: g}}\n"
    )

    one, other = load_settings(write(tmp_path, text), environ=ENVIRON).sources["acme"].mappings

    assert (one.when, one.object_type, one.timezone, one.path) == ("a", "contacts", "UTC", ("mappings", 0))
    assert (other.when, other.path) == (None, ("mappings", 1))


def test_any_scalar_may_come_from_a_variable_or_a_file(tmp_path: Path) -> None:
    """A variable's text is read as YAML would read it where a number or a flag is wanted."""
    write(tmp_path, "45s\n", "timeout")
    text = SOUND.replace(
        "crm:\n",
        "crm:\n  batch_size: {env: BATCH}\n  max_in_flight: {env: UNSET, default: 3}\n  timeout: {file: timeout}\n",
    ).replace("data.name}", "{env: NAME_PATH}}")

    settings = load_settings(write(tmp_path, text), environ=ENVIRON | {"BATCH": "25", "NAME_PATH": "data.title"})

    assert (settings.crm.batch_size, settings.crm.max_in_flight, settings.crm.timeout_s) == (25, 3, 45.0)
    assert settings.sources["acme"].mappings[0].properties["company_name"].source == "data.title"


def test_the_environment_overrides_addresses_and_the_journal(tmp_path: Path) -> None:
    environ = ENVIRON | {
        "BRIDGE_BIND": "[::1]:80",
        "BRIDGE_ADMIN_BIND": ":81",
        "BRIDGE_JOURNAL_URL": "sqlite:///other.db",
    }

    settings = load_settings(write(tmp_path, SOUND), environ=environ)

    assert (settings.server.bind, settings.server.admin_bind) == (("::1", 80), ("0.0.0.0", 81))  # noqa: S104
    assert settings.journal.url == "sqlite:///other.db"


@pytest.mark.parametrize(
    "variable, value",
    [
        ("BRIDGE_BIND", "8080"),
        ("BRIDGE_ADMIN_BIND", "localhost"),
        ("BRIDGE_ADMIN_BIND", "0.0.0.0:8080"),
        ("BRIDGE_JOURNAL_URL", "mysql://user:hunter2@h/d"),
    ],
)
def test_a_bad_override_is_a_problem_that_names_the_variable(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable) as raised:
        load(write(tmp_path, SOUND), environ=ENVIRON | {variable: value})

    assert "hunter2" not in str(raised.value)


def test_top_level_x_keys_hold_anchors(tmp_path: Path) -> None:
    text = "x-record: &record {id: data.id, id_property: acme_client_id}\nx-any: [1]\n" + SOUND.replace(
        "{id: data.id, id_property: acme_client_id}", "{<<: *record, on_unknown: wait}"
    )

    (block,) = load_settings(write(tmp_path, text), environ=ENVIRON).sources["acme"].mappings

    assert block.record == Record("data.id", "acme_client_id", on_unknown="wait")


def test_included_files_add_sources(tmp_path: Path) -> None:
    """With `sources:` or without; their relative files are looked for beside them."""
    source = SOUND[SOUND.index("    verify") :]
    write(tmp_path, "x-a: 1\nsources:\n  beta:\n" + source, "more/b.yaml")
    write(tmp_path, "gamma:\n" + source.replace("{env: ACME_SECRET}", "{file: gamma.secret}"), "more/c.yaml")
    write(tmp_path, STANDARD_SECRET, "more/gamma.secret").chmod(0o600)

    loaded = load(write(tmp_path, "include: more/*.yaml\n" + SOUND), environ=ENVIRON)

    assert list(loaded.settings.sources) == ["acme", "beta", "gamma"]
    assert loaded.settings.sources["gamma"].verify.secrets[0].text() == STANDARD_SECRET
    assert loaded.warnings == ()


def test_problems_of_included_files_name_these(tmp_path: Path) -> None:
    source = SOUND[SOUND.index("    verify") :]
    write(tmp_path, "sources:\n  beta:\n" + source.replace("event_id", "event"), "more/b.yaml")
    write(tmp_path, "acme:\n" + source, "more/c.yaml")
    write(tmp_path, "sources:\n  delta:\n" + source + "crm: {}\n", "more/d.yaml")
    write(tmp_path, "a: [", "more/e.yaml")

    problems = examine(write(tmp_path, "include: more/*.yaml\n" + SOUND), environ=ENVIRON).problems

    assert [(Path(str(problem.file)).name, problem.line, problem.path) for problem in problems] == [
        ("b.yaml", 4, "sources.beta.event"),
        ("c.yaml", 1, "sources.acme"),
        ("d.yaml", 7, "crm"),
        ("e.yaml", 1, ""),
    ]
    assert f"{tmp_path / 'bridge.yaml'}:5 too" in problems[1].message


def test_a_schema_may_stand_in_a_module_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an included file too; no other module gives way to it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path, "from marshmallow import Schema\n\nclass Acme(Schema):\n    pass\n", "beside_the_file.py")
    write(tmp_path, "raise RuntimeError\n", "json.py")
    (tmp_path / "more").mkdir()
    acme = SOUND[SOUND.index("  acme") : SOUND.index("    properties:")] + "    schema: beside_the_file:Acme\n"
    write(tmp_path / "more", f"sources:\n{acme.replace('acme:', 'beta:').replace('beside', 'farther')}", "beta.yaml")
    write(tmp_path / "more", "from beside_the_file import Acme\n", "farther_the_file.py")

    loaded = load_settings(
        write(tmp_path, f"{SOUND[: SOUND.index('  acme')]}{acme}include: more/*.yaml\n"), environ=ENVIRON
    )

    assert set(loaded.sources) == {"acme", "beta"}
    assert sys.path[-2:] == [str(tmp_path), str(tmp_path / "more")]


def test_a_sandbox_needs_no_token(tmp_path: Path) -> None:
    file = write(tmp_path, SOUND)
    environ = {"ACME_SECRET": STANDARD_SECRET}

    assert load(file, environ=environ, sandbox=True).warnings == ()
    with pytest.raises(ConfigError, match=r"crm\.token: the environment variable TOKEN is not set"):
        load(file, environ=environ)


def test_a_sandbox_needs_no_crm_at_all(tmp_path: Path) -> None:
    file = write(tmp_path, SOUND[SOUND.index("sources") :])

    assert load_settings(file, environ=ENVIRON, sandbox=True).crm.token is None


def test_a_secret_file_may_hold_several(tmp_path: Path) -> None:
    """Each of them is looked at; the message tells which one, never what it holds."""
    write(tmp_path, f"{STANDARD_SECRET}\nwhsec_c2hvcnQ=\n", "acme.secret")
    text = SOUND.replace("{env: ACME_SECRET}", "{file: acme.secret}")

    (problem,) = examine(write(tmp_path, text), environ=ENVIRON).problems

    assert problem.path == "sources.acme.verify.secrets[0]"
    assert "secret 2, holds 5 bytes" in problem.message
    assert "c2hvcnQ" not in str(problem)


@pytest.mark.parametrize(
    "text",
    [
        "changeme", "CHANGE-ME", "your-secret", "your_secret_here", "xxx", "secret", "…", "...", "<token>", "TODO",
        "change-this-to-something-long-and-random", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "-----", "[secret]", "%SECRET%",
        "$ACME_SECRET", "${ACME_SECRET}", "$(cat secret)", "{{ .Values.secret }}", "insert-your-secret-here", "null",
        "redacted", "webhook-secret", "whsec_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "<paste the signing secret here>",
    ],
)  # fmt: skip
def test_a_placeholder_is_no_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="holds a placeholder"):
        load(write(tmp_path, SOUND), environ=ENVIRON | {"TOKEN": text})


@pytest.mark.parametrize("url", ["http://127.0.0.1:9100", "http://localhost:9100", "http://[::1]:9100"])
def test_any_token_is_good_for_a_sandbox_on_this_machine(tmp_path: Path, url: str) -> None:
    text = SOUND.replace("crm:\n", f"crm:\n  base_url: {url}\n")
    assert load_settings(write(tmp_path, text), environ=ENVIRON | {"TOKEN": "test-token"}).crm.base_url == url
    with pytest.raises(ConfigError, match="no header can carry"):
        load(write(tmp_path, text), environ=ENVIRON | {"TOKEN": "two words"})


@pytest.mark.parametrize(
    "text",
    ["pat-eu1-0b8f4c1e", "$2b$12$KIXQ", "tested-and-true-7Qw", "secretary9", "xy" * 16, "test-Zr8Gq1", "none7f3a"],
)
def test_a_secret_that_resembles_a_placeholder_is_one(tmp_path: Path, text: str) -> None:
    """A sound secret is never refused for how it begins."""
    assert load_settings(write(tmp_path, SOUND), environ=ENVIRON | {"TOKEN": text}).crm.token is not None


@pytest.mark.parametrize("header, prefix", [("", "Bearer "), ("header: authorization", "Bearer "), ("header: X-T", "")])
def test_a_token_in_a_header_of_its_own_stands_there_alone(tmp_path: Path, header: str, prefix: str) -> None:
    """`Bearer` belongs to Authorization, unless `prefix` says otherwise."""
    block = f"verify: {{scheme: bearer, secrets: [{{env: SIGNING}}], {header}}}\nrecord: {{id: id}}\n"
    source = load_source(tmp_path, block + "properties: {name: name}\n")
    assert source.verify.prefix == prefix


@pytest.mark.parametrize(
    "options, signed",
    [("", "{body}"), ("timestamp: {header: X-T}", "{timestamp}.{body}"), ("id: {header: I}", "{body}")],
)
def test_a_time_is_signed_unless_told_otherwise(tmp_path: Path, options: str, signed: str) -> None:
    """A time that anybody could change would stop no replay."""
    block = f"verify: {{scheme: hmac, header: X-S, secrets: [{{env: SIGNING}}], {options}}}\nrecord: {{id: id}}\n"
    source = load_source(tmp_path, block + "properties: {name: name}\n")
    assert source.verify.hmac is not None
    assert source.verify.hmac.signed == signed


def test_a_secrets_file_is_held_to_the_rules_of_its_scheme_for_good(tmp_path: Path) -> None:
    """Not only at start: what is written later and would have been refused does not count."""
    secret = write(tmp_path, STANDARD_SECRET, "acme.secret")
    text = SOUND.replace("{env: ACME_SECRET}", "{file: acme.secret}")
    (given,) = load_settings(write(tmp_path, text), environ=ENVIRON).sources["acme"].verify.secrets
    secret.write_text(f"xxx\n{STANDARD_SECRET}\nwhsec_c2hvcnQ=\n", encoding="utf-8")

    assert given.texts(look=True) == (STANDARD_SECRET,)
    assert [fault.partition(", ")[2] for fault in given.faults] == [
        "secret 1, holds a placeholder, not a secret",
        "secret 3, holds 5 bytes after base64; standard-webhooks needs 24 to 64",
    ]


def test_an_open_source_is_warned_of(tmp_path: Path) -> None:
    text = SOUND.replace("{scheme: standard-webhooks, secrets: [{env: ACME_SECRET}]}", "{scheme: none}")

    assert warnings(tmp_path, text) == [
        "5 sources.acme.verify.scheme: scheme none: anybody who knows the address can change the CRM"
    ]


def test_a_negation_that_reads_otherwise_than_it_is_taken_is_warned_of(tmp_path: Path) -> None:
    """`!a.b` is `(!a).b` to JMESPath, which is null for ever; `!(a.b)`, `!a[0]` and `!a` are what they read like."""
    text = SOUND + "      active: '!data.delinquent'\n      tier: '!(a.b) && !a[0] && !c'\n    when: '!draft.final'\n"
    text = text.replace("properties: {company_name: data.name}", "properties:\n      company_name: data.name")
    told = [warning.split(": ")[0] for warning in warnings(tmp_path, text) if "(!a).b" in warning]
    assert told == ["12 sources.acme.when", "10 sources.acme.properties.active"]


def test_events_without_identity_are_warned_of(tmp_path: Path) -> None:
    text = SOUND.replace(
        "{scheme: standard-webhooks, secrets: [{env: ACME_SECRET}]}", "{scheme: bearer, secrets: [{env: SIGNING}]}"
    )

    assert warnings(tmp_path, text) == []
    (warning,) = warnings(tmp_path, text.replace("    event_id: id\n", ""))
    assert warning.startswith("4 sources.acme: no event has an id here")


@pytest.mark.parametrize(
    "verify, event_id, told",
    [
        ("scheme: hubspot-v3", "eventId", "HubSpot"),
        ("scheme: hmac, header: X-HubSpot-Signature-v3", "eventId", "HubSpot"),
        ("scheme: hubspot-v3", "join('-', [to_string(eventId), to_string(objectId)])", None),
        ("scheme: standard-webhooks", "eventId", None),
        ("scheme: hmac, header: X-WC-Sig", "_headers.x_wc_webhook_delivery_id", "WooCommerce"),
        (
            "scheme: hmac, header: X-S, id: {header: X-WC-Webhook-Delivery-ID}, signed: '{id}{body}'",
            None,
            "WooCommerce",
        ),
    ],
)
def test_ids_that_are_known_not_to_be_unique_are_warned_of(
    tmp_path: Path, verify: str, event_id: str | None, told: str | None
) -> None:
    text = "server: {public_url: https://h.example.com}\n" + SOUND.replace(
        "verify: {scheme: standard-webhooks,", f"verify: {{{verify},"
    ).replace("    event_id: id\n", f'    event_id: "{event_id}"\n' if event_id else "")
    found = [warning for warning in warnings(tmp_path, text) if "conflicts" in warning]
    assert [told in warning for warning in found] == [True] if told else not found


MATCHES = """\
  other:
    verify: {scheme: standard-webhooks, secrets: [{env: ACME_SECRET}]}
    event_id: id
    record: {id: id, id_property: acme_client_id, match: caseless}
    properties: {tier: plan}
"""


def test_two_sources_that_compare_the_same_ids_in_two_ways_are_refused(tmp_path: Path) -> None:
    """What is one record to one of them must be one to the other."""
    [problem] = examine(write(tmp_path, SOUND + MATCHES), environ=ENVIRON).problems
    assert problem.path == "sources.other.record.match"
    assert problem.message == (
        "the ids of partner_clients/acme_client_id are exact in source acme; write the same in both"
    )
    assert not examine(write(tmp_path, SOUND + MATCHES.replace("caseless", "exact")), environ=ENVIRON).problems


def test_record_ids_of_hubspot_have_no_letter_case(tmp_path: Path) -> None:
    text = SOUND.replace("id_property: acme_client_id", "match: caseless")
    [problem] = examine(write(tmp_path, text), environ=ENVIRON).problems
    assert (problem.path, "leave it out" in problem.message) == ("sources.acme.record.match", True)


@pytest.mark.parametrize(
    "email, told",
    [
        ("data.email", True),
        ("{from: data.email, format: email}", False),
        ('"trim(data.email)"', False),
        ("{constant: a@x.example}", False),
    ],
)
def test_an_address_with_blanks_beside_an_id_without_is_warned_of(tmp_path: Path, email: str, *, told: bool) -> None:
    text = SOUND.replace("id_property: acme_client_id", "id_property: email").replace(
        "properties: {company_name: data.name}", f"properties:\n      email: {email}"
    )
    found = [warning for warning in warnings(tmp_path, text) if "format: email" in warning]
    assert [warning.split(":")[0] for warning in found] == (["9 sources.acme.properties.email"] if told else [])


def test_a_retention_that_forgets_before_a_signature_is_stale_is_warned_of(tmp_path: Path) -> None:
    """A time is good from as far ahead as behind."""
    (warning,) = warnings(tmp_path, SOUND + "journal: {retention: 9m}\n")

    assert "sources.acme.verify.tolerance: a captured request can be sent again" in warning
    assert warnings(tmp_path, SOUND + "journal: {retention: 10m}\n") == []


@pytest.mark.parametrize("journal", ["{remember: 6d}", "{retention: 31d}", "{retention: 2d, remember: 47h}"])
def test_values_that_are_forgotten_before_their_events_are_warned_of(tmp_path: Path, journal: str) -> None:
    (warning,) = warnings(tmp_path, SOUND + f"journal: {journal}\n")
    assert "remembered as long as events are kept" in warning
    assert warnings(tmp_path, SOUND + "journal: {retention: 31d, remember: 31d}\n") == []
    untimed = "{scheme: github, secrets: [{env: SIGNING}]}"
    text = SOUND.replace("{scheme: standard-webhooks, secrets: [{env: ACME_SECRET}]}", untimed)
    assert warnings(tmp_path, text + "journal: {retention: 9m}\n") == []


def test_what_is_an_error_is_not_warned_of_for_what_stands_in_for_it(tmp_path: Path) -> None:
    """No word of `scheme none` where another scheme lacks its secret."""
    found = examine(write(tmp_path, SOUND.replace("event_id: id", "when: a")), environ={"TOKEN": ENVIRON["TOKEN"]})

    assert [problem.path for problem in found.problems] == ["sources.acme.verify.secrets[0]"]
    assert found.warnings == []


def test_posts_that_may_be_taken_for_handshakes_are_warned_of(tmp_path: Path) -> None:
    text = SOUND.replace("    event_id: id\n", "    event_id: id\n    challenge: {method: POST, reply: challenge}\n")

    (warning,) = warnings(tmp_path, text)
    assert "sources.acme.challenge: a POST in which `reply` finds something counts as a handshake" in warning
    assert warnings(tmp_path, text.replace("reply: challenge", "reply: challenge, when: 'a'")) == []


def test_a_secret_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    text = SOUND.replace("{env: ACME_SECRET}", "{file: acme.secret}")
    secret = write(tmp_path, STANDARD_SECRET, "acme.secret")
    secret.chmod(0o644)

    (warning,) = warnings(tmp_path, text)
    secret.chmod(0o600)

    assert warning.startswith("5 sources.acme.verify.secrets[0]: everybody on this machine can read")
    assert warnings(tmp_path, text) == []


def test_a_secret_within_the_file_is_warned_of(tmp_path: Path) -> None:
    (warning,) = warnings(tmp_path, SOUND.replace("{env: TOKEN}", "{env: UNSET, default: pat-eu1-abcdef}"))

    assert warning.startswith("2 crm.token: its `default` is a secret within this file")
    assert "abcdef" not in warning


def test_a_secret_within_an_included_file_is_warned_of(tmp_path: Path) -> None:
    acme = SOUND[SOUND.index("  acme") :].replace("ACME_SECRET", f"UNSET, default: {STANDARD_SECRET}")
    write(tmp_path, f"sources:\n{acme}", "acme.yaml")

    (warning,) = warnings(tmp_path, SOUND[: SOUND.index("sources:")] + "include: acme.yaml\n")

    assert "sources.acme.verify.secrets[0]: its `default` is a secret within this file" in warning
    assert STANDARD_SECRET not in warning


def test_sources_that_write_one_property_by_different_ids_are_warned_of(tmp_path: Path) -> None:
    other = SOUND[SOUND.index("  acme") :].replace("acme:", "beta:")

    assert warnings(tmp_path, SOUND + other) == []
    assert warnings(tmp_path, SOUND + other.replace("data.name", "x").replace("company_name", "notes")) == []
    (warning,) = warnings(tmp_path, SOUND + other.replace("acme_client_id", "beta_id"))
    assert warning.startswith("9 sources.beta: writes company_name of partner_clients by beta_id")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bridge@one:5432,two:5433/journal?target_session_attrs=read-write",
        "postgresql://bridge:a%40b@[::1]:5432,[::2]/journal",
        "postgresql://bridge@/journal?host=/run/postgresql",
    ],
)
def test_a_database_may_have_several_hosts_or_a_socket(tmp_path: Path, url: str) -> None:
    """As libpq understands it: a primary is found again after a failover."""
    settings = load_settings(write(tmp_path, SOUND + f"journal: {{url: '{url}'}}\n"), environ=ENVIRON)
    assert settings.journal.url == url


def test_settings_show_no_secret(tmp_path: Path) -> None:
    text = SOUND + "journal: {url: 'postgresql://bridge:hunter2@db/journal'}\n"
    settings = load_settings(write(tmp_path, text), environ=ENVIRON)

    assert "hunter2" not in repr(settings)
    assert all(secret not in repr(settings) for secret in ENVIRON.values())


JUNK: list[Any] = [None, True, 5, -1.5, "", "x", "a..b", [], [None], {}, {"x": {}}, {"env": "UNSET"}, {"env": []}]


def places(value: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place within `value`."""
    yield keys
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*keys, key))


def replaced(value: Any, keys: tuple[str | int, ...], junk: object) -> Any:
    """A copy of `value` with junk at one place."""
    if not keys:
        return junk
    copy = value.copy()
    copy[keys[0]] = replaced(value[keys[0]], keys[1:], junk)
    return copy


@pytest.mark.parametrize(
    "turn, part",
    [
        (0, 0),
        *(pytest.param(0, part, marks=pytest.mark.heavy) for part in (1, 2, 3)),
        *(pytest.param(4, part, marks=pytest.mark.heavy) for part in range(4)),
    ],
)
def test_whatever_stands_in_the_file_there_is_no_crash(tmp_path: Path, turn: int, part: int) -> None:
    """Every fourth value in turn becomes junk: there are problems with lines, or the file is sound."""
    whole = read_yaml(write(tmp_path, EVERYTHING)).data
    source = read_yaml(write(tmp_path, SOURCE)).data
    write(tmp_path, "", "ca.pem")
    listed = {key: source[key] for key in ("verify", "event_id")}
    listed["mappings"] = [{"when": "a", "record": source["record"], "properties": {"a": "b"}}]
    data = {**whole, "sources": {"acme": source, "beta": listed}}
    for index, keys in [*enumerate(places(data))][part::4]:
        text = json.dumps(replaced(data, keys, JUNK[(index + turn) % len(JUNK)]))
        findings = examine(write(tmp_path, text), environ=ENVIRON)
        assert (findings.settings is None) == bool(findings.problems)
        assert all(problem.line == 1 for problem in findings.problems)
