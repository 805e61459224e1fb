"""What `bench mount` measures: ways to have an image's files in a container, behind one interface; and shared steps."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from pagepool.errors import PagepoolError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TIMEOUT_S: Final = 300.0


class BenchError(PagepoolError):
    """A step of a measurement failed, with what the program said."""


class Starter(Protocol):
    """One way to start containers of images. Not for several threads, but for `run`."""

    name: str
    """For people."""

    def start(self) -> None:
        """Begin with nothing: no image in storage, no process left from before. May be called again after `stop`."""

    def run(self, image: str, command: Sequence[str]) -> float:
        """Run a command in a container of an image, fetching whatever is not there; to its end.

        Returns:
            Seconds from the beginning to the first byte of its output.

        Raises:
            BenchError: it failed, or had no output.
        """

    def stop(self) -> None:
        """Unmount, end and remove everything. May be called at any time, more than once."""


class Subject(Starter, Protocol):
    """One way to have images in containers, and mounted. Not for several threads, but for `run`, `mount`, `unmount`."""

    def fill(self, image: str) -> None:
        """Have all of an image in storage."""

    def mount(self, image: str, path: Path) -> None:
        """Mount an image at an empty directory, writable, as for a container. `fill` came before."""

    def unmount(self, path: Path) -> None:
        """Undo a mount, and remove what was written."""

    def stored(self) -> Path:
        """The directory whose file system keeps what containers write."""


def first_output_s(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command to its end; seconds from its start to the first byte on its standard output.

    Raises:
        BenchError: it failed, had no output, or took minutes.
    """
    begun = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _TIMEOUT_S)
        got = os.read(process.stdout.fileno(), 1) if ready else b""
        took = time.monotonic() - begun
        if not ready:
            process.kill()
        _, said = process.communicate()
    if process.returncode or not got:
        text = said.decode(errors="replace").strip()[-1000:]
        raise BenchError(f"{' '.join(command)}: exit status {process.returncode}, output {bool(got)}: {text}")
    return took


def run(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, timeout_s: float = _TIMEOUT_S
) -> str:
    """Run a command to its end; what it printed.

    Raises:
        BenchError: it failed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=timeout_s,
    )
    if done.returncode:
        raise BenchError(f"{' '.join(words)}: exit status {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def drop_caches() -> None:
    """Have the kernel forget all pages and inodes that nobody uses."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def cached_bytes() -> int:
    """Bytes in the page cache of the whole machine."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "Cached":
            return int(rest.split()[0]) << 10
    raise BenchError("/proc/meminfo does not say what is cached")
