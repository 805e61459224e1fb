"""The figures that a process keeps of its own work, in files that the exporting process adds up.

The files are those of prometheus_client's multiprocess mode: eight bytes mapped into memory for each figure. Unlike
there by default, they are named after the place of a process and not its number: a worker that is started again goes
on with the figures of the one that died, so no counter runs backwards and no files pile up. One process at a time has
a place.

Labels are bounded by the code: routes by their templates, methods by a list, statuses by their class.
"""

from __future__ import annotations

import os
from http import HTTPMethod
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_METHODS = frozenset(HTTPMethod)
_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_INGESTS_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


def keep_in(directory: Path, place: str) -> CollectorRegistry:
    """Have this process's figures kept in a directory. Called once in a process, before there are any.

    Args:
        place: of the process, a part of file names without underscores.
    """
    # The one way to tell it. Not before the fork: each process has files of its own.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
    return CollectorRegistry()


class RequestMetrics:
    """What a worker keeps of requests. For the event loop's thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "pagepool_http_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "pagepool_http_request_duration_seconds",
            "Time from the head of a request to the end of its answer.",
            ["route", "method"],
            buckets=_LATENCIES_S,
            registry=registry,
        )
        self._received = Counter(
            "pagepool_http_received_bytes", "Bytes of requests' bodies.", ["route"], registry=registry
        )
        self._sent = Counter("pagepool_http_sent_bytes", "Bytes of answers' bodies.", ["route"], registry=registry)
        self._reads = Counter("pagepool_page_reads", "Page reads answered at once from the cache.", registry=registry)
        self._read_bytes = Counter("pagepool_page_read_bytes", "Bytes that those answered.", registry=registry)
        self._found: dict[tuple[str, str, int], tuple[Counter, Histogram, Counter, Counter]] = {}

    def observe(self, route: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count a request that has ended.

        Args:
            route: its template.
            status: 0 if there was no answer.
            received: bytes of its body.
            sent: bytes of the answer's.
        """
        key = route, method if method in _METHODS else "other", status // 100 or 5
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = (
                self._requests.labels(route, key[1], f"{key[2]}xx"),
                self._seconds.labels(route, key[1]),
                self._received.labels(route),
                self._sent.labels(route),
            )
        found[0].inc()
        found[1].observe(seconds)
        if received:
            found[2].inc(received)
        if sent:
            found[3].inc(sent)

    def add_pages(self, reads: int, size: int) -> None:
        """Count page reads that were answered, and their bytes."""
        if reads:
            self._reads.inc(reads)
            self._read_bytes.inc(size)


def ingest_observer(registry: CollectorRegistry) -> Callable[[str, float], None]:
    """What a maintenance process calls for each layer that it read, with how that ended and the seconds it took."""
    seconds = Histogram(
        "pagepool_layer_ingest_seconds", "Time to read a layer.", ["result"], buckets=_INGESTS_S, registry=registry
    )
    return lambda result, took_s: seconds.labels(result).observe(took_s)
