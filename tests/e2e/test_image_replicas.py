"""The chart on PostgreSQL, played: pods that share one journal, and a journal that is carried over to them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chart.rendering import Json
from tests.chart.test_kubernetes import POSTGRESQL, inside, merged, named
from tests.containers import MARKS, Engine
from tests.e2e.test_image_in_pod import VALUES, company_names, key, post
from tests.pods import Pod, playing
from tests.postgres import PASSWORD, ROLE, serving

pytestmark = MARKS

DATABASE: Json = merged(VALUES, POSTGRESQL)


@dataclass(frozen=True)
class Database:
    """A PostgreSQL that pods reach by a socket."""

    url: str
    sockets: Path


@pytest.fixture
def database() -> Iterator[Database]:
    sockets = Path(tempfile.mkdtemp(prefix="bridge-sockets-"))
    sockets.chmod(0o777)  # the server's user is another one than the pod's
    try:
        with serving({"unix_socket_directories": str(sockets)}) as server:
            name = server.fresh_database(migrated=False).rpartition("/")[2]
            yield Database(f"postgresql://{ROLE}:{PASSWORD}@/{name}?host=/run/postgresql&port={server.port}", sockets)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def delivered(pods: list[Pod], clients: list[str]) -> list[str | None]:
    """What has reached the CRM of either pod."""
    found = [company_names(pod, *clients) for pod in pods]
    return [next(filter(None, names), None) for names in zip(*found, strict=True)]


def test_pods_on_one_database_replace_each_other_without_a_refused_webhook(
    engine: Engine, database: Database, tmp_path: Path
) -> None:
    secrets = {"hubspot-token": "pat-test", "acme": key(), "journal-url": database.url}
    with ExitStack() as stack:
        one, two, three = [
            stack.enter_context(
                playing(engine, tmp_path / name, DATABASE, secrets, name=name, sockets=database.sockets)
            )
            for name in ("one", "two", "three")
        ]
        one.start(wait=False)  # at the same time: one of them makes the tables
        two.start()
        one.until(one.ready)
        assert {post(one, "1", "by one"), post(two, "2", "by two")} == {202}
        one.until(lambda: delivered([one, two], ["1", "2"]) == ["by one", "by two"])

        # A rolling update: a new pod is ready, then an old one goes, which was the one that delivered.
        three.start()
        assert one.stop()[0] == 0
        assert {post(two, "3", "by two"), post(three, "4", "by three")} == {202}
        two.until(lambda: delivered([two, three], ["3", "4"]) == ["by two", "by three"])

        # A node that is lost, with what it had accepted.
        assert post(two, "5", "by two") == 202
        two.kill()
        assert post(three, "6", "by three") == 202
        three.until(lambda: company_names(three, "6") == ["by three"])
        three.until(lambda: delivered([two, three], ["5"]) == ["by two"])
        assert three.stop()[0] == 0


def test_a_pod_of_a_deployment_keeps_no_journal_of_its_own(engine: Engine, tmp_path: Path) -> None:
    """What its containers keep dies with them, so a URL that names a file is refused at the start."""
    url = "sqlite:////var/lib/partner-bridge/journal.db"
    with playing(engine, tmp_path, DATABASE, {"hubspot-token": "pat-test", "acme": key(), "journal-url": url}) as pod:
        pod.start(crm=False, wait=False)
        pod.until(lambda: pod.inspect()["State"]["Status"] == "exited")
        assert pod.inspect()["State"]["ExitCode"] == 1
        assert "cannot be written" in pod.log()


def test_a_journal_is_carried_over_by_the_readmes_command(engine: Engine, database: Database, tmp_path: Path) -> None:
    (migrate,) = [command for command in named("kubectl", "exec") if "migrate" in inside(command)]
    secrets = {"hubspot-token": "pat-test", "acme": key()}
    clients = [str(number) for number in range(10)]
    with playing(engine, tmp_path, VALUES, secrets, sockets=database.sockets) as pod:
        pod.start(crm=False)
        assert {post(pod, client, "before") for client in clients} == {202}
        assert pod.stop()[0] == 0

        pod.secrets = secrets | {"journal-url": database.url}
        pod.values = VALUES | {"maintenance": True}
        pod.start(crm=False, wait=False)
        pod.run(*migrate[migrate.index("--") + 1 :])
        assert pod.stop()[0] == 0

        pod.values = DATABASE
        pod.start()
        pod.until(lambda: company_names(pod, *clients) == ["before"] * 10)
        assert post(pod, "1", "after") == 202
        pod.until(lambda: company_names(pod, "1") == ["after"])
        assert pod.stop()[0] == 0
