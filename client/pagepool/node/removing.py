"""Removing what a container has written: whatever that is, and so that a removal that was cut off is found again."""

from __future__ import annotations

import os
import shutil
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def remove_marked(directory: Path, mark: str) -> None:
    """Remove a directory as far as that can be, and last of all the file that says that it may be removed.

    Args:
        mark: the name of that file.
    """
    with suppress(FileNotFoundError):
        for path in list(directory.iterdir()):
            if path.name != mark:
                _remove(path)
    with suppress(OSError):
        if os.listdir(directory) in ([], [mark]):  # noqa: PTH208 - names are all it is about
            shutil.rmtree(directory)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        try:
            shutil.rmtree(path, ignore_errors=True)
        except RecursionError:
            _flatten(path)
            shutil.rmtree(path, ignore_errors=True)


def _flatten(top: Path) -> None:
    """Have no directory below another one but the top: programs make them as deep as they like."""
    numbers = count()
    waiting = deque(entry.path for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False))
    while waiting:
        with os.scandir(waiting.popleft()) as entries:
            found = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for path in found:
            free = next(new for number in numbers if not (new := top / f"lifted-{number}").exists())
            os.rename(path, free)  # noqa: PTH104 - there may be many
            waiting.append(os.fspath(free))
