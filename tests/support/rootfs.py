"""A root file system read through the library, as the table of files that `umoci` describes an unpacked image by."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

from pagepool.image import Kind
from pagepool.vfs import ROOT
from pagepool.vfs.interface import FORMATS
from tests.support.umoci import Row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pagepool.vfs import Attributes, FileSystem


def describe(fs: FileSystem) -> dict[bytes, Row]:
    """Everything in a file system by name, the root as ``.``."""
    inodes = {b".": ROOT}
    todo = [(b"", ROOT)]
    while todo:
        prefix, directory = todo.pop()
        for entry in fs.entries(directory):
            inodes[prefix + entry.name] = entry.ino
            if entry.kind is Kind.DIRECTORY:
                todo.append((prefix + entry.name + b"/", entry.ino))
    names: dict[int, set[bytes]] = {}
    for name, ino in inodes.items():
        names.setdefault(ino, set()).add(name)
    return {name: _row(fs, ino, frozenset(names[ino])) for name, ino in inodes.items()}


def equal(found: Mapping[bytes, Row], expected: Mapping[bytes, Row]) -> dict[bytes, tuple[Row | None, Row | None]]:
    """What differs: by name what was found and expected. A time that unpacking made is not compared."""
    different = {}
    for name in found.keys() | expected.keys():
        ours, theirs = found.get(name), expected.get(name)
        if ours is not None and theirs is not None and theirs.mtime_ns is None:
            ours = ours._replace(mtime_ns=None)
        if ours != theirs:
            different[name] = ours, theirs
    return different


def _row(fs: FileSystem, ino: int, links: frozenset[bytes]) -> Row:
    found = fs.attributes(ino)
    xattrs = tuple((os.fsdecode(name), value) for name, value in sorted(fs.xattrs(ino).items()))
    assert found.kind is Kind.DIRECTORY or found.nlink == len(links), links
    return Row(
        FORMATS[found.kind], found.mode, found.uid, found.gid, found.mtime_ns, _content(fs, found), xattrs, links
    )


def _content(fs: FileSystem, found: Attributes) -> object:
    if found.kind is Kind.REGULAR:
        hasher = hashlib.sha256()
        for offset in range(0, found.size, 1 << 20):
            hasher.update(fs.read(found.ino, offset, 1 << 20))
        return hasher.digest()
    if found.kind is Kind.SYMLINK:
        return fs.readlink(found.ino)
    if stat.S_IFMT(FORMATS[found.kind]) in (stat.S_IFCHR, stat.S_IFBLK):
        return found.devmajor, found.devminor
    return None
