"""Start-up profiles: what containers open and read in their first seconds, written down and used.

For each mount a recorder (`recorder`) looks at what is opened through it, for a few seconds, until enough was seen or
it is unmounted; of what is read piece by piece the lazy mount knows which pieces (`parts`). Then the service is told,
which keeps what most starts have in common. The next mount of the image, on any node, fetches that in one streamed
request, while the container starts. All of it is a help and nothing else: what goes wrong is logged, and the mount does
without.
"""

from __future__ import annotations

import logging
import math
import mmap
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest
from pagepool.errors import CorruptError, PagepoolError
from pagepool.extents import EXTENT_SIZE
from pagepool.image.erofs import node_number
from pagepool.node.later import Later
from pagepool.node.parts import KNOWN_S, MIDDLE
from pagepool.node.recorder import Recorder, tree_resolver, try_record
from pagepool.transport.profiles import ProfileClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pagepool.image import TreeFile
    from pagepool.node.links import Links
    from pagepool.node.source import Source
    from pagepool.node.sources import Sources
    from pagepool.transport.profiles import Profile

SECONDS: Final = 10.0
_MOST_OF_A_TREE: Final = 4
"""Recordings at a time. Many containers that start together open the same."""
MOST_AHEAD: Final = 2 << 30
"""Bytes that are fetched ahead at most, whatever a profile says."""
_WHOLE_SHARE: Final = 0.9
"""An object of which a start reads more than that is fetched whole: then it need not be read through the node."""

log = logging.getLogger("pagepool.node")


class Profiles:
    """The recordings that are under way, and fetching ahead. Thread-safe.

    Args:
        sources: the trees.
        large: objects of more bytes are not fetched ahead as a whole.
        links: to services.
    """

    def __init__(self, sources: Sources, large: int, links: Links) -> None:
        self._links = links
        self._sources = sources
        self._large = large
        self._lock = threading.Lock()
        self._recorders: dict[str, Recorder] = {}
        self._under_way: Counter[str] = Counter()
        self._ending = Later(SECONDS, sources.parts.end)
        self._ahead: dict[str, float] = {}  # tree -> when its profile was fetched, on the clock of time.monotonic

    def begin(self, identity: str, mount: int, source: Source, metadata: Path) -> None:
        """A mount is about to be used: fetch what others opened first, and record what this one opens.

        Args:
            identity: of the mount.
            mount: a descriptor of it; stays the caller's.
            source: its tree.
            metadata: the metadata image of the tree.
        """
        self.ahead(source)
        tree, begun = source.record.tree, time.monotonic()
        self._sources.parts.begin(tree, in_parts=self._links.in_parts(source.session.where))
        recorder = None
        try:
            recorder = self._record(mount, source, metadata)
        except (OSError, RuntimeError) as error:  # what the kernel allows a user of marks or threads is used up
            log.warning("nothing is recorded of a start of %s: %s", source.record.image, error)
        if recorder is None:
            self._ending.put(tree)
            return
        with self._lock:
            self._recorders[identity] = recorder
            self._under_way[tree] += 1
        finish = partial(self._finish, identity, recorder, source, begun)
        try:
            threading.Thread(target=finish, name="node-record", daemon=True).start()
        except RuntimeError:  # there are too many threads
            recorder.stop()
            self._ended(identity, tree)

    def ahead(self, source: Source) -> None:
        """Fetch what others opened first, unless that was done a moment ago. Does not wait for it."""
        tree, now = source.record.tree, time.monotonic()
        with self._lock:
            is_ahead = self._ahead.get(tree, -math.inf) > now - KNOWN_S
            self._ahead = {one: since for one, since in self._ahead.items() if since > now - KNOWN_S} | {tree: now}
        if not is_ahead:
            self._sources.parts.expect(tree)
            threading.Thread(target=self._prefetch, args=(source,), name="node-profile", daemon=True).start()

    def _record(self, mount: int, source: Source, metadata: Path) -> Recorder | None:
        with self._lock:
            if self._under_way[source.record.tree] >= _MOST_OF_A_TREE:
                return None
        recorder = try_record(mount, tree_resolver(source.tree, node_finder(metadata)), seconds=SECONDS)
        if recorder is None:
            log.info("nothing is recorded of starts: this kernel has no fanotify for it")
        return recorder

    def end(self, identity: str) -> None:
        """A mount is about to go: what was recorded so far is all there will be. It holds the mount no more then."""
        with self._lock:
            recorder = self._recorders.get(identity)
        if recorder is not None:
            recorder.finish()

    def _prefetch(self, source: Source) -> None:
        record = source.record
        try:
            profile = ProfileClient(source.session).get(record.repository, _tree(record.tree), similar=True)
            if profile is not None:
                source.start.learned = True
                in_parts = self._links.in_parts(source.session.where)
                plan = plan_prefetch(profile, source.tree, self._large, in_parts=in_parts)
                answer = partial(self._sources.parts.answer, record.tree, plan.partial, plan.settled)
                self._sources.prefetch(source, plan.wanted, answer)
                log.info("%s: the %d objects of its start-up profile are here", record.image, len(plan.wanted))
        except (PagepoolError, OSError) as error:
            log.info("the start-up profile of %s is not used: %s", record.image, error)
        finally:
            self._sources.parts.answer(record.tree)  # in case that nothing came of it

    def _finish(self, identity: str, recorder: Recorder, source: Source, begun: float) -> None:
        recorder.wait()
        recording = recorder.stop()
        parts = self._sources.parts.noted(begun)
        self._ended(identity, source.record.tree)
        opened = recording.objects
        if not opened or not recording.complete:
            return
        record = source.record
        try:
            ProfileClient(source.session).record(record.repository, _tree(record.tree), opened, parts)
        except PagepoolError as error:
            log.info("the start-up profile of %s is not sent: %s", record.image, error)

    def _ended(self, identity: str, tree: str) -> None:
        with self._lock:
            self._recorders.pop(identity, None)
            self._under_way[tree] -= 1
            self._under_way += Counter()  # leaves out what is 0
        self._sources.parts.end(tree)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to fetch ahead.

    Args:
        wanted: by the place of an object in the tree, which of its extents; None: all.
        partial: digests of those of which not all is wanted.
        settled: digests of those of which all is wanted, since that much is read.
    """

    wanted: Mapping[int, tuple[int, ...] | None]
    partial: frozenset[bytes] = frozenset()
    settled: frozenset[bytes] = frozenset()


def plan_prefetch(
    profile: Profile, tree: TreeFile, large: int, most: int = MOST_AHEAD, *, in_parts: bool = True
) -> Plan:
    """Decide what to fetch ahead. Pure. What a profile says may be anything: of a tree only its own extents come.

    Args:
        large: objects of more bytes are left out, unless it is known what is read of them.
        most: bytes; what would make it more is left out.
        in_parts: whether to fetch only a part of objects that are not large, too.
    """
    wanted: dict[int, tuple[int, ...] | None] = {}
    least = MIDDLE if in_parts else large
    partly, settled = set(), set()
    for digest in profile.objects:
        index = tree.find_object(digest)
        size = tree.object_key(index)[1] if index >= 0 else 0
        parts = profile.parts.get(digest) if size > least else None
        numbers = None if parts is None else tuple(number for number in parts if number * EXTENT_SIZE < size)
        is_settled = numbers is not None and len(numbers) * EXTENT_SIZE >= size * _WHOLE_SHARE
        if is_settled:
            numbers = None
        plain = size if numbers is None else len(numbers) * EXTENT_SIZE
        if index < 0 or plain > most or (size > large and parts is None):
            continue
        most -= plain
        wanted[index] = numbers
        if numbers is not None:
            partly.add(digest)
        elif is_settled:
            settled.add(digest)
    return Plan(wanted, frozenset(partly), frozenset(settled))


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
