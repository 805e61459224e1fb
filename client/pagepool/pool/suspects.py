"""Hashing what may not have reached the disk, before anybody reads it past the pool.

A pool's own readers hash a suspect object when they first ask for it (`pagepool.pool.epoch`). An overlay opens the file
without asking. So a node has all of them looked at before it mounts anything; partial objects are never seen by one.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.pool.epoch import TRUSTED_NS
from pagepool.pool.layout import OBJECTS, object_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.pool.pool import Pool

log = logging.getLogger("pagepool.pool")


@dataclass(frozen=True, slots=True)
class SuspectReport:
    """What was looked at.

    Args:
        objects: that were suspect.
        plain_size: bytes of them.
        removed: digests of those that were wrong.
    """

    objects: int
    plain_size: int
    removed: tuple[bytes, ...]


def verify_suspects(pool: Pool, on_bytes: Callable[[int], object] = lambda _count: None) -> SuspectReport:
    """Hash every object of a durable pool that is suspect; stamp it if it is right, and remove it if it is not.

    Blocks: a few microseconds for each object, and as long as it takes to read those that are suspect. What is right is
    durable afterwards: the next boot does not ask again. If it is killed, what was stamped is hashed again then.

    Args:
        pool: nobody may read it by names meanwhile.
        on_bytes: told of bytes that were hashed, after each object.

    Raises:
        OSError: an object cannot be opened, or the disk cannot be synced.
    """
    count = size = 0
    removed = []
    for digest in pool.digests() if pool.durable else ():
        path = pool.path / OBJECTS / object_name(digest)
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_mtime_ns in TRUSTED_NS:
                continue
            if not pool.verify(digest):
                removed.append(digest)
            count, size = count + 1, size + status.st_size
            on_bytes(status.st_size)
            _forget_pages(path)
    if count:
        log.info("%d objects were hashed after an unclean boot, %d were damaged", count, len(removed))
        pool.sync()
    return SuspectReport(count, size, tuple(removed))


def _forget_pages(path: os.PathLike[str]) -> None:
    """What was read once, to be hashed, is not what will be read next."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
