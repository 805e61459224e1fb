"""A directory of backups: segments and blobs' files that snapshots share, and the snapshots.

    format                the line `pagepool backup 1`
    lock                  held with flock: exclusively by who writes, shared by who reads
    segments/ab/NAME      records (`segments`)
    spool/ALGORITHM-HEX   blobs that were not in the database yet, as they came
    snapshots/ID.json     what belongs to one backup; ID is its time, and the beginning of the BLAKE3 of the file
    tmp/                  files being written

Every file is written under another name, synced, and renamed; a snapshot comes last, after the directories of all that
it names were synced. So at any moment every snapshot that is there is whole. What a run that was ended has left, in
`tmp` or without a snapshot, is used or removed by the next one.

Byte by byte in docs/format/backup.md.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blake3 import blake3

from pagepool.digest import Digest
from pagepool.errors import (
    BusyError,
    CorruptError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
    StoreFormatError,
    StoreFullError,
)
from pagepool.linux import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VERSION = 1
_STAMP = f"pagepool backup {VERSION}"
_DIRECTORIES = ("segments", "spool", "snapshots", "tmp")
_ID_DIGITS = 16
_PIECE = 1 << 20


class SnapshotUnknownError(NotFoundError):
    """No such snapshot in a directory of backups."""

    what = "snapshot"


class BackupInvalidError(InvalidError):
    """A directory that cannot be what it was given as."""

    what = "directory"


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment that a snapshot names: how many records it has, bytes of its file, its first and last key in hex."""

    name: str
    records: int
    size: int
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """A blob's file that a snapshot names."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One backup.

    Args:
        created_ns: Unix time of the transaction that it shows.
        store_format: format version of the store.
        program: version of pagepool that took it.
        source: the data directory.
        transaction: number of the store's last transaction in it.
        tables: the segments of each table, in the order of their keys.
        spool: blobs that were not in the database.
        damaged: kind and name of records that were damaged in the store, and are not in the backup.
        statistics: what is in it, and what taking it wrote.
    """

    created_ns: int
    store_format: int
    program: str
    source: str
    transaction: int
    tables: dict[str, list[SegmentEntry]] = field(default_factory=dict)
    spool: list[SpoolEntry] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    statistics: dict[str, int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The file: JSON."""
        values = asdict(self)
        values["tables"] = {
            name: [[e.name, e.records, e.size, e.first, e.last] for e in entries]
            for name, entries in self.tables.items()
        }
        values["spool"] = [[entry.digest, entry.size] for entry in self.spool]
        return json.dumps({"format": VERSION, **values}, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, raw: bytes, name: str) -> Snapshot:
        """Read it back.

        Raises:
            CorruptError: it is none.
            StoreFormatError: it is of another version.
        """
        try:
            values: dict[str, Any] = json.loads(raw)
            version = values.pop("format")
            if version != VERSION:
                raise StoreFormatError(f"snapshot {name} has format {version}; this pagepool reads {VERSION}")
            tables = {table: [SegmentEntry(*entry) for entry in found] for table, found in values["tables"].items()}
            spool = [SpoolEntry(*entry) for entry in values["spool"]]
            damaged = [(kind, record) for kind, record in values["damaged"]]
            return cls(**{**values, "tables": tables, "spool": spool, "damaged": damaged})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError("snapshot", name, f"it cannot be read: {error}") from error

    @property
    def size(self) -> int:
        """Bytes of all files that it names."""
        entries = (entry for found in self.tables.values() for entry in found)
        return sum(entry.size for entry in entries) + sum(entry.size for entry in self.spool)

    @property
    def records(self) -> int:
        """How many records it has."""
        return sum(entry.records for found in self.tables.values() for entry in found)

    @property
    def created(self) -> str:
        """When it was taken, ISO 8601."""
        return datetime.fromtimestamp(self.created_ns / 1e9, UTC).isoformat(timespec="seconds")


class Repository:
    """A directory of backups. Open it with `open_repository`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._touched: set[Path] = set()

    # -- files -----------------------------------------------------------------------------------------------

    def segment_path(self, name: str) -> Path:
        """Where a segment is."""
        return self.path / "segments" / name[:2] / name

    def spool_path(self, digest: str) -> Path:
        """Where a blob's file is."""
        return self.path / "spool" / digest.replace(":", "-", 1)

    def has(self, path: Path, size: int) -> bool:
        """Whether a file is there, of the size that it must have: files get their names when they are whole.

        Its name is durable after `sync`: a run that was ended may have left it before it came to that.
        """
        try:
            found = path.stat().st_size == size
        except FileNotFoundError:
            return False
        if found:
            self._touched |= {path.parent, path.parent.parent}
        return found

    def add(self, path: Path, pieces: Iterable[bytes]) -> int:
        """Write a file, synced, and give it its name. Returns its bytes. Its name is durable after `sync`.

        Raises:
            StoreFullError, ReadOnlyError: the disk does not take it; nothing is left.
            whatever `pieces` raises; nothing is left.
        """
        temporary = self.path / "tmp" / path.name
        size = 0
        with writing(self.path):
            try:
                with temporary.open("wb") as file:
                    for piece in pieces:
                        size += file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                path.parent.mkdir(exist_ok=True)
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        self._touched |= {path.parent, path.parent.parent}
        return size

    def sync(self) -> None:
        """Make the names of all files that were added durable."""
        with writing(self.path):
            for directory in sorted(self._touched):
                sync_directory(directory)
        self._touched.clear()

    # -- snapshots -------------------------------------------------------------------------------------------

    def list_snapshots(self) -> list[str]:
        """The ids of all snapshots, oldest first."""
        return sorted(path.stem for path in (self.path / "snapshots").glob("*.json"))

    def load(self, snapshot: str) -> Snapshot:
        """Read a snapshot.

        Raises:
            SnapshotUnknownError: there is none of that id.
            CorruptError: it is damaged; names the file.
        """
        path = self.path / "snapshots" / f"{snapshot}.json"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            known = self.list_snapshots()
            raise SnapshotUnknownError(f"{snapshot} in {self.path} (it has {', '.join(known) or 'none'})") from None
        if blake3(raw).hexdigest()[:_ID_DIGITS] != snapshot.rpartition("-")[2]:
            raise CorruptError("snapshot", str(path), "its bytes do not have the digest in its name")
        return Snapshot.decode(raw, str(path))

    def save(self, snapshot: Snapshot) -> str:
        """Write a snapshot, after all it names. On return it is durable. Returns its id."""
        self.sync()
        raw = snapshot.encode()
        moment = datetime.fromtimestamp(snapshot.created_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        name = f"{moment}-{blake3(raw).hexdigest()[:_ID_DIGITS]}"
        self.add(self.path / "snapshots" / f"{name}.json", [raw])
        self.sync()
        return name

    def forget(self, keep: int, taken: str = "") -> tuple[list[str], int]:
        """Remove all snapshots but the newest `keep`, and then the files that none names.

        A snapshot that cannot be read keeps all files: nobody knows what it names.

        Args:
            taken: the id of the one that was just taken. It is the newest, whatever the machine's clock says: that may
                have been set back since the others.

        Returns:
            the ids that were removed, and the bytes that this has freed.
        """
        known = sorted(self.list_snapshots(), key=lambda name: (name == taken, name))
        gone = known[: max(0, len(known) - keep)]
        with writing(self.path):
            for name in gone:
                (self.path / "snapshots" / f"{name}.json").unlink()
            sync_directory(self.path / "snapshots")
        return gone, self._remove_unnamed()

    def _remove_unnamed(self) -> int:
        named: set[Path] = set()
        for name in self.list_snapshots():
            snapshot = self.load(name)
            named |= {self.segment_path(entry.name) for found in snapshot.tables.values() for entry in found}
            named |= {self.spool_path(entry.digest) for entry in snapshot.spool}
        freed = 0
        found = [*(self.path / "segments").glob("??/*"), *(self.path / "spool").iterdir()]
        with writing(self.path):
            for path in found:
                if path not in named:
                    freed += path.stat().st_size
                    path.unlink()
        return freed

    def sweep(self) -> None:
        """Remove what a run that was ended has left half written."""
        for path in (self.path / "tmp").iterdir():
            if path.is_dir():  # a store that was made to verify a snapshot
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


@contextmanager
def open_repository(path: Path, *, write: bool) -> Iterator[Repository]:
    """Open a directory of backups for the length of a block; with `write` made if it is not there, and ours alone.

    Raises:
        StoreFormatError: it is something else, or of another version.
        BusyError: somebody else uses it.
        StoreFullError, ReadOnlyError: it cannot be made.
    """
    if write:
        _make(path)
    _check(path)
    with writing(path):
        descriptor = os.open(path / "lock", (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{path} is in use: a backup is being taken, or restored") from None
        repository = Repository(path)
        if write:
            repository.sweep()
        yield repository
    finally:
        os.close(descriptor)


def _make(path: Path) -> None:
    if (path / "format").exists():
        return
    foreign = (
        [entry.name for entry in path.iterdir() if entry.name not in (*_DIRECTORIES, "lock")] if path.is_dir() else []
    )
    if foreign:
        raise StoreFormatError(f"{path} is no directory of backups, and not empty: it holds {sorted(foreign)[0]!r}")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        for name in _DIRECTORIES:
            (path / name).mkdir(exist_ok=True, mode=0o700)
        with (path / "lock").open("a"):
            pass
        stamp = path / "tmp" / "format"
        with stamp.open("w") as file:
            file.write(f"{_STAMP}\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path)
        stamp.rename(path / "format")
        sync_directory(path)
        with suppress(OSError):  # a parent that we may not read
            sync_directory(path.parent)


def _check(path: Path) -> None:
    try:
        text = (path / "format").read_text(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreFormatError(f"{path} is no directory of backups") from None
    except OSError as error:
        raise ReadOnlyError(f"{path / 'format'}: {error.strerror}") from error
    if text != _STAMP:
        raise StoreFormatError(f"{path / 'format'} says {text[:60]!r}; this pagepool reads {_STAMP!r}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong with files below `path` within the block, in our own words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFullError(f"no space left on the disk under {path}") from error
        raise ReadOnlyError(f"{error.filename or path}: {error.strerror}") from error


def read_piece(source: BinaryIO, digest: str) -> bytes:
    """The next bytes of a blob's file. That its disk does not read them is no failure of the disk that is written to.

    Raises:
        CorruptError: they cannot be read.
    """
    try:
        return source.read(_PIECE)
    except OSError as error:
        raise CorruptError("blob", digest, error.strerror or str(error)) from error


def check_apart(data: Path, path: Path) -> None:
    """Refuse a directory of backups in the data directory, and the other way round.

    Raises:
        BackupInvalidError: the one lies in the other.
    """
    inner, outer = path.resolve(), data.resolve()
    if inner == outer or outer in inner.parents:
        raise BackupInvalidError(str(path), f"it lies in the data directory {data}: a backup belongs elsewhere")
    if inner in outer.parents and (path / "format").exists() and (path / "segments").exists():
        raise BackupInvalidError(str(data), f"it lies in the directory of backups {path}")


def parse_digest(text: str) -> Digest:
    """A digest that a snapshot has.

    Raises:
        CorruptError: it is none.
    """
    try:
        return Digest.parse(text)
    except InvalidError as error:
        raise CorruptError("snapshot", text, str(error)) from error
