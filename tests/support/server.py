"""A real service for tests: `pagepool serve` as a process of its own, on a free port of the loopback interface.

No test needs a mock of the service: starting one takes less than a second. `running_service` is the context manager;
`service` fixtures are made of it in the conftest of a test package. The process dies with the test run, and with it
its workers.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.linux.processes import has_ended
from tests.support.forkserver import Forked, fork

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_READY = re.compile(r"serving on (https?://(\S+))")
START_TIMEOUT_S = 60.0


class ServiceError(Exception):
    """A service that did not start; says what it printed."""


@dataclass(slots=True, weakref_slot=True)
class Service:
    """A service that was started.

    Args:
        data: its data directory.
        arguments: of `pagepool serve`, but the data directory and address.
        environment: more variables.
        log_directory: where what it prints goes; beside the data directory without it.
        prefix: a program that starts it, with its arguments: prlimit, for one.
        fresh: whether its interpreter is one of its own, and shares no memory with that of another service.
        url: where it is, ``http://127.0.0.1:PORT``; the same over restarts.
    """

    data: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    url: str = ""
    host: str = ""
    process: subprocess.Popen[bytes] | Forked | None = None
    log_directory: Path | None = None
    prefix: tuple[str, ...] = ()
    fresh: bool = False
    log_path: Path = field(default_factory=Path)

    def start(self) -> None:
        """Start it, and wait until it takes requests.

        Raises:
            ServiceError: it ended instead, or took too long.
        """
        descriptor, name = tempfile.mkstemp(
            prefix="service-", suffix=".log", dir=self.log_directory or self.data.parent
        )
        self.log_path = Path(name)
        listen = self.host or f"127.0.0.1:{self._hold_port()}"
        words = ["serve", "--data", str(self.data), "--listen", listen, "--cache-dir", str(self.cache), *self.arguments]
        environment = _environment(self.environment)
        with os.fdopen(descriptor, "wb") as log:
            if self.fresh or self.prefix or not all(name.startswith("PAGEPOOL_") for name in self.environment):
                command = [*self.prefix, sys.executable, "-m", "pagepool.cli", *words]
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                )
            else:
                self.process = fork(words, environment, log.fileno(), log.fileno())
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (found := _READY.search(self.log())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServiceError(f"the service did not start:\n{self.log()}")
            time.sleep(0.02)
        self.url, self.host = found[1], found[2]

    def _hold_port(self) -> int:
        """A free port, which nobody else who asks for any is given, also while the service is not there.

        One that is started again has the same, and a socket that does not listen keeps nobody from it who names it.
        """
        with socket.socket() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            port = int(held.getsockname()[1])
            weakref.finalize(self, os.close, held.detach())
        return port

    @property
    def cache(self) -> Path:
        """Where its pool is: beside the data directory, which goes with the test."""
        return self.data.with_name(f"{self.data.name}-cache")

    def log(self) -> str:
        """What it printed since it was started last."""
        return self.log_path.read_text(errors="replace")

    def faults(self) -> str:
        """What it printed from its first traceback on, cut to a readable length; "" if there is none."""
        _, found, rest = self.log().partition("Traceback")
        return found + rest[:4000]

    def stop(self, timeout_s: float = 60.0) -> int:
        """Ask it to end, and wait. Returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the supervisor without warning; the kernel kills the others. Waits until the data directory is free."""
        assert self.process is not None
        pids = self.children()
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 60
        while not all(has_ended(pid) for pid in pids):
            assert time.monotonic() < deadline, f"{pids} do not end"
            time.sleep(0.01)

    def children(self) -> dict[int, str]:
        """The processes of the service but the supervisor: id, and state as in /proc (``S``, ``Z`` ...)."""
        assert self.process is not None
        found: dict[int, str] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            except OSError:  # ended meanwhile
                continue
            if int(parent) == self.process.pid:
                found[int(stat.parent.name)] = state
        return found


@contextmanager
def running_service(data: Path, *arguments: str, **environment: str) -> Iterator[Service]:
    """A service over a data directory for the length of a block, with these options and PAGEPOOL_ variables."""
    service = Service(data, arguments, environment)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAGEPOOL_")}
    paths = [str(_ROOT / "client"), str(_ROOT / "service"), kept.get("PYTHONPATH", "")]
    # What a service does while it has nothing else to do would slow the next test down.
    usual = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PAGEPOOL_RECOMPRESS": "no", "PAGEPOOL_GC": "no"}
    return {**kept, **usual, **more}
