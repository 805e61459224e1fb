"""Start-up profiles: what containers open in their first seconds, written down and used.

For each mount a recorder (`recorder`) looks at what is opened through it, for a few seconds, until enough was seen or
it is unmounted; then the service is told, which keeps what most starts have in common. The next mount of the image, on
any node, fetches that in one streamed request, while the container starts. All of it is a help and nothing else: what
goes wrong is logged, and the mount does without.
"""

from __future__ import annotations

import logging
import math
import mmap
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest
from pagepool.errors import CorruptError, PagepoolError
from pagepool.image.erofs import node_number
from pagepool.node.recorder import Recorder, tree_resolver, try_record
from pagepool.transport.profiles import ProfileClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool.node.sources import Source, Sources

SECONDS: Final = 10.0
_MOST_OF_A_TREE: Final = 4
"""Recordings at a time. Many containers that start together open the same."""
_AHEAD_S: Final = 60.0
"""A profile that was fetched is good for so long."""

log = logging.getLogger("pagepool.node")


class Profiles:
    """The recordings that are under way, and fetching ahead. Thread-safe.

    Args:
        sources: the trees.
        large: objects of more bytes are not fetched ahead.
    """

    def __init__(self, sources: Sources, large: int) -> None:
        self._sources = sources
        self._large = large
        self._lock = threading.Lock()
        self._recorders: dict[str, Recorder] = {}
        self._under_way: Counter[str] = Counter()
        self._ahead: dict[str, float] = {}  # tree -> when its profile was fetched, on the clock of time.monotonic

    def begin(self, identity: str, mount: int, source: Source, metadata: Path) -> None:
        """A mount is about to be used: fetch what others opened first, and record what this one opens.

        Args:
            identity: of the mount.
            mount: a descriptor of it; stays the caller's.
            source: its tree.
            metadata: the metadata image of the tree.
        """
        tree, now = source.record.tree, time.monotonic()
        with self._lock:
            is_ahead = self._ahead.get(tree, -math.inf) > now - _AHEAD_S
            self._ahead = {one: since for one, since in self._ahead.items() if since > now - _AHEAD_S} | {tree: now}
            is_enough = self._under_way[tree] >= _MOST_OF_A_TREE
        if not is_ahead:
            threading.Thread(target=self._prefetch, args=(source,), name="node-profile", daemon=True).start()
        if is_enough:
            return
        recorder = try_record(mount, tree_resolver(source.tree, node_finder(metadata)), seconds=SECONDS)
        if recorder is None:
            log.info("nothing is recorded of starts: this kernel has no fanotify for it")
            return
        with self._lock:
            self._recorders[identity] = recorder
            self._under_way[tree] += 1
        threading.Thread(
            target=self._finish, args=(identity, recorder, source), name="node-record", daemon=True
        ).start()

    def end(self, identity: str) -> None:
        """A mount is about to go: what was recorded so far is all there will be. It holds the mount no more then."""
        with self._lock:
            recorder = self._recorders.get(identity)
        if recorder is not None:
            recorder.finish()

    def _prefetch(self, source: Source) -> None:
        record = source.record
        try:
            profile = ProfileClient(source.session).get(record.repository, _tree(record.tree))
            if profile is not None:
                count = self._sources.prefetch(source, profile.objects, self._large)
                log.info("%s: the %d objects of its start-up profile are here", record.image, count)
        except (PagepoolError, OSError) as error:
            log.info("the start-up profile of %s is not used: %s", record.image, error)

    def _finish(self, identity: str, recorder: Recorder, source: Source) -> None:
        recorder.wait()
        recording = recorder.stop()
        with self._lock:
            self._recorders.pop(identity, None)
            self._under_way[source.record.tree] -= 1
            self._under_way += Counter()  # leaves out what is 0
        opened = recording.objects
        if not opened or not recording.complete:
            return
        record = source.record
        try:
            ProfileClient(source.session).record(record.repository, _tree(record.tree), opened)
        except PagepoolError as error:
            log.info("the start-up profile of %s is not sent: %s", record.image, error)


def node_finder(metadata: Path) -> Callable[[int], int]:
    """The number of a tree's node, of an inode number of its metadata image."""
    with metadata.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def find(ino: int) -> int:
        try:
            return node_number(mapped, ino)
        except CorruptError:  # a file of the container's own
            return 0

    return find


def _tree(text: str) -> Digest:
    return Digest("blake3", bytes.fromhex(text))
