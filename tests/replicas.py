"""Three replicas of the service on one PostgreSQL and one CRM, and what happens to them, for the history's checker."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg

from bridge.sandbox import Crm
from tests.history import SENDERS, TIMEOUT_S, History, Partner
from tests.postgres import Server
from tests.running import Running, eventually

REPLICAS = 3
#: Calls in every rolling 10 s of all replicas together: few enough that there is always a backlog.
CALLS = 15
#: How the CRM fails meanwhile; not by 429, which must come from nothing but the limit itself.
TROUBLE = {"500": 0.01, "reset": 0.01, "answer-lost": 0.01, "silent-drop": 0.02}
#: Longer than any term of a dispatcher that does not renew it.
FROZEN_S = 12.0
#: Architecture §3: another replica delivers so soon after a crash, with some time for a busy machine.
TAKE_OVER_S = 10.0 + 2.0

Mishap = Literal["kill", "kill the dispatcher", "freeze", "stop", "restart the database", "crash the database"]
MISHAPS: tuple[Mishap, ...] = (
    "kill",
    "kill the dispatcher",
    "freeze",
    "stop",
    "restart the database",
    "crash the database",
)


@dataclass
class Replicas:
    """Three services with ports of their own. Not thread-safe."""

    services: list[Running]
    server: Server
    database: str
    crm: Crm
    history: History
    chance: random.Random

    @classmethod
    def make(
        cls,
        folder: Path,
        server: Server,
        crm: Crm,
        crm_url: str,
        *,
        seed: int,
        number: int = REPLICAS,
        **options: Any,
    ) -> Replicas:
        database = server.fresh_database(migrated=False)  # they migrate it, all at once
        services = []
        for place in range(number):
            (folder / f"replica-{place}").mkdir()
            made = Running(
                folder / f"replica-{place}",
                crm_url,
                journal_url=database,
                timeout=f"{TIMEOUT_S}s",
                drain_timeout="2s",
                calls=CALLS,
                batch_size=10,
                **options,
            )
            services.append(made)
        return cls(services, server, database, crm, History(), random.Random(seed))

    def start(self) -> None:
        for service in self.services:
            service.start(ready=False)
        assert eventually(lambda: all(service.is_ready() for service in self.services), within_s=40)

    def end(self) -> None:
        """Whatever still runs is killed."""
        for service in self.services:
            if service.process is not None and service.process.poll() is None:
                for pid in service.pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                service.kill_all()

    # --- who delivers ---

    def term(self) -> tuple[str | None, int]:
        """The holder and the epoch, as the row says."""
        with self.server.connect(self.database.rpartition("/")[2]) as connection:
            [(holder, epoch)] = connection.execute(
                """SELECT CASE WHEN until_us > extract(epoch FROM clock_timestamp()) * 1000000 THEN holder END, epoch
                     FROM dispatcher"""
            ).fetchall()
            return holder, epoch

    def dispatcher(self) -> Running:
        """The replica that delivers; waits until there is one."""
        found: list[Running] = []

        def look() -> bool:
            holder, _ = self.term()
            pid = int(holder.split(":")[1]) if holder else 0
            found[:] = [one for one in self.services if one.process is not None and pid in one.pids()]
            return bool(found)

        assert eventually(look, within_s=TAKE_OVER_S + 5)
        return found[0]

    def taken_over(self, epoch: int) -> bool:
        try:
            holder, now = self.term()
        except psycopg.OperationalError:
            return False
        return holder is not None and now > epoch

    # --- mishaps ---

    @contextlib.contextmanager
    def noted(self, what: str) -> Iterator[None]:
        """The outcome of calls that are open meanwhile is unknown."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.history.kills.append((began, time.monotonic(), what))

    def happen(self, mishap: Mishap) -> None:
        match mishap:
            case "kill":
                self.kill(self.chance.choice(self.services))
            case "kill the dispatcher":
                self.kill(self.dispatcher())
            case "freeze":
                self.freeze()
            case "stop":
                self.stop()
            case "restart the database":
                self.restart_database("fast")
            case "crash the database":
                self.restart_database("immediate")

    def kill(self, service: Running) -> None:
        """`kill -9` of a whole replica, as a node's end; another delivers within ten seconds, then it is back."""
        delivers = self.dispatcher() is service
        _, epoch = self.term()
        with self.noted("kill"):
            service.kill_all()
        if delivers:
            assert eventually(lambda: self.taken_over(epoch), within_s=TAKE_OVER_S), "nobody took over"
        service.start()

    def stop(self) -> None:
        """A clean stop of the replica that delivers: another goes on at once."""
        service, (_, epoch) = self.dispatcher(), self.term()
        with self.noted("stop"):  # calls that do not end in time are cut
            assert service.stop() == 0
        assert eventually(lambda: self.taken_over(epoch), within_s=2.0), "nobody took over at once"
        service.start()

    def freeze(self, *, meanwhile: Mishap | None = None) -> None:
        """SIGSTOP of the replica that delivers, in the middle of a call and for longer than its term."""
        service, (_, epoch) = self.dispatcher(), self.term()
        pids = service.pids()
        assert eventually(self.calling, within_s=10, every_s=0.001), "it makes no calls"
        with self.noted("freeze"):
            began = time.monotonic()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                if meanwhile is not None:
                    self.happen(meanwhile)
                assert eventually(lambda: self.taken_over(epoch), within_s=TAKE_OVER_S), "nobody took over"
                time.sleep(max(0.0, FROZEN_S - (time.monotonic() - began)))
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
        assert service.pids() == pids, "it goes on where it stood"
        assert eventually(lambda: service.log_has("this process delivers no more"), within_s=10)

    def calling(self) -> bool:
        return any(call.ended is None for call in self.crm.ledger.calls("update")[-8:])

    def restart_database(self, mode: Literal["fast", "immediate"]) -> None:
        with self.noted(f"database {mode}"):
            self.server.restart(mode, down_s=0.5)


@contextlib.contextmanager
def sending(replicas: Replicas, *, seed: int) -> Iterator[None]:
    """Partners send to all replicas meanwhile."""
    partner = Partner(replicas.services, replicas.history, seed=seed)
    senders = [threading.Thread(target=partner.run, args=(seed * 1000 + number,)) for number in range(SENDERS)]
    try:
        for sender in senders:
            sender.start()
        time.sleep(0.5)
        yield
        time.sleep(0.5)
    finally:
        partner.stopping.set()
        for sender in senders:
            sender.join(30)


def settle_down(replicas: Replicas) -> None:
    """The CRM is well, everything is delivered, and every replica ends cleanly."""
    replicas.crm.faults.clear()
    assert eventually(lambda: all(service.is_ready() for service in replicas.services), within_s=30)
    assert eventually(replicas.services[0].idle, within_s=90), replicas.services[0].status()
    for service in replicas.services:
        assert service.process is not None
        service.process.send_signal(signal.SIGTERM)
    for service in replicas.services:
        assert service.stop() == 0
