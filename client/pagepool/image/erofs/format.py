"""EROFS on disk, as far as images of trees use it: records, constants, check sums (docs/format/erofs.md).

After Linux' Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h (6.5). Knows nothing of trees. Pure.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from pagepool.errors import CorruptError

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK: Final = 4096
BLOCK_BITS: Final = 12
SLOT: Final = 32
"""Inodes begin at multiples of it; an inode's number is its offset divided by it."""
SUPER_AT: Final = 1024
MAGIC: Final = 0xE0F5E1E2

CHECKSUM: Final = 0x1
OWN_MTIME: Final = 0x2
XATTR_FILTER: Final = 0x4
CHUNKED: Final = 0x4

# magic, check sum, compatible features, block bits, extension slots, root; inodes, seconds, nanoseconds, blocks, block
# of inodes, block of shared xattrs; uuid, volume name, incompatible features, and zeros for what is not used.
SUPER: Final = struct.Struct("<IIIBBHQqIIII16s16sI44x")
# format, xattr count, mode, links, size, 0, union, number, owner, group, 0
COMPACT: Final = struct.Struct("<HHHHI4xIIHH4x")
# format, xattr count, mode, 0, size, union, number, owner, group, seconds, nanoseconds, links, 0
EXTENDED: Final = struct.Struct("<HHH2xQIIIIqII16x")
NUMBER_AT: Final = 20
"""Where in an inode of either size its i_ino is."""
DIRENT: Final = struct.Struct("<QHBx")
XATTR_HEAD: Final = struct.Struct("<IB7x")
XATTR_ENTRY: Final = struct.Struct("<BBH")
U32: Final = struct.Struct("<I")

PLAIN: Final = 0
INLINE: Final = 2
CHUNKS: Final = 4
NO_BLOCK: Final = b"\xff\xff\xff\xff"
MOST_CHUNK_BITS: Final = 31
"""A chunk is at most 2**31 blocks."""

MOST_U16: Final = 0xFFFF
MOST_U32: Final = 0xFFFFFFFF
LONGEST_NAME: Final = 255
MOST_SHARED: Final = 255
MOST_XATTR_BYTES: Final = (MOST_U16 - 1) * 4
ROOT_WITHIN: Final = SLOT << 16

REGULAR_TYPE, DIRECTORY_TYPE, CHAR_TYPE, BLOCK_TYPE, FIFO_TYPE, SYMLINK_TYPE = 1, 2, 3, 4, 5, 7

_FILTER_SEED: Final = 0x25BBE08F
_CRC32C: Final = 0x82F63B78


def round_up(size: int, unit: int) -> int:
    """The next multiple of `unit`, a power of two."""
    return (size + unit - 1) & -unit


def encode_device(major: int, minor: int) -> int:
    """A device number as Linux keeps it in 32 bits: 12 of the major number, 20 of the minor one, as mknod(2) takes."""
    major, minor = major & 0xFFF, minor & 0xFFFFF
    return (minor & 0xFF) | (major << 8) | ((minor & 0xFFF00) << 12)


def encode_super(root: int, nodes: int, built: tuple[int, int], blocks: int, xattr_block: int, uuid: bytes) -> bytes:
    """The super block, without its check sum.

    Args:
        root: number of the root's inode.
        nodes: how many inodes there are.
        built: seconds and nanoseconds that compact inodes have as their time.
        blocks: of the whole image.
        xattr_block: where shared xattrs begin.
        uuid: 16 bytes.
    """
    compatible = CHECKSUM | OWN_MTIME | XATTR_FILTER
    return SUPER.pack(
        MAGIC, 0, compatible, BLOCK_BITS, 0, root, nodes, *built, blocks, 0, xattr_block, uuid, b"pagepool", CHUNKED
    )


def crc32c(data: Buffer) -> int:
    """CRC-32C from all ones and without the final inversion, as the super block's check sum is made."""
    crc = MOST_U32
    for byte in memoryview(data).cast("B"):
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def filter_bit(index: int, suffix: bytes) -> int:
    """The bit of an xattr's name in an inode's filter of names."""
    return 1 << (xxh32(suffix, (_FILTER_SEED + index) & MOST_U32) & 31)


def xxh32(data: bytes, seed: int) -> int:
    """xxHash with 32 bits (its specification, version 0.1.1)."""
    at, size = 0, len(data)
    if size >= 16:
        lanes = [seed + _P1 + _P2, seed + _P2, seed, seed - _P1]
        while at + 16 <= size:
            words = struct.unpack_from("<4I", data, at)
            lanes = [_rotate(lane + word * _P2, 13) * _P1 for lane, word in zip(lanes, words, strict=True)]
            at += 16
        total = sum(_rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        total = seed + _P5
    total += size
    while at + 4 <= size:
        total = _rotate(total + U32.unpack_from(data, at)[0] * _P3, 17) * _P4
        at += 4
    for byte in data[at:]:
        total = _rotate(total + byte * _P5, 11) * _P1
    total &= MOST_U32
    total = ((total ^ (total >> 15)) * _P2) & MOST_U32
    total = ((total ^ (total >> 13)) * _P3) & MOST_U32
    return total ^ (total >> 16)


def node_number(image: Buffer, ino: int) -> int:
    """The number in its tree (`TreeNode.number`) of an inode of an image.

    Args:
        image: the image, mapped or read; a few bytes of it are looked at.
        ino: its st_ino on the EROFS mount, or on an overlay of one for anything but a directory: what overlayfs puts
            into the upper bits (xino) is left out.

    Raises:
        CorruptError: there is no such inode.
    """
    at = (ino & MOST_U32) * SLOT + NUMBER_AT
    if at < SUPER_AT + SUPER.size or at + U32.size > memoryview(image).nbytes:
        raise CorruptError("erofs image", "", f"it has no inode {ino}")
    return int(U32.unpack_from(image, at)[0])


def _rotate(value: int, by: int) -> int:
    value &= MOST_U32
    return ((value << by) | (value >> (32 - by))) & MOST_U32


def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_CRC32C if value & 1 else 0)
        found.append(value)
    return tuple(found)


_TABLE: Final = _table()
_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
