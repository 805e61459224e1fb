"""What a snapshotter has written down: snapshots, and the images that some of them are layers of.

One SQLite database. Each change is one transaction, durable on return. A snapshot is *active* or a *view* until it is
committed or removed; *committed* ones are parents of others. One that was *claimed* is a layer of an image that a node
mounts, and has no directory of its own: it says which image, and how many of its layers, this one included.

Thread-safe: one transaction at a time.
"""

from __future__ import annotations

import enum
import json
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import InvalidError, NotFoundError
from pagepool.snapshotter.filters import parse_filters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

TARGET: Final = "containerd.io/snapshot.ref"
"""The label that says which chain of layers is being unpacked."""
_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE images(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    server TEXT NOT NULL,
    repository TEXT NOT NULL,
    manifest TEXT NOT NULL,
    layers INTEGER NOT NULL,
    name TEXT NOT NULL,
    UNIQUE(server, repository, manifest)
);
CREATE TABLE snapshots(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    parent INTEGER REFERENCES snapshots(id),
    labels TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    image INTEGER REFERENCES images(id),
    depth INTEGER NOT NULL DEFAULT 0,
    container INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX children ON snapshots(parent);
CREATE INDEX targets ON snapshots(json_extract(labels, '$."containerd.io/snapshot.ref"'));
"""
_COLUMNS: Final = """
SELECT s.id, s.name, s.kind, p.name, s.labels, s.created_ns, s.updated_ns, s.depth, s.container, s.size, s.inodes,
       i.server, i.repository, i.manifest, i.layers, i.name, i.id
FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent LEFT JOIN images i ON i.id = s.image
"""
_TARGETED: Final = "json_extract(s.labels, '$.\"containerd.io/snapshot.ref\"')"  # as the index has it
_ORDER: Final = "ORDER BY s.image IS NOT NULL, s.id"
"""Of several of a chain containerd takes the first: rather what was unpacked, which needs no service."""


class SnapshotUnknownError(NotFoundError):
    """No such snapshot."""

    what = "snapshot"


class SnapshotExistsError(InvalidError):
    """A snapshot of that name, or of what was to be unpacked, is there already."""

    what = "snapshot"


class SnapshotStateError(InvalidError):
    """A snapshot that is not as it must be for that: of another kind, or with children."""

    what = "snapshot"


class Kind(enum.IntEnum):
    """What a snapshot is, as containerd numbers it."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that a node mounts.

    Args:
        server: the address of its service, as references name it.
        repository: where it is there.
        manifest: digest of its manifest, one platform's.
        layers: how many it has.
        name: what it was called when it was seen first; for people.
        id: the number of the record; 0: it has none yet.
    """

    server: str
    repository: str
    manifest: str
    layers: int
    name: str
    id: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot.

    Args:
        id: its number, which is never used again.
        name: as containerd calls it.
        kind: what it is.
        parent: name of its parent, or "".
        labels: what containerd has noted.
        created_ns, updated_ns: Unix time, nanoseconds.
        image: of one that was claimed, the image; else None.
        depth: of one that was claimed, how many layers of the image, this one included.
        container: whether a node's mount has it as upper, or had.
        size, inodes: what it takes, of one that is committed.
    """

    id: int
    name: str
    kind: Kind
    parent: str
    labels: Mapping[str, str]
    created_ns: int
    updated_ns: int
    image: ImageRecord | None = None
    depth: int = 0
    container: bool = False
    size: int = 0
    inodes: int = 0

    def get(self, path: tuple[str, ...]) -> str | None:
        """What it has in a field, for filters."""
        if path[0] == "labels":
            return self.labels.get(".".join(path[1:]))
        return {"kind": self.kind.name.lower(), "name": self.name, "parent": self.parent}.get(path[0])


@dataclass(slots=True)
class Created:
    """A snapshot that is being written down.

    Args:
        id: its number.
        ancestors: its parent, the parent of that, and so on.
    """

    id: int
    ancestors: Sequence[Snapshot] = field(default_factory=tuple)


class Catalogue:
    """The records of a snapshotter. Close it.

    Args:
        path: the database; made if it is not there.

    Raises:
        InvalidError: it was written by another version, or is no database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except OSError:
            self._database.close()
            raise
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise InvalidError(str(path), f"it cannot be used: {error}") from error

    def _prepare(self) -> None:
        self._database.execute("PRAGMA foreign_keys = ON")
        self._database.execute("PRAGMA synchronous = FULL")
        # The journal keeps its place on the disk: what is removed when that is full needs one.
        self._database.execute("PRAGMA journal_mode = PERSIST")
        with self._transaction() as database:
            version = int(database.execute("PRAGMA user_version").fetchone()[0])
            if version == 0:
                for statement in filter(str.strip, _TABLES.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"its format is {version}, and this version knows {_VERSION}")

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            self._database.close()

    # -- looking ---------------------------------------------------------------------------------------------

    def stat(self, name: str) -> Snapshot:
        """A snapshot.

        Raises:
            SnapshotUnknownError: there is none of that name.
        """
        with self._transaction() as database:
            return _get(database, name)

    def ancestors(self, name: str) -> list[Snapshot]:
        """The parent of a snapshot, the parent of that, and so on.

        Raises:
            SnapshotUnknownError: there is no such snapshot.
        """
        with self._transaction() as database:
            return _chain(database, _get(database, name).parent)

    def find(self, filters: Iterable[str]) -> list[Snapshot]:
        """The snapshots that one of some filters means; all without any.

        Raises:
            FilterInvalidError: a filter cannot be understood.
        """
        is_meant = parse_filters(filters)
        with self._transaction() as database:
            found = [_read(row) for row in database.execute(f"{_COLUMNS} {_ORDER}")]
        return [snapshot for snapshot in found if is_meant(snapshot.get)]

    def find_target(self, target: str, parent: str) -> Snapshot | None:
        """The committed snapshot of a chain upon a parent, if there is one."""
        with self._transaction() as database:
            return _find_target(database, target, parent)

    def images(self) -> list[ImageRecord]:
        """The images that snapshots are layers of."""
        with self._transaction() as database:
            rows = database.execute("SELECT server, repository, manifest, layers, name, id FROM images ORDER BY id")
            return [ImageRecord(*row) for row in rows]

    def has_children(self, name: str) -> bool:
        """Whether a snapshot is the parent of others."""
        with self._transaction() as database:
            return _has_children(database, _get(database, name).id)

    def numbers(self) -> set[int]:
        """The numbers of all snapshots."""
        with self._transaction() as database:
            return {int(row[0]) for row in database.execute("SELECT id FROM snapshots")}

    # -- changing --------------------------------------------------------------------------------------------

    @contextmanager
    def creating(
        self, kind: Kind, name: str, parent: str, labels: Mapping[str, str], *, container: bool = False
    ) -> Iterator[Created]:
        """Write down a new snapshot at the end of the block; nothing if that raises.

        Raises:
            SnapshotUnknownError: there is no such parent.
            InvalidError: the parent is not committed, or the name is empty.
            SnapshotExistsError: one of that name is there.
        """
        with self._transaction() as database:
            _check_new(database, name, parent)
            ancestors = _chain(database, parent)
            if ancestors and ancestors[0].kind is not Kind.COMMITTED:
                raise InvalidError(parent, "it is not committed, and cannot be a parent")
            now = time.time_ns()
            number = database.execute(
                "INSERT INTO snapshots(name, kind, parent, labels, created_ns, updated_ns, container) "
                "VALUES(?, ?, ?, ?, ?, ?, ?)",
                (name, kind, ancestors[0].id if ancestors else None, _encode(labels), now, now, container),
            ).lastrowid
            yield Created(int(number or 0), ancestors)

    def claim(
        self, target: str, parent: str, labels: Mapping[str, str], image: ImageRecord, depth: int
    ) -> tuple[Snapshot, bool]:
        """Write down that a chain of layers is that of an image, if it is not there already.

        Args:
            depth: how many layers of the image the chain has.

        Returns:
            the snapshot that is there now, and whether it was written down just now.
        """
        with self._transaction() as database:
            found = _find_target(database, target, parent)
            if found is not None:
                return found, False
            number = _image_number(database, image)
            above = _get(database, parent).id if parent else None
            now = time.time_ns()
            inserted = database.execute(
                "INSERT INTO snapshots(name, kind, parent, labels, created_ns, updated_ns, image, depth) "
                "VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
                (f"\0{target}", Kind.COMMITTED, above, _encode(labels), now, now, number, depth),
            ).lastrowid
            # By its number, since another parent may have the same chain; nobody gives names like this one.
            name = f"pagepool/{inserted}/{target}"
            database.execute("UPDATE snapshots SET name = ? WHERE id = ?", (name, inserted))
            return _get(database, name), True

    def commit(self, key: str, name: str, labels: Mapping[str, str], size: int, inodes: int) -> None:
        """Make an active snapshot a committed one, under another name.

        Args:
            labels: instead of those it had.
            size, inodes: what it takes.

        Raises:
            SnapshotUnknownError: there is none of that key.
            SnapshotStateError: it is not active.
            SnapshotExistsError: one of that name is there.
        """
        with self._transaction() as database:
            if not name:
                raise InvalidError(name, "a snapshot has a name")
            if database.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)).fetchone():
                raise SnapshotExistsError(name, "it is there already")
            found = _get(database, key)
            if found.kind is not Kind.ACTIVE:
                raise SnapshotStateError(key, "it is not active, and cannot be committed")
            now = time.time_ns()
            database.execute(
                "UPDATE snapshots SET name = ?, kind = ?, labels = ?, created_ns = ?, updated_ns = ?, "
                "size = ?, inodes = ? WHERE id = ?",
                (name, Kind.COMMITTED, _encode(labels), now, now, size, inodes, found.id),
            )

    def update(self, name: str, labels: Mapping[str, str], mask: Sequence[str]) -> Snapshot:
        """Change labels.

        Args:
            labels: new ones.
            mask: ``labels``, or ``labels.NAME``, each; none: all labels.

        Raises:
            SnapshotUnknownError: there is no such snapshot.
            InvalidError: something else was to be changed.
        """
        with self._transaction() as database:
            found = _get(database, name)
            kept = dict(found.labels)
            for path in mask or ("labels",):
                if path == "labels":
                    kept = dict(labels)
                elif path.startswith("labels."):
                    key = path.removeprefix("labels.")
                    kept[key] = labels.get(key, "")
                else:
                    raise InvalidError(path[:256], f"of snapshot {name} only labels can be changed")
            database.execute(
                "UPDATE snapshots SET labels = ?, updated_ns = ? WHERE id = ?",
                (_encode(kept), time.time_ns(), found.id),
            )
            return _get(database, name)

    def remove(self, name: str) -> Snapshot:
        """Remove a snapshot, and an image that no other is a layer of.

        Raises:
            SnapshotUnknownError: there is no such snapshot.
            SnapshotStateError: it has children.
        """
        with self._transaction() as database:
            found = _get(database, name)
            if _has_children(database, found.id):
                raise SnapshotStateError(name, "it has children, and cannot be removed")
            database.execute("DELETE FROM snapshots WHERE id = ?", (found.id,))
            database.execute("DELETE FROM images WHERE id NOT IN (SELECT image FROM snapshots WHERE image IS NOT NULL)")
            return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except sqlite3.OperationalError as error:  # there is no room, or the disk is broken
                raise OSError(f"{self._path}: {error}") from error
            finally:
                if self._database.in_transaction:  # not if SQLite has undone it by itself
                    self._database.execute("ROLLBACK")


def _check_new(database: sqlite3.Connection, name: str, parent: str) -> None:
    if not name:
        raise InvalidError(name, "a snapshot has a name")
    if parent and database.execute("SELECT 1 FROM snapshots WHERE name = ?", (parent,)).fetchone() is None:
        raise SnapshotUnknownError(parent)
    if database.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)).fetchone():
        raise SnapshotExistsError(name, "it is there already")


def _get(database: sqlite3.Connection, name: str) -> Snapshot:
    row = database.execute(f"{_COLUMNS} WHERE s.name = ?", (name,)).fetchone()
    if row is None:
        raise SnapshotUnknownError(name or "''")
    return _read(row)


def _chain(database: sqlite3.Connection, name: str) -> list[Snapshot]:
    found = []
    while name:
        found.append(_get(database, name))
        name = found[-1].parent
    return found


def _find_target(database: sqlite3.Connection, target: str, parent: str) -> Snapshot | None:
    above = _get(database, parent).id if parent else None
    where = f"WHERE {_TARGETED} = ? AND s.parent IS ? AND s.kind = ? {_ORDER} LIMIT 1"
    row = database.execute(f"{_COLUMNS} {where}", (target, above, Kind.COMMITTED)).fetchone()
    return None if row is None else _read(row)


def _image_number(database: sqlite3.Connection, image: ImageRecord) -> int:
    """The number of an image's record, which is made if there is none."""
    key = (image.server, image.repository, image.manifest)
    row = database.execute("SELECT id FROM images WHERE server = ? AND repository = ? AND manifest = ?", key).fetchone()
    if row is not None:
        return int(row[0])
    added = database.execute(
        "INSERT INTO images(server, repository, manifest, layers, name) VALUES(?, ?, ?, ?, ?)",
        (*key, image.layers, image.name),
    )
    return int(added.lastrowid or 0)


def _has_children(database: sqlite3.Connection, number: int) -> bool:
    return database.execute("SELECT 1 FROM snapshots WHERE parent = ?", (number,)).fetchone() is not None


def _read(row: Sequence[Any]) -> Snapshot:
    image = None if row[16] is None else ImageRecord(*row[11:17])
    return Snapshot(
        id=row[0],
        name=row[1],
        kind=Kind(row[2]),
        parent=row[3] or "",
        labels=json.loads(row[4]),
        created_ns=row[5],
        updated_ns=row[6],
        image=image,
        depth=row[7],
        container=bool(row[8]),
        size=row[9],
        inodes=row[10],
    )


def _encode(labels: Mapping[str, str]) -> str:
    # As containerd does it: one without a value is none.
    return json.dumps({key: value for key, value in labels.items() if value}, sort_keys=True)
