"""Directories compared: everything that system calls show of two of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """What is seen of a file. Inode numbers are of its own file system, and change times of no use."""

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    rdev: int
    content: bytes
    xattrs: dict[str, bytes]
    mtime_ns: int | None


def see(root: Path, *, times: bool = False) -> dict[str, Seen]:
    """Everything below a directory, and itself.

    Args:
        times: whether the time of modification counts. That of access does not: looking changes it.
    """
    found = {".": _see(root, times)}
    for path in root.rglob("*"):
        found[str(path.relative_to(root))] = _see(path, times)
    return found


def links(root: Path) -> set[frozenset[str]]:
    """Which names below a directory are one file."""
    by_inode: dict[int, set[str]] = {}
    for path in root.rglob("*"):
        if not path.is_dir() or path.is_symlink():
            by_inode.setdefault(path.lstat().st_ino, set()).add(str(path.relative_to(root)))
    return {frozenset(names) for names in by_inode.values()}


def _see(path: Path, times: bool) -> Seen:
    status = path.lstat()
    content = b""
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.fsencode(path.readlink())
    is_directory = stat.S_ISDIR(status.st_mode)
    names = os.listxattr(path, follow_symlinks=False)
    return Seen(
        *(status.st_mode, status.st_uid, status.st_gid),
        # Not every file system counts the directories in a directory.
        0 if is_directory else status.st_nlink,
        0 if is_directory else status.st_size,
        status.st_rdev,
        content,
        {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
        status.st_mtime_ns if times else None,
    )
