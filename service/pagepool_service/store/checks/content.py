"""Content: layers rebuilt and hashed, blobs read back and hashed, and each object's name compared with its bytes.

A layer's SHA-256 and the BLAKE3 of the objects in it are computed over the same pass. Several layers, and several
blobs, go at the same time, each in a thread; a thread's transaction ends after `_SNAPSHOT_BYTES`, so that nothing is
pinned for long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from blake3 import blake3

from pagepool.digest import Digest, new_hasher
from pagepool.errors import BlobUnknownError, CorruptError, InvalidError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import LITERAL, SLICE, decode_chunk
from pagepool_service.encoders import EncoderMissingError
from pagepool_service.store.blobs import SpoolFailedError
from pagepool_service.store.checks.context import THREADS
from pagepool_service.store.checks.recipes import lacks_extents
from pagepool_service.store.checks.walk import walk, walk_values
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import BlobRecord, ContentKind, LayerRecord, ObjectRecord, recipe_key

if TYPE_CHECKING:
    from types import TracebackType

    from pagepool.extents import Frame
    from pagepool.image import Op
    from pagepool_service.store.checks.context import Context
    from pagepool_service.store.environment import Environment, Reader
    from pagepool_service.store.extents import ExtentStore

Item = TypeVar("Item")

_SNAPSHOT_BYTES = 8 << 20


class Snapshots:
    """Transactions for a long read: a new one whenever so much was read through the last."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._stack = ExitStack()
        self._left = 0
        self._txn: Reader | None = None

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Told of the error, the transaction says it in our words.
        self._stack.__exit__(kind, error, trace)

    def txn(self) -> Reader:
        """The transaction to read with now."""
        if self._txn is None or self._left <= 0:
            self._stack.close()
            self._txn = self._stack.enter_context(self._env.read())
            self._left = _SNAPSHOT_BYTES
        return self._txn

    def spend(self, size: int) -> None:
        """So many bytes were read."""
        self._left -= size


class ContentReader:
    """Reads objects as views, extent by extent; the frame at hand is asked first."""

    def __init__(self, extents: ExtentStore, snapshots: Snapshots) -> None:
        self._extents = extents
        self._snapshots = snapshots
        self._frame: Frame | None = None
        self._parted: tuple[bytes, ObjectRecord] | None = None

    def whole(self, digest: bytes, size: int) -> Iterator[memoryview]:
        """The bytes of an object whose size is known."""
        record = self._extents.object_record(self._snapshots.txn(), digest, size)
        yield from self.of_record(record)

    def of_record(self, record: ObjectRecord) -> Iterator[memoryview]:
        """The bytes of an object by its extent list."""
        for _, extent in record.extents():
            yield self.extent(extent)

    def part(self, digest: bytes, start: int, end: int) -> Iterator[memoryview]:
        """Some bytes of an object of which only the name is known."""
        # The parts of a sparse file follow each other, and its list of extents can be long.
        if self._parted is None or self._parted[0] != digest:
            self._parted = digest, self._extents.object_by_name(self._snapshots.txn(), digest)
            self._extents.check_stored(self._snapshots.txn(), self._parted[1])
        record = self._parted[1]
        for offset, extent in record.extents(start):
            if offset >= end:
                return
            yield self.extent(extent)[max(0, start - offset) : end - offset]

    def extent(self, digest: bytes) -> memoryview:
        """The bytes of one extent."""
        frame = self._frame
        place = frame.index.get(digest) if frame else None
        if frame is None or place is None:
            frame = self._frame = self._extents.frame_of(self._snapshots.txn(), digest)
            self._snapshots.spend(len(frame.plain))
            place = frame.index[digest]
        offset, size = place
        return frame.view[offset : offset + size]


def check_layers(context: Context) -> None:
    """Rebuild every layer, and compare its SHA-256 with its diff_id."""
    layers: list[tuple[bytes, LayerRecord]] = []
    wanted = _wanted_layers(context)

    def visit(_txn: Reader, key: bytes, payload: memoryview) -> None:
        try:
            Digest.from_key(key)
        except InvalidError as error:
            raise CorruptError("layer", key.hex(), "its key is no digest") from error
        if wanted is None or key in wanted:
            layers.append((key, LayerRecord.decode(payload)))

    walk(context, Table.LAYERS, visit)
    if context.quick:
        return
    context.findings.stage("layers", sum(layer.plain_size for _, layer in layers))
    _in_threads(layers, lambda item: _check_layer(context, *item))
    context.findings.count("layers rebuilt", len(layers))


def _wanted_layers(context: Context) -> set[bytes] | None:
    if context.selection is None:
        return None
    wanted = set()
    with context.env.read() as txn:
        for digest in context.selection.blobs:
            try:
                diff_id = context.store.blobs.record(txn, digest).diff_id
            except (BlobUnknownError, CorruptError):
                continue  # reported where the blobs are checked
            if diff_id is not None:
                wanted.add(diff_id.key)
    return wanted


def _check_layer(context: Context, key: bytes, layer: LayerRecord) -> None:
    sha = hashlib.sha256()
    name = Digest.from_key(key)
    try:
        for ops in _recipe_ops(context.env, layer):
            _hash_ops(context, ops, sha.update)
        if sha.digest() != name.raw:
            raise CorruptError("layer", str(name), f"what is stored rebuilds to sha256:{sha.hexdigest()}")
    except CorruptError as error:
        with context.env.read() as txn:
            gone = txn.get_unchecked(Table.LAYERS, key) is None
        if not gone:
            reason = error.reason if error.kind == "layer" else f"it cannot be rebuilt: {error}"
            context.findings.problem("layer", str(name), reason)


def _recipe_ops(env: Environment, layer: LayerRecord) -> Iterator[list[Op]]:
    position = 0
    while position < layer.plain_size:
        with env.read() as txn:
            key = recipe_key(layer.recipe, position)
            payload = txn.get(Table.RECIPES, key)
            if payload is None:
                raise CorruptError("recipe", f"{layer.recipe} at {position}", "the chunk is not there")
            ops = list(decode_chunk(payload, f"{layer.recipe} at {position}"))
        position += sum(op.size for op in ops)
        yield ops


def _hash_ops(context: Context, ops: Iterable[Op], update: Callable[[bytes | memoryview], None]) -> None:
    """Feed a hash with what operations stand for, and verify the names of objects that were not met yet."""
    with Snapshots(context.env) as snapshots:
        content = ContentReader(context.store.extents, snapshots)
        for kind, data, offset, size in ops:
            context.findings.advance(size)
            if kind == LITERAL:
                update(data)
            elif kind == SLICE:
                for view in content.part(bytes(data), offset, offset + size):
                    update(view)
            elif size <= EXTENT_SIZE:
                update(content.extent(bytes(data)))
            else:
                _hash_object(context, content, bytes(data), size, update)


def _hash_object(
    context: Context,
    content: ContentReader,
    digest: bytes,
    size: int,
    update: Callable[[bytes | memoryview], None] | None = None,
) -> None:
    own = None if context.is_verified(digest) else blake3()
    for view in content.whole(digest, size):
        if update is not None:
            update(view)
        if own is not None:
            own.update(view)
    if own is not None:
        _compare_object(context, digest, own.digest())


def _compare_object(context: Context, digest: bytes, got: bytes) -> None:
    if got == digest:
        context.note_verified(digest)
    else:
        context.findings.problem("object", digest.hex(), f"its extents have the BLAKE3 {got.hex()}")


def check_blob_content(context: Context) -> None:
    """Read every blob back, by the path that a pull takes."""
    if context.quick:
        return
    blobs: list[tuple[Digest, BlobRecord]] = []

    def visit(_txn: Reader, key: bytes, value: memoryview) -> None:
        with_name = _readable_blob(context, key, value[:-CHECKSUM_SIZE])
        if with_name is not None:
            blobs.append(with_name)

    walk_values(context.env, Table.BLOBS, visit)
    context.findings.stage("blobs' content", sum(record.size for _, record in blobs))
    _in_threads(blobs, lambda item: _check_blob(context, *item))
    context.findings.count("blobs read back", len(blobs))


def _readable_blob(context: Context, key: bytes, payload: memoryview) -> tuple[Digest, BlobRecord] | None:
    """A blob that is to be read back; None where that was done with its layer, or its record is damaged."""
    try:
        digest = Digest.from_key(key)
        record = BlobRecord.decode(payload, str(digest))
    except (CorruptError, InvalidError):
        return None  # reported where the blobs' records are checked
    if not context.wants_blob(digest) or (record.content is ContentKind.RECIPE and record.diff_id == digest):
        return None
    return digest, record


def _check_blob(context: Context, digest: Digest, record: BlobRecord) -> None:
    oci = new_hasher(digest.algorithm)
    own = blake3()
    size = 0
    try:
        for piece in context.store.blobs.read(digest):
            oci.update(piece)
            own.update(piece)
            size += len(piece)
            context.findings.advance(len(piece))
        if size != record.size or oci.digest() != digest.raw:
            raise CorruptError(
                "blob", str(digest), f"{size} bytes of the digest {Digest(digest.algorithm, oci.digest())}"
            )
    except BlobUnknownError:
        return  # removed meanwhile
    except (CorruptError, SpoolFailedError, EncoderMissingError, OSError) as error:
        with context.env.read() as txn:
            gone = txn.get_unchecked(Table.BLOBS, digest.key) is None
        if not gone:
            context.findings.problem("blob", str(digest), f"it cannot be read back: {error}")
        return
    _compare_object(context, record.object, own.digest())


def check_remaining_objects(context: Context) -> None:
    """Hash the objects that were in no layer and no blob: sparse files, and what unfinished layers left."""
    if context.quick or context.selection is not None:
        return
    context.findings.stage("objects' content", 0)
    left: list[tuple[bytes, ObjectRecord]] = []

    def visit(txn: Reader, key: bytes, value: memoryview) -> None:
        if not context.is_verified(key) and not lacks_extents(txn, key):
            try:
                left.append((key, ObjectRecord.decode(value[:-CHECKSUM_SIZE], key.hex())))
            except CorruptError:
                return  # reported where the objects' records are checked

    walk_values(context.env, Table.OBJECTS, visit)
    _in_threads(left, lambda item: _check_object(context, *item))
    context.findings.count("objects hashed apart", len(left))


def _check_object(context: Context, digest: bytes, record: ObjectRecord) -> None:
    own = blake3()
    try:
        with Snapshots(context.env) as snapshots:
            for view in ContentReader(context.store.extents, snapshots).of_record(record):
                own.update(view)
    except CorruptError as error:
        with context.env.read() as txn:
            gone = txn.get_unchecked(Table.OBJECTS, digest) is None
        if not gone:
            context.findings.problem("object", digest.hex(), f"it cannot be read: {error}")
        return
    _compare_object(context, digest, own.digest())


def _in_threads(items: Iterable[Item], work: Callable[[Item], None]) -> None:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fsck") as pool:
        for _ in pool.map(work, items):
            pass
