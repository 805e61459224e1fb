"""The FUSE protocol, on the server's side: of mounts of images and overlays, and of a node's lazy mount."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pagepool.image import Kind
from pagepool.mount.fuse import FuseServer, protocol
from pagepool.mount.fuse import server as fuse_server
from pagepool.mount.fuse.operations import Request
from pagepool.mount.fuse.protocol import Opcode
from pagepool.node.lazy import LazyServer, nodes
from pagepool.node.lazy.operations import Request as LazyRequest
from pagepool.vfs import ROOT, Changes, fail
from tests.fuzz.target import Reader, Target
from tests.mount.memoryfs import MemoryFileSystem
from tests.node.lazy.test_requests import _Source

_MOST = 1 << 20
_OPCODES = [int(opcode) for opcode in Opcode if opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)]
_SILENT = [int(opcode) for opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)]


class _Bounded(MemoryFileSystem):
    """That takes no files over 1 MiB, as it would be a gigabyte of memory that is asked for, and rightly given."""

    def write(self, ino: int, offset: int, data: object, *, kill_privileges: bool = False) -> int:
        """See `WritableFileSystem`."""
        if offset > _MOST:
            fail(errno.EFBIG)
        return super().write(ino, offset, data, kill_privileges=kill_privileges)  # type: ignore[arg-type]

    def set_attributes(self, ino: int, changes: Changes) -> None:
        """See `WritableFileSystem`."""
        if changes.size is not None and changes.size > _MOST:
            fail(errno.EFBIG)
        super().set_attributes(ino, changes)

    def allocate(self, ino: int, offset: int, size: int, mode: int) -> None:
        """See `WritableFileSystem`."""
        if offset + size > _MOST:
            fail(errno.EFBIG)
        super().allocate(ino, offset, size, mode)


@contextmanager
def _device() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket that stands for the device: the server's end, and the kernel's."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, kernel:
        kernel.setblocking(False)
        ours.setblocking(False)
        for end in (ours, kernel):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        yield ours, kernel


def _requests(data: bytes, node: int) -> Iterator[tuple[int, bytes]]:
    """Requests: opcode and bytes. A header is right in most, since no kernel sends another."""
    how = Reader(data)
    for number, body in enumerate(how.blocks(20), 1):
        head = Reader(body)
        kind, where = head.byte(), head.byte()
        opcode = [*_OPCODES, *_SILENT, 7, 4096, 1 << 31][kind % (len(_OPCODES) + 6)]
        extra = 1000 if where & 0x80 else 0
        rest = head.rest()
        about = (where & 7) if where & 8 else node + (where & 7)
        yield (
            opcode,
            protocol.IN_HEADER.pack(40 + len(rest), opcode, 2 * number, about, where & 1, 0, 0, extra, 0) + rest,
        )


def _check(kernel: socket.socket, opcode: int, request: bytes) -> None:
    """One answer at most, to that request; exactly one to all that have any."""
    unique = protocol.IN_HEADER.unpack_from(request)[2]
    try:
        answer = kernel.recv(2 << 20)
    except BlockingIOError:
        assert opcode in _SILENT or opcode == Opcode.DESTROY, f"no answer to {opcode}"
        return
    size, error, answered = protocol.OUT_HEADER.unpack_from(answer)
    assert size == len(answer)
    assert -4096 < error <= 0
    assert answered == unique or opcode == Opcode.INTERRUPT
    try:
        kernel.recv(2 << 20)
    except BlockingIOError:
        return
    raise AssertionError(f"two answers to {opcode}")


def _fuse(data: bytes) -> None:
    """Whatever comes is answered once, and the server goes on: a look at the root's attributes comes last."""
    filesystem = _Bounded()
    filesystem.write(filesystem.create(ROOT, b"a", Kind.REGULAR, 0o644, 0, 0), 0, b"12345")
    with _device() as (ours, kernel):
        server = FuseServer(ours.fileno(), filesystem, read_only=bool(data[:1] == b"\1"))
        try:
            for opcode, request in _requests(data[1:], ROOT):
                server.handle(Request(), memoryview(request))
                _check(kernel, opcode, request)
            last = protocol.IN_HEADER.pack(56, Opcode.GETATTR, 1000, ROOT, 0, 0, 0, 0, 0) + bytes(16)
            server.handle(Request(), memoryview(last))
            assert protocol.OUT_HEADER.unpack_from(kernel.recv(1 << 20))[1] == 0
        finally:
            fuse_server._open_devices.discard(ours.fileno())


def _lazy(data: bytes) -> None:
    """The same of the lazy mount's server."""
    with TemporaryDirectory(dir="/dev/shm") as directory, _device() as (ours, kernel):
        state = Path(directory) / "state"
        server = LazyServer(ours.fileno(), _Source(), state=state, large=1000)
        server._clone = lambda: None  # type: ignore[method-assign]  # a socket is no device
        try:
            start = (ROOT, nodes.FETCH_CHILDREN, nodes.FAIL_CHILDREN, nodes.ROOT)[data[0] & 3] if data else ROOT
            for opcode, request in _requests(data[1:], start):
                server.handle(LazyRequest(), memoryview(request))
                _check(kernel, opcode, request)
        finally:
            server._table.close()


def _block(opcode: Opcode, where: int, body: bytes) -> bytes:
    part = bytes((_OPCODES.index(opcode) if opcode in _OPCODES else len(_OPCODES), where)) + body
    return len(part).to_bytes(2, "little") + part


def _some_requests() -> Iterator[bytes]:
    init = protocol.INIT_IN.pack(7, 45, 1 << 20, 0xFFFFFFFF) + (0xFFFFFFFF).to_bytes(4, "little") + bytes(44)
    read = protocol.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)
    name = b"a\0"
    yield b"\0" + b"".join(
        [
            _block(Opcode.INIT, 8, init),
            _block(Opcode.LOOKUP, 0, name),
            _block(Opcode.READ, 1, read),
            _block(Opcode.READDIR, 0, read),
            _block(Opcode.READDIRPLUS, 0, read),
            _block(Opcode.GETXATTR, 1, bytes(8) + b"user.a\0"),
            _block(Opcode.SETXATTR, 1, bytes((1, 0, 0, 0, 0, 0, 0, 0)) + b"user.a\0v"),
            _block(Opcode.LISTXATTR, 1, bytes((100, 0, 0, 0, 0, 0, 0, 0))),
            _block(Opcode.SETATTR, 1, bytes.fromhex("0802" + "00" * 14 + "0200000000000000" + "00" * 64)),
            _block(Opcode.MKDIR, 0, bytes((0xED, 1, 0, 0, 0, 0, 0, 0)) + b"d\0"),
            _block(Opcode.SYMLINK, 0, b"s\0target\0"),
            _block(Opcode.RENAME2, 0, (1).to_bytes(8, "little") + bytes(8) + b"a\0b\0"),
            _block(Opcode.FORGET, 1, bytes(8)),
        ]
    )
    digest = (b"\0" * 31).hex().encode() + b"\0"
    yield b"\1" + b"".join(
        [
            _block(Opcode.INIT, 8, init),
            _block(Opcode.LOOKUP, 0, digest),
            _block(Opcode.LOOKUP, 1, (b"\1" * 31).hex().encode() + b"\0"),
            _block(Opcode.GETATTR, 0, bytes(16)),
            _block(Opcode.OPEN, 1, bytes(8)),
            _block(Opcode.READ, 1, read),
            _block(Opcode.LINK, 1, (2).to_bytes(8, "little") + b"n\0"),
            _block(Opcode.MKNOD, 0, bytes.fromhex("b6810000000000001200000000000000") + b"f\0"),
            _block(Opcode.FALLOCATE, 1, bytes(40)),
            _block(Opcode.LSEEK, 1, bytes(24)),
            _block(Opcode.STATFS, 0, b""),
        ]
    )


TARGETS = (
    Target("fuse", _fuse, (), _some_requests, (b"user.", b"\0", b"..\0", b"system.posix_acl_access\0\2\0\0\0")),
    Target("lazy", _lazy, (), _some_requests, ((b"\1" * 31).hex().encode() + b"\0", b"\0" * 8)),
)
