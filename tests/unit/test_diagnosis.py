"""Why a request is refused: each common mistake is named, and nothing is claimed that does not match."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest

from bridge.intake.signatures import SignedRequest, Verified, Verifier, sign
from bridge.settings import Hmac, Scheme, Secret, Verify
from bridge.tryout.diagnosis import Examiner, Finding, recognised, secret_name

NOW = 1_800_000_000.0
HOST = "hooks.example.com"
URL = f"https://{HOST}"
PATH = "/webhooks/acme"
BODY = b'{"id": "e1", "name": "Globex"}'
RAW = "0123456789abcdef0123456789abcdef"
KEY = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()
OTHER = "whsec_" + base64.b64encode(b"another of twenty-four by").decode()
SCHEMES = [scheme for scheme in get_args(Scheme) if scheme != "none"]


def secret(*texts: str) -> tuple[Secret, ...]:
    return tuple(Secret(env=f"SECRET_{n}", environ={f"SECRET_{n}": text}) for n, text in enumerate(texts, 1))


def verify_of(scheme: str, text: str | None = None) -> Verify:
    given = text or {"standard-webhooks": KEY, "basic": "user:password"}.get(scheme, RAW)
    hmac = (
        Hmac(header="X-Signature", signed="{timestamp}.{body}", timestamp_header="X-Time") if scheme == "hmac" else None
    )
    return Verify(scheme, secret(given), hmac=hmac)  # type: ignore[arg-type]  # a scheme's name


def signed(
    verify: Verify, body: bytes = BODY, *, url: str = URL, now: float = NOW, sent: bytes | None = None
) -> SignedRequest:
    """A request as a partner makes it; `sent` is what is sent in place of what was signed."""
    headers = sign(verify, body=body, url=url + PATH, now=now, delivery_id="msg_1")
    return SignedRequest("POST", PATH, (*headers.items(), ("Host", HOST)), body if sent is None else sent)


def examined(verify: Verify, request: SignedRequest, *, others: Mapping[str, Verify] | None = None) -> Finding:
    verdict = Verifier(verify, URL).verify(request, NOW)
    return Examiner(verify, others or {}, URL).examine(request, verdict, NOW)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_accepted_request_is_told_with_its_secret(scheme: str) -> None:
    verify = verify_of(scheme)
    found = examined(verify, signed(verify))
    assert isinstance(found.verdict, Verified)
    assert found.text == f"signed as {scheme} does, with its secret ($SECRET_1)"
    assert found.hints == ()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_secret_is_told_as_such(scheme: str) -> None:
    theirs = verify_of(scheme, {"standard-webhooks": OTHER, "basic": "user:other"}.get(scheme, RAW[::-1]))
    found = examined(verify_of(scheme), signed(theirs))
    assert found.text in {"no signature matches any secret", "the token is none of the secrets"}
    assert found.hints == (
        "signed with another secret, or the body was changed on its way: compare the secret on both sides",
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_secret_of_another_source_is_recognised(scheme: str) -> None:
    theirs = verify_of(scheme, {"standard-webhooks": OTHER, "basic": "user:other"}.get(scheme, RAW[::-1]))
    found = examined(verify_of(scheme), signed(theirs), others={"globex": theirs})
    assert found.hints == ("signed with the secret of the source globex",)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_missing_header_is_named(scheme: str) -> None:
    request = SignedRequest("POST", PATH, (("Host", HOST),), BODY)
    found = examined(verify_of(scheme), request)
    assert found.text.endswith("is missing")
    assert found.hints == ("no header looks like a signature: has the partner been given the secret?",)


@pytest.mark.parametrize("scheme", [one for one in SCHEMES if one not in {"hmac", "hubspot-v1"}])
def test_the_scheme_that_was_used_instead_is_named(scheme: str) -> None:
    """Version 1 and 2 of HubSpot's share a header: the other header tells which it is."""
    theirs = verify_of(scheme)
    configured = verify_of("hmac")
    request = signed(theirs)
    request = dataclasses.replace(request, headers=(*request.headers, ("X-HubSpot-Signature-Version", "v2")))
    found = examined(configured, request)
    assert found.hints == (f"what is there is how {scheme} authenticates: is `scheme: {scheme}` meant?",)


def test_a_header_of_nobodys_scheme_is_pointed_at() -> None:
    request = SignedRequest("POST", PATH, (("X-Acme-Hmac", "abc"),), BODY)
    assert examined(verify_of("github"), request).hints == ("x-acme-hmac came along: scheme hmac takes any `header`",)


@pytest.mark.parametrize("off, word", [(412, "behind"), (-412, "ahead")])
def test_a_clock_that_is_off_is_measured(off: int, word: str) -> None:
    verify = verify_of("stripe")
    found = examined(verify, signed(verify, now=NOW - off))
    assert found.clock_off_s == off
    assert f"412 s {'old' if off > 0 else 'ahead'}; 300 s are tolerated" in found.text
    assert found.hints == ("all else is right: either the partner's clock is off, or an old request was sent again",)


def test_a_clock_that_is_off_hides_no_wrong_secret() -> None:
    found = examined(verify_of("stripe"), signed(verify_of("stripe", RAW[::-1]), now=NOW - 412))
    assert found.hints[0] == "and the signature does not match either"
    assert len(found.hints) == 2


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda body: body + b"\n", "white space at the end of the body was not signed"),
        (lambda body: json.dumps(json.loads(body), indent=4).encode(), "without blanks, after signing"),
    ],
)
def test_a_body_that_was_written_anew_is_recognised(change: Callable[[bytes], bytes], told: str) -> None:
    verify = verify_of("github")
    assert told in examined(verify, signed(verify, sent=change(BODY))).hints[0]


def test_a_compact_body_that_was_signed_is_recognised() -> None:
    verify = verify_of("github")
    found = examined(verify, signed(verify, body=b'{"id":"e1","name":"Globex"}', sent=BODY))
    assert found.hints == ("the body was written anew after signing: the very bytes that are sent must be signed",)


@pytest.mark.parametrize("scheme", ["hubspot-v3", "hubspot-v2"])
def test_the_address_that_was_signed_is_told(scheme: str) -> None:
    verify = verify_of(scheme)
    request = signed(verify, url=f"http://{HOST}")
    assert examined(verify, request).hints == (
        f"signed for http://{HOST}{PATH}: write `public_url: http://{HOST}` under `server`",
    )


def test_options_of_the_scheme_that_would_fit_are_told() -> None:
    """The secret's text as the key, where the scheme takes what it decodes to."""
    theirs = dataclasses.replace(verify_of("standard-webhooks"), scheme="hmac", hmac=_standard(key="raw"))
    found = examined(verify_of("standard-webhooks"), signed(theirs))
    assert found.hints == ('the secret is right, but it is signed in another way, that of scheme hmac with key: "raw"',)


def _standard(**changes: Any) -> Hmac:
    from bridge.intake.schemes import PRESETS

    return dataclasses.replace(PRESETS["standard-webhooks"][0], **changes)


def test_a_form_that_is_not_the_schemes_is_shown() -> None:
    request = SignedRequest("POST", PATH, (("X-Hub-Signature-256", "md5=00"),), BODY)
    assert examined(verify_of("github"), request).hints == ("expected X-Hub-Signature-256: sha256=<hex>",)


def test_secrets_are_named_by_where_they_come_from(tmp_path: Any) -> None:
    """Never by what they are."""
    file = tmp_path / "acme.secret"
    file.write_text(f"{RAW}\n{RAW[::-1]}\n")
    verify = Verify("github", (*secret(RAW[:20]), Secret(file=file)))
    assert [secret_name(verify, position) for position in range(3)] == [
        "secret 1 of 3 ($SECRET_1)",
        "secret 2 of 3 (acme.secret, line 1)",
        "secret 3 of 3 (acme.secret, line 2)",
    ]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_hubspots_versions_are_told_apart(version: str) -> None:
    headers = {"x-hubspot-signature": "00", "x-hubspot-signature-version": version}
    assert recognised(headers) == [f"hubspot-{version}"]
    assert recognised({**headers, "x-hubspot-signature-v3": "00"}) == ["hubspot-v3"]
