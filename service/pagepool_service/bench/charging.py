"""How many bytes of page cache something brings in: of a process in a memory cgroup of its own, which nothing disturbs.

The kernel charges a page of the page cache to the cgroup of the process that brought it in, and pages that are there
already to nobody. Where no memory cgroup can be made, the whole machine's page cache is looked at instead.
"""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool_service.bench.subjects import BenchError, cached_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOTS: Final = ((Path("/sys/fs/cgroup/memory"), "cache"), (Path("/sys/fs/cgroup"), "file"))
"""Of version 1 and of version 2, with the field of memory.stat."""

_numbers = itertools.count()


def brought_in(act: Callable[[], object]) -> int:
    """Do something in a child process; bytes of page cache that it brought in.

    Raises:
        BenchError: it failed.
    """
    found = _make_cgroup()
    if found is None:
        before = cached_bytes()
        _in_child(act, None)
        return cached_bytes() - before
    group, field = found
    try:
        _in_child(act, group)
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == field:
                return int(value)
    finally:
        group.rmdir()
    raise BenchError(f"{group}: memory.stat has no {field}")


def _make_cgroup() -> tuple[Path, str] | None:
    for root, field in _ROOTS:
        group = root / f"pagepool-bench-{os.getpid()}-{next(_numbers)}"
        with suppress(OSError):
            group.mkdir()
            if (group / "memory.stat").exists():
                return group, field
            group.rmdir()
    return None


def _in_child(act: Callable[[], object], group: Path | None) -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            if group is not None:
                (group / "cgroup.procs").write_text("0")
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise BenchError(f"what was to be measured failed: {os.waitstatus_to_exitcode(status)}")
