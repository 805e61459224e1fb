"""Files of this machine that sample images are made of.

Only what every user of the machine may read, below the system's ``/usr`` and the Python installation: no
configuration, no home directories, nothing secret even if root makes the images. Files are named by their path
and read when a layer is written; one that changes meanwhile is packed as it is then.
"""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pagepool.errors import UnsupportedError

MAX_FILE_SIZE = 24 << 20
"""Larger files are left out: one of them would be half an image."""
_BYTES_PER_FILE = 4096
"""Counted for each file beside its content, so that a tree of tiny files does not take for ever to pack."""
_LEAST_SIZE = 1 << 20
PROGRAMS = ("true", "uname", "id")
_PROGRAM_SIZE = 256 << 10
_SKIPPED = frozenset({"site-packages", "dist-packages", "lost+found"})


@dataclass(frozen=True, slots=True)
class Member:
    """A file, directory or symbolic link to be packed.

    Args:
        name: path in the image, without a leading slash.
        path: where it is on this machine.
        status: as `lstat` gave it.
    """

    name: str
    path: Path
    status: os.stat_result

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.status.st_size if self.is_file else 0


@dataclass(frozen=True, slots=True)
class Material:
    """What was found, in the three parts that become layers.

    Args:
        system: libraries and programs of the system.
        runtime: the Python installation.
        data: what programs share: documentation, time zones, character sets …
    """

    system: tuple[Member, ...]
    runtime: tuple[Member, ...]
    data: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Bytes of all content."""
        return sum(member.size for part in (self.system, self.runtime, self.data) for member in part)


def collect(size: int) -> Material:
    """Choose about so many bytes of files: half system, a quarter each runtime and data.

    A part that this machine has too little of is made up for by the others.

    Raises:
        UnsupportedError: there is next to nothing to take.
    """
    taken: set[Path] = set()
    runtime = _take(_runtime_roots(), size // 4, taken)
    data = _take(_data_roots(), size // 4, taken)
    programs = _programs(taken)
    system = programs + _take(_system_roots(), size - _size(runtime) - _size(data) - _size(programs), taken)
    missing = size - _size(runtime) - _size(data) - _size(system)
    if missing > size // 20:
        data += _take(_data_roots(), missing, taken)
    found = Material(tuple(system), tuple(runtime), tuple(data))
    if found.size < _LEAST_SIZE:
        raise UnsupportedError("found no readable files below /usr to make images of; name images instead")
    return found


def _programs(taken: set[Path]) -> list[Member]:
    """A few small programs that most machines have: one of them is run where the image is mounted."""
    found = []
    for name in PROGRAMS:
        path = Path("/usr/bin", name)
        try:
            status = path.lstat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and status.st_size <= _PROGRAM_SIZE:
            taken.add(path)
            found.append(Member(f"usr/bin/{name}", path, status))
    return found


def _runtime_roots() -> tuple[tuple[Path, str], ...]:
    library = Path(sysconfig.get_path("stdlib"))
    return ((library, f"usr/lib/{library.name}"),)


def _system_roots() -> tuple[tuple[Path, str], ...]:
    libraries = str(sysconfig.get_config_var("MULTIARCH") or "")
    roots = [f"usr/lib/{libraries}"] if libraries else []
    return tuple((Path("/", root), root) for root in (*roots, "usr/bin", "usr/lib64", "usr/lib", "usr/sbin"))


def _data_roots() -> tuple[tuple[Path, str], ...]:
    return tuple((Path("/", root), root) for root in ("usr/share", "usr/include", "usr/local/share"))


def _size(members: list[Member]) -> int:
    return sum(member.size for member in members)


def _take(roots: tuple[tuple[Path, str], ...], budget: int, taken: set[Path]) -> list[Member]:
    """Members below some directories, none twice, until their budget is used up."""
    found: list[Member] = []
    for root, name in roots:
        for member in _walk(root.resolve(), name):
            if budget <= 0:
                return found
            if member.path in taken:
                continue
            if member.is_file:
                budget -= member.size + _BYTES_PER_FILE
            taken.add(member.path)
            found.append(member)
    return found


def _walk(directory: Path, name: str) -> Iterator[Member]:
    """A directory and what is below it, in the order of names; what cannot be read is left out."""
    try:
        status = directory.lstat()
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    if not stat.S_ISDIR(status.st_mode) or not status.st_mode & stat.S_IROTH:
        return
    yield Member(name, directory, status)
    for entry in entries:
        if entry.name in _SKIPPED or not entry.name.isprintable():
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/{entry.name}")
        elif member := _leaf(entry, f"{name}/{entry.name}"):
            yield member


def _leaf(entry: os.DirEntry[str], name: str) -> Member | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    if stat.S_ISLNK(status.st_mode):
        return Member(name, Path(entry.path), status)
    public = stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH
    return Member(name, Path(entry.path), status) if public and status.st_size <= MAX_FILE_SIZE else None
