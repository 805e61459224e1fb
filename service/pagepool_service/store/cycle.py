"""The note of a running collection, and what writers tell it.

Owns three kinds of records in `meta`: that a cycle of collection runs (`collecting`), what was written while it runs
(`collecting/NUMBER`), and what the last one did (`collected`).

A cycle marks what is in use in snapshots, and then removes the rest. What becomes needed in between it learns from the
writers: whoever commits a blob's record, a recipe's chunk, an object or a lease says so in the same transaction, as
long as there is a record of a cycle. The collector marks what those need before it removes anything more, and looks, in
each transaction that removes something, whether there is more.

A cycle that was cut off leaves its records; whoever collects next drops them, and begins anew. Nothing depends on them
without a collector.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from pagepool.errors import CorruptError
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import Job, u64
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool_service.store.environment import Reader, Writer

_RUNNING = b"collecting"
_NOTES = b"collecting/"
_LAST_NOTE = _NOTES + b"\xff" * 8
_LAST = b"collected"
_CYCLE = struct.Struct(">QQQ")


class NoteKind(IntEnum):
    """What a note names."""

    BLOB = 1  # by digest key: its record was written
    CHUNK = 2  # by recipe key: it was written
    LAYER = 3  # by digest key: a lease keeps it
    OBJECT = 4  # by BLAKE3: its list of extents was written, or relied on


@dataclass(frozen=True, slots=True)
class Cycle:
    """A cycle that runs.

    Args:
        started_ns: Unix time at which it began; tells it from others.
        frame_limit: frames from this number on are not touched.
        recipe_limit: nor recipes.
    """

    started_ns: int
    frame_limit: int
    recipe_limit: int

    @classmethod
    def running(cls, txn: Reader) -> Cycle | None:
        """The one that runs, or was cut off."""
        payload = txn.get(Table.META, _RUNNING)
        try:
            return None if payload is None else cls(*_CYCLE.unpack(payload))
        except struct.error as error:
            raise CorruptError("meta", _RUNNING.decode(), f"it cannot be read: {error}") from error

    @classmethod
    def begin(cls, txn: Writer, now_ns: int) -> Cycle:
        """Write that one begins. The caller has made sure that there is none."""
        cycle = cls(now_ns, first_untouched(txn), Totals.load(txn).next_recipe)
        txn.put(Table.META, _RUNNING, _CYCLE.pack(now_ns, cycle.frame_limit, cycle.recipe_limit))
        return cycle


@dataclass(frozen=True, slots=True)
class Note:
    """What a writer said: something is needed since the cycle began."""

    number: int
    kind: NoteKind
    key: bytes


def first_untouched(txn: Reader) -> int:
    """The number of the first frame that a cycle which begins now leaves alone."""
    # What a job has stored of a layer, and not named in a chunk yet, is in frames from its floor on.
    floors = [job.floor for job in _jobs(txn) if job.floor]
    return min([Totals.load(txn).next_frame, *floors])


def note(txn: Writer, kind: NoteKind, keys: Iterable[bytes]) -> None:
    """Tell the collector what this transaction makes, or relies on. Costs a look-up while none runs."""
    if not txn.has(Table.META, _RUNNING):
        return
    for number, key in enumerate(keys, last_note(txn) + 1):
        txn.put(Table.META, _NOTES + u64(number), bytes((kind,)) + key)


def is_collecting(txn: Reader) -> bool:
    """Whether a cycle runs, or was cut off."""
    return txn.has(Table.META, _RUNNING)


def last_note(txn: Reader) -> int:
    """The number of the last note; 0 if there is none."""
    found = txn.last(Table.META, _NOTES, _LAST_NOTE)
    return 0 if found is None else int.from_bytes(found[0][len(_NOTES) :], "big")


def notes_after(txn: Reader, number: int, most: int) -> list[Note]:
    """The next notes behind a number, at most so many."""
    found: list[Note] = []
    for key, payload in txn.scan_all(Table.META, _NOTES, start=_NOTES + u64(number + 1)):
        if isinstance(payload, CorruptError):
            raise payload
        where = int.from_bytes(key[len(_NOTES) :], "big")
        found.append(Note(where, NoteKind(payload[0]), bytes(payload[1:])))
        if len(found) == most:
            break
    return found


def drop_notes(txn: Writer, most: int) -> bool:
    """Remove some notes. Returns whether any are left."""
    keys = [note.number for note in notes_after(txn, 0, most)]
    for number in keys:
        txn.delete(Table.META, _NOTES + u64(number))
    return len(keys) == most


def end(txn: Writer, summary: dict[str, Any] | None) -> None:
    """Write that no cycle runs any more.

    Args:
        summary: of what it did; None if it was dropped.
    """
    txn.delete(Table.META, _RUNNING)
    if summary is not None:
        txn.put(Table.META, _LAST, json.dumps(summary, separators=(",", ":")).encode())


def last_summary(txn: Reader) -> dict[str, Any] | None:
    """What the last cycle did; None if there was none, or its record cannot be read."""
    try:
        payload = txn.get(Table.META, _LAST)
        found = None if payload is None else json.loads(bytes(payload))
    except (CorruptError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _jobs(txn: Reader) -> Iterable[Job]:
    return (Job.decode(key, payload) for key, payload in txn.scan(Table.JOBS))
