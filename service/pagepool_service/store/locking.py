"""The lock of a data directory: whoever serves it, or must not be disturbed by one who does, holds it."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from typing import TYPE_CHECKING

from pagepool.errors import BusyError, InvalidError
from pagepool.linux.processes import has_ended
from pagepool_service.store.disk import refused

if TYPE_CHECKING:
    from pathlib import Path

_OURS = {
    *("format", "lock", "collection", "store", "spool", "uploads", "quarantine", "history"),
    *("trees", "profiles", "auth", "cache", "rebuilt", "encoders"),
}
"""What a data directory may hold before it is one: of a start that was cut off, or put there for it."""
_BESIDE = {"node", "snapshotter", "logs", "ended"}
"""What a node and the containers of root keep in `/var/lib/pagepool`, which is root's data directory, too."""
_ENDING_S = 15.0
"""What the processes of a service that was killed are given to be gone: one that writes to a disk ends after that."""
_NOBODYS = {"lost+found", ".snapshot", ".gitkeep", ".gitignore", ".keep", ".DS_Store"}


class DataDirectoryInvalidError(InvalidError):
    """A directory that holds other things cannot become a data directory."""

    what = "directory"


def lock_data(data: Path, *, read_only: bool) -> int | None:
    """Take the lock of a data directory: one service each. Returns the descriptor that holds it.

    Where the process that took it is no more, those that it left are waited for: they share the lock, and are ending.
    Returns None where a read-only service cannot even make the lock file.

    Raises:
        BusyError: another service has it; names its process.
        DataDirectoryInvalidError: it holds other things. Nothing was done to it.
        StoreFullError, ReadOnlyError: the directory cannot be written to.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_foreign(data)
        _close_to_others(data, read_only=read_only)
        fd = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if read_only:
            return None
        raise refused(error, str(error.filename)) from error
    deadline = time.monotonic() + _ENDING_S
    while not try_lock(fd):
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        if not (holder.isdecimal() and has_ended(int(holder))) or time.monotonic() > deadline:
            os.close(fd)
            raise BusyError(f"{data} is in use by process {holder or 'unknown'}")
        time.sleep(0.02)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def try_lock(fd: int) -> bool:
    """Lock an open file for this descriptor alone. False if somebody else has a lock on it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_beside(name: str) -> bool:
    """Whether a name in a data directory is of nobody's, or of others of pagepool's: no store has it."""
    return name in _NOBODYS or name.startswith(".nfs") or name.partition(".")[0] in _BESIDE


def _refuse_foreign(data: Path) -> None:
    """Keep our hands off /tmp or somebody's home, which must not be closed to others for a slip of the hand."""
    if (data / "format").exists() or (data / "store" / "data.mdb").exists():
        return
    names = {path.name for path in data.iterdir() if not is_beside(path.name)}
    foreign = {name for name in names if name.partition(".")[0] not in _OURS}
    if foreign:
        reason = f"it is no data directory, and not empty: it holds {min(foreign)!r}. Name a new one"
        raise DataDirectoryInvalidError(str(data), reason)


def _close_to_others(data: Path, *, read_only: bool) -> None:
    """Take away what other users may do in a data directory: trees name all files, and hold the contents of small ones.

    What a group may is for who made the directory to say.
    """
    found = data.stat()
    if not read_only and found.st_uid == os.geteuid() and found.st_mode & 0o007:
        data.chmod(stat.S_IMODE(found.st_mode) & ~0o007)
