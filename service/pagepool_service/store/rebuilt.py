"""Blobs that were rebuilt by their encoder, kept for whoever asks next: a cache, bounded, of files.

Owns the directory `rebuilt` (`rebuiltfiles`). Whoever makes a blob holds a lock on its file. Everybody else who wants
the blob, in this process or another, reads what is there already and waits for more: a blob that a hundred clients ask
for at the same time is made once. If the one who makes it dies, one of those who wait begins again. A process makes few
at a time; of the others those that were asked for first come next, as long as somebody still asks. What cannot be kept
is made for each reader, few at a time, too.

What nobody reads any more is made no further: some time after the last reader has left, since who lost his connection
may come back; soon, if others wait for the place.

Who may not wait, because others need the thread, is given empty pieces as long as there is nothing.

Nothing here is needed, and nothing in it is believed: each extent is compared with the blob's list before it is handed
out, a file with a wrong one is made anew, and the directory may be removed at any time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pagepool.errors import BusyError, CorruptError
from pagepool.extents import EXTENT_SIZE, check_extent
from pagepool_service.store.rebuiltfiles import (
    RebuiltFiles,
    can_be_held,
    hold,
    is_file,
    is_held,
    is_made,
    remove_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from pagepool.digest import Digest
    from pagepool_service.store.schema import ObjectRecord

log = logging.getLogger("pagepool.store")

_LOOK_S = 0.02  # between two looks at what another process makes
_AT_ONCE = 2  # blobs that one process makes at a time
_APART_AT_ONCE = 2  # readers for whom one process makes a blob that is not kept
_ASKING_S = 5.0  # somebody who has not asked for so long does not wait any more
_LINGER_S = 30.0  # for so long a blob is made on that nobody reads
_AWAY_S = 5.0  # and for so long if others wait to be made
_READERS_S = 0.5  # between two looks whether somebody reads what is made


@dataclass(frozen=True, slots=True)
class RebuiltBlob:
    """A blob that is made again.

    Args:
        digest: of it.
        extents: of it.
        make: makes all of it, each piece verified. Calls its argument now and then; what that raises ends it.
    """

    digest: Digest
    extents: ObjectRecord
    make: Callable[[Callable[[], None]], Iterator[bytes]]

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return self.extents.size


class _Making:
    """A blob that this process makes now.

    Args:
        fd: its file.
        shows_readers: whether it can be told that somebody reads that.
    """

    def __init__(self, fd: int, *, shows_readers: bool) -> None:
        self.fd = fd
        self.more = threading.Condition()
        self.ended = False
        self.error: Exception | None = None
        self._shows_readers = shows_readers
        self._looked = self._read = time.monotonic()

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

    def unread_s(self) -> float:
        """For how long nobody has read it, about."""
        now = time.monotonic()
        if now - self._looked >= _READERS_S:
            self._looked = now
            if not self._shows_readers or is_held(self.fd):
                self._read = now
        return self._looked - self._read


class _StoppedError(BusyError):
    """The process is about to end."""

    def __init__(self) -> None:
        super().__init__("the service is about to end")


class _UnreadError(Exception):
    """Nobody waits for a blob any more. Who comes now begins anew."""


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
        self._files = RebuiltFiles(directory)
        self._lock = threading.Lock()
        self._making: dict[Digest, _Making] = {}
        self._asked: dict[Digest, float] = {}  # blobs that wait to be made, and when that was asked for last
        self._threads: set[threading.Thread] = set()
        self._apart = threading.Semaphore(_APART_AT_ONCE)
        self._stopped = False
        self.limit = 0

    def read(self, blob: RebuiltBlob, start: int, end: int, *, wait: bool = True) -> Generator[bytes, None, None]:
        """The bytes `[start, end)` of a blob.

        Args:
            wait: block until there is more; False to be given empty pieces instead.

        Raises:
            CorruptError, EncoderMissingError: it cannot be made; what was yielded before was right.
            BusyError: the process is about to end.
        """
        position = start
        while position < end:
            if blob.size > self.limit:
                yield from self._read_apart(blob, position, end, wait=wait)
                return
            before = position
            try:
                for piece in self._follow(blob, position, end, wait=wait):
                    position += len(piece)
                    yield piece
            except (OSError, _WrongError) as error:  # a full disk, or one that does not keep what it is given
                log.warning("%s is rebuilt without being kept: %s", blob.digest, error)
                yield from self._read_apart(blob, position, end, wait=wait)
                return
            if position == before:  # others are made first, or somebody else looks for who makes it, too
                yield from _pause(wait=wait)

    def forget(self, digest: Digest) -> None:
        """Remove what is kept of a blob, and keep nothing of what is being made: who reads it has it made apart."""
        self._files.remove(digest)

    def used(self) -> int:
        """Bytes of all files."""
        return self._files.used()

    def sweep(self) -> None:
        """Remove what nobody finished, and what is over the limit."""
        self._files.evict(self.limit)

    def close(self) -> None:
        """Stop making blobs, and wait until that has stopped."""
        with self._lock:
            self._stopped = True
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    # -- reading ---------------------------------------------------------------------------------------------

    def _read_apart(self, blob: RebuiltBlob, start: int, end: int, *, wait: bool) -> Iterator[bytes]:
        """Make a blob for one reader alone, once it is his turn."""
        while not self._apart.acquire(timeout=_LOOK_S if wait else None, blocking=wait):
            self._refuse_stopped()
            if not wait:
                yield b""
        try:
            for piece in cut(blob.make(self._refuse_stopped), start, end):
                if piece or not wait:
                    yield piece
        finally:
            self._apart.release()

    def _follow(self, blob: RebuiltBlob, start: int, end: int, *, wait: bool) -> Iterator[bytes]:
        """What there is of a blob from `start` on; less than all if it has to be looked up anew."""
        path = self._files.whole(blob.digest)
        making = None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            making = self._start(blob)
            path = self._files.part(blob.digest)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # it has just been finished, or failed
                _fail(making)
                return
        try:
            if path == self._files.whole(blob.digest):
                if os.fstat(fd).st_size != blob.size:
                    remove_file(path, fd)
                    raise _WrongError(f"what was kept of {blob.digest} was cut short")
            else:
                hold(fd)
            with suppress(OSError):
                os.utime(fd)
            for offset, name in blob.extents.extents(start):
                size = min(EXTENT_SIZE, blob.size - offset)
                if not (yield from self._await(fd, offset + size, making, wait=wait)):
                    return
                data = os.pread(fd, size, offset)
                try:
                    check_extent(name, data, f"what was rebuilt, at {offset}")
                except CorruptError as error:
                    remove_file(path, fd)
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
                if not is_made(fd):
                    return os.fstat(fd).st_size >= size
                yield from _pause(wait=wait)
        return True

    # -- making ----------------------------------------------------------------------------------------------

    def _start(self, blob: RebuiltBlob) -> _Making | None:
        """Have a blob made, unless another process does, or has, or others come first.

        Returns this process's work on it.

        Raises:
            BusyError: the process is about to end.
            OSError: nothing can be kept.
        """
        with self._lock:
            self._refuse_stopped()
            making = self._making.get(blob.digest)
            if making is not None:
                return making
            if not self._is_next(blob.digest):
                return None
            del self._asked[blob.digest]
            fd = self._files.begin(blob.digest)
            if fd is None:
                return None
            part = self._files.part(blob.digest)
            making = _Making(fd, shows_readers=can_be_held(part, fd))
            thread = threading.Thread(target=self._make, args=(blob, making))
            try:
                thread.start()
            except RuntimeError as error:  # there may be no more threads
                part.unlink(missing_ok=True)
                os.close(fd)
                raise BusyError(str(error)) from error
            self._making[blob.digest] = making
            self._threads.add(thread)
        return making

    def _is_next(self, digest: Digest) -> bool:
        """Whether a blob may be made now. Others wait longer, if not, and are asked for still."""
        now = time.monotonic()
        self._asked[digest] = now  # those that are there already keep their places
        self._asked = {other: asked for other, asked in self._asked.items() if now - asked < _ASKING_S}
        return digest in islice(self._asked, max(0, _AT_ONCE - len(self._making)))

    def _make(self, blob: RebuiltBlob, making: _Making) -> None:
        part = self._files.part(blob.digest)
        failure: Exception | None = None
        try:
            self._files.evict(self.limit - blob.size)
            for piece in blob.make(partial(self._refuse_unread, making)):
                _write(making.fd, piece)
                making.tell()
            if not is_file(part, making.fd):
                raise _WrongError("it was removed meanwhile")
            part.rename(self._files.whole(blob.digest))
            self._files.evict(self.limit)  # others were made meanwhile
        except Exception as error:  # noqa: BLE001 - whoever reads is told of it
            failure = error
            remove_file(part, making.fd)
        finally:
            with self._lock:
                del self._making[blob.digest]
                self._threads.discard(threading.current_thread())
            os.close(making.fd)
            making.tell(ended=True, error=failure)

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise _StoppedError

    def _refuse_unread(self, making: _Making) -> None:
        """Go on only as long as somebody reads what is made, and some time after that."""
        self._refuse_stopped()
        unread_s = making.unread_s()
        if unread_s and (unread_s >= _LINGER_S or (unread_s >= _AWAY_S and self._others_wait())):
            raise _UnreadError

    def _others_wait(self) -> bool:
        now = time.monotonic()
        with self._lock:
            return any(now - asked < _ASKING_S for asked in self._asked.values())


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
    if making is not None and making.error is not None and not isinstance(making.error, _UnreadError):
        raise making.error


def cut(pieces: Iterator[bytes], start: int, end: int) -> Iterator[bytes]:
    """The bytes `[start, end)` of a stream, and an empty piece for each that has none of them."""
    position = 0
    for piece in pieces:
        yield piece[max(0, start - position) : max(0, end - position)]
        position += len(piece)
        if position >= end:
            return
