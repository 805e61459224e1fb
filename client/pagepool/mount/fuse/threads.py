"""The threads that serve an open FUSE device: each reads a request, has it handled, and reads the next.

A thread is busy for as long as its request takes, so there is always one more that waits: whoever takes the last one's
place starts another, up to a number, and those that are too many end. A request that waits for the network therefore
holds nobody up. A thread ends for good only when the kernel says that the mount is gone; the last one has everything
let go of.

Memory: a buffer for each thread, as large as the largest request, of which only what requests touch is resident.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from threading import Event, Lock, Thread, get_ident
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from pagepool.errors import UnsupportedError

IDLE_THREADS: Final = 4
"""So many wait at most for requests when there are none."""
GONE: Final = (errno.ENODEV, errno.ECONNABORTED)
"""What the device says once there is no mount any more."""
_AGAIN: Final = (errno.ENOENT, errno.EINTR, errno.EAGAIN)

_log = logging.getLogger(__name__)

_Request = TypeVar("_Request")


class ThreadedServer(Generic[_Request]):
    """Serves a device by threads. What requests ask for is a subclass's to know.

    Args:
        descriptor: of the device.
        name: of the threads, for people.
        max_threads: how many requests are handled at the same time.
        buffer_size: what the kernel wants to be read at once.
    """

    def __init__(self, descriptor: int, name: str, *, max_threads: int, buffer_size: int) -> None:
        self._descriptor = descriptor
        self._name = name
        self._max_threads = max_threads
        self._buffer_size = buffer_size
        self._lock = Lock()
        self._threads: set[Thread] = set()
        self._idle = 0
        self._ready = Event()
        self._ended = Event()
        self._refused: UnsupportedError | None = None
        self.requests: Counter[int] = Counter()
        """How many came, by opcode. Exact as long as requests come one at a time."""

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

    # -- what a subclass knows -----------------------------------------------------------------------------------

    def _new_request(self) -> _Request:
        """What one thread uses for each of its requests, one after the other."""
        raise NotImplementedError

    def handle(self, request: _Request, data: memoryview) -> None:
        """Handle a request and answer it. Raises nothing."""
        raise NotImplementedError

    def _may_grow(self) -> bool:
        """Whether a thread more may be started just now."""
        return True

    def _let_go(self) -> None:
        """The last thread ends."""
        raise NotImplementedError

    # -- threads -------------------------------------------------------------------------------------------------

    def _add_threads(self, count: int) -> None:
        """Begin to serve.

        Raises:
            RuntimeError: there are no threads.
        """
        with self._lock:
            for _ in range(count):
                self._add_thread()

    def _add_thread(self) -> None:
        thread = Thread(target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True)
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
        buffer = bytearray(self._buffer_size)
        request, view = self._new_request(), memoryview(buffer)
        try:
            while (size := self._next(buffer)) > 0:
                with self._lock:
                    self._idle -= 1
                    if not self._idle and len(self._threads) < self._max_threads and self._may_grow():
                        self._add_thread()
                self.handle(request, view[:size])
                with self._lock:
                    if self._idle >= IDLE_THREADS:
                        return
                    self._idle += 1
        finally:
            self._leave()

    def _leave(self) -> None:
        """End this thread; the last one lets go of everything."""
        with self._lock:
            self._threads = {thread for thread in self._threads if thread.ident != get_ident()}
            if self._threads:
                return
        try:
            self._let_go()
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
                if error.errno not in GONE:
                    _log.exception("the FUSE device cannot be read")
                return 0

    def _send(self, unique: int, parts: Sequence[Buffer]) -> bool:
        """Write an answer. False if the kernel does not take it as it is."""
        try:
            os.writev(self._descriptor, parts)
        except OSError as error:
            if error.errno != errno.ENOENT and error.errno not in GONE:
                _log.error("the answer to request %d cannot be sent: %s", unique, error)
                return False
        return True
