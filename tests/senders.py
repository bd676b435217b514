"""Partners that sign as the vendors do: by their own libraries where these can sign, else by the description.

None of it shares code with `bridge.intake`. `SENDERS` has one of each scheme, and of `hmac` one for each option.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import stripe
from hubspot.utils.signature import Signature
from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook

PUBLIC_URL = "https://hooks.example.com"
QUERY = "tag=a%2Cb%20c"
BODY = '{"id": "e1", "client": "c1", "name": "Zoë, 東京"}'.encode()

#: (body, text of the time, secret) → headers
Sign = Callable[[bytes, str, str], dict[str, str]]


@dataclass(frozen=True)
class Sender:
    """One partner. `verify` is its block without `secrets`; `unsigned` are headers that the signature leaves out."""

    name: str
    verify: str
    secret: str
    sign: Sign
    unit: str | None = None  # s, ms or iso
    unsigned: frozenset[str] = frozenset()
    signs_body: bool = True
    lists: bool = False  # whether the signature's header may hold several

    @property
    def path(self) -> str:
        return f"/webhooks/{self.name}?{QUERY}"

    def headers(self, at: float, body: bytes = BODY, secret: str | None = None) -> dict[str, str]:
        """The headers of a request that is sent at `at`, seconds since the epoch."""
        return self.sign(body, stamp(self.unit, at), secret or self.secret)

    def source(self) -> str:
        """Its entry under `sources:`."""
        return (
            f"  {self.name}:\n"
            f"    verify: {{{self.verify}, secrets: [{{file: {self.name}.secret}}]}}\n"
            "    event_id: id\n"
            "    record: {id: client, id_property: acme_client_id}\n"
            "    properties: {company_name: name}\n"
        )

    def write_secret(self, folder: Path, *others: str) -> None:
        """Its secret's file, with others before its own."""
        file = folder / f"{self.name}.secret"
        file.touch(0o600)
        file.write_text("\n".join([*others, self.secret]) + "\n", encoding="utf-8")


def stamp(unit: str | None, at: float) -> str:
    """A time as the sender writes it."""
    if unit == "iso":
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(int(at * 1000)) if unit == "ms" else str(int(at))


def url_of(name: str) -> str:
    return f"{PUBLIC_URL}/webhooks/{name}?{QUERY}"


def hexed(text: str) -> str:
    """A secret of its own for whatever `text` names, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def whsec(text: str) -> str:
    return "whsec_" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def mac(secret: str | bytes, signed: bytes, algorithm: str = "sha256") -> bytes:
    key = secret if isinstance(secret, bytes) else secret.encode()
    return hmac.new(key, signed, algorithm).digest()


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


# --- by the vendors' libraries ------------------------------------------------------------------


def _standard(body: bytes, time: str, secret: str) -> dict[str, str]:
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(int(time), UTC), body.decode())
    return {"webhook-id": "msg_1", "webhook-timestamp": time, "webhook-signature": signature}


def _svix(body: bytes, time: str, secret: str) -> dict[str, str]:
    import svix.webhooks  # hundreds of models, for one test

    signature = svix.webhooks.Webhook(secret).sign("msg_1", datetime.fromtimestamp(int(time), UTC), body.decode())
    return {"svix-id": "msg_1", "svix-timestamp": time, "svix-signature": signature}


def _stripe(body: bytes, time: str, secret: str) -> dict[str, str]:
    signed = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, int(time))
    return {"Stripe-Signature": signed}


def _slack(body: bytes, time: str, secret: str) -> dict[str, str]:
    signature = SignatureVerifier(secret).generate_signature(timestamp=time, body=body)
    assert signature is not None
    return {"X-Slack-Request-Timestamp": time, "X-Slack-Signature": signature}


def _hubspot(version: str, url: str = "") -> Sign:
    def sign(body: bytes, time: str, secret: str) -> dict[str, str]:
        signature = str(Signature.get_signature(secret, body.decode(), version, url, "POST", time))
        if version == "v3":
            return {"X-HubSpot-Signature-v3": signature, "X-HubSpot-Request-Timestamp": time}
        return {"X-HubSpot-Signature": signature}

    return sign


# --- by the vendors' descriptions ---------------------------------------------------------------


def _github(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"X-Hub-Signature-256": "sha256=" + mac(secret, body).hex(), "X-GitHub-Delivery": "72d3162e-cc78"}


def _shopify(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"X-Shopify-Hmac-SHA256": b64(mac(secret, body)), "X-Shopify-Webhook-Id": "b54557e4-bdd9"}


def _zendesk(body: bytes, time: str, secret: str) -> dict[str, str]:
    signature = b64(mac(secret, time.encode() + body))
    return {"X-Zendesk-Webhook-Signature": signature, "X-Zendesk-Webhook-Signature-Timestamp": time}


def _typeform(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"Typeform-Signature": "sha256=" + b64(mac(secret, body))}


def _calendly(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"Calendly-Webhook-Signature": f"t={time},v1={mac(secret, f'{time}.'.encode() + body).hex()}"}


# --- what scheme hmac must be able to say -------------------------------------------------------


def _bare(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"X-Signature": mac(secret, body).hex()}


def _zoho(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"X-Z-Signature": f"t={time},v={mac(secret, f'{time}.'.encode() + body).hex()}"}


def _persona(body: bytes, time: str, secret: str) -> dict[str, str]:
    signatures = [mac(key, f"{time}.".encode() + body).hex() for key in ("one that is being retired", secret)]
    return {"Persona-Signature": " ".join(f"t={time},v1={one}" for one in signatures)}


def _everything(body: bytes, time: str, secret: str) -> dict[str, str]:
    signed = f"POST|{url_of('hmac-everything')}|d-1|{time}|".encode() + body
    return {"X-Sig": "s0=" + b64(mac(bytes.fromhex(secret), signed, "sha512")), "X-Time": time, "X-Id": "d-1"}


def _based(body: bytes, time: str, secret: str) -> dict[str, str]:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return {"X-Sig": mac(key, body, "sha384").hex().upper(), "X-Delivery": "d-1"}


def _sha1(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"X-Hub-Signature": "sha1=" + mac(secret, body, "sha1").hex()}


def _iso(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"X-Sig": mac(secret, f"{time}.".encode() + body).hex(), "X-Time": time}


# --- tokens -------------------------------------------------------------------------------------


def _token(header: str, prefix: str) -> Sign:
    return lambda body, time, secret: {header: prefix + secret}


def _basic(body: bytes, time: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64(secret.encode())}


HUBSPOT_URL = url_of("hubspot-v3").replace("%2C", ",")  # HubSpot decodes a comma, and leaves a space encoded

SENDERS = (
    Sender("standard-webhooks", "scheme: standard-webhooks", whsec("standard"), _standard, "s"),
    Sender("svix", "scheme: standard-webhooks", whsec("svix"), _svix, "s"),
    Sender("stripe", "scheme: stripe", "whsec_" + hexed("stripe")[:32], _stripe, "s", lists=True),
    Sender("slack", "scheme: slack", hexed("slack")[:32], _slack, "s"),
    Sender("hubspot-v1", "scheme: hubspot-v1", hexed("hubspot-v1")[:36], _hubspot("v1")),
    Sender("hubspot-v2", "scheme: hubspot-v2", hexed("hubspot-v2")[:36], _hubspot("v2", url_of("hubspot-v2"))),
    Sender("hubspot-v3", "scheme: hubspot-v3", hexed("hubspot-v3")[:36], _hubspot("v3", HUBSPOT_URL), "ms"),
    Sender("github", "scheme: github", hexed("github"), _github, unsigned=frozenset({"X-GitHub-Delivery"})),
    Sender("shopify", "scheme: shopify", hexed("shopify"), _shopify, unsigned=frozenset({"X-Shopify-Webhook-Id"})),
    Sender("zendesk", "scheme: zendesk", hexed("zendesk"), _zendesk, "iso"),
    Sender("typeform", "scheme: typeform", hexed("typeform"), _typeform),
    Sender("calendly", "scheme: calendly", hexed("calendly"), _calendly, "s", lists=True),
    Sender("hmac-bare", "scheme: hmac, header: X-Signature", hexed("bare"), _bare),
    Sender(
        "hmac-zoho",
        'scheme: hmac, header: X-Z-Signature, prefix: "v=", timestamp: {header: X-Z-Signature, unit: ms}',
        hexed("zoho"),
        _zoho,
        "ms",
        lists=True,
    ),
    Sender(
        "hmac-everything",
        'scheme: hmac, header: X-Sig, algorithm: sha512, encoding: base64, prefix: "s0=", key: hex, '
        'signed: "{method}|{url}|{id}|{timestamp}|{body}", timestamp: {header: X-Time, unit: ms}, id: {header: X-Id}',
        hexed("everything"),
        _everything,
        "ms",
        lists=True,
    ),
    Sender(
        "hmac-based",
        "scheme: hmac, header: X-Sig, algorithm: sha384, key: base64, id: {header: X-Delivery}",
        whsec("based"),
        _based,
        unsigned=frozenset({"X-Delivery"}),
    ),
    Sender(
        "hmac-sha1",
        'scheme: hmac, header: X-Hub-Signature, prefix: "sha1=", algorithm: sha1',
        hexed("1"),
        _sha1,
        lists=True,
    ),
    Sender(
        "hmac-iso", "scheme: hmac, header: X-Sig, timestamp: {header: X-Time, unit: iso}", hexed("iso"), _iso, "iso"
    ),
    Sender("bearer", "scheme: bearer", hexed("bearer"), _token("Authorization", "Bearer "), signs_body=False),
    Sender(
        "bearer-token",
        "scheme: bearer, header: X-Gitlab-Token",
        hexed("gitlab"),
        _token("X-Gitlab-Token", ""),
        signs_body=False,
    ),
    Sender(
        "bearer-prefix",
        'scheme: bearer, header: X-Auth, prefix: "Token "',
        hexed("token"),
        _token("X-Auth", "Token "),
        signs_body=False,
    ),
    Sender("basic", "scheme: basic", "partner:" + hexed("basic")[:20], _basic, signs_body=False),
)

#: Signs by two secrets while it changes them, each signature with its time.
ROTATING = Sender(
    "rotating",
    'scheme: hmac, header: Persona-Signature, prefix: "v1=", timestamp: {header: Persona-Signature}',
    hexed("persona"),
    _persona,
    "s",
    lists=True,
)

BY_NAME: Mapping[str, Sender] = {sender.name: sender for sender in SENDERS}
