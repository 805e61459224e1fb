"""Finds containers that other processes run, by their names, and processes of theirs.

A process is found as a descriptor of it (pidfd), taken while its owner was alive and above it: whatever becomes of the
pids, it is never another one.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.container.records import DEAD, DEFAULT_DIRECTORY, Record, has_ended, list_containers
from pagepool.errors import BusyError, InvalidError, NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_LEAST_PREFIX: Final = 3
_MOST_PARENTS: Final = 16


class ContainerUnknownError(NotFoundError):
    """No such container, or none any more."""

    what = "container"

    def __init__(self, name: object) -> None:
        super().__init__(name)
        self.args = (f"container {name} is unknown, or has ended",)


def find_containers(
    names: Iterable[str], directory: Path = DEFAULT_DIRECTORY, *, dead: bool = False, ended: Path | None = None
) -> list[Record]:
    """The containers of ids, names, or the beginnings of ids: each once, in the order in which they are named.

    Args:
        dead: also those whose owner was killed.
        ended: also those that have ended, of which something is kept there. A name means one that runs, if there is
            one, and else the one that ended last.

    Raises:
        ContainerUnknownError: there is none of a name, or none that lives.
        DeniedError: see `list_containers`.
        InvalidError: several ids begin so.
    """
    known = [record for record in list_all(directory, ended) if dead or record.status != DEAD]
    # The living first, then those that ended, the last one first.
    known.sort(key=lambda record: -(record.ended_s or 0.0) if has_ended(record) else -math.inf)
    return list({found.id: found for found in (_find(known, name) for name in names)}.values())


def list_all(
    directory: Path = DEFAULT_DIRECTORY,
    ended: Path | None = None,
    on_bad: Callable[[Path, str], object] = lambda *_: None,
) -> list[Record]:
    """All containers, the one that was made first in front: those that are there, and those that have ended.

    Args:
        ended: where these are noted; None: none of them.
        on_bad: told of each record that cannot be read, and why.
    """
    # In this order: a container is noted as ended before it is gone from where those are that run.
    living = {record.id: record for record in list_containers(directory, on_bad)}
    past = []
    if ended is not None:
        from pagepool.container.ended import list_ended  # not loaded by whoever runs a container

        past = list_ended(ended, on_bad)
    living.update((one.id, one) for one in past if one.id not in living or living[one.id].status == DEAD)
    return sorted(living.values(), key=lambda record: record.created_s)


def _find(known: list[Record], name: str) -> Record:
    for record in known:
        if name in (record.id, record.name):
            return record
    found = [record for record in known if len(name) >= _LEAST_PREFIX and record.id.startswith(name)]
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


def open_inside(record: Record, directory: Path, undo: contextlib.ExitStack) -> tuple[int, int]:
    """Descriptors of a container's first process (pidfd), and of the root that it sees (O_PATH).

    Args:
        record: of a container that runs.
        directory: where it is noted.
        undo: closes them.

    Raises:
        ContainerUnknownError: it has ended.
        BusyError: it does not run yet.
        UnsupportedError: we may not.
    """
    name = record.name or record.id
    found = look_again(record, directory)
    if found is None:
        raise ContainerUnknownError(name)
    if not found.pid:
        raise BusyError(f"container {name} does not run yet")
    first = open_first_process(found)
    if first is None:
        raise ContainerUnknownError(name)
    undo.callback(os.close, first)
    try:
        root = os.open(f"/proc/{found.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:  # its first process lets nobody look into it who may not trace everybody
        raise UnsupportedError(f"looking into container {name} takes CAP_SYS_PTRACE") from error
    except OSError as error:
        raise ContainerUnknownError(name) from error
    undo.callback(os.close, root)
    poller = select.poll()
    poller.register(first, select.POLLIN)
    if poller.poll(0):  # it has ended, and the number may have been somebody else's
        raise ContainerUnknownError(name)
    return first, root


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
