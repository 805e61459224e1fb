"""Serves a file system over an open FUSE device, by up to `MAX_THREADS` threads (`threads`).

A request that fails is answered with an errno (`errnos`), whatever is wrong with it or with the code that handles it.
READ can be interrupted: who answers it, the thread that reads or the one that is told of the signal, is who takes its
number out of `_reading`.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from pagepool.errors import PagepoolError, UnsupportedError
from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.errnos import is_refusal, to_errno, to_read_errno
from pagepool.mount.fuse.operations import NeverAgainError, Operations, Request
from pagepool.mount.fuse.protocol import InitFlag, Opcode, ProtocolError
from pagepool.mount.fuse.threads import IDLE_THREADS, ThreadedServer
from pagepool.mount.fuse.writing import WritingOperations
from pagepool.vfs.interface import WritableFileSystem

if TYPE_CHECKING:
    from pagepool.mount.fuse.operations import Handler, Reply
    from pagepool.vfs.interface import FileSystem

MAX_THREADS: Final = 128
_EARLY_KEPT: Final = 256
_MOMENT_S: Final = 0.05

_FLAGS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.POSIX_ACL
)
# Not where something can be written: once an asynchronous direct write is done, the kernel lets go of no page that was
# read meanwhile, and everybody would go on reading what was there before.
_READING_FLAGS: Final = InitFlag.ASYNC_DIO
_WRITING_FLAGS: Final = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.DONT_MASK | InitFlag.SETXATTR_EXT
_NEEDED: Final = InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT | InitFlag.MAX_PAGES

_log = logging.getLogger(__name__)

_open_devices: set[int] = set()
"""Devices that this process serves. A child that it forks must not keep them open: a mount whose server has died would
not be dead, and whoever uses it would wait for ever."""


def _close_in_child() -> None:
    while _open_devices:
        os.close(_open_devices.pop())


os.register_at_fork(after_in_child=_close_in_child)


class FuseServer(ThreadedServer[Request]):
    """Serves one mount.

    Args:
        descriptor: of the FUSE device; belongs to the server from here on.
        filesystem: what is served; closed by the caller, when `join` has returned.
        read_only: whether requests that change something are refused, whatever the file system can.
        max_threads: how many requests are handled at the same time.
    """

    def __init__(
        self, descriptor: int, filesystem: FileSystem, *, read_only: bool, max_threads: int = MAX_THREADS
    ) -> None:
        super().__init__(descriptor, "fuse", max_threads=max_threads, buffer_size=protocol.BUFFER_SIZE)
        _open_devices.add(descriptor)
        self._writing = not read_only and isinstance(filesystem, WritableFileSystem) and not filesystem.read_only
        operations = WritingOperations(filesystem) if self._writing else Operations(filesystem)  # type: ignore[arg-type]
        self._operations = operations
        handlers = operations.handlers() | {
            Opcode.INIT: self._init,
            Opcode.READ: self._read,
            Opcode.INTERRUPT: self._interrupt,
        }
        self._handlers: list[Handler | None] = [None] * (max(Opcode) + 1)
        for opcode, handler in handlers.items():
            self._handlers[opcode] = handler
        self._reading: set[int] = set()
        self._early: OrderedDict[int, None] = OrderedDict()

    def start(self) -> None:
        """Begin to serve. Does not block.

        Raises:
            RuntimeError: there are no threads; the device is closed.
        """
        try:
            self._add_threads(min(IDLE_THREADS, self._max_threads))
        except RuntimeError:
            self._leave()
            raise

    def wait_quiet(self, timeout_s: float) -> bool:
        """Wait until no request has come for a moment, and none is being handled. False if that took longer."""
        deadline, seen = time.monotonic() + timeout_s, -1
        while time.monotonic() < deadline and not self._ended.is_set():
            count = self.requests.total()
            if count == seen and self._idle >= len(self._threads):
                return True
            seen = count
            self._ended.wait(_MOMENT_S)
        return self._ended.is_set()

    @property
    def ended(self) -> bool:
        """Whether the mount is gone, and nobody serves it any more."""
        return self._ended.is_set()

    def _new_request(self) -> Request:
        return Request()

    def _let_go(self) -> None:
        """Close the device."""
        _open_devices.discard(self._descriptor)
        os.close(self._descriptor)
        self._operations.lookups.clear()

    def handle(self, request: Request, data: memoryview) -> None:
        """See `ThreadedServer`."""
        if len(data) < protocol.IN_HEADER.size:
            _log.error("a request of %d bytes has no header", len(data))
            return
        try:
            _, request.opcode, request.unique, request.node, request.uid, request.gid, _, extra, _ = (
                protocol.IN_HEADER.unpack_from(data)
            )
            end = len(data) - 8 * extra
            request.body = data[protocol.IN_HEADER.size : end]
            opcode = request.opcode
            handler = self._handlers[opcode] if opcode < len(self._handlers) else None
            if handler is None:
                raise NeverAgainError
            self.requests[opcode] += 1
            reply = handler(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for an answer
            self._send(request.unique, (protocol.encode_error(request.unique, self._judge(request, error)),))
            return
        if reply is not None:
            self._answer(request.unique, reply)

    def _answer(self, unique: int, reply: bytes | memoryview) -> None:
        header = protocol.encode_header(unique, len(reply))
        if not self._send(unique, (header, reply) if len(reply) else (header,)):
            self._send(unique, (protocol.encode_error(unique, errno.EIO),))

    def _judge(self, request: Request, error: Exception) -> int:
        """The errno of an error; what an administrator should know is logged."""
        if isinstance(error, NeverAgainError):
            return errno.ENOSYS
        if isinstance(error, ProtocolError):
            _log.error("a malformed request %d: %s", request.opcode, error)
            return errno.EINVAL
        number = to_read_errno(error) if request.opcode == Opcode.READ else to_errno(error)
        if is_refusal(error):
            return number
        bug = not isinstance(error, (OSError, PagepoolError))
        _log.error("%s of inode %d failed: %s", Opcode(request.opcode).name, request.node, error, exc_info=bug)
        return number

    # -- requests about requests ---------------------------------------------------------------------------------

    def _init(self, request: Request) -> Reply:
        init = protocol.parse_init(request.body)
        if init.major != protocol.MAJOR or init.minor < protocol.OLDEST_MINOR or init.flags & _NEEDED != _NEEDED:
            self._refused = UnsupportedError(
                f"this kernel speaks FUSE {init.major}.{init.minor}; 7.{protocol.OLDEST_MINOR} (Linux 5.4) is needed"
            )
            self._ready.set()
            raise OSError(errno.EPROTO, "too old")
        flags = init.flags & (_FLAGS | (_WRITING_FLAGS if self._writing else _READING_FLAGS))
        self._operations.extended_setxattr = bool(flags & InitFlag.SETXATTR_EXT)
        self._ready.set()
        minor = min(init.minor, protocol.MINOR)
        return protocol.encode_init(minor, init.max_readahead, flags, background=self._max_threads // 2)

    def _read(self, request: Request) -> Reply:
        unique, reading = request.unique, self._reading
        reading.add(unique)
        try:
            if unique in self._early:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            reply = self._operations.read(request)
        except BaseException:
            if self._take(unique):
                raise
            return None
        return reply if self._take(unique) else None

    def _interrupt(self, request: Request) -> Reply:
        (unique,) = protocol.unpack(protocol.INTERRUPT_IN, request.body)
        # Remembered first: it may be a READ that another thread has taken and not begun. If it is answered already, or
        # something that goes on to its end, nobody asks.
        with self._lock:
            self._early[unique] = None
            if len(self._early) > _EARLY_KEPT:
                self._early.popitem(last=False)
        if self._take(unique):
            self._send(unique, (protocol.encode_error(unique, errno.EINTR),))
        return None

    def _take(self, unique: int) -> bool:
        """Whether it is the caller who is to answer a READ: True once. Atomic, since a set's `remove` is."""
        try:
            self._reading.remove(unique)
        except KeyError:
            return False
        return True
