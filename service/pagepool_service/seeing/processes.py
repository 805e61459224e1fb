"""What the kernel says of the service's processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessFigures(NamedTuple):
    """Of one process: resident bytes, open files, seconds of processor time."""

    resident_bytes: float
    open_files: float
    cpu_s: float


def look(pid: int) -> ProcessFigures | None:
    """The figures of a process; None if it has just ended."""
    process = Path("/proc", str(pid))
    try:
        resident = int((process / "statm").read_text().split()[1]) * _PAGE
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        files = sum(1 for _ in (process / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return ProcessFigures(resident, files, (int(fields[11]) + int(fields[12])) / _TICKS)
