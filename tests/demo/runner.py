"""Running `pagepool demo` as a program, and finding every process that belongs to a run.

Each run gets a variable of its own in its environment, which all its processes inherit: whoever has it
belongs to the run, whatever its parent is by now.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_MARK = "DEMO_TEST_RUN"
_TIMEOUT_S = 120.0
DEMO = (sys.executable, "-P", "-m", "pagepool.cli", "demo")


class Running:
    """A command that was started, with all processes that come of it.

    Args:
        command: what to run.
        temporary: its directory for temporary files.
    """

    def __init__(self, command: Sequence[str], temporary: Path) -> None:
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        name, _, value = self._mark.partition("=")
        paths = [str(_ROOT / "client"), str(_ROOT / "service"), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, paths))
        environment = {**os.environ, name: value, "TMPDIR": str(temporary), "PYTHONPATH": path}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=temporary,
        )

    def read_lines(self, count: int) -> list[str]:
        """The next lines of its output; fewer if it ends before."""
        assert self.process.stdout is not None
        return [line for _ in range(count) if (line := self.process.stdout.readline())]

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end. Returns exit status, and what it printed and was not read."""
        printed, errors = self.process.communicate(timeout=_TIMEOUT_S)
        return self.process.returncode, printed, errors

    def children(self) -> dict[int, tuple[int, str]]:
        """Its processes but the first: id -> parent and command."""
        return {pid: found for pid, found in self._processes().items() if pid != self.process.pid}

    def left(self) -> list[str]:
        """The commands of those of its processes that still run."""
        return [command for _, command in self._processes().values()]

    def wait_forked(self) -> None:
        """Wait until it has a child."""
        self._wait(lambda: bool(self.children()))

    def wait_gone(self) -> None:
        """Wait until it has no process left."""
        self._wait(lambda: not self.left())

    def kill(self, pid: int) -> None:
        """Kill one of its processes."""
        assert pid in self._processes()
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End what a failed test has left."""
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, self.left()
            time.sleep(0.005)

    def _processes(self) -> dict[int, tuple[int, str]]:
        found: dict[int, tuple[int, str]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # ended meanwhile, or another user's
                continue
            if state != "Z":
                found[int(entry.name)] = int(parent), command
        return found


Start = Callable[..., Running]
"""Starts a small demo: takes the directory for temporary files, then arguments; or a whole command instead."""


def start_demo(temporary: Path, *arguments: str, command: Sequence[str] | None = None) -> Running:
    """Start a small demo; or another command, as one."""
    size = () if "--size" in arguments else ("--size", "12MB")
    return Running(command or [*DEMO, *size, *arguments], temporary)
