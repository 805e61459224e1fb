"""Repair layers, their recipes, and the extent lists of objects.

A layer is made again by reading one of its blobs again: from the bytes that are kept of it as it came, or from another
place. Reading stores what is missing, each extent once, and leaves the rest. A layer whose records are right and whose
content is not stays; one whose records are wrong goes, and comes back with its blob.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from blake3 import blake3

from pagepool.digest import Digest, blake3_raw, new_hasher
from pagepool.errors import BlobUnknownError, CorruptError, InvalidError, PagepoolError
from pagepool.extents import EXTENT_SIZE, Role, encode_frame
from pagepool.image import SLICE, iter_members
from pagepool.pool.layout import OBJECTS, object_name
from pagepool_service.committing import discard_recipe
from pagepool_service.encoders import EncoderMissingError
from pagepool_service.repair.context import Action, ChangedError, expect
from pagepool_service.repair.fetching import fetch_blob
from pagepool_service.store.blobs import SpoolFailedError
from pagepool_service.store.checks.recipes import references
from pagepool_service.store.checks.walk import walk_values
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.rebuild import read_chunk, rebuild
from pagepool_service.store.schema import ContentKind, JobKind, LayerRecord, LayerState, ObjectRecord, recipe_key
from pagepool_service.store.sums import sum_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pagepool.extents import EncodedFrame
    from pagepool.image import Op
    from pagepool_service.repair.context import Context, Outcome
    from pagepool_service.store.environment import Reader, Writer
    from pagepool_service.store.sums import Sums

_MOST_PATHS = 200
_AGAIN_S: Final = (1.0, 4.0)
"""How long a disk that does not read is left alone before each further attempt."""

_Read = TypeVar("_Read")


# -- extent lists ----------------------------------------------------------------------------------------------


def repair_objects(context: Context) -> None:
    """Make extent lists again from whole copies of their objects; without one, they go."""
    for name in context.names("object"):
        try:
            _repair_object(context, bytes.fromhex(name))
        except ValueError:
            continue


def _repair_object(context: Context, name: bytes) -> None:
    value = context.value(Table.OBJECTS, name)
    if value is None or _is_right(context, name, value):
        return
    copies = [] if context.cache is None else [(context.cache / OBJECTS / object_name(name), "the pool")]
    for digest, record in context.blobs().items():
        if record.object == name and record.content is ContentKind.SPOOL:
            copies.append((context.store.blobs.spool_path(digest), "the spool"))
    for path, where in copies:
        if (sums := _sums_of(path)) is not None and sums.object == name:
            _put_list(context, value, sums, where)
            return

    def remove(txn: Writer) -> None:
        expect(txn, Table.OBJECTS, name, value)
        txn.delete(Table.OBJECTS, name)

    how = "its extent list was taken out; layers and blobs that have it are read again"
    action = Action("object", name.hex(), "set aside", how, context.images("object", name.hex()))
    context.remove(action, [(Table.OBJECTS, name)], remove)


def _sums_of(path: Path) -> Sums | None:
    try:
        return sum_file(path, "blake3").sums()
    except OSError:
        return None


def _put_list(context: Context, value: bytes, sums: Sums, where: str) -> None:
    def apply(txn: Writer) -> None:
        expect(txn, Table.OBJECTS, sums.object, value)
        txn.delete(Table.OBJECTS, sums.object)
        context.store.extents.put_object(txn, sums.object, sums.size, sums.extents)

    how = f"its extent list was made again from its copy in {where}"
    context.repaired("object", sums.object.hex(), how, apply)


def _is_right(context: Context, name: bytes, value: bytes) -> bool:
    """Whether a list can be read, and its extents, as far as they are stored, make up the object."""
    if not context.is_sound(Table.OBJECTS, name):
        return False
    hasher = blake3()
    try:
        record = ObjectRecord.decode(memoryview(value)[:-CHECKSUM_SIZE], name.hex())
        for offset, extent in record.extents():
            with context.env.read() as txn:
                data = context.store.extents.extent(txn, extent)
            if len(data) != min(EXTENT_SIZE, record.size - offset):
                return False
            hasher.update(data)
    except CorruptError as error:
        return error.kind in ("extent", "frame")  # it is the extents that are missing, not the list that is wrong
    return hasher.digest() == name


# -- layers ----------------------------------------------------------------------------------------------------


def repair_layers(context: Context) -> None:
    """Make layers whole again that cannot be rebuilt."""
    keys = {Digest.parse(name).key for name in context.names("layer") if _is_digest(name)}
    recipes = {int(text) for name in context.names("recipe") if (text := name.partition(" ")[0]).isdigit()}

    def visit(_txn: Reader, key: bytes, value: memoryview) -> None:
        if len(value) == _LAYER_SIZE + CHECKSUM_SIZE and LayerRecord.decode(value[:_LAYER_SIZE]).recipe in recipes:
            keys.add(key)

    walk_values(context.env, Table.LAYERS, visit)
    layers = [Digest.from_key(key) for key in sorted(keys)]
    for diff_id in layers:
        _fill_holes(context, diff_id)
    for diff_id in layers:
        with context.unless_changed():
            _repair_layer(context, diff_id)


def _repair_layer(context: Context, diff_id: Digest) -> None:
    fault = find_fault(context, diff_id)
    if fault is None:
        return
    having = [(digest, record) for digest, record in context.blobs().items() if record.diff_id == diff_id]
    for digest, record in having:
        if record.content is not ContentKind.RECIPE and blob_is_right(context, digest):
            _read_again(context, diff_id, digest, drop=fault == "records")
            return
    paths = lost_paths(context, diff_id) if fault == "content" else ()
    for digest, record in having:
        if where := fetch_blob(context, digest, record.size, lambda: _drop_now(context, diff_id, fault)):
            how = f"{digest} was fetched from {where}, and is read again"
            context.repaired("layer", str(diff_id), how, lambda _: None)
            return
    held = [(Table.LAYERS, diff_id.key), *((Table.RECIPES, key) for key in _chunks(context, diff_id))]
    rebuilt = [digest for digest, record in having if record.content is ContentKind.RECIPE]
    images = context.images("layer", str(diff_id))
    how = "it cannot be rebuilt, and no blob that it came in is kept or was found"
    how += f"; with it goes {', '.join(map(str, rebuilt))}" if rebuilt else ""
    outcome: Outcome = "quarantined" if images or having else "set aside"
    action = Action("layer", str(diff_id), outcome, how, images, paths)
    context.remove(action, held, lambda txn: _drop(context, txn, diff_id, "records"))


def _drop_now(context: Context, diff_id: Digest, fault: str) -> None:
    with context.env.write() as txn:
        _drop(context, txn, diff_id, fault)


def _read_again(context: Context, diff_id: Digest, digest: Digest, *, drop: bool) -> None:
    """Have a blob read as a layer once more."""

    def apply(txn: Writer) -> None:
        _drop(context, txn, diff_id, "records" if drop else "content")
        queue_ingest(context, txn, digest)

    if context.repaired("layer", str(diff_id), f"it is read again from {digest}", apply):
        context.jobs.add(digest)


def queue_ingest(context: Context, txn: Writer, digest: Digest) -> None:
    """Have a blob read as a layer. It is pending where its layer is not there."""
    try:
        record = context.store.blobs.record(txn, digest)
    except (BlobUnknownError, CorruptError) as error:
        raise ChangedError from error
    if record.diff_id is None or not txn.has(Table.LAYERS, record.diff_id.key):
        pending = type(record)(record.content, LayerState.PENDING, record.size, record.created_ns, record.object)
        context.store.blobs.update(txn, digest, pending)
    context.store.jobs.add(txn, JobKind.INGEST, digest, record.created_ns)


def _drop(context: Context, txn: Writer, diff_id: Digest, fault: str) -> None:
    """Take a layer out whose records are wrong, with its recipe. Blobs that had it are pending."""
    if fault != "records":
        return
    value = txn.get_unchecked(Table.LAYERS, diff_id.key)
    if value is not None and len(value) == _LAYER_SIZE + CHECKSUM_SIZE:
        discard_recipe(txn, LayerRecord.decode(value[:_LAYER_SIZE]).recipe)
        context.recount = True
    txn.delete(Table.LAYERS, diff_id.key)


def _fill_holes(context: Context, diff_id: Digest) -> None:
    """Store the extents of sparse files again that are lost, and zeros: nothing of the tar is made of them."""
    for digest, size in _sparse_files(context, diff_id).items():
        try:
            with context.env.read() as txn:
                names = [name for _, name in context.store.extents.object_record(txn, digest, size).runs]
                missing = set(names) - txn.present(Table.EXTENTS, names)
        except CorruptError:
            continue
        last = size - (-(-size // EXTENT_SIZE) - 1) * EXTENT_SIZE
        zeros = {blake3_raw(data): data for data in (bytes(EXTENT_SIZE), bytes(last))} if missing else {}
        for name in sorted(missing & zeros.keys()):
            frame = encode_frame([(name, zeros[name])], Role.FILES)
            context.repaired("extent", name.hex(), "it is of a hole, and stored anew", _storing(context, frame))


def _sparse_files(context: Context, diff_id: Digest) -> dict[bytes, int]:
    """The objects of a layer's sparse files, and their sizes; none if its records are damaged."""
    found: dict[bytes, int] = {}
    try:
        with context.env.read() as txn:
            layer = context.store.blobs.find_layer(txn, diff_id)
        for member, ops in () if layer is None else iter_members(_ops(context, layer)):
            if ops and ops[0].kind == SLICE:
                found[bytes(ops[0].data)] = member.size
    except (CorruptError, InvalidError):
        return {}
    return found


def _storing(context: Context, frame: EncodedFrame) -> Callable[[Writer], None]:
    return lambda txn: context.store.extents.put_frames(txn, [frame])


def find_fault(context: Context, diff_id: Digest) -> str | None:
    """What is wrong with a layer: its ``records``, its ``content``; None if it can be rebuilt."""
    hasher = new_hasher(diff_id.algorithm)
    try:
        with context.env.read() as txn:
            layer = context.store.blobs.find_layer(txn, diff_id)
        if layer is None:
            return "records"
        position = 0
        while position < layer.plain_size:
            position += sum(op.size for op in read_chunk(context.env, recipe_key(layer.recipe, position)))
    except CorruptError:
        return "records"
    if position != layer.plain_size:
        return "records"
    try:
        for piece in rebuild(context.env, context.store.extents, layer.recipe, 0, layer.plain_size):
            hasher.update(piece)
    except CorruptError:
        return "content"
    return None if hasher.digest() == diff_id.raw else "records"


def blob_is_right(context: Context, digest: Digest) -> bool:
    """Whether a blob can be read, and has its digest.

    Raises:
        EncoderMissingError: that cannot be told here.
    """

    def hashed() -> bytes:
        hasher = new_hasher(digest.algorithm)
        for piece in context.store.blobs.read(digest):
            hasher.update(piece)
        return hasher.digest()

    try:
        return patiently(context, digest, hashed) == digest.raw
    except EncoderMissingError:
        raise
    except (PagepoolError, OSError):
        return False


def patiently(context: Context, digest: Digest, read: Callable[[], _Read]) -> _Read:
    """Read a blob; again a moment later, twice, where the disk fails: that may pass, and says nothing of the blob."""
    for wait_s in _AGAIN_S:
        try:
            return read()
        except FileNotFoundError:
            raise
        except (SpoolFailedError, OSError) as error:
            context.tell(f"the disk does not read {digest} ({error}): trying again in {wait_s:.0f} s")
            time.sleep(wait_s)
    return read()


def lost_paths(context: Context, diff_id: Digest) -> tuple[str, ...]:
    """The files in a layer whose content is not whole, by what its recipe says."""
    paths: list[str] = []
    with context.env.read() as txn:
        layer = context.store.blobs.find_layer(txn, diff_id)
    if layer is None:
        return ()
    try:
        for member, ops in iter_members(_ops(context, layer)):
            if len(paths) < _MOST_PATHS and _is_lost(context, ops):
                paths.append(f"{diff_id} {member.path.decode(errors='backslashreplace')}")
    except (CorruptError, InvalidError):
        pass
    return tuple(paths)


def _is_lost(context: Context, ops: Sequence[Op]) -> bool:
    small, large = references(ops)
    extents = context.store.extents
    with context.env.read() as txn:
        names = set(small)
        for digest in large:
            try:
                names |= {name for _, name in extents.object_by_name(txn, digest).runs}
            except CorruptError:
                return True
        return any(not extents.is_sound(txn, name) for name in names)


def _ops(context: Context, layer: LayerRecord) -> Iterator[Sequence[Op]]:
    position = 0
    while position < layer.plain_size:
        ops = read_chunk(context.env, recipe_key(layer.recipe, position))
        position += sum(op.size for op in ops)
        yield ops


def _chunks(context: Context, diff_id: Digest) -> list[bytes]:
    """The keys of a layer's recipe."""
    value = context.value(Table.LAYERS, diff_id.key)
    if value is None or len(value) != _LAYER_SIZE + CHECKSUM_SIZE:
        return []
    prefix = recipe_key(LayerRecord.decode(value[:_LAYER_SIZE]).recipe, 0)[:8]
    with context.env.read() as txn:
        return [key for key, _ in txn.scan(Table.RECIPES, prefix, check=False)]


def _is_digest(name: str) -> bool:
    try:
        return bool(Digest.parse(name))
    except InvalidError:
        return False


_LAYER_SIZE = len(LayerRecord(0, 0, 0, 0).encode())
