"""`umoci unpack`: what an image is on disk, as a table of files to compare."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.support.tools import require, run

if TYPE_CHECKING:
    from pathlib import Path


class Row(NamedTuple):
    """One name in a root file system, and all that there is to know of it.

    Args:
        kind: as in the mode of stat.
        mtime_ns: None for a directory whose time is that of its unpacking, because no layer says another.
        content: digest of a regular file, target of a symbolic link, numbers of a device.
        links: every name of the same inode.
    """

    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int | None
    content: object
    xattrs: tuple[tuple[str, bytes], ...]
    links: frozenset[bytes]


def unpack(layout: Path, tag: str, work: Path) -> dict[bytes, Row]:
    """Unpack an image of a layout below `work`, describe it, and remove it again."""
    require("umoci")
    bundle = work / "bundle"
    started_ns = time.time_ns() - 10**9
    try:
        run(["umoci", "unpack", "--image", f"{layout}:{tag}", bundle])
        return describe(bundle / "rootfs", started_ns)
    finally:
        shutil.rmtree(bundle, ignore_errors=True)


def describe(root: Path, started_ns: int) -> dict[bytes, Row]:
    """Everything below a directory, and the directory itself, by name."""
    paths = {os.fsencode(path.relative_to(root)): path for path in (root, *root.rglob("*"))}
    names: dict[int, set[bytes]] = {}
    for name, path in paths.items():
        names.setdefault(path.lstat().st_ino, set()).add(name)
    return {name: _row(path, frozenset(names[path.lstat().st_ino]), started_ns) for name, path in paths.items()}


def _row(path: Path, links: frozenset[bytes], started_ns: int) -> Row:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    made = kind == stat.S_IFDIR and status.st_mtime_ns >= started_ns
    xattrs = tuple(
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in sorted(os.listxattr(path, follow_symlinks=False))
        if name != "security.selinux"
    )
    mtime_ns = None if made else status.st_mtime_ns
    return Row(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        mtime_ns,
        _content(path, kind, status),
        xattrs,
        links,
    )


def _content(path: Path, kind: int, status: os.stat_result) -> object:
    if kind == stat.S_IFREG:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    if kind == stat.S_IFLNK:
        return os.readlink(os.fsencode(path))  # noqa: PTH115  (Path would tidy it up)
    return (os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in (stat.S_IFCHR, stat.S_IFBLK) else None
