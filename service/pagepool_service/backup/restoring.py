"""Restore a snapshot into an empty data directory, or check it by doing so in a place that is removed again.

Everything is compared: each file with the digest at its end or in its name, each record with its checksum, and in the
end the whole store by fsck. While it is under way the directory's `format` says so, which no service takes; it gets its
right words last. What cannot be read is left out, and named, with the images that it concerns.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.digest import new_hasher
from pagepool.errors import BusyError, CorruptError, StoreFormatError
from pagepool.extents import FrameHead
from pagepool.linux import sync_directory
from pagepool_service.backup.repository import BackupInvalidError, parse_digest, read_piece, writing
from pagepool_service.backup.segments import decode_segment
from pagepool_service.store.checks.naming import name_record
from pagepool_service.store.disk import why_gone
from pagepool_service.store.environment import FORMAT_VERSION, Environment, Table
from pagepool_service.store.fsck import Report, check_store
from pagepool_service.store.locking import is_beside, lock_data
from pagepool_service.store.recount import recount_totals
from pagepool_service.store.schema import Location
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pagepool_service.backup.repository import Repository, SegmentEntry, Snapshot
    from pagepool_service.backup.segments import Record
    from pagepool_service.store.environment import Writer

UNFINISHED = "pagepool store, being restored"
_BATCH = 16 << 20  # bytes of records in one transaction


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of a backup that is damaged or missing.

    Args:
        path: of the file.
        reason: what is wrong with it.
        held: which records it held, in words.
    """

    path: str
    reason: str
    held: str


@dataclass(slots=True)
class Restored:
    """What a restore did.

    Args:
        records: how many were restored, each compared with its checksum.
        files: how many files of the backup were read, each compared with its digest.
        size: bytes of these.
        damage: files that could not be read.
        report: what fsck says of the store that was made.
    """

    records: int = 0
    files: int = 0
    size: int = 0
    damage: list[Damage] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    @property
    def clean(self) -> bool:
        """Whether everything is there, and right."""
        return not self.damage and self.report.clean


def restore(
    repository: Repository,
    snapshot: Snapshot,
    data: Path,
    *,
    partial: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Restored:
    """Restore a snapshot. Blocks, for as long as reading it, writing it, and reading that again takes.

    Args:
        data: an empty directory (but for what `is_beside` a store), or one that is not there; or what an earlier
            restore has left unfinished.
        partial: keep what could be restored of a damaged backup; without it, nothing is left.
        progress: told of the bytes that were read of the backup.

    Raises:
        BackupInvalidError: the directory is not empty.
        BusyError: another restore, or a service, has the directory.
        StoreFormatError: the snapshot is of another format of the store.
        StoreFullError, ReadOnlyError: the directory does not take it; nothing is left.
    """
    if snapshot.store_format != FORMAT_VERSION:
        raise StoreFormatError(
            f"the snapshot is of store format {snapshot.store_format}; this pagepool writes format {FORMAT_VERSION}"
        )
    with _locked(data):
        _prepare(data)
        restoring = _Restoring(repository, snapshot, data, progress)
        try:
            restoring.run()
            restoring.done.report = check_store(data)
            if restoring.done.clean or partial:
                with writing(data):
                    _stamp(data, f"pagepool store {FORMAT_VERSION}")
                return restoring.done
        except BaseException:
            _clear(data)
            raise
        _clear(data)
        return restoring.done


def check_snapshot(
    repository: Repository,
    snapshot: Snapshot,
    scratch: Path,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Restored:
    """Restore a snapshot into a directory that is removed again.

    Args:
        scratch: where that directory is made; it needs the room of the whole store.

    Raises:
        StoreFullError, ReadOnlyError: there is no room.
    """
    with writing(scratch):
        place = Path(tempfile.mkdtemp(prefix="pagepool-check-", dir=scratch))
    try:
        return restore(repository, snapshot, place / "data", progress=progress)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Hold the lock of a data directory: what another restore has not finished would be taken for one that was cut off.

    Its file goes if nothing was restored.
    """
    _refuse_full(data)
    with writing(data):
        descriptor = lock_data(data, read_only=False)
    assert descriptor is not None, "it is not read-only"
    if gone := why_gone(data, descriptor):  # whoever had it has just taken it away
        os.close(descriptor)
        raise BusyError(gone)
    try:
        yield
    finally:
        if not (data / "format").exists():
            (data / "lock").unlink(missing_ok=True)
        os.close(descriptor)


def _refuse_full(data: Path) -> bool:
    """Refuse a directory that holds other things. Returns whether it holds what a restore has left unfinished."""
    names = [path.name for path in data.iterdir()] if data.is_dir() else []
    found = sorted(name for name in names if not is_beside(name) and name != "lock")
    if not found:
        return False
    stamp = data / "format"
    if not stamp.is_file() or stamp.read_text(errors="replace").strip() != UNFINISHED:
        raise BackupInvalidError(str(data), f"it is not empty: it holds {found[0]!r}. Restore into an empty one")
    return True


def _prepare(data: Path) -> None:
    """Make the directories of a store, marked as unfinished."""
    if _refuse_full(data):
        _clear(data)
    with writing(data):
        _stamp(data, UNFINISHED)
        for name in ("store", "uploads", "spool"):
            (data / name).mkdir(exist_ok=True)


def _stamp(data: Path, text: str) -> None:
    fresh = data / f"format.{os.getpid()}"
    with fresh.open("w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(data / "format")
    sync_directory(data)
    with suppress(OSError):  # a parent that we may not read; it was there before us, mostly
        sync_directory(data.parent)


def _clear(data: Path) -> None:
    """Take away what a restore has made. The mark goes last."""
    for name in ("store", "uploads", "spool"):
        shutil.rmtree(data / name, ignore_errors=True)
    for path in (*data.glob("format.*"), data / "format"):
        path.unlink(missing_ok=True)


class _Restoring:
    """One restore under way."""

    def __init__(self, repository: Repository, snapshot: Snapshot, data: Path, progress: Callable[[int], None]) -> None:
        self._repository = repository
        self._snapshot = snapshot
        self._data = data
        self._progress = progress
        self.done = Restored()

    def run(self) -> None:
        """Bring everything in."""
        with Environment.open(self._data / "store") as env:
            for table in Table:
                entries = self._snapshot.tables.get(table.label, [])
                for batch in _batches(self._records(table, entries)):
                    with env.write() as txn:
                        _put(txn, table, batch)
            with env.write() as txn:
                recount_totals(txn, _kept_totals(txn)).store(txn)
        with writing(self._data):
            sync_directory(self._data / "store")
        for entry in self._snapshot.spool:
            path = self._repository.spool_path(entry.digest)
            try:
                self._bring_file(path, entry.digest)
            except (OSError, CorruptError) as error:
                self._damaged(path, error, f"blob {entry.digest}")
        with writing(self._data):
            sync_directory(self._data / "spool")

    def _records(self, table: Table, entries: Iterable[SegmentEntry]) -> Iterator[Record]:
        for entry in entries:
            path = self._repository.segment_path(entry.name)
            try:
                raw = path.read_bytes()
                found, records = decode_segment(raw, entry.name)
                if found is not table:
                    raise CorruptError("segment", entry.name, f"it is of table {found.label}, not {table.label}")
            except (OSError, CorruptError) as error:
                first, last = (name_record(table, bytes.fromhex(key)) for key in (entry.first, entry.last))
                held = f"{entry.records} of {table.label}, from {' '.join(first)} to {' '.join(last)}"
                self._damaged(path, error, held)
                continue
            self._count(len(raw))
            self.done.records += len(records)
            yield from records

    def _bring_file(self, path: Path, digest: str) -> None:
        expected = parse_digest(digest)
        hasher = new_hasher(expected.algorithm)
        target = self._data / "spool" / path.name
        size = 0
        try:
            with path.open("rb") as source, writing(self._data), target.open("wb") as file:
                while piece := read_piece(source, digest):
                    hasher.update(piece)
                    size += file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            if hasher.digest() != expected.raw:
                raise CorruptError("blob", digest, "its bytes have another digest")
        except CorruptError:
            target.unlink()
            raise
        self._count(size)

    def _count(self, size: int) -> None:
        self.done.files += 1
        self.done.size += size
        self._progress(size)

    def _damaged(self, path: Path, error: OSError | CorruptError, held: str) -> None:
        reason = error.reason if isinstance(error, CorruptError) else error.strerror or str(error)
        self.done.damage.append(Damage(str(path), reason, held))


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _put(txn: Writer, table: Table, batch: Iterable[Record]) -> None:
    for record in batch:
        payload = bytes(record.payload)
        if not txn.append(table, record.key, payload):
            txn.put(table, record.key, payload)
        if table is Table.FRAMES:
            _index(txn, record.key, record.payload)


def _index(txn: Writer, key: bytes, payload: memoryview) -> None:
    """Put a frame's extents into the index: of one that is in several, the place where it was stored last.

    It was stored again because the copy before was found wrong, or lost from the index.
    """
    number = int.from_bytes(key, "big")
    head, _ = FrameHead.decode(payload, str(number))
    offset = 0
    for digest, size in head.extents:
        txn.put(Table.EXTENTS, digest, Location(number, offset, size).encode())
        offset += size


def _kept_totals(txn: Writer) -> Totals:
    try:
        return Totals.load(txn)
    except CorruptError:  # they were damaged when the backup was taken
        return Totals()
