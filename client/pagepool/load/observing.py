"""What the service does meanwhile: its cache, and, where they can be seen, its memory and processor time."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

from pagepool.errors import PagepoolError
from pagepool.linux.processes import cpu_seconds, memory_of, process_tree

if TYPE_CHECKING:
    from pagepool.library import Client

_CACHE: Final = ("hits", "misses", "evictions", "bytes", "budget", "objects")
_SAMPLE: Final = re.compile(r"(pagepool_[a-z_]+)(?:\{[^}]*\})? ([0-9.eE+-]+)")
_TIMEOUT_S: Final = 5.0
_SUMMED: Final = ("pagepool_process_resident_memory_bytes", "pagepool_process_cpu_seconds_total")


@dataclass(slots=True)
class ServiceView:
    """What was seen of a service over a test.

    Args:
        cache_before, cache_after: of ``GET /v1/cache``, the counters and sizes; empty if it has none.
        memory: the most that its processes took together, bytes; 0 if that cannot be seen.
        memory_kind: what that is: ``PSS`` or ``RSS``.
        cpu_s: processor time; 0 if it cannot be seen.
    """

    cache_before: dict[str, int] = field(default_factory=dict)
    cache_after: dict[str, int] = field(default_factory=dict)
    memory: int = 0
    memory_kind: str = ""
    cpu_s: float = 0.0

    @property
    def hit_ratio(self) -> float | None:
        """Of the openings of contents in its pool, by all who use it; None if there were none, or it has no pool."""
        hits, misses = (self.cache_after.get(name, 0) - self.cache_before.get(name, 0) for name in ("hits", "misses"))
        return hits / (hits + misses) if hits + misses > 0 and hits >= 0 and misses >= 0 else None


class ServiceWatch:
    """Looks at a service.

    Args:
        client: of it.
        metrics: address of its metrics; "" if they are not to be looked at.
        pid: its first process, if it runs on this machine and is ours; else 0.
    """

    def __init__(self, client: Client, metrics: str, pid: int) -> None:
        self._client, self._metrics, self._pid = client, metrics, pid
        self._cpu_before = 0.0
        self.view = ServiceView()

    def begin(self) -> None:
        """Look for the first time."""
        self.view.cache_before = self._cache()
        self._cpu_before = self._cpu()
        self.sample()

    def sample(self) -> None:
        """Look at its memory; called every now and then."""
        if self._pid:
            found = sum(memory_of(pid).get("Pss", 0) for pid in process_tree(self._pid))
            self.view.memory, self.view.memory_kind = max(self.view.memory, found), "PSS"
        elif self._metrics:
            found = int(self._scrape().get(_SUMMED[0], 0))
            self.view.memory, self.view.memory_kind = max(self.view.memory, found), "RSS"

    def end(self) -> None:
        """Look for the last time."""
        self.sample()
        self.view.cache_after = self._cache()
        self.view.cpu_s = max(0.0, self._cpu() - self._cpu_before)

    def _cpu(self) -> float:
        if self._pid:
            return sum(cpu_seconds(pid) for pid in process_tree(self._pid))
        return self._scrape().get(_SUMMED[1], 0.0)

    def _cache(self) -> dict[str, int]:
        with suppress(PagepoolError):
            found: dict[str, Any] = dict(self._client.service.cache())
            return {name: int(found[name]) for name in _CACHE if isinstance(found.get(name), int)}
        return {}

    def _scrape(self) -> dict[str, float]:
        """Sums of metrics over their labels; none if they cannot be had."""
        if not self._metrics:
            return {}
        try:
            text = httpx.get(self._metrics, timeout=_TIMEOUT_S).raise_for_status().text
        except (httpx.HTTPError, httpx.InvalidURL):
            return {}
        found: dict[str, float] = {}
        for line in text.splitlines():
            if match := _SAMPLE.match(line):
                found[match[1]] = found.get(match[1], 0.0) + float(match[2])
        return found
