"""Signatures: an independent signer is believed, everything else is refused and never raises."""

from __future__ import annotations

import base64
import functools
import hmac
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from bridge.config.service_schemas import rule_for, text_fault
from bridge.intake.schemes import gives_identity, key_of, verify_problems
from bridge.intake.signatures import SignedRequest, Unverified, Verification, Verified, Verifier, sign
from bridge.settings import LOOK_AGAIN_S, Hmac, Secret, SecretUnavailableError, Verify

NOW = 1_800_000_000.0
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
OTHER = "whsec_" + base64.b64encode(b"another-secret-of-32-bytes-here!").decode()
BODY = json.dumps({"id": "e1", "name": "Zoë"}).encode()


def secret(text: str) -> Secret:
    return Secret(env="UNSET_IN_TESTS", default=text)


def standard(*secrets: str) -> Verify:
    return Verify("standard-webhooks", tuple(secret(text) for text in secrets or (SECRET,)))


def judge(
    verify: Verify, headers: dict[str, str] | list[tuple[str, str]], body: bytes = BODY, at: float = NOW
) -> Verification:
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    return Verifier(verify, "https://hooks.example.com").verify(
        SignedRequest("POST", "/webhooks/a?x=1", pairs, body), at
    )


def partner_headers(
    prefix: str = "webhook", *, at: float = NOW, key: str = SECRET, body: bytes = BODY
) -> dict[str, str]:
    """Headers made by the Standard Webhooks library, which shares no code with ours."""
    signature = Webhook(key).sign("msg_1", datetime.fromtimestamp(at, UTC), body.decode())
    return {f"{prefix}-id": "msg_1", f"{prefix}-timestamp": str(int(at)), f"{prefix}-signature": signature}


def reason(verdict: Verification) -> str:
    assert isinstance(verdict, Unverified)
    assert verdict.detail
    return verdict.reason


@pytest.mark.parametrize("prefix", ["webhook", "svix", "Webhook"])
def test_an_independent_signer_is_believed(prefix: str) -> None:
    """Both header families, in any case."""
    assert judge(standard(), partner_headers(prefix)) == Verified(0, "msg_1", signed_time=True)


def test_an_independent_verifier_believes_us() -> None:
    """The other way round; its own clock is the real one."""
    now = datetime.now(UTC).timestamp()
    headers = sign(standard(), body=BODY, now=now, delivery_id="msg_2")
    Webhook(SECRET).verify(BODY, headers)


def test_any_of_several_secrets_may_match(tmp_path: Path) -> None:
    """Positions run over all secrets, a file's lines too; a rotation loses nothing."""
    file = tmp_path / "secrets"
    file.write_text(f"{OTHER}\n{SECRET}\n")
    verify = Verify("standard-webhooks", (secret(OTHER), Secret(file=file)))
    assert judge(verify, partner_headers()) == Verified(2, "msg_1", signed_time=True)
    file.write_text(f"{OTHER}\n")
    time.sleep(LOOK_AGAIN_S)
    assert reason(judge(verify, partner_headers())) == "mismatch"
    file.unlink()
    time.sleep(LOOK_AGAIN_S)
    assert reason(judge(verify, partner_headers())) == "no_secret"
    assert isinstance(judge(verify, partner_headers(key=OTHER)), Verified)


def test_several_signatures_are_tried_up_to_ten() -> None:
    """Unknown versions and malformed entries are passed over; a thousand are not tried."""
    headers = partner_headers()
    good = headers["webhook-signature"]
    for entries, believed in (
        (["v1a,xyz", "v2", "v1,wrong", good], True),
        ([good, "nonsense"], True),
        (["v1,wrong"] * 9 + [good], True),
        (["v1,wrong"] * 10 + [good], False),
        (["v1,wrong"] * 1000, False),
    ):
        headers["webhook-signature"] = " ".join(entries)
        assert isinstance(judge(standard(), headers), Verified) is believed


@pytest.mark.parametrize("joint", [",", ", "])
def test_a_header_that_came_twice_is_refused_also_where_it_lists_several(joint: str) -> None:
    """gunicorn joins the two by a bare comma."""
    headers = partner_headers()
    listed = " ".join([headers["webhook-signature"]] * 2)
    headers["webhook-signature"] = joint.join([listed, listed])
    assert reason(judge(standard(), headers)) == "malformed"


@pytest.mark.parametrize(
    "age, expected", [(300, None), (-300, None), (301, "stale"), (-301, "future"), (-86_400, "future")]
)
def test_the_tolerance_holds_both_ways(age: int, expected: str | None) -> None:
    """A signature from the future would be good for replays as long."""
    verdict = judge(standard(), partner_headers(at=NOW - age))
    assert isinstance(verdict, Verified) if expected is None else reason(verdict) == expected


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"webhook-id": ""}, "missing_header"),
        ({"webhook-timestamp": ""}, "missing_header"),
        ({"webhook-signature": ""}, "missing_header"),
        ({"webhook-timestamp": "soon"}, "malformed"),
        ({"webhook-timestamp": "1e9"}, "malformed"),
        ({"webhook-timestamp": "nan"}, "malformed"),
        ({"webhook-timestamp": "９" * 10}, "malformed"),
        ({"webhook-timestamp": "9" * 5000}, "malformed"),
        ({"webhook-signature": "v2,abc"}, "malformed"),
        ({"webhook-signature": "v1,"}, "mismatch"),
        ({"webhook-signature": "v1,%%%"}, "mismatch"),
        ({"webhook-signature": "v1,ünïcödé"}, "mismatch"),
        ({"webhook-id": "msg.1"}, "malformed"),
        ({"webhook-id": "msg_2"}, "mismatch"),
    ],
)
def test_a_broken_header_is_refused(change: dict[str, str], expected: str) -> None:
    """Each way of breaking a good request has its word for metrics."""
    assert reason(judge(standard(), {**partner_headers(), **change})) == expected


def test_other_keys_and_other_bodies_are_refused() -> None:
    """Another secret, another body, the same JSON written anew."""
    assert reason(judge(standard(), partner_headers(key=OTHER))) == "mismatch"
    assert reason(judge(standard(), partner_headers(), body=BODY + b" ")) == "mismatch"
    assert reason(judge(standard(), {})) == "missing_header"
    rewritten = json.dumps(json.loads(BODY), ensure_ascii=False).encode()
    assert reason(judge(standard(), partner_headers(), body=rewritten)) == "mismatch"


def test_a_header_that_is_there_twice_is_refused() -> None:
    """Nobody can tell which one counts."""
    headers = [*partner_headers().items(), ("Webhook-Id", "msg_1")]
    assert reason(judge(standard(), headers)) == "malformed"


STRIPE_LIKE = Hmac(
    header="Billing-Signature",
    prefix="v1=",
    signed="{timestamp}.{body}",
    timestamp_header="Billing-Signature",
    timestamp_entry="t=",
)
LAYOUTS = {
    "bare": Hmac(header="X-Sig"),
    "github": Hmac(header="X-Hub-Signature-256", prefix="sha256=", id_header="X-GitHub-Delivery"),
    "shopify": Hmac(header="X-Shopify-Hmac-SHA256", encoding="base64", id_header="X-Shopify-Webhook-Id"),
    "stripe": STRIPE_LIKE,
    "slack": Hmac(header="X-Slack-Signature", prefix="v0=", signed="v0:{timestamp}:{body}", timestamp_header="X-Time"),
    "zendesk": Hmac(
        header="X-Z", encoding="base64", signed="{timestamp}{body}", timestamp_header="X-Z-Time", timestamp_unit="iso"
    ),
    "url": Hmac(
        header="X-U",
        encoding="base64",
        signed="{method}{url}{body}{timestamp}",
        timestamp_header="X-T",
        timestamp_unit="ms",
    ),
    "sha512": Hmac(header="X-S", algorithm="sha512", key="hex", signed="{id}:{body}", id_header="X-Id"),
}


@pytest.mark.parametrize("name", LAYOUTS)
@given(body=st.binary(max_size=100), position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_what_is_signed_is_believed_and_any_changed_byte_is_not(
    name: str, body: bytes, position: int, flip: int
) -> None:
    """verify(sign(x)) accepts; one byte changed in body or signature refuses."""
    layout = LAYOUTS[name]
    verify = Verify("hmac", (secret("ab" * 16),), hmac=layout)
    url = "https://hooks.example.com/webhooks/a?x=1"
    headers = sign(verify, body=body, url=url, now=NOW, delivery_id="d1")
    verdict = judge(verify, headers, body)
    assert isinstance(verdict, Verified)
    assert verdict.delivery_id == ("d1" if layout.id_header else None)
    assert (verdict.signed_hash is not None) is (verdict.signed_time and not layout.id_header)
    if body:
        changed = bytearray(body)
        changed[position % len(body)] ^= flip
        assert isinstance(judge(verify, headers, bytes(changed)), Unverified)
    signature = headers[layout.header]
    at = len(signature) - 1 - position % 40  # within the signature's last characters
    letter = "0" if signature[at].lower() != "0" else "1"
    tampered = {**headers, layout.header: signature[:at] + letter + signature[at + 1 :]}
    assert isinstance(judge(verify, tampered, body), Unverified)


@given(
    st.dictionaries(st.sampled_from([*partner_headers(), "authorization"]), st.text(max_size=60)),
    st.binary(max_size=20),
)
def test_no_headers_whatever_make_it_raise(headers: dict[str, str], body: bytes) -> None:
    """Garbage is refused, by every scheme."""
    for verify in (
        standard(),
        Verify("bearer", (secret("token"),)),
        Verify("basic", (secret("user:pass"),)),
        Verify("hmac", (secret("k"),), hmac=STRIPE_LIKE),
    ):
        assert isinstance(judge(verify, headers, body), Unverified)


def test_the_stripe_way_takes_the_time_from_the_signature_header() -> None:
    """Where it is an entry of that header; several v1 are fine."""
    verify = Verify("hmac", (secret("k"),), hmac=STRIPE_LIKE)
    header = sign(verify, body=BODY, now=NOW, delivery_id="")["Billing-Signature"]
    assert header.startswith(f"t={int(NOW)},v1=")
    stamp, good = header.split(",")
    assert isinstance(judge(verify, {"Billing-Signature": f"{stamp},v0=x,v1=old,{good}"}), Verified)
    assert reason(judge(verify, {"Billing-Signature": good})) == "missing_header"
    assert reason(judge(verify, {"Billing-Signature": header}, at=NOW + 301)) == "stale"


def test_tokens_and_passwords() -> None:
    """bearer and basic, several at once; the scheme's word in any case."""
    bearer = Verify("bearer", (secret("old"), secret("new-tökén")))
    assert judge(bearer, {"Authorization": "Bearer old"}) == Verified(0)
    wire = "new-tökén".encode().decode("latin-1")  # as WSGI hands it over
    assert judge(bearer, {"authorization": f"bearer {wire}"}) == Verified(1)
    assert reason(judge(bearer, {"Authorization": "Bearer x"})) == "mismatch"
    assert reason(judge(bearer, {"Authorization": "old"})) == "malformed"
    assert reason(judge(bearer, {})) == "missing_header"
    static = Verify("bearer", (secret("t"),), header="X-Token", prefix="")
    assert isinstance(judge(static, sign(static, body=b"", now=NOW, delivery_id="")), Verified)
    basic = Verify("basic", (secret("user:päss"),))
    assert isinstance(judge(basic, sign(basic, body=b"", now=NOW, delivery_id="")), Verified)
    good = base64.b64encode("user:päss".encode()).decode()
    assert isinstance(judge(basic, {"Authorization": f"bAsIc  {good}"}), Verified)
    for value, expected in (
        ("Basic !!", "malformed"),
        ("Basic", "malformed"),
        (f"Bearer {good}", "malformed"),
        (good, "malformed"),
        ("Basic dTpw", "mismatch"),
    ):
        assert reason(judge(basic, {"Authorization": value})) == expected


def test_none_lets_everybody_in() -> None:
    """Only spelled out."""
    assert judge(Verify("none"), {}) == Verified(None)
    assert sign(Verify("none"), body=b"", now=NOW, delivery_id="") == {}


def test_everything_wrong_with_a_scheme_is_found_at_once() -> None:
    """With its path, before the first request."""
    wrong = Hmac(header="X", algorithm="md5", signed="{id}{timestamp}{url}{secret}")  # type: ignore[arg-type]  # on purpose
    found = {error.path for error in verify_problems(Verify("hmac", (), hmac=wrong))}
    assert found == {("verify", key) for key in ("secrets", "scheme", "algorithm", "signed", "timestamp", "id")}
    assert [e.path for e in verify_problems(standard("not base64!"))] == [("verify", "secrets", 0)]
    assert [e.path for e in verify_problems(Verify("hubspot-v2", (secret("k"),)))] == [("verify", "scheme")]
    assert not verify_problems(standard())
    assert gives_identity(standard())
    assert not gives_identity(Verify("hmac", (secret("k"),), hmac=LAYOUTS["bare"]))


def test_only_the_schemes_own_headers_are_looked_at() -> None:
    """What others say twice or at length, a proxy's token for one, refuses nobody."""
    noise = [("Authorization", "Bearer " + "x" * 9000), ("Authorization", "y"), ("X-Other", "z" * 9000)]
    assert isinstance(judge(standard(), [*partner_headers().items(), *noise]), Verified)
    assert isinstance(judge(Verify("none"), noise), Verified)


def test_a_time_with_a_dot_is_no_time_where_a_dot_ends_it() -> None:
    """Else `1.` and `5.{...}` could be read as `1.5.` and `{...}`."""
    verify = Verify("hmac", (secret("k" * 24),), hmac=STRIPE_LIKE)
    for stamp in (f"{int(NOW)}.0", f"{int(NOW)}.5"):
        signed = hmac.new(b"k" * 24, f"{stamp}.".encode() + BODY, "sha256").hexdigest()
        assert reason(judge(verify, {"Billing-Signature": f"t={stamp},v1={signed}"})) == "malformed"


def test_two_times_in_one_header_are_no_time() -> None:
    """Whichever of them was signed."""
    verify = Verify("hmac", (secret("k"),), hmac=STRIPE_LIKE)
    header = sign(verify, body=BODY, now=NOW, delivery_id="")["Billing-Signature"]
    for other in (f"t=1,{header}", f"{header},t={int(NOW) + 1}"):
        assert reason(judge(verify, {"Billing-Signature": other})) == "malformed"


def test_one_unreadable_secret_does_not_hide_another() -> None:
    """And the log tells which one it is, if none matches."""
    verify = standard("whsec_%%%", SECRET)
    assert judge(verify, partner_headers()) == Verified(1, "msg_1", signed_time=True)
    verdict = judge(verify, partner_headers(key=OTHER))
    assert verdict == Unverified("no_secret", "secret 0 is not base64")


def test_a_secret_that_came_a_moment_ago_counts_at_once(tmp_path: Path) -> None:
    """A partner may sign by it as soon as it stands in the file, not half a second later."""
    file = tmp_path / "secrets"
    request = SignedRequest("POST", "/", list(partner_headers().items()), BODY)
    for _ in range(20):
        file.write_text(f"{OTHER}\n")
        verifier = Verifier(Verify("standard-webhooks", (Secret(file=file),)))
        assert isinstance(verifier.verify(request, NOW), Unverified)
        file.write_text(f"{OTHER}\n{SECRET}\n")
        assert verifier.verify(request, NOW) == Verified(1, "msg_1", signed_time=True)


def test_a_file_that_is_being_written_keeps_its_secrets(tmp_path: Path) -> None:
    """Written in place it is empty for a moment; one that stays empty holds no secret."""
    file = tmp_path / "secrets"
    file.write_text(f"\ufeff{SECRET}\r\n")
    given = Secret(file=file)
    assert given.texts() == (SECRET,)
    file.write_text("")
    assert given.texts(look=True) == (SECRET,)
    time.sleep(LOOK_AGAIN_S)
    with pytest.raises(SecretUnavailableError, match="is empty"):
        given.texts()
    file.write_text(OTHER)
    assert given.texts() == (OTHER,)


def test_a_line_that_would_be_refused_at_start_does_not_count_later(tmp_path: Path) -> None:
    """A rotation that leaves a placeholder behind opens no door, and is told without showing it."""
    file = tmp_path / "secrets"
    file.write_text(SECRET)
    rule = functools.partial(text_fault, rule=rule_for("standard-webhooks"))
    checked = Secret(file=file).checked(rule)
    verify = Verify("standard-webhooks", (checked,))
    assert isinstance(judge(verify, partner_headers()), Verified)
    file.write_text(f"changeme\n{SECRET}\nwhsec_c2hvcnQ=\n")
    assert checked.texts(look=True) == (SECRET,)
    assert judge(verify, partner_headers()) == Verified(0, "msg_1", signed_time=True)
    verdict = judge(verify, partner_headers(key=OTHER))
    assert reason(verdict) == "no_secret"
    assert "secret 1, holds a placeholder" in str(verdict)
    assert "secret 3, holds 5 bytes" in str(verdict)
    assert "changeme" not in str(verdict)
    assert "c2hvcnQ" not in str(verdict)
    file.write_text("changeme")
    with pytest.raises(SecretUnavailableError, match="holds a placeholder"):
        checked.texts(look=True)


def test_no_secret_is_shown_by_anything(tmp_path: Path) -> None:
    """Neither by `repr` of what holds it, nor by what is said of one that cannot be read."""
    file = tmp_path / "secrets"
    file.write_bytes(b"hunter2hunter2\xff")
    with pytest.raises(SecretUnavailableError, match="it is not UTF-8") as caught:
        Secret(file=file).texts()
    verify = standard()
    shown = [repr(verify), repr(Verifier(verify)), str(caught.value), repr(caught.value), str(caught.value.__cause__)]
    assert all(text not in "".join(shown) for text in (SECRET, "hunter2", "0xff"))
    layout = Hmac(header="X", key="hex")
    with pytest.raises(ValueError) as wrong:
        key_of(layout, "hunter2")
    assert "hunter2" not in str(wrong.value)


def test_a_variable_that_is_not_utf8_stands_for_its_bytes() -> None:
    """As the environment held them."""
    given = Secret(env="ODD", environ={"ODD": os.fsdecode(b"\xff" * 24)})
    layout = Hmac(header="X-Sig")
    signature = hmac.new(b"\xff" * 24, BODY, "sha256").hexdigest()
    assert isinstance(judge(Verify("hmac", (given,), hmac=layout), {"X-Sig": signature}), Verified)
    assert isinstance(judge(Verify("bearer", (given,)), {"Authorization": "Bearer " + "\xff" * 24}), Verified)
