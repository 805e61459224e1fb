"""The supervisor: one process that owns the socket and the data directory, and keeps the others alive.

    supervisor --+-- worker 1..N      serve HTTP on the shared socket
                 +-- maintenance      reads layers, settles blobs; woken by the workers through an eventfd
                 +-- pool keeper      the pool's door, for clients on this machine; scrubs a pool on a disk
                 +-- recompression    compresses what is stored once more, while there is nothing else to do
                 +-- collection       removes what nothing needs any more, when there is enough of it
                 +-- metrics          answers Prometheus, where that was asked for

Everything is imported before the fork, so that the processes share those pages; the store is opened after it, by each
for itself. The supervisor holds the lock of the data directory and never has the store open while others run.

A process that ends is started again, after a pause that grows while it keeps ending; but a worker that has ended a few
times before all of them served ends the service, with what it said. One that was stopped is told to go on (`watching`).
Where memory runs out the kernel ends one of these, and not the supervisor (`shortage`).
SIGTERM, SIGINT and SIGHUP, unless nohup has that ignored, end all of them, the workers after the requests in flight.
If the supervisor itself is killed the kernel kills the others, and the lock, which they share, is free when the last
one is gone; the next service waits for that.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError, StoreFailedError, UnsupportedError
from pagepool.linux.signals import heeded
from pagepool_service import collecting, poolkeeper, recompressing
from pagepool_service.auth import open_authority
from pagepool_service.children import SIGNALS, Child, describe_end, start_process
from pagepool_service.listening import address_of, listen
from pagepool_service.metrics.directory import make_directory, remove_directory
from pagepool_service.openfiles import StartError, raise_limit
from pagepool_service.roster import Roster
from pagepool_service.seeing.tally import Tally
from pagepool_service.settings import StandardEndpoint
from pagepool_service.store.clock import Moment, Timeline, read_timeline
from pagepool_service.store.collect.collector import drop_cut_off
from pagepool_service.store.disk import is_read_only, why_failed, why_gone
from pagepool_service.store.locking import lock_data
from pagepool_service.store.store import Store
from pagepool_service.store.writerlock import WriterLock
from pagepool_service.tls import Certificate
from pagepool_service.tracing.notes import PushNotes
from pagepool_service.uploadfiles import sweep
from pagepool_service.watching import Watch
from pagepool_service.worker import run_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool_service.auth.authority import Authority
    from pagepool_service.settings import Settings

    Maintain = Callable[[Settings, int, int, Path | None, PushNotes | None], None]

log = logging.getLogger("pagepool.supervisor")

_STEADY_S = 60.0  # a process that lived so long starts from the shortest pause again
_SWEEP_S = 600.0
_LOOK_S = 10.0  # between two looks whether the data directory is there
_MOST_STARTS = 5  # of a worker, until it is believed that it cannot serve here
_LONGEST_WORDS = 64 << 10


@dataclass(frozen=True, slots=True)
class _Metrics:
    """What metrics take: a socket that listens for Prometheus, and the directory of this run's figures."""

    listener: socket.socket
    directory: Path

    def close(self) -> None:
        """Let go of both."""
        self.listener.close()
        remove_directory(self.directory)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the supervisor has open, and its children inherit."""

    listener: socket.socket
    wake_fd: int
    ready_fd: int
    metrics: _Metrics | None
    authority: Authority | None = None
    certificate: Certificate | None = None

    @property
    def figures(self) -> Path | None:
        """The directory of figures."""
        return None if self.metrics is None else self.metrics.directory

    def close_listeners(self) -> None:
        """In a process that answers nobody."""
        self.listener.close()
        if self.metrics is not None:
            self.metrics.listener.close()


class Supervisor:
    """Runs a service. Make one in the main thread of a process that does nothing else, and `run` it.

    Args:
        announce: called once when the service takes requests, with its settings and address. The settings are those
            given, but for a data directory on a read-only file system: that is served read-only.
    """

    def __init__(self, settings: Settings, announce: Callable[[Settings, str], None]) -> None:
        self._settings = replace(settings, read_only=settings.read_only or is_read_only(settings.data))
        self._announce = announce
        self._children: list[Child] = []
        self._roster = Roster(())
        self._tally = Tally(self._settings.workers)
        self._pushes = None if self._settings.trace_endpoint is None else PushNotes()
        self._stopping = False
        self._swept = 0.0
        self._watch: Watch | None = None
        self._looked = 0.0
        self._lock_fd: int | None = None
        self._timeline = Timeline(Moment.now())
        self._words = (-1, -1)
        self._said: dict[int, str] = {}
        # Not in a process that nohup has started: blocked, as these are, it would come though it is ignored.
        self._signals = (*SIGNALS, *heeded([signal.SIGHUP]))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Blocks.

        Raises:
            BusyError: another service has the data directory.
            StartError: too few files may be open; a worker ends again and again before it serves; or the data
                directory is not there any more.
            ListenError: the address cannot be listened on.
            StoreFailedError: the disk of the data directory has failed, so that no worker can serve.
            ReadOnlyError, StoreFormatError: the store cannot be opened.
            FileInvalidError, SettingInvalidError: a file of users, rights or certificates cannot be used.
        """
        settings = self._settings
        raise_limit()
        certificate = Certificate.of(settings)
        lock_fd = self._lock_fd = lock_data(settings.data, read_only=settings.read_only)
        listener = listen(settings.host, settings.port)
        self._timeline = prepare(settings)
        lock = _find_lock(settings)
        authority = open_authority(settings)
        settings = self._settings = prepare_tracing(settings)
        metrics = _open_metrics(settings, alone=lock_fd is not None)
        wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._words = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may have had it ignored, and so no zombies
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        gc.collect()
        gc.freeze()
        self._children = self._make_children(_Shared(listener, wake_fd, ready_write, metrics, authority, certificate))
        self._roster = Roster([child.name for child in self._children])
        if settings.stuck_s:
            self._watch = Watch(lock, self._roster, settings.stuck_s)
        try:
            self._start_due()
            if self._wait_ready(ready_read):
                self._announce(settings, address_of(listener, secure=certificate is not None))
                self._supervise()
        finally:
            # First, so that nobody's connection waits for an answer until the last process has ended.
            listener.close()
            self._end()
            if metrics is not None:
                metrics.close()
            for fd in (wake_fd, ready_read, ready_write, *self._words):
                os.close(fd)
            if lock_fd is not None:
                os.close(lock_fd)

    def _make_children(self, shared: _Shared) -> list[Child]:
        """The processes of the service."""
        settings, metrics = self._settings, shared.metrics
        children = [
            Child(f"worker {number}", partial(self._work, shared, number)) for number in range(1, settings.workers + 1)
        ]
        if not settings.read_only:
            # Here, so that its processes share what it loads; a service that reads no layers does without.
            maintain: Maintain = importlib.import_module("pagepool_service.maintaining").run
            children += [
                Child(f"maintenance {slot + 1}", partial(_maintain, maintain, shared, settings, slot, self._pushes))
                for slot in range(settings.ingest_processes)
            ]
        if settings.cache_bytes != 0:
            children.append(Child("pool keeper", partial(_keep_pool, shared, settings)))
        if not settings.read_only and settings.recompress:
            children.append(Child("recompression", partial(_recompress, shared, settings)))
        if not settings.read_only and settings.gc:
            children.append(Child("collection", partial(_collect, shared, settings)))
        if metrics is not None:
            children.append(Child("metrics", partial(self._export, shared, metrics)))
        return children

    def _work(self, shared: _Shared, number: int) -> None:
        if shared.metrics is not None:
            shared.metrics.listener.close()
        settings = self._settings
        if not settings.read_only and is_read_only(settings.data):
            log.error(
                "%s takes no writes any more; what is stored is served, until the service is started again",
                settings.data,
            )
            settings = replace(settings, read_only=True)
        run_worker(
            settings,
            shared.listener,
            shared.wake_fd,
            shared.ready_fd,
            place=number,
            roster=self._roster,
            figures=shared.figures,
            authority=shared.authority,
            certificate=shared.certificate,
            tally=self._tally,
            pushes=self._pushes,
        )

    def _export(self, shared: _Shared, metrics: _Metrics) -> None:
        shared.listener.close()
        importlib.import_module("pagepool_service.metrics.exporting").run(
            self._settings, metrics.listener, metrics.directory, self._roster
        )

    def _wait_ready(self, ready_fd: int) -> bool:
        """Wait until every worker serves. Returns False if the service is told to end before.

        Raises:
            StartError: one of them does not come to that.
        """
        waiting = self._settings.workers
        while waiting and not self._stopping:
            self._take_signal(0.0)
            self._give_up()
            self._start_due()
            if select.select([ready_fd], [], [], 0.02)[0]:
                waiting -= len(os.read(ready_fd, waiting))
        return not self._stopping

    def _give_up(self) -> None:
        """Raise if a worker has ended too often before all of them served."""
        for child in self._children[: self._settings.workers]:
            if child.ended >= _MOST_STARTS:
                raise StartError(f"{child.name} ended {child.ended} times before it served: {child.why}")

    def _supervise(self) -> None:
        while not self._stopping:
            now = time.monotonic()
            due = [child.due for child in self._children if not child.pid]
            step_s = _LOOK_S if self._watch is None else min(_LOOK_S, self._watch.step_s)
            self._take_signal(min([step_s, *(max(0.01, moment - now) for moment in due)]))
            self._look(now)
            self._start_due()
            self._sweep(now)
            if self._watch is not None:
                self._watch.look(time.monotonic())

    def _look(self, now: float) -> None:
        """End the service where its data directory is lost, and nothing can be served.

        What a disk that has failed has in the page cache is served as long as a worker has it open; a worker that
        begins anew has not.

        Raises:
            StartError, StoreFailedError: it is so.
        """
        if now - self._looked < _LOOK_S and all(child.pid for child in self._children):
            return
        self._looked = now
        if self._lock_fd is not None and (gone := why_gone(self._settings.data, self._lock_fd)):
            raise StartError(gone)
        if any(child.pid for child in self._children[: self._settings.workers]):
            return
        if failed := why_failed(self._settings.data):
            raise StoreFailedError(failed)

    def _take_signal(self, timeout_s: float) -> None:
        info = signal.sigtimedwait(self._signals, timeout_s)
        if info is not None and info.si_signo != signal.SIGCHLD:
            self._stopping = True
        self._reap()

    def _reap(self) -> None:
        """Note the processes that ended, and when they are to start again."""
        for place, child in enumerate(self._children):
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.pid = 0
            child.ended += 1
            self._roster.note(place, 0)
            if self._stopping:
                continue
            self._hear()
            child.why = self._said.pop(pid, "") or describe_end(status)
            child.postpone(steady=time.monotonic() - child.started >= _STEADY_S)
            log.error("%s ended (%s); it starts again in %.1f s", child.name, describe_end(status), child.pause_s)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS:
                data = self._settings.data
                log.error("if it was the database in %s, this repairs it: pagepool fsck --repair --data %s", data, data)

    def _hear(self) -> None:
        """Take what processes said of why they ended: each a line, with its number before it."""
        with suppress(BlockingIOError):
            for line in os.read(self._words[0], _LONGEST_WORDS).decode(errors="replace").splitlines():
                pid, _, said = line.partition(" ")
                self._said[int(pid)] = said

    def _start_due(self) -> None:
        for place, child in enumerate(self._children):
            if not child.pid and not self._stopping and child.due <= time.monotonic():
                try:
                    child.pid = start_process(child.run, self._settings, self._words[1])
                except OSError as error:  # there are too many processes, or too little memory: others go on
                    child.ended += 1
                    child.why = f"it cannot be started: {error.strerror}"
                    child.postpone(steady=False)
                    log.error("%s cannot be started: %s; next try in %.1f s", child.name, error.strerror, child.pause_s)
                    continue
                child.started = time.monotonic()
                self._roster.note(place, child.pid)
                log.debug("%s runs as process %d", child.name, child.pid)

    def _sweep(self, now: float) -> None:
        if now - self._swept < _SWEEP_S or self._settings.read_only:
            return
        self._swept = now
        self._timeline = self._timeline.at(Moment.now())
        try:
            removed = sweep(self._settings.data / "uploads", self._settings.upload_idle_s, self._timeline)
        except OSError as error:  # the file system has failed, or takes no writes any more
            log.error("uploads that are idle cannot be removed: %s", error)
            return
        if removed:
            log.info("removed %d uploads that were idle for %.0f s", removed, self._settings.upload_idle_s)

    def _end(self) -> None:
        """End every process: ask, wait for the requests in flight, then kill."""
        self._stopping = True
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.graceful_s + 2.0
        while any(child.pid for child in self._children) and time.monotonic() < deadline:
            self._take_signal(0.1)
        self._signal_all(signal.SIGKILL)
        for child in self._children:
            if child.pid:
                log.error("%s did not end in time; it was killed", child.name)
                os.waitpid(child.pid, 0)
                child.pid = 0

    def _signal_all(self, number: int) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, number)


def prepare(settings: Settings) -> Timeline:
    """Check and tidy the store before anyone uses it. Returns what the store knows of the machine's clock.

    Raises:
        ReadOnlyError, StoreFormatError: it cannot be used.
    """
    timeline = Timeline(Moment.now())
    with Store.open(settings.data, quota_bytes=settings.quota_bytes, readonly=settings.read_only) as store:
        if settings.read_only:
            return timeline
        removed = store.blobs.sweep_spool()
        store.blobs.rebuilt.limit = settings.rebuilt_bytes
        store.blobs.rebuilt.sweep()
        store.jobs.release_all()
        drop_cut_off(store)
        with suppress(CorruptError), store.env.read() as txn:  # collection says so
            timeline = read_timeline(txn, timeline.now)
    removed += sweep(settings.data / "uploads", settings.upload_idle_s, timeline)
    if removed:
        log.info("removed %d files that an earlier run left", removed)
    return timeline


def _find_lock(settings: Settings) -> WriterLock | None:
    """The lock of the store's writers, if anybody writes."""
    if settings.read_only or not settings.stuck_s:
        return None
    lock = WriterLock.find(settings.data / "store")
    if lock is None:
        log.warning("who holds the lock of the store's writers cannot be seen here, and so not be told")
    return lock


def _open_metrics(settings: Settings, *, alone: bool) -> _Metrics | None:
    """Listen for Prometheus, if that is wanted.

    Raises:
        ListenError: the address cannot be listened on.
    """
    if settings.metrics_listen is None:
        return None
    listener = listen(*settings.metrics_listen)
    # Before the fork, as everything else: the processes share its pages.
    importlib.import_module("pagepool_service.metrics.exporting")
    log.info("metrics on %s/metrics", address_of(listener))
    return _Metrics(listener, make_directory(settings, alone=alone))


def prepare_tracing(settings: Settings) -> Settings:
    """Load what traces need, before the fork as everything else. Returns the settings, without traces where they need
    not be and cannot.

    Raises:
        UnsupportedError: they have to be, and what they need is not installed.
    """
    if settings.trace_endpoint is None:
        return settings
    try:
        importlib.import_module("pagepool_service.tracing.exporting")
    except ImportError as error:
        reason = f"traces need OpenTelemetry's SDK ({error}): pip install 'pagepool[tracing]'"
        if not isinstance(settings.trace_endpoint, StandardEndpoint):
            raise UnsupportedError(reason) from error
        log.warning("no traces are made: %s", reason)
        return replace(settings, trace_endpoint=None)
    log.info("traces go to %s", settings.trace_endpoint)
    return settings


def _maintain(maintain: Maintain, shared: _Shared, settings: Settings, slot: int, pushes: PushNotes | None) -> None:
    shared.close_listeners()
    maintain(settings, shared.wake_fd, slot, shared.figures, pushes)


def _keep_pool(shared: _Shared, settings: Settings) -> None:
    shared.close_listeners()
    poolkeeper.run(settings)


def _recompress(shared: _Shared, settings: Settings) -> None:
    shared.close_listeners()
    recompressing.run(settings)


def _collect(shared: _Shared, settings: Settings) -> None:
    shared.close_listeners()
    collecting.run(settings)
