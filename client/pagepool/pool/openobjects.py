"""A bounded number of open objects: those used last stay open, so that opening them again costs nothing.

An open object takes one descriptor, and a process may have only so many (RLIMIT_NOFILE, often 1024).
"""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    from pagepool.pool.files import PoolFile

_SHARE: Final = 2
_MOST: Final = 16384


class Opens(Protocol):
    """A pool, for reading: `Pool` or `ReadOnlyPool`."""

    def get(self, digest: bytes, /) -> PoolFile | None: ...


def default_most() -> int:
    """How many objects to keep open: half of the descriptors that this process may have, at most 16384."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(_MOST, _MOST if soft == resource.RLIM_INFINITY else soft // _SHARE))


class OpenObjects:
    """Open objects by digest, the least recently used closed first. Thread-safe.

    Args:
        pool: where they are opened; stays the caller's.
        most: how many stay open; None for `default_most`.
    """

    def __init__(self, pool: Opens, most: int | None = None) -> None:
        self._pool = pool
        self.most = default_most() if most is None else most
        self._files: OrderedDict[bytes, PoolFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def view(self, digest: bytes) -> memoryview | None:
        """An object's bytes.

        Returns:
            a view that stays valid whatever is closed; None if the pool does not have the object.
        """
        with self._lock:
            file = self._files.get(digest)
            if file is not None:
                self._files.move_to_end(digest)
                return file.view
        opened = self._pool.get(digest)
        return None if opened is None else self.add(opened)

    def add(self, file: PoolFile) -> memoryview:
        """Take an open object in, which is closed here from now on; its bytes."""
        view = file.view
        dropped: list[PoolFile] = []
        with self._lock:
            if file.digest in self._files:
                dropped.append(file)
            else:
                self._files[file.digest] = file
            while len(self._files) > self.most:
                dropped.append(self._files.popitem(last=False)[1])
        for one in dropped:
            one.close()
        return view

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            dropped = list(self._files.values())
            self._files.clear()
        for file in dropped:
            file.close()

    def __enter__(self) -> OpenObjects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
