"""Repairs, and damage that is more than a bit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool_service.repair.run import Plan, Repaired, repair_store
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from tests.faults import Record, records, replace_record

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable
    from pathlib import Path


# Of any damage: 4 in CI, many before a release. Other tests take their numbers from it.
ROUNDS = int(os.environ.get("PAGEPOOL_REPAIR_ROUNDS", "4"))


def repair(data: Path, **options: object) -> Repaired:
    """`repair_store`, with the parts of a plan."""
    return repair_store(data, Plan(**options))  # type: ignore[arg-type]


def wreck(data: Path, record: Record, randomness: random.Random) -> None:
    """More damage than one bit: sixteen bytes of a record, or all if it has fewer."""
    value = record.value
    at = randomness.randrange(max(1, len(value) - 16))
    size = min(16, len(value))
    replace_record(data, record.table, record.key, value[:at] + randomness.randbytes(size) + value[at + size :])


def wreck_all(data: Path, found: Iterable[Record]) -> None:
    """Damage records so that nothing of them can be used."""
    for record in found:
        replace_record(data, record.table, record.key, record.value[:2] + bytes(len(record.value) - 2))


def file_frames(data: Path) -> list[Record]:
    """The frames that hold files."""
    return [record for record in records(data, Table.FRAMES) if record.value[1] == 0]


def opaque_frames(data: Path, blob: bytes) -> list[Record]:
    """The frames that hold a blob as it came."""
    with Store.open(data, readonly=True) as store, store.env.read() as txn:
        record = store.blobs.record(txn, Digest.of(blob))
        extents = store.extents.object_record(txn, record.object, record.size)
        numbers = {store.extents.frame_of(txn, name).number for _, name in extents.extents()}
    return [record for record in records(data, Table.FRAMES) if int.from_bytes(record.key, "big") in numbers]


def first(data: Path, table: Table, wanted: Callable[[Record], bool] = lambda _: True) -> Record:
    """The first record of a table that is wanted."""
    return next(record for record in records(data, table) if wanted(record))
