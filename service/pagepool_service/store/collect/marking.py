"""Mark what is in use: from blobs, leases and jobs down to extents.

In short snapshots, one record after the other, with bounded memory: recipes by their numbers, objects and extents in
`Marks`. Records that are written meanwhile are learned from the notes of those who write them (`cycle`).

A record that cannot be read ends it: nobody knows what it keeps.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest
from pagepool.extents import EXTENT_SIZE
from pagepool.image import decode_chunk
from pagepool_service.store.checks.recipes import references
from pagepool_service.store.collect.gate import BehindError
from pagepool_service.store.collect.marks import Marks
from pagepool_service.store.cycle import Note, NoteKind, last_note, notes_after
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import (
    BlobRecord,
    ContentKind,
    Job,
    LayerRecord,
    ObjectRecord,
    parse_recipe_key,
    recipe_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from pagepool_service.store.environment import Environment, Reader
    from pagepool_service.store.leases import Leases

_SNAPSHOT_S: Final = 0.05  # a snapshot pins every page that is freed while it lasts
_RECORDS: Final = 1000  # copied out of a snapshot at a time
_MOST_KNOWN: Final = 200_000  # large objects that are known to be marked; more are marked again
_NOTES_AT_ONCE: Final = 1000


@dataclass(slots=True)
class Roots:
    """How many records keep others, by kind."""

    blobs: int = 0
    leases: int = 0
    jobs: int = 0


def batches(env: Environment, table: Table, *, check: bool = True) -> Iterator[list[tuple[bytes, bytes]]]:
    """All records of a table, in batches that are of one snapshot each. None is held while a batch is looked at.

    Args:
        check: compare checksums; False to be given no payloads, which are not read then.
    """
    start: bytes | None = b""
    while start is not None:
        found: list[tuple[bytes, bytes]] = []
        with env.read() as txn:
            records = txn.scan_surely(table, start=start) if check else txn.scan(table, start=start, check=False)
            for key, payload in records:
                found.append((key, bytes(payload) if check else b""))
                if len(found) == _RECORDS:
                    break
        yield found
        start = found[-1][0] + b"\0" if len(found) == _RECORDS else None


class Marker:
    """Marks a store. For one thread: `mark_all`, then `catch_up` before each removal.

    Args:
        rest: how long to rest after each snapshot, in parts of the time that it took.
        ignored: blobs that count as gone already: what a dry run would remove.
    """

    def __init__(self, env: Environment, leases: Leases, ignored: Container[bytes] = (), *, rest: float = 0.0) -> None:
        self._env = env
        self._leases = leases
        self._ignored = ignored
        self._rest = rest
        with env.read() as txn:
            expected = txn.count(Table.EXTENTS) + txn.count(Table.OBJECTS)
        self.live = Marks(expected)
        """Objects and extents in use, and perhaps a few others."""
        self.recipes: set[int] = set()
        """Recipes in use, exactly."""
        self.roots = Roots()
        self._todo: deque[Callable[[Reader], bool]] = deque()
        self._known: set[bytes] = set()
        self._noted = 0

    def mark_all(self, watch: Callable[[int], None] = lambda _: None) -> None:
        """Mark everything that is in use now, and at the time at which this ends.

        Args:
            watch: told how many more blobs were followed.

        Raises:
            CorruptError: a record on the way cannot be read.
        """
        with self._env.read() as txn:
            for _, record in self._leases.roots(txn):
                self.roots.leases += 1
                for layer in record.layers:
                    self._mark_layer(txn, layer.key)
        self._work()
        for batch in batches(self._env, Table.JOBS):
            for key, payload in batch:
                self.roots.jobs += 1
                self._add_recipe(Job.decode(key, memoryview(payload)).recipe)
            self._work()
        for batch in batches(self._env, Table.BLOBS):
            for key, payload in batch:
                if key not in self._ignored:
                    self.roots.blobs += 1
                    self._mark_blob(key, memoryview(payload))
            self._work()
            watch(len(batch))
        self.catch_up()

    def catch_up(self) -> None:
        """Mark what was written since."""
        while True:
            with self._env.read() as txn:
                notes = notes_after(txn, self._noted, _NOTES_AT_ONCE)
                for one in notes:
                    self._mark_noted(txn, one)
            self._work()
            if len(notes) < _NOTES_AT_ONCE:
                return

    def check(self, txn: Reader) -> None:
        """See, in a transaction that is to remove something, that all is marked that was written before it.

        Raises:
            BehindError: it is not.
        """
        if last_note(txn) > self._noted:
            raise BehindError

    def _mark_noted(self, txn: Reader, one: Note) -> None:
        self._noted = one.number
        if one.kind is NoteKind.BLOB:
            payload = txn.get(Table.BLOBS, one.key)
            if payload is not None:
                self._mark_blob(one.key, payload)
        elif one.kind is NoteKind.LAYER:
            self._mark_layer(txn, one.key)
        elif one.kind is NoteKind.OBJECT:
            self._add_object(one.key, with_extents=True)
        else:
            recipe, start = parse_recipe_key(one.key)
            self._todo.append(_Chunks(self, recipe, start, most=1).step)

    def _mark_blob(self, key: bytes, payload: memoryview) -> None:
        record = BlobRecord.decode(payload, str(Digest.from_key(key)))
        # Of one that is in the spool, too: it is on its way into frames, and what is there already stays.
        if record.content is not ContentKind.RECIPE:
            self._add_object(record.object, with_extents=True)
        elif record.size > EXTENT_SIZE:  # the list is what the blob is compared with; its extents are not needed
            self._add_object(record.object, with_extents=False)
        if record.diff_id is not None:
            diff_id = record.diff_id.key
            self._todo.append(lambda txn: self._mark_layer(txn, diff_id))

    def _mark_layer(self, txn: Reader, key: bytes) -> bool:
        payload = txn.get(Table.LAYERS, key)
        if payload is not None:
            self._add_recipe(LayerRecord.decode(payload).recipe)
        return True

    def _add_recipe(self, recipe: int) -> None:
        if recipe and recipe not in self.recipes:
            self.recipes.add(recipe)
            self._todo.append(_Chunks(self, recipe, 0).step)

    def _add_object(self, digest: bytes, *, with_extents: bool) -> None:
        self.live.update((digest,))
        if with_extents and digest not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add(digest)
            self._todo.append(lambda txn: self._mark_object(txn, digest))

    def _mark_object(self, txn: Reader, digest: bytes) -> bool:
        payload = txn.get(Table.OBJECTS, digest)
        if payload is not None:
            self.live.update(extent for _, extent in ObjectRecord.decode(payload, digest.hex()).runs)
        else:
            # It is of one extent, and marked; or its list was swept before it was named, and whoever names it writes
            # the list anew. Then the extents of that have to be marked.
            self._known.discard(digest)
        return True

    def mark_chunk(self, payload: memoryview, name: str) -> int:
        """Mark what a chunk of a recipe names. Returns how many bytes of the tar it covers."""
        ops = decode_chunk(payload, name)
        small, large = references(ops)
        self.live.update(small)
        for digest in large:
            self._add_object(digest, with_extents=True)
        return sum(op.size for op in ops)

    def _work(self) -> None:
        """Follow everything that waits to be followed, in snapshots that are short."""
        while self._todo:
            began = time.monotonic()
            until = began + _SNAPSHOT_S
            with self._env.read() as txn:
                while self._todo and time.monotonic() < until:
                    step = self._todo.popleft()
                    if not step(txn):
                        self._todo.appendleft(step)
            if self._rest:
                time.sleep(self._rest * (time.monotonic() - began))


class _Chunks:
    """Marks the chunks of a recipe, one at each step.

    Args:
        start: where in the tar the first of them begins.
        most: how many of them; 0 for all.
    """

    def __init__(self, marker: Marker, recipe: int, start: int, most: int = 0) -> None:
        self._marker = marker
        self._prefix = recipe_key(recipe, 0)[:8]
        self._start = recipe_key(recipe, start)
        self._left = most

    def step(self, txn: Reader) -> bool:
        """Mark the next one. Returns whether that was the last."""
        found = next(txn.scan_surely(Table.RECIPES, self._prefix, start=self._start), None)
        if found is None:
            return True
        self._marker.mark_chunk(found[1], found[0].hex())
        self._start = found[0] + b"\0"
        self._left -= 1
        return self._left == 0
