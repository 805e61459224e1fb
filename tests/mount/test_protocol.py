"""The wire format, by requests that Linux 6.18 has sent and by the layout of fuse.h."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable

import pytest

from pagepool.image import Kind
from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.protocol import InitFlag, Opcode, ProtocolError, Valid
from pagepool.vfs import Attributes, Usage

_Parser = Callable[[memoryview], object]

# Bodies as they came, behind a header of 40 bytes.
_INIT = "070000002d00000000000200fbffff73fd05" + "00" * 46
_CHOWN = "0608" + "00" * 74 + "e8030000e903000000000000"
_UTIMES = "30" + "00" * 31 + "00" * 8 + "ff" * 8 + "00" * 8 + "01000000ffc99a3b" + "00" * 24
_TRUNCATE = "0802" + "00" * 14 + "0200000000000000" + "0cc81572e8a7ff30" + "00" * 56
_SETXATTR = "03000000010000000000000000000000757365722e6b00760077"
_SYMLINK = "7300736f6d652f74617267657400"
_MKNOD = "b68100000000000012000000000000006600"
_RENAME2 = "010000000000000001000000000000006700673200"
_BATCH_FORGET = "02000000000000000200000000000000030000000000000005000000000000000200000000000000"
_WRITE = "0000000000000000000000000000000004000000000000000000000000000000018000000000000064617461"
_HEADER = "2a00000001000000060000000000000001000000000000000000000000000000375d0000000000006600"


def _body(text: str) -> memoryview:
    return memoryview(bytes.fromhex(text))


def test_header() -> None:
    """Length, opcode, number, node and who asks; the name follows."""
    data = bytes.fromhex(_HEADER)
    length, opcode, unique, node, uid, gid, pid, extra, _ = protocol.IN_HEADER.unpack_from(data)
    assert (length, Opcode(opcode), unique, node) == (len(data), Opcode.LOOKUP, 6, 1)
    assert (uid, gid, pid, extra) == (0, 0, 0x5D37, 0)
    assert protocol.parse_name(memoryview(data)[protocol.IN_HEADER.size :]) == b"f"


def test_init() -> None:
    """Version and flags of the kernel, and an answer of 64 bytes."""
    init = protocol.parse_init(_body(_INIT))
    assert (init.major, init.minor, init.max_readahead) == (7, 45, 128 << 10)
    assert init.flags & InitFlag.PARALLEL_DIROPS
    assert init.flags & InitFlag.HANDLE_KILLPRIV_V2
    answer = protocol.encode_init(38, init.max_readahead, InitFlag.ASYNC_READ, background=64)
    assert len(answer) == 64
    assert answer[:24].hex() == "07000000260000000000020001000000" + "40003000" + "00001000"
    assert answer[24:32].hex() == "01000000" + "0001" + "0000"


def test_setattr() -> None:
    """Owner; times, before 1970 too; size."""
    owner = protocol.parse_setattr(_body(_CHOWN))
    assert owner.valid == Valid.UID | Valid.GID | Valid.KILL_SUIDGID
    assert (owner.uid, owner.gid) == (1000, 1001)
    times = protocol.parse_setattr(_body(_UTIMES))
    assert times.valid == Valid.ATIME | Valid.MTIME
    assert (times.atime_ns, times.mtime_ns) == (1, -1)
    size = protocol.parse_setattr(_body(_TRUNCATE))
    assert (size.valid & Valid.SIZE, size.size) == (Valid.SIZE, 2)


def test_names_and_values() -> None:
    """A name, two names, a name and a value."""
    assert protocol.parse_names(_body(_SYMLINK)) == (b"s", b"some/target")
    assert protocol.parse_name(_body(_MKNOD), protocol.MKNOD_IN.size) == b"f"
    mode, device, umask, _ = protocol.unpack(protocol.MKNOD_IN, _body(_MKNOD))
    assert (mode, device, umask) == (stat.S_IFREG | 0o666, 0, 0o022)
    assert protocol.parse_setxattr(_body(_SETXATTR), extended=True) == (b"user.k", b"v\0w", 1, 0)
    short = _SETXATTR[:16] + _SETXATTR[32:]
    assert protocol.parse_setxattr(_body(short), extended=False) == (b"user.k", b"v\0w", 1, 0)
    parent, flags, _ = protocol.unpack(protocol.RENAME2_IN, _body(_RENAME2))
    assert (parent, flags) == (1, 1)
    assert protocol.parse_names(_body(_RENAME2), protocol.RENAME2_IN.size) == (b"g", b"g2")
    assert protocol.parse_forgets(_body(_BATCH_FORGET)) == [(2, 3), (5, 2)]
    handle, offset, size, *_ = protocol.unpack(protocol.WRITE_IN, _body(_WRITE))
    assert (handle, offset, size) == (0, 0, 4)
    assert bytes(_body(_WRITE)[protocol.WRITE_IN.size :]) == b"data"


def test_entry() -> None:
    """The answer to a look-up has 128 bytes, each field where fuse.h has it."""
    attributes = Attributes(7, Kind.BLOCK, 0o4640, 1000, 2**32 - 2, 5, 3, -1, 1_500_000_001, 0, 4095, 1_048_575, 8)
    entry = protocol.encode_entry(attributes)
    assert len(entry) == 128
    fields = protocol.ENTRY_OUT.unpack(entry)
    assert fields[:6] == (7, 0, protocol.FOREVER_S, protocol.FOREVER_S, 0, 0)
    assert fields[6:9] == (7, 5, 8)
    assert fields[9:15] == (-1, 1, 0, 999_999_999, 500_000_001, 0)
    assert fields[15:19] == (stat.S_IFBLK | 0o4640, 3, 1000, 2**32 - 2)
    assert protocol.decode_device(fields[19]) == (4095, 1_048_575)
    assert protocol.encode_attributes(attributes)[16:] == entry[40:]
    assert protocol.ENTRY_OUT.unpack(protocol.NO_ENTRY)[:3] == (0, 0, protocol.FOREVER_S)


@pytest.mark.parametrize(("major", "minor"), [(0, 0), (1, 3), (4095, 0), (0, 1_048_575), (259, 70_000)])
def test_devices(major: int, minor: int) -> None:
    """A device number on the wire is that of the C library, as far as 32 bits go."""
    number = protocol.encode_device(major, minor)
    assert protocol.decode_device(number) == (major, minor)
    assert (os.major(number), os.minor(number)) == (major, minor)


def test_listings_are_aligned() -> None:
    """Records start at multiples of 8."""
    for length in range(1, 20):
        record = protocol.encode_dirent(9, Kind.FIFO, b"x" * length, 77)
        assert len(record) % 8 == 0
        ino, cookie, size, kind = protocol.DIRENT.unpack_from(record)
        assert (ino, cookie, size, kind) == (9, 77, length, stat.S_IFIFO >> 12)
        assert len(protocol.encode_dirent_plus(None, record)) == 128 + len(record)


def test_usage() -> None:
    """The answer to STATFS has 80 bytes."""
    assert protocol.STATFS_OUT.unpack(protocol.encode_usage(Usage(10, 4, 7, 2))) == (10, 4, 4, 7, 2, 4096, 255, 4096)
    assert protocol.STATFS_OUT.size == 80


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (protocol.parse_name, b""),
        (protocol.parse_name, b"\0"),
        (protocol.parse_name, b"name"),
        (protocol.parse_name, b"a\0b\0"),
        (protocol.parse_names, b"a\0"),
        (protocol.parse_names, b"a\0b"),
        (protocol.parse_names, b"\0b\0"),
        (protocol.parse_names, b"a\0b\0c\0"),
        (protocol.parse_init, b"\7\0\0\0"),
        (protocol.parse_setattr, bytes(87)),
        (protocol.parse_forgets, bytes.fromhex("0200000000000000") + bytes(16)),
        (protocol.parse_forgets, b"\1"),
        (lambda body: protocol.parse_setxattr(body, extended=True), bytes.fromhex(_SETXATTR[:-2])),
        (lambda body: protocol.parse_setxattr(body, extended=True), bytes(16)),
    ],
)
def test_what_is_malformed(parse: _Parser, body: bytes) -> None:
    """Too short, too long, or not ended: an error, never something read past the end."""
    with pytest.raises(ProtocolError):
        parse(memoryview(body))


def test_any_bytes_are_parsed_or_refused() -> None:
    """Random bodies raise nothing else."""
    chance = random.Random(1)
    parsers: tuple[_Parser, ...] = (
        *(protocol.parse_name, protocol.parse_names, protocol.parse_init, protocol.parse_setattr),
        *(protocol.parse_forgets, lambda body: protocol.parse_setxattr(body, extended=False)),
    )
    for _ in range(2000):
        body = memoryview(chance.randbytes(chance.randrange(120)).replace(b"\7", b"\0"))
        for parse in parsers:
            try:
                parse(body)
            except ProtocolError:
                continue
