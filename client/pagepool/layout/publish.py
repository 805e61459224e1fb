"""Writing files so that each is whole or absent: written under another name beside its place, synced,
renamed.

A crash leaves at most names that begin with a dot and end in ``.tmp``, which nobody reads.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pagepool.errors import DiskFullError, InvalidError

_MOST_REMOVALS = 8


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """Write a file; it gets its name at the end of the block, and does not if the block fails.

    Raises:
        InvalidError: something is there that is not to be replaced: see `check_replaceable`.
        DiskFullError: the disk or quota is full.
    """
    check_replaceable(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
    try:
        with translated(path), os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def check_replaceable(path: Path) -> None:
    """Refuse a place where a file would be in the way of everybody: as root ``/dev/stdout`` would become a file.

    Raises:
        InvalidError: a device, a pipe, a socket, or a link to what a process has open.
    """
    link = str(path.readlink()) if path.is_symlink() else ""
    if link.startswith("/proc/") or (path.exists() and not path.is_file() and not path.is_dir()):
        raise InvalidError(str(path), "it is no ordinary file, and is not replaced by one; name a new file")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn a full disk into our own error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{path.parent}: {error.strerror}") from error
        raise


def make_stage(path: Path) -> Path:
    """Make an empty directory beside `path`, on the same file system.

    Raises:
        InvalidError: something is there that is not to be replaced: see `check_replaceable`.
        OSError: the parent is missing or cannot be written to.
    """
    check_replaceable(path)
    stage = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent))
    stage.chmod(0o777 & ~_umask())
    return stage


def drop_stage(stage: Path) -> None:
    """Remove a directory made by `make_stage`, if it is still there."""
    # Whoever was told to stop may still make a file in it, once.
    for _ in range(_MOST_REMOVALS):
        shutil.rmtree(stage, ignore_errors=True)
        if not stage.exists():
            return


@contextmanager
def dropping(stage: Path) -> Iterator[None]:
    """Remove a directory made by `make_stage` if what is done in the block fails; a full disk is our own error."""
    try:
        with translated(stage):
            yield
    except BaseException:
        drop_stage(stage)
        raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # There is no way to read it without setting it, except this file, which keeps other threads out of it.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
