"""A read-only mount of a pool's objects, so that what others are handed cannot be opened for writing again.

Objects are 0444, but root can open any file for writing, through /proc/self/fd also one that it was handed as a
descriptor. Not on a read-only mount: a descriptor that was opened through one stays below it. So whoever hands
descriptors to processes that it does not trust, or that are root, opens them here.

Needs root (CAP_SYS_ADMIN). The mount point is ``PATH/.readonly.PID.RANDOM`` in a directory that the caller owns, and is
locked with flock(2) while its owner lives: what a killed owner has left is unmounted by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.linux import mounts
from pagepool.pool.files import PoolFile, open_object
from pagepool.pool.layout import OBJECTS

if TYPE_CHECKING:
    from types import TracebackType

    from pagepool.pool.pool import Pool

_RESTRICT: Final = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV
_PREFIX: Final = ".readonly."


class ReadOnlyMount:
    """A pool's `objects/`, mounted read-only. Thread-safe; `close` is for one thread.

    Args:
        pool: whose objects.
        path: a directory of the caller's, outside of the pool, for the mount point and its lock.

    Raises:
        OSError: no permission (EPERM), or the mount failed.
    """

    def __init__(self, pool: Pool, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_stale(path)
        name = f"{_PREFIX}{os.getpid()}.{os.urandom(4).hex()}"
        self._lock_path = path / f"{name}.lock"
        self.path = path / name
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._objects = -1
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path.mkdir(mode=0o755)
            _bind(pool.path / OBJECTS, self.path)
            self._objects = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def get(self, digest: bytes, /) -> PoolFile | None:
        """Open an object of the pool through the mount: its `fd` can be handed to anyone.

        The caller has asked the pool itself for the object before, so that it counts as used, and is known to be right.

        Returns:
            the object, held until all descriptors are closed; None if it is not there.
        """
        found = open_object(self._objects, digest)
        if found is None:
            return None
        descriptor, status, _ = found
        if not status.st_nlink:
            os.close(descriptor)
            return None
        return PoolFile(descriptor, status.st_size, digest, self.get)

    def close(self) -> None:
        """Unmount it. Descriptors that were handed out stay good, and read-only. Twice is once."""
        if self._objects >= 0:
            os.close(self._objects)
            self._objects = -1
        if self._lock >= 0:
            _remove(self.path)
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> ReadOnlyMount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def remove_stale(path: Path) -> int:
    """Unmount what owners that were killed have left in a directory.

    Returns:
        how many there were.
    """
    removed = 0
    for lock_path in sorted(path.glob(f"{_PREFIX}*.lock")):
        try:
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its owner lives
        else:
            _remove(lock_path.with_suffix(""))
            lock_path.unlink(missing_ok=True)
            removed += 1
        finally:
            os.close(descriptor)
    return removed


def _bind(source: Path, target: Path) -> None:
    mounts.mount(source, target, None, mounts.MS_BIND)
    # A mount of its own, that no other namespace gets to see; and only a second call can make it read-only.
    mounts.mount(None, target, None, mounts.MS_PRIVATE)
    mounts.mount(None, target, None, mounts.MS_BIND | mounts.MS_REMOUNT | _RESTRICT)


def _remove(target: Path) -> None:
    try:
        # Detached: whoever still has descriptors through it keeps the mount, and nobody else sees it.
        mounts.unmount(target, mounts.MNT_DETACH)
    except OSError as error:
        # Not mounted yet, or any more; EPERM: it never was, by one who may not.
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.EPERM):
            raise
    with suppress(FileNotFoundError):
        target.rmdir()
