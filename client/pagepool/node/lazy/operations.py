"""What the requests to the lazy mount ask for.

    fetch/ab/cdef…   an object that is small is brought into the pool, and then there is no such file: overlayfs goes on
                     to ``fetched/``, where it is now. So it does when bringing failed, and comes to fail/ in the end.
                     An object that is large, or read in parts, or cannot be kept, is a file.
    fail/ab/cdef…    EIO, whatever it is called; but an object that was brought not long ago, and has lost its name in
                     ``fetched/`` before overlayfs came there, is a file

"No such file" is never remembered by the kernel: it is sent as an error, not as a node with a time. What is there is
remembered for ever, since overlayfs checks its remembered layers again and would answer ESTALE if one had changed. So
an object that has once been a file is one for as long as the mount lives.

A handler returns the body of the answer, None if there is none, or raises what errno is made of. Thread-safe.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final, NoReturn

from pagepool.errors import PagepoolError
from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.protocol import Opcode
from pagepool.node.lazy import nodes, wire
from pagepool.node.lazy.references import References
from pagepool.node.lazy.source import Forgetful, InParts, Served, Whole
from pagepool.node.lazy.waiting import SingleFlight
from pagepool.vfs.interface import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from pagepool.node.lazy.nodes import NodeTable
    from pagepool.node.lazy.source import ObjectSource

    Handler = Callable[["Request"], Buffer | None]

BROUGHT_S: Final = 60.0
"""For so long an object that was brought is not believed to be missing. Overlayfs looks for it a moment later, unless
the machine stood still meanwhile."""
_MOST_BROUGHT: Final = 65536

_log = logging.getLogger(__name__)


class Request:
    """A request that is being handled. One is used again for every request of a thread.

    Args:
        opcode: what it asks for.
        unique: its number.
        node: what it is about.
        process: the thread that waits for it; 0 if nobody does, or it cannot be told.
        body: what follows the header; only until it is answered.
        entry: the number of the object that the kernel knows once this is answered; 0: none.
        taken: bytes that the kernel has a copy of once this is answered: digest, start, end.
    """

    __slots__ = ("body", "entry", "node", "opcode", "process", "taken", "unique")

    def __init__(self) -> None:
        self.opcode = self.unique = self.node = self.process = self.entry = 0
        self.body = memoryview(b"")
        self.taken: tuple[bytes, int, int] | None = None


class Operations:
    """The requests to the lazy mount, but for INIT and INTERRUPT.

    Args:
        source: where objects come from.
        table: the numbers of large ones.
        large: an object of more bytes is served, not brought.
        clock: seconds that only go forward.
    """

    def __init__(
        self, source: ObjectSource, table: NodeTable, large: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._table = table
        self._large = large
        self._clock = clock
        self._flights = SingleFlight()
        self._lock = Lock()
        self._brought: OrderedDict[bytes, float] = OrderedDict()  # object -> when; in that order
        self._references = References(nodes.FIRST_OBJECT + len(table))

    def handlers(self) -> dict[int, Handler]:
        """What handles which request; the kernel is to do without all others."""
        changes: dict[int, Handler] = dict.fromkeys(_CHANGES, _refuse)
        return changes | {
            Opcode.LOOKUP: self.lookup,
            Opcode.GETATTR: self.getattr,
            Opcode.READ: self.read,
            Opcode.READDIR: self.readdir,
            Opcode.STATFS: self.statfs,
            Opcode.FORGET: self.forget,
            Opcode.BATCH_FORGET: self.forget_some,
            Opcode.DESTROY: lambda _: b"",
        }

    def lookup(self, request: Request) -> Buffer:
        """A name in a directory."""
        parent, name = request.node, protocol.parse_name(request.body)
        directory = nodes.child_number(parent, name)
        if directory is not None:
            return protocol.encode_entry(wire.directory_attributes(directory))
        if (parent, name) == (nodes.ROOT, b"probe"):
            return protocol.encode_entry(wire.object_attributes(nodes.PROBE, 0))
        if nodes.FAIL_CHILDREN <= parent < nodes.FAIL_CHILDREN + 256:
            return self._last_resort(request, parent, name)
        digest = nodes.digest_of(parent, name)
        if digest is None:
            fail(errno.ENOENT)
        node = self._table.number(digest)
        if node is None:
            node = self._find(digest)
        elif self._references.is_forgotten(node):
            self._tell(digest)
        return self._entry(request, node, errno.ENOENT)

    def _entry(self, request: Request, node: int | None, otherwise: int) -> Buffer:
        """A large object; an errno if it is none."""
        known = None if node is None else self._table.object(node)
        if node is None or known is None:
            fail(otherwise)
        request.entry = node
        return protocol.encode_entry(wire.object_attributes(node, known.size))

    def _last_resort(self, request: Request, parent: int, name: bytes) -> Buffer:
        """A name in fail/: whoever gets here has found the object nowhere."""
        digest = nodes.digest_of(parent - nodes.FAIL_CHILDREN + nodes.FETCH_CHILDREN, name)
        if digest is None or not self._was_brought(digest):
            fail(errno.EIO)
        size = self._source.size(digest)
        if size is None:
            fail(errno.EIO)
        _log.warning("object %s had gone again before it was found; it is read through the node", digest.hex())
        node = self._table.add(digest, size)
        self._tell(digest)
        return self._entry(request, node, errno.EIO)

    def _note_brought(self, digest: bytes) -> None:
        now = self._clock()
        with self._lock:
            self._brought[digest] = now
            self._brought.move_to_end(digest)
            while self._brought and (
                len(self._brought) > _MOST_BROUGHT or next(iter(self._brought.values())) < now - BROUGHT_S
            ):
                self._brought.popitem(last=False)

    def _was_brought(self, digest: bytes) -> bool:
        with self._lock:
            return self._brought.get(digest, -BROUGHT_S) >= self._clock() - BROUGHT_S

    def _find(self, digest: bytes) -> int | None:
        """Bring an object, or number it. Whatever goes wrong is logged here: overlayfs goes on to ``fail/`` and EIO."""
        try:
            return self._bring_or_number(digest)
        except Exception as error:  # noqa: BLE001 - see above
            bug = not isinstance(error, (OSError, PagepoolError))
            _log.error("object %s cannot be fetched: %s", digest.hex(), error, exc_info=bug)
            with self._lock:
                self._brought.pop(digest, None)
            return None

    def _bring_or_number(self, digest: bytes) -> int | None:
        size = self._source.size(digest)
        if size is None or (size <= self._large and not self._is_in_parts(digest, size)):
            if self._flights.do(digest, self._source.bring):
                self._note_brought(digest)
                return None
            if size is None:
                _log.error("object %s is of no tree that is mounted here", digest.hex())
                return None
            return self._table.add(digest, size)
        if isinstance(self._source, Whole) and self._source.whole(digest):
            self._note_brought(digest)
            return None
        node = self._table.add(digest, size)
        self._tell(digest)
        return node

    def _is_in_parts(self, digest: bytes, size: int) -> bool:
        return isinstance(self._source, InParts) and self._source.in_parts(digest, size)

    def _tell(self, digest: bytes) -> None:
        """An object is a file now."""
        try:
            self._source.opened_large(digest)
        except Exception as error:  # noqa: BLE001 - it can be read without
            _log.error("object %s is not filled in the background: %s", digest.hex(), error)

    def getattr(self, request: Request) -> Buffer:
        """What stat(2) shows."""
        if nodes.is_directory(request.node):
            return protocol.encode_attributes(wire.directory_attributes(request.node))
        if request.node == nodes.PROBE:
            return protocol.encode_attributes(wire.object_attributes(nodes.PROBE, 0))
        known = self._table.object(request.node) or fail(errno.ESTALE)
        return protocol.encode_attributes(wire.object_attributes(request.node, known.size))

    def read(self, request: Request) -> Buffer:
        """Bytes of a large object."""
        _, start, size, *_ = protocol.unpack(protocol.READ_IN, request.body)
        known = self._table.object(request.node) or fail(errno.ESTALE)
        end = min(start + min(size, protocol.MAX_IO), known.size)
        if start >= end:
            return b""
        view = memoryview(self._source.view(known.digest, start, end)).cast("B")
        if len(view) != end - start:
            raise OSError(errno.EIO, f"{len(view)} bytes came for those from {start} to {end} of {known.digest.hex()}")
        request.taken = (known.digest, start, end)
        return view

    def answered(self, request: Request) -> None:
        """The kernel has got the answer: count what it knows now, or tell the source which bytes it has."""
        if request.entry and self._references.given(request.entry):
            self._forgotten(request.entry)
        if request.taken is not None and isinstance(self._source, Served):
            self._source.served(*request.taken)

    def forget(self, request: Request) -> None:
        """The kernel has forgotten something. It keeps its number, whoever looks it up again."""
        (count,) = protocol.unpack(protocol.FORGET_IN, request.body)
        if self._references.returned(request.node, count):
            self._forgotten(request.node)

    def forget_some(self, request: Request) -> None:
        """The same, of several."""
        for node, count in protocol.parse_forgets(request.body):
            if self._references.returned(node, count):
                self._forgotten(node)

    def _forgotten(self, node: int) -> None:
        known = self._table.object(node)
        if known is not None and isinstance(self._source, Forgetful):
            self._source.forgotten(known.digest)

    def readdir(self, request: Request) -> Buffer:
        """Nothing is listed: overlayfs lists no layer that only has data, and every name that could be is there."""
        return b"" if nodes.is_directory(request.node) else fail(errno.ENOTDIR)

    def statfs(self, _request: Request) -> Buffer:
        """How full it is. Without an answer nothing can be mounted on top."""
        return protocol.encode_usage(Usage(0, 0, 0, 0))

    def describe(self, node: int) -> str:
        """What a node is, for a log."""
        known = self._table.object(node)
        return f"node {node}" if known is None else f"object {known.digest.hex()}"


_CHANGES: Final = (
    *(Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.LINK),
    *(Opcode.RENAME, Opcode.RENAME2, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.FALLOCATE),
    *(Opcode.CREATE, Opcode.TMPFILE),
)


def _refuse(_request: Request) -> NoReturn:
    fail(errno.EROFS)


def fail(number: int) -> NoReturn:
    """Answer with an errno."""
    raise OSError(number, os.strerror(number))
