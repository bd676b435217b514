"""Tokens that run out and calls that run out, with a real service: what stops, what is shown, what goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from bridge.sandbox import Crm, Fault, SandboxServer
from tests.running import Running, eventually, running

OAUTH = (
    "oauth: {client_id: client-1, client_secret: {file: client.secret}, refresh_token: {file: refresh.token},"
    " token_path: /oauth/v3/token}"
)


def post(service: Running, *ids: int) -> None:
    for id_ in ids:
        event = {"id": f"e{id_}", "client": f"c{id_}", "at": 1_700_000_000 + id_, "name": f"Client {id_}"}
        assert service.post(event).status_code == 202


def held(crm: Crm) -> set[str]:
    return set(crm.state(id_property="acme_client_id").get("partner_clients", {}))


def clients(*ids: int) -> set[str]:
    return {f"c{id_}" for id_ in ids}


def is_paused(service: Running, reason: str) -> bool:
    return [pause["reason"] for pause in service.status()["pauses"]] == [reason]


def metric(service: Running, line: str) -> bool:
    return line in requests.get(f"{service.admin_url}/metrics", timeout=5).text


def write_oauth(folder: Path, refresh_token: str) -> dict[str, Any]:
    for name, text in {"client.secret": "the-secret-of-the-client", "refresh.token": refresh_token}.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
        (folder / name).chmod(0o600)
    return {"credential": OAUTH}


def assert_nothing_shown(service: Running, crm: Crm, *secrets: str) -> None:
    shown = service.log.read_text(encoding="utf-8") + str(service.status()) + str(service.entries())
    shown += requests.get(f"{service.admin_url}/metrics", timeout=5).text
    assert not [secret for secret in (*secrets, *crm.access._expires_at) if secret in shown]


def test_f25_a_revoked_token_pauses_delivery_until_the_file_holds_another(tmp_path: Path) -> None:
    """F25: sending stops, it shows, intake goes on; the new token is picked up without a restart and
    nothing was parked.
    """
    crm = Crm(tokens=["a-token-for-the-sandbox"])
    with SandboxServer(crm) as server, running(tmp_path, server.url) as service:
        post(service, 1)
        assert eventually(lambda: held(crm) == clients(1))
        crm.access.revoke("a-token-for-the-sandbox")
        post(service, 2, 3)
        assert eventually(lambda: is_paused(service, "unauthorized"))
        post(service, 4)
        assert service.is_ready()
        assert metric(service, 'bridge_crm_paused{reason="unauthorized",scope="all"} 1.0')
        assert service.run("status").returncode == 1
        assert held(crm) == clients(1)

        crm.access.accept_only("the-next-token")
        (tmp_path / "crm.token").write_text("the-next-token\n", encoding="utf-8")
        assert eventually(lambda: held(crm) == clients(1, 2, 3, 4))
        assert eventually(lambda: service.status()["pauses"] == [])
        assert service.entries() == []
        assert_nothing_shown(service, crm, "a-token-for-the-sandbox", "the-next-token")


def test_f25_a_refresh_token_that_is_not_accepted_pauses_delivery_until_the_file_holds_another(tmp_path: Path) -> None:
    """F25 with OAuth: the pause says what to do."""
    crm = Crm(tokens=[], refresh_tokens=["refresh-good"])
    options = write_oauth(tmp_path, "refresh-bad")
    with SandboxServer(crm) as server, running(tmp_path, server.url, **options) as service:
        post(service, 1, 2)
        assert eventually(lambda: is_paused(service, "unauthorized"))
        assert "re-install the app and put the new one into the file" in service.status()["pauses"][0]["detail"]
        assert crm.ledger.calls("update") == []
        (tmp_path / "refresh.token").write_text("refresh-good\n", encoding="utf-8")
        assert eventually(lambda: held(crm) == clients(1, 2))
        assert eventually(lambda: service.status()["pauses"] == [])
        assert service.entries() == []
        assert_nothing_shown(service, crm, "refresh-bad", "refresh-good", "the-secret-of-the-client")


def test_access_tokens_come_and_go_unnoticed(tmp_path: Path) -> None:
    """They are renewed ahead of their end; one that ends early costs one more call and no pause; a token
    endpoint that is down is an outage like any other.
    """
    crm = Crm(tokens=[], refresh_tokens=["refresh-good"], token_lifetime_s=2)
    options = write_oauth(tmp_path, "refresh-good")
    with SandboxServer(crm) as server, running(tmp_path, server.url, **options) as service:
        for id_ in range(40):
            post(service, id_)
            assert eventually(lambda: held(crm) == clients(*range(id_ + 1)), every_s=0.1)  # noqa: B023 (run at once)
        assert len(crm.ledger.calls("token")) >= 2
        assert {call.status for call in crm.ledger.calls("update")} == {200}

        crm.access.expire_issued()
        post(service, 100)
        assert eventually(lambda: "c100" in held(crm))
        assert sum(call.status == 401 for call in crm.ledger.calls("update")) <= 1

        crm.faults.always(Fault("503", on="token"))
        crm.access.expire_issued()
        post(service, 101)
        assert eventually(lambda: is_paused(service, "outage"))
        crm.faults.clear()
        assert eventually(lambda: "c101" in held(crm))
        assert "unauthorized" not in service.log.read_text(encoding="utf-8")
        assert service.entries() == []


def test_f16_a_spent_daily_quota_pauses_delivery_and_intake_goes_on_to_its_mark(tmp_path: Path) -> None:
    """F16: a long pause that shows; what arrives waits, then is answered 503; all is sent once calls are left."""
    crm = Crm(daily=3)  # one for the portal's definitions
    with SandboxServer(crm) as server, running(tmp_path, server.url, max_pending=20) as service:
        post(service, 1)
        assert eventually(lambda: held(crm) == clients(1))
        assert eventually(lambda: service.status()["daily_calls_left"] == 1)
        post(service, 2)
        assert eventually(lambda: is_paused(service, "daily_limit"))
        assert metric(service, 'bridge_crm_paused{reason="daily_limit",scope="all"} 1.0')
        assert eventually(lambda: metric(service, "bridge_crm_daily_calls_remaining 0.0"))

        statuses: list[int] = []

        def is_full() -> bool:
            event = {"id": f"f{len(statuses)}", "client": f"f{len(statuses)}", "at": 1_700_000_000, "name": "x"}
            statuses.append(service.post(event).status_code)
            return statuses[-1] == 503

        assert eventually(is_full)
        accepted = {f"f{number}" for number, status in enumerate(statuses) if status == 202}
        assert len(accepted) >= 18
        calls = len(crm.ledger.calls("update"))
        assert calls <= 2 + 60  # probes between 100 ms and 1 s apart

        crm.limits.daily = None  # midnight
        assert eventually(lambda: held(crm) == clients(1, 2) | accepted)
        assert eventually(lambda: service.status()["pauses"] == [])
        assert service.entries() == []


def test_our_own_daily_budget_holds_over_a_restart(tmp_path: Path) -> None:
    """`rate_limit.daily`: not one call more, also after a restart; a raised budget counts at once."""
    crm = Crm()
    with SandboxServer(crm) as server:
        with running(tmp_path, server.url, daily=2) as service:
            for id_ in (1, 2):
                post(service, id_)
                assert eventually(lambda: held(crm) == clients(*range(1, id_ + 1)))  # noqa: B023 (run at once)
            post(service, 3)
            assert eventually(lambda: is_paused(service, "daily_limit"))
            assert eventually(lambda: metric(service, "bridge_crm_daily_calls_remaining 0.0"))
            assert service.stop() == 0
            service.start()
            assert eventually(lambda: is_paused(service, "daily_limit"))
            assert held(crm) == clients(1, 2)
            service.stop()
        with running(tmp_path, server.url, daily=10) as service:
            assert eventually(lambda: held(crm) == clients(1, 2, 3))
            assert eventually(lambda: service.status()["daily_calls_left"] == 7)
            assert service.status()["pauses"] == []
        assert len(crm.ledger.calls("update")) == 3
