"""dockerd with its own directories and socket, started for a test and ended with all that it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
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

    def __call__(self, *argv: str | Path) -> str:
        """Run docker, and return what it printed."""
        config = {"DOCKER_CONFIG": str(self.socket.parent / "config")}
        return run(["docker", "-H", f"unix://{self.socket}", *argv], config)


@contextmanager
def running_docker(directory: Path) -> Iterator[Docker]:
    """A daemon for the length of the block, with everything of it in `directory`. Skips the test without docker.

    It runs in mount and process namespaces of its own: when it ends, by whatever means, its containerd is gone, and
    so are its mounts.
    """
    require("docker", "dockerd", "unshare")
    directory.mkdir()
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
        # Left to pytest, which keeps directories of past runs, it would stay for days: images, unpacked.
        shutil.rmtree(directory / "data", ignore_errors=True)


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
