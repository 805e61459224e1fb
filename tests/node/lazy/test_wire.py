"""What kernel and server of the lazy mount agree on, by INIT as Linux 6.18 has sent it, and how it is written down."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import UnsupportedError
from pagepool.image import Kind
from pagepool.mount.fuse.protocol import InitFlag
from pagepool.node.lazy import wire

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS, _FLAGS2 = 0x73FFFFFB, 0x05FD
_RESEND = 1 << 7
_PARALLEL, _NO_OPEN, _NO_OPENDIR, _MAX_PAGES = 1 << 18, 1 << 17, 1 << 24, 1 << 22
"""Of include/uapi/linux/fuse.h."""


def _init(major: int = 7, minor: int = 45, flags: int = _FLAGS, flags2: int | None = _FLAGS2) -> memoryview:
    """The body of an INIT; of a kernel before Linux 5.17 without a second set of flags."""
    body = struct.pack("=IIII", major, minor, 128 << 10, flags)
    return memoryview(body if flags2 is None else body + struct.pack("=I44x", flags2))


def test_what_is_agreed_on() -> None:
    agreement = wire.plan_agreement(_init(), 64 << 10)
    assert (agreement.minor, agreement.max_readahead, agreement.resend) == (38, 64 << 10, True)
    answer = struct.unpack_from("=IIIIHHIIHHI", wire.encode_agreement(agreement, 40))
    assert answer[:4] == (7, 38, 64 << 10, agreement.flags)
    assert answer[4:6] == (40, 30)
    assert answer[10] == _RESEND
    assert agreement.flags & ~_FLAGS == 0
    for flag in (_PARALLEL, _NO_OPEN, _NO_OPENDIR, _MAX_PAGES, int(InitFlag.INIT_EXT)):
        assert agreement.flags & flag
    assert wire.plan_agreement(_init(minor=33), 0).minor == 33


@pytest.mark.parametrize(
    "body",
    [_init(flags2=0x057D), _init(flags2=None), _init(flags=_FLAGS & ~int(InitFlag.INIT_EXT))],
    ids=["kernel cannot", "older kernel", "no second set"],
)
def test_requests_come_again_only_where_the_kernel_says_so(body: memoryview) -> None:
    """A kernel that is asked for what it does not know would end the connection."""
    assert not wire.plan_agreement(body, 0).resend
    assert not wire.plan_agreement(_init(), 0, resend=False).resend


@pytest.mark.parametrize(
    "body",
    [
        _init(major=8),
        _init(minor=30),
        *(_init(flags=_FLAGS & ~flag) for flag in (_PARALLEL, _NO_OPEN, _NO_OPENDIR, _MAX_PAGES)),
    ],
    ids=["major", "minor", "parallel", "open", "opendir", "pages"],
)
def test_a_kernel_that_is_too_old(body: memoryview) -> None:
    """It is told, as without these the server would be asked what it cannot answer."""
    with pytest.raises(UnsupportedError, match="the lazy mount cannot use"):
        wire.plan_agreement(body, 0)


def test_it_is_written_down(tmp_path: Path) -> None:
    """For servers that come later; what was torn is as none."""
    path = tmp_path / "agreement"
    assert wire.read_agreement(path) is None
    agreement = wire.plan_agreement(_init(), 64 << 10)
    wire.write_agreement(path, agreement)
    assert wire.read_agreement(path) == agreement
    assert list(tmp_path.iterdir()) == [path]
    for text in ("", "[]", '{"minor": 38}'):
        path.write_text(text)
        assert wire.read_agreement(path) is None


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (512, 1), (513, 2), (1 << 40, 1 << 31)])
def test_an_object_is_a_file_that_nobody_writes(size: int, blocks: int) -> None:
    found = wire.object_attributes(9, size)
    assert (found.ino, found.kind, found.mode, found.uid, found.gid, found.nlink) == (9, Kind.REGULAR, 0o444, 0, 0, 1)
    assert (found.size, found.blocks) == (size, blocks)
