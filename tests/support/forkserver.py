"""A process that has imported all of pagepool, and forks one that is `pagepool` whenever a test asks for it.

The program of a fork is the real one, from its first function on, in a process of its own; only the second that
importing a web framework takes is saved, hundreds of times in a run. What a fresh interpreter does is in the tests of
the command line, the demo, and everything that needs a program before it, or variables that an interpreter reads.

The server lives as long as the process that asks, and what it has forked is told to end with it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

from pagepool.linux.descriptors import is_readable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROOT: Final = Path(__file__).parents[2]
_LONGEST: Final = 4 << 20
"""Of a request, bytes: the environment is most of it."""
_MODULES: Final = ("pagepool_service.supervisor", "pagepool_service.maintaining", "pagepool.cli.app")
_LOCK: Final = Lock()
_PACKAGES: Final = ("pagepool.cli.commands", "pagepool_service.commands")


PAGEPOOL: Final = "pagepool"
DRIVER: Final = "tests.container.driver"
"""That of the tests of containers, a module with a function `main` that looks at `sys.argv`."""


class Forked:
    """A process that the server has forked, as `subprocess.Popen` shows its own.

    Args:
        pid: of the process.
        status: a pipe; how it ended is written there.
    """

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """How it ended, or None if it has not: an exit status, or the number of a signal below zero."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; how it did.

        Raises:
            subprocess.TimeoutExpired: it has not in this time.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("pagepool", timeout or 0)
        return code

    def _look(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and is_readable(self._status, timeout_s):
            said = os.read(self._status, 4)
            os.close(self._status)
            assert len(said) == 4, "the fork server is gone"
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(said, "little"))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def fork(
    argv: Sequence[str],
    environment: Mapping[str, str],
    output: int,
    errors: int,
    *,
    program: str = PAGEPOOL,
    given: int | None = None,
    place: Path | None = None,
) -> Forked:
    """Have `pagepool` run in a process of its own.

    Args:
        argv: what follows the program's name.
        environment: all of it.
        output: a descriptor for its standard output.
        errors: likewise, standard error.
        program: which one: `PAGEPOOL` or `DRIVER`.
        given: likewise, standard input; None: it has nothing in it.
        place: its directory; None: that of this process.
    """
    status, theirs = os.pipe()
    try:
        text = json.dumps([program, list(argv), dict(environment), str(place or Path.cwd())]).encode()
        with _LOCK:
            connection = _server(os.getpid())
            descriptors = [theirs, output, errors, *([] if given is None else [given])]
            socket.send_fds(connection, [len(text).to_bytes(4, "little")], descriptors)
            connection.sendall(text)
            return Forked(int.from_bytes(connection.recv(4), "little"), status)
    finally:
        os.close(theirs)


@cache
def _server(_owner: int) -> socket.socket:
    """The connection to this process's server, which is started for the first who asks."""
    ours, theirs = socket.socketpair()
    paths = (str(_ROOT / "client"), str(_ROOT / "service"), str(_ROOT), os.environ.get("PYTHONPATH", ""))
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forkserver", str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.kill()
        process.wait()

    atexit.register(end)
    return ours


def main(connection: socket.socket) -> None:
    """The server, until whoever started it is gone."""
    for package in _PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.iter_modules(path, f"{package}."):
            importlib.import_module(module.name)
    for name in (*_MODULES, DRIVER):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiting: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([connection.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 1 << 16)
            _reap(waiting)
        if connection.fileno() in ready:
            head, rights, _, _ = socket.recv_fds(connection, 4, 4)
            if not head:
                return
            text = _receive(connection, int.from_bytes(head, "little"))
            pid = os.fork()
            if not pid:
                for descriptor in (woken, wake, *waiting.values()):
                    os.close(descriptor)
                connection.close()
                _become(*json.loads(text), *rights)
                return
            told, *standard = rights
            waiting[pid] = told
            for descriptor in standard:
                os.close(descriptor)
            connection.sendall(pid.to_bytes(4, "little"))


def _receive(connection: socket.socket, length: int) -> bytes:
    assert length <= _LONGEST
    parts = []
    while length:
        parts.append(part := connection.recv(length))
        length -= len(part)
        assert part, "half a request"
    return b"".join(parts)


def _reap(waiting: dict[int, int]) -> None:
    """Tell of those that have ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            told = waiting.pop(ended[0])
            with suppress(BrokenPipeError):
                os.write(told, ended[1].to_bytes(4, "little"))
            os.close(told)


def _become(program: str, argv: list[str], environment: dict[str, str], place: str, told: int, *standard: int) -> None:
    """Be the program, in the process that was forked."""
    from pagepool.cli.start import main as run_and_exit
    from pagepool.linux.processes import die_with_parent

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
    os.close(told)
    for descriptor, place_of in zip(standard, (1, 2, 0), strict=False):
        os.dup2(descriptor, place_of)
        os.close(descriptor)
    die_with_parent(os.getppid())
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(place)
    sys.argv = [program, *argv]
    if program == DRIVER:
        sys.exit(importlib.import_module(DRIVER).main())
    run_and_exit(argv)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
