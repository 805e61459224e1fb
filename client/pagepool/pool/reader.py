"""Somebody else's pool: the same objects, opened by a process that may not write."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pagepool.errors import StoreFormatError
from pagepool.pool.epoch import TRUSTED_NS, check_reader
from pagepool.pool.files import PoolFile, open_object
from pagepool.pool.layout import OBJECTS, read_format

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class ReadOnlyPool:
    """A pool that belongs to others: the service's, or another user's. Thread-safe; `close` is for one thread.

    It writes nothing, so its reads are no signal to the owner's eviction; what it holds is not evicted, though. An
    object that the owner has yet to check after a boot is not here.

    Args:
        path: the pool's directory, or a read-only mount of it.
        identity: its id.
        durable: whether its objects outlive a boot.
    """

    def __init__(self, path: Path, *, identity: str, durable: bool) -> None:
        self.id = identity
        self.path = path
        self._durable = durable
        self._objects = os.open(path / OBJECTS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._closed = False

    @classmethod
    def attach(cls, path: Path, pool_id: str) -> ReadOnlyPool:
        """Open a pool that is there.

        Args:
            path: its directory.
            pool_id: the id it must have.

        Raises:
            StoreFormatError: there is no pool, one of another version, or another one.
            BusyError: its owner has not opened it since the machine booted.
        """
        found = read_format(path)
        if found is None:
            raise StoreFormatError(f"{path} is not a pool")
        if found.id != pool_id:
            raise StoreFormatError(f"{path} is pool {found.id}, not {pool_id}")
        check_reader(path, durable=found.durable)
        return cls(path, identity=found.id, durable=found.durable)

    def get(self, digest: bytes, /) -> PoolFile | None:
        """Open a whole object.

        Returns:
            the object, held until it is closed; None if it is not here.
        """
        found = open_object(self._objects, digest)
        if found is None:
            return None
        descriptor, status, _ = found
        if not status.st_nlink or (self._durable and status.st_mtime_ns not in TRUSTED_NS):
            os.close(descriptor)
            return None
        return PoolFile(descriptor, status.st_size, digest, self.get)

    def close(self) -> None:
        """Let go of the pool; objects that are open stay good. Twice is once."""
        if not self._closed:
            self._closed = True
            os.close(self._objects)

    def __enter__(self) -> ReadOnlyPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
