"""The server alone: requests by hand over a socket that stands for the device, also ones that no kernel sends."""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import Callable, Iterator
from threading import Event

import pytest

from pagepool.errors import PagepoolError, UnsupportedError
from pagepool.image import Kind
from pagepool.mount.fuse import ERRNOS, FuseServer, to_errno
from pagepool.mount.fuse.errnos import to_read_errno
from pagepool.mount.fuse.protocol import (
    IN_HEADER,
    OLDEST_MINOR,
    OUT_HEADER,
    READ_IN,
    InitFlag,
    Opcode,
)
from pagepool.vfs import ROOT
from tests.mount.memoryfs import MemoryFileSystem

_TIMEOUT_S = 60.0
_ALL = (1 << 31) - 1


class _Kernel:
    """The other end of the device."""

    def __init__(self, server: Callable[[int], FuseServer]) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(_TIMEOUT_S)
        self.server = server(theirs.detach())
        self.server.start()
        self._unique = 0

    def send(self, opcode: int, node: int = ROOT, body: bytes = b"", uid: int = 0) -> int:
        """Send a request; returns its number."""
        self._unique += 2
        header = IN_HEADER.pack(IN_HEADER.size + len(body), opcode, self._unique, node, uid, 0, 1, 0, 0)
        self.socket.send(header + body)
        return self._unique

    def receive(self) -> tuple[int, int, bytes]:
        """An answer: the number of the request, the errno, and the body."""
        data = self.socket.recv(2 << 20)
        size, error, unique = OUT_HEADER.unpack_from(data)
        assert size == len(data)
        return unique, -error, data[OUT_HEADER.size :]

    def ask(self, opcode: int, node: int = ROOT, body: bytes = b"", uid: int = 0) -> tuple[int, bytes]:
        """Send a request and wait for its answer: errno and body."""
        unique = self.send(opcode, node, body, uid)
        answered, error, reply = self.receive()
        assert answered == unique
        return error, reply

    def close(self) -> None:
        """Go away, as the kernel does when it is unmounted."""
        self.socket.close()
        assert self.server.join(_TIMEOUT_S)


@pytest.fixture
def filesystem() -> MemoryFileSystem:
    """With a file "a" of 5 bytes, which is node 2."""
    made = MemoryFileSystem()
    made.write(made.create(ROOT, b"a", Kind.REGULAR, 0o644, 0, 0), 0, b"12345")
    return made


@pytest.fixture
def kernel(filesystem: MemoryFileSystem) -> Iterator[_Kernel]:
    """A server, and what it takes for the kernel."""
    made = _Kernel(lambda descriptor: FuseServer(descriptor, filesystem, read_only=False))
    yield made
    made.close()


def _init(minor: int, flags: int = _ALL) -> bytes:
    return struct.pack("=IIIII44x", 7, minor, 1 << 17, flags, 0)


def _read(offset: int, size: int) -> bytes:
    return READ_IN.pack(0, offset, size, 0, 0, 0, 0)


def test_versions(kernel: _Kernel) -> None:
    """A newer kernel is answered with the version that is implemented; what it does not offer is not used."""
    error, body = kernel.ask(Opcode.INIT, 0, _init(99, _ALL & ~InitFlag.POSIX_ACL))
    major, minor, _, flags = struct.unpack_from("=IIII", body)
    assert (error, major, minor) == (0, 7, 38)
    assert flags & InitFlag.PARALLEL_DIROPS
    assert not flags & (InitFlag.POSIX_ACL | InitFlag.WRITEBACK_CACHE | InitFlag.POSIX_LOCKS)
    assert kernel.server.wait_ready(_TIMEOUT_S)


@pytest.mark.parametrize(("minor", "flags"), [(OLDEST_MINOR - 1, _ALL), (38, _ALL & ~InitFlag.NO_OPENDIR_SUPPORT)])
def test_a_kernel_that_is_too_old(kernel: _Kernel, minor: int, flags: int) -> None:
    """Refused, and the one who mounts is told."""
    assert kernel.ask(Opcode.INIT, 0, _init(minor, flags))[0] == errno.EPROTO
    with pytest.raises(UnsupportedError, match=r"7\.31"):
        kernel.server.wait_ready(_TIMEOUT_S)


def test_requests_that_are_none(kernel: _Kernel, caplog: pytest.LogCaptureFixture) -> None:
    """Cut short, with names that do not end, of unknown kinds: each is answered, and the next one is served."""
    assert kernel.ask(Opcode.LOOKUP, body=b"a")[0] == errno.EINVAL
    assert kernel.ask(Opcode.READ, 2, b"short")[0] == errno.EINVAL
    assert kernel.ask(Opcode.WRITE, 2, READ_IN.pack(0, 0, 100, 0, 0, 0, 0) + b"less")[0] == errno.EINVAL
    assert kernel.ask(Opcode.SETATTR, 2)[0] == errno.EINVAL
    assert kernel.ask(7)[0] == errno.ENOSYS
    assert kernel.ask(4096)[0] == errno.ENOSYS
    assert kernel.ask(Opcode.GETATTR, 12345)[0] == errno.ESTALE
    assert kernel.ask(Opcode.MKNOD, body=struct.pack("=IIII", 0o040755, 0, 0, 0) + b"n\0")[0] == errno.EINVAL
    assert "malformed" in caplog.text
    for _ in range(50):
        kernel.socket.send(b"not even a header")
    assert kernel.ask(Opcode.READ, 2, _read(1, 3)) == (0, b"234")


def test_random_requests(kernel: _Kernel) -> None:
    """Any body of any kind that has an answer gets one."""
    chance = random.Random(3)
    silent = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.INIT}
    for _ in range(2000):
        opcode = chance.choice([opcode for opcode in Opcode if opcode not in silent])
        error, _ = kernel.ask(opcode, chance.choice((1, 2, 3)), chance.randbytes(chance.randrange(100)))
        assert 0 <= error < 512
    for opcode in silent - {Opcode.INIT}:
        kernel.send(opcode, 2, b"\xff")
        assert kernel.receive()[1] == errno.EINVAL
    assert kernel.ask(Opcode.GETATTR, ROOT)[0] == 0


def test_what_fails_unexpectedly(
    kernel: _Kernel, filesystem: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a file system is EIO, with its traceback in the log, and nothing else stops."""
    monkeypatch.setattr(filesystem, "usage", lambda: 1 // 0)
    for _ in range(50):
        assert kernel.ask(Opcode.STATFS)[0] == errno.EIO
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.setattr(filesystem, "xattrs", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no")))
    assert kernel.ask(Opcode.LISTXATTR, 2, struct.pack("=II", 0, 0))[0] == errno.EOPNOTSUPP
    assert kernel.ask(Opcode.GETATTR)[0] == 0


def test_interrupts(kernel: _Kernel, filesystem: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A READ is answered at once when it is interrupted, and once only; one that is interrupted first never begins."""
    asked, goes_on, done, real = Event(), Event(), Event(), filesystem.read

    def read(ino: int, offset: int, size: int) -> memoryview:
        asked.set()
        assert goes_on.wait(_TIMEOUT_S)
        done.set()
        return real(ino, offset, size)

    monkeypatch.setattr(filesystem, "read", read)
    unique = kernel.send(Opcode.READ, 2, _read(0, 5))
    assert asked.wait(_TIMEOUT_S)
    kernel.send(Opcode.INTERRUPT, 0, struct.pack("=Q", unique))
    assert kernel.receive() == (unique, errno.EINTR, b"")
    goes_on.set()
    assert done.wait(_TIMEOUT_S)
    assert kernel.ask(Opcode.READ, 2, _read(0, 5)) == (0, b"12345")
    kernel.send(Opcode.INTERRUPT, 0, struct.pack("=Q", unique + 6 + 2))
    assert kernel.ask(Opcode.STATFS)[0] == 0
    assert kernel.send(Opcode.READ, 2, _read(0, 5)) == unique + 10


def test_forgetting_too_much(kernel: _Kernel, filesystem: MemoryFileSystem) -> None:
    """Counts that the kernel never had are ignored; an unlinked node goes when it is forgotten."""
    assert kernel.ask(Opcode.LOOKUP, body=b"a\0")[0] == 0
    assert kernel.ask(Opcode.LOOKUP, body=b"a\0")[0] == 0
    assert filesystem.nodes[2].holds == 1
    assert kernel.ask(Opcode.UNLINK, body=b"a\0")[0] == 0
    kernel.send(Opcode.FORGET, 2, struct.pack("=Q", 1))
    assert kernel.ask(Opcode.READ, 2, _read(0, 5)) == (0, b"12345")
    kernel.send(Opcode.BATCH_FORGET, 0, struct.pack("=IIQQQQ", 2, 0, 2, 5, 77, 1))
    assert kernel.ask(Opcode.GETATTR)[0] == 0
    kernel.close()
    assert 2 not in filesystem.nodes


def test_trusted_attributes_are_listed_for_root_only(kernel: _Kernel, filesystem: MemoryFileSystem) -> None:
    """As other file systems do it; the kernel itself guards their values."""
    filesystem.set_xattr(2, b"trusted.x", b"1")
    filesystem.set_xattr(2, b"user.y", b"2")
    room = struct.pack("=II", 100, 0)
    assert kernel.ask(Opcode.LISTXATTR, 2, room) == (0, b"trusted.x\0user.y\0")
    assert kernel.ask(Opcode.LISTXATTR, 2, room, uid=7) == (0, b"user.y\0")
    assert kernel.ask(Opcode.LISTXATTR, 2, struct.pack("=II", 3, 0))[0] == errno.ERANGE


def test_a_read_only_server_changes_nothing(filesystem: MemoryFileSystem) -> None:
    """Whatever it is asked, and whatever the file system could."""
    kernel = _Kernel(lambda descriptor: FuseServer(descriptor, filesystem, read_only=True))
    for opcode in (Opcode.UNLINK, Opcode.WRITE, Opcode.SETATTR, Opcode.MKNOD, Opcode.SETXATTR, Opcode.FALLOCATE):
        assert kernel.ask(opcode, body=b"a\0")[0] == errno.EROFS
    assert kernel.ask(Opcode.FSYNC, 2)[0] == errno.ENOSYS
    kernel.close()
    assert filesystem.lookup(ROOT, b"a") == 2


def _subclasses(kind: type[PagepoolError]) -> Iterator[type[PagepoolError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_the_table_of_errnos_is_complete() -> None:
    """Each of pagepool's errors has its line, or that of what it is a kind of; none reads as a missing file."""
    for kind in _subclasses(PagepoolError):
        # Those of the service and its benchmark never come to a mount, nor do those that never leave their module.
        if not kind.__module__.startswith("pagepool.") or kind.__name__.startswith("_"):
            continue
        assert any(parent in ERRNOS for parent in kind.__mro__), kind
        error = kind.__new__(kind)
        assert to_errno(error) in (errno.EIO, errno.ENOSPC, errno.EROFS)
        assert to_read_errno(error) == errno.EIO
    assert to_errno(OSError(errno.ENOTEMPTY, "")) == errno.ENOTEMPTY
    assert to_errno(OSError("without a number")) == errno.EIO
    assert to_errno(OSError(4000, "")) == errno.EIO
    assert to_errno(MemoryError()) == errno.ENOMEM
    assert to_errno(KeyError("a bug")) == errno.EIO
    assert to_read_errno(FileNotFoundError(errno.ENOENT, "")) == errno.EIO
    assert to_read_errno(IsADirectoryError(errno.EISDIR, "")) == errno.EISDIR
