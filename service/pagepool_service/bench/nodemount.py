"""pagepool's kernel mount, as `bench mount` measures it: a node of its own, driven by the commands that people use.

The node's state and its socket are below a directory of ours, the machine's own node is not touched. Containers are run
by the command, whose own start is part of what is measured, as podman's is; mounts are made through the library.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.oci import Reference
from pagepool_service.bench.origins import HOST
from pagepool_service.bench.subjects import BenchError, first_output_s, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pagepool_service.bench.link import Link

_END_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.05


class NodeMount:
    """Implements `Subject`.

    Args:
        link: at whose client's end the node runs.
        directory: for its state; made and removed here.
        environment: of its processes.
        options: further ones of `pagepool node start`.
    """

    name = "pagepool"

    def __init__(
        self, link: Link, directory: Path, environment: Mapping[str, str], options: Sequence[str] = ()
    ) -> None:
        self._link, self._directory, self._options = link, directory, options
        self._environment = {
            **environment,
            "PAGEPOOL_NODE_STATE": str(directory / "state"),
            "PAGEPOOL_NODE_RUN": str(directory / "run"),
        }
        self._mounts: set[Path] = set()

    def start(self) -> None:
        """See `Subject`. The node is running: it belongs to the machine, as podman's kernel does."""
        self.stop()
        self._directory.mkdir()
        self._pagepool("node", "start", *self._options)

    def run(self, image: str, command: Sequence[str]) -> float:
        """See `Subject`."""
        words = self._command(
            "run",
            "--quiet",
            "--plain-http",
            "--backend",
            "kernel",
            "--network",
            "none",
            _reference(image),
            "--",
            *command,
        )
        return first_output_s(words, self._environment)

    def fill(self, image: str) -> None:
        """See `Subject`."""
        point = self._directory / "filling"
        point.mkdir()
        self._mount(image, point, eager=True)
        self.unmount(point)
        point.rmdir()

    def mount(self, image: str, path: Path) -> None:
        """See `Subject`."""
        self._mount(image, path, eager=False)

    def unmount(self, path: Path) -> None:
        """See `Subject`."""
        self._client().unmount(path, force=True)
        self._mounts.discard(path)

    def stored(self) -> Path:
        """See `Subject`."""
        return Path(str(self._client().status()["state"]))

    def stop(self) -> None:
        """See `Subject`."""
        for path in sorted(self._mounts):
            self.unmount(path)
        if not self._directory.exists():
            return
        if self._client().is_running():
            self._pagepool("node", "stop")
        self._await_end()
        # Whatever ends just now may hold something still.
        deadline = time.monotonic() + _END_TIMEOUT_S
        while self._directory.exists():
            try:
                for point in reversed(self._left()):
                    run(["umount", point])
                shutil.rmtree(self._directory)
            except (BenchError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    def _await_end(self) -> None:
        """Wait for the node's processes; after a time kill those that do not end: nothing may be left of them."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while processes := self._processes():
            if time.monotonic() > deadline:
                for pid in processes:  # all of them, since they start each other again
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)

    def _processes(self) -> list[int]:
        """The node's processes: their arguments name our directory, which nobody else's do."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"{self._directory}/".encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
        return found

    def _left(self) -> list[str]:
        """Mounts below our directory, which the node keeps for the next one."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [point for line in lines if (point := line.split()[4]).startswith(f"{self._directory}/")]

    def _mount(self, image: str, path: Path, *, eager: bool) -> None:
        options = self._module().KernelMountOptions(temporary=True, eager=eager)
        self._client().mount(f"http://{HOST}", Reference.parse(_reference(image)), path, options)
        self._mounts.add(path)

    def _client(self) -> Any:
        places = importlib.import_module("pagepool.node.places")
        return self._module().NodeClient(places.NodePlaces(self._directory / "state", self._directory / "run"))

    def _module(self) -> Any:
        return importlib.import_module("pagepool.node.client")

    def _command(self, *words: str) -> list[str]:
        return [*self._link.client, sys.executable, "-m", "pagepool.cli", *words]

    def _pagepool(self, *words: str) -> str:
        return run(self._command(*words), self._environment)


def _reference(image: str) -> str:
    return f"{HOST}/{image}:latest"
