"""Holds leases on the trees that are mounted: while one is held, the service keeps and serves the tree whatever else is
deleted there. Renewed at a third of their time by a thread; a service that cannot be reached is asked again at the next
turn, and a node that is off for longer than a lease loses it, which it finds out and logs when it renews."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest
from pagepool.errors import NotFoundError, PagepoolError
from pagepool.transport.leases import LeaseClient

if TYPE_CHECKING:
    from pagepool.node.source import Source
    from pagepool.node.sources import Sources

TTL_S: Final = 24 * 3600
_EVERY_S: Final = 300.0
_LONGEST_END_S: Final = 5.0
_RENEW_S: Final = TTL_S / 3

log = logging.getLogger("pagepool.node")


class LeaseKeeper:
    """The leases of a node. Thread-safe.

    Args:
        sources: the trees.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._held: dict[str, float] = {}  # tree -> when it is to be renewed, on the clock of time.monotonic
        self._wake = threading.Event()
        self._ended = False
        self._lock = threading.Lock()
        self._let_go: set[str] = set()  # trees that are not mounted any more, and may be asked for at this moment
        self._releasing: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._work, name="node-leases", daemon=True)
        self._thread.start()

    def want(self, tree: str) -> None:
        """See that a tree is held, soon. Nothing is asked if it is."""
        with self._lock:
            self._let_go.discard(tree)
        source = self._sources.get(tree)
        if source is None or not source.record.lease or self._is_due(tree):
            self._held.pop(tree, None)
            self._wake.set()

    def release(self, tree: str) -> None:
        """Let go of a tree's lease. What cannot be told to the service ends by itself."""
        with self._lock:
            self._let_go.add(tree)
            self._held.pop(tree, None)
            source = self._sources.get(tree)
            lease = "" if source is None else source.record.lease
        if source is not None and lease:
            self._begin_release(source, lease)

    def close(self) -> None:
        """Stop renewing, and wait a moment for what is being let go of: it would be held for a day.

        That may be a lease which is being asked for, so that is waited for first.
        """
        self._ended = True
        self._wake.set()
        deadline = time.monotonic() + _LONGEST_END_S
        self._thread.join(_LONGEST_END_S)
        for thread in list(self._releasing):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _begin_release(self, source: Source, lease: str) -> None:
        def work() -> None:
            _release(source, lease)
            self._releasing.discard(thread)

        thread = threading.Thread(target=work, daemon=True)
        self._releasing.add(thread)
        thread.start()

    def _work(self) -> None:
        while not self._ended:
            self._wake.wait(_EVERY_S)
            self._wake.clear()
            for source in self._sources.all():
                if not self._ended and not source.record.released and self._is_due(source.record.tree):
                    try:
                        self._hold(source)
                    except Exception:  # without this thread every lease would run out
                        log.exception("no lease on %s", source.record.image)

    def _is_due(self, tree: str) -> bool:
        return self._held.get(tree, 0.0) < time.monotonic()

    def _hold(self, source: Source) -> None:
        record = source.record
        tree = Digest("blake3", bytes.fromhex(record.tree))
        client = LeaseClient(source.session)
        holder = f"node {socket.gethostname()}"
        try:
            try:
                lease = client.hold(record.repository, tree, holder, TTL_S, record.lease or None)
            except NotFoundError:
                if not record.lease:
                    raise
                log.warning("the lease on %s was lost; a new one is taken", record.image)
                lease = client.hold(record.repository, tree, holder, TTL_S)
        except PagepoolError as error:
            log.warning("no lease on %s: %s", record.image, error)
            return
        with self._lock:
            gone = record.tree in self._let_go
            if not gone:
                self._held[record.tree] = time.monotonic() + _RENEW_S
                if lease.id != record.lease:
                    self._sources.update(record.tree, lease=lease.id)
        if gone:  # while it was asked for
            self._begin_release(source, lease.id)


def _release(source: Source, lease: str) -> None:
    tree = Digest("blake3", bytes.fromhex(source.record.tree))
    try:
        LeaseClient(source.session).release(source.record.repository, tree, lease)
    except (PagepoolError, RuntimeError) as error:  # the latter from httpx: the node has ended, and closed the session
        log.info("the lease on %s ends by itself: %s", source.record.image, error)
