"""Compressed layers kept once: look for the encoder that makes a blob again, so that its copy can go.

A blob is looked at when it is settled, and those that were stored before, or before an encoder was known, by jobs of
their own that are queued when a service starts. Each is compressed again, all of it, and compared, by processes that
give way to others, and no layer waits to be read for it. What no encoder makes is marked with those that were tried.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, DigestInvalidError
from pagepool.extents import EXTENT_SIZE
from pagepool_service.encoders import EncoderMissingError, can_run_programs, tried
from pagepool_service.settling import PutOffError, find_encoder
from pagepool_service.store.collect.marking import batches
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import BlobRecord, ContentKind, JobKind, LayerState

if TYPE_CHECKING:
    from collections.abc import Container

    from pagepool_service.encoders import Encoder
    from pagepool_service.store.schema import Job
    from pagepool_service.store.store import Store

log = logging.getLogger("pagepool.maintenance")

_LOOK_S = 1.0  # how often somebody who compresses asks whether a layer waits
_MOST_PUT_OFF = 3  # then the blob is settled as it came, and looked at when there is nothing else to do


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of looking for an encoder.

    Args:
        encoder: what makes the blob; None where none does.
        mark: of those that were tried.
        is_later: none was tried; the blob is looked at another time.
    """

    encoder: Encoder | None
    mark: bytes
    is_later: bool = False

    def settle(self, record: BlobRecord) -> BlobRecord:
        """The blob's record once it is rebuilt, or kept as it came."""
        if self.encoder is not None:
            return record.settled_as(ContentKind.RECIPE, self.encoder.encode())
        return record.settled_as(ContentKind.OBJECT, self.mark)


class Copies:
    """Looks for encoders.

    Args:
        slot: of the maintenance process that asks.
    """

    def __init__(self, store: Store, slot: int) -> None:
        self._store = store
        self._slot = slot
        self._put_off: Counter[Digest] = Counter()

    def queue(self) -> None:
        """Queue each copy of a compressed layer on which not all encoders were tried that are known now."""
        if not can_run_programs():
            log.warning(
                "layers of docker, podman, buildah and skopeo are kept as they came: what makes them again needs the "
                "extra `rebuild` (pip install 'pagepool[rebuild]')"
            )
        waiting, _ = self._store.jobs.first(1 << 30)
        queued = {job.blob for job in waiting if job.kind is JobKind.REBUILD}
        for batch in batches(self._store.env, Table.BLOBS, check=False):
            found = [copy for key, _ in batch if (copy := self._copy(key)) is not None and copy[0] not in queued]
            if found:
                with self._store.env.write() as txn:
                    for digest, created_ns in found:
                        self._store.jobs.add(txn, JobKind.REBUILD, digest, created_ns)

    def _copy(self, key: bytes) -> tuple[Digest, int] | None:
        """A blob that is to be looked at, and the time of its record."""
        with suppress(CorruptError, DigestInvalidError), self._store.env.read() as txn:  # damage is fsck's business
            digest = Digest.from_key(key)
            payload = txn.get(Table.BLOBS, key)
            record = None if payload is None else BlobRecord.decode(payload, str(digest))
            if record is not None and record.content is ContentKind.OBJECT and _is_layer(record):
                return None if record.encoder == tried() else (digest, record.created_ns)
        return None

    def find(self, job: Job, record: BlobRecord, without: Container[Digest] = ()) -> Tried | None:
        """Look for the encoder of a blob; None where there is nothing to look for.

        Args:
            without: blobs that nobody waits for, because they cannot be read now.

        Raises:
            CorruptError: the blob or its layer is damaged.
            PutOffError: a layer waits to be read, and nobody else reads it.
        """
        if not _is_layer(record):
            return None
        if job.kind is JobKind.SETTLE and self._put_off[job.blob] >= _MOST_PUT_OFF:
            del self._put_off[job.blob]
            return Tried(None, b"", is_later=True)
        due = time.monotonic() + _LOOK_S

        def is_wanted() -> bool:
            nonlocal due
            now = time.monotonic()
            if now < due:
                return False
            due = now + _LOOK_S
            first = self._store.jobs.peek(self._slot, without)
            return first is not None and first.kind is JobKind.INGEST

        try:
            encoder = find_encoder(self._store, job.blob, record, is_wanted)
        except PutOffError:
            self._put_off[job.blob] += 1
            raise
        except EncoderMissingError as error:
            log.warning("blob %s is kept as it came: %s", job.blob, error)
            return Tried(None, b"")
        self._put_off.pop(job.blob, None)
        log.info("blob %s %s", job.blob, "is kept as it came" if encoder is None else f"is made by {encoder}")
        return Tried(encoder, tried())


def _is_layer(record: BlobRecord) -> bool:
    """Whether a blob may have been made out of a layer: one of a single extent gains nothing."""
    return record.state is LayerState.READY and record.size > EXTENT_SIZE
