"""podman and buildah on a storage of their own, which nothing else on the machine sees."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.tools import PRIVATELY, ToolError, require, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TIMEOUT_S = 120
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

    def podman(self, *argv: str | Path, stdin: str | None = None) -> str:
        """Run podman."""
        return self._run("podman", (*self._storage(), "--tmpdir", str(self.directory / "tmp")), argv, stdin)

    def attempt(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run podman, which may fail."""
        tool = ("podman", *self._storage(), "--tmpdir", str(self.directory / "tmp"), *argv)
        return subprocess.run(
            [*PRIVATELY, *map(str, tool)],
            env={**os.environ, **self._environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )

    def debug(self, environment: Mapping[str, str], *argv: str | Path) -> str:
        """Run podman with more variables. Returns what it says of what it does, which it says on standard error."""
        tool = ("podman", *self._storage(), "--tmpdir", str(self.directory / "tmp"), "--log-level", "debug", *argv)
        command = ("sh", "-c", 'exec "$@" 2>&1', "sh", *tool)
        return run([*PRIVATELY, *command], {**self._environment(), **environment})

    def buildah(self, *argv: str | Path) -> str:
        """Run buildah."""
        return self._run("buildah", self._storage(), argv)

    def _storage(self) -> tuple[str, ...]:
        storage, run_dir = self.directory / "storage", self.directory / "run"
        return ("--root", str(storage), "--runroot", str(run_dir), "--storage-driver", self.driver)

    def _run(self, tool: str, options: tuple[str, ...], argv: tuple[str | Path, ...], stdin: str | None = None) -> str:
        return run([*PRIVATELY, tool, *options, *argv], self._environment(), stdin=stdin)

    def _environment(self) -> dict[str, str]:
        return {"CONTAINERS_CONF": str(self.directory / "containers.conf"), "TMPDIR": str(self.directory)}


@contextmanager
def own_storage() -> Iterator[Podman]:
    """Make a storage for the length of the block, or skip the test."""
    require("podman", "buildah", "runc", "unshare")
    # Not in pytest's directory: podman takes no path of more than 50 characters for what it keeps while it runs.
    directory = Path(tempfile.mkdtemp(prefix="podman-"))
    try:
        (directory / "containers.conf").write_text(_CONFIGURATION)
        yield Podman(directory, _driver(directory))
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a storage, into which a process that cleans up behind a container may still write for a while."""
    for _ in range(100):
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    shutil.rmtree(directory)


def _driver(directory: Path) -> str:
    """overlay where it works. Only a container shows whether it can be mounted; below another overlayfs it cannot."""
    probe = Podman(directory, "overlay")
    try:
        probe.buildah("rm", probe.buildah("from", "scratch").strip())
    except ToolError:
        shutil.rmtree(directory / "storage", ignore_errors=True)
        return "vfs"
    return "overlay"
