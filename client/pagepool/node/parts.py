"""Which objects are read in parts while containers start, and what is read of them.

Two things are known of a start. The service's profile says of some objects which extents earlier starts have read: so
much is fetched at once, and the object is read through the lazy mount until the rest has come. Of an object of which
that is not known the reads of the lazy mount are noted, for as long as a start is being recorded: it is read through
the lazy mount for that, though all of it is fetched at once.

Only objects of more than `MIDDLE` bytes: of smaller ones a start reads nearly all. And, but for large ones, only from
services over slow links (`links`). A mount that has met an object in
parts goes on reading it through the node (design, "Large objects"), so nothing is read in parts without need.

Thread-safe. In memory; a worker that takes over has no recording under way, and notes nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

MIDDLE: Final = 1 << 20
KNOWN_S: Final = 60.0
"""What a profile says is good for so long."""
_MOST_NOTED: Final = 4096
_ANSWER_S: Final = 1.0
"""How long who looks up an object waits for the profile: about a round trip is usual, and it need not come."""


@dataclass(slots=True)
class _Known:
    """What the profile of a tree says, once it is there."""

    since: float
    answered: threading.Event = field(default_factory=threading.Event)
    partial: frozenset[bytes] = frozenset()
    settled: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class _Noted:
    """What was read of an object since it was met, on the clock of `time.monotonic`."""

    since: float
    extents: set[int] = field(default_factory=set)


class Parts:
    """What is read in parts.

    Args:
        on_starting: told True when a first container starts of which files are read in parts, and False when none does
            any more.
    """

    def __init__(self, on_starting: Callable[[bool], None] = lambda _: None) -> None:
        self._on_starting = on_starting
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._starting: Counter[str] = Counter()
        self._in_parts: set[str] = set()
        self._noted: dict[bytes, _Noted] = {}

    # -- what profiles say -------------------------------------------------------------------------------------

    def expect(self, tree: str) -> None:
        """The profile of a tree is being asked for. To be followed by `answer`, whatever comes of it."""
        now = time.monotonic()
        with self._lock:
            self._known = {one: known for one, known in self._known.items() if known.since > now - KNOWN_S}
            self._known[tree] = _Known(now)

    def answer(self, tree: str, partial: Iterable[bytes] = (), settled: Iterable[bytes] = ()) -> None:
        """What it says; the first answer counts.

        Args:
            partial: objects of which only some extents are read.
            settled: objects that are read as a whole, or nearly.
        """
        with self._lock:
            known = self._known.get(tree)
            if known is not None and not known.answered.is_set():
                known.partial, known.settled = frozenset(partial), frozenset(settled)
                known.answered.set()

    def await_answer(self, tree: str) -> None:
        """Wait for the profile of a tree, if it is being asked for: a second at most."""
        known = self._known.get(tree)
        if known is not None:
            known.answered.wait(_ANSWER_S)

    def is_partial(self, digest: bytes) -> bool:
        """Whether a profile says that only some extents of an object are read."""
        now = time.monotonic()
        with self._lock:
            return any(digest in known.partial and known.since > now - KNOWN_S for known in self._known.values())

    def serves(self, digest: bytes, trees: Collection[str]) -> bool:
        """Whether an object is to be read through the lazy mount, though it is not large. Waits as `await_answer`.

        Args:
            trees: that have it.
        """
        for tree in trees:
            self.await_answer(tree)
        if self.is_partial(digest):
            return True
        with self._lock:
            settled = any(digest in known.settled for known in self._known.values())
            return not settled and not self._in_parts.isdisjoint(trees)

    # -- what starts read --------------------------------------------------------------------------------------

    def begin(self, tree: str, *, in_parts: bool) -> None:
        """A container of a tree is about to start. To be followed by `end`, seconds later.

        Args:
            in_parts: whether files of which nothing is known are to be read in parts.
        """
        with self._lock:
            self._starting[tree] += 1
            if in_parts:
                is_first = not self._in_parts
                self._in_parts.add(tree)
                if is_first:
                    self._on_starting(True)

    def end(self, tree: str) -> None:
        """It has started."""
        with self._lock:
            self._starting[tree] -= 1
            self._starting += Counter()  # leaves out what is 0
            if tree in self._in_parts and tree not in self._starting:
                self._in_parts.remove(tree)
                if not self._in_parts:
                    self._on_starting(False)
            if not self._starting:
                self._noted.clear()

    def met(self, digest: bytes) -> None:
        """An object has become one of the lazy mount: from now on the kernel asks for what is read of it."""
        with self._lock:
            if self._starting and len(self._noted) < _MOST_NOTED:
                self._noted.setdefault(digest, _Noted(time.monotonic()))

    def read(self, digest: bytes, start: int, end: int) -> None:
        """The kernel asks for bytes of an object, since a program does, or is expected to."""
        if digest in self._noted:
            with self._lock:
                noted = self._noted.get(digest)
                if noted is not None:
                    noted.extents.update(range(start // EXTENT_SIZE, -(-end // EXTENT_SIZE)))

    def noted(self, since: float) -> dict[bytes, frozenset[int]]:
        """The extents that were read of each object that was met after a moment. Of one that was met before, the kernel
        may have had some, and did not ask for them.

        Args:
            since: on the clock of `time.monotonic`.
        """
        with self._lock:
            return {digest: frozenset(one.extents) for digest, one in self._noted.items() if one.since >= since}
