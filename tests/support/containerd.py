"""A containerd of a test's own, driven over CRI as the kubelet does, with a snapshotter of the caller's choice.

It runs in namespaces of the caller's, with all that it starts: no shim, container or mount outlives them. Pods have the
machine's network, so that there is nothing to set up for them.
"""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.container.cgroup import remove_groups
from pagepool_service.bench.containerd import PodSettings, listens, write_configuration
from pagepool_service.bench.cri import connected
from tests.support.namespaces import own_namespaces
from tests.support.tools import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.bench.cri import Cri
    from tests.support.namespaces import Daemon, Namespaces

_CGROUPS = Path("/sys/fs/cgroup")
_HIDDEN = ("/run/containerd",)
"""Shims and runc keep things there, whatever containerd is told."""

_numbers = itertools.count()


@dataclass(slots=True)
class Containerd:
    """containerd, which can be ended and started again while its containers run.

    Args:
        place: where it runs.
        cri: its calls.
        daemon: its process.
    """

    place: Namespaces
    cri: Cri
    daemon: Daemon

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and start it again; containers go on meanwhile."""
        self.daemon.end(how)
        self.daemon = _start(self.place)
        self.daemon.await_ready(self.cri.is_ready)

    def ctr(self, *argv: str) -> str:
        """Run containerd's own client on what there is of CRI, and return what it printed."""
        return self.place.run("ctr", "--address", _socket(self.place), "--namespace", "k8s.io", *argv)


@contextmanager
def containerd_namespaces() -> Iterator[Namespaces]:
    """Where containerd may run, and its snapshotter before it. Skips the test where there is none."""
    require("containerd", "containerd-shim-runc-v2", "ctr", "runc")
    with own_namespaces(_HIDDEN) as place:
        yield place


@contextmanager
def running_containerd(
    place: Namespaces, host: str, sandbox_image: str, snapshotter: str = "overlayfs", address: Path | None = None
) -> Iterator[Containerd]:
    """A containerd with an empty storage for the length of the block.

    Args:
        place: where, by `containerd_namespaces`.
        host: a registry that speaks plain HTTP, ``HOST:PORT``.
        sandbox_image: what pods begin with.
        snapshotter: its name; one of containerd's own without an address.
        address: the socket of a proxy snapshotter, which need not be there yet.
    """
    directory = place.directory
    write_configuration(directory, snapshotter, address, PodSettings(host, sandbox_image, stats_s=1))
    group = f"pagepool-cri-{os.getpid()}-{next(_numbers)}"
    daemon = _start(place)
    running = None
    try:
        daemon.await_ready(lambda: listens(_socket(place)))
        with connected(_socket(place), directory / "pods", f"/{group}") as cri:
            daemon.await_ready(cri.is_ready)
            running = Containerd(place, cri, daemon)
            yield running
    finally:
        (running.daemon if running is not None else daemon).end(signal.SIGKILL)
        _remove_groups(group)


def _start(place: Namespaces) -> Daemon:
    return place.start("containerd", "containerd", "--config", place.directory / "containerd.toml")


def _socket(place: Namespaces) -> Path:
    return place.directory / "containerd"


def _remove_groups(name: str) -> None:
    """End what is left of pods, and remove their groups."""
    for place in (_CGROUPS, *_CGROUPS.glob("*/")):
        with suppress(OSError):
            remove_groups([*place.glob(f"{name}/*/"), place / name])
