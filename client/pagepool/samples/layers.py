"""Packing members into layers: tar, compressed or not, written as a blob of an OCI layout.

A blob is written under a passing name and renamed to its digest when it is whole. Plain and compressed bytes
are hashed as they go by, so every byte is touched once. Thread-safe: one layer by each thread.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pagepool.digest import Digest
from pagepool.oci import Descriptor, mediatypes
from pagepool.samples.material import Member

Progress = Callable[[int], None]
_BATCH = 1 << 20
GZIP_LEVEL = 1
GZIP_WINDOW = 31
"""zlib's number for "with a gzip header"."""
_RECORD = 10240


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer that was written.

    Args:
        descriptor: of the blob.
        diff_id: digest of the plain tar.
        plain_size: bytes of it.
        files: regular files in it.
    """

    descriptor: Descriptor
    diff_id: Digest
    plain_size: int
    files: int


class Compressor(Protocol):
    """What `zlib.compressobj` returns, and what others have that is like it."""

    def compress(self, data: bytes, /) -> bytes:
        """Take plain bytes; give compressed ones, perhaps of earlier calls."""
        ...

    def flush(self) -> bytes:
        """What is left."""
        ...


def zlib_gzip() -> Compressor:
    """The standard library's gzip."""
    return zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WINDOW)


@dataclass(frozen=True, slots=True)
class Packing:
    """How a layer is packed.

    Args:
        compress: as gzip; else plain.
        form: dialect of the headers, as `tarfile` numbers them.
        edit: changes the content of a member on its way in; None: as it is.
        gzip: begins a gzip stream.
    """

    compress: bool = True
    form: Literal[1, 2] = tarfile.GNU_FORMAT
    edit: Callable[[Member, bytes], bytes] | None = None
    gzip: Callable[[], Compressor] = zlib_gzip


class _Plain:
    """A compressor that does not compress."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class _Writer:
    """Gathers small pieces, then hashes, compresses, hashes again and writes in large ones."""

    def __init__(self, descriptor: int, compressor: Compressor, progress: Progress) -> None:
        self._file = descriptor
        self._compressor = compressor
        self._progress = progress
        self._waiting = bytearray()
        self.plain_hash, self.plain_size = hashlib.sha256(), 0
        self.hash, self.size = hashlib.sha256(), 0

    @property
    def position(self) -> int:
        """Plain bytes written so far."""
        return self.plain_size + len(self._waiting)

    def write(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= _BATCH:
            self._drain()

    def close(self) -> None:
        self._drain()
        self._put(self._compressor.flush())

    def _drain(self) -> None:
        data = bytes(self._waiting)
        self._waiting.clear()
        self.plain_hash.update(data)
        self.plain_size += len(data)
        self._put(self._compressor.compress(data))
        self._progress(len(data))

    def _put(self, data: bytes) -> None:
        self.hash.update(data)
        self.size += len(data)
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]


def pack(members: Iterable[Member], blobs: Path, packing: Packing, progress: Progress) -> Packed:
    """Write a layer.

    Args:
        members: in the order in which they are to be packed.
        blobs: directory of the layout's SHA-256 blobs.
        packing: how.
        progress: told of plain bytes as they are packed.

    Raises:
        OSError: the blob cannot be written. A member that cannot be read is left out.
    """
    compressor: Compressor = packing.gzip() if packing.compress else _Plain()
    descriptor, name = tempfile.mkstemp(prefix=".layer-", dir=blobs)
    try:
        writer = _Writer(descriptor, compressor, progress)
        files = _write_members(members, writer, packing)
        writer.close()
    finally:
        os.close(descriptor)
    digest = Digest("sha256", writer.hash.digest())
    Path(name).rename(blobs / digest.hex)
    media_type = mediatypes.OCI_LAYER_GZIP if packing.compress else mediatypes.OCI_LAYER
    diff_id = Digest("sha256", writer.plain_hash.digest())
    return Packed(Descriptor(media_type, digest, writer.size), diff_id, writer.plain_size, files)


def _write_members(members: Iterable[Member], writer: _Writer, packing: Packing) -> int:
    files = 0
    for member in members:
        header = tarfile.TarInfo(member.name)
        header.mode = stat.S_IMODE(member.status.st_mode)
        header.mtime = int(member.status.st_mtime)
        content = b""
        try:
            if member.is_file:
                content = member.path.read_bytes()
            elif stat.S_ISLNK(member.status.st_mode):
                header.type, header.linkname = tarfile.SYMTYPE, str(member.path.readlink())
            else:
                header.type = tarfile.DIRTYPE
        except OSError:
            continue  # removed since it was found
        if member.is_file:
            content = packing.edit(member, content) if packing.edit else content
            files += 1
        header.size = len(content)
        writer.write(header.tobuf(packing.form, "utf-8", "surrogateescape"))
        writer.write(content)
        writer.write(bytes(-len(content) % 512))
    writer.write(bytes(1024))
    writer.write(bytes(-writer.position % _RECORD))
    return files
