"""A containerd of a test's own, driven over CRI as the kubelet does, with a snapshotter of the caller's choice.

It runs in namespaces of the caller's, with all that it starts: no shim, container or mount outlives them. Pods have the
machine's network, so that there is nothing to set up for them.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.container.cgroup import remove_groups
from tests.support.cri import CriError, connected
from tests.support.namespaces import own_namespaces
from tests.support.tools import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cri import Cri
    from tests.support.namespaces import Daemon, Namespaces

_CGROUPS = Path("/sys/fs/cgroup")
_HIDDEN = ("/run/containerd",)
"""Shims and runc keep things there, whatever containerd is told."""

# Left out is what writes elsewhere. Without restrict_oom_score_adj no sandbox starts where root may not lower it.
# The runtime is the usual one: containerd 2 makes its own kind of configuration of this, and leaves out the snapshotter
# where there is no runtime.
_CONFIGURATION = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{directory}/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  restrict_oom_score_adj = true
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    disable_snapshot_annotations = false
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{directory}/hosts"
"""
_PROXY = """\
[proxy_plugins.{snapshotter}]
  type = "snapshot"
  address = "{address}"
"""
_HOST = """\
server = "http://{host}"
[host."http://{host}"]
  capabilities = ["pull", "resolve"]
"""
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
        _await(self.daemon, self.cri)

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
    text = _CONFIGURATION + (_PROXY if address is not None else "")
    names = {"directory": directory, "sandbox_image": sandbox_image, "snapshotter": snapshotter, "address": address}
    (directory / "containerd.toml").write_text(text.format(**names))
    (directory / "cni").mkdir()
    (directory / "hosts" / host).mkdir(parents=True)
    (directory / "hosts" / host / "hosts.toml").write_text(_HOST.format(host=host))
    group = f"pagepool-cri-{os.getpid()}-{next(_numbers)}"
    daemon = _start(place)
    running = None
    try:
        daemon.await_ready(lambda: _listens(_socket(place)))
        with connected(_socket(place), directory / "pods", f"/{group}") as cri:
            _await(daemon, cri)
            running = Containerd(place, cri, daemon)
            yield running
    finally:
        (running.daemon if running is not None else daemon).end(signal.SIGKILL)
        _remove_groups(group)


def _start(place: Namespaces) -> Daemon:
    return place.start("containerd", "containerd", "--config", place.directory / "containerd.toml")


def _await(daemon: Daemon, cri: Cri) -> None:
    def answers() -> bool:
        try:
            cri.version()
        except CriError:  # it listens before it can do anything
            return False
        return True

    daemon.await_ready(answers)


def _socket(place: Namespaces) -> Path:
    return place.directory / "containerd"


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _remove_groups(name: str) -> None:
    """End what is left of pods, and remove their groups."""
    for place in (_CGROUPS, *_CGROUPS.glob("*/")):
        with suppress(OSError):
            remove_groups([*place.glob(f"{name}/*/"), place / name])
