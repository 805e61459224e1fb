"""What containers that run have written, by their names: where the node keeps it, and reading it while they write.

Nobody is stopped meanwhile. What was read is looked at once more afterwards; if something has been written since it was
opened, it is read again.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pagepool.container import ContainerUnknownError
from pagepool.errors import BusyError, DeniedError, LayerInvalidError, UnsupportedError
from pagepool.node.places import DEFAULT_STATE, NodePlaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.container import Record

_Made = TypeVar("_Made")
_TRIES = 3
_ROOTS = "roots"
_OF_WRITING = (OSError, DeniedError, LayerInvalidError)
"""What reading an upper may end with because somebody writes to it."""


def find_upper_of(record: Record) -> Path:
    """The directory of what a container that runs has written.

    Raises:
        UnsupportedError: its image is not mounted by the kernel.
        ContainerUnknownError: it has ended.
    """
    from pagepool.node.alive import noted_mounts

    name = record.name or record.id
    root = Path(record.root)
    if root.parent.name != _ROOTS:
        raise UnsupportedError(f"what container {name} writes can be read while it runs only if the kernel mounts it")
    for mount in noted_mounts(NodePlaces(DEFAULT_STATE, root.parents[1])):
        if mount.owner == record.id and mount.upper:
            return Path(mount.upper)
    raise ContainerUnknownError(name)


def read_while_written(
    record: Record | None,
    stack: ExitStack,
    make: Callable[[ExitStack], _Made],
    is_whole: Callable[[_Made], bool] = lambda _: True,
) -> _Made:
    """Make something of what a container has written.

    Args:
        record: the container; None: it is an image or an overlay, to which nobody writes meanwhile.
        stack: closes what `make` has opened.
        make: is given what closes what it opens. Called again if it fails as it may when something is written.
        is_whole: whether what it made is of one moment; it is made again if not.

    Raises:
        BusyError: something was written each time.
    """
    if record is None:
        return make(stack)
    for left in reversed(range(_TRIES)):
        with ExitStack() as undo:
            try:
                made = make(undo)
            except _OF_WRITING:
                if not left:
                    raise
                continue
            if is_whole(made):
                stack.enter_context(undo.pop_all())
                return made
    raise BusyError(
        f"container {record.name or record.id} goes on writing: try again when it does not,"
        " or stop it (run --upper keeps what it wrote)"
    )
