"""`start`: from the start of the process to the first 202, with an empty journal and with a million records due."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.bench.backlogs import copied, filled
from tests.bench.load import SOURCE, payload
from tests.bench.row import Row, Sample, Size, at_most
from tests.running import Running, free_port

RECORDS = 1_000_000
IMPORTS = "import flask, requests, marshmallow, sqlalchemy"
WITHIN_S = 60.0


def rounds(size: Size) -> Iterator[Sample]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        empty = folder / "empty"
        empty.mkdir()
        first_answer_s(empty)  # a new service compiles its files once, and makes the journal
        full = copied(filled(size.of(RECORDS, least=10_000)), folder / "full")
        while True:
            imports = imports_s()
            began = first_answer_s(empty)
            laden = first_answer_s(full)
            yield {
                "÷ the imports": began / imports,
                "a million due adds s": laden - began,
                "s": began,
                "the imports' s": imports,
            }


def imports_s() -> float:
    """Seconds that an interpreter needs for the libraries alone."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.monotonic() - began


def first_answer_s(folder: Path) -> float:
    """Seconds from the start of the service to its first 202."""
    service = Running(folder, f"http://127.0.0.1:{free_port()}", sources=SOURCE, max_pending=10_000_000)
    began = time.monotonic()
    service.start(ready=False)
    try:
        while not _answers(service):
            assert time.monotonic() - began < WITHIN_S, service.log.read_text(encoding="utf-8")
            time.sleep(0.005)
        return time.monotonic() - began
    finally:
        service.stop()


def _answers(service: Running) -> bool:
    try:
        return service.post(payload(time.time_ns(), record="c1")).status_code == 202
    except requests.ConnectionError:
        return False


ROW = Row(
    name="start",
    measures="start of the process → first 202; the same with a million records due",
    against=f"`python -c '{IMPORTS}'`",
    goals=(at_most("÷ the imports", 2.5), at_most("a million due adds s", 0.5)),
    rounds=rounds,
)
