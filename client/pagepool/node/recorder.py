"""Records which objects a container opens in its first seconds, in the order of first open, by fanotify(7).

One mark on the overlay's superblock sees every open through every mount of it, whatever mount namespace made it: runc
makes its own. Only events are asked for, never permissions, so no container waits for this process, alive or dead.
A full queue drops events, and the recording says so. Where fanotify is not there or not allowed, nothing is recorded.

The kernel hands over each event with the file opened once more, read-only. That open looks nothing up: overlayfs has
found the file's data when the program opened it, and remembers; a file of the lazy mount is opened without a request
and without a read. So recording fetches nothing that the program did not. Events by file handle, which would open
nothing, are refused on an overlayfs whose handles cannot be decoded (`nfs_export=off`, as metacopy demands).

An event that was not read yet holds the mount it came through: until `stop`, unmounting may be EBUSY for an instant.
Stop the recording before unmounting. Nothing survives the process; the kernel drops the mark with the descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool.image import TreeFile

    Resolve = Callable[[os.stat_result], bytes | None]

_FAN_CLOEXEC: Final = 0x1
_FAN_NONBLOCK: Final = 0x2
_FAN_CLASS_NOTIF: Final = 0x0
_FAN_MARK_ADD: Final = 0x1
_FAN_MARK_FLUSH: Final = 0x80
_FAN_MARK_FILESYSTEM: Final = 0x100
_FAN_OPEN: Final = 0x20  # of execution, too
_FAN_Q_OVERFLOW: Final = 0x4000
_EVENT: Final = struct.Struct("=IBBHQii")  # length, version, -, metadata length, mask, descriptor, pid
_VERSION: Final = 3
_BUFFER_SIZE: Final = 64 << 10
_MOST_READS: Final = 64
"""In a row: ten times what is in a full queue. Programs may open files faster than can be looked at."""
_AT_FDCWD: Final = -100
_LAYER_BITS: Final = 48
_NOT_HERE: Final = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EMFILE, errno.ENODEV, errno.EXDEV, errno.EOPNOTSUPP)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Recording:
    """What was recorded.

    Args:
        objects: raw BLAKE3 of each object that was opened, each once, first opened first.
        seconds: how long it was looked at.
        complete: whether no event was lost, and the number of objects not reached.
    """

    objects: tuple[bytes, ...]
    seconds: float
    complete: bool


class Recorder:
    """Records opens on one overlay, from its making on, in a thread of its own.

    Args:
        root: a directory in the overlay: a path, or a descriptor (of a mount that is not attached yet, too), which is
            not needed any more afterwards.
        resolve: the object of a file as the overlay shows it; None if it is no object of the image. Called in the
            thread, each inode once; `tree_resolver` makes one.
        seconds: after which it ends by itself.
        limit: of objects, after which it ends by itself.

    Raises:
        OSError: fanotify is not there, or not allowed, or not on this file system; `try_record` makes None of it.
    """

    def __init__(self, root: Path | int, resolve: Resolve, *, seconds: float = 10.0, limit: int = 20_000) -> None:
        self._resolve, self._seconds, self._limit = resolve, seconds, limit
        self._objects: dict[bytes, None] = {}
        self._seen: set[tuple[int, int]] = set()
        self._complete = True
        self._stopping = threading.Lock()
        self._let_go = threading.Event()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            self._events = _mark(root)
        except OSError:
            os.close(self._stop)
            raise
        self._begun = self._ended = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._events)
            os.close(self._stop)
            raise

    def stop(self) -> Recording:
        """End, and let go of everything; what was opened before the call is in it. To be called once. Waits shortly."""
        os.eventfd_write(self._stop, 1)
        recording = self.wait()
        with self._stopping:
            os.close(self._stop)
            self._stop = -1
        return recording

    def finish(self) -> None:
        """End, so that the mount is not held any more. `stop` has to be called nevertheless, before or after it, by
        whoever wants the recording. Waits shortly; not for the kernel to take its queue apart, about 10 ms."""
        with self._stopping:
            if self._stop >= 0:
                os.eventfd_write(self._stop, 1)
        self._let_go.wait()

    def wait(self) -> Recording:
        """Wait until it has ended by itself; `stop` has to be called nevertheless."""
        self._thread.join()
        return Recording(tuple(self._objects), self._ended - self._begun, self._complete)

    def _run(self) -> None:
        try:
            self._watch()
        finally:
            self._ended = time.monotonic()
            try:
                if self._forget():
                    self._let_go.set()
            finally:
                os.close(self._events)
                self._let_go.set()

    def _forget(self) -> bool:
        """Hear of nothing any more, and hold no file; whether that could be done."""
        if _libc.fanotify_mark(
            self._events, _FAN_MARK_FLUSH | _FAN_MARK_FILESYSTEM, ctypes.c_uint64(0), _AT_FDCWD, b"/"
        ):
            return False
        while self._take():
            pass
        return True

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        deadline = self._begun + self._seconds
        while (left_s := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(max(1, left_s * 1000)))
            for _ in range(_MOST_READS):
                if not self._take():
                    break
                if len(self._objects) >= self._limit:
                    self._complete = False
                    return
                if time.monotonic() >= deadline:
                    return
            if self._stop in ready:
                return

    def _take(self) -> bool:
        """Take the events that are waiting, some at a time; whether there were any."""
        try:
            data = os.read(self._events, _BUFFER_SIZE)
        except BlockingIOError:
            return False
        except OSError:  # the file of an event could not be opened: it is gone, that event is lost
            self._complete = False
            return True
        for mask, descriptor in _parse(data):
            if mask & _FAN_Q_OVERFLOW:
                self._complete = False
            if descriptor >= 0:
                try:
                    self._note(os.fstat(descriptor))
                except OSError:
                    self._complete = False
                finally:
                    os.close(descriptor)
        return bool(data)

    def _note(self, status: os.stat_result) -> None:
        inode = (status.st_dev, status.st_ino)
        if inode in self._seen or len(self._objects) >= self._limit:
            return
        self._seen.add(inode)
        digest = self._resolve(status)
        if digest is not None:
            self._objects.setdefault(digest)


def try_record(root: Path | int, resolve: Resolve, *, seconds: float = 10.0, limit: int = 20_000) -> Recorder | None:
    """A recorder as `Recorder` makes one; None where this kernel, this user or this file system has no fanotify."""
    try:
        return Recorder(root, resolve, seconds=seconds, limit=limit)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return None
        raise


def tree_resolver(tree: TreeFile, node_of: Callable[[int], int]) -> Resolve:
    """Find the object of a file that an overlay over a tree's metadata image shows.

    Files of the container's own may have any inode number, so the size has to be right as well.

    Args:
        tree: must stay open meanwhile.
        node_of: the number of the tree's node of an inode number of the metadata image; 0 if there is none.
    """

    def resolve(status: os.stat_result) -> bytes | None:
        number = node_of(lower_inode(status.st_ino))
        if not 0 < number <= tree.node_count:
            return None
        node = tree.node(number)
        if node.object < 0 or node.size != status.st_size:
            return None
        return tree.object(node.object).digest

    return resolve


def lower_inode(number: int) -> int:
    """The inode number in the lower file system of one that an overlay shows: `xino` puts the layer above it."""
    return number & ((1 << _LAYER_BITS) - 1)


def _mark(root: Path | int) -> int:
    flags = _FAN_CLASS_NOTIF | _FAN_CLOEXEC | _FAN_NONBLOCK
    group = int(_libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME))
    if group < 0:
        raise _error("fanotify_init")
    where, path = (root, b".") if isinstance(root, int) else (_AT_FDCWD, os.fsencode(root))
    mask = ctypes.c_uint64(_FAN_OPEN)
    if _libc.fanotify_mark(group, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, mask, where, path):
        error = _error("fanotify_mark")
        os.close(group)
        raise error
    return group


def _parse(data: bytes) -> Iterator[tuple[int, int]]:
    """(mask, descriptor) of each event."""
    offset = 0
    while offset < len(data):
        length, version, _, _, mask, descriptor, _ = _EVENT.unpack_from(data, offset)
        assert version == _VERSION, version
        yield mask, descriptor
        offset += length


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
