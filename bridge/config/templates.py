"""The commented `bridge.yaml` files that `init` writes, one for each kind of sender.

Long, because it is text for people: every file is whole, so that it can be read here as it is written.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass

_HEAD = """\
# Partner Bridge. `partner-bridge check` tells all that is wrong with this file, `partner-bridge schema`
# prints a JSON Schema for editors. Any value may be {env: NAME, default: …} or {file: PATH}.

crm:
  # The access token of a private app in HubSpot. `--sandbox` needs none.
  token: {env: HUBSPOT_ACCESS_TOKEN}        # or a mounted file: {file: /run/secrets/hubspot-token}

journal:
  # What was accepted and not yet delivered. Three slashes: relative to the working directory.
  url: sqlite:///journal.db                 # in a container: sqlite:////var/lib/partner-bridge/journal.db

server:
  bind: 127.0.0.1:8080                      # for partners; in a container: 0.0.0.0:8080
  admin_bind: 127.0.0.1:9090                # health, metrics and the console
"""

_STANDARD = """
sources:
  acme:                                     # partners post to /webhooks/acme
    verify:
      scheme: standard-webhooks
      secrets: [{file: acme.secret}]        # from a variable: {env: ACME_SECRET}; two of them during a rotation
    object_type: partner_clients
    when: "type == 'client.updated'"        # JMESPath; all else is acknowledged and ignored
    event_id: id
    occurred_at: timestamp                  # an older event never overwrites a newer value
    record:
      id: data.client.id
      id_property: acme_client_id           # a property with unique values
      on_unknown: park                      # the CRM has no such record: park, wait or ignore
    properties:                             # HubSpot property: JMESPath
      company_name: data.client.name
      annual_revenue: {from: data.client.arr_cents, type: number, scale: 0.01}
      renewal_date: {from: data.client.renews_on, type: date}
      active: {from: data.client.active, type: bool}
      tier:
        from: data.client.plan
        type: enumeration
        values: {Gold: gold, Silver: silver, "*": bronze}
      contact_email: {from: data.client.email, format: email}
    examples:                               # `check` maps them, `send acme` posts the first
      - payload:
          id: evt_1
          type: client.updated
          timestamp: "2026-01-02T03:04:05Z"
          data: {client: {id: "7", name: Globex, arr_cents: 123450, plan: Gold, active: true}}
        expect:
          - id: "7"
            id_property: acme_client_id
            properties: {company_name: Globex, annual_revenue: "1234.5", active: "true", tier: gold}
"""

_HMAC = """
sources:
  acme:                                     # partners post to /webhooks/acme
    verify:
      scheme: hmac                          # for senders that no other scheme fits
      secrets: [{file: acme.secret}]        # from a variable: {env: ACME_SECRET}; two of them during a rotation
      header: X-Signature
      algorithm: sha256
      encoding: hex                         # or base64
      prefix: sha256=
      signed: "{timestamp}.{body}"          # {id}, {method} and {url} may stand here too
      timestamp: {header: X-Timestamp, unit: s}
    object_type: partner_clients
    event_id: id
    occurred_at: changed_at
    record:
      id: client.id
      id_property: acme_client_id           # a property with unique values
    properties:                             # HubSpot property: JMESPath
      company_name: client.name
      tier:
        from: client.plan
        type: enumeration
        values: {Gold: gold, Silver: silver, "*": bronze}
    examples:                               # `check` maps them, `send acme` posts the first
      - payload:
          id: evt_1
          changed_at: "2026-01-02T03:04:05Z"
          client: {id: "7", name: Globex, plan: Gold}
        expect:
          - id: "7"
            id_property: acme_client_id
            properties: {company_name: Globex, tier: gold}
"""

_STRIPE = """
sources:
  stripe:                                   # Stripe posts to /webhooks/stripe
    verify:
      scheme: stripe
      # The endpoint's signing secret as Stripe shows it; until then a random one, to try things out.
      secrets: [{file: stripe.secret}]      # from a variable: {env: STRIPE_SIGNING_SECRET}
    object_type: partner_clients
    when: "type == 'customer.created' || type == 'customer.updated'"
    event_id: id
    occurred_at: created
    record:
      id: data.object.id
      id_property: stripe_customer_id       # a property with unique values
    properties:                             # HubSpot property: JMESPath
      company_name: data.object.name
      contact_email: {from: data.object.email, format: email}
      phone: {from: data.object.phone, type: phone_number}
      active: {from: data.object.delinquent, type: bool, values: {"true": "false", "false": "true"}}
    examples:                               # `check` maps them, `send stripe` posts the first
      - payload:
          id: evt_1
          type: customer.updated
          created: 1767323045
          data: {object: {id: cus_7, name: Globex, email: ana@globex.example, delinquent: false}}
        expect:
          - id: cus_7
            id_property: stripe_customer_id
            properties: {company_name: Globex, contact_email: ana@globex.example, active: "true"}
"""

_SHOPIFY = """
sources:
  shopify:                                  # Shopify posts to /webhooks/shopify
    verify:
      scheme: shopify
      # The app's client secret; until then a random one, to try things out.
      secrets: [{file: shopify.secret}]     # from a variable: {env: SHOPIFY_CLIENT_SECRET}
    object_type: partner_clients
    when: "_headers.x_shopify_topic == 'customers/update'"
    occurred_at: updated_at                 # the event's id is Shopify's delivery id
    record:
      id: id
      id_property: shopify_customer_id      # a property with unique values
    properties:                             # HubSpot property: JMESPath
      company_name: default_address.company
      contact_email: {from: email, format: email}
      annual_revenue: {from: total_spent, type: number}
    examples:                               # `check` maps them, `send shopify` posts the first
      - headers: {X-Shopify-Topic: customers/update}
        payload:
          id: 7
          email: ana@globex.example
          updated_at: "2026-01-02T03:04:05Z"
          total_spent: "1234.50"
          default_address: {company: Globex}
        expect:
          - id: "7"
            id_property: shopify_customer_id
            properties: {company_name: Globex, contact_email: ana@globex.example, annual_revenue: "1234.5"}
"""

_HUBSPOT = """
  public_url: http://127.0.0.1:8080         # as HubSpot calls the service: https://… ; it signs the URL

sources:
  hubspot:                                  # another portal posts to /webhooks/hubspot
    verify:
      scheme: hubspot-v3
      # The app's client secret; until then a random one, to try things out.
      secrets: [{file: hubspot.secret}]     # from a variable: {env: HUBSPOT_CLIENT_SECRET}
    object_type: partner_clients
    when: "subscriptionType == 'company.propertyChange'"
    occurred_at: occurredAt
    record:
      id: objectId
      id_property: external_id              # a property with unique values
    pairs:                                  # one event is one property's change
      in: "@"
      name: propertyName
      value: propertyValue
      properties:                           # the sender's name: HubSpot property
        name: company_name
        annualrevenue: {to: annual_revenue, type: number}
    examples:                               # `check` maps them, `send hubspot` posts the first
      - payload:
          - eventId: 1
            subscriptionType: company.propertyChange
            occurredAt: 1767323045000
            objectId: 7
            propertyName: name
            propertyValue: Globex
        expect:
          - id: "7"
            id_property: external_id
            properties: {company_name: Globex}
"""

_GITHUB = """
sources:
  github:                                   # GitHub posts to /webhooks/github
    verify:
      scheme: github
      secrets: [{file: github.secret}]      # give GitHub the same; from a variable: {env: GITHUB_SECRET}
    object_type: partner_clients
    when: "_headers.x_github_event == 'installation'"
    occurred_at: installation.updated_at    # the event's id is GitHub's delivery id
    record:
      id: installation.account.id
      id_property: github_account_id        # a property with unique values
    properties:                             # HubSpot property: JMESPath
      company_name: installation.account.login
      active: {from: action, type: bool, values: {created: "true", unsuspend: "true", "*": "false"}}
    examples:                               # `check` maps them, `send github` posts the first
      - headers: {X-GitHub-Event: installation}
        payload:
          action: created
          installation: {updated_at: "2026-01-02T03:04:05Z", account: {id: 7, login: globex}}
        expect:
          - id: "7"
            id_property: github_account_id
            properties: {company_name: globex, active: "true"}
"""


def _raw_secret() -> str:
    return secrets.token_hex(32)


def _standard_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class Template:
    """A file for one kind of sender. `theirs` names the secret that the sender gives; empty: we give it one of ours."""

    source: str
    text: str
    new_secret: Callable[[], str]
    theirs: str = ""

    @property
    def secret_file(self) -> str:
        """The file beside `bridge.yaml` that the text names."""
        return f"{self.source}.secret"


DEFAULT = "standard-webhooks"

TEMPLATES = {
    DEFAULT: Template("acme", _HEAD + _STANDARD, _standard_secret),
    "stripe": Template("stripe", _HEAD + _STRIPE, _raw_secret, "the endpoint's signing secret that Stripe shows"),
    "shopify": Template("shopify", _HEAD + _SHOPIFY, _raw_secret, "the client secret of your Shopify app"),
    "hubspot": Template(
        "hubspot", _HEAD + _HUBSPOT.removeprefix("\n"), _raw_secret, "the client secret of your HubSpot app"
    ),
    "github": Template("github", _HEAD + _GITHUB, _raw_secret),
    "hmac": Template("acme", _HEAD + _HMAC, _raw_secret),
}
