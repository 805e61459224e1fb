"""What a pool holds, in figures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.pool import ledger as cell
from pagepool.pool.files import READ, is_held
from pagepool.pool.layout import cost, object_name
from pagepool.pool.residency import resident

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool's account at one moment. Bytes are whole pages, as files take them, but for `content_bytes`.

    Args:
        objects: whole ones.
        content_bytes: of whole objects, exactly.
        bytes: that whole objects take.
        partials: objects being filled.
        partial_bytes: of their extents that are there.
        temporary_bytes: being written just now.
        retired_bytes: removed from their names, and held by somebody.
        used: all of these together, and what is pinned: what the budget is compared with.
        budget: what they may come to.
        hits: calls of `get` that found the object, since the machine booted. Each process tells its own in batches.
        misses: those that did not.
        evictions: objects and partials that had to go, since the machine booted.
        evicted_bytes: what they took.
        protection: what keeps objects from being read when they are wrong at rest: see `pagepool.pool.verity`.
        held_bytes: that whole objects take which somebody has open, and of retired ones; None if not looked at.
        resident_bytes: of whole objects in memory; None if not looked at.
        pinned_bytes: of objects that lost their names, and that an overlay has in use: `pagepool.pool.custody`.
        reserve: bytes of the file system that the pool leaves free.
        effective_budget: the budget, or what of it leaves that reserve.
    """

    objects: int
    content_bytes: int
    bytes: int
    partials: int
    partial_bytes: int
    temporary_bytes: int
    retired_bytes: int
    used: int
    budget: int
    hits: int
    misses: int
    evictions: int
    evicted_bytes: int
    protection: str
    held_bytes: int | None = None
    resident_bytes: int | None = None
    pinned_bytes: int = 0
    reserve: int = 0
    effective_budget: int = 0


def make_stats(
    cells: Sequence[int], protection: str, held: int | None, in_memory: int | None, effective: int
) -> PoolStats:
    """A pool's figures out of its counters.

    Args:
        protection, held, in_memory, effective: see `PoolStats`.
    """
    return PoolStats(
        objects=cells[cell.OBJECTS],
        content_bytes=cells[cell.CONTENT],
        bytes=cells[cell.OBJECT_BYTES],
        partials=cells[cell.PARTIALS],
        partial_bytes=cells[cell.PARTIAL_BYTES],
        temporary_bytes=cells[cell.TEMPORARY_BYTES],
        retired_bytes=cells[cell.RETIRED_BYTES],
        used=cells[cell.USED],
        budget=cells[cell.BUDGET],
        hits=cells[cell.HITS],
        misses=cells[cell.MISSES],
        evictions=cells[cell.EVICTIONS],
        evicted_bytes=cells[cell.EVICTED_BYTES],
        protection=protection,
        held_bytes=None if held is None else held + cells[cell.RETIRED_BYTES],
        resident_bytes=in_memory,
        pinned_bytes=cells[cell.PINNED_BYTES],
        reserve=cells[cell.RESERVE],
        effective_budget=effective,
    )


def inspect_objects(directory: int, digests: Iterable[bytes]) -> tuple[int, int]:
    """Open every object: bytes that somebody holds, and bytes in memory.

    Args:
        directory: descriptor of `objects/`.
        digests: of the objects.
    """
    held = in_memory = 0
    for digest in digests:
        try:
            descriptor = os.open(object_name(digest), READ, dir_fd=directory)
        except FileNotFoundError:
            continue
        try:
            in_memory += resident(descriptor)
            if is_held(descriptor):
                held += cost(os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
    return held, in_memory
