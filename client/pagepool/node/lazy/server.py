"""Serves the lazy mount over an open FUSE device, in place of a server that has died if need be.

Up to `MAX_THREADS` threads do so (`mount.fuse.threads`): no request waits for another one that is slow.

What a death leaves: the mount, as long as somebody else holds the device; requests that come meanwhile wait in the
kernel. The next server on the same device has the kernel hand out again what was not answered (see `wire`), and knows
every number that was given away (see `nodes`); no INIT comes again. Doing a request twice is harmless, since nothing
here changes anything.

Kernels before 6.9 cannot hand out again. There each server reads from a device of its own (a clone): when it dies, the
kernel ends the requests that it had taken with an error, instead of never. All later ones are served.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.errors import PagepoolError, UnsupportedError
from pagepool.mount.device import DEVICE
from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.errnos import to_errno, to_read_errno
from pagepool.mount.fuse.protocol import Opcode, ProtocolError
from pagepool.mount.fuse.threads import GONE, IDLE_THREADS, ThreadedServer
from pagepool.node.lazy import wire
from pagepool.node.lazy.mounting import READ_AHEAD_KIB
from pagepool.node.lazy.nodes import NodeTable
from pagepool.node.lazy.operations import Operations, Request
from pagepool.node.lazy.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from pagepool.node.lazy.operations import Handler
    from pagepool.node.lazy.source import ObjectSource

LARGE: Final = 8 << 20
MAX_THREADS: Final = 512
"""Most of them wait for the network, if there are so many; a thread takes some 100 KiB."""

_BACKGROUND: Final = 256
"""Read-ahead is for all files together: so many may wait for the network before others have to do without."""
_LOOK_S: Final = 0.02
_GIVE_UP: Final = frozenset((int(Opcode.LOOKUP), int(Opcode.READ)))
_INIT_FILE: Final = "init.json"
_NODES_FILE: Final = "nodes"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LazyOptions:
    """How to serve.

    Args:
        large: objects of more bytes are served, not brought.
        max_threads: requests that are handled at the same time.
        resend: False: do as on a kernel that cannot hand requests out again.
    """

    large: int = LARGE
    max_threads: int = MAX_THREADS
    resend: bool = True


class LazyServer(ThreadedServer[Request]):
    """Serves the lazy mount.

    Args:
        descriptor: the FUSE device; stays open, for a later server.
        source: where objects come from.
        state: a directory for what later servers need to know. It belongs to the mount: who mounts again empties it.
        large: as in `LazyOptions`, which has more.

    Raises:
        BusyError: another process serves it.
        OSError: what is in `state` cannot be read or written.
    """

    def __init__(
        self,
        descriptor: int,
        source: ObjectSource,
        *,
        state: Path,
        large: int = LARGE,
        options: LazyOptions | None = None,
    ) -> None:
        self._options = options or LazyOptions(large)
        super().__init__(descriptor, "lazy", max_threads=self._options.max_threads, buffer_size=wire.BUFFER_SIZE)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._agreement_file = state / _INIT_FILE
        self._table = NodeTable(state / _NODES_FILE)
        self._operations = Operations(source, self._table, self._options.large)
        self._handlers: dict[int, Handler] = self._operations.handlers() | {Opcode.INTERRUPT: self._interrupt}
        self._cloned = False
        self._retired = False
        self._waiting = Waiting(self._give_up)
        self.agreement: wire.Agreement | None = None
        """What kernel and server agreed on; None before INIT."""

    def start(self) -> None:
        """Begin to serve, with what a server before this one has left. Does not block."""
        self.agreement = wire.read_agreement(self._agreement_file)
        if self.agreement is not None:
            self._take_over(self.agreement)
            self._ready.set()
        else:
            self._ask_again()  # INIT, if somebody died of it
        # Before INIT is answered there is nothing else to do, and it may decide from which device to read.
        self._add_threads(IDLE_THREADS if self.agreement is not None else 1)

    def _take_over(self, agreement: wire.Agreement) -> None:
        if agreement.resend and self._options.resend:
            self._ask_again()
        else:
            _log.warning("this kernel (before 6.9) hands nothing out again: what a server before had begun has failed")
            self._clone()

    def _ask_again(self) -> None:
        try:
            os.write(self._descriptor, wire.encode_resend())
        except OSError as error:
            if error.errno not in (*GONE, errno.EINVAL):
                raise

    def _clone(self) -> None:
        """Read from a device of one's own from here on."""
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, wire.CLONE, self._descriptor.to_bytes(4, "little"))
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._cloned = descriptor, True

    def large_objects(self) -> list[bytes]:
        """The objects that are, or were, files of the mount: digests."""
        return self._table.digests()

    def retire(self, timeout_s: float = 10.0) -> None:
        """Answer nothing from here on: the process is about to end, and to close what it serves from.

        What is under way, and what comes until the process has ended, is for the next server. On a kernel that hands
        nothing out again, what is under way is waited for first.

        Args:
            timeout_s: for how long.
        """
        deadline_s = time.monotonic() + timeout_s
        if self.agreement is not None and not self.agreement.resend:
            while self._idle < len(self._threads) and time.monotonic() < deadline_s:
                time.sleep(_LOOK_S)
        self._retired = True

    # -- requests ------------------------------------------------------------------------------------------------

    def _new_request(self) -> Request:
        return Request()

    def _may_grow(self) -> bool:
        """Not before INIT is answered: that may decide from which device to read."""
        return self._ready.is_set()

    def _let_go(self) -> None:
        """Leave the device to a later server."""
        self._table.close()
        if self._cloned:
            os.close(self._descriptor)

    def handle(self, request: Request, data: memoryview) -> None:
        """See `ThreadedServer`."""
        if len(data) < protocol.IN_HEADER.size:
            _log.error("a request of %d bytes has no header", len(data))
            return
        _, opcode, unique, node, _, _, process, extra, _ = protocol.IN_HEADER.unpack_from(data)
        request.opcode, request.unique, request.node, request.process = opcode, unique, node, process
        request.body = data[protocol.IN_HEADER.size : max(len(data) - 8 * extra, protocol.IN_HEADER.size)]
        request.taken, request.entry = None, 0
        self.requests[opcode] += 1
        if opcode == Opcode.INIT:
            self._init(request)
            return
        waits = opcode in _GIVE_UP
        if waits:
            self._waiting.begin(unique, process)
        try:
            handler = self._handlers.get(opcode)
            reply = _error(unique, errno.ENOSYS) if handler is None else _answer(unique, handler(request))
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for an answer
            reply = _error(unique, self._judge(request, error))
        if reply is not None and (not waits or self._waiting.take(unique)):
            self._finish(request, reply)

    def _finish(self, request: Request, reply: tuple[Buffer, ...]) -> None:
        if not self._send(request.unique, reply):
            self._send(request.unique, (protocol.encode_error(request.unique, errno.EIO),))
        elif request.entry or request.taken is not None:
            try:
                self._operations.answered(request)
            except Exception:  # noqa: BLE001 - it is answered already
                _log.exception("it was not taken note of what the kernel knows")

    def _send(self, unique: int, parts: Sequence[Buffer]) -> bool:
        """See `ThreadedServer`; who has retired leaves the answer to the next server."""
        return self._retired or super()._send(unique, parts)

    def _give_up(self, unique: int) -> None:
        self._send(unique, (protocol.encode_error(unique, errno.EINTR),))

    def _judge(self, request: Request, error: Exception) -> int:
        """The errno of an error; what an administrator should know is logged."""
        if isinstance(error, ProtocolError):
            _log.error("a malformed request %d: %s", request.opcode, error)
            return errno.EINVAL
        if request.opcode != Opcode.READ:
            if not isinstance(error, OSError):
                _log.error("request %d of node %d failed: %s", request.opcode, request.node, error, exc_info=True)
            return to_errno(error)
        bug = not isinstance(error, (OSError, PagepoolError))
        _log.error("%s cannot be read: %s", self._operations.describe(request.node), error, exc_info=bug)
        return to_read_errno(error)

    def _init(self, request: Request) -> None:
        unique = request.unique
        try:
            agreement = wire.plan_agreement(request.body, READ_AHEAD_KIB << 10, resend=self._options.resend)
            wire.write_agreement(self._agreement_file, agreement)
        except (UnsupportedError, ProtocolError, OSError) as error:
            _log.error("the lazy mount cannot begin: %s", error)
            self._refused = error if isinstance(error, UnsupportedError) else UnsupportedError(str(error))
            self._send(unique, (protocol.encode_error(unique, errno.EPROTO),))
            self._ready.set()
            return
        self.agreement = agreement
        self._send(unique, _answer(unique, wire.encode_agreement(agreement, _BACKGROUND)) or ())
        if not agreement.resend:
            self._clone()
        self._ready.set()

    def _interrupt(self, request: Request) -> None:
        self._waiting.interrupt(protocol.unpack(protocol.INTERRUPT_IN, request.body)[0])


def _error(unique: int, number: int) -> tuple[Buffer, ...]:
    return (protocol.encode_error(unique, number),)


def _answer(unique: int, body: Buffer | None) -> tuple[Buffer, ...] | None:
    if body is None:
        return None
    size = memoryview(body).nbytes
    header = protocol.encode_header(unique, size)
    return (header, body) if size else (header,)
