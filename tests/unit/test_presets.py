"""The presets of signature schemes, each against a signature made by hand from the vendor's description."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from bridge.intake.schemes import PRESETS
from bridge.intake.signatures import Accepted, Refused, SignedRequest, Verifier, sign
from bridge.settings import Scheme, Secret, Verify

NOW = 1_700_000_000
BODY = b'{"id": 1, "name": "\xc3\x81cme"}'
SECRET = "whsec_" + base64.b64encode(b"twenty-four bytes or more").decode()
URL = "https://hooks.example.com/webhooks/acme?x=1"


def mac(signed: bytes, key: bytes = SECRET.encode()) -> bytes:
    return hmac.new(key, signed, hashlib.sha256).digest()


def b64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


#: scheme → headers as the vendor documents them, made without the code under test
BY_HAND: dict[Scheme, dict[str, str]] = {
    "standard-webhooks": {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(NOW),
        "webhook-signature": "v1," + b64(mac(b"msg_1.%d." % NOW + BODY, b"twenty-four bytes or more")),
    },
    "github": {"X-Hub-Signature-256": "sha256=" + mac(BODY).hex(), "X-GitHub-Delivery": "d1"},
    "stripe": {"Stripe-Signature": f"t={NOW},v1={'0' * 64},v1={mac(b'%d.' % NOW + BODY).hex()},v0=abc"},
    "shopify": {"X-Shopify-Hmac-SHA256": b64(mac(BODY)), "X-Shopify-Webhook-Id": "w1"},
    "slack": {
        "X-Slack-Request-Timestamp": str(NOW),
        "X-Slack-Signature": "v0=" + mac(b"v0:%d:" % NOW + BODY).hex(),
    },
    "hubspot-v3": {
        "X-HubSpot-Request-Timestamp": f"{NOW}000",
        "X-HubSpot-Signature-v3": b64(mac(b"POST" + URL.encode() + BODY + b"%d000" % NOW)),
    },
    "zendesk": {
        "X-Zendesk-Webhook-Signature-Timestamp": "2023-11-14T22:13:20Z",
        "X-Zendesk-Webhook-Signature": b64(mac(b"2023-11-14T22:13:20Z" + BODY)),
    },
    "typeform": {"Typeform-Signature": "sha256=" + b64(mac(BODY))},
    "calendly": {"Calendly-Webhook-Signature": f"t={NOW},v1={mac(b'%d.' % NOW + BODY).hex()}"},
}


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    (tmp_path / "secret").write_text(SECRET + "\n", encoding="utf-8")
    return Secret(file=tmp_path / "secret")


def judge(scheme: Scheme, secret: Secret, headers: dict[str, str], body: bytes = BODY) -> Accepted | Refused:
    verifier = Verifier(Verify(scheme, (secret,)), "https://hooks.example.com")
    return verifier.verify(SignedRequest("POST", "/webhooks/acme?x=1", list(headers.items()), body), NOW)


def test_every_preset_is_in_the_table() -> None:
    assert set(BY_HAND) == set(PRESETS)


@pytest.mark.parametrize("scheme", BY_HAND)
def test_a_signature_made_by_hand_is_accepted(scheme: Scheme, secret: Secret) -> None:
    assert isinstance(judge(scheme, secret, BY_HAND[scheme]), Accepted)


@pytest.mark.parametrize("scheme", BY_HAND)
def test_a_changed_body_or_a_missing_header_is_refused(scheme: Scheme, secret: Secret) -> None:
    assert isinstance(judge(scheme, secret, BY_HAND[scheme], BODY + b" "), Refused)
    needed = [name for name in BY_HAND[scheme] if not name.endswith(("Delivery", "Webhook-Id"))]
    for name in needed:
        rest = {other: value for other, value in BY_HAND[scheme].items() if other != name}
        assert isinstance(judge(scheme, secret, rest), Refused), name


@pytest.mark.parametrize("scheme", BY_HAND)
def test_what_send_signs_is_accepted(scheme: Scheme, secret: Secret) -> None:
    headers = sign(Verify(scheme, (secret,)), body=BODY, url=URL, now=NOW, delivery_id="msg_1")
    assert isinstance(judge(scheme, secret, headers), Accepted)


def test_githubs_documented_example_holds(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("It's a Secret to Everybody", encoding="utf-8")
    headers = {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    verdict = judge("github", Secret(file=tmp_path / "secret"), headers, b"Hello, World!")
    assert isinstance(verdict, Accepted)
