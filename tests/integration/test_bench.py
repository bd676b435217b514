"""The benchmark works: rows of every kind give their figures, and states are compared, not counted."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest
import requests

from tests.bench import job, load, readme
from tests.bench.backlogs import PROPERTIES, expected, fill
from tests.bench.crm import check, sandbox
from tests.bench.drain import drained
from tests.bench.results import as_json, from_json, run, save
from tests.bench.results import load as kept
from tests.bench.row import Missing, Row, Sample, Size, at_least, never_over
from tests.bench.rows import ROWS
from tests.bench.table import lines, markdown
from tests.running import SECRET

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.heavy
@pytest.mark.alone
def test_rows_of_processes_and_of_this_process_run_by_one_command(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "mapping", "latency", "--json", str(file)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = {row["name"]: row for row in orjson.loads(file.read_bytes())}
    assert found.keys() == {"mapping", "latency"}
    for name, row in found.items():
        assert row["missing"] is None
        assert {goal["figure"] for goal in row["goals"]} <= row["figures"].keys()
        assert all(len(figure["samples"]) == 1 and figure["median"] > 0 for figure in row["figures"].values()
                   if figure is not row["figures"].get("failed"))  # fmt: skip
        assert all(isinstance(goal["met"], bool) for goal in row["goals"])
        assert row["machine"]
        assert row["date"]
        assert name in done.stdout
    assert "Load average" in done.stdout


def test_a_drain_is_compared_record_by_record_and_property_by_property(tmp_path: Path) -> None:
    template = fill(tmp_path, 300)
    with sandbox() as crm:
        calls = drained(template, crm, 300, calls=100_000)
        assert sum(call["inputs"] for call in calls) == 300
        assert crm.written() == 300 * PROPERTIES
        other = {"p3": "of somebody else"}
        body = {"ids": ["c7"], "id_property": "acme_client_id", "properties": other}
        changed = {**expected(300), "c7": {**expected(300)["c7"], **other}}
        check(expected(300), crm.state())
        requests.post(f"{crm.url}/sandbox/records", json=body, timeout=10).raise_for_status()
        with pytest.raises(AssertionError, match=r"1 records differ, the first: .*c7"):
            check(expected(300), crm.state())
        assert crm.state() == changed


def test_the_jobs_model_leaves_open_only_a_value_whose_newest_is_refused() -> None:
    made = job.Job([], {"c1": {"tier": "gold", "city": "Lugo"}, "c2": {"tier": "gold"}}, frozenset({"c1"}))
    assert made.wrong({"c1": {"tier": "silver", "city": "Lugo"}, "c2": {"tier": "gold"}}) == []
    assert len(made.wrong({"c1": {"city": "Vigo"}, "c2": {"tier": "gold"}})) == 1
    assert len(made.wrong({"c1": {"city": "Lugo"}, "c2": {"tier": "silver"}})) == 1
    assert len(made.wrong({"c1": {"city": "Lugo"}})) == 1
    assert len(made.wrong({**made.wanted, "c3": {"city": "Lugo"}})) == 1


class Moody(BaseHTTPRequestHandler):
    """Answers every other request 202, the others 503; remembers what came."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(202 if len(self.bodies) % 2 else 503)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: Any) -> None:
        pass


def test_our_own_client_sends_each_request_once_and_counts_what_fails(tmp_path: Path) -> None:
    (tmp_path / "acme.secret").write_text(SECRET, encoding="utf-8")
    prepared = load.prepare(tmp_path, number=20)
    with HTTPServer(("127.0.0.1", 0), Moody) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        figures = load.send_each(prepared, f"http://127.0.0.1:{server.server_port}/webhooks/acme", connections=1)
        server.shutdown()
    assert (figures.answered, figures.failed) == (20, 10)
    assert {orjson.loads(body)["id"] for body in Moody.bodies} == {f"evt_{number}" for number in range(20)}
    assert figures.p99_ms >= figures.p50_ms > 0


def row(*samples: Sample) -> Row:
    goals = (at_least("ratio", 2), never_over("failed", 0))
    return Row("made up", "this", "that", goals, lambda _size: iter(sample for sample in samples))


THREE = Size(rounds=3)


def test_a_goal_is_for_the_median_or_for_each_round() -> None:
    measured = run(row({"ratio": 1, "failed": 0}, {"ratio": 3, "failed": 0}, {"ratio": 2.5, "failed": 1}), THREE)
    verdicts = {goal["figure"]: goal["met"] for goal in as_json(measured)["goals"]}
    assert verdicts == {"ratio": True, "failed": False}
    assert ("made up", "ratio", "2.5", "1 – 3", "≥ 2", "yes") in lines([measured])
    assert "failed: **0** (0 – 1; ≤ 0 each, **not met**)" in markdown([measured], {})


def test_the_run_before_stands_beside_what_has_a_goal() -> None:
    measured, before = (run(row({"ratio": ratio, "failed": 0}), Size(rounds=1)) for ratio in (3, 4))
    told = markdown([measured], {"made up": before})
    assert "ratio: **3** (before 4; ≥ 2)" in told
    assert "failed: **0** (before 0; ≤ 0 each)" in told


def test_a_goal_for_a_figure_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no figure failed"):
        run(row({"ratio": 1}), Size(rounds=1))


def test_a_row_that_the_machine_cannot_run_says_what_is_missing() -> None:
    def rounds(_size: Size) -> Sample:
        raise Missing("fluentd is not installed")

    measured = run(Row("made up", "this", "that", (at_least("ratio", 2),), rounds), THREE)  # type: ignore[arg-type]
    assert as_json(measured)["goals"][0]["met"] is None
    assert "left out: fluentd is not installed" in markdown([measured], {})


def test_a_row_that_fails_is_told_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def rounds(_size: Size) -> Iterator[Sample]:
        yield {"ratio": 3, "failed": 0}
        check({"c1": {"city": "Lugo"}}, {})

    measured = run(Row("made up", "this", "that", (at_least("ratio", 2),), rounds), THREE)
    assert measured.failed
    assert measured.figures == {}
    assert "1 records differ" in capsys.readouterr().err
    assert list(lines([measured])) == [("made up", "failed with AssertionError", "", "", "", "no")]
    assert "| failed with AssertionError |" in markdown([measured], {})


def test_results_are_kept_by_row(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    first = run(row({"ratio": 1, "failed": 0}), Size(rounds=1))
    other = run(Row("another", "this", "that", (), row({"s": 5}).rounds), Size(rounds=1))
    save(file, [first, other], order=["another", "made up"])
    again = run(row({"ratio": 2, "failed": 0}), Size(rounds=1))
    save(file, [again], order=["another", "made up"])
    assert kept(file) == [other, again]
    assert from_json(as_json(first)) == first


def test_the_readmes_figures_are_the_kept_ones() -> None:
    assert readme.README.read_text(encoding="utf-8") == readme.current(), "run python -m tests.bench.readme"


def test_what_is_kept_is_of_rows_and_pictures_that_there_are() -> None:
    assert {measured.name for measured in kept(readme.RESULTS)} <= ROWS.keys()
    for name in readme.PICTURES:
        assert (readme.RESULTS.parent / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
