"""Directories as READDIR wants them: in pieces, each going on where the last one ended, without an open handle.

OPENDIR is never answered, so that the kernel may keep listings; a piece is asked for by the cookie of the entry before
it. Entries come and go between two pieces, and those that stay must each be given once, so a cookie cannot be a place
in a list. It is a hash of the name, and a directory is listed in the order of its cookies, as ext4 does it. The hash
is keyed by chance in each process, so nobody can choose names that collide; two of 100 000 names do with a
probability of 10^-9, and then one of them could be missing in a listing that ends between them.

A listing is kept from its first piece to its last, so that a big directory is not read and sorted for every piece, and
forgotten when its directory changes: the kernel holds the directory's lock while it lists as while it changes it.
Thread-safe.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final

from pagepool.image.member import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.vfs.interface import FileSystem

_KEPT: Final = 64
_COOKIES: Final = (1 << 63) - 1

_DOT: Final = 1
_DOT_DOT: Final = 2

Listed = tuple[int, bytes, int, Kind]
"""A cookie, a name, the number of its inode, and what that is."""


class Listings:
    """Listings under way.

    Args:
        filesystem: whose directories they are.
    """

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem
        self._kept: OrderedDict[int, list[Listed]] = OrderedDict()
        self._lock = Lock()

    def after(self, directory: int, cookie: int) -> Sequence[Listed]:
        """The entries behind a cookie, 0 for all; ``.`` and ``..`` come first."""
        with self._lock:
            listing = self._kept.get(directory) if cookie else None
        if listing is None:
            listing = self._read(directory)
            with self._lock:
                self._kept[directory] = listing
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        start = bisect_right(listing, cookie, key=_cookie)
        if start == len(listing):
            self.changed(directory)  # it was the last piece
        return listing[start:] if start else listing

    def changed(self, directory: int) -> None:
        """Forget the listing of a directory."""
        with self._lock:
            self._kept.pop(directory, None)

    def _read(self, directory: int) -> list[Listed]:
        listing = [
            (_DOT, b".", directory, Kind.DIRECTORY),
            (_DOT_DOT, b"..", self._filesystem.parent(directory), Kind.DIRECTORY),
        ]
        listing += (
            (hash(name) & _COOKIES | 4, name, ino, kind) for name, ino, kind in self._filesystem.entries(directory)
        )
        listing.sort(key=_cookie)
        return listing


def _cookie(listed: Listed) -> int:
    return listed[0]
