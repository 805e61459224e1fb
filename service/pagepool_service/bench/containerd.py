"""A containerd of a benchmark's own, beside it stargz-snapshotter if wanted: both in namespaces that end with them.

The daemons, and every container and mount that they make, are in a PID and a mount namespace. Whatever happens, nothing
is left but the directory once the first process in there has been killed: the kernel ends all others and undoes the
mounts. What containerd has elsewhere than it is told (/run/containerd) is hidden by a file system in memory.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.errors import UnreachableError
from pagepool_service.bench.origins import HOST
from pagepool_service.bench.subjects import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DAEMON: Final = "containerd"
SNAPSHOTTER: Final = "containerd-stargz-grpc"
CLIENT: Final = "ctr"
LAZY_CLIENT: Final = "ctr-remote"
"""`ctr` with commands for eStargz; the others are not always those of another version of containerd."""

_PROXY: Final = "stargz"
_HIDDEN: Final = "/run/containerd"
_START_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.02
_PATH_SIZE: Final = 107 - len("/containerd.ttrpc")
# What is left out is of no use here, and writes outside of the directory or takes time to start.
_CONFIGURATION: Final = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{directory}/containerd"
"""
_PLUGIN: Final = """\
[proxy_plugins.stargz]
  type = "snapshot"
  address = "{directory}/stargz"
"""
_SNAPSHOTTER: Final = """\
[[resolver.host."{host}".mirrors]]
  host = "{host}"
  insecure = true
"""
_HIDE: Final = f"mkdir -p {_HIDDEN} && mount -t tmpfs tmpfs {_HIDDEN} || exit"


class Containerd:
    """containerd, running from `start` to `stop`.

    Args:
        directory: for all that it keeps, short, since sockets are in it; made and removed here.
        environment: of its processes.
        enter: what to put before a command, to run it where the daemons are to run.
        lazy: with stargz-snapshotter, which fetches from `HOST`.
    """

    def __init__(
        self, directory: Path, environment: Mapping[str, str], enter: Sequence[str] = (), *, lazy: bool = False
    ) -> None:
        self._directory, self._enter, self._lazy = directory, enter, lazy
        self._environment = {**environment, "TMPDIR": str(directory)}
        self._process: subprocess.Popen[bytes] | None = None
        self._group = f"pagepool-bench-{os.getpid()}"  # containerd's name space, and its containers' control groups

    def start(self) -> None:
        """Start with nothing; returns when the daemons take requests.

        Raises:
            UnreachableError: they did not start; with what they said.
            BenchError: the directory's path is too long.
        """
        if len(os.fsencode(self._directory)) > _PATH_SIZE:
            raise BenchError(f"{self._directory}: too long for the sockets in it; give a shorter --work")
        self._directory.mkdir()
        self._write("containerd.toml", _CONFIGURATION + (_PLUGIN if self._lazy else ""))
        self._write("stargz.toml", _SNAPSHOTTER)
        script = f"{_HIDE}; {self._snapshotter() if self._lazy else ''}exec {self._daemon()}"
        words = ["setpriv", "--pdeathsig", "KILL", *self._enter, "unshare", "--mount", "--propagation", "private"]
        words += ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for us; we end it in our own time
            )
        for name in ("containerd", *(("stargz",) if self._lazy else ())):
            self._await(self._process, self._directory / name)

    def command(self, client: str, *words: str | Path) -> list[str]:
        """A command of CLIENT or LAZY_CLIENT, run where the daemons are: meanwhile it makes mounts of its own."""
        assert self._process is not None
        names = Path("/proc", str(self._process.pid), "ns")
        places = [f"--net={names / 'net'}", f"--mount={names / 'mnt'}", f"--pid={names / 'pid_for_children'}"]
        options = ["--address", str(self._directory / "containerd"), "--namespace", self._group]
        return ["nsenter", *places, client, *options, *map(str, words)]

    def stop(self) -> None:
        """Kill everything and remove everything. May be called at any time, more than once.

        Raises:
            BenchError: it does not end.
        """
        process, self._process = self._process, None
        if process is not None:
            # The first in its namespace: all others go with it, and it ends after them. It may not be there yet.
            for pid in _children(process.pid) or [process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                process.kill()
                process.wait()
                raise BenchError(f"{DAEMON} did not end when it was killed") from error
        _remove(self._directory)
        for place in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
            for group in (*place.glob(f"{self._group}/*/"), place / self._group):
                with suppress(OSError):
                    group.rmdir()

    def _write(self, name: str, text: str) -> None:
        (self._directory / name).write_text(text.format(directory=self._directory, host=HOST))

    def _daemon(self) -> str:
        return shlex.join([DAEMON, "--config", str(self._directory / "containerd.toml")])

    def _snapshotter(self) -> str:
        options = ["--address", str(self._directory / "stargz"), "--root", str(self._directory / "lazy")]
        return shlex.join([SNAPSHOTTER, *options, "--config", str(self._directory / "stargz.toml")]) + " & "

    def _await(self, process: subprocess.Popen[bytes], path: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _listens(path):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self._directory / "log").read_text(errors="replace")[-1000:].strip()
                raise UnreachableError(path.name, f"it did not start: {said}")
            time.sleep(_POLL_S)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _remove(directory: Path) -> None:
    """Remove what no process has any more, but the kernel perhaps for a moment."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while directory.exists():
        try:
            shutil.rmtree(directory)
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchError(f"{directory}: {error.strerror}") from error
            time.sleep(_POLL_S)
