"""Whole configurations, loaded: what `init` writes, the five partners, and one that uses every option."""

from __future__ import annotations

import functools
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marshmallow import Schema, fields, post_load, validate

from bridge.config import load_settings
from bridge.config.templates import DEFAULT, TEMPLATES
from bridge.settings import Settings, Source

PARTNERS = Path(__file__).parent / "partners"
PUBLIC_URL = "https://hooks.example.com"
_KEY = "q8Zr-1vYw3KpT6xJ0cNf5sLbA"
_STANDARD = "whsec_cThaci0xdll3M0twVDZ4SjBjTmY1c0xiQQ=="

#: The secrets of all sources.
ENVIRON: Mapping[str, str] = {
    **{f"{path.name.upper()}_SECRET": _KEY for path in PARTNERS.iterdir()},
    **dict.fromkeys(("ERP_LOGIN", "LOGIN"), "ann:Vk3-wqz8-rmt4"),
    "KEY": _KEY,
    "STANDARD": _STANDARD,
}

EVERYTHING = """\
crm: {token: {env: TOKEN}}
server: {public_url: "https://hooks.example.com/"}
sources:
  types:
    verify: {scheme: standard-webhooks, secrets: [{env: STANDARD}]}
    event_id: id
    occurred_at: at
    timezone: Europe/Madrid
    record: {id: "client.id"}
    on_invalid: reject
    properties:
      text: client.text
      text_required: {from: client.text_required, required: true}
      text_key: {from: client.text_key, required: true, on_null: clear}
      email: {from: client.email, format: email, on_null: clear}
      number: {from: client.number, type: number, scale: 0.01}
      flag: {from: client.flag, type: bool}
      day: {from: client.day, type: date}
      day_written: {from: client.day_written, type: date, format: "%d/%m/%Y"}
      moment: {from: client.moment, type: datetime}
      option: {from: client.option, type: enumeration}
      phone: {from: client.phone, type: phone_number}
      plan: {from: client.plan, type: enumeration, values: {Gold: g, "1": one, "1.5": half, "true": yes, "a/b (c)": o}}
      other: {from: client.other, type: enumeration, values: {Gold: gold, "*": bronze}}
      flagged: {from: client.flagged, type: bool, values: {on: "true", off: "false"}}
      many: {from: client.many, type: enumeration, multiple: true, values: {a: x, b: y}}
      joined: {from: client.joined, type: enumeration, multiple: true, separator: ","}
      first: "client.list[1].name"
      computed: "join('-', [client.a, client.b])"
      root: _root.sent_by
      place: _index
      fixed: {constant: active}
  several:
    verify: {scheme: hmac, secrets: [{env: KEY}], header: X-Signature, signed: "{id}.{method}.{url}.{timestamp}.{body}",
             timestamp: {header: X-Time, unit: ms}, id: {header: X-Id}, algorithm: sha512, encoding: base64}
    events: data.events
    event_id: "to_string(id)"
    when: "version >= `2` && !(type == 'test' || type == 'ping')"
    mappings:
      - {when: "starts_with(type, 'client.')", record: {id: client, id_property: cid}, properties: {name: name}}
      - {when: "type == 'client.paid' || paid", record: {id: client, id_property: cid},
         properties: {total: {from: total, type: number}}}
      - {record: {id: "_root.tenant", id_property: tenant}, properties: {size: {from: size, type: number}}}
  pairs:
    verify: {scheme: bearer, secrets: [{env: KEY}], header: X-Token, prefix: "Token "}
    record: {id: id, id_property: cid}
    occurred_at: _headers.x_sent_at
    limit: {requests: 100000, per: 1s}
    properties: {tenant: _query.tenant}
    pairs:
      in: fields
      name: key
      value: value
      properties: {name: company_name, "7": {to: seats, type: number}, since: {to: since, type: date}}
  single:
    verify: {scheme: none}
    record: {id: id, id_property: cid}
    pairs: {in: "@", name: key, value: new.value, properties: {name: company_name, seats: {to: seats, type: number}}}
  lines:
    verify: {scheme: bearer, secrets: [{env: KEY}]}
    body: ndjson
    reply: {status: 200, body: none}
    record: {id: id, id_property: cid}
    properties: {name: name, seats: {from: seats, type: number}}
  form:
    verify: {scheme: basic, secrets: [{env: LOGIN}]}
    body: form
    record: {id: id, id_property: cid}
    properties: {name: name, seats: {from: seats, type: number}}
  inside:
    verify: {scheme: slack, secrets: [{env: KEY}]}
    body: form
    payload_field: payload
    record: {id: user.id, id_property: cid}
    properties: {name: user.name}
  handshake:
    verify: {scheme: slack, secrets: [{env: KEY}]}
    challenge: {method: POST, when: "type == 'url_verification'", reply: challenge}
    record: {id: id, id_property: cid}
    properties: {name: name}
  hello:
    verify: {scheme: hubspot-v3, secrets: [{env: KEY}]}
    challenge: {method: GET, when: "_query.mode == 'subscribe'", reply: _query.challenge}
    record: {id: id, id_property: cid}
    properties: {name: name}
  zendesk:
    verify: {scheme: zendesk, secrets: [{env: KEY}]}
    record: {id: id, id_property: cid}
    properties: {name: name}
  typeform:
    verify: {scheme: typeform, secrets: [{env: KEY}]}
    record: {id: id, id_property: cid}
    properties: {name: name}
  calendly:
    verify: {scheme: calendly, secrets: [{env: KEY}]}
    record: {id: id, id_property: cid}
    properties: {name: name}
  hubspot-v2:
    verify: {scheme: hubspot-v2, secrets: [{env: KEY}]}
    record: {id: id, id_property: cid}
    properties: {name: name}
  hubspot-v1:
    verify: {scheme: hubspot-v1, secrets: [{env: KEY}]}
    record: {id: id, id_property: cid}
    properties: {name: name}
  own:
    verify: {scheme: github, secrets: [{env: KEY}]}
    record: {id: number, id_property: cid}
    schema: tests.configurations:OwnClient
"""

#: Events that the expression puts together: no schema of the whole body can be derived.
COMPUTED = """\
crm: {token: {env: TOKEN}}
sources:
  made:
    verify: {scheme: none}
    events: "orders[].{id: id, client: client, total: sum(lines), up: ceil(lines[0]), mean: avg(lines), lines: lines}"
    event_id: id
    record: {id: client, id_property: cid}
    properties: {total: {from: total, type: number}, up: {from: up, type: number}, mean: {from: mean, type: number}}
"""


class OwnAddress(Schema):
    """Nested, and strict: what it does not name is an error."""

    city = fields.String(required=True)
    lines = fields.List(fields.String(), validate=validate.Length(max=3))


class OwnClient(Schema):
    """A schema as a user might write it."""

    number = fields.Raw(required=True)
    company_name = fields.String(data_key="name", required=True, validate=validate.Length(1, 40))
    seats = fields.Integer(allow_none=True)
    revenue = fields.Float()
    active = fields.Boolean()
    since = fields.Date()
    tier = fields.String(validate=validate.OneOf(["gold", "silver"]))
    address = fields.Nested(OwnAddress, load_only=True)
    changed = fields.DateTime(dump_only=True)
    code = fields.String(validate=validate.Regexp("[a-z]+[0-9]+"))
    choice = fields.String(load_default="x", pre_load=str)

    @post_load
    def flatten(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """HubSpot takes one value a property."""
        address = data.pop("address", {})
        return {**data, **{key: value for key, value in address.items() if key == "city"}}


@functools.cache
def configurations() -> Mapping[str, Settings]:
    """By label, each loaded from a file as the service does it."""
    found = {f"init-{name}": _template(name) for name in TEMPLATES}
    found["partners"] = _loaded(
        f"crm: {{token: {{env: TOKEN}}}}\nserver: {{public_url: {PUBLIC_URL}}}\ninclude: ['{PARTNERS}/*/source.yaml']\n"
    )
    found["everything"] = _loaded(EVERYTHING)
    found["computed"] = _loaded(COMPUTED)
    return found


@functools.cache
def sources() -> Mapping[str, tuple[Settings, Source]]:
    """Every source of them all, by "configuration:source"."""
    return {
        f"{label}:{name}": (settings, source)
        for label, settings in configurations().items()
        for name, source in settings.sources.items()
    }


def joined_sources() -> str:
    """All whose bodies have a schema in one `sources:` block, the templates' under the names of `init --from`."""
    parts = [EVERYTHING.partition("sources:\n")[2]]
    for name, template in TEMPLATES.items():
        variable = "STANDARD" if name == DEFAULT else "KEY"
        text = template.text.partition("sources:\n")[2].replace(
            f"{{file: {template.secret_file}}}", f"{{env: {variable}}}"
        )
        parts.append(text.replace(f"  {template.source}:", f"  init-{name}:", 1))
    files = sorted(PARTNERS.glob("*/source.yaml"))
    parts.extend(textwrap.indent(path.read_text(encoding="utf-8"), "  ") for path in files)
    return "\n".join(parts)


def _template(name: str) -> Settings:
    template = TEMPLATES[name]
    text = template.text.replace(f"{{file: {template.secret_file}}}", "{env: NEW_SECRET}")
    return _loaded(text, template.new_secret())


def _loaded(text: str, new_secret: str = "") -> Settings:
    environ = {**ENVIRON, "NEW_SECRET": new_secret}
    environ |= dict.fromkeys(("TOKEN", "HUBSPOT_ACCESS_TOKEN"), "pat-eu1-4f1c2a9e-77b0")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bridge.yaml"
        file.write_text(text, encoding="utf-8")
        return load_settings(file, environ=environ)
