"""Clients that a coordinator starts on its own machine: processes, each in a session of its own.

A client stops when its standard input ends: so none outlives its coordinator, however that dies. Ctrl-C reaches the
coordinator alone, which has the clients hand in what they measured.
"""

from __future__ import annotations

import platform
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from pagepool.errors import PagepoolError
from pagepool.mount import unmount
from pagepool.mount.kernel import unmount_kernel
from pagepool.mount.mountinfo import mount_points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pagepool.load.coordinator import Coordinator

_END_S: Final = 15.0
_LOOK_S: Final = 0.05


class LocalClients:
    """Clients on this machine. A context manager: in the end none is left, nor anything that they mounted.

    Args:
        command: of the client whose directory is given.
        count: how many.
        directory: for their directories and logs.
        password: to be written to each, as a line; "" for none.
    """

    def __init__(self, command: Callable[[Path], Sequence[str]], count: int, directory: Path, password: str) -> None:
        self._command, self._count, self._directory, self._password = command, count, directory, password
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._host = platform.node()

    def __enter__(self) -> Self:
        try:
            for number in range(1, self._count + 1):
                self._start(number)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ended(self) -> Iterator[tuple[int, str]]:
        """Those that have ended: number of the process, and how, with the last line that it printed."""
        for process, log in self._running:
            status = process.poll()
            if status is not None:
                lines = log.read_text(errors="replace").strip().splitlines()
                yield process.pid, f"it ended with status {status}" + (f": {lines[-1]}" if lines else "")

    def tell(self, coordinator: Coordinator) -> int:
        """Tell a coordinator whose processes have ended. Returns how many run."""
        left = len(self._running)
        for pid, how in self.ended():
            coordinator.lose(pid, self._host, how)
            left -= 1
        return left

    def _start(self, number: int) -> None:
        work = self._directory / f"client-{number}"
        work.mkdir()
        log = self._directory / f"client-{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(work), stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        self._running.append((process, log))
        if self._password:
            with suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.write(f"{self._password}\n".encode())
                process.stdin.flush()

    def _end(self) -> None:
        for process, _ in self._running:
            with suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.close()
        deadline = time.monotonic() + _END_S
        for process, _ in self._running:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            if process.poll() is None:
                process.kill()
                process.wait()
        unmount_below(self._directory)


def unmount_below(directory: Path) -> None:
    """Unmount whatever a client that was killed has left below a directory."""
    top = directory.resolve()
    for point in reversed(mount_points()):
        if point.path.is_relative_to(top):
            with suppress(PagepoolError, OSError):
                unmount(point.path, force=True)
                continue
            with suppress(PagepoolError, OSError):
                unmount_kernel(point.path, force=True)
