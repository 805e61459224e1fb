"""Blobs that were rebuilt by their encoder, kept for whoever asks next: a cache, bounded, of files.

Owns the directory `rebuilt`. A file is named after its blob; while it is being made it has `.part` at the end of its
name, and whoever makes it holds a lock on it. Everybody else who wants the blob, in this process or another, reads what
is there already and waits for more: a blob that a hundred clients ask for at the same time is made once. If the one who
makes it dies, one of those who wait begins again. A process makes few at a time; of the others those that were asked
for first come next, as long as somebody still asks. What cannot be kept is made for each reader, few at a time, too.

Who may not wait, because others need the thread, is given empty pieces as long as there is nothing.

Nothing here is needed, and nothing in it is believed: each extent is compared with the blob's list before it is handed
out, a file with a wrong one is made anew, and the directory may be removed at any time.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from pagepool.errors import BusyError, CorruptError
from pagepool.extents import EXTENT_SIZE, check_extent

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from pagepool.digest import Digest
    from pagepool_service.store.schema import ObjectRecord

log = logging.getLogger("pagepool.store")

_PART = ".part"
_LOOK_S = 0.02  # between two looks at what another process makes
_AT_ONCE = 2  # blobs that one process makes at a time
_APART_AT_ONCE = 2  # readers for whom one process makes a blob that is not kept
_ASKING_S = 5.0  # somebody who has not asked for so long does not wait any more


class _Making:
    """A blob that this process makes now."""

    def __init__(self) -> None:
        self.more = threading.Condition()
        self.ended = False
        self.error: Exception | None = None

    def wait(self) -> None:
        """Wait until there is more, or it has ended; at most some time."""
        with self.more:
            if not self.ended:
                self.more.wait(1.0)

    def tell(self, *, ended: bool = False, error: Exception | None = None) -> None:
        """Wake who waits."""
        with self.more:
            self.ended, self.error = ended, error
            self.more.notify_all()


class _StoppedError(BusyError):
    """The process is about to end."""

    def __init__(self) -> None:
        super().__init__("the service is about to end")


class _WrongError(Exception):
    """A file has other bytes than were written to it."""


class RebuiltCache:
    """The files, and what this process is making of them.

    Args:
        directory: where they are; made when it is needed.

    Attributes:
        limit: most bytes of all files; 0 keeps none, and each reader has the encoder run for itself.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._making: dict[Digest, _Making] = {}
        self._asked: dict[Digest, float] = {}  # blobs that wait to be made, and when that was asked for last
        self._threads: set[threading.Thread] = set()
        self._apart = threading.Semaphore(_APART_AT_ONCE)
        self._stopped = False
        self.limit = 0

    def read(
        self,
        digest: Digest,
        extents: ObjectRecord,
        make: Callable[[], Iterator[bytes]],
        start: int,
        end: int,
        *,
        wait: bool = True,
    ) -> Generator[bytes, None, None]:
        """The bytes `[start, end)` of a blob.

        Args:
            extents: of the blob.
            make: makes all of it, each piece verified.
            wait: block until there is more; False to be given empty pieces instead.

        Raises:
            CorruptError, EncoderMissingError: it cannot be made; what was yielded before was right.
            BusyError: the process is about to end.
        """
        position = start
        while position < end:
            if extents.size > self.limit:
                yield from self._read_apart(make, position, end, wait=wait)
                return
            before = position
            try:
                for piece in self._follow(digest, extents, make, position, end, wait=wait):
                    position += len(piece)
                    yield piece
            except (OSError, _WrongError) as error:  # a full disk, or one that does not keep what it is given
                log.warning("%s is rebuilt without being kept: %s", digest, error)
                yield from self._read_apart(make, position, end, wait=wait)
                return
            if position == before:  # others are made first, or somebody else looks for who makes it, too
                yield from _pause(wait=wait)

    def while_needed(self, plain: Iterable[bytes]) -> Iterator[bytes]:
        """Pass on what a blob is made out of, until the process is about to end.

        Raises:
            BusyError: it is.
        """
        for piece in plain:
            if self._stopped:
                raise _StoppedError
            yield piece

    def forget(self, digest: Digest) -> None:
        """Remove what is kept of a blob, and keep nothing of what is being made: who reads it has it made apart."""
        for path in (self._path(digest), _part(self._path(digest))):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def sweep(self) -> None:
        """Remove what nobody finished, and what is over the limit."""
        for path in self._paths():
            if path.name.endswith(_PART):
                with suppress(OSError):
                    fd = _lock(path, os.O_RDWR)
                    if fd is not None:
                        path.unlink(missing_ok=True)
                        os.close(fd)
        self._evict(self.limit)

    def close(self) -> None:
        """Stop making blobs, and wait until that has stopped."""
        with self._lock:
            self._stopped = True
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    # -- reading ---------------------------------------------------------------------------------------------

    def _read_apart(self, make: Callable[[], Iterator[bytes]], start: int, end: int, *, wait: bool) -> Iterator[bytes]:
        """Make a blob for one reader alone, once it is his turn."""
        while not self._apart.acquire(timeout=_LOOK_S if wait else None, blocking=wait):
            if self._stopped:
                raise _StoppedError
            if not wait:
                yield b""
        try:
            for piece in cut(make(), start, end):
                if piece or not wait:
                    yield piece
        finally:
            self._apart.release()

    def _follow(
        self,
        digest: Digest,
        extents: ObjectRecord,
        make: Callable[[], Iterator[bytes]],
        start: int,
        end: int,
        *,
        wait: bool,
    ) -> Iterator[bytes]:
        """What there is of a blob from `start` on; less than all if it has to be looked up anew."""
        path = self._path(digest)
        making = None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            making = self._start(digest, extents.size, make)
            try:
                fd = os.open(_part(path), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # it has just been finished, or failed
                _fail(making)
                return
            else:
                path = _part(path)
        try:
            if path.suffix != _PART and os.fstat(fd).st_size != extents.size:
                self._forget_file(path, fd)
                raise _WrongError(f"what was kept of {digest} was cut short")
            with suppress(OSError):
                os.utime(fd)
            for offset, name in extents.extents(start):
                size = min(EXTENT_SIZE, extents.size - offset)
                if not (yield from self._await(fd, offset + size, making, wait=wait)):
                    return
                data = os.pread(fd, size, offset)
                try:
                    check_extent(name, data, f"what was rebuilt, at {offset}")
                except CorruptError as error:
                    self._forget_file(path, fd)
                    raise _WrongError(str(error)) from error
                yield data[max(0, start - offset) : end - offset]
                if offset + size >= end:
                    return
        finally:
            os.close(fd)

    def _await(self, fd: int, size: int, making: _Making | None, *, wait: bool) -> Generator[bytes, None, bool]:
        """Wait until a file has so many bytes. Returns whether it has: if not, nobody makes it any more.

        Raises:
            PagepoolError, OSError: what this process ended with that made it.
        """
        while os.fstat(fd).st_size < size:
            if making is not None:
                if making.ended:
                    _fail(making)
                    return os.fstat(fd).st_size >= size
                if wait:
                    making.wait()
                else:
                    yield b""
            else:
                if _try_lock(fd):
                    fcntl.flock(fd, fcntl.LOCK_UN)
                    return os.fstat(fd).st_size >= size
                yield from _pause(wait=wait)
        return True

    # -- making ----------------------------------------------------------------------------------------------

    def _start(self, digest: Digest, size: int, make: Callable[[], Iterator[bytes]]) -> _Making | None:
        """Have a blob made, unless another process does, or has, or others come first.

        Returns this process's work on it.

        Raises:
            BusyError: the process is about to end.
            OSError: nothing can be kept.
        """
        with self._lock:
            if self._stopped:
                raise _StoppedError
            making = self._making.get(digest)
            if making is not None:
                return making
            if not self._is_next(digest):
                return None
            del self._asked[digest]
            self._directory.mkdir(mode=0o700, exist_ok=True)
            path = self._path(digest)
            fd = _lock(_part(path), os.O_RDWR | os.O_CREAT)
            if fd is None:
                return None
            if path.exists():  # finished between two looks
                _part(path).unlink(missing_ok=True)
                os.close(fd)
                return None
            os.ftruncate(fd, 0)
            making = _Making()
            thread = threading.Thread(target=self._make, args=(digest, size, fd, make, making))
            try:
                thread.start()
            except RuntimeError as error:  # there may be no more threads
                _part(path).unlink(missing_ok=True)
                os.close(fd)
                raise BusyError(str(error)) from error
            self._making[digest] = making
            self._threads.add(thread)
        return making

    def _is_next(self, digest: Digest) -> bool:
        """Whether a blob may be made now. Others wait longer, if not, and are asked for still."""
        now = time.monotonic()
        self._asked[digest] = now  # those that are there already keep their places
        self._asked = {other: asked for other, asked in self._asked.items() if now - asked < _ASKING_S}
        return digest in islice(self._asked, max(0, _AT_ONCE - len(self._making)))

    def _make(self, digest: Digest, size: int, fd: int, make: Callable[[], Iterator[bytes]], making: _Making) -> None:
        path = self._path(digest)
        failure: Exception | None = None
        try:
            self._evict(self.limit - size)
            for piece in self.while_needed(make()):
                _write(fd, piece)
                making.tell()
            if not _is_file(_part(path), fd):
                raise _WrongError("it was removed meanwhile")
            _part(path).rename(path)
            self._evict(self.limit)  # others were made meanwhile
        except Exception as error:  # noqa: BLE001 - whoever reads is told of it
            failure = error
            self._forget_file(_part(path), fd)
        finally:
            with self._lock:
                del self._making[digest]
                self._threads.discard(threading.current_thread())
            os.close(fd)
            making.tell(ended=True, error=failure)

    # -- the directory ---------------------------------------------------------------------------------------

    def _path(self, digest: Digest) -> Path:
        return self._directory / f"{digest.algorithm}-{digest.hex}"

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

    def _evict(self, limit: int) -> None:
        """Remove those that were not asked for the longest until all together have at most so many bytes."""
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= limit:
                return
            if not path.name.endswith(_PART):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    total -= size

    @staticmethod
    def _forget_file(path: Path, fd: int) -> None:
        """Remove a file, if it is still this one."""
        with suppress(OSError):
            if _is_file(path, fd):
                path.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(path.name + _PART)


def _lock(path: Path, flags: int) -> int | None:
    """Open a file and lock it; None if another process has it, or it is not there any more.

    Raises:
        OSError: it cannot be opened or locked.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        if _try_lock(fd) and _is_file(path, fd):
            return fd
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _is_file(path: Path, fd: int) -> bool:
    """Whether a path leads to the file that is open."""
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pause(*, wait: bool) -> Iterator[bytes]:
    if wait:
        time.sleep(_LOOK_S)
    else:
        yield b""


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _fail(making: _Making | None) -> None:
    if making is not None and making.ended and making.error is not None:
        raise making.error


def cut(pieces: Iterator[bytes], start: int, end: int) -> Iterator[bytes]:
    """The bytes `[start, end)` of a stream, and an empty piece for each that has none of them."""
    position = 0
    for piece in pieces:
        yield piece[max(0, start - position) : max(0, end - position)]
        position += len(piece)
        if position >= end:
            return
