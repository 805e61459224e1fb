"""Keys and payloads of the registry's catalogue: which repository has what, under which names.

Pure: no transaction, no I/O. Byte by byte in docs/format/catalogue.md. A repository name never holds a NUL
and begins with a letter or digit, and a digest key begins with its algorithm's code, 1 to 3: a forward key
(by repository) and a reverse key (by digest) of one table never collide, and every forward key sorts behind
every reverse key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pagepool.digest import Digest
from pagepool.errors import CorruptError, InvalidError

_MANIFEST = struct.Struct(">QB")
_TAG = struct.Struct(">Q")
# LMDB takes keys of at most 511 bytes. A name or tag that someone sends as a place to go on from may be
# longer than any that is stored; cut there it still sorts between the same two names.
_LONGEST_NAME = 256
_LONGEST_TAG = 129
FORWARD = b"\x20"
"""Sorts between all reverse keys and all forward keys."""


def repository_prefix(repository: str) -> bytes:
    """What the forward keys of a repository begin with."""
    return repository.encode() + b"\0"


def link_key(repository: str, digest: Digest) -> bytes:
    """The forward key in `links` or `manifest_links`: the repository has this blob or manifest."""
    return repository_prefix(repository) + digest.key


def holder_key(repository: str, digest: Digest) -> bytes:
    """The reverse key in `links` or `manifest_links`: this blob or manifest is in the repository."""
    return digest.key + repository.encode()


def holder_of(key: bytes, digest: Digest) -> str:
    """The repository in a reverse key."""
    return key[len(digest.key) :].decode()


def repository_of(key: bytes) -> str:
    """The repository in a forward key."""
    return key.partition(b"\0")[0].decode()


def encode_link(now_ns: int) -> bytes:
    """The payload of a forward key in `links` or `manifest_links`."""
    return now_ns.to_bytes(8, "big")


def link_time(payload: bytes | memoryview) -> int:
    """When the repository got it, or a client last relied on its being there: Unix time in nanoseconds."""
    return int.from_bytes(payload[:8], "big")


def tag_key(repository: str, tag: str) -> bytes:
    """The key in `tags`."""
    return repository_prefix(repository) + tag.encode()


def split_tag_key(key: bytes) -> tuple[str, str]:
    """The repository and tag of a key in `tags`."""
    repository, _, tag = key.partition(b"\0")
    return repository.decode(), tag.decode()


def referrers_prefix(repository: str, subject: Digest) -> bytes:
    """What the keys in `referrers` of one subject begin with."""
    return repository_prefix(repository) + subject.key


def referrer_key(repository: str, subject: Digest, referrer: Digest) -> bytes:
    """The key in `referrers`."""
    return referrers_prefix(repository, subject) + referrer.key


def after_repository(last: str) -> bytes:
    """Where a scan of forward keys goes on behind a repository, whether there is one of that name or not."""
    return max(FORWARD, _cut(last, _LONGEST_NAME) + b"\x01")


def after_tag(repository: str, last: str) -> bytes:
    """Where a scan of `tags` goes on behind a tag, whether there is one of that name or not."""
    return repository_prefix(repository) + _cut(last, _LONGEST_TAG) + (b"\0" if last else b"")


def _cut(text: str, size: int) -> bytes:
    return text.encode(errors="replace")[:size]


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest or index as it was pushed.

    Args:
        digest: what it was pushed or tagged by.
        media_type: of `raw`.
        created_ns: Unix time of the first push of these bytes.
        raw: the document, byte for byte.
    """

    digest: Digest
    media_type: str
    created_ns: int
    raw: bytes

    def encode(self) -> bytes:
        """The payload in `manifests`."""
        media_type = self.media_type.encode()
        return _MANIFEST.pack(self.created_ns, len(media_type)) + media_type + self.raw

    @classmethod
    def decode(cls, digest: Digest, payload: memoryview) -> StoredManifest:
        """Read it back."""
        try:
            created, length = _MANIFEST.unpack_from(payload)
            start = _MANIFEST.size + length
            media_type = bytes(payload[_MANIFEST.size : start]).decode("ascii")
        except (struct.error, ValueError) as error:
            raise CorruptError("manifest", str(digest), f"its record cannot be read: {error}") from error
        return cls(digest, media_type, created, bytes(payload[start:]))

    @staticmethod
    def size_of(payload: memoryview) -> int:
        """How many bytes the document of a record has, without reading it."""
        return len(payload) - _MANIFEST.size - int(_MANIFEST.unpack_from(payload)[1])


@dataclass(frozen=True, slots=True)
class Tag:
    """Where a tag points, and since when (Unix time, nanoseconds)."""

    digest: Digest
    updated_ns: int

    def encode(self) -> bytes:
        """The payload in `tags`."""
        return _TAG.pack(self.updated_ns) + self.digest.key

    @classmethod
    def decode(cls, key: bytes, payload: memoryview) -> Tag:
        """Read it back."""
        try:
            (updated,) = _TAG.unpack_from(payload)
            return cls(Digest.from_key(bytes(payload[_TAG.size :])), updated)
        except (struct.error, ValueError, InvalidError) as error:
            raise CorruptError("tag", key.hex(), f"its record cannot be read: {error}") from error
