"""Copying files between this machine, images and overlays: what ``pagepool cp`` does.

Two kinds of places with the same few operations: `LocalPlace` and `RootPlace`. A single file is copied through
symlinks; in a directory that is copied, symlinks are copied as such. On this machine a symlink where something is to be
written is replaced, or refused where a directory should be, never followed: an image could plant one, and have the
next copy write elsewhere. Devices, FIFOs and sockets are left out, and told of.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pagepool.image import Kind
from pagepool.vfs import Changes, MutableRootfs, Rootfs, fail
from pagepool.vfs.interface import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pagepool.vfs import Attributes, RawFile

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_KINDS = {bits: kind for kind, bits in FORMATS.items()}


class Found(NamedTuple):
    """What there is to know of a file that is copied."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int


class Place(Protocol):
    """Where files are read."""

    def look(self, path: str, /, *, follow: bool = False) -> Found | None:
        """What is there, or what a symlink there leads to; None if nothing is."""
        ...

    def names(self, path: str, /) -> list[str]:
        """What is in a directory, by name."""
        ...

    def link_target(self, path: str, /) -> str:
        """Of a symlink."""
        ...

    def xattrs(self, path: str, /) -> Mapping[bytes, bytes]:
        """Extended attributes."""
        ...

    def pieces(self, path: str, /) -> Iterator[bytes | memoryview]:
        """The content of a regular file."""
        ...


class Destination(Place, Protocol):
    """Where files are written."""

    def is_directory(self, path: str, /) -> bool:
        """Whether a path, as the user gave it, leads to a directory, symlinks followed."""
        ...

    def make_directory(self, path: str, mode: int, /) -> None:
        """Make a directory, unless it is there."""
        ...

    def make_symlink(self, target: str, path: str, /) -> None:
        """Make a symlink, instead of a file that is there."""
        ...

    def write(self, path: str, mode: int, pieces: Iterator[bytes | memoryview], /) -> None:
        """Make a regular file, or replace its content."""
        ...

    def preserve(self, path: str, found: Found, xattrs: Mapping[bytes, bytes], /) -> None:
        """Give it the metadata of what it was copied from."""
        ...


def found_of(status: os.stat_result) -> Found:
    """What stat(2) says."""
    kind, mode = _KINDS[stat.S_IFMT(status.st_mode)], stat.S_IMODE(status.st_mode)
    times = (status.st_atime_ns, status.st_mtime_ns)
    return Found(kind, mode, status.st_uid, status.st_gid, status.st_size, *times)


def write_pieces(descriptor: int, pieces: Iterator[bytes | memoryview]) -> None:
    """Write to an empty file; what is all zeros becomes a hole of a regular one."""
    end, hole, regular = 0, False, stat.S_ISREG(os.fstat(descriptor).st_mode)
    for piece in pieces:
        view = memoryview(piece)
        end += len(view)
        hole = regular and _is_zeros(view)
        if hole:
            os.lseek(descriptor, len(view), os.SEEK_CUR)
            continue
        while view:
            view = view[os.write(descriptor, view) :]
    if hole:
        os.ftruncate(descriptor, end)


def read_pieces(descriptor: int) -> Iterator[bytes]:
    """What is left of a file."""
    while piece := os.read(descriptor, _PIECE):
        yield piece


class LocalPlace:
    """This machine's own files."""

    def look(self, path: str, /, *, follow: bool = False) -> Found | None:
        """See `Place`."""
        try:
            status = os.stat(path, follow_symlinks=follow)  # noqa: PTH116 - the paths here are texts
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found_of(status)

    def names(self, path: str, /) -> list[str]:
        """See `Place`."""
        return sorted(os.listdir(path))  # noqa: PTH208 - names are all it is about

    def link_target(self, path: str, /) -> str:
        """See `Place`."""
        return os.readlink(path)  # noqa: PTH115 - as it is written, not as a path

    def xattrs(self, path: str, /) -> dict[bytes, bytes]:
        """See `Place`."""
        names = os.listxattr(path, follow_symlinks=False)
        return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}

    def pieces(self, path: str, /) -> Iterator[bytes]:
        """See `Place`."""
        with _opened(path, os.O_RDONLY) as descriptor:
            yield from read_pieces(descriptor)

    def is_directory(self, path: str, /) -> bool:
        """See `Destination`."""
        return Path(path).is_dir()

    def make_directory(self, path: str, mode: int, /) -> None:
        """See `Destination`."""
        try:
            os.mkdir(path, mode | 0o700)  # noqa: PTH102
        except FileExistsError:
            found = self.look(path)
            if found is None or found.kind is not Kind.DIRECTORY:
                raise

    def make_symlink(self, target: str, path: str, /) -> None:
        """See `Destination`."""
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
        os.symlink(target, path)  # noqa: PTH211

    def write(self, path: str, mode: int, pieces: Iterator[bytes | memoryview], /) -> None:
        """See `Destination`."""
        if os.path.islink(path):  # noqa: PTH114
            os.unlink(path)  # noqa: PTH108
        with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode & 0o777) as descriptor:
            write_pieces(descriptor, pieces)

    def preserve(self, path: str, found: Found, xattrs: Mapping[bytes, bytes], /) -> None:
        """See `Destination`. Owners and attributes that this user may not set are left as they are."""
        mode = found.mode
        try:
            os.chown(path, found.uid, found.gid, follow_symlinks=False)
        except PermissionError:
            mode &= 0o1777  # setuid would mean another user than it was meant for
        for name, value in xattrs.items():
            try:
                os.setxattr(path, os.fsdecode(name), value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                    raise
        if found.kind is not Kind.SYMLINK:
            os.chmod(path, mode)  # noqa: PTH101
        os.utime(path, ns=(found.atime_ns, found.mtime_ns), follow_symlinks=False)


class RootPlace:
    """An image, or an overlay if it is to be written."""

    def __init__(self, root: Rootfs) -> None:
        self._root = root

    def look(self, path: str, /, *, follow: bool = False) -> Found | None:
        """See `Place`."""
        try:
            found: Attributes = self._root.stat(path, follow=follow)
        except (FileNotFoundError, NotADirectoryError):
            return None
        times = (found.atime_ns, found.mtime_ns)
        return Found(found.kind, found.mode, found.uid, found.gid, found.size, *times)

    def names(self, path: str, /) -> list[str]:
        """See `Place`."""
        return self._root.listdir(path)

    def link_target(self, path: str, /) -> str:
        """See `Place`."""
        return os.fsdecode(self._root.readlink(path))

    def xattrs(self, path: str, /) -> Mapping[bytes, bytes]:
        """See `Place`."""
        return self._root.xattrs(path, follow=False)

    def pieces(self, path: str, /) -> Iterator[memoryview]:
        """See `Place`."""
        file: RawFile
        with self._root.open(path, "rb", buffering=0) as file:
            offset = 0
            while piece := file.view(offset, _PIECE):
                yield piece
                offset += len(piece)

    def is_directory(self, path: str, /) -> bool:
        """See `Destination`."""
        return self._root.is_dir(path)

    def make_directory(self, path: str, mode: int, /) -> None:
        """See `Destination`."""
        self._out(path).mkdir(path, mode, exist_ok=True)

    def make_symlink(self, target: str, path: str, /) -> None:
        """See `Destination`."""
        out = self._out(path)
        out.unlink(path, missing_ok=True)
        out.symlink(target, path)

    def write(self, path: str, mode: int, pieces: Iterator[bytes | memoryview], /) -> None:
        """See `Destination`."""
        out = self._out(path)
        new = not out.exists(path)
        file: RawFile
        with out.open(path, "wb", buffering=0) as file:
            if new:
                out.fs.set_attributes(file.ino, Changes(mode=mode & 0o777))  # type: ignore[attr-defined]
            for piece in pieces:
                if _is_zeros(piece):
                    file.truncate(file.seek(len(piece), os.SEEK_CUR))
                else:
                    file.write(piece)

    def preserve(self, path: str, found: Found, xattrs: Mapping[bytes, bytes], /) -> None:
        """See `Destination`."""
        out = self._out(path)
        out.chown(path, found.uid, found.gid, follow=False)
        for name, value in xattrs.items():
            with contextlib.suppress(PermissionError):  # users' attributes of a symlink: a tar may have them
                out.set_xattr(path, name, value, follow=False)
        if found.kind is not Kind.SYMLINK:
            out.chmod(path, found.mode)
        out.utime(path, found.atime_ns, found.mtime_ns, follow=False)

    def _out(self, path: str) -> MutableRootfs:
        return self._root if isinstance(self._root, MutableRootfs) else fail(errno.EROFS, os.fsencode(path))


@dataclass(slots=True)
class Copied:
    """What was copied.

    Args:
        files: names, directories not counted.
        size: bytes of regular files.
        skipped: what cannot be copied: devices, FIFOs, sockets.
    """

    files: int = 0
    size: int = 0
    skipped: int = 0


class Copier:
    """Copies files, and directories with all in them.

    Args:
        source: where from.
        target: where to.
        preserve: whether mode, owner, times and extended attributes go along.
        done: counts what was copied; several may share one.
        on_bytes: told of bytes as they are copied.
        on_skip: told of each path that is left out.
    """

    def __init__(
        self,
        source: Place,
        target: Destination,
        *,
        preserve: bool = False,
        done: Copied | None = None,
        on_bytes: Callable[[int], object] = lambda _: None,
        on_skip: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._source, self._target = source, target
        self._preserve = preserve
        self._on_bytes, self._on_skip = on_bytes, on_skip
        self.done = Copied() if done is None else done

    def copy(self, source: str, target: str, *, recursive: bool) -> None:
        """Copy one path.

        Args:
            source: what.
            target: under what name. A directory that is there is filled, a file gets another content.
            recursive: whether it may be a directory.

        Raises:
            OSError: ENOENT, EISDIR, and whatever else the systems say.
        """
        found = self._source.look(source, follow=not recursive)
        if found is None:
            fail(errno.ENOENT, os.fsencode(source))
        if found.kind is Kind.DIRECTORY and not recursive:
            raise IsADirectoryError(errno.EISDIR, f"{os.strerror(errno.EISDIR)}; -r copies directories", source)
        stack = [(source, target, found)]
        directories: list[tuple[str, str, Found]] = []
        while stack:
            here, there, found = stack.pop()
            if found.kind is Kind.DIRECTORY:
                self._target.make_directory(there, found.mode & 0o777)
                directories.append((here, there, found))
                stack += self._children(here, there)
            else:
                self._copy_file(here, there, found)
        # Afterwards, the deepest first: what is written into a directory changes its time, or may need its mode.
        for here, there, found in reversed(directories):
            if self._preserve:
                self._target.preserve(there, found, self._source.xattrs(here))

    def _children(self, here: str, there: str) -> Iterator[tuple[str, str, Found]]:
        for name in reversed(self._source.names(here)):
            path = f"{here.rstrip('/')}/{name}"
            if found := self._source.look(path):
                yield path, f"{there.rstrip('/')}/{name}", found

    def _copy_file(self, here: str, there: str, found: Found) -> None:
        if found.kind is Kind.SYMLINK:
            self._target.make_symlink(self._source.link_target(here), there)
        elif found.kind is Kind.REGULAR:
            self._target.write(there, found.mode, self._counted(here))
        else:
            self.done.skipped += 1
            self._on_skip(here)
            return
        if self._preserve:
            self._target.preserve(there, found, self._source.xattrs(here))
        self.done.files += 1

    def _counted(self, path: str) -> Iterator[bytes | memoryview]:
        for piece in self._source.pieces(path):
            yield piece
            self.done.size += len(piece)
            self._on_bytes(len(piece))


def _is_zeros(piece: bytes | memoryview) -> bool:
    """Whether a piece becomes a hole: whole ones do, so that a file that is mostly holes does not fill the disk."""
    return len(piece) == _PIECE and piece == _ZEROS


@contextmanager
def _opened(path: str, flags: int, mode: int = 0) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
