"""Files of a container that runs, to be copied out and in: a place of `copying`.

They are what the container's programs see, with volumes and all that is mounted in it. The programs may change any name
meanwhile, and make it a symlink to anywhere: every path is resolved as inside of the container's root (openat2), what
is read or written is opened only once it is known to be a regular file, and owners and modes are set on what was
opened. Symlinks are followed inside of the root, as in an overlay. What is no file system but the kernel's own view of
itself (/proc, /sys) is left out of directories above it: whoever wants a file of it names that, and no symlink leads to
one. To read it may never end, and to write it changes what the kernel does.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.cli.copying import Found, found_of, read_pieces, write_pieces
from pagepool.container.linux import open_in_root
from pagepool.image import Kind
from pagepool.mount.mountinfo import parse_mountinfo
from pagepool.vfs import fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_VIEWS = ("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue")
_NOT_SET = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)


def find_views(process: int) -> dict[str, int]:
    """Where a process, by its number, sees what is no file system (/proc, for one), and the device number of that."""
    points = parse_mountinfo(Path(f"/proc/{process}/mountinfo").read_bytes())
    return {str(point.path): os.makedev(*point.device) for point in points if point.type in _VIEWS}


class InsidePlace:
    """See `copying.Place` and `copying.Destination`.

    Args:
        root: a descriptor of the container's root; stays the caller's.
        views: see `find_views`. Their paths are not named as what is in a directory.
    """

    def __init__(self, root: int, views: Mapping[str, int] | None = None) -> None:
        self._root = root
        self._views = views or {}

    def look(self, path: str, /, *, follow: bool = False) -> Found | None:
        """See `Place`."""
        try:
            with self._at(path, follow=follow) as found:
                return found_of(os.fstat(found))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, path: str, /) -> list[str]:
        """See `Place`."""
        with self._opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            names = sorted(os.listdir(descriptor))  # noqa: PTH208 - a descriptor is no path
        return [name for name in names if f"{path.rstrip('/')}/{name}" not in self._views]

    def link_target(self, path: str, /) -> str:
        """See `Place`."""
        with self._at(path) as found:
            return os.readlink("", dir_fd=found)

    def xattrs(self, path: str, /) -> dict[bytes, bytes]:
        """See `Place`."""
        with self._at(path) as found:
            place = _proc(found)
            return {os.fsencode(name): os.getxattr(place, name) for name in os.listxattr(place)}

    def pieces(self, path: str, /) -> Iterator[bytes]:
        """See `Place`."""
        with self._regular(path, os.O_RDONLY) as descriptor:
            yield from read_pieces(descriptor)

    def is_directory(self, path: str, /) -> bool:
        """See `Destination`."""
        found = self.look(path, follow=True)
        return found is not None and found.kind is Kind.DIRECTORY

    def make_directory(self, path: str, mode: int, /) -> None:
        """See `Destination`."""
        if self.is_directory(path):
            return
        with self._above(path) as (above, name):
            os.mkdir(name, 0o700, dir_fd=above)
            made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.fchmod(made, mode)
        finally:
            os.close(made)

    def make_symlink(self, target: str, path: str, /) -> None:
        """See `Destination`."""
        with self._above(path) as (above, name):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=above)
            os.symlink(target, name, dir_fd=above)

    def write(self, path: str, mode: int, pieces: Iterator[bytes | memoryview], /) -> None:
        """See `Destination`."""
        if self.look(path, follow=True) is not None:
            with self._regular(path, os.O_WRONLY | os.O_TRUNC) as descriptor:
                write_pieces(descriptor, pieces)
        else:
            with self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o777) as descriptor:
                os.fchmod(descriptor, mode & 0o777)  # whatever the umask is
                write_pieces(descriptor, pieces)

    def preserve(self, path: str, found: Found, xattrs: Mapping[bytes, bytes], /) -> None:
        """See `Destination`. Attributes that cannot be set there are left out."""
        with self._at(path) as descriptor:
            place = _proc(descriptor)
            os.chown(place, found.uid, found.gid)
            for name, value in xattrs.items():
                try:
                    os.setxattr(place, os.fsdecode(name), value)
                except OSError as error:
                    if error.errno not in _NOT_SET:
                        raise
            if not stat.S_ISLNK(os.fstat(descriptor).st_mode):
                os.chmod(place, found.mode)  # noqa: PTH101 - the paths here are texts
            os.utime(place, ns=(found.atime_ns, found.mtime_ns))

    @contextmanager
    def _at(self, path: str, *, follow: bool = False) -> Iterator[int]:
        """What is at a path, whatever it is (O_PATH)."""
        with self._opened(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW)) as descriptor:
            yield descriptor

    @contextmanager
    def _regular(self, path: str, flags: int) -> Iterator[int]:
        """A regular file, opened: a device or a FIFO may do something, or wait, when it is."""
        with self._at(path, follow=True) as found:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                fail(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, os.fsencode(path))
            if status.st_dev in self._views.values() and not self._is_in_view(path):
                fail(errno.EINVAL, os.fsencode(path))
            descriptor = os.open(_proc(found), flags | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _is_in_view(self, path: str) -> bool:
        """Whether a path, as it is written, is of what is no file system."""
        written = posixpath.normpath(f"/{path.strip('/')}")
        return any(written.startswith(f"{view}/") for view in self._views)

    @contextmanager
    def _above(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that a path is in, and the last name."""
        parent, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            fail(errno.EEXIST, os.fsencode(path))
        with self._at(parent or "/", follow=True) as above:
            yield above, name

    @contextmanager
    def _opened(self, path: str, flags: int, mode: int = 0) -> Iterator[int]:
        descriptor = open_in_root(self._root, path, flags, mode)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _proc(descriptor: int) -> str:
    """A path that leads to what was opened, and nowhere else."""
    return f"/proc/self/fd/{descriptor}"
