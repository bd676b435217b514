"""Backup of a serving service, and its restore: nothing leaves before a person says so."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import requests

from bridge.sandbox import Crm, SandboxServer
from tests.running import Running, eventually, running


def payload(number: int) -> dict[str, object]:
    return {"id": f"e{number}", "at": time.time(), "client": str(number), "name": f"name {number}"}


def test_a_backup_under_load_is_restored_paused_and_resumed(tmp_path: Path) -> None:
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url, drain_timeout="2s") as service:

        def held() -> set[str]:
            return set(crm.state(id_property="acme_client_id").get("partner_clients", {}))

        assert service.run("pause", "--reason", "before the backup").returncode == 0
        assert eventually(lambda: bool(service.status()["pauses"]))
        for number in range(20):
            assert service.post(payload(number)).status_code == 202
        codes: list[int] = []
        done = threading.Event()

        def load() -> None:
            while not done.is_set():
                codes.append(service.post(payload(1_000 + len(codes))).status_code)

        sender = threading.Thread(target=load)
        sender.start()
        try:
            made = service.run("journal", "backup", str(tmp_path / "copy.db"))
        finally:
            done.set()
            sender.join()
        assert made.returncode == 0, made.stderr
        assert set(codes) == {202}
        assert "serving\tprocess" in service.run("journal", "info").stdout
        refused = service.run("journal", "restore", str(tmp_path / "copy.db"))
        assert refused.returncode == 1
        assert "in use by another partner-bridge service: stop that one first" in refused.stderr
        assert service.run("resume").returncode == 0
        assert eventually(lambda: len(held()) == 20 + len(codes))
        assert service.stop() == 0

        restored = service.run("journal", "restore", str(tmp_path / "copy.db"))
        assert restored.returncode == 0, restored.stderr
        assert "`partner-bridge resume` would send:" in restored.stdout
        before = len(updates(crm))
        service.start()
        assert paused_for(service).startswith("restored from the backup copy.db")
        assert service.post(payload(5_000)).status_code == 202  # intake goes on
        assert service.run("status").returncode == 1
        time.sleep(0.5)
        assert len(updates(crm)) == before
        assert service.run("resume").returncode == 0
        assert eventually(lambda: "5000" in held())
        assert eventually(service.idle)
        assert not crm.ledger.violations()


def updates(crm: Crm) -> list[object]:
    return list(crm.ledger.calls("update"))


def paused_for(service: Running) -> str:
    [pause] = requests.get(f"{service.admin_url}/status", timeout=5).json()["pauses"]
    assert pause["reason"] == "operator"
    return str(pause["detail"])
