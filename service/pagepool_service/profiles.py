"""Start-up profiles: which objects the containers of a tree open first, and which extents of the larger ones they read,
as learned from their starts.

    REPOSITORY/TREE        a profile (docs/format/profile.md); of the repository the BLAKE3 of its name, both in hex

In `DATA/profiles`: what is here was learned and cannot be made again from the store, but nothing depends on it. So a
profile is renamed into place, never synced, and one that cannot be read is as good as none. Bounded: objects of a
profile, extents that it counts, profiles of a repository, bytes in all; those that were not written for longest go
first. Old starts fade: when a profile has `MOST_STARTS`, what it counted is halved.

Not every start tells what it read of an object: one that was on the node already is read by no process of ours. So
each object has a count of the starts that did, beside that of those that opened it.

Any number of processes and threads: writers of a repository wait for each other (flock), readers for nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import ProfileUnknownError, ReadOnlyError, StoreFullError
from pagepool.image.treestore import list_files, remove_file, replace_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

MOST_OBJECTS: Final = 16_384
"""Of a profile, and of one start."""
MOST_EXTENTS: Final = 65_536
"""Of all objects of a profile, and of one start: 8 GiB."""
MOST_STARTS: Final = 64
MOST_PROFILES: Final = 64
"""Of a repository."""
MOST_BYTES: Final = 128 << 20
"""Of all profiles together."""
_SHARE = 4  # an object, or an extent, is answered if it was seen in one of so many starts, or more
_MAGIC = b"PPPROF\r\n"
_VERSION = 2
_HEAD = struct.Struct(">8sI32sQII")
_OBJECT = struct.Struct(">32sIdII")
_OLD_VERSION = 1
_OLD_OBJECT = struct.Struct(">32sId")  # nothing was known of extents
_SUM_SIZE = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """An object: how containers open it.

    Args:
        starts: in how many of the counted starts it was opened.
        mean: at which place of them on average, from 0.
        told: how many of these starts told what they read of it.
        extents: of each extent, up to the last that was read, how many of those starts read it: a byte for each.
    """

    starts: int
    mean: float
    told: int = 0
    extents: bytes = b""

    def with_start(self, place: int, read: Iterable[int] | None) -> Seen:
        """This, and one more start that opened it; `read` is None if that tells nothing of what it read."""
        starts = self.starts + 1
        mean = self.mean + (place - self.mean) / starts
        if read is None:
            return Seen(starts, mean, self.told, self.extents)
        numbers = frozenset(read)
        counts = bytearray(self.extents).ljust(max(numbers, default=-1) + 1, b"\0")
        for number in numbers:
            counts[number] = min(counts[number] + 1, 255)
        return Seen(starts, mean, self.told + 1, bytes(counts))

    def faded(self) -> Seen:
        """Half of every count."""
        told = self.told // 2
        counts = bytes(count // 2 for count in self.extents).rstrip(b"\0") if told else b""
        return Seen(self.starts // 2, self.mean, told, counts)

    def without_extents(self) -> Seen:
        """The same, as if no start had told."""
        return Seen(self.starts, self.mean)

    def parts(self) -> tuple[int, ...] | None:
        """The extents that were read in at least a quarter of the starts that told; None if none did."""
        if not self.told:
            return None
        return tuple(number for number, count in enumerate(self.extents) if count and count * _SHARE >= self.told)


@dataclass(frozen=True, slots=True)
class StartProfile:
    """What was learned of a tree.

    Args:
        tree: raw digest.
        starts: how many starts are counted; old ones have faded.
        updated_ns: Unix time of the last one.
        seen: by raw digests of objects.
    """

    tree: bytes
    starts: int = 0
    updated_ns: int = 0
    seen: Mapping[bytes, Seen] = field(default_factory=dict)

    def urgent(self) -> list[bytes]:
        """The objects that were seen in at least a quarter of the starts, those that were opened first in front."""
        wanted = [(one.mean, digest) for digest, one in self.seen.items() if one.starts * _SHARE >= self.starts]
        return [digest for _, digest in sorted(wanted)]

    def with_start(
        self, objects: Iterable[bytes], now_ns: int, read: Mapping[bytes, Collection[int]] | None = None
    ) -> StartProfile:
        """This, and one more start.

        Args:
            objects: in the order in which they were opened; again is no matter.
            read: of those of which that is known, the numbers of the extents that were read.
        """
        faded = self._faded() if self.starts >= MOST_STARTS else self
        seen, told = dict(faded.seen), read or {}
        for place, digest in enumerate(dict.fromkeys(objects)):
            seen[digest] = seen.get(digest, Seen(0, 0.0)).with_start(place, told.get(digest))
        return StartProfile(self.tree, faded.starts + 1, now_ns, _bounded(seen))

    def _faded(self) -> StartProfile:
        """Half of every count; what was seen once is forgotten."""
        seen = {digest: one.faded() for digest, one in self.seen.items() if one.starts > 1}
        return StartProfile(self.tree, self.starts // 2, self.updated_ns, seen)

    def encode(self) -> bytes:
        """The file."""
        head = _HEAD.pack(_MAGIC, _VERSION, self.tree, self.updated_ns, self.starts, len(self.seen))
        records = (
            _OBJECT.pack(digest, one.starts, one.mean, one.told, len(one.extents)) + one.extents
            for digest, one in sorted(self.seen.items())
        )
        data = head + b"".join(records)
        return data + blake3_raw(data)[:_SUM_SIZE]

    @classmethod
    def decode(cls, data: bytes, tree: bytes) -> StartProfile | None:
        """Read it back; None if these are not the bytes of a profile of that tree."""
        body = data[:-_SUM_SIZE]
        if len(body) < _HEAD.size or blake3_raw(body)[:_SUM_SIZE] != data[-_SUM_SIZE:]:
            return None
        magic, version, said, updated_ns, starts, count = _HEAD.unpack_from(body)
        if (magic, said) != (_MAGIC, tree) or version not in (_OLD_VERSION, _VERSION):
            return None
        read = _read_objects if version == _VERSION else _read_old_objects
        seen = read(memoryview(body)[_HEAD.size :], count)
        if seen is None:
            return None
        return cls(tree, starts, updated_ns, {digest: one for digest, one in seen.items() if math.isfinite(one.mean)})


def _read_objects(data: memoryview, count: int) -> dict[bytes, Seen] | None:
    """The records of objects; None if these are not so many."""
    seen, offset = {}, 0
    for _ in range(count):
        if len(data) - offset < _OBJECT.size:
            return None
        digest, starts, mean, told, size = _OBJECT.unpack_from(data, offset)
        offset += _OBJECT.size
        seen[digest] = Seen(starts, mean, told, bytes(data[offset : offset + size]))
        offset += size
    return seen if offset == len(data) else None


def _read_old_objects(data: memoryview, count: int) -> dict[bytes, Seen] | None:
    """The same, of version 1."""
    if len(data) != count * _OLD_OBJECT.size:
        return None
    return {digest: Seen(starts, mean) for digest, starts, mean in _OLD_OBJECT.iter_unpack(data)}


def _bounded(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """What is kept of objects: those seen most, and of these the extents of those seen most."""
    if len(seen) <= MOST_OBJECTS and sum(len(one.extents) for one in seen.values()) <= MOST_EXTENTS:
        return seen
    kept, left = {}, MOST_EXTENTS
    for digest in sorted(seen, key=lambda digest: (-seen[digest].starts, seen[digest].mean, digest))[:MOST_OBJECTS]:
        one = seen[digest]
        left -= len(one.extents)
        kept[digest] = one if left >= 0 else one.without_extents()
    return kept


class Profiles:
    """The files. What cannot be read is not there.

    Args:
        directory: made when it is needed.
        readonly: whether nothing may be written.
    """

    def __init__(self, directory: Path, *, readonly: bool = False) -> None:
        self._directory = directory
        self._readonly = readonly

    def get(self, name: str, tree: bytes) -> StartProfile | None:
        """The profile of a tree in a repository. Blocks for milliseconds."""
        try:
            return StartProfile.decode(self._path(name, tree).read_bytes(), tree)
        except OSError:
            return None

    def record(
        self, name: str, tree: bytes, objects: Iterable[bytes], read: Mapping[bytes, Collection[int]] | None = None
    ) -> StartProfile:
        """Count one more start. Blocks for milliseconds, and while others record one in the repository.

        Args:
            objects: raw digests, all of the tree; the caller has made sure of that.
            read: as of `StartProfile.with_start`, extents that the objects have; of this, too.

        Raises:
            ReadOnlyError: nothing may be written.
            StoreFullError: it cannot be written; what was known before is kept.
        """
        with self._locked(name):
            known = self.get(name, tree) or StartProfile(tree)
            profile = known.with_start(objects, time.time_ns(), read)
            path = self._path(name, tree)
            if not replace_file(path, profile.encode()):
                raise StoreFullError("the start-up profile could not be written")
            self._make_room(path)
        return profile

    def delete(self, name: str, tree: bytes) -> None:
        """Forget a profile.

        Raises:
            ReadOnlyError: nothing may be written.
            ProfileUnknownError: there is none.
        """
        with self._locked(name):
            try:
                self._path(name, tree).unlink()
            except FileNotFoundError as error:
                raise ProfileUnknownError(Digest("blake3", tree)) from error

    def list(self, name: str, most: int = MOST_PROFILES) -> Iterator[StartProfile]:
        """The profiles of a repository, the one written last first, at most so many. Reads one file for each."""
        for path in _newest_first(list_files(self._repository(name)))[:most]:
            with contextlib.suppress(ValueError):
                found = self.get(name, bytes.fromhex(path.name))
                if found is not None:
                    yield found

    def _repository(self, name: str) -> Path:
        return self._directory / blake3_raw(name.encode()).hex()

    def _path(self, name: str, tree: bytes) -> Path:
        return self._repository(name) / tree.hex()

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        if self._readonly:
            raise ReadOnlyError("it was opened read-only, and keeps no start-up profile")
        directory = self._repository(name)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreFullError(f"start-up profiles cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, spared: Path) -> None:
        """Remove the oldest profiles of the repository, and of all, beyond what is kept."""
        files = _newest_first(list_files(spared.parent))
        for path in files[MOST_PROFILES:]:
            remove_file(path)
        total = 0
        for path in _newest_first(self._directory.glob("*/*")):
            with contextlib.suppress(OSError):  # another worker removed it
                total += path.stat().st_size
            if total > MOST_BYTES and path != spared:
                remove_file(path)


def _newest_first(files: Iterable[Path]) -> list[Path]:
    ages: list[tuple[int, str, Path]] = []
    for path in files:
        with contextlib.suppress(OSError):
            ages.append((path.stat().st_mtime_ns, path.name, path))
    return [path for *_, path in sorted(ages, reverse=True)]
