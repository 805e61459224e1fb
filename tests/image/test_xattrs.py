"""Which attributes a file can have: what setxattr(2) of this machine takes."""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pagepool.image import Kind
from pagepool.image.xattrs import can_have

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ANYBODY = 0xFFFFFFFF
_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
_CAPABILITIES = ("0100000200040000000000000000000000000000", "010000030004000000000000000000000000000000000000", "7878")
_OTHERS = [
    *((name, b"1") for name in ("user.a", "user.", "user", "trusted.a", "trusted.", "security.a", "security.")),
    *((name, b"1") for name in ("system.a", "nobody.knows", "", "user." + "n" * 250, "user." + "n" * 251)),
    *(("security.capability", bytes.fromhex(value)) for value in _CAPABILITIES),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[Kind, Path]:
    """A file of each kind, where attributes are kept."""
    if os.geteuid():
        pytest.skip("needs root: trusted attributes")
    made = {kind: tmp_path / kind.value for kind in (Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO)}
    made[Kind.REGULAR].touch()
    made[Kind.DIRECTORY].mkdir()
    made[Kind.SYMLINK].symlink_to("regular")
    os.mkfifo(made[Kind.FIFO])
    try:
        os.setxattr(made[Kind.REGULAR], _LISTS[0], _acl([(1, 7), (2, 7), (4, 7), (16, 7), (32, 7)]))
    except OSError as error:
        pytest.skip(f"needs access control lists in {tempfile.gettempdir()}: {error.strerror}")
    return made


def test_the_kernel_takes_the_same(files: dict[Kind, Path]) -> None:
    """Lists in every order of tags, and damaged ones; names and capabilities at the edges; for each kind of file."""
    lists = [(name, value) for value in _acls() for name in _LISTS]
    taken = 0
    for kind, path in files.items():
        for name, value in lists + _OTHERS:
            taken += (expected := _takes(path, name, value))
            assert can_have(kind, os.fsencode(name), value) == expected, (kind, name, value.hex())
    assert taken > 100


def _takes(path: Path, name: str, value: bytes) -> bool:
    # A list that has only its version is taken, and removes what is there.
    try:
        os.setxattr(path, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ERANGE, errno.EACCES):
            raise
        return False
    with suppress(OSError):  # a list that says no more than a mode has become one
        os.removexattr(path, name, follow_symlinks=False)
    return name not in _LISTS or len(value) > 4


def _acl(entries: list[tuple[int, int]], version: int = 2) -> bytes:
    named = ((tag, rights, 1000 if tag in (2, 8) else _ANYBODY) for tag, rights in entries)
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in named)


def _acls() -> Iterator[bytes]:
    for length in range(5):
        for tags in itertools.product((1, 2, 4, 8, 16, 32), repeat=length):
            yield _acl([(tag, 5) for tag in tags])
    chance = random.Random(5)
    full = [(1, 7), (2, 7), (2, 5), (4, 7), (8, 1), (16, 7), (32, 0)]
    for _ in range(500):
        entries = [entry for entry in full if chance.random() < 0.8]
        if chance.random() < 0.2:
            entries.append((chance.choice((0, 3, 32, 0x120)), chance.choice((0, 8))))
        value = bytearray(_acl(entries, chance.choice((2, 2, 2, 1))) + bytes(chance.choice((0, 0, 0, 3))))
        if entries and chance.random() < 0.2:
            value[8:12] = b"\xff" * 4  # whose entry the first one is
        yield bytes(value)
