"""A worker for tests of supervisor and guard, and a look at who there is.

DIRECTORY/run/  RUN       DIRECTORY: a stack, if the mode is "serve"
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pagepool.errors import UnreachableError
from pagepool.mount.fuse.protocol import Opcode
from pagepool.node.guard import Guard
from pagepool.node.handover import SUPERVISOR, WORKER, Post
from pagepool.node.lazy import LazyOptions, LazyServer
from pagepool.node.supervisor import start_node
from tests.node.stack import LARGE, ScriptedSource

TIMEOUT_S = 60.0


class Pair:
    """A supervisor and its worker, as a test sees them. The worker connects to a socket when it is ready.

    Args:
        directory: see the module.
        mode: what the worker does.
        descriptors: what else they hold.
        hung_s: see `start_node`.
    """

    def __init__(self, directory: Path, mode: str, descriptors: dict[str, int], hung_s: float | None = None) -> None:
        self.run = directory / "run"
        self.run.mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "ready"))
        self._listener.listen(1000)
        self._listener.settimeout(TIMEOUT_S)
        command = [sys.executable, "-m", "tests.node.guarded", str(directory), mode]
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        try:
            start_node(command, descriptors, self.run, hung_s=hung_s)
        finally:
            del os.environ["PYTHONPATH"]

    def wait_ready(self) -> int:
        """Wait for the next worker that is ready. Returns its number."""
        connection, _ = self._listener.accept()
        with connection:
            return int(connection.recv(100))

    def supervisor(self) -> int | None:
        """Its number."""
        return Post(self.run, SUPERVISOR).holder()

    def worker(self) -> int | None:
        """Its number."""
        return Post(self.run, WORKER).holder()

    def kill(self, process: int, number: int = signal.SIGKILL) -> None:
        """Send a process of the pair a signal that ends it, and wait until it has."""
        assert process in (self.supervisor(), self.worker())
        descriptor = os.pidfd_open(process)
        try:
            os.kill(process, number)
            assert select.select([descriptor], [], [], TIMEOUT_S)[0]
        finally:
            os.close(descriptor)

    def log(self) -> str:
        """What both said."""
        return (self.run / "log").read_text()

    def close(self) -> None:
        """End both for good, by whatever means."""
        (self.run / "stopped").touch()
        for name in (WORKER, SUPERVISOR):
            post = Post(self.run, name)
            while (free := post.take()) is None:
                post.send(signal.SIGKILL)
            os.close(free)
        self._listener.close()


@contextmanager
def pair(
    directory: Path, mode: str = "idle", descriptors: dict[str, int] | None = None, hung_s: float | None = None
) -> Iterator[Pair]:
    """A supervisor and a worker; both are gone afterwards."""
    both = Pair(directory, mode, descriptors or {}, hung_s)
    try:
        yield both
    finally:
        both.close()


def wait_post(run: Path, name: str, other_than: int) -> int:
    """Wait until a post has another holder."""
    while (holder := Post(run, name).holder()) in (None, other_than):
        os.sched_yield()
    assert holder is not None
    return holder


def main(directory: Path, mode: str) -> None:
    """The worker: the whole life of its process."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    if mode == "crash" and not (directory / "well").exists():
        sys.exit(3)
    guard = Guard(check=lambda: not (directory / "unwell").exists())
    if mode == "slow":
        while not (directory / "well").exists():
            os.sched_yield()
    if mode == "stopping":
        guard.stop()
        ended.set()
    if mode in ("serve", "asks itself"):
        serve(directory, guard)
    if mode == "asks itself" and not (directory / "well").exists():
        ask_itself(directory)
    guard.ready()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(directory / "ready"))
        connection.send(b"%d" % os.getpid())
    ended.wait()
    for server, source in _served:
        server.retire()
        source.close(directory / "closing")


class _Closing(ScriptedSource):
    """A source that can be closed, after which nothing can be had."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._closed = False
        self._failed = threading.Event()

    def close(self, told: Path) -> None:
        """Close it. If there is a FIFO, tell there, and wait until somebody wanted something in vain."""
        self._closed = True
        if told.exists():
            told.write_bytes(b"")
            self._failed.wait()

    def wait(self, digest: bytes) -> None:
        """See `ScriptedSource`."""
        super().wait(digest)
        if self._closed:
            self._failed.set()
            raise UnreachableError("http://service", "the source is closed")


_served: list[tuple[LazyServer, _Closing]] = []


def serve(directory: Path, guard: Guard) -> None:
    """Serve a stack."""
    source = _Closing(directory)
    device, options = guard.descriptors()["fuse"], LazyOptions(LARGE)
    server = LazyServer(device, source, state=directory / "state", options=options)
    server.start()
    _served.append((server, source))


def ask_itself(directory: Path) -> None:
    """Have a thread wait for an answer that this process has to give, and does not."""
    ((server, _),) = _served
    server.wait_ready(TIMEOUT_S)
    server.retire()
    threading.Thread(target=os.statvfs, args=(directory / "lazy",), daemon=True).start()
    while not server.requests[Opcode.STATFS]:
        os.sched_yield()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
