"""The total deadline of a call to the CRM, whoever keeps it. Calls that dawdle over HTTP are test_hubspot_client.py."""

from __future__ import annotations

import threading

import pytest

from bridge.crm.transport import Watch
from tests.running import eventually


def test_f49_a_limit_of_threads_costs_no_later_call_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that finds no thread to watch it is not made; the next one is watched."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watch = Watch(timeout_s=0.1)
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            watch.begin()
    call = watch.begin()
    try:
        assert eventually(lambda: call.cut, within_s=5)
    finally:
        watch.end(call)
        watch.close()
