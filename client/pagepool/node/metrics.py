"""Answers Prometheus for a node: `GET /metrics`, and nothing else, from threads of the worker.

The socket is opened when the node is started, so an address that cannot be had is an error of the command, and it is
handed from worker to worker: an address stays answered while workers come and go. One request is answered at a time;
who is slow waits in a thread of his own, of which there are few (`pagepool.scrapes`). Looking costs about a millisecond
and takes no lock that a container waits for. Whatever goes wrong here is logged, and the node goes on without.

No figure is about one image or one container: the number of figures is bounded by the code.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from http.server import HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import ListenError
from pagepool.mount.fuse.protocol import Opcode
from pagepool.node.exposition import CONTENT_TYPE, Family, Sample, counter, encode, gauge
from pagepool.node.handover import SUPERVISOR, WORKER, Post, count_starts
from pagepool.scrapes import ScrapeHandler, ScrapeServer
from pagepool.version import __version__

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable

    from pagepool.node.figures import Figures
    from pagepool.node.mounts import NodeMounts
    from pagepool.node.source import Source
    from pagepool.node.sources import Sources
    from pagepool.pool import Pool

_LOOK_S: Final = 0.5
_BACKLOG: Final = 16
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_POOL_GAUGES: Final = {
    "objects": ("objects", "Whole objects in the pool."),
    "bytes": ("bytes", "Bytes of whole objects in the pool."),
    "used_bytes": ("used", "Bytes that count against the budget of the pool."),
    "budget_bytes": ("effective_budget", "Most bytes of the pool, as long as its file system has room for them."),
    "pinned_bytes": ("pinned_bytes", "Bytes of objects that lost their names, and that mounts have in use."),
    "partial_bytes": ("partial_bytes", "Bytes of objects that are being filled."),
    "reserve_bytes": ("reserve", "Bytes of its file system that the pool leaves free."),
}
_POOL_COUNTERS: Final = {
    "hits": ("hits", "Openings by the node that found the object, since the machine booted."),
    "misses": ("misses", "Openings by the node that did not find the object, since the machine booted."),
    "evictions": ("evictions", "Objects evicted, since the machine booted."),
    "evicted_bytes": ("evicted_bytes", "Bytes evicted, since the machine booted."),
}

log = logging.getLogger("pagepool.node")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens for Prometheus.

    Raises:
        ListenError: the address is not ours, or in use.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ListenError(f"{host}:{port}", f"{error.strerror or error} (metrics)") from error
    return listener


class MetricsServer:
    """The threads that answer.

    Args:
        listener: stays open, for the next worker.
        collect: makes the figures.
    """

    def __init__(self, listener: socket.socket, collect: Callable[[], Iterable[Family]]) -> None:
        host, port = listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        listener.settimeout(_LOOK_S)  # the worker that this one follows may have taken what was there to accept
        self._server = _Server(listener, collect)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to answer. Does not block."""
        threading.Thread(target=self._serve, name="node-metrics", daemon=True).start()
        log.info("metrics on http://%s/metrics", self.address)

    def close(self) -> None:
        """Answer nobody any more, soon: what comes waits for the next worker. Does not block."""
        self._stopped.set()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            self._server.handle_request()
            self._server.service_actions()


class _Server(ScrapeServer, HTTPServer):
    timeout = _LOOK_S

    def __init__(self, listener: socket.socket, collect: Callable[[], Iterable[Family]]) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._collect = collect
        self._looking = threading.Lock()

    def collect(self) -> bytes:
        """The figures, for one after the other."""
        with self._looking:
            return encode(self._collect())

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's names
        log.debug("metrics: %s was not answered", client_address, exc_info=True)


class _Handler(ScrapeHandler):
    """One request, of HTTP/1.0."""

    server: _Server
    server_version = "pagepool"
    sys_version = ""

    def do_GET(self) -> None:  # noqa: N802  (the library's name)
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, explain="only /metrics is here")
            return
        try:
            body = self.server.collect()
        except Exception:
            log.exception("the figures cannot be had")
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug(format, *arguments)


class NodeCollector:
    """Makes the figures of a node.

    Args:
        run: the directory RUN.
        pool, mounts, sources, figures: of the worker.
        requests: that came to the lazy mount, by opcode.
    """

    def __init__(
        self,
        run: Path,
        pool: Pool,
        mounts: NodeMounts,
        sources: Sources,
        requests: Counter[int],
        figures: Figures,
    ) -> None:
        self._run, self._pool, self._mounts, self._sources = run, pool, mounts, sources
        self._requests, self._figures = requests, figures

    def __call__(self) -> list[Family]:
        """Every figure, as it is now."""
        mounted = [source for source in self._sources.all() if not source.record.released]
        requests = self._requests.copy()
        look_ups, reads = requests[Opcode.LOOKUP], requests[Opcode.READ]
        return [
            gauge("pagepool_build_info", "Always 1; the version of pagepool.", Sample(1, {"version": __version__})),
            gauge("pagepool_node_mounts", "Mounts of images.", Sample(len(self._mounts.all()))),
            gauge("pagepool_node_images", "Images that are mounted.", Sample(len(mounted))),
            gauge(
                "pagepool_node_images_leased",
                "Images that are mounted, and that the service keeps for us.",
                _count(mounted, lambda source: bool(source.record.lease)),
            ),
            gauge(
                "pagepool_node_images_failing",
                "Images that are mounted, and of which the last fetch failed.",
                _count(mounted, lambda source: source.failure is not None),
            ),
            *_describe(self._pool),
            counter(
                "pagepool_node_lazy_requests_total",
                "Requests of the kernel for what was not here.",
                Sample(look_ups, {"operation": "lookup"}),
                Sample(reads, {"operation": "read"}),
                Sample(requests.total() - look_ups - reads, {"operation": "other"}),
            ),
            *self._figures.families(),
            *_processes(self._run),
        ]


def _count(sources: Iterable[Source], test: Callable[[Source], bool]) -> Sample:
    return Sample(sum(map(test, sources)))


def _describe(pool: Pool) -> list[Family]:
    stats = pool.stats()
    return [
        gauge(f"pagepool_node_pool_{name}", text, Sample(getattr(stats, field)))
        for name, (field, text) in _POOL_GAUGES.items()
    ] + [
        counter(f"pagepool_node_pool_{name}_total", text, Sample(getattr(stats, field)))
        for name, (field, text) in _POOL_COUNTERS.items()
    ]


def _processes(run: Path) -> list[Family]:
    """Both processes, as /proc has them."""
    up: list[Sample] = []
    measured: tuple[list[Sample], ...] = ([], [], [])
    for name in (SUPERVISOR, WORKER):
        process = Post(run, name).holder()
        found = None if process is None else _look(Path("/proc", str(process)))
        up.append(Sample(found is not None, {"process": name}))
        for samples, value in zip(measured, found or (), strict=False):
            samples.append(Sample(value, {"process": name}))
    starts = [Sample(count_starts(run, name), {"process": name}) for name in (SUPERVISOR, WORKER)]
    resident, files, seconds = measured
    prefix = "pagepool_node_process"
    return [
        gauge(f"{prefix}_up", "Whether the process runs.", *up),
        counter(
            f"{prefix}_starts_total", "Times that it was started since the node was: once, if all is well.", *starts
        ),
        gauge(f"{prefix}_resident_memory_bytes", "Resident memory; the pool's pages that are mapped count.", *resident),
        gauge(f"{prefix}_open_fds", "Open file descriptors.", *files),
        counter(f"{prefix}_cpu_seconds_total", "Processor time.", *seconds),
    ]


def _look(process: Path) -> tuple[float, float, float] | None:
    """Resident bytes, open files and processor seconds of a process; None if it has just ended."""
    try:
        resident = int((process / "statm").read_text().split()[1]) * _PAGE
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return resident, sum(1 for _ in (process / "fd").iterdir()), (int(fields[11]) + int(fields[12])) / _TICKS
    except (FileNotFoundError, ProcessLookupError):
        return None
