"""Finds containers that other processes run, by their names, and processes of theirs.

A process is found as a descriptor of it (pidfd), taken while its owner was alive and above it: whatever becomes of the
pids, it is never another one.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.container.records import DEAD, DEFAULT_DIRECTORY, Record, list_containers
from pagepool.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

_LEAST_PREFIX: Final = 3
_MOST_PARENTS: Final = 16


class ContainerUnknownError(NotFoundError):
    """No such container, or none any more."""

    what = "container"

    def __init__(self, name: object) -> None:
        super().__init__(name)
        self.args = (f"container {name} is unknown, or has ended",)


def find_containers(names: Iterable[str], directory: Path = DEFAULT_DIRECTORY, *, dead: bool = False) -> list[Record]:
    """The containers of ids, names, or the beginnings of ids: each once, in the order in which they are named.

    Args:
        dead: also those whose owner was killed.

    Raises:
        ContainerUnknownError: there is none of a name, or none that lives.
        DeniedError: see `list_containers`.
        InvalidError: several ids begin so.
    """
    living = [record for record in list_containers(directory) if dead or record.status != DEAD]
    return list({found.id: found for found in (_find(living, name) for name in names)}.values())


def _find(living: list[Record], name: str) -> Record:
    for record in living:
        if name in (record.id, record.name):
            return record
    found = [record for record in living if len(name) >= _LEAST_PREFIX and record.id.startswith(name)]
    if not found:
        raise ContainerUnknownError(name)
    if len(found) > 1:
        raise InvalidError(name, f"the ids of {len(found)} containers begin so")
    return found[0]


def look_again(record: Record, directory: Path = DEFAULT_DIRECTORY) -> Record | None:
    """What is noted of a container now; None if it has ended, though its owner may not have."""
    for found in list_containers(directory):
        if found.id == record.id and found.owner == record.owner and found.status != DEAD:
            return found
    return None


def open_first_process(record: Record) -> int | None:
    """A descriptor of a container's first process, which the caller closes; None: there is none.

    Args:
        record: what is noted of it now, as `look_again` has found it.
    """
    return open_descendant(record.pid, record.owner) if record.pid else None


def open_descendant(pid: int, ancestor: int) -> int | None:
    """A descriptor of a process that is below another, which lives; None: it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        if _descends(pid, ancestor):
            return process
        os.close(process)  # it has ended, and the number may be somebody else's
    return None


def _descends(pid: int, ancestor: int) -> bool:
    for _ in range(_MOST_PARENTS):
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
        if pid <= 1:
            return pid == ancestor
    return False
