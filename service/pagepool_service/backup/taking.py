"""Take a backup of a store that is being written to.

Two passes. The first one goes through the tables in short transactions, a segment in each, and writes the segments that
are not there yet: nearly all bytes, for as long as that takes, while nothing is pinned. It is repeated while it finds
much that is new. The second one goes through all tables in one snapshot, reading keys and checksums alone, and writes
only the segments that changed since; so the backup is of one transaction, and that lasts as long as looking at every
record takes, not as long as copying them.

Files of blobs in the spool are copied before, and opened in that snapshot, which they may be settled and removed after.

What is damaged in the store is left out, and told; the segments of earlier backups are what has it still.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO

from pagepool.digest import Digest, new_hasher
from pagepool.errors import BusyError, CorruptError, InvalidError
from pagepool.version import __version__
from pagepool_service.backup.repository import Repository, SegmentEntry, Snapshot, SpoolEntry, read_piece
from pagepool_service.backup.segments import KEPT, cut_segment, encode_segment, file_size, name_segment
from pagepool_service.store.checks.naming import name_record
from pagepool_service.store.environment import CHECKSUM_SIZE, FORMAT_VERSION, Table
from pagepool_service.store.schema import BlobRecord, ContentKind
from pagepool_service.store.store import Store, check_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool_service.backup.segments import Entry
    from pagepool_service.store.environment import Reader

_BULK = (Table.FRAMES, Table.RECIPES, Table.OBJECTS)
_MOST_PASSES = 4
_ENOUGH = 64 << 20  # bytes of new segments that one snapshot may be held for
_MOST_OPEN = 256  # files of the spool that are open at a time
_TRIES = 8


class _LateError(Exception):
    """The spool changed under the last pass, which has to be made again."""


def take_backup(data: Path, repository: Repository, progress: Callable[[int], None] = lambda _: None) -> str:
    """Take a backup of a data directory. Blocks. Returns the id of the snapshot, which is durable.

    Args:
        repository: open for writing.
        progress: told of bytes that were looked at, in the first pass over each table.

    Raises:
        StoreFormatError: it is no data directory, or of another format.
        StoreFullError, ReadOnlyError: the backup cannot be written; what it had before is whole.
        BusyError: blobs come and go so quickly that no snapshot of them could be taken.
        CorruptError: pages of the store's database are damaged.
    """
    check_there(data)
    with Store.open(data, readonly=True, shared=True) as store:
        return _Taking(store, repository, progress).run()


class _Taking:
    """One backup under way."""

    def __init__(self, store: Store, repository: Repository, progress: Callable[[int], None]) -> None:
        self._store = store
        self._env = store.env
        self._repository = repository
        self._progress = progress
        self._damaged: dict[Table, set[bytes]] = defaultdict(set)
        self._bad_files: set[Digest] = set()
        self._written: Counter[str] = Counter()

    def run(self) -> str:
        """Both passes."""
        for number in range(_MOST_PASSES):
            before = self._written["bytes"]
            for table in _BULK:
                self._copy_ahead(table, tell=number == 0)
            self._copy_spool()
            if self._written["bytes"] - before < _ENOUGH:
                break
        for _ in range(_TRIES):
            try:
                return self._finish()
            except _LateError:
                self._copy_spool()
        raise BusyError("blobs come and go too quickly to be backed up: try again")

    # -- segments --------------------------------------------------------------------------------------------

    def _copy_ahead(self, table: Table, *, tell: bool) -> None:
        start: bytes | None = b""
        while start is not None:
            with self._env.read() as txn:
                entries, start = self._next(txn, table, start)
            if tell:
                self._progress(sum(entry.size for entry in entries))

    def _next(self, txn: Reader, table: Table, start: bytes) -> tuple[list[Entry], bytes | None]:
        """Cut the next segment, and write it if it is not there. Damaged records are left out of it."""
        while True:
            entries, following = cut_segment(txn, table, start, frozenset(self._damaged[table]))
            _check_order(table, entries)
            path = self._repository.segment_path(name_segment(table, entries))
            if not entries or self._repository.has(path, file_size(entries)):
                return entries, following
            try:
                self._written["bytes"] += self._repository.add(path, encode_segment(txn, table, entries))
            except CorruptError as error:
                self._damaged[table].add(bytes.fromhex(error.name))
                continue
            self._written["segments"] += 1
            self._written["records"] += len(entries)
            return entries, following

    def _finish(self) -> str:
        tables: dict[str, list[SegmentEntry]] = {}
        counts: Counter[str] = Counter()
        with ExitStack() as files:
            with self._env.read() as txn:
                created, transaction = time.time_ns(), txn.version
                for table in KEPT:
                    tables[table.label] = list(self._segments(txn, table))
                    counts[table.label] = sum(entry.records for entry in tables[table.label])
                spool, late = self._open_spool(txn, files)
            for digest, file in late.items():
                self._copy_file(digest, file)
        listed = [SpoolEntry(str(digest), size) for digest, size in spool.items() if digest not in self._bad_files]
        found = [name_record(table, key) for table, keys in self._damaged.items() for key in keys]
        found += [("blob", str(digest)) for digest in self._bad_files & spool.keys()]
        statistics = {**counts, **{f"written_{name}": number for name, number in self._written.items()}}
        data = str(self._store.data.absolute())
        return self._repository.save(
            Snapshot(created, FORMAT_VERSION, __version__, data, transaction, tables, listed, found, statistics)
        )

    def _segments(self, txn: Reader, table: Table) -> Iterator[SegmentEntry]:
        start: bytes | None = b""
        while start is not None:
            entries, start = self._next(txn, table, start)
            if entries:
                name, size = name_segment(table, entries), file_size(entries)
                yield SegmentEntry(name, len(entries), size, entries[0].key.hex(), entries[-1].key.hex())

    # -- the spool -------------------------------------------------------------------------------------------

    def _copy_spool(self) -> None:
        """Copy the files of blobs that are in the spool now, as far as they stay."""
        with self._env.read() as txn:
            spooled = _spooled(txn)
        for digest, size in spooled.items():
            if self._repository.has(self._repository.spool_path(str(digest)), size) or digest in self._bad_files:
                continue
            try:
                with self._store.blobs.spool_path(digest).open("rb") as file:
                    self._copy_file(digest, file)
            except FileNotFoundError:
                continue  # settled, or removed
            except OSError:  # of that file, or its disk: what is written has errors of its own
                self._bad_files.add(digest)

    def _open_spool(self, txn: Reader, files: ExitStack) -> tuple[dict[Digest, int], dict[Digest, BinaryIO]]:
        """The blobs in the spool, by their sizes, and the files of those that are not in the backup yet.

        Raises:
            _LateError: a file went away, or too many came.
        """
        late: dict[Digest, BinaryIO] = {}
        spooled = _spooled(txn)
        for digest, size in spooled.items():
            if self._repository.has(self._repository.spool_path(str(digest)), size) or digest in self._bad_files:
                continue
            path = self._store.blobs.spool_path(digest)
            try:
                late[digest] = files.enter_context(path.open("rb"))
            except FileNotFoundError:
                if self._is_still(digest, bytes(txn.get(Table.BLOBS, digest.key) or b"")):
                    self._bad_files.add(digest)
                    continue
                raise _LateError from None
            if len(late) > _MOST_OPEN:
                raise _LateError
        return spooled, late

    def _is_still(self, digest: Digest, seen: bytes) -> bool:
        """Whether a blob has the same record in the newest transaction, and not that of another push: then its file,
        which outlives the record that says it is in the spool, is lost."""
        with self._env.read() as txn:
            return bytes(txn.get(Table.BLOBS, digest.key) or b"") == seen

    def _copy_file(self, digest: Digest, file: BinaryIO) -> None:
        def pieces() -> Iterator[bytes]:
            hasher = new_hasher(digest.algorithm)
            while piece := read_piece(file, str(digest)):
                hasher.update(piece)
                yield piece
            if hasher.digest() != digest.raw:
                raise CorruptError("blob", str(digest), "its file in the spool has another digest")

        try:
            self._written["bytes"] += self._repository.add(self._repository.spool_path(str(digest)), pieces())
            self._written["files"] += 1
        except CorruptError:
            self._bad_files.add(digest)


def _check_order(table: Table, entries: list[Entry]) -> None:
    """Damaged pages show as keys out of order: a table would be read in circles."""
    if any(one.key >= other.key for one, other in pairwise(entries)):
        raise CorruptError("database", table.label, "the keys of the table are not in order")


def _spooled(txn: Reader) -> dict[Digest, int]:
    """The blobs in the spool, and their sizes. A damaged record is told elsewhere."""
    found: dict[Digest, int] = {}
    for key, value in txn.scan(Table.BLOBS, check=False):
        if len(value) <= CHECKSUM_SIZE or value[0] != ContentKind.SPOOL:
            continue
        try:
            digest = Digest.from_key(key)
            payload = txn.get(Table.BLOBS, key)
        except (CorruptError, InvalidError):
            continue
        if payload is not None:
            found[digest] = BlobRecord.decode(payload, str(digest)).size
    return found
