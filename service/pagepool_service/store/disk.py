"""What a disk says when it refuses a write, in our own words."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.errors import ReadOnlyError, StoreFailedError, StoreFullError
from pagepool.linux import words_of

if TYPE_CHECKING:
    from pagepool.errors import PagepoolError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAILED: Final = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EUCLEAN)
_LITTLE: Final = 32 << 20
_SEE: Final = "the kernel's log says more; what it does not take is lost"


class UnsyncedError(StoreFailedError):
    """A file could not be synced, so what is in it may be lost, though it can still be read."""


def refused(error: OSError, what: str) -> PagepoolError:
    """The error to raise for a write that failed.

    Args:
        what: failed, for people.
    """
    if error.errno in _FULL:
        where = None if error.filename is None else Path(os.fsdecode(error.filename)).parent
        return StoreFullError(f"{what}: {words_of(error, where) if where else error.strerror}")
    if error.errno == errno.EIO:
        return StoreFailedError(f"{what}: {error.strerror} ({_SEE})")
    return ReadOnlyError(f"{what}: {error.strerror}")


def refused_database(path: Path, text: str) -> PagepoolError:
    """The same for a write of LMDB's that failed with EIO, which it also says when a disk that is about to be full took
    only a part of it.

    Args:
        path: of the database.
        text: what LMDB says.
    """
    what = f"the disk under {path} refused a write: {text}"
    return StoreFailedError(f"{what} ({_SEE})") if _has_room(path) else StoreFullError(what)


def _has_room(directory: Path) -> bool:
    """Whether the database may grow: as far as the disk, quotas of whatever kind and the process's own limit go."""
    database = directory / "data.mdb"
    try:
        size = database.stat().st_size if database.exists() else 0
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return error.errno not in _FULL
    try:
        os.posix_fallocate(descriptor, size, _LITTLE)
    except OSError as error:
        return error.errno not in _FULL
    finally:
        os.close(descriptor)
    return True


def is_read_only(data: Path) -> bool:
    """Whether a store is there, on a file system that takes no writes: it is mounted so, or the kernel has stopped it
    after an error, which only shows when something is written."""
    try:
        if not (data / "format").exists():
            return False
        mounted_so = os.statvfs(data).f_flag & os.ST_RDONLY
    except OSError:  # a disk that reads nothing either: see `why_failed`
        return False
    return bool(mounted_so) or _refusal(data) == errno.EROFS


def why_failed(data: Path) -> str:
    """Why the disk under a data directory does nothing that it is asked to, if its file system says so; else ""."""
    try:
        data.joinpath("lock").stat()
        refusal = _refusal(data)
    except OSError as error:
        refusal = error.errno or 0
    return f"{data}: {os.strerror(refusal)} ({_SEE})" if refusal in _FAILED else ""


def why_gone(data: Path, lock_fd: int) -> str:
    """Why a data directory is not the one that was locked: it was removed, or something lies over it; else "".

    Args:
        lock_fd: its lock, see `store.locking`.
    """
    try:
        same = os.path.samestat(data.joinpath("lock").stat(), os.fstat(lock_fd))
    except FileNotFoundError:
        return f"{data} was removed, or unmounted"
    except OSError:
        return ""
    return "" if same else f"{data} is another directory than it was"


def _refusal(data: Path) -> int:
    """The error of making a file without a name; 0 if it can be made."""
    try:
        os.close(os.open(data, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return error.errno or 0
    return 0
