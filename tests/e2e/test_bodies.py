"""What one partner's bodies become, and what mapping them takes, holds up nobody else: a real service, one worker."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import orjson
import pytest
import requests

from bridge.intake.decoding import weigh
from bridge.intake.signatures import sign
from bridge.server.loop import LIGHT
from bridge.settings import Secret, Verify
from tests.running import ACME, Running, eventually, running
from tests.unit.test_steps import JOIN, JOINED
from tests.unit.test_weighing import Shape

#: Megabytes: the chart's limit of 512 MiB, less a margin.
LIMIT_MB = 450

#: What takes all steps there are, in a body that is so light that its requests do not wait for each other's memory.
COUNT = {"id": "7", "name": "A", "rows": [{"k": "q"}] * 2_500}
COUNTED = "to_string(length(rows[?length(_root.rows[?k == 'q']) > `0`]))"
assert weigh(orjson.dumps(COUNT), events=1) <= LIGHT

SOURCES = (
    ACME
    + """\
  hostile:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    record: {id: id, id_property: hostile_id}
    properties: {company_name: name}
  joined:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    record: {id: id, id_property: hostile_id}
    properties: {company_name: name, notes: "JOINED"}
  counted:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    record: {id: id, id_property: hostile_id}
    properties: {company_name: name, notes: "COUNTED"}
  own:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    record: {id: id, id_property: hostile_id}
    schema: tests.own_schemas:Unruly
""".replace("JOINED", JOINED).replace("COUNTED", COUNTED)
)


def megabyte(shape: Shape) -> bytes:
    """The shape in nearly as many bytes as are taken."""
    start, end = b'{"id":"7","name":"A","x":[', b"]}"
    part = shape.body(b"", b"")
    return start + b",".join([part] * ((2**20 - len(start) - len(end)) // (len(part) + 1))) + end


WORST = {
    "objects": megabyte(Shape(b"{}")),
    "deep lists": megabyte(Shape(b"0", b"[", b"]", 60)),
    "deep objects": megabyte(Shape(b"0", b'{"":', b"}", 60)),
    "decimals": megabyte(Shape(b"1.5")),
}


@dataclass
class Others:
    """How long the other partner's webhooks and the probes took, in seconds; None where there was no good answer."""

    webhooks: list[float | None] = field(default_factory=list)
    probes: list[float | None] = field(default_factory=list)
    memory_mb: float = 0.0


@contextmanager
def beside(service: Running) -> Iterator[Others]:
    """Somebody else sends a webhook ten times a second, asks all probes, and looks at the memory meanwhile."""
    others, done = Others(), threading.Event()

    def send() -> None:
        for number in itertools.count():
            event = {"id": f"other-{number}-{time.time_ns()}", "client": f"c{number % 50}", "name": "A"}
            others.webhooks.append(seconds(lambda: service.post(event, timeout_s=10), 202))  # noqa: B023 (called at once)
            if done.wait(0.1):
                return

    def probe() -> None:
        while not done.wait(0.2):
            for url in (service.url, service.admin_url):
                others.probes.append(seconds(lambda: requests.get(f"{url}/livez", timeout=10), 200))  # noqa: B023

    def look() -> None:
        while not done.wait(0.1):
            others.memory_mb = max(others.memory_mb, pss_mb(service))

    threads = [threading.Thread(target=act, name=act.__name__) for act in (send, probe, look)]
    for thread in threads:
        thread.start()
    try:
        yield others
    finally:
        done.set()
        for thread in threads:
            thread.join(30)


def storm(service: Running, source: str, body: bytes, *, connections: int, count: int) -> list[int]:
    """The statuses of so many requests, sent by a process of their own: who measures must not be held up by them."""
    url, secret = f"{service.url}/webhooks/{source}", service.folder / "acme.secret"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as sender:
        return sender.submit(send_all, url, secret, body, connections, count).result()


def send_all(url: str, secret: Path, body: bytes, connections: int, count: int) -> list[int]:
    verify = Verify("standard-webhooks", (Secret(file=secret),))

    def send(number: int) -> int:
        signed = sign(verify, body=body, url=url, now=time.time(), delivery_id=f"msg_{time.time_ns()}_{number}")
        return requests.post(url, body, headers={"Content-Type": "application/json", **signed}, timeout=60).status_code

    with ThreadPoolExecutor(connections) as pool:
        return list(pool.map(send, range(count)))


def seconds(act: Callable[[], requests.Response], status: int) -> float | None:
    began = time.monotonic()
    try:
        answer = act()
    except requests.RequestException:
        return None
    return time.monotonic() - began if answer.status_code == status else None


def pss_mb(service: Running) -> float:
    """Megabytes of all the service's processes, those that run schemas too."""
    found, pids = 0.0, service.pids()
    for pid in [*pids, *itertools.chain.from_iterable(map(children_of, pids[1:]))]:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        found += int(text.split("Pss:")[1].split()[0]) / 1024
    return found


def children_of(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def judged(others: Others) -> None:
    """Every webhook taken and every probe answered, nearly all within a second; some more for the machine."""
    assert others.webhooks
    assert others.probes
    for taken in (others.webhooks, others.probes):
        assert None not in taken
        ordered = sorted(each for each in taken if each is not None)
        assert ordered[int(len(ordered) * 0.9)] < 1, ordered
        assert ordered[-1] < 5, ordered


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("bodies")
    root = str(Path(__file__).parents[2])
    with running(folder, "http://127.0.0.1:9", sources=SOURCES, environ={"PYTHONPATH": root}) as started:
        yield started


@pytest.mark.heavy
@pytest.mark.alone
@pytest.mark.parametrize("connections", [16, 32])
@pytest.mark.parametrize("worst", WORST)
def test_the_worst_bodies_that_are_taken_starve_nobody(service: Running, worst: str, connections: int) -> None:
    """All are taken or told to come back, in half of what the pod has; nothing is killed."""
    worker, body = service.pids()[1], WORST[worst]
    with beside(service) as others:
        answers = storm(service, "hostile", body, connections=connections, count=2 * connections)
    assert set(answers) <= {202, 503}
    assert 202 in answers
    assert service.pids()[1] == worker
    assert others.memory_mb < LIMIT_MB
    judged(others)


@pytest.mark.heavy
@pytest.mark.alone
@pytest.mark.parametrize(
    "source, payload, connections",
    [
        ("joined", JOIN, 8),
        ("counted", COUNT, 40),
        ("own", {"id": "7", "name": "A", "act": "sleep"}, 8),
        ("own", {"id": "7", "name": "A", "act": "compute"}, 8),
        ("own", {"id": "7", "name": "A", "act": "a regular expression"}, 8),
        ("own", {"id": "7", "name": "A", "act": "exit"}, 8),
        ("own", {"id": "7", "name": "A", "act": "end"}, 8),
    ],
    ids=["join", "light, of many connections", "sleep", "compute", "regular expression", "exit", "end"],
)
def test_what_mapping_takes_holds_up_nobody_else(
    service: Running, source: str, payload: object, connections: int
) -> None:
    """So many at a time, over and over: that partner is taken or told to come back, its values or events are parked."""
    worker, body = service.pids()[1], orjson.dumps(payload)
    with beside(service) as others:
        answers = storm(service, source, body, connections=connections, count=2 * connections)
    assert set(answers) <= {202, 503}
    assert 202 in answers
    assert service.pids()[1] == worker
    judged(others)


@pytest.mark.heavy
def test_a_broken_schema_fails_the_reload_as_it_would_a_restart(tmp_path: Path) -> None:
    """Everything stays as it was, with the reason in the log; a sound change is taken."""
    source = ACME[: ACME.index("    properties:")] + "    schema: own_beside:Client\n"
    module = tmp_path / "own_beside.py"
    text = "from marshmallow import Schema, fields\n\n\nclass Client(Schema):\n    {} = fields.Str(data_key='name')\n"
    module.write_text(text.format("company_name"), encoding="utf-8")

    with running(tmp_path, "http://127.0.0.1:9", sources=source) as service:
        assert service.process is not None
        assert service.post({"id": "e1", "client": "c1", "name": "A"}).json()["accepted"] == 1
        module.write_text("import sys\nsys.exit('the module is broken')\n", encoding="utf-8")
        service.process.send_signal(1)
        assert eventually(lambda: service.log_has("the configuration was not reloaded"))
        assert service.log_has("'own_beside:Client' cannot be used: the module is broken")
        assert service.post({"id": "e2", "client": "c1", "name": "B"}).json()["accepted"] == 1
        module.write_text(text.format("notes"), encoding="utf-8")
        service.process.send_signal(1)
        assert eventually(lambda: service.log_has("the configuration was reloaded"))
        assert "notes" in service.run("map", "acme", stdin='{"id": "e3", "client": "c1", "name": "C"}').stdout
