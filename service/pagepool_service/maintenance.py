"""Jobs of the store, taken off its queue one at a time: what each comes to, and what becomes of it when it fails.

INGEST understands a blob as a layer (`ingest`); SETTLE moves a blob's bytes out of the spool to where they
stay; REBUILD looks for what makes a blob again that is kept as it came (`copies`). Ingest goes first: an image is ready
before its blobs are settled. While there are no jobs the first process makes trees and their images (`prebuild`).
A job that fails for a reason of the layer's is finished with that reason; one that fails for a reason of the store's is
tried again with a growing pause; one that takes its process down with it is given up after a few attempts. Any number
of processes may run this on one data directory, each with a slot of its own (`maintaining`). Between jobs the first of
them removes leases that have expired.

What a job found out is merged into the blob's record as it is when the job ends, and only if that is of the push
that the job was made for: a blob may be removed and pushed again at any moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from pagepool.errors import (
    BlobUnknownError,
    BusyError,
    CorruptError,
    LayerInvalidError,
    ReadOnlyError,
    StoreFullError,
)
from pagepool.image import Limits
from pagepool_service.allocator import give_back
from pagepool_service.committing import discard_recipe
from pagepool_service.copies import Copies
from pagepool_service.inflate import Compression, InflateLimits, inflate
from pagepool_service.ingest import LayerIngest
from pagepool_service.logfields import working_on
from pagepool_service.settling import PutOffError, move_into_frames
from pagepool_service.store.blobs import SpoolFailedError
from pagepool_service.store.environment import Table
from pagepool_service.store.rebuild import read_chunk
from pagepool_service.store.schema import ContentKind, JobKind, LayerRecord, LayerState, recipe_key
from pagepool_service.verifying import HereVerifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.digest import Digest
    from pagepool_service.copies import Tried
    from pagepool_service.ingest import Ingested
    from pagepool_service.prebuild import Prebuilder
    from pagepool_service.store.environment import Environment, Reader, Writer
    from pagepool_service.store.schema import BlobRecord, Job
    from pagepool_service.store.store import Store
    from pagepool_service.tracing.exporting import Tracing
    from pagepool_service.verifying import Verifier

log = logging.getLogger("pagepool.maintenance")

_MOST_ATTEMPTS = 3
_MOST_ENDS = 20  # of the whole service during attempts at one job
_MOST_HEALED = 1000  # damaged frames that one layer mends, each in an attempt that does not count
_LONGEST_PAUSE_S = 30.0
_LEASES_EVERY_S = 60.0
_IDLE_S = 1.0  # how often the queue is looked at without being woken


def observe_nothing(_result: str, _seconds: float) -> None:
    """What nobody asked for is not counted."""


class Maintenance:
    """Runs jobs of one store.

    Args:
        slot: of the process, see `run`.
        verifier: rebuilds each layer that was read; left out, that is done in this process.
        rebuild_compressed: drop compressed blobs that `encoders` can make again.
        limits: of what a tar may claim.
        inflate_limits: of what a compressed stream may grow to.
        observe: called for each layer that was read: how that ended, and the seconds it took.
        tracing: makes a span of each job; None to make none.
    """

    def __init__(
        self,
        store: Store,
        *,
        slot: int = 0,
        verifier: Verifier | None = None,
        rebuild_compressed: bool = False,
        limits: Limits | None = None,
        inflate_limits: InflateLimits | None = None,
        observe: Callable[[str, float], None] = observe_nothing,
        tracing: Tracing | None = None,
    ) -> None:
        self._store = store
        self._slot = slot
        self._verifier = verifier or HereVerifier(store)
        self._copies = Copies(store, slot) if rebuild_compressed else None
        self._limits = limits or Limits()
        self._inflate_limits = inflate_limits or InflateLimits()
        self._healed: Counter[Digest] = Counter()
        self._later: dict[Digest, float] = {}  # blobs whose files the disk does not read: when to try again
        self._leases_due = 0.0
        self._observe = observe
        self._tracing = tracing
        self._began_s = 0.0

    def run_forever(self, wake_fd: int, prebuilder: Prebuilder | None = None) -> None:
        """Run jobs as they come.

        Args:
            prebuilder: makes images of trees while there are no jobs.
        """
        os.set_blocking(wake_fd, False)
        if self._slot == 0 and self._copies is not None:
            self._copies.queue()
        pause = _IDLE_S
        while True:
            try:
                while self._run_any(prebuilder):
                    pause = _IDLE_S
            except (StoreFullError, ReadOnlyError, BusyError, CorruptError) as error:
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                log.error("job put off for %.0f s: %s", pause, error)
            self.tend()
            give_back()
            self._wait(wake_fd, pause)
            self._store.env.check_readers()

    def tend(self) -> None:
        """What is done between jobs: now and then, remove leases that have expired. They count for nothing already."""
        if self._slot or time.monotonic() < self._leases_due:
            return
        self._leases_due = time.monotonic() + _LEASES_EVERY_S
        try:
            self._store.leases.remove_expired()
        except (StoreFullError, ReadOnlyError, BusyError, CorruptError) as error:
            log.error("leases that have expired were not removed: %s", error)

    def _run_any(self, prebuilder: Prebuilder | None) -> bool:
        """Run a job, or if there is none make an image. Returns whether there was anything to do."""
        if self.run_one():
            if prebuilder is not None:
                prebuilder.look_again()
            return True
        return prebuilder is not None and prebuilder.run_one()

    def run_all(self) -> int:
        """Run until the queue is empty. Returns how many jobs were run."""
        count = 0
        while self.run_one():
            count += 1
        return count

    def run_one(self) -> bool:
        """Run the first job. Returns whether there was one.

        Raises:
            StoreFullError, ReadOnlyError: the store cannot take the result now; the job stays in the queue.
            CorruptError: stored bytes are wrong, and trying again has not helped.
        """
        now = time.monotonic()
        self._later = {blob: due for blob, due in self._later.items() if due > now}
        job = self._store.jobs.begin_next(self._slot, self._later)
        if job is None:
            return False
        with working_on(job), self._tracing.job(job) if self._tracing is not None else contextlib.nullcontext():
            return self._run(job)

    def _run(self, job: Job) -> bool:
        try:
            record = self._store.blobs.stat(job.blob)
        except BlobUnknownError:  # removed before its turn came
            log.debug("job on %s dropped: the blob was removed", job.blob)
            self._drop(job)
            return True
        except CorruptError as error:
            log.warning("job on %s dropped: %s", job.blob, error)
            self._drop(job)
            return True
        if record.created_ns != job.created_ns:  # removed, and pushed again: that has jobs of its own
            self._drop(job)
            return True
        try:
            if job.kind is JobKind.INGEST:
                self._ingest(job)
            elif job.kind is JobKind.SETTLE:
                self._settle(job, record)
            else:
                self._drop_copy(job, record)
        except PutOffError:
            self._store.jobs.put_back(job, last=True)
        except BlobUnknownError:  # removed meanwhile
            self._drop(job)
        except SpoolFailedError as error:  # of this one blob: those behind it need not wait
            log.error("the job on %s is put off for %.0f s: %s", job.blob, _LONGEST_PAUSE_S, error)
            self._later[job.blob] = time.monotonic() + _LONGEST_PAUSE_S
            self._store.jobs.put_back(job, last=True)
        except (StoreFullError, ReadOnlyError, BusyError):
            # When even this cannot be written the job stays ours, and is taken up again all the same.
            with contextlib.suppress(StoreFullError, ReadOnlyError):
                self._store.jobs.put_back(job, last=True)
            raise
        return True

    # -- ingest ----------------------------------------------------------------------------------------------

    def _ingest(self, job: Job) -> None:
        self._began_s = time.monotonic()
        if job.attempts > _MOST_ATTEMPTS or job.ends > _MOST_ENDS:
            ended = max(job.attempts - 1, job.ends)
            self._give_up(job, f"reading it as a layer ended the process that did it, {ended} times")
            return
        pieces = _Pieces(self._store.blobs.read(job.blob))
        try:
            compression, plain = inflate(pieces, self._inflate_limits)
            ingest = LayerIngest(self._store, job, self._limits, self._verifier)
            try:
                result = ingest.run(plain)
            except BaseException:
                ingest.discard()
                raise
        except LayerInvalidError as error:
            self._give_up(job, error.reason or str(error))
        except CorruptError as error:
            if pieces.damaged:
                self._blame(job, error)
            else:
                self._heal(job, error)
        else:
            self._ready(job, compression, result)

    def _ready(self, job: Job, compression: Compression, result: Ingested) -> None:
        """Make the layer visible, and its blob with it."""
        key = result.diff_id.key
        plain = compression is Compression.NONE
        with self._store.env.read() as txn:
            seen = bytes(txn.get_unchecked(Table.LAYERS, key) or b"")
        known = _sound_layer(self._store.env, result.diff_id)
        with self._store.env.write() as txn:
            now = bytes(txn.get_unchecked(Table.LAYERS, key) or b"")
            if now and (known is not None or now != seen):
                # The same tar was there, or another process has just read it: that recipe serves both.
                discard_recipe(txn, result.layer.recipe)
            else:
                txn.put(Table.LAYERS, key, result.layer.encode())
            record = self._current(txn, job)
            if record is not None:
                done = replace(record, state=LayerState.READY, diff_id=result.diff_id)
                if plain:
                    done = done.settled_as(ContentKind.RECIPE)
                self._update(txn, job, done)
            self._store.jobs.finish(txn, job)
        if plain:
            self._store.blobs.forget_file(job.blob)
        self._observe("ready", time.monotonic() - self._began_s)
        log.info("layer %s ready: diff_id %s, %d members", job.blob, result.diff_id, result.layer.members)

    def _give_up(self, job: Job, reason: str) -> None:
        """The blob stays, as bytes."""
        log.debug("blob %s is no mountable layer: %s", job.blob, reason)
        with self._store.env.write() as txn:
            record = self._current(txn, job)
            if record is not None:
                self._update(txn, job, replace(record, state=LayerState.UNMOUNTABLE, reason=reason))
            self._end(txn, job)
        self._observe("unmountable", time.monotonic() - self._began_s)

    def _current(self, txn: Reader, job: Job) -> BlobRecord | None:
        """The blob's record as it is now, unless it is gone, or of a later push than the job."""
        try:
            record = self._store.blobs.record(txn, job.blob)
        except (BlobUnknownError, CorruptError):
            return None
        return record if record.created_ns == job.created_ns else None

    def _update(self, txn: Writer, job: Job, record: BlobRecord) -> None:
        """Store what was found out of a blob, and have it settled."""
        self._store.blobs.update(txn, job.blob, record)
        if record.content is ContentKind.SPOOL:
            self._store.jobs.add(txn, JobKind.SETTLE, job.blob, record.created_ns)

    def _end(self, txn: Writer, job: Job) -> None:
        """Take a job off the queue, with what its last attempt left."""
        stored = self._store.jobs.stored(txn, job)
        if stored is not None and stored.recipe:
            discard_recipe(txn, stored.recipe)
        self._store.jobs.finish(txn, job)

    def _blame(self, job: Job, error: CorruptError) -> None:
        """The blob's own bytes are damaged where they are kept: nothing that it brings could mend them.

        It is tried again, in case it was the memory; then a push of the same blob writes it anew.
        """
        log.error("the bytes of blob %s are damaged: %s", job.blob, error)
        if job.attempts >= _MOST_ATTEMPTS:
            self._give_up(job, f"its bytes are damaged where they are kept: {error}")

    def _heal(self, job: Job, error: CorruptError) -> None:
        """Bytes that are stored already, and shared by this layer, are damaged.

        The layer brings good ones: forget where the damaged ones lie and read it again, which stores them
        anew and mends every image that shares them.
        """
        if self._is_swept(error) and self._healed[job.blob] < _MOST_HEALED:
            # What the layer shares was there when it was looked up, and collected before the layer named it. It brings
            # it itself: read again, it is stored anew, and left alone from then on (`Job.floor`).
            log.info("layer %s is read again: %s", job.blob, error)
            self._healed[job.blob] += 1
            self._store.jobs.put_back(job)
            return
        log.error("reading layer %s met damage: %s", job.blob, error)
        mendable = error.kind in ("frame", "extent") and self._healed[job.blob] < _MOST_HEALED
        if mendable and self._store.extents.forget_damaged(self._store.env, error):
            self._healed[job.blob] += 1
            self._store.jobs.put_back(job)
            return
        if job.attempts >= _MOST_ATTEMPTS:
            self._give_up(job, f"it shares stored data that is damaged: {error}")

    def _is_swept(self, error: CorruptError) -> bool:
        """Whether an error is about an extent or object that is not there at all."""
        if error.kind not in ("extent", "object") or not error.name:
            return False
        name = bytes.fromhex(error.name)
        with self._store.env.read() as txn:
            return not any(txn.has(table, name) for table in (Table.EXTENTS, Table.OBJECTS))

    def _drop(self, job: Job) -> None:
        with self._store.env.write() as txn:
            self._end(txn, job)

    # -- settle ----------------------------------------------------------------------------------------------

    def _settle(self, job: Job, record: BlobRecord) -> None:
        """Move a blob's bytes out of the spool."""
        if job.attempts > _MOST_ATTEMPTS:
            log.error("blob %s stays in the spool: settling it failed %d times", job.blob, _MOST_ATTEMPTS)
            self._drop(job)
            return
        tried = None
        try:
            if record.content is ContentKind.SPOOL:
                tried = self._look_for_encoder(job, record)
                if tried is None or tried.encoder is None:
                    move_into_frames(self._store, job.blob, record)
        except CorruptError as error:
            log.error("blob %s cannot be settled: %s", job.blob, error)
            self._drop(job)
            return
        with self._store.env.write() as txn:
            current = self._current(txn, job)
            if current is not None and current.content is ContentKind.SPOOL:
                settled = current.settled_as(ContentKind.OBJECT) if tried is None else tried.settle(current)
                self._store.blobs.update(txn, job.blob, settled)
                if tried is not None and tried.is_later:
                    self._store.jobs.add(txn, JobKind.REBUILD, job.blob, current.created_ns)
            self._store.jobs.finish(txn, job)
        self._store.blobs.forget_file(job.blob)

    def _drop_copy(self, job: Job, record: BlobRecord) -> None:
        """Have a blob rebuilt that is kept as it came, if an encoder makes it. Collection takes the copy."""
        tried = None
        if record.content is ContentKind.OBJECT and job.attempts <= _MOST_ATTEMPTS:
            tried = self._look_for_encoder(job, record)
        with self._store.env.write() as txn:
            current = self._current(txn, job)
            if tried is not None and current is not None and current.content is ContentKind.OBJECT:
                self._store.blobs.update(txn, job.blob, tried.settle(current))
            self._store.jobs.finish(txn, job)

    def _look_for_encoder(self, job: Job, record: BlobRecord) -> Tried | None:
        try:
            return None if self._copies is None else self._copies.find(job, record, self._later)
        except CorruptError as error:  # of what it would be made out of; its own bytes are compared when they are moved
            log.error("blob %s is kept as it came: %s", job.blob, error)
            return None

    def _wait(self, wake_fd: int, timeout_s: float) -> None:
        ready, _, _ = select.select([wake_fd], [], [], timeout_s)
        if ready:
            with contextlib.suppress(BlockingIOError):  # another process was quicker
                os.read(wake_fd, 4096)


class _Pieces:
    """A blob's bytes, and whether it is they that could not be read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.damaged = False

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except CorruptError:
            self.damaged = True
            raise


def _sound_layer(env: Environment, diff_id: Digest) -> LayerRecord | None:
    """The layer's record, if that and every chunk of its recipe can be read.

    What is acknowledged now must not rest on an older recipe that is damaged: then the new one replaces it.
    """
    position = 0
    try:
        with env.read() as txn:
            payload = txn.get(Table.LAYERS, diff_id.key)
            layer = None if payload is None else LayerRecord.decode(payload)
        while layer is not None and position < layer.plain_size:
            position += sum(op.size for op in read_chunk(env, recipe_key(layer.recipe, position)))
    except CorruptError as error:
        log.error("layer %s is replaced by the one that was just read: %s", diff_id, error)
        return None
    return layer
