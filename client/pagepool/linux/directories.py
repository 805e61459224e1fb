"""Directories that somebody else fills: a container makes one within the other, deeper than Python's stack, or than a
process may have files open.

Of those in use the outermost are open, and the innermost. The way from there is `..`, which is compared with where we
came from. No symlink is followed. What is moved or removed meanwhile is left out; nothing outside is reached.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_OPEN: Final = 64


class Listing(NamedTuple):
    """What is in one directory.

    Args:
        descriptor: of it; until the next one is asked for.
        depth: 0 of the top one.
        directories: names of directories in it.
        others: names of everything else.
    """

    descriptor: int
    depth: int
    directories: list[str]
    others: list[str]


@dataclass(slots=True)
class _Level:
    descriptor: int  # -1: not open now
    identity: tuple[int, int]
    directories: list[str]
    others: list[str]
    left: list[str]


def walk_from_below(top: Path) -> Iterator[Listing]:
    """Every directory from a top one down, each after those that are in it.

    Raises:
        OSError: the top one is not there, or cannot be read. What is below and cannot be read is left out.
    """
    levels = [_read(os.open(top, _OPEN))]
    try:
        while levels:
            level = levels[-1]
            if not level.left:
                yield Listing(level.descriptor, len(levels) - 1, level.directories, level.others)
                _leave(levels)
                continue
            with suppress(OSError):  # gone, or no directory any more
                levels.append(_read(os.open(level.left.pop(), _OPEN, dir_fd=level.descriptor)))
                if len(levels) > _KEPT_OPEN:
                    _close(level)
    finally:
        for level in levels:
            _close(level)


def remove_tree(directory: Path, *, last: str = "") -> None:
    """Remove a directory and all in it. What cannot be removed is left.

    Args:
        last: the name of a file in it that says that it may be removed: it is there until all else is gone.
    """
    with suppress(OSError):
        for found in walk_from_below(directory):
            for remove, names in ((os.rmdir, found.directories), (os.unlink, found.others)):
                for name in names:
                    if found.depth or name != last:
                        with suppress(OSError):
                            remove(name, dir_fd=found.descriptor)
        if os.listdir(directory) == [last]:  # noqa: PTH208 - names are all it is about
            (directory / last).unlink()
        directory.rmdir()


def _read(descriptor: int) -> _Level:
    try:
        level = _Level(descriptor, _identity(descriptor), [], [], [])
        with os.scandir(descriptor) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                (level.directories if is_directory else level.others).append(entry.name)
        level.left = level.directories.copy()
    except BaseException:
        os.close(descriptor)
        raise
    return level


def _leave(levels: list[_Level]) -> None:
    """Go back from the innermost to the one that it is in; if it is there no more, to the next one that is open."""
    here = levels.pop()
    try:
        while levels and levels[-1].descriptor < 0:
            levels[-1].descriptor = _above(here.descriptor, levels[-1].identity)
            if levels[-1].descriptor < 0:
                levels.pop()
    finally:
        _close(here)


def _above(descriptor: int, identity: tuple[int, int]) -> int:
    """The directory that one is in, open; -1 if that is another one, or none."""
    try:
        found = os.open("..", _OPEN, dir_fd=descriptor)
    except OSError:
        return -1
    if _identity(found) == identity:
        return found
    os.close(found)
    return -1


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _close(level: _Level) -> None:
    if level.descriptor >= 0:
        os.close(level.descriptor)
        level.descriptor = -1
