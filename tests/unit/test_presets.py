"""The presets of signature schemes, each against a signature made by hand from the vendor's description."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.config.service_schemas import rule_for
from bridge.intake.schemes import PRESETS, url_octets
from bridge.intake.signatures import SignedRequest, Unverified, Verified, Verifier, sign
from bridge.operations.openapi.answers import signing_of
from bridge.settings import Hmac, MappingBlock, Record, Scheme, Secret, Source, Verify
from bridge.tryout.diagnosis import Examiner, clock_off, recognised

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
    "hubspot-v2": {
        "X-HubSpot-Signature-Version": "v2",
        "X-HubSpot-Signature": hashlib.sha256(SECRET.encode() + b"POST" + URL.encode() + BODY).hexdigest(),
    },
    "hubspot-v1": {
        "X-HubSpot-Signature-Version": "v1",
        "X-HubSpot-Signature": hashlib.sha256(SECRET.encode() + BODY).hexdigest(),
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


def judge(scheme: Scheme, secret: Secret, headers: dict[str, str], body: bytes = BODY) -> Verified | Unverified:
    verifier = Verifier(Verify(scheme, (secret,)), "https://hooks.example.com")
    return verifier.verify(SignedRequest("POST", "/webhooks/acme?x=1", list(headers.items()), body), NOW)


def test_every_preset_is_in_the_table() -> None:
    assert set(BY_HAND) == set(PRESETS)


@pytest.mark.parametrize("scheme", BY_HAND)
def test_a_signature_made_by_hand_is_accepted(scheme: Scheme, secret: Secret) -> None:
    assert isinstance(judge(scheme, secret, BY_HAND[scheme]), Verified)


@pytest.mark.parametrize("scheme", BY_HAND)
def test_a_changed_body_or_a_missing_header_is_refused(scheme: Scheme, secret: Secret) -> None:
    assert isinstance(judge(scheme, secret, BY_HAND[scheme], BODY + b" "), Unverified)
    needed = [name for name in BY_HAND[scheme] if not name.endswith(("Delivery", "Webhook-Id", "Version"))]
    for name in needed:
        rest = {other: value for other, value in BY_HAND[scheme].items() if other != name}
        assert isinstance(judge(scheme, secret, rest), Unverified), name


@pytest.mark.parametrize("scheme", BY_HAND)
def test_what_send_signs_is_accepted(scheme: Scheme, secret: Secret) -> None:
    headers = sign(Verify(scheme, (secret,)), body=BODY, url=URL, now=NOW, delivery_id="msg_1")
    assert isinstance(judge(scheme, secret, headers), Verified)


@dataclass(frozen=True)
class Example:
    """One request of a vendor's documentation, with what it says the signature is."""

    scheme: Scheme
    secret: str
    body: str
    headers: Mapping[str, str]
    at: float = 0.0
    method: str = "POST"


HUBSPOT_SECRET = "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy"
EXAMPLES = {
    "github": Example(
        "github",
        "It's a Secret to Everybody",
        "Hello, World!",
        {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
    ),
    "standard-webhooks": Example(
        "standard-webhooks",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        '{"test": 2432232314}',
        {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        at=1614265330,
    ),
    "slack": Example(
        "slack",
        "8f742231b10e8888abcd99yyyzzz85a5",
        "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
        "&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
        "&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554"
        "%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
        {
            "X-Slack-Request-Timestamp": "1531420618",
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        },
        at=1531420618,
    ),
    "hubspot-v1": Example(
        "hubspot-v1",
        HUBSPOT_SECRET,
        '[{"eventId":1,"subscriptionId":12345,"portalId":62515,"occurredAt":1564113600000,'
        '"subscriptionType":"contact.creation","attemptNumber":0,"objectId":123,"changeSource":"CRM",'
        '"changeFlag":"NEW","appId":54321}]',
        {"X-HubSpot-Signature": "232db2615f3d666fe21a8ec971ac7b5402d33b9a925784df3ca654d05f4817de"},
    ),
    "hubspot-v2, with a body": Example(
        "hubspot-v2",
        HUBSPOT_SECRET,
        '{"example_field":"example_value"}',
        {"X-HubSpot-Signature": "9569219f8ba981ffa6f6f16aa0f48637d35d728c7e4d93d0d52efaa512af7900"},
    ),
    "hubspot-v2, without": Example(
        "hubspot-v2",
        HUBSPOT_SECRET,
        "",
        {"X-HubSpot-Signature": "eee2dddcc73c94d699f5e395f4b9d454a069a6855fbfa152e91e88823087200e"},
        method="GET",
    ),
    "hubspot-v3": Example(
        "hubspot-v3",
        HUBSPOT_SECRET,
        "{'example_field':'example_value'}",
        {
            "X-HubSpot-Request-Timestamp": "1693657560000",
            "X-HubSpot-Signature-v3": "K36dawei4A+QBNolUOqo7s91KQDWQ5MXZ/QufNYuk/Y=",
        },
        at=1693657560,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_documented_examples_hold(name: str) -> None:
    """What vendors print in their descriptions or keep as test data of their libraries."""
    example = EXAMPLES[name]
    verify = Verify(example.scheme, (Secret(env="UNSET_IN_TESTS", default=example.secret),))
    verifier = Verifier(verify, "https://www.example.com/")
    headers = list(example.headers.items())
    request = SignedRequest(example.method, "/webhook_uri", headers, example.body.encode())

    assert isinstance(verifier.verify(request, example.at), Verified)
    assert isinstance(verifier.verify(replace(request, body=request.body + b" "), example.at), Unverified)


def test_hubspot_v3_decodes_twelve_escapes_once() -> None:
    """In either case; no other, and nothing that decoding brings about."""
    layout = PRESETS["hubspot-v3"][0]

    assert url_octets(layout, "/a%3a%2F%3F%40%21%24%27%28%29%2A%2C%3b") == b"/a:/?@!$'()*,;"
    assert url_octets(layout, "/a%20%26%3D%25%C3%A9%253A%2") == b"/a%20%26%3D%25%C3%A9%253A%2"
    assert url_octets(PRESETS["hubspot-v2"][0], "/a%2C") == b"/a%2C"


@dataclass(frozen=True)
class Foreign:
    """A preset that nobody has written yet: its row, and a request signed by hand."""

    row: Hmac
    headers: Mapping[str, str]
    looks: str  # the signature's header, as people are told of it


HTTP_DATE = datetime.fromtimestamp(NOW, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
FOREIGN = {
    "other names and another separator": Foreign(
        Hmac("X-Sig", prefix="h1=", signed="{timestamp}:{body}", timestamp_header="X-Sig",
             timestamp_entry="ts=", split=";"),
        {"X-Sig": f"ts={NOW};h1={'0' * 64};h1={mac(b'%d:' % NOW + BODY).hex()}"},
        "ts={};h1={}",
    ),
    "no names, the first is the time": Foreign(
        Hmac("X-Sig", signed="{timestamp}.{body}", timestamp_header="X-Sig", timestamp_unit="ms", timestamp_entry=""),
        {"X-Sig": f"{NOW}000,{'0' * 64},{mac(b'%d000.' % NOW + BODY).hex()}"},
        "{},{}",
    ),
    "a blank within the prefix": Foreign(
        Hmac("X-Sig", prefix="HMAC ", encoding="base64", split=""),
        {"X-Sig": "HMAC " + b64(mac(BODY))},
        "HMAC {1}",
    ),
    "a date as HTTP writes it, and URL-safe characters": Foreign(
        Hmac("X-Sig", encoding="base64url", signed="{body}{timestamp}", timestamp_header="X-Date",
             timestamp_unit="http", split=""),
        {"X-Sig": base64.urlsafe_b64encode(mac(BODY + HTTP_DATE.encode())).decode().rstrip("="), "X-Date": HTTP_DATE},
        "{1}",
    ),
}  # fmt: skip


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Foreign:
    """It stands in the table, and nowhere else."""
    found = FOREIGN[request.param]
    monkeypatch.setitem(PRESETS, FOREIGN_SCHEME, (found.row,))
    return found


FOREIGN_SCHEME: Scheme = "foreign"  # type: ignore[assignment]  # the name is in no settings yet


def test_a_row_with_a_foreign_grammar_verifies_and_signs(foreign: Foreign, secret: Secret) -> None:
    """A signature by hand, what `send` makes, and neither with another body, time or secret."""
    headers = dict(foreign.headers)
    assert isinstance(judge(FOREIGN_SCHEME, secret, headers), Verified)
    assert isinstance(judge(FOREIGN_SCHEME, secret, headers, BODY + b" "), Unverified)
    verify = Verify(FOREIGN_SCHEME, (secret,))
    made = sign(verify, body=BODY, url=URL, now=NOW, delivery_id="d1")
    assert made.keys() == headers.keys()
    assert isinstance(judge(FOREIGN_SCHEME, secret, made), Verified)
    if foreign.row.timestamp_header is not None:
        old = judge(FOREIGN_SCHEME, secret, sign(verify, body=BODY, url=URL, now=NOW - 301, delivery_id="d1"))
        assert isinstance(old, Unverified)
        assert old.reason == "stale"
        without = {name: value.replace(str(NOW), "").replace(HTTP_DATE, "") for name, value in headers.items()}
        assert isinstance(judge(FOREIGN_SCHEME, secret, without), Unverified)


def test_a_row_with_a_foreign_grammar_is_diagnosed(foreign: Foreign, secret: Secret) -> None:
    """`listen` knows it, measures its clock, finds what was signed in its place and shows how its header looks."""
    verify = Verify(FOREIGN_SCHEME, (secret,))
    lower = {name.lower(): value for name, value in foreign.headers.items()}
    assert FOREIGN_SCHEME in recognised(lower)
    assert clock_off(verify, lower, NOW + 7) == (None if foreign.row.timestamp_header is None else 7)

    def hints(headers: Mapping[str, str], body: bytes = BODY) -> tuple[str, ...]:
        request = SignedRequest("POST", "/webhooks/acme", list(headers.items()), body)
        verdict = Verifier(verify).verify(request, NOW)
        return Examiner(verify, {}).examine(request, verdict, NOW).hints

    assert hints(foreign.headers) == ()
    assert "white space at the end" in hints(foreign.headers, BODY + b"\n")[0]
    looks = foreign.looks.format("<time>", f"<{foreign.row.encoding}>")
    if foreign.row.prefix:
        assert hints({**foreign.headers, "X-Sig": "nonsense"}) == (f"expected X-Sig: {looks}",)


def test_a_row_with_a_foreign_grammar_is_documented(foreign: Foreign, secret: Secret) -> None:
    verify = Verify(FOREIGN_SCHEME, (secret,))
    signing = signing_of(Source("acme", verify, (MappingBlock(Record("id")),)), None)
    assert signing.requirements == [{f"acme.{name.lower()}": [] for name in foreign.headers}]
    about = signing.schemes["acme.x-sig"]["description"]
    assert foreign.row.encoding in about
    assert f"`{foreign.row.signed}`" in about
    if foreign.row.timestamp_entry is not None:
        assert f"The header is `{foreign.looks.format('{timestamp}', '…')}`." in about


def test_the_secret_of_a_row_with_a_foreign_grammar_is_held_to_the_rule_of_hmac(foreign: Foreign) -> None:
    del foreign
    assert rule_for(FOREIGN_SCHEME)("short") == rule_for("hmac")("short")
