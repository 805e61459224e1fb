"""Real tools, run as processes: looked for, run to their end, and kept from leaving anything on the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PACKAGES = {
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "mksquashfs": "squashfs-tools",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""Tool -> the Debian package that has it, where the two have different names."""

_TIMEOUT_S = 300.0

# Container tools note things below /var/lib/containers whatever their --root is, and leave mounts when they are
# killed. In a mount namespace of their own they leave neither.
_CONTAINERS_DIR = "/var/lib/containers"
_HIDE = 'mkdir -p "$0" && mount -t tmpfs tmpfs "$0" && exec "$@"'
PRIVATELY = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _HIDE, _CONTAINERS_DIR)


class ToolError(AssertionError):
    """A tool failed; the message ends with what it said."""


def require(*tools: str, root: bool = True) -> None:
    """Skip the test, saying why, unless all these programs are installed and we are root."""
    missing = [f"{tool} (apt-get install {PACKAGES.get(tool, tool)})" for tool in tools if shutil.which(tool) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def run(
    argv: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    timeout_s: float = _TIMEOUT_S,
    stdin: str | None = None,
) -> str:
    """Run a tool to its end and return what it printed.

    Args:
        stdin: what it reads from its standard input; nothing without it.

    Raises:
        ToolError: it failed; with the end of what it said.
    """
    command = [str(word) for word in argv]
    done = subprocess.run(
        command,
        env=None if env is None else {**os.environ, **env},
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise ToolError(f"{' '.join(command)[:500]}: exit status {done.returncode}\n{said}")
    return done.stdout
