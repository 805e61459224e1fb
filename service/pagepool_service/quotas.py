"""How much a repository may hold: decided here, counted in the transaction that adds to it.

What counts are the sizes of the blobs and manifests that the repository links to, each fully, whatever it shares with
others and however it is stored: so a quota does not tell what others have. A push is refused as soon as it is known
that it will not fit, and for good in the transaction that would link it: no two pushes at once exceed it together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool_service.store.room import NO_LIMIT, Room, RoomLimit, used_bytes

if TYPE_CHECKING:
    from pagepool_service.auth.authority import Authority
    from pagepool_service.store.store import Store


class RepositoryQuotas:
    """The quotas of a service. Thread-safe.

    Args:
        store: says what repositories hold.
        usual: bytes that a repository may hold; 0 for no limit.
        authority: whose rights may say otherwise.
    """

    def __init__(self, store: Store, usual: int, authority: Authority | None) -> None:
        self._store = store
        self._usual = usual
        self._authority = authority

    def limit(self, repository: str) -> RoomLimit:
        """What a transaction that adds to a repository is to keep to."""
        most = self._usual if self._authority is None else self._authority.rights.quota(repository, self._usual)
        return RoomLimit(most) if most else NO_LIMIT

    def room(self, repository: str, incoming: int) -> Room | None:
        """How much more a repository may take, so that what will not fit is refused early. Blocks for a moment.

        Args:
            incoming: bytes that are known to come.

        Returns:
            None if there is no quota.

        Raises:
            RepositoryFullError: they will not fit.
        """
        limit = self.limit(repository)
        if not limit.most:
            return None
        with self._store.env.read() as txn:
            room = Room(repository, used_bytes(txn, repository), limit.most)
        room.check(incoming)
        return room
