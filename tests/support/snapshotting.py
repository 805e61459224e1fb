"""A snapshotter, its node and a containerd that uses them, in namespaces of a test's own."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.cli import environment
from tests.support.containerd import containerd_namespaces, running_containerd
from tests.support.tools import ToolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pagepool_service.bench.cri import Cri
    from tests.support.containerd import Containerd
    from tests.support.namespaces import Daemon, Namespaces

_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Snapshotting:
    """What runs.

    Args:
        place: where.
        servers: what the snapshotter was told of.
        daemon: the snapshotter.
        containerd: None: none yet.
    """

    place: Namespaces
    servers: Sequence[str]
    daemon: Daemon
    containerd: Containerd | None = None

    @property
    def cri(self) -> Cri:
        """containerd's calls."""
        assert self.containerd is not None
        return self.containerd.cri

    @property
    def root(self) -> Path:
        """Where the snapshotter keeps everything."""
        return self.place.directory / "snapshotter"

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return _socket(self.place)

    def pagepool(self, *argv: str) -> str:
        """Run one of our commands there, and return what it printed."""
        return self.place.run(*_words(self.place, *argv))

    def ctr(self, *argv: str) -> str:
        """Run containerd's own client, and return what it printed."""
        assert self.containerd is not None
        return self.containerd.ctr(*argv)

    def mounts(self) -> list[dict[str, Any]]:
        """What the node has mounted."""
        found: list[dict[str, Any]] = json.loads(self.pagepool("mounts", "--json"))["mounts"]
        return found

    def start(self) -> None:
        """Start the snapshotter again, after `daemon` has ended."""
        self.daemon = _start(self.place, self.servers)

    def await_containerd(self) -> None:
        """Wait until containerd has seen that the snapshotter is there again: it looks every three seconds."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                self.snapshots()
                return
            except ToolError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def snapshots(self) -> dict[str, str]:
        """What containerd knows of snapshots: the kind of each, by key."""
        lines = self.ctr("snapshots", "--snapshotter", "pagepool", "ls").splitlines()[1:]
        return {words[0]: words[-1] for words in map(str.split, lines)}


@contextmanager
def snapshotting(servers: Sequence[str]) -> Iterator[Snapshotting]:
    """A snapshotter alone. It, its node and their mounts are gone after the block."""
    with containerd_namespaces() as place:
        daemon = _start(place, servers)
        found = Snapshotting(place, servers, daemon)
        try:
            yield found
        finally:
            found.daemon.end()
            with suppress(ToolError):  # it does not run
                found.pagepool("node", "stop")


@contextmanager
def containerd_on(found: Snapshotting, host: str) -> Iterator[Snapshotting]:
    """A containerd that uses it. The registry has the image of sandboxes, ``pause:1``."""
    with running_containerd(found.place, host, f"{host}/pause:1", "pagepool", found.socket) as containerd:
        found.containerd = containerd
        yield found


def _start(place: Namespaces, servers: Sequence[str]) -> Daemon:
    chosen = [word for server in servers for word in ("--server", server)]
    words = _words(
        place, "snapshotter", *chosen, "--address", str(_socket(place)), "--root", str(place.directory / "snapshotter")
    )
    daemon = place.start("snapshotter", *words)
    before = daemon.log.read_text().count("serving containerd") if daemon.log.exists() else 0
    daemon.await_ready(lambda: daemon.log.read_text().count("serving containerd") > before)
    return daemon


def _words(place: Namespaces, *argv: str) -> list[str]:
    node = (f"PAGEPOOL_NODE_STATE={place.directory}/node", f"PAGEPOOL_NODE_RUN={place.directory}/run")
    ours = [f"{name}={value}" for name, value in environment().items()]
    return ["env", *node, *ours, sys.executable, "-P", "-m", "pagepool.cli", *argv]


def _socket(place: Namespaces) -> Path:
    return place.directory / "snapshots.sock"
