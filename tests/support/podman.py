"""podman and buildah on a storage of their own, which nothing else on the machine sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.tools import PRIVATELY, ToolError, require, run

if TYPE_CHECKING:
    from pathlib import Path

_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
"""


@dataclass(frozen=True, slots=True)
class Podman:
    """Commands over one storage. Not for several at once.

    Args:
        directory: of the storage.
        driver: overlay where it works, else vfs.
    """

    directory: Path
    driver: str

    @classmethod
    def create(cls, directory: Path) -> Podman:
        """Make a storage in a directory, or skip the test."""
        require("podman", "buildah", "runc", "unshare")
        directory.mkdir()
        (directory / "containers.conf").write_text(_CONFIGURATION)
        overlay = cls(directory, "overlay")
        try:
            # Only a container shows whether overlay can be mounted here; below another overlayfs it cannot.
            overlay.buildah("rm", overlay.buildah("from", "scratch").strip())
        except ToolError:
            return cls(directory, "vfs")
        return overlay

    def podman(self, *argv: str | Path) -> str:
        """Run podman."""
        return self._run("podman", (*self._storage(), "--tmpdir", str(self.directory / "tmp")), argv)

    def buildah(self, *argv: str | Path) -> str:
        """Run buildah."""
        return self._run("buildah", self._storage(), argv)

    def _storage(self) -> tuple[str, ...]:
        storage, run_dir = self.directory / "storage", self.directory / "run"
        return ("--root", str(storage), "--runroot", str(run_dir), "--storage-driver", self.driver)

    def _run(self, tool: str, options: tuple[str, ...], argv: tuple[str | Path, ...]) -> str:
        environment = {"CONTAINERS_CONF": str(self.directory / "containers.conf"), "TMPDIR": str(self.directory)}
        return run([*PRIVATELY, tool, *options, *argv], environment)
