"""Rebuild a compressed layer from its tar, where a known encoder makes exactly the bytes that were pushed.

One encoder is known: zlib, with which Python, Java and libarchive (Bazel, Jib, bsdtar) write gzip. The Go clients use
encoders of their own and the zstd library's output depends on how it was called; such blobs stay opaque.

An encoder's output is not part of any standard and may change with the library. Two guards: the library's version is
part of the parameters, and every 128 KiB that are rebuilt are compared with the digest taken when the blob was
pushed before they are handed out. A library that behaves otherwise makes such a blob unreadable, never wrong.
Rebuilding also runs at the encoder's speed, not the disk's. Therefore it is done only when asked for.

Parameters as stored: docs/format/store.md, "Encoders".
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROBE_SIZE = 1 << 20  # plain bytes by which a candidate is judged before the whole blob is compared
_ZLIB = f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
GZIP_MAGIC = b"\x1f\x8b"
_LEVELS = (6, 9, 1, 5, 4, 7, 8, 3, 2)
_MEMORY_LEVELS = (8, 9)


@dataclass(frozen=True, slots=True)
class Encoder:
    """What makes a compressed blob out of a tar.

    Args:
        library: name and version.
        level: of compression, 1 to 9.
        memory: zlib's memLevel.
        header: hex of the gzip header, which is kept as it came.
    """

    library: str
    level: int
    memory: int
    header: str

    def encode(self) -> bytes:
        """The parameters as stored: JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, stored: bytes, name: str) -> Encoder:
        """Read them back.

        Raises:
            CorruptError: they are no parameters, or of a library of another version than is here.
        """
        try:
            encoder = cls(**json.loads(stored))
        except (ValueError, TypeError) as error:
            raise CorruptError("blob", name, f"its encoder cannot be read: {error}") from error
        if encoder.library != _ZLIB:
            raise CorruptError("blob", name, f"rebuilding it needs {encoder.library}; here is {_ZLIB}")
        return encoder

    def compress(self, plain: Iterable[bytes]) -> Iterator[bytes]:
        """Compress a tar. The last piece is written once it has ended."""
        yield bytes.fromhex(self.header)
        deflate = zlib.compressobj(self.level, zlib.DEFLATED, -zlib.MAX_WBITS, self.memory)
        check = size = 0
        for piece in plain:
            check = zlib.crc32(piece, check)
            size += len(piece)
            yield deflate.compress(piece)
        yield deflate.flush() + check.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


def candidates(head: bytes) -> list[Encoder]:
    """The encoders that may have made the blob that begins with `head`."""
    header = gzip_header(head) if head[:2] == GZIP_MAGIC else None
    if header is None:
        return []
    return [Encoder(_ZLIB, level, memory, header.hex()) for memory in _MEMORY_LEVELS for level in _LEVELS]


def gzip_header(head: bytes) -> bytes | None:
    """The header of a gzip member (RFC 1952, section 2.3); None if it is longer than `head`."""
    if len(head) < 10:
        return None
    flags, end = head[3], 10
    if flags & 4:
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            zero = head.find(b"\0", end)
            if zero < 0:
                return None
            end = zero + 1
    end += 2 if flags & 2 else 0
    return head[:end] if end <= len(head) else None


def identify(head: bytes, plain_head: bytes, plain_size: int) -> Encoder | None:
    """The encoder whose output begins like the blob.

    Args:
        head: the blob's first bytes; at least as many as `PROBE_SIZE` plain bytes can be compressed to.
        plain_head: the tar's first bytes, `PROBE_SIZE` or all.
        plain_size: bytes of the whole tar.
    """
    whole = len(plain_head) == plain_size
    for encoder in candidates(head):
        made = b"".join(encoder.compress([plain_head]) if whole else islice(encoder.compress([plain_head]), 2))
        if len(made) > len(encoder.header) // 2 and head[: len(made)] == made[: len(head)]:
            return encoder
    return None


def checked(pieces: Iterable[bytes], extents: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Pass a rebuilt blob on by extents, each compared with its digest first.

    Raises:
        CorruptError: it is not what was pushed; nothing of the wrong extent was yielded.
    """
    held = bytearray()
    digests = iter(extents)
    source = iter(pieces)
    ended = False
    while not ended or held:
        while len(held) < EXTENT_SIZE and not ended:
            piece = next(source, None)
            ended = piece is None
            held += piece or b""
        if not held:
            return
        extent = bytes(held[:EXTENT_SIZE])
        del held[:EXTENT_SIZE]
        if blake3(extent).digest() != next(digests, b""):
            raise CorruptError("blob", name, "the encoder makes other bytes than were pushed")
        yield extent
