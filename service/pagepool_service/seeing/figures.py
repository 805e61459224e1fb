"""The figures of the whole service: store, cache, processes; and the samples that become its history.

Concurrency: `Figures` computes one answer at a time; those who ask meanwhile wait, and have the same one. What takes
long is done again only after twenty times as long, so looking takes at most a twentieth of a processor.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pagepool.errors import PagepoolError
from pagepool.version import __version__
from pagepool_service.seeing.contents import key_of
from pagepool_service.seeing.processes import look
from pagepool_service.seeing.sharing import measure_saved
from pagepool_service.statistics import Damage, summarise
from pagepool_service.store.statistics import collect_totals, directory_bytes, files_beside
from pagepool_service.uploadfiles import count_sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.pool import Pool
    from pagepool_service.roster import Roster
    from pagepool_service.seeing.contents import ContentsCache
    from pagepool_service.seeing.tally import Tally
    from pagepool_service.settings import Settings
    from pagepool_service.store.store import Store
    from pagepool_service.treecache import TreeCache

Result = TypeVar("Result")

_SHARE = 20  # how many times as long as something took it is not done again
_FRESH_S = 2.0
_LOOK_S = 2.0  # at trees, at a time
_LONGEST_S = 300.0
_TOTALS = (
    *("layers", "manifests", "tags", "blobs", "pending_blobs", "unmountable_blobs", "jobs_waiting", "frames_waiting"),
    *("plain_bytes", "file_bytes", "unique_bytes", "stored_bytes", "stored"),
    *("opaque_copies_bytes", "rebuilt_blobs_bytes"),
    *("disk_bytes", "free_pages_bytes", "dead_bytes", "dedup_ratio", "compression_ratio"),
)


class Saved(NamedTuple):
    """What the pool saves.

    Args:
        trees: images that were looked at.
        logical_bytes: of all their files whose content is in the pool.
        unique_bytes: of these contents, each once.
        left_off: images for which there was no time.
    """

    trees: int
    logical_bytes: int
    unique_bytes: int
    left_off: int = 0

    @property
    def saved_bytes(self) -> int:
        """What is not there a second time."""
        return self.logical_bytes - self.unique_bytes


class Figures:
    """Looks everything up. Thread-safe; blocks.

    Args:
        pool: None if there is none.
        roster: None where the caller is the only process.
        tally: None where nobody counts.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        pool: Pool | None,
        trees: TreeCache,
        contents: ContentsCache,
        roster: Roster | None,
        tally: Tally | None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._trees = trees
        self._contents = contents
        self._roster = roster
        self._tally = tally
        self._lock = threading.Lock()
        self._totals: _Rarely[dict[str, Any]] = _Rarely(self._count_store)
        self._saved: _Rarely[Saved] = _Rarely(self._measure_saved)

    def overview(self) -> dict[str, Any]:
        """Everything, as JSON. Parts that cannot be read are null."""
        with self._lock:
            return {
                "version": __version__,
                "read_only": self._store.is_read_only(),
                "now_s": int(time.time()),
                "store": self._described_store(),
                "cache": self._described_pool(),
                "requests": None if self._tally is None else self._tally.total()._asdict(),
                "uploads": {
                    "open": count_sessions(self._store.uploads),
                    "most": self._settings.max_uploads,
                    "bytes": directory_bytes(self._store.uploads),
                },
                "processes": self._processes(),
            }

    def sample(self) -> dict[str, int | None]:
        """The fields of a sample: see `history.FIELDS`."""
        with self._lock:
            found: dict[str, int | None] = {}
            totals = self._described_store()
            if totals is not None:
                found |= {name: totals[name] for name in ("disk_bytes", "unique_bytes", "logical_bytes")}
            if self._pool is not None:
                stats = self._pool.stats()
                found |= {"hits": stats.hits, "misses": stats.misses}
                found |= {"cache_used": stats.used, "cache_budget": stats.budget}
                found["saved_bytes"] = self._saved.get(stats.bytes).saved_bytes
            if self._tally is not None:
                found |= self._tally.total()._asdict()
            return found

    def _described_store(self) -> dict[str, Any] | None:
        try:
            totals = self._totals.get(self._store.env.version())
        except PagepoolError:
            return None
        # What no transaction tells of is looked at each time.
        beside = files_beside(self._store)
        disk = self._store.env.file_bytes() + sum(beside.values())
        stored = totals["stored"] | beside
        stored_bytes = None if None in stored.values() else sum(stored.values())
        return totals | {"disk_bytes": disk, "stored": stored, "stored_bytes": stored_bytes}

    def _count_store(self) -> dict[str, Any]:
        damage = Damage()
        totals = collect_totals(self._store, damage.add)
        images = summarise(self._store, damage)
        return {name: totals[name] for name in _TOTALS} | {
            "quota_bytes": self._settings.quota_bytes,
            "images": images.images,
            "images_left_off": images.more,
            "logical_bytes": images.logical_bytes,
            "images_compressed_bytes": images.compressed_bytes,
            "damaged": damage.count,
        }

    def _described_pool(self) -> dict[str, Any] | None:
        if self._pool is None:
            return None
        stats = self._pool.stats()
        saved = self._saved.get(stats.bytes)
        opened = stats.hits + stats.misses
        return {
            "path": str(self._pool.path),
            "budget": stats.budget,
            "used": stats.used,
            "bytes": stats.bytes,
            "objects": stats.objects,
            "partials": stats.partials,
            "partial_bytes": stats.partial_bytes,
            "hits": stats.hits,
            "misses": stats.misses,
            "hit_ratio": round(stats.hits / opened, 4) if opened else None,
            "evictions": stats.evictions,
            "evicted_bytes": stats.evicted_bytes,
            "saved_bytes": saved.saved_bytes,
            "logical_bytes": saved.logical_bytes,
            "unique_bytes": saved.unique_bytes,
            "trees": saved.trees,
            "trees_left_off": saved.left_off,
        }

    def _measure_saved(self) -> Saved:
        assert self._pool is not None
        present = frozenset(map(key_of, self._pool.digests()))
        names = self._trees.names() if present else []
        self._contents.forget(frozenset(names))
        # What is read is remembered, so that the next time gets further.
        deadline = time.monotonic() + _LOOK_S
        found = (self._contents.get(tree) for tree in names if time.monotonic() < deadline)
        trees, logical, unique = measure_saved((one for one in found if one is not None), present)
        return Saved(trees, logical, unique, len(names) - trees)

    def _processes(self) -> list[dict[str, Any]]:
        found = []
        for name, pid in ({} if self._roster is None else self._roster.processes()).items():
            figures = look(pid) if pid else None
            seen = None if figures is None else {key: round(value, 2) for key, value in figures._asdict().items()}
            found.append({"name": name, "up": figures is not None, **(seen or {})})
        return found


class _Rarely(Generic[Result]):
    """What is found out again only when something has changed, and not before twenty times as long as it takes.

    Args:
        find: finds it. Blocks.
    """

    def __init__(self, find: Callable[[], Result]) -> None:
        self._find = find
        self._found: list[Result] = []
        self._state: object = None
        self._due_s = self._stale_s = 0.0

    def get(self, state: object) -> Result:
        """What was found, now or a while ago.

        Args:
            state: what it depends on, as far as that is known.
        """
        now = time.monotonic()
        if not self._found or now >= (self._due_s if state != self._state else self._stale_s):
            self._found[:] = [self._find()]
            self._state = state
            took = time.monotonic() - now
            self._due_s = now + max(_FRESH_S, _SHARE * took)
            self._stale_s = now + max(_LONGEST_S, _SHARE * took)
        return self._found[0]
