"""Runs containers without any runtime installed: starts `init`, or `join` for one that runs, and listens to it.

It does with the kernel's namespaces what runc does, but for this: there is no device controller; instead the program
has no CAP_MKNOD, and device nodes outside of /dev (in the image, in volumes) are no devices. Control groups of version
1 are not shown inside. The program is not process 1, which is ours, and reaps; so signals do what they do elsewhere.

Our own processes in a container cannot be looked into, and what they execute is on a mount that cannot be written to:
an image whose command is a link to /proc/self/exe runs this Python, with the image's libraries, and might write to it.
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
from typing import TYPE_CHECKING, Any, Final

from pagepool.container import cgroup
from pagepool.container.process import Task, close_all, container_error, exit_code, standard_input
from pagepool.container.program import FILTER, KILL
from pagepool.errors import ContainerError
from pagepool.linux import mounts
from pagepool.linux.descriptors import receive_descriptors

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGES: Final = str(Path(__file__).parents[2])
_PROGRAM: Final = (
    "import os, sys; os.close(int(sys.argv.pop(1))); "
    f"sys.path.append({_PACKAGES!r}); from pagepool.container import {{0}}; {{0}}.main()"
)


class _Keeper:
    """See `process.Running`. The child is one of `init` or `join`, which says over a socket what happens."""

    def __init__(self, module: str, task: Task, words: list[str], passed: tuple[int, ...] = ()) -> None:
        self._error: tuple[str, int] | None = None
        self.pid = 0
        self.started = False
        self.master: int | None = None
        _write_filter(task)
        self._told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = _start(module, task, [str(theirs.fileno()), *words], (theirs.fileno(), *passed))
        except BaseException:
            self._told.close()
            raise
        self._told.setblocking(False)
        self.status: int | None = self._told.fileno()
        self.child = self._process.pid

    def on_status(self) -> None:
        """Read what was told."""
        while self.status is not None:
            try:
                data, descriptors = receive_descriptors(self._told, 65536, 1)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self.status = None
                return
            self._take(json.loads(data), descriptors)

    def _take(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        if descriptors:
            close_all(self.master)
            self.master = descriptors[0]
        if "pid" in message:
            self.pid = int(message["pid"])
        if "started" in message:
            self.started = True
        if "error" in message:
            self._error = str(message["error"]), int(message["code"])

    def send(self, number: int) -> None:
        """To the keeper, which hands it on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)

    def kill(self) -> None:
        """The keeper; the kernel kills its child with it."""
        self.send(signal.SIGKILL)

    def finish(self) -> int:
        """What the keeper ended with, which is what its child did."""
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


class OwnContainer(_Keeper):
    """A container of our own runtime: with the keeper's child, init, everything in it ends."""

    def __init__(self, task: Task) -> None:
        self._groups = cgroup.make_groups(task.config["linux"]["resources"], task.config["linux"]["cgroupsPath"])
        try:
            super().__init__("init", task, [str(task.bundle / "config.json"), *map(str, self._groups)])
        except BaseException:
            cgroup.remove_groups(self._groups)
            raise

    def close(self) -> None:
        """Kill what is left, and remove the groups."""
        super().close()
        cgroup.remove_groups(self._groups)


class OwnExec(_Keeper):
    """A program in a container of our own runtime.

    Args:
        task: its configuration is the container's, with the program's ``process``; so is ``config.json``.
        first: a descriptor of the container's first process.
        root: a descriptor of its root.
    """

    def __init__(self, task: Task, first: int, root: int) -> None:
        words = [str(task.bundle / "config.json"), str(first), str(root)]
        super().__init__("join", task, words, (first, root))

    def kill(self) -> None:
        """By the keeper, which kills its child: that may have become another user, and outlive it."""
        self.send(KILL)


def _write_filter(task: Task) -> None:
    """Have the filter of system calls made, for `program.read_filter`; an empty one is none."""
    profile = task.config["linux"].get("seccomp")
    program = b""
    if profile:
        from pagepool.container.seccomp import find_filter

        program = find_filter(profile, task.bundle.parents[1] / "filters")
    (task.bundle / FILTER).write_bytes(program)


def _start(module: str, task: Task, words: list[str], passed: tuple[int, ...]) -> subprocess.Popen[bytes]:
    python = -1
    try:
        python = mounts.clone_mount(Path(sys.executable).resolve())
        mounts.restrict_mount(python, mounts.ATTR_RDONLY)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM.format(module), str(python), *words],
            executable=f"/proc/self/fd/{python}",
            stdin=subprocess.DEVNULL if task.terminal else standard_input(task),
            stdout=subprocess.DEVNULL if task.terminal else None,
            pass_fds=(python, *passed),
            process_group=0,
            cwd="/",
            env={},
        )
    except OSError as error:
        raise ContainerError(f"{sys.executable} cannot be started: {error.strerror}") from error
    finally:
        close_all(python if python >= 0 else None)
