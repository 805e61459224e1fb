"""Count a store's totals anew, from the records themselves.

What repair and restore write in the place of totals that are damaged, or that were counted over other records. Numbers
that come next are never below those that are known to have been used.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool.extents import FrameHead
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import Job, Location, parse_recipe_key
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from pagepool_service.store.environment import Reader


def recount_totals(txn: Reader, least: Totals | None = None) -> Totals:
    """The totals of what one snapshot holds. Looks at the head of every frame, and at the keys of recipes and jobs.

    Args:
        least: its next numbers are not gone below.
    """
    least = least or Totals()
    totals = Totals(least.next_frame, least.next_recipe, least.next_job)
    for key, value in txn.scan(Table.FRAMES, check=False):
        number = int.from_bytes(key, "big")
        totals.next_frame = max(totals.next_frame, number + 1)
        try:
            head, _ = FrameHead.decode(value[:-CHECKSUM_SIZE], str(number))
        except CorruptError:
            continue
        totals.count_frame(head.role, head.plain_size, len(value) - CHECKSUM_SIZE, len(head.extents))
        totals.dead_bytes += sum(size for digest, size in head.extents if not _leads_to(txn, digest, number))
    for key, value in txn.scan(Table.RECIPES, check=False):
        totals.recipes_stored += len(value) - CHECKSUM_SIZE
        try:
            totals.next_recipe = max(totals.next_recipe, parse_recipe_key(key)[0] + 1)
        except struct.error:
            continue
    for key, value in txn.scan(Table.JOBS, check=False):
        try:
            job = Job.decode(key, value[:-CHECKSUM_SIZE])
        except CorruptError:
            continue
        totals.next_job = max(totals.next_job, job.number + 1)
        totals.next_recipe = max(totals.next_recipe, job.recipe + 1)
    return totals


def _leads_to(txn: Reader, digest: bytes, frame: int) -> bool:
    """Whether the index says that an extent lies in a frame."""
    value = txn.get_unchecked(Table.EXTENTS, digest)
    try:
        return value is not None and Location.decode(value[:-CHECKSUM_SIZE]).frame == frame
    except CorruptError:
        return False
