"""F51: a line of the log holds nothing that could forge another or steer what shows it, wherever it comes from."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog

from bridge.operations import logs

#: C0, DEL, C1, ends of lines, marks of direction, what has no width, half a character.
STEERING = (
    "\x00\x07\x1b[2J\r\n\x7f\x85\x9b\u061c\u200b\u200e\u200f\u2028\u2029"
    "\u202a\u202e\u2060\u2066\u2069\ufeff\U000e0041\ud800"
)


class Hostile:
    """What a library might log of what it was sent."""

    def __repr__(self) -> str:
        return STEERING


class Trail:
    """The lines that structlog and the libraries write, in one format."""

    def __init__(self, form: str, out: io.StringIO) -> None:
        config = logs.configure({"BRIDGE_LOG_FORMAT": form})
        made = {name: value for name, value in config["formatters"]["ours"].items() if name != "()"}
        self.library = logging.Logger("gunicorn.error")  # noqa: LOG001 (nobody else's)
        self.lines: logs.Lines = config["handlers"]["stdout"]["lines"]
        handler = logs.LinesHandler(self.lines)
        handler.setFormatter(structlog.stdlib.ProcessorFormatter(**made))
        self.library.addHandler(handler)
        self.out = out

    @property
    def text(self) -> str:
        self.lines.flush()
        return self.out.getvalue()


def fail() -> None:
    raise ValueError(f"{STEERING}\n2026-01-01T00:00:00Z [info] forged")


@pytest.fixture(params=logs.FORMATS)
def trail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trail]:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    yield Trail(request.param, out)
    structlog.reset_defaults()


def test_f51_a_line_of_ours_is_escaped_everywhere(trail: Trail) -> None:
    """Its message, its fields and their names, lists and what is within."""
    structlog.get_logger("bridge").warning(
        STEERING,
        address=STEERING,
        event_ids=[STEERING, "b"],
        filter={STEERING: STEERING},
        other=Hostile(),
        **{STEERING: 1},
    )
    assert len(trail.text.splitlines()) == 1
    assert trail.text[:-1].isprintable()


def test_f51_an_exception_adds_lines_that_are_none_of_ours(trail: Trail) -> None:
    """What it quotes is escaped; where it takes lines of its own, they are set in."""
    try:
        fail()
    except ValueError:
        structlog.get_logger("bridge").exception("failed")
        trail.library.exception("Worker failed")
    lines = trail.text.rstrip("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if not line.startswith("  ") and "ailed" not in line] == []
    assert "forged" in trail.text


def test_f51_a_warning_of_gunicorns_goes_the_same_way(trail: Trail) -> None:
    """Its message with the arguments that a stranger chose."""
    trail.library.warning("Invalid request from ip=%s: %s", "10.0.0.1", STEERING)
    trail.library.error(STEERING)
    assert len(trail.text.splitlines()) == 2
    assert trail.text.replace("\n", "").isprintable()
    assert "Invalid request" in trail.text


def test_f51_as_json_a_line_reads_as_what_was_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Escaped is not changed; and numbers of more than 64 bits are no fault."""
    chain = logs.rendering("json")
    structlog.wrap_logger(structlog.PrintLogger(), chain).info("a", text=STEERING, long=2**70)
    assert json.loads(capsys.readouterr().out) == {"event": "a", "text": STEERING, "long": 2**70}


def test_f50_only_the_log_s_own_thread_waits_for_a_reader_that_is_stuck() -> None:
    """Also at the end of a process, when that thread had not yet begun to write."""
    writers, goes_on = [], threading.Event()

    class Stuck(io.StringIO):
        def write(self, _text: str) -> int:
            writers.append(threading.current_thread().name)
            goes_on.wait()
            return 0

    lines = logs.Lines(Stuck())
    lines.msg("a line")
    lines.flush(timeout_s=0.5)
    goes_on.set()
    assert writers == ["log-writer"]
