"""Going through directories that others may make as deep as they like, and change meanwhile."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def walk_directories(top: int) -> Iterator[tuple[int, list[str]]]:
    """A directory and all that are below it, as `os.fwalk`, which ends with an error where they are a thousand deep.

    Each is open as long as one below it is; what is deeper than files can be open, or vanishes meanwhile, is left out.

    Args:
        top: a descriptor; stays open.

    Yields:
        a descriptor, which is closed later, and the names of what in it is no directory.
    """
    stack: list[tuple[int, list[str]]] = []
    name, at = ".", top
    try:
        while True:
            with suppress(OSError):
                stack.append((os.open(name, _DIRECTORY, dir_fd=at), []))
                yield stack[-1][0], _list(*stack[-1])
            while stack and not stack[-1][1]:
                os.close(stack.pop()[0])
            if not stack:
                return
            at, name = stack[-1][0], stack[-1][1].pop()
    finally:
        for descriptor, _ in stack:
            os.close(descriptor)


def _list(descriptor: int, below: list[str]) -> list[str]:
    """The names of what is no directory; those of directories are added to a list."""
    names: list[str] = []
    with os.scandir(descriptor) as entries:
        for entry in entries:
            (below if entry.is_dir(follow_symlinks=False) else names).append(entry.name)
    return names
