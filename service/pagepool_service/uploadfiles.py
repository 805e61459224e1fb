"""The files of upload sessions, seen from outside: what they take, and which of them nobody wants any more."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def sweep(directory: Path, idle_s: float) -> int:
    """Remove sessions that nobody wrote to for `idle_s` seconds, and leftovers. Returns how many files.

    Safe beside a running service: a session that is being written to is locked, and left alone.
    """
    removed = 0
    oldest = time.time() - idle_s
    for path in list(directory.iterdir()) if directory.is_dir() else []:
        try:
            if path.stat().st_mtime > oldest:
                continue
            data = path.with_suffix("")
            if path.suffix != ".json":
                removed += _remove_unlocked(path)
            elif not data.exists():
                path.unlink()
                removed += 1
        except FileNotFoundError:  # finished meanwhile
            continue
    return removed


def directory_size(path: Path) -> int:
    """Bytes in the files of a directory."""
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # finished meanwhile
                    continue
    except FileNotFoundError:
        return 0
    return total


def _remove_unlocked(path: Path) -> int:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.json").unlink(missing_ok=True)
    return 1
