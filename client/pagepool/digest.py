"""Digests: the names of content.

BLAKE3 names what is pagepool's own (objects, extents); SHA-256 and SHA-512 name what is OCI's (blobs,
manifests, diff_ids). A `Digest` is only ever made by `parse`, by hashing, or from a stored key, so code that
holds one needs no further check of its form.

Spelling: ``<algorithm>:<lower-case hex>``, as in the OCI image specification 1.1, "Digests".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from pagepool.errors import DigestInvalidError, DigestUnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Code byte of each algorithm in stored keys (docs/format/store.md) and its raw length in bytes.
_ALGORITHMS: dict[str, tuple[int, int]] = {"sha256": (1, 32), "sha512": (2, 64), "blake3": (3, 32)}
_BY_CODE = {code: name for name, (code, _) in _ALGORITHMS.items()}
_HEX = frozenset("0123456789abcdef")
_ALGORITHM_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+._-")


class Hasher(Protocol):
    """What `hashlib` objects and `blake3` have in common."""

    def update(self, data: Buffer, /) -> object: ...
    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The digest of some bytes: an algorithm and its raw value.

    Args:
        algorithm: ``sha256``, ``sha512`` or ``blake3``.
        raw: the hash value, 32 bytes (64 for sha512).
    """

    algorithm: str
    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse ``algorithm:hex``.

        Raises:
            DigestInvalidError: the text is not a digest; it names the text.
            DigestUnsupportedError: it is well formed, of an algorithm not supported here.
        """
        algorithm, colon, value = text.partition(":")
        if not colon or not algorithm or not value or not set(algorithm) <= _ALGORITHM_CHARACTERS:
            raise DigestInvalidError(text)
        known = _ALGORITHMS.get(algorithm)
        if known is None:
            raise DigestUnsupportedError(text)
        if len(value) != 2 * known[1] or not set(value) <= _HEX:
            raise DigestInvalidError(text)
        return cls(algorithm, bytes.fromhex(value))

    @classmethod
    def of(cls, data: Buffer, algorithm: str = "sha256") -> Digest:
        """Hash `data`."""
        hasher = new_hasher(algorithm)
        hasher.update(data)
        return cls(algorithm, hasher.digest())

    @classmethod
    def from_key(cls, key: bytes) -> Digest:
        """Read back what `key` wrote."""
        name = _BY_CODE.get(key[0]) if key else None
        if name is None or len(key) != 1 + _ALGORITHMS[name][1]:
            raise DigestInvalidError(key.hex())
        return cls(name, key[1:])

    @property
    def key(self) -> bytes:
        """The digest in stored keys: one byte of algorithm, then the raw value."""
        return bytes((_ALGORITHMS[self.algorithm][0],)) + self.raw

    @property
    def hex(self) -> str:
        """The value alone, in lower-case hex."""
        return self.raw.hex()

    @property
    def short(self) -> str:
        """The first twelve hex digits, for people."""
        return self.raw[:6].hex()

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.raw.hex()}"


def new_hasher(algorithm: str) -> Hasher:
    """A hasher of the named algorithm.

    Raises:
        DigestUnsupportedError: no such algorithm.
    """
    if algorithm == "blake3":
        return blake3()
    if algorithm not in _ALGORITHMS:
        raise DigestUnsupportedError(algorithm)
    import hashlib  # takes longer to load than all else that a command needs which hashes nothing

    return hashlib.new(algorithm)


def blake3_raw(data: Buffer) -> bytes:
    """The BLAKE3 name of an object or extent, 32 bytes. The form hot loops use."""
    return blake3(data).digest()
