"""The worker of a node: puts pool, sources, lazy mount, mounts and control socket together, and serves until it is told
to end.

Started by the supervisor, with the device of the lazy mount and the listening socket inherited. Everything that must
outlive it is written down (`records`, `lazy`) or in the kernel; so it can be killed at any time, and another one goes
on. It opens nothing below a mount of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.content import ObjectCache, Ticker
from pagepool.library.client import default_budget
from pagepool.linux.signals import Signals
from pagepool.linux.superblocks import mounted_device
from pagepool.mount import kernel
from pagepool.node.answering import ControlServer
from pagepool.node.figures import Figures
from pagepool.node.filling import Filler
from pagepool.node.forgetting import LetGo, forget_unused, let_go
from pagepool.node.guard import Guard
from pagepool.node.guessing import Guesses
from pagepool.node.handover import shorten_log
from pagepool.node.images import Images
from pagepool.node.lazy import LARGE, STARTING_READ_AHEAD_KIB, LazyServer, mount_lazy_again, set_read_ahead, settle
from pagepool.node.leases import LeaseKeeper
from pagepool.node.links import Links, ReadInParts
from pagepool.node.mounts import NodeMounts
from pagepool.node.operations import Operations
from pagepool.node.parts import Parts
from pagepool.node.recording import Profiles
from pagepool.node.records import uptime_s
from pagepool.node.scrubbing import NodeScrub
from pagepool.node.sessions import Sessions, look_at_authorities, prepare
from pagepool.node.sources import Sources
from pagepool.node.writeback import Writeback
from pagepool.pool import Custody, Pool, verify_suspects

if TYPE_CHECKING:
    from pagepool.node.metrics import MetricsServer
    from pagepool.node.places import NodePlaces
    from pagepool.node.source import Source
    from pagepool.pool import ScrubReport

_TICK_S: Final = 10.0
_PRUNE_TICKS: Final = 3
_GONE_S: Final = 1.0
"""So long a server may take to notice that there is nothing to serve."""

log = logging.getLogger("pagepool.node")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a node works.

    Args:
        budget: most bytes of its pool; None: as it was, at first `default_budget`.
        timeout_s: about how long a request to a service may take before whoever waits gets an error.
        large: objects of more bytes are read piece by piece through the lazy mount.
        fill: whether images that were mounted are fetched as a whole, when there is time.
        profiles: whether start-up profiles are recorded and used.
        parts: when files that are not large are read in parts, too, while containers start.
        reserve: bytes of the pool's file system that are left free for what containers write; None: as it was.
        pool_image: bytes of a file with a file system for everything that the node keeps; None: none is made.
        metrics_listen: address and port that answer Prometheus, port 0: any; None: nobody is answered.
    """

    budget: int | None = None
    timeout_s: float = 30.0
    large: int = LARGE
    fill: bool = True
    profiles: bool = True
    parts: ReadInParts = ReadInParts.AUTO
    reserve: int | None = None
    pool_image: int | None = None
    metrics_listen: tuple[str, int] | None = None


class Worker:
    """A node at work.

    Args:
        places: of the node.
        options: how it works.
        guard: the link with the supervisor; has the descriptors.
    """

    def __init__(self, places: NodePlaces, options: WorkerOptions, guard: Guard) -> None:
        self.places, self.options = places, options
        self._guard = guard
        self._stopped = threading.Event()
        self._signals = Signals((signal.SIGTERM, signal.SIGINT))
        self._is_set_up = False
        self._letting_go = LetGo()
        self.support = ""
        """What this machine has for kernel mounts, in a few words, once that was tried and there is enough."""
        descriptors = guard.descriptors()
        self.custody = Custody(places.run, places.fetched, self._in_use, release=self._forget_unused)
        initial = _initial_budget(places)
        self.pool = Pool.open(
            places.pool, budget=options.budget, initial=initial, reserve=options.reserve, custody=self.custody
        )
        self.cache = ObjectCache(self.pool, self.pool.budget)
        self._ticker = Ticker(self.cache)
        self.figures = Figures()
        self.sources = Sources(
            places,
            self.cache,
            options.timeout_s,
            self.custody.link,
            self._on_large,
            self.figures,
            Parts(self._on_starting),
            options.large,
        )
        self.sessions = Sessions(options.timeout_s)
        self.scrubbing = NodeScrub(
            self.pool, self.sources.bring, self.sources.forget, self._forget_unused, on_report=self._count_scrub
        )
        self._writeback = Writeback(self.pool, self.scrubbing.check_since)
        self._fuse = descriptors["fuse"]
        self._keeping = threading.Lock()
        self._lazy_device: tuple[int, int] | None = None  # once it is known to be the lazy mount's
        self.lazy = LazyServer(self._fuse, self.sources, state=places.serving, large=options.large)
        self.filler = Filler(places.objects, self.sources.busy, self.pool.sync, self.sources.note_whole)
        links = Links(options.parts)
        self.profiles = Profiles(self.sources, options.large, links)
        self.guesses = Guesses(self.sources, options.large)
        self.sources.on_opened = self.guesses.opened
        self.leases = LeaseKeeper(self.sources)
        self.images = Images(places, links)
        with contextlib.suppress(OSError):  # `_set_up` tries again, and knows what to do
            self.keep_lazy()  # mounts are known by it
        self.mounts = NodeMounts(places, self._on_unused)
        listener = socket.socket(fileno=os.dup(descriptors["control"]))
        self._control = ControlServer(listener, Operations(self).handlers())
        self.metrics = self._make_metrics(descriptors.get("metrics"))

    def run(self) -> None:
        """Serve. Returns when the node is to end."""
        with self._signals:
            if self._set_up():
                self._signals.wait()
            self._stopped.set()
            self.close()

    def _set_up(self) -> bool:
        """Begin to serve. False: there is nothing to serve, and the node is to end."""
        # Before anything is mounted: the kernel opens objects by their names, and hashes none.
        suspects = verify_suspects(self.pool)
        if suspects.objects:
            log.info(
                "%d objects were hashed after the machine went down, %d removed",
                suspects.objects,
                len(suspects.removed),
            )
        self.sources.load()
        self._is_set_up = True
        self.sources.take_up_lazy(self.lazy.large_objects())
        self.lazy.start()
        try:
            self.keep_lazy()
            settle(self.places.lazy)
        except OSError:
            if not self.lazy.join(_GONE_S):
                raise
            self._end_without_lazy()
            return False
        self._on_starting(False)  # the worker before may have died while a container started
        self._control.start()
        self._guard.ready()
        if self.metrics is not None:
            self.metrics.start()
        log.info("serving; %d trees are known, %d mounts", len(self.sources.all()), len(self.mounts.all()))
        threading.Thread(target=self._tend, name="node-tend", daemon=True).start()
        threading.Thread(target=self._watch_lazy, name="node-lazy", daemon=True).start()
        threading.Thread(target=self._watch_disk, name="node-disk", daemon=True).start()
        self.scrubbing.start()
        return True

    def keep_lazy(self) -> None:
        """See that the lazy mount is in its place, whoever has unmounted it.

        Raises:
            OSError: it cannot be: it is gone for good, and the node ends.
        """
        with self._keeping:
            if self._is_lazy_seen():
                return
            if mount_lazy_again(self.places.lazy, self._fuse):
                log.warning("%s had been unmounted, and is mounted again", self.places.lazy)
            self._lazy_device = mounted_device(self.places.lazy)

    def _is_lazy_seen(self) -> bool:
        """Whether the lazy mount is what is seen at its place, as it nearly always is. Costs the same however much is
        mounted, unlike a look at the list of all mounts."""
        with contextlib.suppress(OSError):
            return self._lazy_device is not None and mounted_device(self.places.lazy) == self._lazy_device
        return False

    def _watch_lazy(self) -> None:
        """A lazy mount that is gone for good serves nobody: without it no image can be mounted until a new node is
        started, which only begins when this one has ended."""
        self.lazy.join()
        if not self._stopped.is_set():
            self._end_without_lazy()
            self._signals.wake()

    def _end_without_lazy(self) -> None:
        log.error("the lazy mount is gone: its connection was aborted, or all of it was unmounted; the node ends")
        self._guard.stop()

    def announce_end(self) -> None:
        """Have nobody started in place of this worker, also if it does not live until `stop`."""
        self._guard.stop()

    def stop(self) -> None:
        """End the node, not only this worker: have `run` return, and nobody started in its place."""
        try:
            self.announce_end()
        finally:
            self._signals.wake()

    def close(self) -> None:
        """Let go of everything; nothing is unmounted."""
        # What is asked for from here on is left to the next worker.
        self._control.retire()
        if self.metrics is not None:
            self.metrics.close()
        self.lazy.retire()
        self.leases.close()
        self.filler.close()
        self.scrubbing.close()
        self._ticker.close()
        self.pool.sync()
        self.cache.close()

    def _tend(self) -> None:
        """What is to be done now and then."""
        for task, what in (
            (self._take_up_mounts, "what an earlier process has left is not cleaned up"),
            (prepare, "what the first mount needs is not loaded ahead"),
            (self.look_at_kernel, "whether the kernel can mount images is not known"),
        ):
            try:
                task()
            except Exception:
                log.exception(what)
        tick = 0
        while not self._stopped.wait(_TICK_S):
            tick += 1
            try:
                self.keep_lazy()
                self.custody.unlink_old()
                self.pool.stats()  # which counts what lost its names and is not used any more
                for source in self._to_fill():
                    self.filler.take_up(source)
                if self._letting_go.is_due(self.sources.lazy_wholes()):
                    let_go(self.places.lazy)
                shorten_log(self.places.log)
                if tick % _PRUNE_TICKS == 0:
                    self.mounts.prune()
                    for source in self.sources.all():
                        if not source.record.released:
                            self.mounts.drop(source.record.tree)
                    self.sources.forget_released()
                    records = [source.record for source in self.sources.all()]
                    known = {record.tree for record in records} | self.mounts.trees_in_use()
                    self.images.forget_unused(known)
                    self.images.forget_notes(known | {record.manifest.rpartition(":")[2] for record in records})
                    self.sessions.close_idle()
                    self.sources.close_expired()
                    look_at_authorities()
            except Exception:
                log.exception("tending the node failed")

    def _watch_disk(self) -> None:
        """See that what is published gets to the disk."""
        while not self._stopped.wait(_TICK_S):
            try:
                self._writeback.look()
            except Exception:
                if not self._stopped.is_set():
                    log.exception("what the disk did not take is not removed")

    def look_at_kernel(self) -> None:
        """Try whether the kernel can mount images: commands that ask need not."""
        found = kernel.probe(self.places.state)
        if found.kernel:
            self.support = found.reason

    def _take_up_mounts(self) -> None:
        """Go on with the mounts that an earlier process has made."""
        self.mounts.remove_orphans()
        for source in self._to_fill():
            self.filler.complete(source)

    def _to_fill(self) -> list[Source]:
        """The trees that are to be fetched as a whole."""
        wanted = dict.fromkeys(record.tree for record in self.mounts.all() if record.fill and self.options.fill)
        return [source for source in map(self.sources.get, wanted) if source is not None]

    def _in_use(self, digest: bytes) -> bool:
        # The pool asks while it is being opened, too, before anything is known of trees: all may be in use then.
        return not self._is_set_up or self.sources.has(digest)

    def _forget_unused(self) -> None:
        forget_unused()

    def _make_metrics(self, descriptor: int | None) -> MetricsServer | None:
        if descriptor is None:
            return None
        from pagepool.node.metrics import MetricsServer, NodeCollector

        parts = (self.places.run, self.pool, self.mounts, self.sources, self.lazy.requests, self.figures)
        return MetricsServer(socket.socket(fileno=os.dup(descriptor)), NodeCollector(*parts))

    def _count_scrub(self, report: ScrubReport) -> None:
        repaired = sum(damage.repaired for damage in report.damaged)
        self.figures.scrubbed(report.objects, len(report.damaged), repaired, finished=report.finished)

    def _on_large(self, source: object, index: int) -> None:
        self.filler.bring_object(source, index)  # type: ignore[arg-type]

    def _on_starting(self, starting: bool) -> None:
        set_read_ahead(self.places.lazy, *((STARTING_READ_AHEAD_KIB,) if starting else ()))

    def _on_unused(self, tree: str) -> None:
        self.leases.release(tree)
        self.sources.update(tree, released=uptime_s(), lease="")


def _initial_budget(places: NodePlaces) -> int:
    """Most bytes of a pool when nothing else was said. A pool image is for nothing but pool and uppers."""
    if not places.pool_image.exists():
        return default_budget(places.state)
    status = os.statvfs(places.state)
    return status.f_blocks * status.f_frsize // 2
