"""The figures that are looked up when somebody asks: the store, its queue, the pool, and the service's processes.

What cannot be read is left out, also of a sum, and `pagepool_collect_success` says so: the rest of the figures are
wanted most when something is wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pagepool.errors import CorruptError, PagepoolError
from pagepool.version import __version__
from pagepool_service.seeing.processes import look
from pagepool_service.store.collect.report import FREED
from pagepool_service.store.cycle import is_collecting, last_summary
from pagepool_service.store.statistics import collect_totals, files_beside
from pagepool_service.uploadfiles import count_sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

    from pagepool.pool import Pool
    from pagepool_service.roster import Roster
    from pagepool_service.settings import Settings
    from pagepool_service.store.store import Store

log = logging.getLogger("pagepool.metrics")

_FRESH_S = 60.0
_STORE = {
    "disk_bytes": "Bytes that the data directory takes on disk.",
    "unique_bytes": "Bytes of distinct file content.",
    "plain_bytes": "Bytes of distinct layers as plain tars.",
    "dead_bytes": "Bytes of content that was stored and has been replaced.",
    "blobs": "Blobs stored.",
    "layers": "Distinct layers that were read.",
    "manifests": "Manifests stored.",
    "tags": "Tags.",
    "frames_waiting": "Frames that were not compressed once more yet.",
}
_COLLECTION = {
    "end_timestamp_seconds": ("ended_ns", 1e9, "When the last collection ended, in Unix time; 0: there was none."),
    "duration_seconds": ("seconds", 1, "Time that the last collection took."),
    "freed_content_bytes": ("freed_frame_bytes", 1, "Stored bytes of contents that the last collection freed."),
    "punched_bytes": ("punched_bytes", 1, "Bytes that the last collection gave back to the file system."),
    "longest_hold_seconds": ("longest_hold_s", 1, "Longest time that it held the lock of writers."),
}
_POOL_GAUGES = {
    "objects": ("objects", "Whole objects in the extent cache."),
    "bytes": ("bytes", "Bytes of whole objects in the extent cache."),
    "used_bytes": ("used", "Bytes that count against the budget of the extent cache."),
    "budget_bytes": ("budget", "Most bytes of the extent cache."),
    "partial_bytes": ("partial_bytes", "Bytes of objects in the extent cache that are being filled."),
}
_POOL_COUNTERS = {
    "hits": ("hits", "Openings that found the object in the extent cache, since the machine booted."),
    "misses": ("misses", "Openings that did not find the object in the extent cache, since the machine booted."),
    "evictions": ("evictions", "Objects evicted from the extent cache, since the machine booted."),
    "evicted_bytes": ("evicted_bytes", "Bytes evicted from the extent cache, since the machine booted."),
}


class ServiceCollector(Collector):
    """Looks everything up. Thread-safe: one look at a time.

    Args:
        store: opened for reading.
        pool: None if the service keeps none.
    """

    def __init__(self, settings: Settings, store: Store, pool: Pool | None, roster: Roster) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._roster = roster
        self._lock = threading.Lock()
        self._totals: dict[str, Any] = {}
        self._damaged: list[CorruptError] = []
        self._version = -1
        self._looked_s = 0.0

    def collect(self) -> Iterator[Metric]:
        """Every figure, as it is now. Scans the records of blobs and layers if the store has changed."""
        build = GaugeMetricFamily("pagepool_build_info", "Always 1; the version of pagepool.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        success = GaugeMetricFamily("pagepool_collect_success", "Whether these figures could be read.", labels=["part"])
        parts: dict[str, Callable[[], list[Metric]]] = {
            "store": self._read_store,
            "jobs": self._read_jobs,
            "collection": self._read_collection,
            "cache": self._read_pool,
            "processes": self._read_processes,
        }
        with self._lock:
            for part, read in parts.items():
                try:
                    found = read()
                except (PagepoolError, OSError) as error:
                    log.error("the figures of the %s cannot be read: %s", part, error)
                    found = []
                success.add_metric([part], float(bool(found) and not (part == "store" and self._damaged)))
                yield from found
        yield success

    def _read_store(self) -> list[Metric]:
        version, now = self._store.env.version(), time.monotonic()
        if version != self._version or now - self._looked_s > _FRESH_S:
            damaged: list[CorruptError] = []
            self._totals = collect_totals(self._store, damaged.append)
            for error in damaged:
                log.error("not in the figures of the store: %s", error)
            self._damaged = damaged
            self._version, self._looked_s = version, now
        kinds = self._totals["stored"] | files_beside(self._store)
        stored = GaugeMetricFamily("pagepool_store_bytes", "Bytes stored, by kind.", labels=["kind"])
        for kind, size in kinds.items():
            if size is not None:
                stored.add_metric([kind], size)
        return [
            stored,
            *(
                GaugeMetricFamily(f"pagepool_store_{name}", text, self._totals[name])
                for name, text in _STORE.items()
                if self._totals[name] is not None
            ),
            GaugeMetricFamily(
                "pagepool_store_quota_bytes", "Most bytes that may be stored; 0: no limit.", self._settings.quota_bytes
            ),
            GaugeMetricFamily("pagepool_uploads_open", "Open uploads.", count_sessions(self._store.uploads)),
            GaugeMetricFamily("pagepool_uploads_limit", "Most open uploads; 0: no limit.", self._settings.max_uploads),
        ]

    def _read_jobs(self) -> list[Metric]:
        jobs = GaugeMetricFamily("pagepool_jobs", "Work on blobs that is not done.", labels=["kind", "state"])
        for (kind, running), count in self._store.jobs.count_states().items():
            jobs.add_metric([kind.name.lower(), "running" if running else "waiting"], count)
        return [jobs]

    def _read_collection(self) -> list[Metric]:
        with self._store.env.read() as txn:
            running, last = is_collecting(txn), last_summary(txn) or {}
        freed = GaugeMetricFamily(
            "pagepool_collection_last_freed", "Records that the last collection removed.", labels=["kind"]
        )
        for kind in FREED:
            freed.add_metric([kind.replace(" ", "_")], last.get("freed", {}).get(kind, 0))
        return [
            GaugeMetricFamily("pagepool_collection_running", "Whether a collection runs.", float(running)),
            freed,
            *(
                GaugeMetricFamily(f"pagepool_collection_last_{name}", text, last.get(key, 0) / unit)
                for name, (key, unit, text) in _COLLECTION.items()
            ),
        ]

    def _read_pool(self) -> list[Metric]:
        if self._pool is None:
            return [GaugeMetricFamily("pagepool_cache_budget_bytes", _POOL_GAUGES["budget_bytes"][1], 0)]
        stats = self._pool.stats()
        gauges = [
            GaugeMetricFamily(f"pagepool_cache_{name}", text, getattr(stats, field))
            for name, (field, text) in _POOL_GAUGES.items()
        ]
        return gauges + [
            CounterMetricFamily(f"pagepool_cache_{name}", text, getattr(stats, field))
            for name, (field, text) in _POOL_COUNTERS.items()
        ]

    def _read_processes(self) -> list[Metric]:
        labels = ["process"]
        up = GaugeMetricFamily("pagepool_process_up", "Whether the process runs.", labels=labels)
        shared = "Resident memory; pages that processes share count in each of them."
        measured: tuple[GaugeMetricFamily | CounterMetricFamily, ...] = (
            GaugeMetricFamily("pagepool_process_resident_memory_bytes", shared, labels=labels),
            GaugeMetricFamily("pagepool_process_open_fds", "Open file descriptors.", labels=labels),
            CounterMetricFamily("pagepool_process_cpu_seconds", "Processor time.", labels=labels),
        )
        for name, pid in self._roster.processes().items():
            figures = look(pid) if pid else None
            up.add_metric([name], float(figures is not None))
            for family, value in zip(measured, figures or (), strict=False):
                family.add_metric([name], value)
        held = "Seconds for which one process has kept all writes waiting; 0 unless that is long."
        return [up, *measured, GaugeMetricFamily("pagepool_writer_held_seconds", held, self._roster.writer()[1])]
