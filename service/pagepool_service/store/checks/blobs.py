"""Blobs' records, the jobs that wait for them, and the files in the spool: structure only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, InvalidError
from pagepool.extents import EXTENT_SIZE
from pagepool_service.store.checks.recipes import lacks_extents
from pagepool_service.store.checks.walk import walk
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import BlobRecord, ContentKind, Job, JobKind, LayerRecord, LayerState

if TYPE_CHECKING:
    from pagepool_service.store.checks.context import Context
    from pagepool_service.store.environment import Reader


def check_jobs(context: Context) -> None:
    """Every job can be read. One whose blob was removed meanwhile is no error."""

    def visit(_txn: Reader, key: bytes, payload: memoryview) -> None:
        context.recounted.next_job = max(context.recounted.next_job, Job.decode(key, payload).number + 1)

    walk(context, Table.JOBS, visit)


def check_blobs(context: Context) -> None:
    """Every blob's record names bytes and a layer that are there."""
    pending: list[Digest] = []

    def visit(txn: Reader, key: bytes, payload: memoryview) -> None:
        try:
            digest = Digest.from_key(key)
        except InvalidError as error:
            raise CorruptError("blob", key.hex(), "its key is no digest") from error
        if not context.wants_blob(digest):
            return
        record = BlobRecord.decode(payload, str(digest))
        if record.state is LayerState.PENDING:
            pending.append(digest)
        _check_layer_of(txn, digest, record)
        _check_place_of(context, txn, digest, record)

    walk(context, Table.BLOBS, visit)
    _check_pending(context, pending)
    _check_selected(context)


def _check_layer_of(txn: Reader, digest: Digest, record: BlobRecord) -> None:
    """A ready blob has a layer; a layer that a plain tar is rebuilt from has its size."""
    if record.state is not LayerState.READY:
        if record.content is ContentKind.RECIPE:
            raise CorruptError("blob", str(digest), "it is rebuilt from a layer, and was not read as one")
        return
    payload = None if record.diff_id is None else txn.get_unchecked(Table.LAYERS, record.diff_id.key)
    if payload is None:
        raise CorruptError("blob", str(digest), f"its layer {record.diff_id} is not there")
    if record.content is not ContentKind.RECIPE or record.encoder:
        return
    try:
        layer = LayerRecord.decode(payload[: len(LayerRecord(0, 0, 0, 0).encode())])
    except ValueError:
        return
    if layer.plain_size != record.size:
        raise CorruptError("blob", str(digest), f"it has {record.size} bytes, its layer {layer.plain_size}")


def _check_place_of(context: Context, txn: Reader, digest: Digest, record: BlobRecord) -> None:
    """The extent list, the extents, and the file of a blob in the spool are there, where it needs them."""
    if not record.size or (record.content is ContentKind.RECIPE and not record.encoder):
        return
    large = record.size > EXTENT_SIZE
    if large and not txn.has(Table.OBJECTS, record.object):
        raise CorruptError("blob", str(digest), f"the list of its extents, {record.object.hex()}, is not there")
    if record.content is ContentKind.OBJECT:
        if lacks_extents(txn, record.object) if large else not txn.has(Table.EXTENTS, record.object):
            raise CorruptError("blob", str(digest), f"extents of its object {record.object.hex()} are not there")
    elif record.content is ContentKind.SPOOL:
        _check_spool_file(context, digest, record)


def _check_spool_file(context: Context, digest: Digest, record: BlobRecord) -> None:
    try:
        size = context.store.blobs.spool_path(digest).stat().st_size
    except FileNotFoundError:
        # Settled since this transaction began, or removed and perhaps pushed again: then the record is another.
        if _newest(context, digest) == record:
            raise CorruptError("blob", str(digest), "its file in the spool is not there") from None
        return
    except OSError as error:
        raise CorruptError("blob", str(digest), f"its file in the spool: {error.strerror}") from error
    if size != record.size:
        raise CorruptError("blob", str(digest), f"its file in the spool has {size} bytes, not {record.size}")


def _newest(context: Context, digest: Digest) -> BlobRecord | None:
    """The blob's record as it is now."""
    with context.env.read() as txn:
        payload = txn.get(Table.BLOBS, digest.key)
        return None if payload is None else BlobRecord.decode(payload, str(digest))


def _check_pending(context: Context, pending: list[Digest]) -> None:
    """A blob that waits to be read as a layer has a job for it, or waits for ever."""
    if not pending:
        return
    with context.env.read() as txn:
        jobs = set()
        for key, _ in txn.scan(Table.JOBS, check=False):
            try:
                payload = txn.get(Table.JOBS, key)
                job = None if payload is None else Job.decode(key, payload)
            except CorruptError:
                continue  # reported where the jobs are checked
            if job is not None and job.kind is JobKind.INGEST:
                jobs.add((job.blob, job.created_ns))
        for digest in pending:
            payload = txn.get(Table.BLOBS, digest.key)
            record = None if payload is None else BlobRecord.decode(payload, str(digest))
            if record and record.state is LayerState.PENDING and (digest, record.created_ns) not in jobs:
                reason = "it waits to be read as a layer, and there is no job to do it"
                context.findings.problem("blob", str(digest), reason)


def _check_selected(context: Context) -> None:
    """Blobs of the images that were asked for are there at all."""
    if context.selection is None:
        return
    with context.env.read() as txn:
        for digest in context.selection.blobs:
            if not txn.has(Table.BLOBS, digest.key):
                context.findings.note(f"blob {digest} is not stored (it was deleted, or is kept elsewhere)")


def check_spool(context: Context) -> None:
    """Files that no record refers to: pushes going on, or what a crash left until the next start."""
    leftover = 0
    spool = context.store.data / "spool"
    files = list(spool.iterdir()) if spool.is_dir() else []
    context.findings.stage("spool", len(files))
    for path in files:
        algorithm, _, value = path.name.partition("-")
        try:
            digest = Digest.parse(f"{algorithm}:{value}")
            record = _newest(context, digest)
            kept = record is not None and record.content is ContentKind.SPOOL
        except CorruptError:
            continue  # the blob's record is damaged, and reported
        except InvalidError:
            kept = False
        leftover += not kept and path.exists()
    if leftover:
        context.findings.note(
            f"{leftover} files in the spool belong to no blob; the service removes them when it starts"
        )
