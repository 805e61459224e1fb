"""Files of a container's root, used from outside: every path is resolved as inside of it (openat2, RESOLVE_IN_ROOT).

An image may make any name a symlink to anywhere, and a program that already runs in the root may change names
meanwhile. Neither leads out. Block as the root's file system does.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from pagepool.container.linux import open_in_root
from pagepool.errors import ImageInvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

MAX_TABLE: Final = 8 << 20
"""The largest /etc/passwd or /etc/group that is read, in bytes."""
_MAX_LINKS: Final = 40


@contextmanager
def open_root(path: Path) -> Iterator[int]:
    """The root as a descriptor, for as long as the block lasts."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(root: int, path: str, limit: int = MAX_TABLE) -> bytes:
    """The content of a regular file; nothing where there is none, or one that the kernel makes (/proc).

    Raises:
        ImageInvalidError: it is larger than the limit.
        OSError: it cannot be read.
    """
    try:
        found = open_in_root(root, path, os.O_PATH)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return b""
        raise
    try:
        # Looked at before it is opened: a fifo without a writer would keep us for ever, a device may do something.
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            return b""
        if status.st_size > limit:
            raise ImageInvalidError(path, f"is larger than {limit} bytes")
        # No more than its size: files of /proc have none, and to read one may wait (kmsg), or take from others.
        with open(f"/proc/self/fd/{found}", "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            return file.read(status.st_size)
    finally:
        os.close(found)


def make_directory(root: int, path: str, mode: int = 0o755) -> int:
    """Open a directory (O_PATH), made with all above it if it is missing. The caller closes it.

    Where the name is a symlink to nothing, what it names is made.

    Raises:
        OSError: ENOTDIR where something else is in the way; EROFS.
    """
    return _make(root, path, os.O_PATH | os.O_DIRECTORY, lambda name, above: os.mkdir(name, mode, dir_fd=above))


def make_file(root: int, path: str) -> int:
    """As `make_directory`, an empty file; or open whatever else is there."""
    return _make(root, path, os.O_PATH, _create)


def make_volumes(root: Path, paths: Iterable[str]) -> None:
    """Make the directories that an image says have data, where they are missing and can be made.

    Whatever else is there stays.

    Args:
        paths: as the image says them.
    """
    for path in paths:
        with open_root(root) as opened, suppress(OSError):
            os.close(make_directory(opened, posixpath.normpath(f"/{path}")))


def _create(name: str, above: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o644, dir_fd=above))


def _make(root: int, path: str, flags: int, make: Callable[[str, int], None]) -> int:
    for _ in range(_MAX_LINKS):
        try:
            return open_in_root(root, path, flags)
        except FileNotFoundError:
            pass
        parent, _, name = path.rstrip("/").rpartition("/")
        above = make_directory(root, parent or "/")
        try:
            make(name, above)
        except FileExistsError:
            target = _target(name, above, path)
            path = target if target.startswith("/") else f"{parent}/{target}"
        finally:
            os.close(above)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _target(name: str, above: int, path: str) -> str:
    try:
        return os.readlink(name, dir_fd=above)
    except OSError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error
