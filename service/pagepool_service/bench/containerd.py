"""A containerd of a benchmark's own, beside it a proxy snapshotter if wanted: both in namespaces that end with them.

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.errors import UnreachableError
from pagepool_service.bench.subjects import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DAEMON: Final = "containerd"
CLIENT: Final = "ctr"
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
disabled_plugins = [{disabled}]
[grpc]
  address = "{directory}/containerd"
"""
_OPT: Final = '"io.containerd.internal.v1.opt"'
_CRI: Final = '"io.containerd.grpc.v1.cri"'
# Without restrict_oom_score_adj no sandbox starts where root may not lower it. The runtime is the usual one: containerd
# 2 makes its own kind of configuration of this, and leaves out the snapshotter where there is no runtime.
_PODS: Final = """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  restrict_oom_score_adj = true
  stats_collect_period = {stats_s}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    disable_snapshot_annotations = false
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{directory}/hosts"
"""
_PROXY: Final = """\
[proxy_plugins.{snapshotter}]
  type = "snapshot"
  address = "{address}"
"""
_REGISTRY: Final = """\
server = "http://{host}"
[host."http://{host}"]
  capabilities = ["pull", "resolve"]
"""
_HIDE: Final = f"mkdir -p {_HIDDEN} && mount -t tmpfs tmpfs {_HIDDEN} || exit"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy snapshotter, to run beside containerd.

    Args:
        name: as containerd calls it. It listens at a socket of that name in containerd's directory.
        prepare: is told that directory, writes there what it needs, and returns the command, for a shell.
    """

    name: str
    prepare: Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What containerd is told so that it runs pods.

    Args:
        host: a registry that speaks plain HTTP, ``HOST:PORT``.
        sandbox_image: what pods begin with.
        stats_s: how often it counts what containers have written, in seconds.
    """

    host: str
    sandbox_image: str
    stats_s: int = 10


def write_configuration(
    directory: Path, snapshotter: str = "overlayfs", address: Path | None = None, pods: PodSettings | None = None
) -> Path:
    """Write containerd's configuration. Returns the file.

    Args:
        directory: for all that it keeps; it listens at ``containerd`` in there.
        snapshotter: which one pods use; one of containerd's own without an address.
        address: the socket of a proxy snapshotter of that name.
        pods: None: only its own clients ask it.
    """
    text = _CONFIGURATION + (_PODS if pods else "") + (_PROXY if address else "")
    names = {"directory": directory, "snapshotter": snapshotter, "address": address}
    disabled = _OPT if pods else f"{_CRI}, {_OPT}"
    if pods:
        names |= {"sandbox_image": pods.sandbox_image, "stats_s": pods.stats_s}
        (directory / "cni").mkdir()
        (directory / "hosts" / pods.host).mkdir(parents=True)
        (directory / "hosts" / pods.host / "hosts.toml").write_text(_REGISTRY.format(host=pods.host))
    path = directory / "containerd.toml"
    path.write_text(text.format(disabled=disabled, **names))
    return path


def listens(path: Path) -> bool:
    """Whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Containerd:
    """containerd, running from `start` to `stop`.

    Args:
        directory: for all that it keeps, short, since sockets are in it; made and removed here.
        environment: of its processes.
        enter: what to put before a command, to run it where the daemons are to run.
        proxy: a snapshotter to start with it.
        pods: so that it runs pods, with that snapshotter if there is one.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        enter: Sequence[str] = (),
        *,
        proxy: Proxy | None = None,
        pods: PodSettings | None = None,
    ) -> None:
        self._directory, self._enter, self._proxy, self._pods = directory, enter, proxy, pods
        self._environment = {**environment, "TMPDIR": str(directory)}
        self._process: subprocess.Popen[bytes] | None = None
        self.group: Final = f"pagepool-bench-{os.getpid()}"
        """containerd's name space, and its containers' control groups."""
        self.socket: Final = directory / "containerd"

    def start(self) -> None:
        """Start with nothing; returns when the daemons take requests.

        Raises:
            UnreachableError: they did not start; with what they said.
            BenchError: the directory's path is too long.
        """
        if len(os.fsencode(self._directory)) > _PATH_SIZE:
            raise BenchError(f"{self._directory}: too long for the sockets in it; give a shorter --work")
        self._directory.mkdir()
        proxy = self._proxy
        if proxy is None:
            before, configuration = "", write_configuration(self._directory, pods=self._pods)
        else:
            before, address = f"{proxy.prepare(self._directory)} & ", self._directory / proxy.name
            configuration = write_configuration(self._directory, proxy.name, address, self._pods)
        # containerd waits for us: it tries a snapshotter that does not listen yet again only after seconds.
        script = f"{_HIDE}; {before}read go && exec {shlex.join([DAEMON, '--config', str(configuration)])}"
        words = ["setpriv", "--pdeathsig", "KILL", *self._enter, "unshare", "--mount", "--propagation", "private"]
        words += ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for us; we end it in our own time
            )
        if proxy is not None:
            self._await(self._process, self._directory / proxy.name)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as commands:  # it has ended, as the next line says
            commands.write(b"go\n")
        self._await(self._process, self.socket)

    def command(self, client: str, *words: str | Path) -> list[str]:
        """A command of CLIENT, or of one like it, run where the daemons are: meanwhile it makes mounts of its own."""
        return self.inside(client, "--address", self.socket, "--namespace", self.group, *words)

    def inside(self, *words: str | Path) -> list[str]:
        """A command, run where the daemons are."""
        assert self._process is not None
        names = Path("/proc", str(self._process.pid), "ns")
        places = [f"--net={names / 'net'}", f"--mount={names / 'mnt'}", f"--pid={names / 'pid_for_children'}"]
        return ["nsenter", *places, *map(str, words)]

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
            for group in (*place.glob(f"{self.group}/*/"), place / self.group):
                with suppress(OSError):
                    group.rmdir()

    def _await(self, process: subprocess.Popen[bytes], path: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not listens(path):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self._directory / "log").read_text(errors="replace")[-1000:].strip()
                raise UnreachableError(path.name, f"it did not start: {said}")
            time.sleep(_POLL_S)


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
