"""F54: who is let in on the admin port, by bind, token and the host that a request names."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import Client

from bridge.http.problems import register_problem_handlers
from bridge.operations.access import OPEN, guard
from bridge.settings import Secret, is_loopback

TOKEN = "a-token-of-more-than-sixteen-characters"
LOOPBACK, ANYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 (the case that is tested)


def client(host: str, token: Secret | None = None) -> Client:
    app = Flask("test", static_folder=None)
    for path in (*OPEN, "/api/pause"):
        app.add_url_rule(path, path, lambda: "in", methods=["GET", "POST"], provide_automatic_options=False)
    guard(app, host=host, token=token)
    register_problem_handlers(app)
    return Client(app)


@pytest.mark.parametrize(
    "host, loopback",
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LocalHost", True),
        ("", False),
        ("0.0.0.0", False),  # noqa: S104 (the case that is tested)
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.test", False),
        ("127.0.0.1.evil.test", False),
        ("127.1", False),
        ("0x7f.0.0.1", False),
        ("2130706433", False),
        ("bridge", False),
    ],
)
def test_f54_what_counts_as_loopback(host: str, loopback: bool) -> None:
    """A name that anybody could give an address to does not."""
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9090", "127.0.0.1", "127.0.0.1:9090", "[::1]", "[::1]:9090"])
def test_f54_this_machine_is_let_in_on_loopback(host: str) -> None:
    """Without a token."""
    assert client(LOOPBACK).get("/api/pause", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:9090",
        "127.0.0.1.evil.test",
        "localhost.evil.test:9090",
        "10.0.0.1",
        "[::2]:9090",
        "[",
        "a b",
    ],
)
def test_f54_a_web_page_with_a_name_of_its_own_is_not(host: str) -> None:
    """Its name may lead to this machine; `Host` still tells it."""
    answer = client(LOOPBACK).get("/api/pause", headers={"Host": host})
    assert answer.status_code in {400, 403}
    assert answer.content_type == "application/problem+json"


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.test"])
@pytest.mark.parametrize("bind", [LOOPBACK, ANYWHERE])
def test_f54_health_metrics_and_status_are_open_everywhere(bind: str, host: str) -> None:
    """And nothing that only looks like them."""
    asked = client(bind, Secret(env="UNSET_IN_TESTS", default=TOKEN))
    for path in OPEN:
        assert asked.get(path, headers={"Host": host}).status_code == 200
        assert asked.get(f"{path}/", headers={"Host": host}).status_code == 401


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN},Bearer {TOKEN}",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 8_000,
    ],
)
@pytest.mark.parametrize("bind", [LOOPBACK, ANYWHERE])
def test_f54_a_configured_token_is_always_asked_for(bind: str, authorization: str | None) -> None:
    """401 that says how, on loopback too."""
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = client(bind, Secret(env="UNSET_IN_TESTS", default=TOKEN)).post("/api/pause", headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert TOKEN.encode() not in answer.data


def test_f54_any_token_of_the_file_is_taken_until_it_is_gone(tmp_path: Path) -> None:
    """Rotation; and a file that cannot be read lets nobody in."""
    file = tmp_path / "admin.token"
    file.write_text(f"{TOKEN}\nanother-token-of-sixteen-or-more\n", encoding="utf-8")
    file.chmod(0o600)
    asked = client(ANYWHERE, Secret(file=file))
    for token in (TOKEN, "another-token-of-sixteen-or-more"):
        assert asked.post("/api/pause", headers={"Authorization": f"bearer {token}"}).status_code == 200
    file.unlink()
    fresh = client(ANYWHERE, Secret(file=file))
    assert fresh.post("/api/pause", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 401
