"""How much a repository holds, and whether more fits: looked at in the transaction that adds to it.

What counts are the sizes of the blobs and manifests that the repository links to, each fully, whatever it shares with
others. Counted each time, out of the links: there is no total that could be wrong. That took 4 to 8 microseconds for
each blob of the repository when it was measured, and is done only where there is a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from pagepool.errors import DeniedError
from pagepool_service.store.catalogue import repository_prefix
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import BlobRecord

if TYPE_CHECKING:
    from pagepool_service.store.environment import Reader

_AT_ONCE = 1024  # records looked up in one call


class RepositoryFullError(DeniedError):
    """A repository would hold more than it may.

    Args:
        repository: its name.
        used: bytes that it holds.
        incoming: bytes that would be added.
        allowed: bytes that it may hold.
    """

    def __init__(self, repository: str, used: int, incoming: int, allowed: int) -> None:
        self.used, self.incoming, self.allowed = used, incoming, allowed
        super().__init__(
            f"the quota of repository {repository} is {allowed} bytes: {used} are used, and {incoming} more are coming"
        )


@dataclass(frozen=True, slots=True)
class RoomLimit:
    """How much a repository may hold, in bytes of its blobs and manifests; 0 for any amount."""

    most: int


NO_LIMIT: Final = RoomLimit(0)


@dataclass(frozen=True, slots=True)
class Room:
    """What a repository held a moment ago, and may hold."""

    repository: str
    used: int
    most: int

    def check(self, incoming: int) -> None:
        """See that so many more bytes fit.

        Raises:
            RepositoryFullError: they do not.
        """
        if self.used + incoming > self.most:
            raise RepositoryFullError(self.repository, self.used, incoming, self.most)


def used_bytes(txn: Reader, repository: str) -> int:
    """What a repository holds, a manifest with the head and checksum of its record.

    Checksums are not looked at: that would take three times as long, and a damaged record must not end every push.
    """
    prefix = repository_prefix(repository)
    used = 0
    blobs = (key[len(prefix) :] for key, _ in txn.scan(Table.LINKS, prefix, check=False))
    while some := list(islice(blobs, _AT_ONCE)):
        used += sum(BlobRecord.size_in(value) for value in txn.get_many_unchecked(Table.BLOBS, some))
    for key, _ in txn.scan(Table.MANIFEST_LINKS, prefix, check=False):
        value = txn.get_unchecked(Table.MANIFESTS, key[len(prefix) :])
        used += 0 if value is None else len(value)
    return used


def check_room(txn: Reader, repository: str, limit: RoomLimit, incoming: int) -> None:
    """See that so many more bytes fit.

    Raises:
        RepositoryFullError: they do not.
    """
    if not limit.most:
        return
    Room(repository, used_bytes(txn, repository), limit.most).check(incoming)
