"""Stores as they are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from tests.faults import records

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pagepool.digest import Digest

# What is made anew from the other tables. Totals are among them: fsck compares these with what it counts.
DERIVED = {Table.EXTENTS, Table.META}


def content(data: Path) -> dict[tuple[Table, bytes], bytes]:
    """All records of a store that is not in use, but those that are derived; and the names of its extents."""
    found = {(table, r.key): r.value for table in Table if table not in DERIVED for r in records(data, table)}
    return found | {(Table.EXTENTS, r.key): b"" for r in records(data, Table.EXTENTS)}


def blobs_of(data: Path, digests: Iterable[Digest]) -> dict[Digest, bytes]:
    """Blobs as a pull reads them."""
    with Store.open(data, readonly=True) as store:
        return {digest: b"".join(store.blobs.read(digest)) for digest in digests}
