"""Repair blobs: their records, their bytes, and the work that waits on them.

A blob whose bytes are wrong is made again: from its layer, where it is the layer's tar, or where a known encoder makes
it out of that; from its extents, as far as these are found; or from another place. If all that fails its record goes,
with the links to it: a client that asks for it is told that it is not there, and pushes it again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool.digest import Digest, blake3_raw, new_hasher
from pagepool.errors import BlobUnknownError, CorruptError, InvalidError
from pagepool.extents import EXTENT_SIZE
from pagepool_service.encoders import PROBE_SIZE, EncoderMissingError, candidates, probe, remake
from pagepool_service.repair.context import Action, ChangedError, expect
from pagepool_service.repair.fetching import admit_blob, fetch_blob
from pagepool_service.repair.finder import find_extents
from pagepool_service.repair.layers import blob_is_right, find_fault, patiently, queue_ingest
from pagepool_service.settling import rebuild_head
from pagepool_service.store.catalogue import holder_key, link_key
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.rebuild import rebuild
from pagepool_service.store.schema import BlobRecord, ContentKind, Job, JobKind, LayerState
from pagepool_service.store.sums import sum_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.repair.context import Context
    from pagepool_service.store.environment import Writer


_MOST_ENCODERS = 3  # that make such a beginning, and are tried with all of a blob


def repair_blobs(context: Context) -> None:
    """Make the blobs with a problem whole again, or take them out."""
    for name in context.names("blob"):
        try:
            digest = Digest.parse(name)
        except InvalidError:
            _remove_key(context, name)
            continue
        if context.value(Table.BLOBS, digest.key) is None:
            continue  # the link to it is what is wrong
        with context.unless_changed():
            if context.is_sound(Table.BLOBS, digest.key) or _remake_record(context, digest):
                _repair_bytes(context, digest)
            else:
                _fetch_or_remove(context, digest, None)


# -- bytes -----------------------------------------------------------------------------------------------------


def _repair_bytes(context: Context, digest: Digest) -> None:
    try:
        record = context.store.blobs.stat(digest)
    except (BlobUnknownError, CorruptError):
        if not context.dry_run:
            _fetch_or_remove(context, digest, None)
        return
    try:
        right = blob_is_right(context, digest)
    except EncoderMissingError:
        return  # fsck says what is missing here; where it is not, the blob may be all right
    if right:
        _repair_state(context, digest, record)
        context.look_again |= record.content is ContentKind.SPOOL  # the disk may not have read it for a moment
        return
    if record.diff_id is not None and record.diff_id == digest and find_fault(context, digest) is None:
        plain = replace(record, content=ContentKind.RECIPE, encoder=b"")

        def settle(txn: Writer) -> None:
            _expect(context, txn, digest, record)
            context.store.blobs.update(txn, digest, plain)

        if context.repaired("blob", str(digest), "it is rebuilt from its layer", settle) and not context.dry_run:
            context.store.blobs.forget_file(digest)
        return
    if _compress_again(context, digest, record):
        context.repaired("blob", str(digest), "it was compressed again from its layer", _nothing)
        return
    if record.content is not ContentKind.RECIPE and admit_blob(context, digest, _assembled(context, digest, record)):
        context.repaired("blob", str(digest), "it was put together from the extents that are left of it", _nothing)
        return
    _fetch_or_remove(context, digest, record)


def _repair_state(context: Context, digest: Digest, record: BlobRecord) -> None:
    """A blob whose bytes are right is read as a layer again, where its layer is not there, or nobody would read it."""
    with context.env.read() as txn:
        has_layer = record.diff_id is not None and txn.has(Table.LAYERS, record.diff_id.key)
    if (record.state is LayerState.READY and has_layer) or record.content is ContentKind.RECIPE:
        return
    if record.state is LayerState.PENDING and _has_job(context, digest, record):
        return
    if context.repaired("blob", str(digest), "it is read as a layer again", lambda t: queue_ingest(context, t, digest)):
        context.jobs.add(digest)


def _compress_again(context: Context, digest: Digest, record: BlobRecord) -> bool:
    """Make a blob out of its layer, if its first extent is there, and tells which encoder may have done it."""
    if record.diff_id is None or record.content is ContentKind.RECIPE:
        return False
    if find_fault(context, record.diff_id) is not None:
        return False
    store = context.store
    try:
        with context.env.read() as txn:
            layer = store.blobs.find_layer(txn, record.diff_id)
            names = [name for _, name in store.extents.object_record(txn, record.object, record.size).extents()]
    except CorruptError:
        return False
    head = _first_bytes(context, digest, record, names)
    if layer is None or not head:
        return False
    plain = probe(partial(rebuild_head, store, layer), layer.plain_size)
    with suppress(EncoderMissingError):
        for encoder in islice(candidates(head, plain, layer.plain_size), _MOST_ENCODERS):
            whole = partial(rebuild, store.env, store.extents, layer.recipe, 0, layer.plain_size)
            if admit_blob(context, digest, remake(encoder, whole, names, str(digest))):
                return True
    return False


def _first_bytes(context: Context, digest: Digest, record: BlobRecord, names: list[bytes]) -> bytes:
    """The beginning of a blob up to the first extent that is lost; at most as much as is probed."""
    parts: list[bytes] = []
    for number, name in enumerate(names[: PROBE_SIZE // EXTENT_SIZE]):
        data = _own_extent(context, digest, record, number, name)
        if data is None:
            break
        parts.append(data)
    return b"".join(parts)


def _own_extent(context: Context, digest: Digest, record: BlobRecord, number: int, name: bytes) -> bytes | None:
    """An extent of a blob: from its file, if it has one, or a frame; None if it is not there, or wrong."""
    if record.content is ContentKind.SPOOL:
        with suppress(OSError), context.store.blobs.spool_path(digest).open("rb") as file:
            file.seek(number * EXTENT_SIZE)
            data = file.read(min(EXTENT_SIZE, record.size - number * EXTENT_SIZE))
            if blake3_raw(data) == name:
                return data
    with suppress(CorruptError), context.env.read() as txn:
        if context.store.extents.is_sound(txn, name):
            return bytes(context.store.extents.extent(txn, name))
    return None


def _assembled(context: Context, digest: Digest, record: BlobRecord) -> Iterator[bytes]:
    """A blob put together extent by extent: from its file as far as that is right, frames, and other places."""
    with context.env.read() as txn:
        listed = [name for _, name in context.store.extents.object_record(txn, record.object, record.size).extents()]
    own = [_own_extent(context, digest, record, number, name) is not None for number, name in enumerate(listed)]
    found = find_extents(context, {name for name, there in zip(listed, own, strict=True) if not there})
    for number, name in enumerate(listed):
        data = found[name][0] if name in found else _own_extent(context, digest, record, number, name)
        if data is None:
            raise CorruptError("extent", name.hex(), "it was found nowhere")
        yield data


# -- records ---------------------------------------------------------------------------------------------------


def _remake_record(context: Context, digest: Digest) -> bool:
    """Make a damaged record again from what it describes. Returns whether that could be done."""
    before = context.value(Table.BLOBS, digest.key)
    fresh = _from_file(context, digest) or _from_layer(context, digest) or _from_ruins(context, digest, before or b"")
    if fresh is None:
        return False
    record, how = fresh

    def apply(txn: Writer) -> None:
        expect(txn, Table.BLOBS, digest.key, before)
        context.store.blobs.update(txn, digest, record)
        if record.state is LayerState.PENDING:
            context.store.jobs.add(txn, JobKind.INGEST, digest, record.created_ns)

    if context.repaired("blob", str(digest), how, apply) and record.state is LayerState.PENDING:
        context.jobs.add(digest)
    return True


def _from_file(context: Context, digest: Digest) -> tuple[BlobRecord, str] | None:
    path = context.store.blobs.spool_path(digest)
    try:
        sums = patiently(context, digest, lambda: sum_file(path, digest.algorithm).sums())
        created = path.stat().st_mtime_ns
    except OSError:
        return None
    if sums.digest != digest:
        return None
    if not context.dry_run:
        with context.env.write() as txn:
            context.store.extents.put_object(txn, sums.object, sums.size, sums.extents)
    record = BlobRecord(ContentKind.SPOOL, LayerState.PENDING, sums.size, created, sums.object)
    return record, "its record was made again from its file in the spool"


def _from_layer(context: Context, digest: Digest) -> tuple[BlobRecord, str] | None:
    """Of a blob that is the tar of a layer."""
    if digest.algorithm != "sha256" or find_fault(context, digest) is not None:
        return None
    with context.env.read() as txn:
        layer = context.store.blobs.find_layer(txn, digest)
    if layer is None:
        return None
    hasher = blake3()
    for piece in rebuild(context.env, context.store.extents, layer.recipe, 0, layer.plain_size):
        hasher.update(piece)
    record = BlobRecord(ContentKind.RECIPE, LayerState.READY, layer.plain_size, 1, hasher.digest(), digest)
    return record, "its record was made again from the layer that it is the tar of"


def _from_ruins(context: Context, digest: Digest, value: bytes) -> tuple[BlobRecord, str] | None:
    """What the damaged record still says, if that leads to the bytes."""
    try:
        said = BlobRecord.decode(memoryview(value)[:-CHECKSUM_SIZE], str(digest))
        with context.env.read() as txn:
            extents = context.store.extents.object_record(txn, said.object, said.size)
            names = [name for _, name in extents.extents()]
    except (CorruptError, ValueError):
        return None
    hasher = new_hasher(digest.algorithm)
    try:
        for name in names:
            with context.env.read() as txn:
                hasher.update(context.store.extents.extent(txn, name))
    except CorruptError:
        return None
    if hasher.digest() != digest.raw:
        return None
    record = BlobRecord(ContentKind.OBJECT, LayerState.PENDING, said.size, said.created_ns, said.object)
    return record, "its record was made again from what it said of its bytes"


# -- no way ----------------------------------------------------------------------------------------------------


def _fetch_or_remove(context: Context, digest: Digest, record: BlobRecord | None) -> None:
    """The last resorts: fetch a blob from elsewhere, or take it out with the links to it."""
    where = fetch_blob(context, digest, None if record is None else record.size)
    if where is not None:
        context.repaired("blob", str(digest), f"it was fetched from {where}", _nothing)
        return
    images = context.images("blob", str(digest))
    action = Action("blob", str(digest), "quarantined", "it cannot be read, and was found nowhere", images)
    remove_blob(context, action, digest)


def remove_blob(context: Context, action: Action, digest: Digest, holder: str | None = None) -> None:
    """Take a blob out, with its links and its file: whoever pushes it again brings it back.

    Args:
        holder: a repository that has it, though nothing but its own link says so.
    """
    before = context.value(Table.BLOBS, digest.key)
    holders = {*context.holders(digest), *([holder] if holder else [])}
    links = [key for name in sorted(holders) for key in (link_key(name, digest), holder_key(name, digest))]

    def apply(txn: Writer) -> None:
        expect(txn, Table.BLOBS, digest.key, before)
        txn.delete(Table.BLOBS, digest.key)
        for key in links:
            txn.delete(Table.LINKS, key)

    lost = [(Table.BLOBS, digest.key), *((Table.LINKS, key) for key in links)]
    path = context.store.blobs.spool_path(digest)
    if context.remove(action, lost, apply, [path]) and not context.dry_run:
        context.store.blobs.forget_file(digest)


def _remove_key(context: Context, name: str) -> None:
    """A record under a key that is no digest."""
    try:
        key = bytes.fromhex(name)
    except ValueError:
        return

    def apply(txn: Writer) -> None:
        txn.delete(Table.BLOBS, key)

    action = Action("blob", name, "set aside", "its key is no digest", context.images("blob", name))
    context.remove(action, [(Table.BLOBS, key)], apply)


# -- jobs ------------------------------------------------------------------------------------------------------


def repair_jobs(context: Context) -> None:
    """Take out jobs that cannot be read, and make those again that somebody waits for."""
    for name in context.names("job"):
        kind, _, number = name.partition(" ")
        try:
            key = bytes((JobKind[kind.upper()],)) + int(number).to_bytes(8, "big")
        except (KeyError, ValueError, OverflowError):
            key = bytes.fromhex(name)
        if context.is_sound(Table.JOBS, key) and _decodes(context, key):
            continue
        action = Action("job", name, "set aside", "it cannot be read; blobs that wait for it get another")
        context.remove(action, [(Table.JOBS, key)], lambda txn, key=key: _delete_job(txn, key))  # type: ignore[misc]
    if not context.names("job"):
        return
    for digest, record in context.blobs().items():
        waits = JobKind.INGEST if record.state is LayerState.PENDING else JobKind.SETTLE
        if record.content is not ContentKind.SPOOL and waits is JobKind.SETTLE:
            continue
        if not _has_job(context, digest, record):
            _add_job(context, waits, digest, record)


def _add_job(context: Context, kind: JobKind, digest: Digest, record: BlobRecord) -> None:
    def apply(txn: Writer) -> None:
        _expect(context, txn, digest, record)
        context.store.jobs.add(txn, kind, digest, record.created_ns)

    if context.repaired("job", f"{kind.name.lower()} of {digest}", "it was queued again", apply):
        context.jobs.add(digest)


def _has_job(context: Context, digest: Digest, record: BlobRecord) -> bool:
    with context.env.read() as txn:
        for key, value in txn.scan(Table.JOBS, check=False):
            try:
                job = Job.decode(key, value[:-CHECKSUM_SIZE])
            except CorruptError:
                continue
            if (job.blob, job.created_ns) == (digest, record.created_ns):
                return True
    return False


def _decodes(context: Context, key: bytes) -> bool:
    value = context.value(Table.JOBS, key) or b""
    try:
        return bool(Job.decode(key, memoryview(value)[:-CHECKSUM_SIZE]))
    except CorruptError:
        return False


def _delete_job(txn: Writer, key: bytes) -> None:
    txn.delete(Table.JOBS, key)


def _expect(context: Context, txn: Writer, digest: Digest, record: BlobRecord) -> None:
    """Nobody has changed the blob's record meanwhile."""
    try:
        now = context.store.blobs.record(txn, digest)
    except (BlobUnknownError, CorruptError) as error:
        raise ChangedError from error
    if now != record:
        raise ChangedError


def _nothing(_txn: Writer) -> None:
    """It was done already."""
