"""What the images of mounted containers take in memory, and what they would take without sharing.

Figures come from the kernel's own books (cachestat of every object, /proc/PID/maps), looked at one after the other
while containers run: they are of about one moment. Only questions are asked; nothing is fetched, read or kept. The page
cache does not say who brought a page: an object of several images is resident for each of them, whoever read it. What
the containers would take without sharing is therefore the most that they could take.

Bytes are whole pages, in memory or on disk.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from pagepool.linux.directories import walk_from_below
from pagepool.pool.layout import cost, object_name
from pagepool.pool.residency import resident

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pagepool.image import TreeFile

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME | os.O_NOFOLLOW | os.O_NONBLOCK
_STRIDE: Final = 2 << 20
"""How finely an object in two caches is compared; where one has pages of a stride and the other others, too much is
said to be held twice."""


@dataclass(frozen=True, slots=True)
class MountedImage:
    """One container, or another mount of an image.

    Args:
        id: of the container or mount.
        image: as people call it.
        tree: of the image; open.
        upper: where its changes are; None if it has none.
        root: where the overlay is mounted, by which what its processes map is found; None: not looked at.
    """

    id: str
    image: str
    tree: TreeFile
    upper: Path | None = None
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class MemoryInputs:
    """What is looked at.

    Args:
        containers: all that are mounted.
        objects: the pool's directory of objects.
        lazy: large objects that the lazy mount serves just now, raw digest -> file in it. To open one must make
            nothing be fetched: only those that are known to the mount already.
    """

    containers: Sequence[MountedImage]
    objects: Path
    lazy: Mapping[bytes, Path] = field(default_factory=dict)


class MemorySource(Protocol):
    """Who knows what is mounted."""

    def inputs(self) -> MemoryInputs:
        """What is mounted now. The trees stay open until the next call."""


@dataclass(frozen=True, slots=True)
class ContainerMemory:
    """One container's figures.

    Args:
        id: of the container.
        image: its image.
        present: bytes of its image's objects that are whole in the pool.
        mapped: bytes of its files that its processes map, each page once; None if not looked at.
        resident: bytes of its image's objects in memory, of the pool or of the lazy mount.
        shared: of these, of objects that other containers have, too.
        twice: bytes of its image's objects that are in memory a second time, in the lazy mount's cache.
        private: bytes of its own files in memory.
    """

    id: str
    image: str
    present: int
    mapped: int | None
    resident: int
    shared: int
    twice: int
    private: int


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """All containers' figures, and those of all together, each object counted once.

    Args:
        containers: in the order they were given.
        present, mapped, resident, shared, twice, private: as of one container.
        per_container: what `resident` would be if each container had pages of its own.
        per_image: what it would be if only containers of the same image shared pages, as layers on overlayfs.
    """

    containers: tuple[ContainerMemory, ...]
    present: int
    mapped: int | None
    resident: int
    shared: int
    twice: int
    private: int
    per_container: int
    per_image: int

    @property
    def saved(self) -> int:
        """Bytes of memory that sharing between containers saves."""
        return self.per_container - self.resident


@dataclass(frozen=True, slots=True)
class _Object:
    present: int
    resident: int
    twice: int


def measure_memory(inputs: MemoryInputs) -> MemoryReport:
    """Look at everything once. Opens every object of the mounted images: about 10 microseconds each.

    Raises:
        CorruptError: a tree cannot be read.
        OSError: the pool's directory cannot be opened.
    """
    digests = {one.tree.digest: _objects_of(one.tree) for one in inputs.containers}
    users: Counter[bytes] = Counter()
    for one in inputs.containers:
        users.update(digests[one.tree.digest])
    objects = _look(inputs, users)
    mapped = mapped_bytes(one.root for one in inputs.containers if one.root is not None)
    sums = {key: _sum(objects[digest] for digest in found) for key, found in digests.items()}
    shared = {
        key: sum(objects[digest].resident for digest in found if users[digest] > 1) for key, found in digests.items()
    }
    containers = []
    for one in inputs.containers:
        image = sums[one.tree.digest]
        containers.append(
            ContainerMemory(
                id=one.id,
                image=one.image,
                present=image.present,
                mapped=None if one.root is None else mapped.get(one.root, 0),
                resident=image.resident,
                shared=shared[one.tree.digest],
                twice=image.twice,
                private=0 if one.upper is None else resident_below(one.upper),
            )
        )
    total = _sum(objects.values())
    known = [one.mapped for one in containers if one.mapped is not None]
    return MemoryReport(
        containers=tuple(containers),
        present=total.present,
        mapped=sum(known) if known else None,
        resident=total.resident,
        shared=sum(found.resident for digest, found in objects.items() if users[digest] > 1),
        twice=total.twice,
        private=sum(one.private for one in containers),
        per_container=sum(one.resident for one in containers),
        per_image=sum(found.resident for found in sums.values()),
    )


def resident_below(directory: Path) -> int:
    """Bytes in memory of all regular files below a directory, each inode once. What vanishes meanwhile is left out."""
    seen: dict[tuple[int, int], int] = {}
    with suppress(FileNotFoundError, NotADirectoryError):  # moved away, and perhaps linked to from where it was
        for found in walk_from_below(directory):
            for name in found.others:
                with suppress(OSError):
                    status = os.stat(name, dir_fd=found.descriptor, follow_symlinks=False)
                    inode = (status.st_dev, status.st_ino)
                    if stat.S_ISREG(status.st_mode) and inode not in seen:
                        seen[inode] = _resident(name, found.descriptor)
    return sum(seen.values())


def mapped_bytes(roots: Iterable[Path]) -> dict[Path, int]:
    """Bytes of files below each mount that processes map, whoever they are, each page of a file once."""
    devices = {}
    for root in roots:
        with suppress(OSError):
            devices[root.stat().st_dev] = root
    ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for maps in Path("/proc").glob("[0-9]*/maps") if devices else ():
        try:
            text = maps.read_bytes()
        except OSError:  # it has ended
            continue
        for device, inode, start, end in parse_maps(text):
            if device in devices:
                ranges.setdefault((device, inode), []).append((start, end))
    found = dict.fromkeys(devices.values(), 0)
    for (device, _), parts in ranges.items():
        found[devices[device]] += _union(parts)
    return found


def parse_maps(text: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(device, inode, start, end) of each mapping of a file in /proc/PID/maps: which bytes of the file."""
    for line in filter(None, text.split(b"\n")):  # names of files may hold what ends a line elsewhere
        addresses, _, offset, device, inode = line.split(None, 5)[:5]
        if inode == b"0":
            continue
        low, _, high = addresses.partition(b"-")
        major, _, minor = device.partition(b":")
        start = int(offset, 16)
        yield os.makedev(int(major, 16), int(minor, 16)), int(inode), start, start + int(high, 16) - int(low, 16)


def _objects_of(tree: TreeFile) -> frozenset[bytes]:
    return frozenset(tree.object(index).digest for index in range(tree.object_count))


def _union(parts: list[tuple[int, int]]) -> int:
    total = reached = 0
    for start, end in sorted(parts):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _sum(objects: Iterable[_Object]) -> _Object:
    found = list(objects)
    return _Object(*(sum(getattr(one, name) for one in found) for name in ("present", "resident", "twice")))


def _look(inputs: MemoryInputs, digests: Iterable[bytes]) -> dict[bytes, _Object]:
    directory = os.open(inputs.objects, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return {digest: _look_at(directory, digest, inputs.lazy.get(digest)) for digest in digests}
    finally:
        os.close(directory)


def _look_at(directory: int, digest: bytes, lazy: Path | None) -> _Object:
    present = in_pool = 0
    try:
        descriptor = os.open(object_name(digest), _READ, dir_fd=directory)
    except OSError:  # not there, or not any more
        return _Object(0, 0 if lazy is None else _resident(lazy), 0)
    try:
        size = os.fstat(descriptor).st_size
        present, in_pool = cost(size), resident(descriptor)
        if lazy is None:
            return _Object(present, in_pool, 0)
        twice, second = _compare(descriptor, lazy, size)
        return _Object(present, in_pool + second, twice)
    finally:
        os.close(descriptor)


def _compare(descriptor: int, lazy: Path, size: int) -> tuple[int, int]:
    """Bytes of an object that two caches hold, and all bytes that the second holds."""
    try:
        other = os.open(lazy, _READ)
    except OSError:
        return 0, 0
    try:
        pairs = [(resident(descriptor, at, _STRIDE), resident(other, at, _STRIDE)) for at in range(0, size, _STRIDE)]
    finally:
        os.close(other)
    return sum(map(min, pairs)), sum(second for _, second in pairs)


def _resident(path: str | Path, directory: int | None = None) -> int:
    try:
        descriptor = os.open(path, _READ, dir_fd=directory)
    except OSError:
        return 0
    try:
        return resident(descriptor)
    finally:
        os.close(descriptor)
