"""A layer on its way into a registry: compressed, hashed, and kept in a file without a name until it is sent.

A blob's digest has to be known before its upload begins, and an upload that breaks off begins anew; so the layer is
written down once, rather than read from the overlay several times. A crash leaves nothing: the file never has a name.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from typing import TYPE_CHECKING, Protocol

import zstandard

from pagepool.digest import Digest, new_hasher
from pagepool.oci import Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pagepool.oci.mediatypes import Compression

_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3


class _Compressor(Protocol):
    def compress(self, data: bytes | memoryview, /) -> bytes | memoryview: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes | memoryview, /) -> bytes | memoryview:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(compression: Compression) -> _Compressor:
    if compression == "gzip":
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)  # a gzip header without name and time
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
    return _Plain()


class StagedLayer:
    """A layer in a file. `open` may be called by several threads; close it when nobody reads any more.

    Args:
        chunks: the plain tar.
        media_type: of the blob.
        compression: how it is to be compressed.
        directory: where the file is made; None: where temporary files are.
        progress: told how many more bytes of the tar have been written.

    Raises:
        OSError: the disk is full.
        PagepoolError: whatever reading the chunks raises.
    """

    def __init__(
        self,
        chunks: Iterable[bytes | memoryview],
        media_type: str,
        compression: Compression,
        directory: Path | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by close
        try:
            self._write(chunks, media_type, compression, progress)
        except BaseException:
            self._file.close()
            raise

    descriptor: Descriptor
    """Of the blob."""
    diff_id: Digest
    """Of the plain tar."""
    plain_size: int
    """Bytes of the plain tar."""

    def open(self) -> StagedReader:
        """Open the blob at its beginning."""
        return StagedReader(self._file.fileno())

    def close(self) -> None:
        """Drop the file."""
        self._file.close()

    def _write(
        self,
        chunks: Iterable[bytes | memoryview],
        media_type: str,
        compression: Compression,
        progress: Callable[[int], None],
    ) -> None:
        plain, blob = new_hasher("sha256"), new_hasher("sha256")
        compressor = _compressor(compression)
        self.plain_size = 0

        def put(data: bytes | memoryview) -> None:
            self._file.write(data)
            if compression != "none":
                blob.update(data)

        for chunk in chunks:
            plain.update(chunk)
            put(compressor.compress(chunk))
            self.plain_size += len(chunk)
            progress(len(chunk))
        put(compressor.flush())
        self._file.flush()
        self.diff_id = Digest("sha256", plain.digest())
        digest = self.diff_id if compression == "none" else Digest("sha256", blob.digest())
        self.descriptor = Descriptor(media_type, digest, self._file.tell())


class StagedReader:
    """Reads a staged blob; implements `Readable`. Other readers of the same file do not move it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes (all, if negative), none only at the end."""
        wanted = size if size >= 0 else os.fstat(self._descriptor).st_size - self._offset
        data = os.pread(self._descriptor, wanted, self._offset)
        self._offset += len(data)
        return data

    def close(self) -> None:
        """The file belongs to the layer."""
