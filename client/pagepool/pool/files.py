"""Objects that are open. Holding one keeps it from being evicted, and its bytes stay where they are in any case.

An open object has a descriptor with a shared flock(2) on it: that is how an evictor in another process sees that it is
held. The lock belongs to the open file, so it lasts until the descriptor *and* every mapping made from it are gone. A
lock that cannot be had at once, because an evictor or a hostile reader has the file locked, is done without: it serves
the accounts only, the bytes are safe without it, since what is unlinked lives on while it is open or mapped.

One descriptor for each open object: the mapping keeps a duplicate, and the first one is closed when it is made. (It is
opened again for those who ask for `fd` after that.)

Reading a mapping that the disk cannot read ends the process (SIGBUS); `PoolFile.read` before the first `view` raises an
OSError instead.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool.errors import DigestInvalidError, ObjectUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
_CHUNK = 1 << 20
_TRIES = 4
_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
_NOTHING: nullcontext[None] = nullcontext()


def hold(descriptor: int) -> bool:
    """Tell evictors that an open file is in use, for as long as it is open or mapped.

    Returns:
        False if somebody has it locked against this.
    """
    try:
        fcntl.flock(descriptor, _SHARED)
    except BlockingIOError:
        return False
    return True


def is_held(descriptor: int) -> bool:
    """Whether anybody else has an open file in use, or it has another name outside of the pool.

    If not, it stays locked against new holders until it is closed. Whoever links an object elsewhere must hold it
    meanwhile.
    """
    return is_locked(descriptor) or os.fstat(descriptor).st_nlink > 1


def is_locked(descriptor: int) -> bool:
    """Whether anybody else holds an open file. If not, it stays locked against new holders until it is closed."""
    try:
        fcntl.flock(descriptor, _EXCLUSIVE)
    except BlockingIOError:
        return True
    return False


def map_file(descriptor: int, size: int) -> memoryview:
    """Map a whole file to be read.

    Returns:
        a view that keeps the mapping, and with it the file, for as long as it or any view made of it is referred to.
    """
    if not size:
        return memoryview(b"")
    return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))


def open_object(directory: int, digest: bytes) -> tuple[int, os.stat_result, bool] | None:
    """Open an object by name, and hold it.

    Args:
        directory: descriptor of a pool's `objects/`.
        digest: BLAKE3, 32 bytes.

    Returns:
        its descriptor, its status after it was held, and whether it could be held; None if there is none.
    """
    if len(digest) != 32:
        raise DigestInvalidError(digest.hex())
    name = digest.hex()
    try:
        descriptor = os.open(f"{name[:2]}/{name[2:]}", READ, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        for _ in range(_TRIES):
            if held := hold(descriptor):
                break
            os.sched_yield()  # an evictor needs a few microseconds
        return descriptor, os.fstat(descriptor), held
    except BaseException:
        os.close(descriptor)
        raise


def is_unreadable(error: OSError) -> bool:
    """Whether an error says that a file's bytes are lost, not that something else is wrong."""
    return error.errno in (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ, errno.ENODATA)


def hash_file(descriptor: int) -> bytes:
    """BLAKE3 of a file, read and not mapped: what the disk cannot read is an OSError."""
    hasher = blake3()
    offset = 0
    while chunk := os.pread(descriptor, _CHUNK, offset):
        hasher.update(chunk)
        offset += len(chunk)
    return hasher.digest()


class PoolFile:
    """A whole object, open and held. Any number of threads may use it; `close` is for one.

    Args:
        descriptor: open for reading only; owned by this object from now on.
        size: bytes of the object.
        digest: the object's name.
        reopen: opens an object by name.
    """

    __slots__ = ("_descriptor", "_inode", "_lock", "_reopen", "_view", "digest", "size")

    def __init__(self, descriptor: int, size: int, digest: bytes, reopen: Callable[[bytes], PoolFile | None]) -> None:
        self._descriptor = descriptor
        self._inode = 0
        self._view: memoryview | None = None
        self._reopen = reopen
        self._lock = threading.Lock()
        self.digest = digest
        self.size = size

    @property
    def view(self) -> memoryview:
        """The object's bytes, as a read-only view of the pages that all its readers share; mapped when first asked for.

        Views stay valid after `close`, and whatever becomes of the object. Reading them may block on the disk.

        Raises:
            ValueError: the file was closed before.
        """
        view = self._view
        return self._map() if view is None else view

    @property
    def fd(self) -> int:
        """A descriptor of the object, open for reading only and closed by `close`: for handing it on.

        Raises:
            ObjectUnknownError: the object was mapped first, and its name has been removed since.
        """
        with self._lock:
            if self._descriptor < 0:
                self._check_open()
                again = self._reopen(self.digest)
                if again is None:
                    raise ObjectUnknownError(self.digest.hex())
                self._descriptor, again._descriptor = again._descriptor, -1
            return self._descriptor

    def is_current(self) -> bool:
        """Whether this is what the pool has under the object's name: not if that was removed, or repaired, since."""
        with self._lock:
            self._check_open()
            inode = self._inode or os.fstat(self._descriptor).st_ino
        # What is removed while it is held has a name elsewhere: how many it has says nothing.
        with self._reopen(self.digest) or _NOTHING as again:
            return again is not None and os.fstat(again.fd).st_ino == inode

    def read(self, offset: int = 0, size: int = -1) -> bytes:
        """Copy bytes out. For a small file that is read once this costs less than mapping it.

        Returns:
            `size` bytes from `offset`, all of the rest if it is negative; fewer at the object's end.
        """
        end = self.size if size < 0 else max(offset, min(self.size, offset + size))
        with self._lock:
            if self._view is None:
                self._check_open()
                data = os.pread(self._descriptor, end - offset, offset)
                if len(data) == end - offset:
                    return data
        return bytes(self.view[offset:end])

    def close(self) -> None:
        """Let go of it. Twice is once."""
        with self._lock:
            self._view = None
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> PoolFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def _map(self) -> memoryview:
        with self._lock:
            if self._view is None:
                self._check_open()
                self._view = map_file(self._descriptor, self.size)
                self._inode = os.fstat(self._descriptor).st_ino
                os.close(self._descriptor)
                self._descriptor = -1
            return self._view

    def _check_open(self) -> None:
        if self._descriptor < 0 and self._view is None:
            raise ValueError("the object was closed")
