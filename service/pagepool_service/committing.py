"""Write what was read of a layer, a transaction for each batch, and have what was written verified.

A batch's frames, objects and chunks of the recipe become visible together, so a chunk is never there before the extents
that it names. What a crash leaves are chunks of a recipe that no layer has: `discard_recipe`.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagepool_service.store.cycle import NoteKind, note
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import recipe_key
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

    from pagepool.extents import EncodedFrame
    from pagepool.image import EncodedChunk
    from pagepool_service.store.environment import Writer
    from pagepool_service.store.store import Store
    from pagepool_service.verifying import Rebuilt

_BATCHES_AHEAD = 3


@dataclass(slots=True)
class Batch:
    """What one transaction stores."""

    frames: list[Future[EncodedFrame]] = field(default_factory=list)
    objects: list[tuple[bytes, int, list[bytes]]] = field(default_factory=list)
    chunks: list[EncodedChunk] = field(default_factory=list)
    fresh: set[bytes] = field(default_factory=set)
    new_bytes: int = 0
    stream_bytes: int = 0


class Committer:
    """The committing thread, and the one that has it verified."""

    def __init__(
        self,
        store: Store,
        recipe: int,
        rebuild: Callable[[Iterator[int]], Rebuilt],
        stop: threading.Event,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._store = store
        self._recipe = recipe
        self._stop = stop
        self._batches: queue.Queue[Batch | None] = queue.Queue(_BATCHES_AHEAD)
        self._written: queue.Queue[int | None] = queue.Queue()
        self.committed = 0
        self.plain_size = 0
        self._committing = pool.submit(self._commit_all)
        self._verifying = pool.submit(rebuild, self._starts())

    def put(self, batch: Batch | None) -> None:
        """Hand a batch over, or None at the end. Waits while too many are under way; raises what a thread raised."""
        while True:
            for thread in (self._committing, self._verifying):
                if thread.done():
                    thread.result()
            try:
                self._batches.put(batch, timeout=0.2)
                return
            except queue.Full:
                continue

    def finish(self) -> Rebuilt:
        """Wait for the end. Returns the digests of the tar as it was rebuilt from the store."""
        self.put(None)
        self._committing.result()
        return self._verifying.result()

    def abandon(self) -> None:
        """Make both threads end soon."""
        drain(self._batches)
        self._batches.put(None)
        self._written.put(None)

    def _commit_all(self) -> None:
        try:
            while (batch := self._batches.get()) is not None and not self._stop.is_set():
                self._commit(batch)
                self.committed += 1
                for chunk in batch.chunks:
                    self._written.put(chunk.plain_start)
        finally:
            self._written.put(None)

    def _commit(self, batch: Batch) -> None:
        frames = [future.result() for future in batch.frames]
        size = sum(len(frame.payload) for frame in frames) + sum(len(chunk.payload) for chunk in batch.chunks)
        extents = self._store.extents
        with self._store.env.write(reserve=size + 128 * len(batch.fresh)) as txn:
            extents.put_frames(txn, frames)
            for digest, object_size, names in batch.objects:
                extents.put_object(txn, digest, object_size, names)
            for chunk in batch.chunks:
                txn.put(Table.RECIPES, recipe_key(self._recipe, chunk.plain_start), chunk.payload)
                self.plain_size = chunk.plain_start + chunk.plain_size
            note(txn, NoteKind.OBJECT, [digest for digest, _, _ in batch.objects])
            note(txn, NoteKind.CHUNK, [recipe_key(self._recipe, chunk.plain_start) for chunk in batch.chunks])
            totals = Totals.load(txn)
            totals.recipes_stored += sum(len(chunk.payload) for chunk in batch.chunks)
            totals.store(txn)

    def _starts(self) -> Iterator[int]:
        while (start := self._written.get()) is not None and not self._stop.is_set():
            yield start


def drain(waiting: queue.Queue[bytes | None] | queue.Queue[Batch | None]) -> None:
    """Empty a queue, so that whoever is blocked putting into it goes on."""
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        return


def discard_recipe(txn: Writer, recipe: int) -> None:
    """Remove the chunks of a recipe that no layer has."""
    prefix = recipe_key(recipe, 0)[:8]
    removed = sum(len(value) - CHECKSUM_SIZE for _, value in txn.scan(Table.RECIPES, prefix, check=False))
    txn.delete_prefix(Table.RECIPES, prefix)
    totals = Totals.load(txn)
    totals.recipes_stored = max(0, totals.recipes_stored - removed)
    totals.store(txn)
