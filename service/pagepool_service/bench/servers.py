"""The registries that are measured, each a process of its own over an empty directory, ended after the measurement.

docker-registry runs with its defaults on the local file system: it keeps blobs as they come, and calls fsync on
nothing. Access logs are off in both.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import UnreachableError
from pagepool.pool.door import door_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PAGEPOOL = "pagepool"
PEER = "docker-registry"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_READY = re.compile(r"serving on http://([0-9.]+):([0-9]+)")
_PR_SET_PDEATHSIG = 1
_CONFIGURATION = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: "{root}"}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A registry that is running.

    Args:
        kind: PAGEPOOL or PEER.
        host: where it listens.
        port: where it listens.
        pid: of its first process.
        data: everything it keeps is below.
    """

    kind: str
    host: str
    port: int
    pid: int
    data: Path


@dataclass(frozen=True, slots=True)
class Launcher:
    """How to start them.

    Args:
        environment: of the processes.
        workers: HTTP worker processes of pagepool; docker-registry uses all processors by itself.
        options: more, of `pagepool serve`.
    """

    environment: Mapping[str, str]
    workers: int
    options: Sequence[str] = ()

    @contextmanager
    def run(self, kind: str, directory: Path) -> Iterator[Server]:
        """Run a registry over an empty directory for the length of the block; then remove the directory.

        Raises:
            UnreachableError: it did not start.
        """
        directory.mkdir()
        try:
            with self._pagepool(directory) if kind == PAGEPOOL else self._peer(directory) as server:
                yield server
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            shutil.rmtree(in_memory(directory), ignore_errors=True)
            door_path(in_memory(directory)).unlink(missing_ok=True)

    @contextmanager
    def _pagepool(self, directory: Path) -> Iterator[Server]:
        data, log = directory / "data", directory / "log"
        cache = in_memory(directory)
        options = ["--data", str(data), "--listen", "127.0.0.1:0", "--workers", str(self.workers)]
        options += ["--cache-dir", str(cache), *self.options]
        command = [sys.executable, "-m", "pagepool.cli", "serve", *options]
        with self._process(command, log) as process:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not (ready := _READY.search(log.read_text(errors="replace"))):
                _check(PAGEPOOL, process, log, deadline)
            yield Server(PAGEPOOL, ready[1], int(ready[2]), process.pid, data)

    @contextmanager
    def _peer(self, directory: Path) -> Iterator[Server]:
        data, log, configuration = directory / "data", directory / "log", directory / "config.yml"
        host, port = "127.0.0.1", _free_port()
        configuration.write_text(_CONFIGURATION.format(root=data, port=port))
        with self._process(["docker-registry", "serve", str(configuration)], log) as process:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not _listens(host, port):
                _check(PEER, process, log, deadline)
            yield Server(PEER, host, port, process.pid, data)

    @contextmanager
    def _process(self, command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self.environment, "OTEL_TRACES_EXPORTER": "none"},
                start_new_session=True,  # Ctrl-C is for us; we end it in our own time
                preexec_fn=_die_with_parent,
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def in_memory(directory: Path) -> Path:
    """Where a server over a directory keeps its pool: in memory, as it does by default, under a name of its own."""
    memory = Path("/dev/shm")
    name = f"pagepool-bench-{blake3_raw(os.fsencode(directory.absolute()))[:8].hex()}"
    return memory / name if memory.is_dir() else directory / "cache"


def peer_installed() -> bool:
    """Tell whether docker-registry is there."""
    return shutil.which(PEER) is not None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _check(kind: str, process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    """Wait a moment for a server that is starting."""
    if process.poll() is not None or time.monotonic() > deadline:
        raise UnreachableError(kind, f"it did not start: {log.read_text(errors='replace')[-1000:].strip()}")
    time.sleep(0.02)


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
