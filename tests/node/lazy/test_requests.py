"""Requests as the kernel would send them, and as it never would: answered without a mount, over a socket."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pagepool.errors import UnreachableError, UnsupportedError
from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.protocol import InitFlag, Opcode
from pagepool.node.lazy import LazyServer, nodes, wire
from pagepool.node.lazy.operations import BROUGHT_S, Operations, Request

_SMALL, _LARGE, _BROKEN, _UNKNOWN, _KEPT, _ODD = (bytes((number,)) * 32 for number in range(6))
_SIZES = {_SMALL: 10, _LARGE: 5000, _BROKEN: 20, _KEPT: 30, _ODD: 6000}
_OFFERED = InitFlag(0xFFFFFFFF)


class _Source:
    def __init__(self) -> None:
        self.brought: list[bytes] = []
        self.large: list[bytes] = []
        self.given: list[tuple[bytes, int, int]] = []
        self.unread: list[bytes] = []
        self.parts: set[bytes] = set()
        self.is_whole = False
        self.is_down = False

    def size(self, digest: bytes) -> int | None:
        return _SIZES.get(digest)

    def bring(self, digest: bytes) -> bool:
        self.brought.append(digest)
        if digest == _BROKEN or self.is_down:
            raise UnreachableError("http://service", "gone")
        return digest == _SMALL

    def view(self, digest: bytes, start: int, end: int) -> bytes:
        if digest == _ODD:
            return b"too short"
        return bytes(end - start)

    def opened_large(self, digest: bytes) -> None:
        self.large.append(digest)
        if digest == _ODD:
            raise RuntimeError("no room to fill it")

    def served(self, digest: bytes, start: int, end: int) -> None:
        self.given.append((digest, start, end))

    def forgotten(self, digest: bytes) -> None:
        self.unread.append(digest)

    def in_parts(self, digest: bytes, size: int) -> bool:
        assert _SIZES[digest] == size
        return digest in self.parts

    def whole(self, digest: bytes) -> bool:
        return self.is_whole and digest == _LARGE


class _Asking:
    """A server, and the kernel's end of its device."""

    def __init__(self, server: LazyServer, kernel: socket.socket) -> None:
        self.server = server
        self.kernel = kernel
        self.unique = 0

    def send(self, opcode: int, node: int, body: bytes = b"", *, extra: int = 0, mark: int = 0) -> None:
        """Have a request handled."""
        self.unique += 2
        header = protocol.IN_HEADER.pack(40 + len(body), opcode, self.unique | mark, node, 0, 0, 0, extra, 0)
        self.server.handle(Request(), memoryview(header + body))

    def receive(self) -> tuple[int, int, bytes] | None:
        """The answer, if there is one: errno, number, body."""
        try:
            data = self.kernel.recv(2 << 20)
        except BlockingIOError:
            return None
        size, error, unique = protocol.OUT_HEADER.unpack_from(data)
        assert size == len(data)
        return -error, unique, data[16:]

    def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        """Send, and receive what has to come: errno and body."""
        self.send(opcode, node, body)
        answer = self.receive()
        assert answer is not None
        assert answer[1] == self.unique
        return answer[0], answer[2]

    def lookup(self, digest: bytes, layer: int = nodes.FETCH_CHILDREN) -> tuple[int, int]:
        """Look an object up: errno and number."""
        error, body = self.ask(Opcode.LOOKUP, layer + digest[0], digest.hex()[2:].encode() + b"\0")
        return error, protocol.ENTRY_OUT.unpack(body)[0] if body else 0


@contextmanager
def _asking(state: Path, source: _Source) -> Iterator[_Asking]:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, kernel:
        kernel.setblocking(False)
        for end in (ours, kernel):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        server = LazyServer(ours.fileno(), source, state=state, large=1000)
        yield _Asking(server, kernel)
        server._table.close()


@pytest.fixture
def source() -> _Source:
    """Where objects come from."""
    return _Source()


@pytest.fixture
def asking(tmp_path: Path, source: _Source) -> Iterator[_Asking]:
    """A server without a mount."""
    with _asking(tmp_path / "state", source) as asking:
        yield asking


def test_init(asking: _Asking, tmp_path: Path) -> None:
    """RESEND is asked for in the second set of flags, and written down."""
    body = protocol.INIT_IN.pack(7, 45, 1 << 20, _OFFERED) + (0xFFFFFFFF).to_bytes(4, "little") + bytes(44)
    error, answer = asking.ask(Opcode.INIT, 0, body)
    assert error == 0
    fields = protocol.INIT_OUT.unpack(answer)
    assert fields[:2] == (7, 38)
    assert fields[3] & InitFlag.INIT_EXT
    assert fields[3] & InitFlag.PARALLEL_DIROPS
    assert not fields[3] & InitFlag.AUTO_INVAL_DATA
    assert fields[-1] == wire.HAS_RESEND
    known = wire.read_agreement(tmp_path / "state" / "init.json")
    assert known is not None
    assert known.resend


def test_init_of_an_old_kernel(asking: _Asking) -> None:
    """It is refused, and whoever waits is told."""
    error, _ = asking.ask(Opcode.INIT, 0, protocol.INIT_IN.pack(7, 23, 0, 0))
    assert error == errno.EPROTO
    with pytest.raises(UnsupportedError, match=r"FUSE 7\.23"):
        asking.server.wait_ready(0)


def test_small_objects(asking: _Asking, source: _Source) -> None:
    """Brought, and then not there; whatever cannot be had is not there either, until fail/ is asked."""
    assert asking.lookup(_SMALL) == (errno.ENOENT, 0)
    for digest in (_BROKEN, _UNKNOWN):
        assert asking.lookup(digest) == (errno.ENOENT, 0)
        assert asking.lookup(digest, nodes.FAIL_CHILDREN) == (errno.EIO, 0)
    assert source.brought == [_SMALL, _BROKEN, _UNKNOWN]
    assert source.large == []


def test_what_was_brought_and_has_gone_again(asking: _Asking, source: _Source) -> None:
    """Whoever was too late to find it under its second name gets a file."""
    assert asking.lookup(_SMALL, nodes.FAIL_CHILDREN) == (errno.EIO, 0)
    assert asking.lookup(_SMALL) == (errno.ENOENT, 0)
    error, node = asking.lookup(_SMALL, nodes.FAIL_CHILDREN)
    assert (error, source.large) == (0, [_SMALL])
    assert asking.ask(Opcode.READ, node, protocol.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)) == (0, bytes(10))
    assert asking.lookup(_SMALL) == (0, node)


def test_what_was_brought_long_ago(tmp_path: Path, source: _Source) -> None:
    """It has gone for some other reason; and so has what could not be brought the last time."""
    now = 0.0
    table = nodes.NodeTable(tmp_path / "nodes")
    operations = Operations(source, table, 1000, lambda: now)
    request = Request()
    request.body = memoryview(_SMALL.hex()[2:].encode() + b"\0")

    def look(layer: int) -> int:
        request.node = layer + _SMALL[0]
        with pytest.raises(OSError, match=r"\w") as caught:
            operations.lookup(request)
        return caught.value.errno or 0

    try:
        assert look(nodes.FETCH_CHILDREN) == errno.ENOENT
        now += BROUGHT_S + 1
        assert look(nodes.FAIL_CHILDREN) == errno.EIO
        assert look(nodes.FETCH_CHILDREN) == errno.ENOENT
        source.is_down = True
        assert look(nodes.FETCH_CHILDREN) == errno.ENOENT
        assert look(nodes.FAIL_CHILDREN) == errno.EIO
    finally:
        table.close()


def test_large_objects(asking: _Asking, source: _Source) -> None:
    """They are files, and stay files."""
    error, node = asking.lookup(_LARGE)
    assert (error, source.large, source.brought) == (0, [_LARGE], [])
    source.is_whole = True
    assert asking.lookup(_LARGE) == (0, node)
    error, body = asking.ask(Opcode.GETATTR, node, bytes(16))
    assert (error, protocol.ATTR_OUT.unpack(body)[4]) == (0, 5000)
    for start, size, got in ((0, 4096, 4096), (4096, 4096, 904), (5000, 4096, 0), (1 << 40, 4096, 0)):
        error, body = asking.ask(Opcode.READ, node, protocol.READ_IN.pack(0, start, size, 0, 0, 0, 0))
        assert (error, body) == (0, bytes(got))
    assert source.given == [(_LARGE, 0, 4096), (_LARGE, 4096, 5000)]


def test_an_object_that_is_read_in_parts(asking: _Asking, source: _Source) -> None:
    """It is a file as a large one is, and stays one."""
    source.parts = {_SMALL}
    error, node = asking.lookup(_SMALL)
    assert (error, source.large, source.brought) == (0, [_SMALL], [])
    source.parts = set()
    assert asking.lookup(_SMALL) == (0, node)


def test_what_the_kernel_has_forgotten_is_told(asking: _Asking, source: _Source) -> None:
    _, node = asking.lookup(_LARGE)
    asking.lookup(_LARGE)
    asking.send(Opcode.FORGET, node, protocol.FORGET_IN.pack(1))
    assert source.unread == []
    asking.send(Opcode.BATCH_FORGET, 0, protocol.BATCH_FORGET_IN.pack(1, 0) + protocol.FORGET_ONE.pack(node, 1))
    assert (source.unread, source.large) == ([_LARGE], [_LARGE])
    assert asking.lookup(_LARGE) == (0, node), "its number stays"
    assert source.large == [_LARGE, _LARGE], "and it is read again"
    asking.send(Opcode.FORGET, node, protocol.FORGET_IN.pack(1))
    assert source.unread == [_LARGE, _LARGE]
    asking.send(Opcode.FORGET, nodes.FETCH_CHILDREN, protocol.FORGET_IN.pack(1))
    assert asking.receive() is None, "nobody waits for an answer"


def test_what_a_server_before_has_told_the_kernel_is_not_known(tmp_path: Path, source: _Source) -> None:
    with _asking(tmp_path / "state", source) as before:
        _, node = before.lookup(_LARGE)
    with _asking(tmp_path / "state", source) as asking:
        asking.lookup(_LARGE)
        asking.send(Opcode.FORGET, node, protocol.FORGET_IN.pack(1))
        assert source.unread == [], "the one before has given references, too"


def test_a_whole_large_object(asking: _Asking, source: _Source) -> None:
    """One that was never a file is read natively."""
    source.is_whole = True
    assert asking.lookup(_LARGE) == (errno.ENOENT, 0)
    assert source.large == []


def test_objects_that_cannot_be_kept(asking: _Asking, source: _Source) -> None:
    """They are served, large or not."""
    error, node = asking.lookup(_KEPT)
    assert (error, source.brought, source.large) == (0, [_KEPT], [])
    assert asking.ask(Opcode.READ, node, protocol.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)) == (0, bytes(30))


def test_views_that_are_too_short(asking: _Asking, source: _Source) -> None:
    """They are EIO; and that nothing fills it does not matter."""
    error, node = asking.lookup(_ODD)
    assert error == 0
    assert asking.ask(Opcode.READ, node, protocol.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)) == (errno.EIO, b"")
    assert source.given == []


def test_the_next_server_knows(asking: _Asking, source: _Source, tmp_path: Path) -> None:
    """Numbers that were given away before are answered without a look-up."""
    _, node = asking.lookup(_LARGE)
    asking.server._table.close()
    with _asking(tmp_path / "state", source) as later:
        read = protocol.READ_IN.pack(0, 0, 10, 0, 0, 0, 0)
        assert later.ask(Opcode.READ, node, read) == (0, bytes(10))
        assert later.ask(Opcode.READ, node + 1, read)[0] == errno.ESTALE
        later.send(Opcode.READ, node, read, mark=wire.UNIQUE_RESEND)
        answer = later.receive()
        assert answer is not None
        assert answer[1] == later.unique | wire.UNIQUE_RESEND
    asking.server._table = nodes.NodeTable(tmp_path / "state" / "nodes")


def test_the_probe(asking: _Asking) -> None:
    """An empty file, in the root only."""
    error, body = asking.ask(Opcode.LOOKUP, nodes.ROOT, b"probe\0")
    assert (error, protocol.ENTRY_OUT.unpack(body)[0]) == (0, nodes.PROBE)
    assert asking.ask(Opcode.GETATTR, nodes.PROBE, bytes(16))[0] == 0
    assert asking.ask(Opcode.LOOKUP, nodes.FETCH, b"probe\0")[0] == errno.ENOENT


@pytest.mark.parametrize(
    ("opcode", "error"),
    [
        *((opcode, errno.ENOSYS) for opcode in (Opcode.OPEN, Opcode.OPENDIR, Opcode.GETXATTR, Opcode.LISTXATTR)),
        *((opcode, errno.ENOSYS) for opcode in (Opcode.ACCESS, Opcode.FLUSH, Opcode.IOCTL, Opcode.LSEEK, 4096)),
        *((opcode, errno.EROFS) for opcode in (Opcode.SETATTR, Opcode.UNLINK, Opcode.WRITE, Opcode.CREATE)),
        *((opcode, 0) for opcode in (Opcode.STATFS, Opcode.READDIR, Opcode.DESTROY)),
    ],
)
def test_other_requests(asking: _Asking, opcode: int, error: int) -> None:
    """What the kernel does without, what is refused, and what is answered."""
    assert asking.ask(opcode, nodes.ROOT)[0] == error


def test_requests_without_answer(asking: _Asking) -> None:
    """Nothing is sent, which the kernel would take for an error."""
    asking.send(Opcode.FORGET, 5, bytes(8))
    asking.send(Opcode.BATCH_FORGET, 0, protocol.BATCH_FORGET_IN.pack(1, 0) + protocol.FORGET_ONE.pack(5, 1))
    asking.send(Opcode.INTERRUPT, 0, protocol.INTERRUPT_IN.pack(99))
    assert asking.receive() is None


def test_fuzz(asking: _Asking) -> None:
    """Whatever comes is answered once at most, and the server goes on."""
    numbers = random.Random(20)
    _, node = asking.lookup(_LARGE)
    places = (0, 1, 2, 3, nodes.FETCH_CHILDREN, nodes.FAIL_CHILDREN + 7, node, node + 1, 2**64 - 1)
    for _ in range(5000):
        opcode = numbers.choice((*Opcode, numbers.randrange(2**32)))
        body = numbers.randbytes(numbers.choice((0, 1, 8, 40, 64, 200)))
        asking.send(opcode, numbers.choice(places), body, extra=numbers.choice((0, 0, 1, 1000)))
        answer = asking.receive()
        assert answer is None or (answer[1] == asking.unique and 0 <= answer[0] < 512)
        assert asking.receive() is None
    for size in range(40):
        asking.server.handle(Request(), memoryview(numbers.randbytes(size)))
    assert asking.receive() is None
    assert asking.lookup(_LARGE) == (0, node)
