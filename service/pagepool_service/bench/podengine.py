"""containerd as `bench pods` drives it: over CRI as the kubelet does, by pagepool's snapshotter or its own overlayfs.

It begins with nothing but the image of sandboxes, which a machine with pods has. With pagepool's snapshotter a node is
running: it belongs to the machine, as the kernel's overlayfs does.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool_service.bench.containerd import Containerd, PodSettings, Proxy
from pagepool_service.bench.cri import EXITED, Cri, connected
from pagepool_service.bench.layouts import write_programs
from pagepool_service.bench.origins import HOST
from pagepool_service.bench.servers import PAGEPOOL
from pagepool_service.bench.subjects import BenchError, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pagepool_service.bench.cri import Pod
    from pagepool_service.bench.link import Link

BUSYBOX: Final = Path("/bin/busybox")
_PAUSE: Final = "pagepool-bench-pause"
_SHELL: Final = "bin/sh"
_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.005
_START_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class PodEngine:
    """containerd that runs.

    Args:
        cri: its calls.
        containerd: its processes.
        places: options of our commands: where its node is.
        environment: of our commands.
    """

    cri: Cri
    containerd: Containerd
    places: Sequence[str]
    environment: Mapping[str, str]

    def run(self, pod: Pod, image: str, command: Sequence[str]) -> str:
        """Run a command in a new container of an image that was pulled, to its end. Returns the container's ID.

        Raises:
            BenchError: it failed, or did not end.
        """
        container = self.cri.run(pod, reference(image), *command)
        deadline = time.monotonic() + _TIMEOUT_S
        while (status := self.cri.status(container)).state != EXITED:
            if time.monotonic() > deadline:
                raise BenchError(f"{image}: {shlex.join(command)} does not end")
            time.sleep(_POLL_S)
        if status.exit_code:
            said = f"{status.reason} {status.message} {self._printed(pod)}"
            raise BenchError(f"{image}: {shlex.join(command)}: exit status {status.exit_code}: {said}")
        return container

    def pagepool(self, *words: str) -> str:
        """Run one of our commands about the node, and return what it printed."""
        command = [sys.executable, "-m", "pagepool.cli", *words, *self.places]
        return run(self.containerd.inside(*command), self.environment)

    def mounts(self, image: str) -> bool:
        """Whether the node has mounted an image."""
        found = json.loads(self.pagepool("mounts", "--json"))["mounts"]
        return any(str(mount["image"]).startswith(f"{reference(image)}@") for mount in found)

    def await_learned(self, image: str) -> None:
        """Wait until the service knows what a start of an image reads.

        Raises:
            BenchError: it does not come to know.
        """
        words = [sys.executable, "-m", "pagepool.cli", "profile", "show", "--plain-http", "--json", reference(image)]
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                run(self.containerd.inside(*words), self.environment)
                return
            except BenchError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_START_POLL_S)

    def _printed(self, pod: Pod) -> str:
        logs = sorted(Path(pod.config["log_directory"]).glob("*.log"))
        return logs[-1].read_text(errors="replace")[-1000:].strip() if logs else ""


@contextmanager
def running_engine(
    link: Link, directory: Path, environment: Mapping[str, str], node: Sequence[str] | None
) -> Iterator[PodEngine]:
    """Run containerd with nothing in it for the length of the block.

    Args:
        link: at whose client's end it runs; the image of `write_pause` is at the other.
        directory: for its state, short; made and removed here.
        environment: of its processes.
        node: options of `pagepool node start`; None: containerd's own snapshotter.
    """
    places = ["--node-state", str(directory / "node"), "--node-run", str(directory / "run")]
    proxy = None if node is None else Proxy(PAGEPOOL, partial(_prepare, node, places))
    settings = PodSettings(HOST, reference(_PAUSE))
    containerd = Containerd(directory, environment, link.client, proxy=proxy, pods=settings)
    try:
        containerd.start()
        with connected(containerd.socket, directory / "pods", f"/{containerd.group}") as cri:
            deadline = time.monotonic() + _TIMEOUT_S
            while not cri.is_ready() and time.monotonic() < deadline:
                time.sleep(_START_POLL_S)
            cri.pull(reference(_PAUSE))
            yield PodEngine(cri, containerd, places, environment)
    finally:
        containerd.stop()


def _prepare(node: Sequence[str], places: Sequence[str], directory: Path) -> str:
    ours = (sys.executable, "-m", "pagepool.cli")
    served = ("--server", f"http://{HOST}", "--address", str(directory / PAGEPOOL))
    kept = ("--root", str(directory / "snapshotter"))
    start = shlex.join([*ours, "node", "start", *node, *places])
    return f"{start} && exec {shlex.join([*ours, 'snapshotter', *served, *kept, *places])}"


def write_pause(directory: Path) -> Path:
    """Write a layout of an image for sandboxes, which sleeps; it needs `BUSYBOX`, a static one. Returns it."""
    layout = directory / _PAUSE
    write_programs(layout, {_SHELL: BUSYBOX.read_bytes()}, [f"/{_SHELL}", "-c", "while :; do sleep 3600; done"])
    return layout


def reference(image: str) -> str:
    """What an image is called."""
    return f"{HOST}/{image}:latest"
