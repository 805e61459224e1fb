"""Serves a file system over an open FUSE device: threads that each read a request, handle it, and answer.

A thread is busy for as long as its request takes, so there is always one more that waits: whoever takes the last one's
place starts another, up to `MAX_THREADS`, and those that are too many end. A request that waits for the network
therefore holds nobody up.

A request that fails is answered with an errno (`errnos`), whatever is wrong with it or with the code that handles it;
a thread ends only when the kernel says that the mount is gone. READ can be interrupted: who answers it, the thread
that reads or the one that is told of the signal, is who takes its number out of `_reading`.

Memory: a buffer of 1 MiB for each thread, of which only what requests touch is resident.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import Counter, OrderedDict
from threading import Event, Lock, Thread, get_ident
from typing import TYPE_CHECKING, Final

from pagepool.errors import PagepoolError, UnsupportedError
from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.errnos import is_refusal, to_errno, to_read_errno
from pagepool.mount.fuse.operations import NeverAgainError, Operations, Request
from pagepool.mount.fuse.protocol import InitFlag, Opcode, ProtocolError
from pagepool.mount.fuse.writing import WritingOperations
from pagepool.vfs.interface import WritableFileSystem

if TYPE_CHECKING:
    from pagepool.mount.fuse.operations import Handler, Reply
    from pagepool.vfs.interface import FileSystem

MAX_THREADS: Final = 128
_IDLE_THREADS: Final = 4
_EARLY_KEPT: Final = 256
_MOMENT_S: Final = 0.05
_GONE: Final = (errno.ENODEV, errno.ECONNABORTED)
_AGAIN: Final = (errno.ENOENT, errno.EINTR, errno.EAGAIN)

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


class FuseServer:
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
        self._descriptor = descriptor
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
        self._max_threads = max_threads
        self._lock = Lock()
        self._threads: set[Thread] = set()
        self._idle = 0
        self._ready = Event()
        self._ended = Event()
        self._refused: UnsupportedError | None = None
        self._reading: set[int] = set()
        self._early: OrderedDict[int, None] = OrderedDict()
        self.requests: Counter[int] = Counter()
        """How many came, by opcode. Exact as long as requests come one at a time."""

    def start(self) -> None:
        """Begin to serve. Does not block.

        Raises:
            RuntimeError: there are no threads; the device is closed.
        """
        try:
            with self._lock:
                for _ in range(min(_IDLE_THREADS, self._max_threads)):
                    self._add_thread()
        except RuntimeError:
            self._leave()
            raise

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the kernel has begun to use the mount.

        Returns:
            False if that took longer, or never will be, since it is unmounted already.

        Raises:
            UnsupportedError: this kernel cannot.
        """
        self._ready.wait(timeout_s)
        if self._refused is not None:
            raise self._refused
        return self._ready.is_set() and not self._ended.is_set()

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

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return len(self._threads)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the mount is gone and every request is handled.

        Returns:
            False if that took longer.
        """
        return self._ended.wait(timeout_s)

    def _add_thread(self) -> None:
        thread = Thread(target=self._serve, name=f"fuse-{len(self._threads)}", daemon=True)
        self._threads.add(thread)
        self._idle += 1
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            self._idle -= 1
            if not self._threads:
                raise
            _log.warning("no more threads can be started than %d", len(self._threads))

    def _serve(self) -> None:
        buffer = bytearray(protocol.BUFFER_SIZE)
        request = Request()
        view = memoryview(buffer)
        try:
            while (size := self._next(buffer)) > 0:
                with self._lock:
                    self._idle -= 1
                    if not self._idle and len(self._threads) < self._max_threads:
                        self._add_thread()
                self._handle(request, view[:size])
                with self._lock:
                    if self._idle >= _IDLE_THREADS:
                        return
                    self._idle += 1
        finally:
            self._leave()

    def _leave(self) -> None:
        """End this thread; the last one closes the device."""
        with self._lock:
            self._threads = {thread for thread in self._threads if thread.ident != get_ident()}
            last = not self._threads
        if not last:
            return
        try:
            _open_devices.discard(self._descriptor)
            os.close(self._descriptor)
            self._operations.lookups.clear()
        finally:
            self._ended.set()
            self._ready.set()

    def _next(self, buffer: bytearray) -> int:
        """Wait for a request; 0 when there will be none any more."""
        while True:
            try:
                return os.readv(self._descriptor, (buffer,))
            except OSError as error:
                if error.errno in _AGAIN:
                    continue  # the request was taken back
                if error.errno not in _GONE:
                    _log.exception("the FUSE device cannot be read")
                return 0

    def _handle(self, request: Request, data: memoryview) -> None:
        """Handle a request and answer it. Raises nothing."""
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

    def _send(self, unique: int, parts: tuple[bytes | memoryview, ...]) -> bool:
        """Write an answer. False if the kernel does not take it as it is."""
        try:
            os.writev(self._descriptor, parts)
        except OSError as error:
            if error.errno != errno.ENOENT and error.errno not in _GONE:
                _log.error("the answer to request %d cannot be sent: %s", unique, error)
                return False
        return True

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
