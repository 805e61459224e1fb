"""What the records of each table mean: keys and payloads as values, encoded and decoded.

Pure: no transaction, no I/O. Byte by byte in docs/format/store.md. Integers are big-endian, so that keys sort
by number. Decoders raise CorruptError for bytes that no encoder wrote.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import accumulate
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, DigestInvalidError
from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_U64 = struct.Struct(">Q")
_LOCATION = struct.Struct(">QII")
_RUN = struct.Struct(">I32s")
_RECIPE_KEY = struct.Struct(">QQ")
_BLOB_HEAD = struct.Struct(">BBBQQ32s")
_LAYER = struct.Struct(">QQQQ")
_JOB_KEY = struct.Struct(">BQ")
_JOB = struct.Struct(">BBBQQ")
_LEASE = struct.Struct(">QQHB")
_TREE_SIZE = 32
_LEASE_ID_SIZE = 16
_DIFF_KEY_SIZE = 33  # of a diff_id, which is a SHA-256


def u64(number: int) -> bytes:
    """A number as a key that sorts."""
    return _U64.pack(number)


@dataclass(frozen=True, slots=True)
class Location:
    """Where an extent lies: `length` bytes at `offset` of a frame's plain data."""

    frame: int
    offset: int
    length: int

    def encode(self) -> bytes:
        """The payload in `extents`, 16 bytes."""
        return _LOCATION.pack(self.frame, self.offset, self.length)

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Location:
        """Read it back."""
        try:
            return cls(*_LOCATION.unpack(payload))
        except struct.error as error:
            raise CorruptError("extent", "", f"its index record cannot be read: {error}") from error


def encode_object(size: int, extents: Iterable[bytes]) -> bytes:
    """The payload in `objects`: the size, then runs of equal extents (a hole is one run, however long)."""
    parts = [_U64.pack(size)]
    previous, repeat = b"", 0
    for digest in extents:
        if digest != previous and repeat:
            parts.append(_RUN.pack(repeat, previous))
            repeat = 0
        previous = digest
        repeat += 1
    if repeat:
        parts.append(_RUN.pack(repeat, previous))
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """An object of more than one extent: its size in bytes, and runs of (repeat, extent digest)."""

    size: int
    runs: tuple[tuple[int, bytes], ...]
    ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Number the extents, so that a part of a file of very many runs is found at once."""
        object.__setattr__(self, "ends", tuple(accumulate(repeat for repeat, _ in self.runs)))

    @classmethod
    def decode(cls, payload: memoryview, name: str) -> ObjectRecord:
        """Read it back."""
        try:
            (size,) = _U64.unpack_from(payload)
            runs = tuple(_RUN.iter_unpack(payload[_U64.size :]))
        except struct.error as error:
            raise CorruptError("object", name, f"its record cannot be read: {error}") from error
        record = cls(size, runs)
        if (record.ends[-1] if runs else 0) != -(-size // EXTENT_SIZE):
            raise CorruptError("object", name, "its record contradicts its size")
        return record

    def extents(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(offset in the object, digest) of each extent from the one that holds byte `start` on."""
        number = start // EXTENT_SIZE
        for place in range(bisect_right(self.ends, number), len(self.runs)):
            digest = self.runs[place][1]
            while number < self.ends[place]:
                yield number * EXTENT_SIZE, digest
                number += 1


class ContentKind(IntEnum):
    """Where the bytes of a blob are."""

    SPOOL = 1  # a file in the spool directory, until it is settled
    OBJECT = 2  # an opaque object: its extents are in frames
    RECIPE = 3  # rebuilt from the layer's recipe, then compressed by `encoder` if there is one


class LayerState(IntEnum):
    """What is known of a blob as a layer."""

    PENDING = 0
    READY = 1
    UNMOUNTABLE = 2


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """A blob: where its bytes are, and its state as a layer.

    Args:
        content: where the bytes are.
        state: as a layer; `reason` says why when it is unmountable.
        size: of the blob, bytes.
        created_ns: Unix time of the push.
        object: BLAKE3 of the blob's bytes; names the extent list in `objects` where content is SPOOL or
            OBJECT.
        diff_id: SHA-256 of the plain tar, when known.
        encoder: what rebuilds the compressed form (`encoders`), when content is RECIPE; empty for a plain
            tar. When it is OBJECT, which encoders were tried and make something else, see `encoders.tried`.
    """

    content: ContentKind
    state: LayerState
    size: int
    created_ns: int
    object: bytes
    diff_id: Digest | None = None
    reason: str = ""
    encoder: bytes = b""

    def encode(self) -> bytes:
        """The payload in `blobs`."""
        diff = b"" if self.diff_id is None else self.diff_id.key
        head = _BLOB_HEAD.pack(self.content, self.state, len(diff), self.size, self.created_ns, self.object)
        reason = self.reason.encode()[:4000]
        return head + diff + len(reason).to_bytes(2, "big") + reason + self.encoder

    @classmethod
    def decode(cls, payload: memoryview, name: str) -> BlobRecord:
        """Read it back."""
        try:
            content, state, diff_size, size, created, digest = _BLOB_HEAD.unpack_from(payload)
            rest = bytes(payload[_BLOB_HEAD.size :])
            diff = Digest.from_key(rest[:diff_size]) if diff_size else None
            reason_end = diff_size + 2 + int.from_bytes(rest[diff_size : diff_size + 2], "big")
            reason = rest[diff_size + 2 : reason_end].decode(errors="replace")
            kind, layer = ContentKind(content), LayerState(state)
        except (struct.error, ValueError, DigestInvalidError) as error:
            raise CorruptError("blob", name, f"its record cannot be read: {error}") from error
        return cls(kind, layer, size, created, digest, diff, reason, rest[reason_end:])

    @staticmethod
    def size_in(payload: bytes | memoryview) -> int:
        """The size alone, of a record that need not be decoded."""
        try:
            return int(_BLOB_HEAD.unpack_from(payload)[3])
        except struct.error as error:
            raise CorruptError("blob", "", f"its record cannot be read: {error}") from error

    def settled_as(self, content: ContentKind, encoder: bytes = b"") -> BlobRecord:
        """The same blob with its bytes kept elsewhere."""
        return replace(self, content=content, encoder=encoder)


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer that was understood, by diff_id: its recipe, plain size in bytes, members, and bytes of file data."""

    recipe: int
    plain_size: int
    members: int
    file_bytes: int

    def encode(self) -> bytes:
        """The payload in `layers`, 32 bytes."""
        return _LAYER.pack(self.recipe, self.plain_size, self.members, self.file_bytes)

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> LayerRecord:
        """Read it back."""
        try:
            return cls(*_LAYER.unpack(payload))
        except struct.error as error:
            raise CorruptError("layer", "", f"its record cannot be read: {error}") from error


def recipe_key(recipe: int, plain_start: int) -> bytes:
    """The key in `recipes` of the chunk that begins at a byte of the plain stream."""
    return _RECIPE_KEY.pack(recipe, plain_start)


def parse_recipe_key(key: bytes) -> tuple[int, int]:
    """(recipe id, plain start) of a key in `recipes`."""
    recipe, start = _RECIPE_KEY.unpack(key)
    return recipe, start


class JobKind(IntEnum):
    """Work for the maintenance process; lower numbers first."""

    INGEST = 1
    SETTLE = 2
    REBUILD = 3


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work on a blob.

    Args:
        attempts: how often it was begun, over crashes.
        owner: 0 while it is free, else 1 + the slot of the maintenance process that works on it.
        recipe: id of the recipe that the last attempt began; 0 for none. Its chunks are roots of what they name.
        created_ns: of the blob record it was made for. A blob that was removed and pushed again is another one.
        ends: how often the whole service ended during an attempt.
        floor: number of the first frame that an attempt may have stored; 0 before the first. What is in frames from
            there on, collection leaves alone: the job has yet to name it.
    """

    kind: JobKind
    number: int
    blob: Digest
    attempts: int = 0
    owner: int = 0
    recipe: int = 0
    created_ns: int = 0
    ends: int = 0
    floor: int = 0

    @property
    def key(self) -> bytes:
        """The key in `jobs`."""
        return _JOB_KEY.pack(self.kind, self.number)

    def encode(self) -> bytes:
        """The payload in `jobs`."""
        head = _JOB.pack(self.attempts, self.owner, self.ends, self.recipe, self.created_ns)
        # A digest begins with the code of its algorithm, which is not 0; a number of a frame with a 0.
        return head + (_U64.pack(self.floor) if self.floor else b"") + self.blob.key

    @classmethod
    def decode(cls, key: bytes, payload: memoryview) -> Job:
        """Read it back."""
        try:
            kind, number = _JOB_KEY.unpack(key)
            attempts, owner, ends, recipe, created_ns = _JOB.unpack_from(payload)
            rest, floor = bytes(payload[_JOB.size :]), 0
            if rest[:1] == b"\0":
                (floor,) = _U64.unpack_from(rest)
                rest = rest[_U64.size :]
            return cls(JobKind(kind), number, Digest.from_key(rest), attempts, owner, recipe, created_ns, ends, floor)
        except (struct.error, ValueError, DigestInvalidError) as error:
            raise CorruptError("job", key.hex(), f"its record cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class LeaseName:
    """What a lease is on: a tree, as a repository has it. `id` tells apart the leases of different holders."""

    repository: str
    tree: bytes
    id: bytes

    @property
    def key(self) -> bytes:
        """The key in `leases`."""
        return lease_prefix(self.repository, self.tree) + self.id

    @classmethod
    def parse(cls, key: bytes) -> LeaseName:
        """Read it back."""
        repository, _, rest = key.partition(b"\0")
        try:
            name = cls(repository.decode(), rest[:_TREE_SIZE], rest[_TREE_SIZE:])
        except ValueError as error:
            raise CorruptError("lease", key.hex(), f"its key cannot be read: {error}") from error
        if not repository or len(name.id) != _LEASE_ID_SIZE:
            raise CorruptError("lease", key.hex(), "its key is none")
        return name


def lease_prefix(repository: str, tree: bytes) -> bytes:
    """What the keys in `leases` of one tree in one repository begin with."""
    return repository.encode() + b"\0" + tree


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease: until when a tree is kept, for whom, and what it was made from.

    Args:
        created_ns: Unix time at which it was taken.
        expires_ns: Unix time from which on it counts for nothing.
        manifest: of the image that the tree came from; it may have been deleted since.
        layers: diff_ids of the layers that the tree is merged of, lowest first: the roots of what must be kept.
        holder: who has it, in words for people.
    """

    created_ns: int
    expires_ns: int
    manifest: Digest
    layers: tuple[Digest, ...]
    holder: str

    def encode(self) -> bytes:
        """The payload in `leases`."""
        holder, manifest = self.holder.encode(), self.manifest.key
        head = _LEASE.pack(self.created_ns, self.expires_ns, len(holder), len(manifest))
        return head + holder + manifest + b"".join(layer.key for layer in self.layers)

    @classmethod
    def decode(cls, payload: bytes | memoryview, name: str) -> LeaseRecord:
        """Read it back."""
        try:
            created, expires, holder_size, manifest_size = _LEASE.unpack_from(payload)
            rest = bytes(payload[_LEASE.size :])
            holder = rest[:holder_size].decode()
            end = holder_size + manifest_size
            manifest = Digest.from_key(rest[holder_size:end])
            starts = range(end, len(rest), _DIFF_KEY_SIZE)
            layers = tuple(Digest.from_key(rest[start : start + _DIFF_KEY_SIZE]) for start in starts)
        except (struct.error, ValueError, IndexError, DigestInvalidError) as error:
            raise CorruptError("lease", name, f"its record cannot be read: {error}") from error
        return cls(created, expires, manifest, layers, holder)
