"""Mount and process namespaces of a test's own, for daemons that start others: all of it ends with the block.

The first process in there only waits. When it is killed, by whatever means, the kernel kills all others and undoes the
mounts: what is left is a directory. Mounts that are made outside meanwhile are not seen in there, and the other way
round; the network is the machine's.
"""

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
    from collections.abc import Callable, Iterator, Mapping, Sequence

_TIMEOUT_S = 60.0
_POLL_S = 0.02
# It takes in the children of whoever ended before them, as process 1 has to; a shell does while it waits.
_WAIT = "while :; do sleep 3600 & wait; done"


@dataclass(slots=True)
class Daemon:
    """A daemon in the namespaces.

    Args:
        name: for messages.
        pid: its process, as it is called outside.
        log: what it prints.
    """

    name: str
    pid: int
    log: Path
    _starter: subprocess.Popen[bytes]

    def await_ready(self, is_ready: Callable[[], bool]) -> None:
        """Wait until it is.

        Raises:
            ToolError: it ended, or is not for a minute; with the end of what it printed.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        while not is_ready():
            if self._starter.poll() is not None or time.monotonic() > deadline:
                raise ToolError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(_POLL_S)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and wait until it ends, which it may have done before. Returns its exit status.

        Raises:
            ToolError: it does not end; it is killed then.
        """
        if self._starter.poll() is None:
            os.kill(self.pid, how)
        try:
            return self._starter.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self._starter.wait(_TIMEOUT_S)
            raise ToolError(f"{self.name} does not end:\n{self.log.read_text(errors='replace')[-3000:]}") from None


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Mount and process namespaces, and a directory for what is started there: its name is short, for sockets."""

    directory: Path
    pid: int
    """Of the first process."""

    def command(self, *argv: str | Path) -> list[str]:
        """A command, run in the namespaces."""
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--pid=/proc/{self.pid}/ns/pid", *map(str, argv)]

    def run(self, *argv: str | Path) -> str:
        """Run a command in the namespaces to its end, and return what it printed."""
        return run(self.command(*argv))

    def start(self, name: str, *argv: str | Path, env: Mapping[str, str] | None = None) -> Daemon:
        """Start a daemon in the namespaces, with these variables besides. What it prints is added to NAME.log."""
        path = self.directory / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                self.command(*argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.directory), **(env or {})},
            )
        # nsenter waits for what it runs, and passes no signals on.
        return Daemon(name, _child(process), path, process)

    def mounts(self) -> list[str]:
        """Where something is mounted in there, below the directory."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith(f"{self.directory}/")]


@contextmanager
def own_namespaces(hidden: Sequence[str] = ()) -> Iterator[Namespaces]:
    """Namespaces and a directory for the length of the block.

    Args:
        hidden: directories of the machine, in whose place the namespaces have empty ones.
    """
    require("nsenter", "setpriv", "unshare")
    script = "".join(f"mkdir -p {one} && mount -t tmpfs tmpfs {one} || exit; " for one in hidden)
    own = ("--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child")
    with tempfile.TemporaryDirectory(prefix="ns-") as name:
        ready = Path(name, "ready")
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", *own, "sh", "-c", f"{script}: >{ready}; {_WAIT}"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            first = _child(process)
            _await(ready.exists, process)
            yield Namespaces(Path(name), first)
        finally:
            process.kill()
            process.wait()
            _await(lambda: not Path(f"/proc/{first}").exists())


def _child(process: subprocess.Popen[bytes]) -> int:
    """The only child of a process, once it has one."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    _await(lambda: path.read_text() != "", process)
    (pid,) = map(int, path.read_text().split())
    return pid


def _await(is_so: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not is_so():
        if (process is not None and process.poll() is not None) or time.monotonic() > deadline:
            raise ToolError("the namespaces are not made, or do not end")
        time.sleep(_POLL_S)
