"""pagepool's kernel mount, as `bench mount` measures it: a node of its own, driven by the commands that people use.

The node's state and its socket are below a directory of ours, the machine's own node is not touched. What the commands
take to start is part of what is measured, as it is of podman.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool_service.bench.origins import HOST
from pagepool_service.bench.subjects import BenchError, first_output_s, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pagepool_service.bench.link import Link


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
        words = self._command("run", "--plain-http", _reference(image), "--", *command)
        return first_output_s(words, self._environment)

    def fill(self, image: str) -> None:
        """See `Subject`."""
        point = self._directory / "filling"
        point.mkdir()
        self._pagepool("mount", "--plain-http", "--backend", "kernel", "--eager", _reference(image), str(point))
        self._pagepool("umount", str(point))
        point.rmdir()

    def mount(self, image: str, path: Path) -> None:
        """See `Subject`."""
        self._pagepool("mount", "--plain-http", "--backend", "kernel", "--rw", _reference(image), str(path))
        self._mounts.add(path)

    def unmount(self, path: Path) -> None:
        """See `Subject`."""
        self._pagepool("umount", str(path))
        self._mounts.discard(path)

    def stored(self) -> Path:
        """See `Subject`."""
        return Path(str(json.loads(self._pagepool("node", "status", "--json"))["state"]))

    def stop(self) -> None:
        """See `Subject`."""
        for path in sorted(self._mounts):
            self.unmount(path)
        if not self._directory.exists():
            return
        try:
            self._pagepool("node", "stop")
        except BenchError as error:
            if "not running" not in str(error):
                raise
        left = self._left()
        for point in reversed(left):
            run(["umount", point])
        shutil.rmtree(self._directory, ignore_errors=True)

    def _left(self) -> list[str]:
        """Mounts below our directory, which the node keeps for the next one."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [point for line in lines if (point := line.split()[4]).startswith(f"{self._directory}/")]

    def _command(self, *words: str) -> list[str]:
        return [*self._link.client, sys.executable, "-m", "pagepool.cli", *words]

    def _pagepool(self, *words: str) -> str:
        return run(self._command(*words), self._environment)


def _reference(image: str) -> str:
    return f"{HOST}/{image}:latest"
