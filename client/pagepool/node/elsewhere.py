"""Where else the trees of a node came from: the same image may be mounted from several services, or repositories.

What a tree's objects are asked for first is where it was mounted from last (`sources`). That may be gone, refuse, or be
wrong, while another place from which it was mounted before has all of it: then that is asked. One source for each other
place, the last one that was known; noted beside the tree's own record, which is read after it. Of many places the last
few are kept. Not thread-safe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pagepool.digest import blake3_raw
from pagepool.node.records import write_record

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.node.records import SourceRecord
    from pagepool.node.source import Source

_MOST: Final = 8
"""Of one tree: each has connections, and is asked in turn for what no other has."""


class Elsewhere:
    """Further sources of trees.

    Args:
        directory: of the records.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sources: dict[str, dict[tuple[str, str], Source]] = {}

    def of(self, tree: str) -> list[Source]:
        """Those of a tree, the last one first."""
        return list(reversed(self._sources.get(tree, {}).values()))

    def all(self) -> list[Source]:
        """Those of all trees."""
        return [source for sources in self._sources.values() for source in sources.values()]

    def put(self, source: Source, *, noted: bool = False) -> list[Source]:
        """Keep a source of a tree that is mounted from another place from now on.

        Args:
            noted: whether there is a record of it.

        Returns:
            those that are not kept any more: the one of this place before it, or the oldest of too many.

        Raises:
            OSError: it cannot be noted.
        """
        record = source.record
        if not noted:
            write_record(self._path(record), record)
        sources = self._sources.setdefault(record.tree, {})
        before = sources.pop(record.place, None)
        sources[record.place] = source
        gone = [] if before is None else [before]
        while len(sources) > _MOST:
            oldest = sources.pop(next(iter(sources)))
            self._path(oldest.record).unlink(missing_ok=True)
            gone.append(oldest)
        return gone

    def take(self, record: SourceRecord) -> Source | None:
        """Forget the one of a place, from which the tree is mounted again."""
        self._path(record).unlink(missing_ok=True)
        return self._sources.get(record.tree, {}).pop(record.place, None)

    def forget(self, tree: str) -> list[Source]:
        """Forget those of a tree. Returns them."""
        gone = self._sources.pop(tree, {})
        for source in gone.values():
            self._path(source.record).unlink(missing_ok=True)
        return list(gone.values())

    def _path(self, record: SourceRecord) -> Path:
        place = blake3_raw("\n".join(record.place).encode()).hex()[:16]
        return self._directory / f"{record.tree}-{place}.json"
