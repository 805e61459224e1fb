"""Readers that check what they hand out.

A `VerifyingReader` passes bytes on as they come and raises DigestMismatchError where the content ends, if it
was not what its descriptor said. So a consumer may use bytes as they arrive, but must not publish anything
before the reader has said that it is at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Self

from pagepool.digest import Digest, new_hasher
from pagepool.errors import DigestMismatchError
from pagepool.oci.descriptor import Descriptor

CHUNK_SIZE = 1 << 20
"""Bytes that copying loops ask for at a time."""


class Readable(Protocol):
    """What can be read once, from its beginning, and must be closed."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, fewer only where that is convenient, none only at the end."""
        ...

    def close(self) -> object:
        """Release what is held. May be called twice, and before the end."""
        ...


class VerifyingReader:
    """Reads content and checks it against its descriptor. Not thread-safe.

    Args:
        source: where the bytes come from. This object closes it.
        expected: what the content is said to be.
    """

    def __init__(self, source: Readable, expected: Descriptor) -> None:
        self._source = source
        self._expected = expected
        self._hasher = new_hasher(expected.digest.algorithm)
        self._size = 0
        self._ended = False

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes (all, if negative), none only at the end.

        Raises:
            DigestMismatchError: at the end, if size or digest are wrong, and as soon as more came than was
                said.
        """
        if size < 0:
            return b"".join(self)
        if self._ended or size == 0:
            return b""
        chunk = self._source.read(size)
        self._size += len(chunk)
        self._hasher.update(chunk)
        if not chunk or self._size > self._expected.size:
            self._check()
        return chunk

    def __iter__(self) -> Iterator[bytes]:
        """The rest, in chunks of at most CHUNK_SIZE."""
        while chunk := self.read(CHUNK_SIZE):
            yield chunk

    def close(self) -> None:
        """Close the source. Content that was not read to its end stays unchecked."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        got = Digest(self._expected.digest.algorithm, self._hasher.digest())
        if got != self._expected.digest or self._size != self._expected.size:
            raise DigestMismatchError(self._expected.digest, got, self._size)
        self._ended = True


def read_verified(source: Readable, expected: Descriptor) -> bytes:
    """Read small content whole, checked, and close its source.

    Raises:
        DigestMismatchError: it is not what the descriptor says.
    """
    with VerifyingReader(source, expected) as reader:
        return reader.read()
