"""Start-up profiles: which objects the containers of a tree open first, as learned from their starts.

    REPOSITORY/TREE        a profile (docs/format/profile.md); of the repository the BLAKE3 of its name, both in hex

In `DATA/profiles`: what is here was learned and cannot be made again from the store, but nothing depends on it. So a
profile is renamed into place, never synced, and one that cannot be read is as good as none. Bounded: objects of a
profile, profiles of a repository, bytes in all; those that were not written for longest go first. Old starts fade: when
a profile has `MOST_STARTS`, what it counted is halved.

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
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

MOST_OBJECTS: Final = 16_384
"""Of a profile, and of one start."""
MOST_STARTS: Final = 64
MOST_PROFILES: Final = 64
"""Of a repository."""
MOST_BYTES: Final = 128 << 20
"""Of all profiles together."""
_SHARE = 4  # an object is answered if it was seen in one of so many starts, or more
_MAGIC = b"PPPROF\r\n"
_VERSION = 1
_HEAD = struct.Struct(">8sI32sQII")
_OBJECT = struct.Struct(">32sId")
_SUM_SIZE = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """An object in how many of the counted starts it was opened, and at which place of them on average, from 0."""

    starts: int
    mean: float


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

    def with_start(self, objects: Iterable[bytes], now_ns: int) -> StartProfile:
        """This, and one more start.

        Args:
            objects: in the order in which they were opened; again is no matter.
        """
        faded = self._faded() if self.starts >= MOST_STARTS else self
        seen = dict(faded.seen)
        for place, digest in enumerate(dict.fromkeys(objects)):
            known = seen.get(digest, Seen(0, 0.0))
            count = known.starts + 1
            seen[digest] = Seen(count, known.mean + (place - known.mean) / count)
        if len(seen) > MOST_OBJECTS:
            kept = sorted(seen, key=lambda digest: (-seen[digest].starts, seen[digest].mean, digest))
            seen = {digest: seen[digest] for digest in kept[:MOST_OBJECTS]}
        return StartProfile(self.tree, faded.starts + 1, now_ns, seen)

    def _faded(self) -> StartProfile:
        """Half of every count; what was seen once is forgotten."""
        seen = {digest: Seen(one.starts // 2, one.mean) for digest, one in self.seen.items() if one.starts > 1}
        return StartProfile(self.tree, self.starts // 2, self.updated_ns, seen)

    def encode(self) -> bytes:
        """The file."""
        head = _HEAD.pack(_MAGIC, _VERSION, self.tree, self.updated_ns, self.starts, len(self.seen))
        records = (_OBJECT.pack(digest, one.starts, one.mean) for digest, one in sorted(self.seen.items()))
        data = head + b"".join(records)
        return data + blake3_raw(data)[:_SUM_SIZE]

    @classmethod
    def decode(cls, data: bytes, tree: bytes) -> StartProfile | None:
        """Read it back; None if these are not the bytes of a profile of that tree."""
        body = data[:-_SUM_SIZE]
        if len(body) < _HEAD.size or blake3_raw(body)[:_SUM_SIZE] != data[-_SUM_SIZE:]:
            return None
        magic, version, said, updated_ns, starts, count = _HEAD.unpack_from(body)
        if (magic, version, said, len(body)) != (_MAGIC, _VERSION, tree, _HEAD.size + count * _OBJECT.size):
            return None
        records = _OBJECT.iter_unpack(body[_HEAD.size :])
        seen = {digest: Seen(number, mean) for digest, number, mean in records if math.isfinite(mean)}
        return cls(tree, starts, updated_ns, seen)


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

    def record(self, name: str, tree: bytes, objects: Iterable[bytes]) -> StartProfile:
        """Count one more start. Blocks for milliseconds, and while others record one in the repository.

        Args:
            objects: raw digests, all of the tree; the caller has made sure of that.

        Raises:
            ReadOnlyError: nothing may be written.
            StoreFullError: it cannot be written; what was known before is kept.
        """
        with self._locked(name):
            known = self.get(name, tree) or StartProfile(tree)
            profile = known.with_start(objects, time.time_ns())
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
            raise ReadOnlyError("no start-up profile is kept")
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
