"""Ids that turn out to be one record: joined when the service starts, or is told so while it runs."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from bridge.journal.retry_log import Filter
from bridge.sandbox import Crm, SandboxServer
from tests.running import eventually, running

EXACT = """\
  acme:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    occurred_at: at
    record: {id: client, id_property: email, match: exact}
    properties: {company_name: name}
"""
CASELESS = EXACT.replace(", match: exact", "")


def change(name: str, record: str, at: float, value: str) -> dict[str, object]:
    return {"id": name, "client": record, "at": at, "name": value}


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_records_that_become_one_end_with_the_newest_change(tmp_path: Path, how: str) -> None:
    """Two spellings that wait, and two of which the older came last to the CRM; with two workers."""
    crm, now = Crm(open_properties=True, fold_case=True), time.time() - 60
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url, sources=EXACT, workers=2) as service:

        def held() -> dict[str, str]:
            found = crm.state(id_property="email").get("partner_clients", {})
            return {told.lower(): values["company_name"] for told, values in found.items()}

        assert service.post(change("d1", "done@x.example", now + 5, "newer")).status_code == 202
        assert eventually(service.idle)
        assert service.post(change("d2", "Done@x.example", now, "older")).status_code == 202
        assert eventually(lambda: held() == {"done@x.example": "older"})
        assert service.run("pause").returncode == 0
        time.sleep(1.5)
        assert service.post(change("w1", "Wait@x.example", now + 5, "newer")).status_code == 202
        assert service.post(change("w2", "WAIT@x.example", now, "older")).status_code == 202
        service.sources = CASELESS
        service.configure()
        if how == "restart":
            assert service.stop() == 0
            service.start()
            assert service.log_has("records that differ in spelling alone are one now")
        else:
            assert service.process is not None
            service.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: service.log_has("the configuration was reloaded", times=2))
        assert service.run("resume").returncode == 0
        assert eventually(lambda: held() == {"done@x.example": "newer", "wait@x.example": "newer"}), held()
        assert eventually(service.idle)
        assert "Wait@x.example" in service.run("trace", "wait@X.example").stdout
        assert service.run("journal", "verify").returncode == 0


def test_a_person_finds_a_parked_record_in_any_spelling(tmp_path: Path) -> None:
    with SandboxServer(Crm(open_properties=True)) as sandbox, running(tmp_path, sandbox.url, sources=CASELESS) as found:
        assert found.post(change("u1", "Unknown@x.example", time.time(), "a")).status_code == 202
        assert eventually(lambda: [entry.record for entry in found.entries()] == ["Unknown@x.example"])
        assert "Unknown@x.example" in found.run("retries", "list", "--record", "unknown@X.EXAMPLE").stdout
        with found.journal() as journal:
            assert journal.entries(Filter(record="other@x.example")) == []
