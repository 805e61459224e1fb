"""dockerd with its own directories and socket, started for a test and ended with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.tools import ToolError, require, run

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_TIMEOUT_S = 60.0
_OPTIONS = ("--iptables=false", "--ip6tables=false", "--bridge=none")


@dataclass(frozen=True, slots=True)
class Docker:
    """A docker daemon that is running; takes commands at its socket."""

    socket: Path

    def __call__(self, *argv: str | Path, stdin: str | None = None) -> str:
        """Run docker, and return what it printed."""
        config = {"DOCKER_CONFIG": str(self.socket.parent / "config")}
        return run(["docker", "-H", f"unix://{self.socket}", *argv], config, stdin=stdin)


@contextmanager
def running_docker() -> Iterator[Docker]:
    """A daemon with an empty storage for the length of the block. Skips the test without docker.

    It runs in mount and process namespaces of its own: when it ends, by whatever means, its containerd is gone, and
    so are its mounts.
    """
    require("docker", "dockerd", "unshare")
    # Not in pytest's directory: its containerd's sockets would have names too long for sockets.
    with tempfile.TemporaryDirectory(prefix="docker-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        socket, log_path = directory / "docker.sock", directory / "log"
        own = ("--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child")
        places = ("--data-root", directory / "data", "--exec-root", directory / "exec", "--pidfile", directory / "pid")
        argv = ["unshare", *own, "dockerd", *_OPTIONS, *map(str, places), "-H", f"unix://{socket}"]
        with log_path.open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _await(process, socket, log_path)
            yield Docker(socket)
        finally:
            _stop(process)


def _await(process: subprocess.Popen[bytes], socket: Path, log_path: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            run(["docker", "-H", f"unix://{socket}", "version"])
        except ToolError:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log_path.read_text(errors="replace")[-3000:]
                raise ToolError(f"dockerd did not start:\n{said}") from None
            time.sleep(0.1)
        else:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the daemon to end; kill it, with all in its process namespace, if it does not."""
    if process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in map(int, children):  # the daemon: unshare itself passes no signals on
            os.kill(child, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
