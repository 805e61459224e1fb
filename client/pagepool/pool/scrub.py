"""Looking for objects that were damaged at rest, a little at a time, and having them fetched again.

Every whole object is hashed, in the order of names, at a bounded rate. One that is wrong, or cannot be read, loses its
name at once (whoever holds it goes on with what it has) and is reported; a callback may then put it back. Where the
last run has stopped is kept in `scrub`, so that short runs come round to everything. Files are read and not mapped, so
that a broken disk is an error that can be caught; pages that were not in memory before are dropped again.

One process at a time scrubs a pool. What is published or evicted meanwhile is none of its business.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from pagepool.errors import BusyError
from pagepool.linux import is_full
from pagepool.pool.epoch import BASE_S
from pagepool.pool.files import READ, hold, is_unreadable
from pagepool.pool.layout import OBJECTS, SCRUB, SCRUB_LOCK, object_name, replace
from pagepool.pool.residency import resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.pool.pool import Pool

log = logging.getLogger("pagepool.pool")

_CHUNK: Final = 1 << 20
_SAVE_EVERY: Final = 256  # objects


@dataclass(frozen=True, slots=True)
class Damage:
    """One object that was wrong.

    Args:
        digest: its name.
        reason: what was found.
        repaired: whether the callback brought it back.
    """

    digest: bytes
    reason: str
    repaired: bool


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """What a run has seen.

    Args:
        objects: that were hashed.
        bytes: that were read.
        damaged: what was wrong.
        finished: whether the run came to the last object; the next one begins at the first.
    """

    objects: int
    bytes: int
    damaged: tuple[Damage, ...]
    finished: bool


class Scrubber:
    """A run over a pool's objects.

    Args:
        pool: its own, not a reader's.
        repair: called with the digest of each damaged object, after that has lost its name; says whether the object is
            there again. It may raise what it likes, which ends the run.
        rate: bytes per second, at most; None for no limit.
        wait: called with seconds to let pass; says whether to stop now.
    """

    def __init__(
        self,
        pool: Pool,
        repair: Callable[[bytes], bool] | None = None,
        *,
        rate: int | None = None,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._pool = pool
        self._repair = repair
        self._rate = rate
        self._wait = _sleep if wait is None else wait
        self._stopped = False
        self._bytes = 0
        self._began = 0.0

    def run(self, most: int | None = None, *, everything: bool = False) -> ScrubReport:
        """Go on where the last run has stopped. Blocks for as long as it takes.

        Args:
            most: objects to look at, at most.
            everything: begin at the first object, wherever the last run has stopped.

        Raises:
            BusyError: another process is at it.
        """
        path = self._pool.path / SCRUB_LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BusyError(f"{self._pool.path} is being scrubbed by another process") from error
        try:
            return self._run(most, everything)
        finally:
            os.close(descriptor)

    def check_since(self, stamp: int) -> ScrubReport:
        """Look, without limit, at all objects that were published with a stamp or a later one (`epoch`), as the disk
        has them: what memory has may be right, and gone tomorrow. Beside any other run.

        Raises:
            OSError: an object that is wrong cannot be removed, or one cannot be looked at; all others were.
        """
        self._began, self._bytes, self._stopped = time.monotonic(), 0, False
        damaged: list[Damage] = []
        count, stays = 0, None
        for digest in self._pool.digests():
            with suppress(FileNotFoundError):
                status = (self._pool.path / OBJECTS / object_name(digest)).stat()
                if status.st_mtime_ns // 10**9 - BASE_S < stamp:
                    continue
                count += 1
                reason = ""
                try:
                    reason = self._check(digest, hash_on_disk)
                    if reason:
                        damaged.append(self._mend(digest, reason))
                except OSError as error:
                    what = "is damaged, and cannot be removed" if reason else "cannot be looked at"
                    log.error("object %s %s: %s", digest.hex(), what, error.strerror)
                    stays = error
        if stays is not None:
            raise stays
        return ScrubReport(count, self._bytes, tuple(damaged), finished=True)

    def _run(self, most: int | None, everything: bool) -> ScrubReport:
        self._began, self._bytes, self._stopped = time.monotonic(), 0, False
        damaged: list[Damage] = []
        last, count, finished = b"" if everything else self._read_place(), 0, True
        for digest in self._after(last):
            if self._stopped or count == most:
                finished = False
                break
            reason = self._check(digest)
            if self._stopped:
                finished = False
                break
            if reason:
                damaged.append(self._mend(digest, reason))
            last, count = digest, count + 1
            if not count % _SAVE_EVERY:
                self._save_place(last)
        self._save_place(b"" if finished else last)
        return ScrubReport(count, self._bytes, tuple(damaged), finished)

    def _after(self, last: bytes) -> Iterator[bytes]:
        return (digest for digest in self._pool.digests() if digest > last)

    def _check(self, digest: bytes, hashed: Callable[[int], bytes] | None = None) -> str:
        """Hash an object: what is wrong with it, "" if nothing is."""
        try:
            descriptor = os.open(self._pool.path / OBJECTS / object_name(digest), READ)
        except FileNotFoundError:
            return ""
        try:
            hold(descriptor)
            got = (hashed or self._hash)(descriptor)
        except OSError as error:
            # Before a file is read past memory, what memory has of it is written. So "full" is said of bytes that a
            # full disk below the file system (a thin volume, a sparse image) has not taken.
            if not is_unreadable(error) and not is_full(error):
                raise
            return f"it cannot be read: {error.strerror}"
        finally:
            os.close(descriptor)
        return "" if got == digest or self._stopped else f"its bytes are {got.hex()}"

    def _hash(self, descriptor: int) -> bytes:
        hasher, size = blake3(), os.fstat(descriptor).st_size
        # Looked at before the first read: that brings in what comes after it, too.
        cold = [not resident(descriptor, offset, _CHUNK) for offset in range(0, size, _CHUNK)]
        for number, was_cold in enumerate(cold):
            if self._stopped:
                break
            chunk = os.pread(descriptor, _CHUNK, number * _CHUNK)
            hasher.update(chunk)
            if was_cold:
                os.posix_fadvise(descriptor, number * _CHUNK, _CHUNK, os.POSIX_FADV_DONTNEED)
            self._bytes += len(chunk)
            self._slow_down()
        return hasher.digest()

    def _slow_down(self) -> None:
        ahead = 0.0 if self._rate is None else self._bytes / self._rate - (time.monotonic() - self._began)
        self._stopped = self._wait(max(0.0, ahead))

    def _mend(self, digest: bytes, reason: str) -> Damage:
        self._pool.remove(digest)
        log.error("object %s is damaged: %s; it was removed", digest.hex(), reason)
        repaired = self._repair is not None and self._repair(digest)
        return Damage(digest, reason, repaired)

    def _read_place(self) -> bytes:
        with suppress(OSError, ValueError):
            return bytes.fromhex((self._pool.path / SCRUB).read_text("ascii").strip())
        return b""

    def _save_place(self, last: bytes) -> None:
        with suppress(OSError):  # on a full disk the next run begins where this one did
            replace(self._pool.path, SCRUB, f"{last.hex()}\n".encode(), durable=False, mode=0o600)


def hash_on_disk(descriptor: int) -> bytes:
    """Hash a file as its disk has it, whatever is in memory of it; where that cannot be asked for, as it is in memory
    once all has left that nobody has mapped."""
    hasher, buffer, offset = blake3(), mmap.mmap(-1, _CHUNK), 0
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        direct = os.dup(descriptor)
    try:
        while got := os.preadv(direct, [buffer], offset):
            hasher.update(buffer[:got])
            offset += got
    finally:
        os.close(direct)
    return hasher.digest()


def _sleep(seconds: float) -> bool:
    if seconds:
        time.sleep(seconds)
    return False
