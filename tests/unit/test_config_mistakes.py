"""Every mistake in bridge.yaml is told with its path, its line and what to change.

Each row puts something in place of a part of a sound file; `#!` marks the line that must be named.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.config import examine, load
from bridge.errors import ConfigError

STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

SOUND = """\
crm:
  token: {env: TOKEN}
sources:
  acme:
    verify:
      scheme: standard-webhooks
      secrets: [{env: ACME_SECRET}]
    event_id: id
    record: {id: data.id, id_property: acme_client_id}
    properties:
      company_name: data.name
"""

ENVIRON = {
    "TOKEN": "pat-eu1-0b8f4c1e",
    "ACME_SECRET": STANDARD_SECRET,
    "SIGNING": "0123456789abcdef0123456789abcdef",
    "SHORT": "0123456789",
    "PLACEHOLDER": "changeme",
    "LATIN": "/caf\udce9",
    "EMPTY": "",
    "LOGIN": "partner:correct-horse",
    "BRIEF_LOGIN": "partner:short",
    "LAZY_LOGIN": "partner:password",
    "NUMBER": "seven",
    "WEAK": "whsec_c2hvcnQ=",
    "ODD": os.fsdecode(b"\xff\xfe\xfd"),
}

VERIFY = """\
      scheme: standard-webhooks
      secrets: [{env: ACME_SECRET}]
"""
HMAC = """\
      scheme: hmac
      secrets: [{env: SIGNING}]
      header: X-Signature
"""
TOKEN = "  token: {env: TOKEN}\n"
PROPERTY = "      company_name: data.name\n"
RECORD = "    record: {id: data.id, id_property: acme_client_id}\n"
PROPERTIES = "    properties:\n" + PROPERTY

# what is replaced, what stands there instead, the path and a part of the message
MISTAKES = [
    # unknown keys
    ("crm:\n", "cmr: {}  #!\ncrm:\n", "cmr", "unknown key; did you mean 'crm'?"),
    ("sources:\n", "retries: {base: 2s}  #!\nsources:\n", "retries", "did you mean 'retry'?"),
    (TOKEN, TOKEN + "  batchsize: 50  #!\n", "crm.batchsize", "did you mean 'batch_size'?"),
    (TOKEN, TOKEN + "  colour: red  #!\n", "crm.colour", "unknown key; known here: base_url, api_path"),
    ("    event_id: id\n", "    eventid: id  #!\n", "sources.acme.eventid", "did you mean 'event_id'?"),
    (
        PROPERTY,
        "      company_name: {path: data.name}  #!\n",
        "sources.acme.properties.company_name.path",
        "did you mean 'from'?",
    ),
    (
        VERIFY,
        "      scheme: none\n      secret: x  #!\n",
        "sources.acme.verify.secret",
        "did you mean 'secrets'?",
    ),
    # wrong types and units
    (TOKEN, TOKEN + "  batch_size: many  #!\n", "crm.batch_size", "must be a whole number, not 'many'"),
    (TOKEN, TOKEN + "  batch_size: 101  #!\n", "crm.batch_size", "must be between 1 and 100"),
    (TOKEN, TOKEN + "  batch_size: 0  #!\n", "crm.batch_size", "must be between 1 and 100"),
    (TOKEN, TOKEN + "  batch_size: true  #!\n", "crm.batch_size", "must be a whole number, not true"),
    (TOKEN, TOKEN + "  max_in_flight: {env: NUMBER}  #!\n", "crm.max_in_flight", "not 'seven'"),
    (TOKEN, TOKEN + "  api_path: {env: LATIN}  #!\n", "crm.api_path", "the environment variable LATIN is not UTF-8"),
    (TOKEN, TOKEN + "  timeout: 30  #!\n", "crm.timeout", "30 has no unit: write a number with its unit"),
    (TOKEN, TOKEN + "  timeout: 30 seconds  #!\n", "crm.timeout", "the unit 'seconds' is not known"),
    (TOKEN, TOKEN + "  timeout: 0s  #!\n", "crm.timeout", "must be longer than nothing"),
    (TOKEN, TOKEN + "  timeout: -5s  #!\n", "crm.timeout", "is not a duration"),
    (TOKEN, TOKEN + "  timeout:  #!\n", "crm.timeout", "has no value"),
    (TOKEN, TOKEN + "  rate_limit: {calls: 0}  #!\n", "crm.rate_limit.calls", "must be at least 1"),
    (TOKEN, TOKEN + "  rate_limit: 100  #!\n", "crm.rate_limit", "must be a mapping of keys, not 100"),
    (TOKEN, TOKEN + "  base_url: api.hubapi.com  #!\n", "crm.base_url", "is not a URL such as https://"),
    (TOKEN, TOKEN + "  api_path: crm/v3  #!\n", "crm.api_path", "must be a path such as /crm/v3/objects"),
    (TOKEN, TOKEN + "  ca_file: gone.pem  #!\n", "crm.ca_file", "there is no file"),
    ("sources:\n", "journal: {max_size: 20 Gigs}  #!\nsources:\n", "journal.max_size", "the unit 'Gigs'"),
    ("sources:\n", "journal: {url: mysql://h/d}  #!\nsources:\n", "journal.url", "write sqlite:///journal.db"),
    ("sources:\n", "journal: {url: 'sqlite://'}  #!\nsources:\n", "journal.url", "write sqlite:///journal.db"),
    ("sources:\n", "journal: {url: 'sqlite:///:memory:'}  #!\nsources:\n", "journal.url", "in memory would lose"),
    ("sources:\n", "journal: {url: 'postgresql://h'}  #!\nsources:\n", "journal.url", "names no database"),
    ("sources:\n", "journal: {url: 'postgresql://h:1,i:0/d'}  #!\nsources:\n", "journal.url", "its host is unfit"),
    ("sources:\n", "retry: {base: 20m}  #!\nsources:\n", "retry.base", "`base` is longer than `max`"),
    ("sources:\n", "server: {threads: 0}  #!\nsources:\n", "server.threads", "must be between 1 and 1024"),
    ("sources:\n", "server: {workers: 0}  #!\nsources:\n", "server.workers", "must be between 1 and 64"),
    ("sources:\n", "server: {max_requests: 100}  #!\nsources:\n", "server.max_requests", "unknown key"),
    ("sources:\n", "server: {preload: true}  #!\nsources:\n", "server.preload", "unknown key"),
    ("sources:\n", "server: {bind: 8080}  #!\nsources:\n", "server.bind", "8080 is not an address: write host:port"),
    ("sources:\n", "server: {bind: ':99999'}  #!\nsources:\n", "server.bind", "there is no port 99999"),
    (
        "sources:\n",
        "server: {bind: ':9090', admin_bind: '0.0.0.0:9090'}  #!\nsources:\n",
        "server.admin_bind",
        "has the port of `bind`",
    ),
    (
        "sources:\n",
        "server: {bind: '10.0.0.7:9090', admin_bind: '127.0.0.1:9090'}  #!\nsources:\n",
        "server.admin_bind",
        "has the port of `bind`",
    ),
    # the CRM's credentials
    (TOKEN, "  batch_size: 5\n", "crm.token", "is missing: write `token: {env: HUBSPOT_ACCESS_TOKEN}`"),
    (TOKEN, "  token: pat-eu1-abc  #!\n", "crm.token", "a secret has no place in this file"),
    (TOKEN, "  token: {env: UNSET}  #!\n", "crm.token", "the environment variable UNSET is not set"),
    (TOKEN, "  token: {env: EMPTY}  #!\n", "crm.token", "the environment variable EMPTY is set but empty"),
    (TOKEN, "  token: {env: PLACEHOLDER}  #!\n", "crm.token", "the variable PLACEHOLDER holds a placeholder"),
    (TOKEN, "  token: {file: gone}  #!\n", "crm.token", "gone cannot be read"),
    (TOKEN, "  token: {env: A, file: b}  #!\n", "crm.token", "write either {env: NAME}"),
    (
        TOKEN,
        TOKEN + "  oauth: {client_id: a, client_secret: {env: TOKEN}, refresh_token: {env: TOKEN}}  #!\n",
        "crm.oauth",
        "stands beside `token`; keep one of the two",
    ),
    (
        TOKEN,
        "  oauth: {client_secret: {env: TOKEN}, refresh_token: {env: TOKEN}}  #!\n",
        "crm.oauth.client_id",
        "is missing",
    ),
    # verification
    (VERIFY, "      scheme: standard-webhook  #!\n", "sources.acme.verify.scheme", "did you mean 'standard-webhooks'?"),
    (
        VERIFY,
        "      scheme: bearer\n",
        "sources.acme.verify.secrets",
        "scheme bearer needs at least one",
    ),
    (
        VERIFY,
        "      scheme: none\n      secrets: [{env: SIGNING}]  #!\n",
        "sources.acme.verify.secrets",
        "scheme none checks no secrets",
    ),
    (
        VERIFY,
        "      scheme: standard-webhooks\n      secrets: [{env: ACME_SECRET}, {env: UNSET}]  #!\n",
        "sources.acme.verify.secrets[1]",
        "the environment variable UNSET is not set",
    ),
    (
        VERIFY,
        "      scheme: standard-webhooks\n      secrets: {env: ACME_SECRET}  #!\n",
        "sources.acme.verify.secrets",
        "must be a list, not a mapping",
    ),
    (
        VERIFY,
        "      scheme: standard-webhooks\n      secrets: [{env: WEAK}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "holds 5 bytes after base64; standard-webhooks needs 24 to 64",
    ),
    (
        VERIFY,
        "      scheme: standard-webhooks\n      secrets: [{env: LOGIN}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "is not whsec_ and base64",
    ),
    (
        VERIFY,
        "      scheme: bearer\n      secrets: [{env: SHORT}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "is too short: a bearer token needs at least 16 characters",
    ),
    (
        VERIFY,
        "      scheme: basic\n      secrets: [{env: SIGNING}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "is not user:password",
    ),
    (
        VERIFY,
        "      scheme: basic\n      secrets: [{env: BRIEF_LOGIN}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "a password needs at least 8 characters",
    ),
    (
        VERIFY,
        "      scheme: basic\n      secrets: [{env: LAZY_LOGIN}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "holds a placeholder, not a password",
    ),
    (
        VERIFY,
        "      scheme: hmac\n      header: X-S\n      secrets: [{env: SHORT}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "a signing secret needs at least 24 bytes, not 10",
    ),
    (
        VERIFY,
        "      scheme: hmac\n      header: X-S\n      key: hex\n      secrets: [{env: LOGIN}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "is not hex, as `key` says",
    ),
    (
        VERIFY,
        "      scheme: hmac\n      secrets: [{env: SIGNING}]\n",
        "sources.acme.verify.header",
        "scheme hmac needs the header of the signature",
    ),
    (
        VERIFY,
        "      scheme: hmac\n      secrets: [{env: SIGNING}]\n      header: X-Sig\n      timestamp: {header: x-sig}\n",
        "sources.acme.verify.prefix",
        "nothing else tells which text is the signature",
    ),
    (VERIFY, HMAC + "      algorithm: md5  #!\n", "sources.acme.verify.algorithm", "it is one of sha1, sha256"),
    (VERIFY, HMAC + "      signed: '{time}.{body}'  #!\n", "sources.acme.verify.signed", "knows {body}, {timestamp}"),
    (VERIFY, HMAC + "      signed: '{method}'  #!\n", "sources.acme.verify.signed", "must contain {body}"),
    (
        VERIFY,
        HMAC + "      signed: '{timestamp}.{body}'  #!\n",
        "sources.acme.verify.signed",
        "write `timestamp: {header: …}` beside it",
    ),
    (
        VERIFY,
        HMAC + "      signed: '{url}{body}'\n",
        "sources.acme.verify.scheme",
        "write `public_url: https://…` under `server`",
    ),
    (
        VERIFY,
        HMAC + "      signed: '{id}{body}'\n      id: {header: X-Id}\n      timestamp: {header: X-T}  #!\n",
        "sources.acme.verify.timestamp",
        "name {timestamp} there",
    ),
    (
        VERIFY,
        "      scheme: hmac\n      header: X-S\n      secrets: [{env: ODD}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "is too short: a signing secret needs at least 24 bytes, not 3",
    ),
    (
        VERIFY,
        "      scheme: hubspot-v2\n      secrets: [{env: SIGNING}]\n",
        "sources.acme.verify.scheme",
        "hubspot-v2 signs the URL; write `public_url: https://…` under `server`",
    ),
    (
        VERIFY,
        "      scheme: hubspot-v1\n      secrets: [{env: PLACEHOLDER}]  #!\n",
        "sources.acme.verify.secrets[0]",
        "the variable PLACEHOLDER holds a placeholder, not a secret",
    ),
    (VERIFY, VERIFY + "      encoding: hex  #!\n", "sources.acme.verify.encoding", "belongs to scheme hmac"),
    # sources
    ("  acme:\n", "  Acme Inc:  #!\n", "sources.Acme Inc", "is not a source's name: lower-case letters"),
    (SOUND[SOUND.index("sources:") :], "sources: {}  #!\n", "sources", "write at least one under `sources:`"),
    (SOUND[SOUND.index("sources:") :], "sources: [acme]  #!\n", "sources", "must be a mapping of names"),
    (SOUND[SOUND.index("    verify") :], "    - nothing\n", "sources.acme", "must be a mapping of keys"),
    ("    event_id: id\n", "    event_id: [id]  #!\n", "sources.acme.event_id", "must be text, not a list"),
    ("    event_id: id\n", "    timezone: Europe/Madird  #!\n", "sources.acme.timezone", "did you mean Europe/Madrid?"),
    ("    event_id: id\n", "    payload_field: data  #!\n", "sources.acme.payload_field", "with `body: form`"),
    ("    event_id: id\n", "    limit: {requests: 5}  #!\n", "sources.acme.limit.per", "is missing"),
    (
        "    event_id: id\n",
        "    limit: {requests: 1000001, per: 1d}  #!\n",
        "sources.acme.limit.requests",
        "between 1 and 1000000",
    ),
    (
        "    event_id: id\n",
        "    challenge: {reply: '_query.'}  #!\n",
        "sources.acme.challenge.reply",
        "is not JMESPath",
    ),
    (
        "    event_id: id\n",
        "    challenge: {reply: a, when: 'nosuch(a)'}  #!\n",
        "sources.acme.challenge.when",
        "calls nosuch(), which does not exist",
    ),
    (
        "    event_id: id\n",
        "    challenge: {reply: _headers.authorization}  #!\n",
        "sources.acme.challenge",
        "holds a credential",
    ),
    ("    event_id: id\n", "    reply: {status: 404}  #!\n", "sources.acme.reply.status", "between 200 and 299"),
    ("    event_id: id\n", "    mappings: []  #!\n", "sources.acme.mappings", "must name at least one"),
    ("    event_id: id\n", "    when: 'type =='  #!\n", "sources.acme.when", ""),
    # mappings
    (RECORD, "", "sources.acme.record", "is missing: write `record: {id: PATH"),
    (RECORD, "    record: {id_property: a}  #!\n", "sources.acme.record.id", "is missing"),
    (RECORD, "    record: {id: a, id_property: Acme ID}  #!\n", "sources.acme.record.id_property", "lower-case"),
    (RECORD, "    record: {id: a, on_unknown: drop}  #!\n", "sources.acme.record.on_unknown", "park, wait, ignore"),
    (PROPERTIES, "", "sources.acme.properties", "is missing: write `properties:`, `pairs:` or `schema:`"),
    (PROPERTIES, "    properties: {}  #!\n", "sources.acme.properties", "must name at least one"),
    (PROPERTIES, "    schema: nothing  #!\n", "sources.acme.schema", "must be module.path:ClassName"),
    (PROPERTY, "      Company: data.name  #!\n", "sources.acme.properties.Company", "lower-case letters"),
    (PROPERTY, "      tier: {type: enumeration}  #!\n", "sources.acme.properties.tier", "needs `from`"),
    (
        PROPERTY,
        "      tier: {from: a, constant: gold}  #!\n",
        "sources.acme.properties.tier.constant",
        "stands beside `from`; keep one of the two",
    ),
    (
        PROPERTY,
        "      tier: {constant: gold, on_null: clear}  #!\n",
        "sources.acme.properties.tier.on_null",
        "has no effect on a constant",
    ),
    (PROPERTY, "      tier: {from: a, type: enum}  #!\n", "sources.acme.properties.tier.type", "did you mean 'enumer"),
    (
        PROPERTY,
        "      tier: {from: a, scale: 0.01}  #!\n",
        "sources.acme.properties.tier.scale",
        "belongs to type number, not to string",
    ),
    (
        PROPERTY,
        "      tier: {from: a, type: number, scale: x}  #!\n",
        "sources.acme.properties.tier.scale",
        "must be a number other than 0",
    ),
    (
        PROPERTY,
        "      tier: {from: a, type: enumeration, separator: ','}  #!\n",
        "sources.acme.properties.tier.separator",
        "works only with `multiple: true`",
    ),
    (
        PROPERTY,
        "      tier: {from: a, type: enumeration, values: []}  #!\n",
        "sources.acme.properties.tier.values",
        "must be a mapping, not a list",
    ),
    (
        PROPERTY,
        "      tier:\n        from: a\n        values:\n          Gold: [gold]  #!\n",
        "sources.acme.properties.tier.values.Gold",
        "must be text, not a list",
    ),
    (
        PROPERTY,
        "      mail: {from: a, format: phone}  #!\n",
        "sources.acme.properties.mail.format",
        "type string knows format `email` only",
    ),
    (PROPERTY, "      tier: {from: 'a..b'}  #!\n", "sources.acme.properties.tier.from", ""),
    (PROPERTY, "      tier: 'a..b'  #!\n", "sources.acme.properties.tier", ""),
    (
        "    event_id: id\n",
        "    mappings: [{record: {id: a}, properties: {b: c}}]\n",
        "sources.acme.record",
        "stands beside `mappings`; move it into an entry of the list",
    ),
    (
        PROPERTY,
        PROPERTY + "    pairs: {in: '@', name: n, value: v, properties: {x: company_name}}  #!\n",
        "sources.acme.pairs.properties.x",
        "writes company_name, as `properties` does; keep one",
    ),
    (
        PROPERTIES,
        "    pairs:\n      {in: '@', name: n, value: v, properties: {\n        x: a,\n        y: {to: a}}}  #!\n",
        "sources.acme.pairs.properties.y",
        "writes a, as 'x' does; keep one",
    ),
    (
        PROPERTY,
        PROPERTY + "      company_name: b  #!\n",
        "sources.acme.properties.company_name",
        "in line 11; keep one",
    ),
    # examples
    ("    event_id: id\n", "    examples: [{payload: {}}]  #!\n", "sources.acme.examples[0]", "needs exactly one of"),
    ("    event_id: id\n", "    examples: [{ignored: true}]  #!\n", "sources.acme.examples[0]", "`payload` or `file`"),
    (
        "    event_id: id\n",
        "    examples:\n      - file: gone.json  #!\n        ignored: true\n",
        "sources.acme.examples[0].file",
        "gone.json cannot be read",
    ),
    (
        "    event_id: id\n",
        "    examples:\n      - payload: {}\n        expect: [{id: 1, property: {}}]  #!\n",
        "sources.acme.examples[0].expect[0].property",
        "did you mean 'properties'?",
    ),
    # includes
    ("sources:\n", "include: more/*.yaml  #!\nsources:\n", "include", "no file matches more/*.yaml"),
]


@pytest.mark.parametrize("old, new, path, message", MISTAKES)
def test_f52_a_mistake_is_told_with_its_path_line_and_remedy(
    tmp_path: Path, old: str, new: str, path: str, message: str
) -> None:
    """One sentence names the key, its line and what to change."""
    assert old in SOUND
    text = SOUND.replace(old, new, 1)
    file = tmp_path / "bridge.yaml"
    file.write_text(text, encoding="utf-8")

    problems = examine(file, environ=ENVIRON).problems

    found = [problem for problem in problems if problem.path == path and message in problem.message]
    assert found, "\n".join(map(str, problems))
    assert found[0].file == str(file)
    marked = [number for number, line in enumerate(text.splitlines(), start=1) if "#!" in line]
    assert found[0].line is not None
    if marked:
        assert marked == [found[0].line]
    for secret in ENVIRON.values():
        assert len(secret) < 8 or all(secret not in str(problem) for problem in problems)


def test_a_sound_file_has_no_problems(tmp_path: Path) -> None:
    """The rows above differ from a file that is accepted."""
    file = tmp_path / "bridge.yaml"
    file.write_text(SOUND, encoding="utf-8")

    loaded = load(file, environ=ENVIRON)

    assert loaded.warnings == ()
    assert list(loaded.settings.sources) == ["acme"]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """A missing secret hides neither an unknown key, nor a bad unit, nor an expression that does not parse."""
    file = tmp_path / "bridge.yaml"
    file.write_text(
        SOUND.replace(TOKEN, TOKEN + "  timeout: 30\n")
        .replace("ACME_SECRET", "UNSET")
        .replace("event_id: id", "event_id: 'a..b'\n    evnts: '@'")
        .replace(PROPERTY, PROPERTY + "      tier: {from: a, typ: number}\n      active: 'x['\n"),
        encoding="utf-8",
    )

    with pytest.raises(ConfigError) as raised:
        load(file, environ=ENVIRON)

    assert [(problem.line, problem.path) for problem in raised.value.problems] == [
        (3, "crm.timeout"),
        (8, "sources.acme.verify.secrets[0]"),
        (9, "sources.acme.event_id"),
        (10, "sources.acme.evnts"),
        (14, "sources.acme.properties.tier.typ"),
        (15, "sources.acme.properties.active"),
    ]


def test_a_faulty_mapping_keeps_the_places_of_those_behind_it(tmp_path: Path) -> None:
    """What is left out to look further does not shift the numbers of the entries."""
    file = tmp_path / "bridge.yaml"
    start = SOUND[: SOUND.index("    record")]
    file.write_text(
        start + "    mappings:\n      - {properties: {a: b}}\n      - {record: {id: x}, properties: {a: 'b['}}\n",
        encoding="utf-8",
    )

    problems = examine(file, environ=ENVIRON).problems

    assert [(problem.line, problem.path) for problem in problems] == [
        (10, "sources.acme.mappings[0].record"),
        (11, "sources.acme.mappings[1].properties.a"),
    ]


def test_a_prefix_that_is_not_to_be_had_is_not_missing_as_well(tmp_path: Path) -> None:
    file = tmp_path / "bridge.yaml"
    scheme = HMAC + "      timestamp: {header: x-signature}\n      prefix: {env: NOT_THERE}\n"
    file.write_text(SOUND.replace(VERIFY, scheme, 1), encoding="utf-8")
    told = [problem.message for problem in examine(file, environ=ENVIRON).problems]
    assert told == ["the environment variable NOT_THERE is not set"]
