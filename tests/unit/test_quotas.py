"""`limit:`: a rolling window, shared by processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bridge.http.limits import Quota, Quotas
from bridge.settings import RequestLimit


def test_so_many_requests_and_no_more() -> None:
    """Until the oldest of them is a window ago, and the wait says when that is."""
    quota = Quota(RequestLimit(3, 10.0))
    assert [quota.take(now) for now in (100.0, 101.0, 105.0)] == [0.0, 0.0, 0.0]
    assert quota.take(106.0) == 4.0
    assert quota.wait_s(109.5) == 0.5
    assert quota.take(110.0) == 0.0
    assert quota.take(110.0) == 1.0


def test_looking_costs_nothing() -> None:
    quota = Quota(RequestLimit(1, 1.0))
    assert [quota.wait_s(5.0) for _ in range(10)] == [0.0] * 10
    assert quota.take(5.0) == 0.0


def test_what_is_refused_does_not_count() -> None:
    """A sender that hammers gets on as soon as one that waits."""
    quota = Quota(RequestLimit(1, 1.0))
    quota.take(0.0)
    assert all(quota.take(at / 100) > 0 for at in range(100))
    assert quota.take(1.0) == 0.0


@given(
    requests=st.integers(1, 5),
    gaps=st.lists(st.floats(0.0, 2.0), max_size=60),
)
def test_no_window_ever_holds_more(requests: int, gaps: list[float]) -> None:
    """And nothing is refused that would fit."""
    quota, now = Quota(RequestLimit(requests, 1.0)), 0.0
    taken: list[float] = []
    for gap in gaps:
        now += gap
        within = sum(1 for at in taken if at + 1.0 > now)
        if quota.take(now) == 0.0:
            assert within < requests
            taken.append(now)
        else:
            assert within == requests


def test_processes_share_one_window(tmp_path: Path) -> None:
    """Ten takes in each of four processes, and one more here: twenty fit."""
    limit = RequestLimit(20, 1000.0)
    quota = Quotas(tmp_path).quota("acme", limit)
    assert quota is not None
    allowed = 0
    for _ in range(4):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            own = Quotas(tmp_path).quota("acme", limit)
            assert own is not None
            os.write(writing, b"." * sum(own.take(1.0) == 0.0 for _ in range(8)))
            os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        allowed += len(os.read(reading, 100))
        os.close(reading)
    assert allowed == 20
    assert quota.take(2.0) == 999.0


def test_threads_never_take_more_than_there_is() -> None:
    quota = Quota(RequestLimit(500, 1000.0))
    taken: list[bool] = []

    def take() -> None:
        taken.extend(quota.take(1.0) == 0.0 for _ in range(200))

    threads = [threading.Thread(target=take, name=f"taker {n}") for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(taken), sum(taken)) == (1600, 500)


def test_a_window_outlives_a_reload_that_leaves_its_limit() -> None:
    """Another limit begins anew; no limit is none."""
    quotas = Quotas()
    first = quotas.quota("acme", RequestLimit(5, 1.0))
    assert quotas.quota("acme", RequestLimit(5, 1.0)) is first
    assert quotas.quota("acme", RequestLimit(6, 1.0)) is not first
    assert quotas.quota("other", RequestLimit(5, 1.0)) is not first
    assert quotas.quota("free", None) is None
