"""The files of blobs that were made again: their names, locks, and room.

A file is named after its blob; while it is being made it has `.part` at the end of its name. Whoever makes it holds a
lock on it (flock), and whoever reads it meanwhile another (of an open file description, `F_OFD_SETLK`), of which the
maker can tell that it is there. Both go with their processes. Files are removed at any moment; who has one open keeps
it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from pagepool_service.store.locking import try_lock

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.digest import Digest

_PART = ".part"
_FLOCK = "hhqqi4x"  # struct flock with 64-bit offsets


class RebuiltFiles:
    """A directory of such files.

    Args:
        directory: where they are; made when it is needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def whole(self, digest: Digest) -> Path:
        """Where a blob is once it is made."""
        return self._directory / f"{digest.algorithm}-{digest.hex}"

    def part(self, digest: Digest) -> Path:
        """Where it is until then."""
        path = self.whole(digest)
        return path.with_name(path.name + _PART)

    def begin(self, digest: Digest) -> int | None:
        """The file of a blob that is to be made, empty and locked; None if somebody else makes it, or has made it.

        Raises:
            OSError: nothing can be kept.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        fd = _open_locked(self.part(digest), os.O_RDWR | os.O_CREAT)
        if fd is None:
            return None
        if self.whole(digest).exists():  # finished between two looks
            self.part(digest).unlink(missing_ok=True)
            os.close(fd)
            return None
        os.ftruncate(fd, 0)
        return fd

    def remove(self, digest: Digest) -> None:
        """Remove what there is of a blob, and what somebody is making of it."""
        for path in (self.whole(digest), self.part(digest)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def evict(self, limit: int) -> None:
        """Remove those that were not asked for the longest until all together have at most so many bytes."""
        self.sweep()  # of a process that was killed: it would take the room of others
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= limit:
                return
            if not path.name.endswith(_PART):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    total -= size

    def sweep(self) -> None:
        """Remove what nobody finished, and nobody makes now."""
        for path in self._paths():
            if path.name.endswith(_PART):
                with suppress(OSError):
                    fd = _open_locked(path, os.O_RDWR)
                    if fd is not None:
                        path.unlink(missing_ok=True)
                        os.close(fd)

    def _paths(self) -> list[Path]:
        try:
            return list(self._directory.iterdir())
        except OSError:
            return []

    def _files(self) -> list[tuple[int, int, Path]]:
        """When each was last asked for, its size, and where it is."""
        found = []
        for path in self._paths():
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return sorted(found)


def remove_file(path: Path, fd: int) -> None:
    """Remove a file, if it is still the one that is open."""
    with suppress(OSError):
        if is_file(path, fd):
            path.unlink(missing_ok=True)


def is_file(path: Path, fd: int) -> bool:
    """Whether a path leads to the file that is open."""
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def is_made(fd: int) -> bool:
    """Whether somebody makes the file now."""
    if not try_lock(fd):
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def hold(fd: int) -> None:
    """Have whoever makes a file see that it is read, until it is closed."""
    with suppress(OSError):  # a file system that has no such locks
        _ofd_lock(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK)


def is_held(fd: int) -> bool:
    """Whether somebody reads a file that this process makes.

    Raises:
        OSError: the file system has no such locks.
    """
    return _ofd_lock(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK) != fcntl.F_UNLCK


def can_be_held(path: Path, fd: int) -> bool:
    """Whether its maker sees who reads a file: not on every file system (NFS makes one kind of lock of both)."""
    try:
        other = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        hold(other)
        return is_held(fd)
    except OSError:
        return False
    finally:
        os.close(other)


def _ofd_lock(fd: int, command: int, kind: int) -> int:
    """A lock on all of a file. Returns the kind of the one that is in its way, if that was asked."""
    found: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, command, struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)))[0]
    return found


def _open_locked(path: Path, flags: int) -> int | None:
    """Open a file and lock it; None if another process has it, or it is not there any more.

    Raises:
        OSError: it cannot be opened or locked.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        if try_lock(fd) and is_file(path, fd):
            return fd
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None
