"""Save what can be saved of a database whose own pages are damaged, into a new one.

The tables are read along their trees as far as these hold, and then every page that no tree leads to, and that is not
free, is looked at for records: a record's checksum tells which table it belongs to, and that it is whole. The new
database takes the place of the old one by one rename(2); the old one goes into the quarantine. Nobody may have the
store open.

Records that only turn up on pages without a tree may be of a state that has passed, if the list of free pages is
damaged, too: something that was deleted may then come back.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool.linux import sync_directory
from pagepool_service.repair.bits import is_sound
from pagepool_service.repair.context import Action
from pagepool_service.repair.lmdbfile import SUBTREE, DatabaseFile
from pagepool_service.store.environment import FORMAT_VERSION, Environment, Table
from pagepool_service.store.recount import recount_totals
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from pagepool_service.repair.quarantine import Quarantine
    from pagepool_service.store.environment import Writer

_BATCH = 16 << 20
_MARGIN = 1000  # numbers that are left out when it is not known which have been used

Found = tuple[Table, bytes, bytes]
"""A record: its table, key, and value with its checksum."""


def salvage(data: Path, quarantine: Quarantine, *, dry_run: bool, tell: Callable[[str], None]) -> list[Action]:
    """Make a new database of what can be read of the old one. Blocks; needs the room of a second one.

    Raises:
        StoreFullError: there is none. The old one is as it was.
    """
    if dry_run:
        how = "what can be read of it would be copied to a new one, and the old one kept"
        return [Action("database", "data.mdb", "set aside", how)]
    fresh = data / "store.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with DatabaseFile(data / "store" / "data.mdb") as file, Environment.open(fresh) as env:
            tell("saving the database")
            counts = _copy(file, env, tell)
            bad = len(file.bad)
        old = data / "store" / "data.mdb"
        kept = quarantine.keep_file(old, "store")
        with (fresh / "data.mdb").open("rb") as made:
            os.fsync(made.fileno())
        # Readers' slots and locks are of the old file.
        (data / "store" / "lock.mdb").unlink(missing_ok=True)
        (fresh / "data.mdb").rename(old)
        sync_directory(data / "store")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    how = f"{counts['kept']} records were saved into a new one, {counts['apart']} of them from pages without a tree"
    how += f"; {bad} pages could not be read"
    if counts["stale"]:
        how += "; what was deleted lately may have come back"
    entry = {"kind": "database", "name": "data.mdb", "reason": how, "outcome": "set aside", "files": [kept]}
    quarantine.note(entry)
    return [Action("database", "data.mdb", "set aside", how)]


def _copy(file: DatabaseFile, env: Environment, tell: Callable[[str], None]) -> Counter[str]:
    counts: Counter[str] = Counter()
    best = file.metas[0] if file.metas else None
    if best:
        file.mark_free(best.free_root)
    free_known = best is not None and not file.bad
    roots = file.subtrees(best.main_root) if best else {}
    for table in Table:
        tell(f"saving {table.label}")
        root = roots.get(table.label)
        for batch in _batches(_along(file, table, root) if root is not None else ()):
            with env.write() as txn:
                for _, key, value in batch:
                    counts["kept"] += _put(txn, table, key, value)
        if root is None:
            file.bad.add(0)
    if file.bad:
        tell("saving what has no tree")
        for batch in _batches(_apart(file)):
            with env.write() as txn:
                for table, key, value in batch:
                    put = _put(txn, table, key, value)
                    counts["kept"] += put
                    counts["apart"] += put
        counts["stale"] = counts["apart"] and not free_known
    with env.write() as txn:
        txn.put(Table.META, b"format", FORMAT_VERSION.to_bytes(4, "big"))
        _count(txn, lost=bool(file.bad))
    return counts


def _along(file: DatabaseFile, table: Table, root: int) -> Iterator[Found]:
    """A table's records, along its tree: also those that are damaged, which are repaired later."""
    for nodes in file.leaves(root):
        for node in nodes:
            if not node.flags & SUBTREE:
                file.mark_value(node)
                yield table, node.key, file.value(node)


def _apart(file: DatabaseFile) -> Iterator[Found]:
    """Records on pages that no tree leads to."""
    for number in range(2, file.pages):
        if file.seen[number] or file.free[number]:
            continue
        for node in file.nodes_anyhow(number):
            value = file.value(node)
            table = next((table for table in Table if is_sound(table, node.key, value)), None)
            if table is not None:
                file.mark_value(node)
                yield table, node.key, value


def _put(txn: Writer, table: Table, key: bytes, value: bytes) -> int:
    """Store a record, unless a better one is there. Returns how many were stored."""
    if len(key) > _LONGEST_KEY:
        return 0
    there = txn.get_unchecked(table, key)
    if there is not None and not _is_better(table, key, value, bytes(there)):
        return 0
    txn.put_as_is(table, key, value)
    return there is None


def _is_better(table: Table, key: bytes, value: bytes, there: bytes) -> bool:
    """Whether a record is to take the place of another. Of two tags the later one, else the one that has a tree."""
    if not is_sound(table, key, value):
        return False
    return not is_sound(table, key, there) or (table is Table.TAGS and value[:8] > there[:8])


def _count(txn: Writer, *, lost: bool) -> None:
    try:
        known = Totals.load(txn)
    except CorruptError:
        known, lost = Totals(), True
    totals = recount_totals(txn, known)
    if lost:  # records with greater numbers may have been lost, and numbers are never used twice
        totals.next_frame += _MARGIN
        totals.next_recipe += _MARGIN
        totals.next_job += _MARGIN
    totals.store(txn)


def _batches(records: Iterable[Found]) -> Iterator[list[Found]]:
    batch: list[Found] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record[2]) + 64
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_LONGEST_KEY = 511  # LMDB's
