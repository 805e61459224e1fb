"""What containers in the background have written: kept for each, up to a bound, and read again.

By runc, nothing of ours is between program and file: whoever of ours is killed, neither of them notices. The process
that runs the container is told by the kernel (inotify) when something was written. By our own runtime, with which the
container ends when that process does, it copies from a pipe: a program that opens /dev/stdout anew would empty a file.

Where it cannot be told (the kernel's `max_user_instances` is 128 for a user, and each container has one)
it looks once a second.

In both cases it takes away the beginning of what has become too long: a hole is made of it, so that what is appended
meanwhile stays where it is. When it was killed, and runc goes on, the file grows until the next `cleanup_stale`; so it
is not in memory, as the records are.

    LOGS/ID.container-log       removed with the container, or with what is kept of it when it has ended (`ended`)

A reader that is overtaken finds a hole instead of what it was about to read, and goes on behind it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import time
from typing import TYPE_CHECKING, Final

from pagepool.linux.calls import call

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

MOST: Final = 1 << 20
"""Bytes of a log, from which on its beginning is taken away."""
_KEPT: Final = 1 << 19
_BLOCK: Final = 65536
"""Of any file system: less than a block is not taken away, only overwritten."""
_SUFFIX: Final = ".container-log"
_EVERY_S: Final = 0.05
"""How often a program that writes without end has its log looked at."""
_UNTOLD_S: Final = 1.0
"""The same where nobody tells that something was written."""
_UNTOLD: Final = (errno.EMFILE, errno.ENOSPC)
"""What the kernel says when a user has too many instances, or watches, of inotify."""
_LOOK_S: Final = 0.2
_CHUNK: Final = 65536
_MODIFIED: Final = 0x2
_KEEP_SIZE_PUNCH_HOLE: Final = 0x1 | 0x2


class KeptLog:
    """A container's log, as the process has it that runs the container. For one thread; `close` it.

    Args:
        directory: of the logs of all containers.
        name: the container's id.
        containers: where they are noted; logs of those that are not there are removed.
        ended: where those are noted that have ended, whose logs stay; None: nowhere.
        piped: whether what is written comes by a pipe, which `handle` empties, and not to the file itself.
    """

    def __init__(
        self, directory: Path, name: str, containers: Path, ended: Path | None = None, *, piped: bool = False
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_nobodys(directory, containers, ended)
        self.path = directory / f"{name}{_SUFFIX}"
        self.stays = False
        """Whether `close` leaves the file."""
        self._piped = piped
        self._start = 0
        self._next = 0.0
        with contextlib.ExitStack() as undo:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, self._file)
            undo.callback(self._remove)
            self._told: int | None = None
            self._told, self._output = self._make_pipe(undo) if piped else (self._watch(undo), self._file)
            self._undo = undo.pop_all()

    def _make_pipe(self, undo: contextlib.ExitStack) -> tuple[int, int]:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        undo.callback(os.close, reading)
        undo.callback(os.close, writing)
        return reading, writing

    def _watch(self, undo: contextlib.ExitStack) -> int | None:
        try:
            told = call("inotify_init1", ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC))
            undo.callback(os.close, told)
            call("inotify_add_watch", told, os.fsencode(self.path), ctypes.c_uint32(_MODIFIED), path=self.path)
        except OSError as error:
            if error.errno not in _UNTOLD:
                raise
            return None
        return told

    def take_output(self) -> None:
        """Have all that this process and those that it starts write to standard output and error go here."""
        for number in (1, 2):
            os.dup2(self._output, number)

    def interests(self) -> dict[int, int]:
        """What to poll for: descriptor -> events."""
        return {} if self._told is None or self.wait_s() else {self._told: select.POLLIN}

    def is_due(self, ready: Container[int]) -> bool:
        """Whether there may be something to do.

        Args:
            ready: descriptors of which something has come.
        """
        return not self.wait_s() if self._told is None else self._told in ready

    def wait_s(self) -> float | None:
        """Seconds until there may be something to do again; None: nothing is to be waited for but events."""
        left = self._next - time.monotonic()
        return left if left > 0 else 0.0 if self._told is None else None

    def handle(self) -> bool:
        """Take what there is, and keep the bound. Does not block but for the disk. False: there was nothing."""
        data = b""
        if self._told is not None:
            with contextlib.suppress(BlockingIOError):
                data = os.read(self._told, _CHUNK)
        if self._piped:
            left = memoryview(data)
            with contextlib.suppress(OSError):  # the disk is full: the program is not to be held up by that
                while left:
                    left = left[os.write(self._file, left) :]
        else:
            self._next = time.monotonic() + (_UNTOLD_S if self._told is None else _EVERY_S)
        self._shorten()
        return bool(data)

    def drain(self) -> None:
        """Take what is left, once the program has ended."""
        while self.handle():
            pass

    def _shorten(self) -> None:
        size = os.fstat(self._file).st_size
        if size - self._start <= MOST:
            return
        start = (size - _KEPT) // _BLOCK * _BLOCK
        where = ctypes.c_long(self._start), ctypes.c_long(start - self._start)
        try:
            call("fallocate", self._file, ctypes.c_int(_KEEP_SIZE_PUNCH_HOLE), *where, path=self.path)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                return  # the disk takes nothing: the program is not to be ended by that
            os.ftruncate(self._file, 0)  # what is appended goes to the beginning then
            start = 0
        self._start = start

    def _remove(self) -> None:
        if not self.stays:
            with contextlib.suppress(OSError):  # the next container's start tries it again
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove it, unless it `stays`."""
        self._undo.close()


def _remove_nobodys(directory: Path, containers: Path, ended: Path | None) -> None:
    """Remove logs of containers that are gone. In this order: a log is made after its container is noted, and the
    container is noted as ended before it is gone from where those are that run."""
    ids = {name.removesuffix(_SUFFIX) for name in _names(directory) if name.endswith(_SUFFIX)}
    ids -= set(_names(containers))
    if ids and ended is not None:
        from pagepool.container.ended import noted_ids

        ids -= noted_ids(ended)
    for name in ids:
        (directory / f"{name}{_SUFFIX}").unlink(missing_ok=True)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - hundreds of names, at each start of a container
    except FileNotFoundError:
        return []


def read_log(
    path: Path, *, skip: int = 0, end: int | None = None, tail: int | None = None, owner: int | None = None
) -> Iterator[bytes]:
    """What is in a log, in pieces.

    Args:
        skip: bytes at its beginning that are not the container's.
        end: where the container's ended; None: it goes on as long as the file does.
        tail: the last lines only; None: all.
        owner: a descriptor (pidfd) of the process that runs the container: what comes until its end, too. Blocks.

    Raises:
        OSError: it cannot be read; FileNotFoundError: the container has ended.
    """
    poller = select.poll()
    if owner is not None:
        poller.register(owner, select.POLLIN)
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        begin = skip if tail is None else _last_lines(descriptor, skip, end, tail)
        at = begin
        ended = owner is None
        while True:
            found = _begin(descriptor, at)
            if found > at:
                at = found if at == begin and tail is not None else _next_line(descriptor, found)
            data = os.pread(descriptor, _CHUNK if end is None else max(0, min(_CHUNK, end - at)), at)
            if data and _begin(descriptor, at) > at:
                continue  # it was taken away meanwhile
            if data:
                at += len(data)
                yield data
            elif ended:
                return
            else:
                if os.fstat(descriptor).st_size < at:  # begun anew
                    at = 0
                ended = bool(poller.poll(_LOOK_S * 1000))


def _begin(descriptor: int, at: int) -> int:
    """Where from there on something is to be read."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing follows
            raise
        return at


def _next_line(descriptor: int, at: int) -> int:
    """The beginning of the next line; there if none begins soon."""
    position = os.pread(descriptor, _CHUNK, at).find(b"\n")
    return at if position < 0 else at + position + 1


def _last_lines(descriptor: int, begin: int, end: int | None, lines: int) -> int:
    """Where the last so many lines begin."""
    begin = _begin(descriptor, begin)
    size = os.fstat(descriptor).st_size
    end = size if end is None else min(size, end)
    if lines == 0:
        return end
    at, left = end, lines
    if end > begin and os.pread(descriptor, 1, end - 1) != b"\n":
        left -= 1  # the last one has not ended
    while at > begin:
        size = min(_CHUNK, at - begin)
        data = os.pread(descriptor, size, at - size)
        while (position := data.rfind(b"\n")) >= 0:
            if left == 0:
                return at - size + position + 1
            left -= 1
            data = data[:position]
        at -= size
    return begin
