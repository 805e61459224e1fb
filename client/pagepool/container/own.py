"""Runs a container without any runtime installed: starts `pagepool.container.init`, and listens to it.

It does with the kernel's namespaces what runc does, but for this: there is no device controller; instead the program
has no CAP_MKNOD, and device nodes outside of /dev (in the image, in volumes) are no devices. Control groups of version
1 are not shown inside. The program is not process 1, which is ours, and reaps; so signals do what they do elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.container import cgroup
from pagepool.container.process import Task, close_all, container_error, exit_code, standard_input
from pagepool.errors import ContainerError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGES: Final = str(Path(__file__).parents[2])
_PROGRAM: Final = f"import sys; sys.path.append({_PACKAGES!r}); from pagepool.container import init; init.main()"


class OwnContainer:
    """See `process.Running`."""

    def __init__(self, task: Task) -> None:
        self._groups = cgroup.make_groups(task.config["linux"]["resources"], task.config["linux"]["cgroupsPath"])
        self._error: tuple[str, int] | None = None
        self.pid = 0
        self.started = False
        self.master: int | None = None
        self._told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = self._start(task, theirs)
        self._told.setblocking(False)
        self.status: int | None = self._told.fileno()
        self.child = self._process.pid

    def _start(self, task: Task, theirs: socket.socket) -> subprocess.Popen[bytes]:
        words = [str(task.bundle / "config.json"), str(theirs.fileno()), *map(str, self._groups)]
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, *words],
                stdin=subprocess.DEVNULL if task.terminal else standard_input(task),
                stdout=subprocess.DEVNULL if task.terminal else None,
                pass_fds=(theirs.fileno(),),
                process_group=0,
                cwd="/",
                env={},
            )
        except OSError as error:
            self._told.close()
            cgroup.remove_groups(self._groups)
            raise ContainerError(f"{sys.executable} cannot be started: {error.strerror}") from error

    def on_status(self) -> None:
        """Read what was told."""
        while self.status is not None:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._told, 65536, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self.status = None
                return
            self._take(json.loads(data), descriptors)

    def _take(self, message: Mapping[str, object], descriptors: list[int]) -> None:
        if descriptors:
            close_all(self.master)
            self.master = descriptors[0]
        if "pid" in message:
            self.pid = int(str(message["pid"]))
        if "started" in message:
            self.started = True
        if "error" in message:
            self._error = str(message["error"]), int(str(message["code"]))

    def send(self, number: int) -> None:
        """To the keeper, which hands it on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)

    def kill(self) -> None:
        """The keeper; the kernel kills init with it, and everything with init."""
        self.send(signal.SIGKILL)

    def finish(self) -> int:
        """What init ended with."""
        returncode = self._process.wait()
        self.on_status()
        if self._error is not None:
            raise container_error(*self._error)
        return exit_code(returncode)

    def close(self) -> None:
        """Kill what is left."""
        if self._process.poll() is None:
            self.kill()
            self._process.wait()
        self._told.close()
        close_all(self.master)
        cgroup.remove_groups(self._groups)
