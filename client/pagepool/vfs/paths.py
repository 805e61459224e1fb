"""How a path finds its inode: symlinks and ``..`` are followed inside the root, whatever they say.

Pure walking over a `FileSystem`; no permission is checked. As in Linux: ``..`` at the root stays there, an absolute
target begins at the root, a chain of more than 40 symlinks is ELOOP, a trailing slash asks for a directory.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from pagepool.image.member import Kind
from pagepool.vfs.interface import ROOT, fail

if TYPE_CHECKING:
    from pagepool.vfs.interface import FileSystem

    AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

MAX_LINKS: Final = 40
MAX_PATH: Final = 4095


def resolve(fs: FileSystem, path: AnyPath, *, follow: bool = True, start: int = ROOT) -> int:
    """The inode that a path names.

    Args:
        follow: whether a symlink that is the last component is followed.
        start: the directory that a relative path begins at.

    Raises:
        OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EINVAL; it names the path.
    """
    raw = _raw(path)
    ino = _walk(fs, raw, start, follow or raw.endswith(b"/"))[2]
    return ino or fail(errno.ENOENT, raw)


def resolve_parent(fs: FileSystem, path: AnyPath, *, start: int = ROOT) -> tuple[int, bytes]:
    """The directory that a path's last component is in, and that component; it need not exist.

    Raises:
        OSError: as `resolve`; EINVAL or EBUSY if the last component is ``.``, ``..``, or the root.
    """
    raw = _raw(path)
    parent, name, _ = _walk(fs, raw, start, False)
    if not name:
        fail(errno.EBUSY, raw)
    return parent, name


def resolve_new(fs: FileSystem, path: AnyPath, *, start: int = ROOT) -> tuple[int, bytes, int]:
    """As `resolve_parent`, behind all symlinks: where opening a path to write makes a file.

    Returns:
        directory, name, and the inode there; 0 if there is none.
    """
    raw = _raw(path)
    return _walk(fs, raw, start, True)


def path_of(fs: FileSystem, directory: int) -> bytes:
    """The absolute path of a directory."""
    parts: list[bytes] = []
    while directory != ROOT:
        parent = fs.parent(directory)
        parts.append(next(entry.name for entry in fs.entries(parent) if entry.ino == directory))
        directory = parent
    return b"/" + b"/".join(reversed(parts))


def _raw(path: AnyPath) -> bytes:
    raw = os.fsencode(path)
    if not raw:
        fail(errno.ENOENT, raw)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    if len(raw) > MAX_PATH:
        fail(errno.ENAMETOOLONG, raw)
    return raw


def _walk(fs: FileSystem, path: bytes, start: int, follow: bool) -> tuple[int, bytes, int]:
    """Directory, last name ("" where there is none: the root, ``.``, ``..``), and the inode, 0 if there is none."""
    here = ROOT if path.startswith(b"/") else start
    todo = _components(path)
    last: tuple[int, bytes, int] = here, b"", here
    links = 0
    while todo:
        name = todo.pop()
        if name == b".":
            continue
        if name == b"..":
            here = _parent(fs, here, path)
            last = here, b"", here
            continue
        ino = _lookup(fs, here, name, path, missing_ok=not todo)
        kind = fs.attributes(ino).kind if ino else None
        if kind is Kind.SYMLINK and (todo or follow):
            links += 1
            if links > MAX_LINKS:
                fail(errno.ELOOP, path)
            target = fs.readlink(ino)
            if target.startswith(b"/"):
                here = ROOT
                last = here, b"", here
            todo += [*([b"."] if target.endswith(b"/") else ()), *_components(target)]
            continue
        last = here, name, ino
        if todo:
            if kind is not Kind.DIRECTORY:
                fail(errno.ENOTDIR, path)
            here = ino
    if path.endswith(b"/") and last[2] and fs.attributes(last[2]).kind is not Kind.DIRECTORY:
        fail(errno.ENOTDIR, path)
    return last


def _components(path: bytes) -> list[bytes]:
    """What a path is made of, the last one first. A ``.`` stays: it asks for a directory."""
    return [part for part in reversed(path.split(b"/")) if part]


def _lookup(fs: FileSystem, directory: int, name: bytes, path: bytes, *, missing_ok: bool) -> int:
    try:
        return fs.lookup(directory, name)
    except FileNotFoundError:
        if missing_ok:
            return 0
        fail(errno.ENOENT, path)
    except OSError as error:
        fail(error.errno or errno.EIO, path)


def _parent(fs: FileSystem, directory: int, path: bytes) -> int:
    try:
        return fs.parent(directory)
    except OSError as error:
        fail(error.errno or errno.EIO, path)
