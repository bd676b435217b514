"""The program in a process of its own that did not spend a second on imports.

One process of a test run imports the program and forks for each command. What it forks has its own arguments,
variables, working folder and standard streams, runs `main()` from its beginning and ends as an interpreter ends.
Tests of the start itself (signals amid imports, variables that Python reads, another user) start an interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

from bridge.cli import COMMANDS

#: What commands import. Not what counts: a service says where counters are kept before it imports prometheus-client.
NEEDED = (
    *(entry.partition(":")[0] for entry in COMMANDS.values()),
    "bridge.server.master",
    "bridge.delivery.dispatcher",
    "bridge.intake.webhooks",
    "bridge.operations.admin_api",
    "rich.progress",
    "rich.table",
)
#: What runs unless another program is named.
PROGRAM = "bridge.__main__"
COUNTING = "prometheus_client"
REQUEST_BYTES = 1 << 17


class Forked:
    """A forked program, handled as a `subprocess.Popen` is."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int = subprocess.STDOUT,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        module: str = PROGRAM,
    ) -> None:
        self.returncode: int | None = None
        self._waiting = threading.Lock()
        self._told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        with theirs, Path(os.devnull).open("r+b", buffering=0) as nothing:
            fds = [self._descriptor(stream, nothing) for stream in (stdin, stdout)]
            fds += [fds[1] if stderr == subprocess.STDOUT else self._descriptor(stderr, nothing), theirs.fileno()]
            socket.send_fds(nursery(module), [json.dumps(request).encode()], fds)
        self.pid = int(self._told.recv(32))

    @staticmethod
    def _descriptor(stream: IO[bytes] | int, nothing: IO[bytes]) -> int:
        if isinstance(stream, int):
            return nothing.fileno() if stream == subprocess.DEVNULL else stream
        return stream.fileno()

    def poll(self) -> int | None:
        """The exit status, or a signal's number below zero; None while it runs."""
        if self.returncode is None and not self._waiting.locked():  # another thread that waits hears of it first
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; its status."""
        with self._waiting:
            if self.returncode is None:
                self._told.settimeout(timeout)
                try:
                    told = self._told.recv(32)
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired(["partner-bridge"], timeout or 0) from None
                self._told.close()
                assert told, "the process that forks is gone"
                self.returncode = int(told)
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    *arguments: str,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    within_s: float = 60,
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` returns for this command."""
    read, write = zip(*(os.pipe() for _ in range(3)), strict=True)
    started = Forked(arguments, stdin=read[0], stdout=write[1], stderr=write[2], cwd=cwd, env=env)
    for theirs in (read[0], write[1], write[2]):
        os.close(theirs)
    texts: dict[int, str] = {}

    def collect(end: int) -> None:
        with os.fdopen(end, encoding="utf-8") as stream:
            texts[end] = stream.read()

    collectors = [threading.Thread(target=collect, args=(end,)) for end in read[1:]]
    for collector in collectors:
        collector.start()
    with contextlib.suppress(BrokenPipeError), os.fdopen(write[0], "w", encoding="utf-8") as stream:
        stream.write(stdin or "")
    try:
        status = started.wait(within_s)
    except subprocess.TimeoutExpired:
        started.kill()
        raise
    finally:
        for collector in collectors:
            collector.join()
    return subprocess.CompletedProcess(["partner-bridge", *arguments], status, texts[read[1]], texts[read[2]])


@cache
def nursery(module: str) -> socket.socket:
    """The process that forks this program, by what it takes requests from; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno()), module],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a keyboard interrupt is for the tests alone
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


# --- in the process that forks ---


def main(requests: socket.socket, module: str) -> None:
    for name in (module, *NEEDED):  # what the module changes comes before those who take it over
        importlib.import_module(name)
    assert COUNTING not in sys.modules, "a service would count in its own memory"
    gc.collect()
    gc.freeze()  # forked processes share what is there
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        message, fds, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 4)
        if not message:
            return
        if os.fork() == 0:
            requests.detach()  # or it would close, at the very end, whatever has its number then
            wait_for_one(module, json.loads(message), fds)
        for fd in fds:
            os.close(fd)


def wait_for_one(module: str, request: dict[str, object], fds: list[int]) -> None:
    """Fork the program and tell its number and its end; only the program itself returns from `os.fork`."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    telling = fds.pop()
    if (pid := os.fork()) == 0:
        become(module, request, fds)
    os.closerange(0, telling)
    os.closerange(telling + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with contextlib.suppress(OSError):
        os.write(telling, b"%d" % pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        os.write(telling, b"%d" % status)
    os._exit(0)


def become(module: str, request: dict[str, object], fds: list[int]) -> NoReturn:
    """What `python -m` does."""
    os.setsid()
    for wanted, fd in enumerate(fds):
        os.dup2(fd, wanted)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.chdir(str(request["cwd"]))
    sys.path[0] = str(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    time.tzset()
    open_streams()
    sys.argv = [module, *request["arguments"]]  # type: ignore[misc]
    del sys.modules[module]  # or it would be warned of
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    raise AssertionError("the program returned")


def open_streams() -> None:
    """Standard streams as the interpreter makes them at its start."""
    lines = 1 if os.isatty(1) else -1
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", lines, closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)  # type: ignore[misc]


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
