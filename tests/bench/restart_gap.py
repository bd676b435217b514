"""`restart-gap`: the longest time without an answer while 200 webhooks a second come in: at a reload, at a restart."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from tests.bench.load import SOURCE
from tests.bench.row import Row, Sample, Size, never_over
from tests.bench.steady import Answered, send_steadily
from tests.running import Running, free_port, running

RATE = 200


def rounds(size: Size) -> Iterator[Sample]:
    while True:
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as name,
            running(Path(name), f"http://127.0.0.1:{free_port()}", sources=SOURCE, drain_timeout="5s") as service,
        ):
            send_steadily(service, name="warm", per_s=RATE, seconds=1.0)
            reload = during(service, "reload", _reload, size)
            restart = during(service, "restart", _restart, size)
        yield {
            "not taken at a reload": sum(one.status != 202 for one in reload),
            "longest gap at a reload, ms": longest_gap_ms(reload),
            "longest gap at a restart, ms": longest_gap_ms(restart),
            "not taken at a restart": sum(one.status != 202 for one in restart),
        }


def during(service: Running, name: str, act: Callable[[Running], None], size: Size) -> list[Answered]:
    """The answers to a steady stream in whose midst something is done."""
    seconds = max(8.0, 2 * size.seconds)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(send_steadily, service, name=name, per_s=RATE, seconds=seconds)
        time.sleep(seconds / 3)
        act(service)
        return stream.result()


def _reload(service: Running) -> None:
    assert service.process is not None
    service.process.send_signal(signal.SIGHUP)


def _restart(service: Running) -> None:
    assert service.stop() == 0
    service.start(ready=False)


def longest_gap_ms(answers: list[Answered]) -> float:
    """The longest time between two webhooks that were taken, or from the last one to the end of the stream."""
    taken = sorted(one.at for one in answers if one.status == 202)
    taken.append(max(one.at for one in answers))
    return max(after - before for before, after in pairwise(taken)) * 1000


ROW = Row(
    name="restart-gap",
    measures="the longest time without an answer at 200 webhooks/s: at a reload (SIGHUP), at a restart",
    against="–",
    goals=(never_over("not taken at a reload", 0),),
    rounds=rounds,
)
