"""Processes, by what the kernel knows of them: memory, processor time, descendants, and dying with one's parent.

Nothing is raised for a process that has ended.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1


def process_tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # ended meanwhile
            continue
        for child in children:
            yield from process_tree(int(child))


def size_fields(path: Path) -> dict[str, int]:
    """The fields of a file of /proc that are sizes, in bytes; none if the process has ended or is somebody else's."""
    found: dict[str, int] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) << 10
    return found


def memory_of(pid: int | str = "self") -> dict[str, int]:
    """What a process has in memory, bytes, by the kernel's names: ``Rss``, ``Pss``, ``Private_Dirty`` …"""
    return size_fields(Path(f"/proc/{pid}/smaps_rollup"))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def has_ended(pid: int) -> bool:
    """Whether a process is no more, with all of its threads, or only waits for its parent to take note."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # no number of a process
        return False
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(fd)


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent ends, which is `parent`, or has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
